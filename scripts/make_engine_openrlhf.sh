#!/usr/bin/env bash
# Makes .venv-openrlhf: OpenRLHF in its own environment, for tests/engines. torch, transformers and Ray are those of .venv.
#
# Only what its agents and its samples generator import is installed; vLLM, flash-attn and DeepSpeed are not.
set -euo pipefail
cd "$(dirname "$0")/.."

version=0.11.2
folder=.venv-openrlhf
python=$folder/bin/python
main=${RLT_VENV:-.venv}/bin/python

if [ -f "$folder/complete" ] && [ "$(cat "$folder/complete")" = "$version" ]; then
  echo "$folder: OpenRLHF $version is there"
  exit 0
fi

rm -f "$folder/complete"
"$main" -m venv "$folder"
"$python" -m pip install --quiet --disable-pip-version-check --no-deps "openrlhf==$version" pylatexenc==2.11
# Behind its own packages come those of .venv, so that torch is not downloaded twice. Not rlt itself: tests name its folder.
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$main" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$site/zz_base.pth"
"$python" -c "import openrlhf.utils.agent"
echo "$version" > "$folder/complete"
echo "$folder: OpenRLHF $version is ready"
