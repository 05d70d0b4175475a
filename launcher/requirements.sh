#!/bin/sh
# Looks for what `make install` needs before it starts, and names what lacks with the command that installs it.
PYTHON=${PYTHON:-python3}
lacks=""
need() { lacks="$lacks $1"; echo "missing: $2" >&2; }

if ! command -v "$PYTHON" >/dev/null 2>&1; then
    need python3 "$PYTHON, a Python of 3.11 to 3.13"
else
    version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    case $version in
        3.1[123]) ;;
        *) echo "$PYTHON is Python $version; this needs 3.11, 3.12 or 3.13: make install PYTHON=python3.11" >&2; exit 2 ;;
    esac
    "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null || need "python$version-venv" "Python's venv module"
    header=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')/Python.h
    [ -f "$header" ] || need "python$version-dev" "Python's headers ($header), for DeepSpeed's CPU op"
fi
command -v g++ >/dev/null 2>&1 || need g++ "g++, for DeepSpeed's CPU op"
command -v make >/dev/null 2>&1 || need make "make"
command -v git >/dev/null 2>&1 || need git "git, which notes in each run what code it ran"
if [ -n "$lacks" ]; then
    echo "install it, then repeat the command:  sudo apt-get install -y$lacks" >&2
    exit 2
fi
