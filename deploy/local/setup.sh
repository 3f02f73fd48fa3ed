#!/usr/bin/env bash
# Makes the Python environment that Telar runs in, from the lock file alone; run it as often as you like.
#
#   setup.sh VENV LOCK      VENV: folder of the environment, LOCK: requirements file with hashes
#
# Needs Python 3.11 or newer: PYTHON if set, else the system's own (it gets Debian's security updates, and is a quarter
# faster than one built without profile-guided optimisation), else one on the PATH. Debian keeps venv's parts in packages of their own: as root they are installed, otherwise
# their pip is taken out of the package into the environment's folder, and the system stays as it is.
set -euo pipefail

venv=$1
lock=$2

say() { echo "setup: $*"; }
die() {
    echo "setup: FAILED: $*" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" /usr/bin/python3 python3.11 python3.12 python3.13 python3.14 python3; do
        [ -n "$candidate" ] && command -v "$candidate" >/dev/null || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            echo "$candidate"
            return
        fi
    done
    die "Python 3.11 or newer is needed: apt-get install python3"
}

install_as_root() {
    say "installing Debian's python3-venv"
    apt-get update -q >/dev/null && apt-get install -y -q --no-install-recommends python3-venv >/dev/null
}

# Debian's pip as a wheel, unpacked from its package without root.
fetch_pip() {
    local folder=$1
    mkdir -p "$folder"
    say "taking pip out of Debian's python3-pip-whl (no root: nothing is installed in the system)"
    (cd "$folder" && apt-get download -q python3-pip-whl >/dev/null && dpkg-deb -x python3-pip-whl_*.deb .) ||
        die "python3-pip-whl could not be fetched; ask an administrator for: apt-get install python3-venv"
}

make_environment() {
    local python=$1
    if "$python" -c 'import ensurepip' 2>/dev/null; then
        "$python" -m venv "$venv"
        return
    fi
    if [ "$(id -u)" -eq 0 ]; then
        install_as_root
        "$python" -m venv "$venv"
        return
    fi
    "$python" -m venv --without-pip "$venv"
    fetch_pip "$venv/pip-package"
}

run_pip() {
    local wheel
    if [ -x "$venv/bin/pip" ]; then
        "$venv/bin/python" -m pip "$@"
    else
        wheel=$(find "$venv/pip-package" -name 'pip-*.whl' | head -n 1)
        PYTHONPATH=$wheel "$venv/bin/python" -m pip "$@"
    fi
}

python=$(find_python)
if [ ! -x "$venv/bin/python" ]; then
    say "making $venv with $("$python" --version)"
    make_environment "$python"
fi
say "installing what $lock pins, each file checked against its hash"
run_pip install --quiet --disable-pip-version-check --require-hashes -r "$lock"
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
pwd >"$site/telar.pth"
printf '#!/bin/sh\nexec "%s/bin/python" -m cli.main "$@"\n' "$(cd "$venv" && pwd)" >"$venv/bin/telar"
chmod +x "$venv/bin/telar"
say "ready: $venv/bin/telar"
