#!/usr/bin/env bash
# Runs benchmarks/gpu_check.py in an environment that has this machine's own torch: from ./wheelhouse where it is there
# (scripts/gpu_wheelhouse.sh fills it), otherwise from the package index. Arguments: names of blocks.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ ! -e .venv-gpu/installed ]; then
  "${PYTHON:-python3}" -m venv --system-site-packages .venv-gpu
  if [ -d wheelhouse ]; then
    .venv-gpu/bin/pip install --quiet --no-index --no-deps --ignore-installed wheelhouse/*
    .venv-gpu/bin/pip install --quiet --no-index --no-deps --no-build-isolation -e .
  else
    .venv-gpu/bin/pip install --quiet --disable-pip-version-check -e '.[peft]'
  fi
  touch .venv-gpu/installed
fi
exec .venv-gpu/bin/python benchmarks/gpu_check.py "$@"
