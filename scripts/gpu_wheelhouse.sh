#!/usr/bin/env bash
# Fills ./wheelhouse with everything that `make gpu-check` needs but torch, for a GPU machine without a network.
# Run it where `make install` has run, on the same platform and Python version as the GPU machine.
set -euo pipefail
cd "$(dirname "$0")/.."
names=$(.venv/bin/python - <<'PY'
import re
from importlib.metadata import PackageNotFoundError, distribution

# torch and what only it brings are the GPU machine's own.
skipped, wanted, seen = re.compile(r"torch|triton|nvidia|cuda"), ["rlt", "peft", "setuptools", "wheel"], set()
while wanted:
    name = wanted.pop()
    if name in seen or skipped.match(name):
        continue
    try:
        package = distribution(name)
    except PackageNotFoundError:
        continue
    seen.add(name)
    if name != "rlt":
        print(f"{name}=={package.version}")
    for line in package.requires or []:
        if "extra ==" not in line:
            wanted.append(re.match(r"[\w.-]+", line)[0].lower().replace("_", "-"))
PY
)
# shellcheck disable=SC2086
.venv/bin/pip download --quiet --disable-pip-version-check --no-deps --dest wheelhouse $names
du -sh wheelhouse
