#!/usr/bin/env bash
# Serve https://localhost:4443 in the foreground from this clone, after printing a session to paste: make up
set -euo pipefail

cd "$(dirname "$0")/.."

as_root=
[ "$(id -u)" -eq 0 ] || as_root="sudo "

cat <<END

  Notary on https://localhost:4443 · certificates in fixtures/ · database in var/ · Ctrl-C stops it

  To try it, paste this into another terminal:

cd $(printf %q "$PWD")
END
if ! command -v notary >/dev/null; then
    echo "${as_root}apt-get install -y notary    # the client; or \"${as_root}apt-get update\" first"
fi
cat etc/session.sh
echo
mkdir -p var
exec .venv/bin/notary-server -config=fixtures/server-config.json -logf=logfmt
