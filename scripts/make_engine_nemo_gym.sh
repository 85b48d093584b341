#!/usr/bin/env bash
# Makes .venv-nemo-gym: NeMo Gym in its own environment, for tests/engines. FastAPI, Ray and pandas are those of .venv.
#
# NeMo Gym asks for Python 3.12; what is used here runs on 3.11 too, so its request is overruled.
set -euo pipefail
cd "$(dirname "$0")/.."

version=0.4.0
folder=.venv-nemo-gym
python=$folder/bin/python
main=${RLT_VENV:-.venv}/bin/python

if [ -f "$folder/complete" ] && [ "$(cat "$folder/complete")" = "$version" ]; then
  echo "$folder: NeMo Gym $version is there"
  exit 0
fi

rm -f "$folder/complete"
"$main" -m venv "$folder"
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python "nemo-gym==$version" \
  openai==2.7.2 omegaconf==2.4.0 hydra-core==1.3.8 antlr4-python3-runtime==4.9.3 orjson==3.13.0 itsdangerous==2.2.0 \
  wandb==0.31.0 yappi==1.7.6 gprof2dot==2025.4.14 pydot==4.0.1 sniffio==1.3.1 distro==1.9.0 httpx==0.28.1 httpcore==1.0.9
# Behind its own packages come those of .venv, so that torch is not downloaded twice. Not rlt itself: tests name its folder.
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$main" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$site/zz_base.pth"
"$python" -W ignore -c "import nemo_gym.base_resources_server, responses_api_agents.simple_agent.app"
echo "$version" > "$folder/complete"
echo "$folder: NeMo Gym $version is ready"
