#!/usr/bin/env bash
# Build wheel and sdist, install the wheel into an empty environment, and use it from an empty folder: licences of what was
# installed, `rlt check` of all recipes, the quickstart's first steps. Files go to dist/, the environment is removed.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH

"${PYTHON:-python3}" -m venv "$work/build"
"$work/build/bin/pip" install --quiet --disable-pip-version-check build
rm -rf "$root/dist"
"$work/build/bin/python" -m build --outdir "$root/dist" "$root" > "$work/build.log" || { tail -20 "$work/build.log"; exit 1; }
for file in "$root"/dist/*; do
  printf '%s: %s bytes\n' "$(basename "$file")" "$(stat -c %s "$file")"
done

"${PYTHON:-python3}" -m venv "$work/empty"
"$work/empty/bin/pip" install --quiet --disable-pip-version-check -c "$root/constraints.txt" "$root"/dist/*.whl
mkdir "$work/folder"
cd "$work/folder"
HF_HUB_OFFLINE=1 "$work/empty/bin/python" "$root/scripts/release_check.py"
