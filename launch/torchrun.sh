#!/usr/bin/env bash
{% if head %}
# {{ job.name }}: {{ job.num_nodes }} machines with {{ job.num_processes }} processes each. Run this script on each of them; again to resume.
{% else %}
# {{ job.name }}: {{ job.num_processes }} processes on this machine. Written by `tessera-launch torchrun`; run it again to resume.
{% endif %}
set -euo pipefail

cd {{ here | quote }}  # relative paths in the config start here
export PYTHONPATH={{ (job.run / "code") | quote }}  # the copied code, not the checkout, which may change meanwhile
export PYTHONSAFEPATH=1  # keeps `python -m` from looking into the current folder first
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(( $(nproc) / {{ job.num_processes }} > 0 ? $(nproc) / {{ job.num_processes }} : 1 ))}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=300  # seconds for the last checkpoint between SIGTERM and SIGKILL; 30 would be torchrun's

{% if head %}
getent hosts {{ head | quote }} > /dev/null || { echo {{ ("no address for the head node " ~ head) | quote }} >&2; exit 1; }
{% endif %}
exec {{ python | quote }} -m torch.distributed.run \
    --nnodes {{ job.num_nodes }} --nproc-per-node {{ job.num_processes }} --max-restarts 0 \
{% if head %}
    --rdzv-backend c10d --rdzv-endpoint {{ (head ~ ":" ~ port) | quote }} --rdzv-id {{ job.name | quote }} \
{% else %}
    --rdzv-backend c10d --rdzv-endpoint 127.0.0.1:0 --rdzv-id {{ job.name | quote }} --local-addr 127.0.0.1 \
{% endif %}
    -m pipeline train {{ job.config | quote }}
