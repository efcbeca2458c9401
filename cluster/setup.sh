#!/usr/bin/env bash
# Makes a machine a node: .venv from the lock file, and login shells that find it. All of cluster/*.yaml run this.
#
#   bash ~/lahr/cluster/setup.sh [PYTHON]      PYTHON: 3.11 or 3.12, python3 by default
#
# What is there already is left alone, and then no network is needed.
set -euo pipefail
project="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${1:-python3}"

# A fresh Ubuntu holds apt's locks for its first minutes, so wait for them rather than fail; for that of the lists apt
# itself has no option. On a machine without apt-get, or where one may not use it, `make` says what is missing.
if ! { command -v make && command -v rsync && "${python}" -c 'import ensurepip, venv'; } >/dev/null 2>&1; then
  root=()
  [ "$(id -u)" = 0 ] || root=(sudo -n)
  if command -v apt-get >/dev/null && { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }; then
    until "${root[@]}" apt-get update -qq || [ "${SECONDS}" -gt 600 ]; do sleep 5; done
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
      apt-get -o DPkg::Lock::Timeout=600 install -y -qq make python3-venv rsync
  fi
fi

make --no-print-directory -C "${project}" setup PYTHON="${python}"

# For whoever logs in, and for `ray exec`: the project's ray and python, and the cluster's authentication.
line="export PATH=\"${project}/.venv/bin:\$PATH\" RAY_AUTH_MODE=token"
grep -qxF "${line}" ~/.bashrc 2>/dev/null || echo "${line}" >> ~/.bashrc
