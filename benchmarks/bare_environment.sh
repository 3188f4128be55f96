#!/usr/bin/env bash
# The whole test suite with nothing to lean on: no network but loopback, no HOME, C locale, no terminal.
# Needs Linux and the right to make a network namespace. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(command -v python)
unshare --net --map-root-user bash -c '
  ip link set lo up
  python=$1; shift
  env -i PATH="$(dirname "$python"):/usr/bin:/bin" LC_ALL=C "$python" -m pytest "$@" </dev/null 2>&1 | cat
  exit "${PIPESTATUS[0]}"
' bash "$python" "$@"
