#!/usr/bin/env bash
# {{ job.name }}: one process on this machine. Written by `tessera-launch local`; run it again to resume.
set -euo pipefail

cd {{ here | quote }}  # relative paths in the config start here
export PYTHONPATH={{ (job.run / "code") | quote }}  # the copied code, not the checkout, which may change meanwhile
export PYTHONSAFEPATH=1  # keeps `python -m` from looking into the current folder first

exec {{ python | quote }} -m pipeline train {{ job.config | quote }}
