#!/bin/bash
# The power fails while a mail server accepts: which of the messages it said 250 to are still there?
#
#   tests/crash/against.sh                          ours, Postfix, Exim and OpenSMTPD, 10 rounds each: minutes, root
#   tests/crash/against.sh --rounds 40 postfix
#   tests/crash/against.sh --port 2525 --spool /var/spool/mymta --start 'mymta -f' own
#
# --help explains the table and what your own server must do.  Needs Debian 12 (other servers are installed into
# chroots under /var/tmp/aiomta-peers, nothing into the machine) and a checkout with its environment (make venv).
set -euo pipefail
cd "$(dirname "$0")/../.."
for arg in "$@"; do
    case $arg in -h | --help) exec "${PYTHON:-.venv/bin/python}" -m tests.powercut.against --help ;; esac
done
[ "$(id -u)" = 0 ] || { echo "against.sh: needs root" >&2; exit 1; }
missing=()
command -v ip >/dev/null || missing+=(iproute2)
command -v strace >/dev/null || missing+=(strace)
[ ${#missing[@]} = 0 ] || { apt-get update -q && apt-get install -y -q --no-install-recommends "${missing[@]}"; } >&2
[ -x .venv/bin/python ] || make venv >&2
exec .venv/bin/python -m tests.powercut.against "$@"
