#!/usr/bin/env bash
# The tests of the sandbox as an ordinary user, `nobody`, for whoever is root. Python, its packages and this repository may be in
# folders that only root can enter: inside a mount namespace of their own they are bound where everybody can.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${RLT_VENV:-.venv}/bin/python"
export PREFIX PACKAGES NAME ROOT="$PWD"
PREFIX="$("$python" -c 'import sys; print(sys.base_prefix)')"
PACKAGES="$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
NAME="$("$python" -c 'import sys; print(f"python3.{sys.version_info.minor}")')"
[ "$(id -u)" = 0 ] || exec "$python" -m pytest tests/unit/test_sandbox.py "$@"
unshare --mount true || { echo "Not run: this machine allows no mount namespace." >&2; exit 0; }
exec unshare --mount --propagation private bash -euc '
  mount -t tmpfs -o mode=755 tmpfs /mnt
  mkdir /mnt/prefix /mnt/packages /mnt/rlt
  mount --bind "$PREFIX" /mnt/prefix
  mount --bind "$PACKAGES" /mnt/packages
  mount --bind "$ROOT" /mnt/rlt
  cd /mnt/rlt
  exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs \
    env -i PATH=/usr/bin:/bin HOME=/nonexistent PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/mnt/rlt:/mnt/packages \
    "/mnt/prefix/bin/$NAME" -m pytest -p no:cacheprovider --basetemp="$(mktemp -u)" tests/unit/test_sandbox.py "$@"
' bash "$@"
