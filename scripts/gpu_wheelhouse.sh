#!/usr/bin/env bash
# Fills ./wheelhouse with what `make gpu-check` needs but torch, for a GPU machine without a network.
#
#     scripts/gpu_wheelhouse.sh 3.12 there.txt
#
# 3.12: the GPU machine's Python. there.txt: names of the packages that it already has (`pip freeze` there), which are left out;
# it may be missing. Run it where `make .venv/installed-dev` has run. Then copy the folder, models/ too if it is filled.
set -euo pipefail
cd "$(dirname "$0")/.."
version=${1:?the version of Python on the GPU machine, for example 3.12} there=${2:-/dev/null}
names=$(.venv/bin/python - "$there" <<'PY'
import re
import sys
from importlib.metadata import PackageNotFoundError, distribution

from packaging.markers import default_environment
from packaging.requirements import Requirement


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


# torch and what only it brings are the GPU machine's own.
skipped = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)$")
there = {plain(re.match(r"[\w.-]+", line)[0]) for line in open(sys.argv[1]) if line.strip()}
wanted, seen = ["rlt", "peft", "setuptools", "wheel"], set()
while wanted:
    name = plain(wanted.pop())
    if name in seen or name in there or skipped.match(name):
        continue
    try:
        package = distribution(name)
    except PackageNotFoundError:
        continue
    seen.add(name)
    if name != "rlt":
        print(f"{name}=={package.version}")
    for line in package.requires or []:
        need = Requirement(line)
        if need.marker is None or need.marker.evaluate({**default_environment(), "extra": ""}):
            wanted.append(need.name)
PY
)
platforms=()
for number in 39 35 34 31 28 27 24 17 12 5; do platforms+=(--platform "manylinux_2_${number}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux2010_x86_64 --platform manylinux1_x86_64)
rm -rf wheelhouse
# shellcheck disable=SC2086
.venv/bin/pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --implementation cp \
  --python-version "$version" "${platforms[@]}" --dest wheelhouse $names
du -sh wheelhouse
