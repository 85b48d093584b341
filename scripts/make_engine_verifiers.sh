#!/usr/bin/env bash
# Makes .venv-verifiers: verifiers in its own environment, for tests/engines. It has neither torch nor transformers.
set -euo pipefail
cd "$(dirname "$0")/.."

version=0.4.0
folder=.venv-verifiers
python=$folder/bin/python
main=${RLT_VENV:-.venv}/bin/python

if [ -f "$folder/complete" ] && [ "$(cat "$folder/complete")" = "$version" ]; then
  echo "$folder: verifiers $version is there"
  exit 0
fi

rm -f "$folder/complete"
"$main" -m venv "$folder"
"$python" -m pip install --quiet --disable-pip-version-check --no-deps "verifiers==$version" renderers==0.1.12
# Without the renderers' dependencies: they tokenize, which is the engine's work and not the reward's.
"$python" - > "$folder/requirements.txt" <<'EOF'
from importlib.metadata import requires

for line in requires("verifiers"):
    if "extra ==" not in line and not line.startswith("renderers"):
        print(line)
EOF
"$python" -m pip install --quiet --disable-pip-version-check -r "$folder/requirements.txt"
"$python" -c "import verifiers.v1"
echo "$version" > "$folder/complete"
echo "$folder: verifiers $version is ready"
