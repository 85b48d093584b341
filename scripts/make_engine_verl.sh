#!/usr/bin/env bash
# Makes .venv-verl: verl and SkyRL's environments, for tests/engines/test_verl.py and test_skyrl.py. torch, Ray and datasets
# are those of .venv.
#
# verl pins transformers below 5.11. Only what its agent loop, reward managers and configuration import is installed.
set -euo pipefail
cd "$(dirname "$0")/.."

version=0.9.1
folder=.venv-verl
python=$folder/bin/python
base=${RLT_VENV:-.venv}

if [ -f "$folder/complete" ] && [ "$(cat "$folder/complete")" = "$version" ]; then
  echo "$folder: verl $version is there"
  exit 0
fi

rm -rf "$folder"
"$base/bin/python" -m venv "$folder"
"$python" -m pip install --quiet --disable-pip-version-check --no-deps "verl==$version" skyrl-gym==0.4.0 \
  transformers==5.10.2 tokenizers==0.22.2 huggingface-hub==1.33.0 httpx==0.28.1 httpcore==1.0.9 \
  hydra-core==1.3.2 omegaconf==2.3.0 antlr4-python3-runtime==4.9.3 tensordict==0.10.0 torchdata==0.11.0 codetiming==1.4.0 \
  pillow==13.0.0 cachetools==8.0.2 pyvers==0.2.3 cloudpickle==3.1.3 pylatexenc==2.11 orjson==3.13.0
# Behind its own packages come those of .venv, so that torch is not downloaded twice. Not rlt itself: tests name its folder.
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$base/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$site/zz_base.pth"
"$python" -c "import skyrl_gym, verl.experimental.agent_loop, verl.experimental.reward_loop.reward_manager"
echo "$version" > "$folder/complete"
echo "$folder: verl $version is ready"
