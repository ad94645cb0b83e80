#!/usr/bin/env bash
# A tracking server for a team: MLflow, its records in PostgreSQL, its files behind it on S3. Ends with Ctrl-C or SIGTERM.
#
#   MLFLOW_BACKEND_STORE_URI=postgresql+psycopg://mlflow:PASSWORD@db.example.org/mlflow \
#   MLFLOW_ARTIFACTS_DESTINATION=s3://bucket/mlflow \
#   MLFLOW_SERVER_ALLOWED_HOSTS=mlflow.example.org launch/mlflow-server.sh
#
# needs     pip install tessera[server]; AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, and MLFLOW_S3_ENDPOINT_URL if not AWS
# settings  MLFLOW_HOST (127.0.0.1), MLFLOW_PORT (5000), MLFLOW_WORKERS (4); with MLFLOW_AUTH_CONFIG_PATH users log in
# users     export MLFLOW_TRACKING_URI=https://mlflow.example.org, and only that: no one but this server has S3's keys
#
# All of it travels in the environment: `ps` shows no password. docs/tracking.md says how to secure it.
set -euo pipefail

: "${MLFLOW_BACKEND_STORE_URI:?the database, such as postgresql+psycopg://mlflow:PASSWORD@db.example.org/mlflow}"
: "${MLFLOW_ARTIFACTS_DESTINATION:?where files go, such as s3://bucket/mlflow}"
export MLFLOW_BACKEND_STORE_URI MLFLOW_ARTIFACTS_DESTINATION
export MLFLOW_HOST=${MLFLOW_HOST:-127.0.0.1} MLFLOW_PORT=${MLFLOW_PORT:-5000} MLFLOW_WORKERS=${MLFLOW_WORKERS:-4}
export MLFLOW_DISABLE_TELEMETRY=${MLFLOW_DISABLE_TELEMETRY:-true}
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=${MLFLOW_SERVER_ENABLE_JOB_EXECUTION:-false}  # nine processes for tasks that Tessera has none of
# MLflow's own pool of 5 + 10 connections for each worker runs dry under many runs.
export MLFLOW_SQLALCHEMYSTORE_POOL_SIZE=${MLFLOW_SQLALCHEMYSTORE_POOL_SIZE:-10}
export MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW=${MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW:-20}
export MLFLOW_SQLALCHEMYSTORE_POOL_RECYCLE=${MLFLOW_SQLALCHEMYSTORE_POOL_RECYCLE:-1800}

options=()
[ -z "${MLFLOW_AUTH_CONFIG_PATH:-}" ] || options+=(--app-name basic-auth)
exec "${PYTHON:-python3}" -m mlflow server --serve-artifacts "${options[@]}"
