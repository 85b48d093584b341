#!/usr/bin/env bash
# What `make browser-tests` needs beside the tests' packages: a Chromium, Playwright's client, axe-core. VENV is the argument.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v chromium chromium-browser google-chrome >/dev/null || ! command -v npm >/dev/null; then
  as_root=()
  [ "$(id -u)" = 0 ] || as_root=(sudo)
  command -v apt-get >/dev/null || { echo "install chromium and npm, then run this again" >&2; exit 1; }
  export DEBIAN_FRONTEND=noninteractive
  missing=()
  command -v chromium chromium-browser google-chrome >/dev/null || missing+=(chromium fonts-dejavu-core fonts-noto-color-emoji)
  command -v npm >/dev/null || missing+=(npm)
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
fi
"$1"/bin/pip install --quiet --disable-pip-version-check -c constraints.txt 'playwright>=1.50'
# The package only, not the browsers that Playwright would download.
mkdir -p .browser
npm install --silent --no-fund --no-audit --no-save --prefix .browser axe-core@4.14.1
