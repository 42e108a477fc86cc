#!/usr/bin/env bash
# Serve https://localhost:4443 in the foreground from this clone, after printing a session to paste: make up
#
# Two processes, as in production: the signer, which holds the keys, and the server, which talks to it over mutual TLS.
# When one ends, for whatever reason, so does the other.
set -euo pipefail

cd "$(dirname "$0")/.."

as_root=
[ "$(id -u)" -eq 0 ] || as_root="sudo "

cat <<END

  Notary on https://localhost:4443 · certificates in fixtures/ · databases in var/ · Ctrl-C stops it

  To try it, paste this into another terminal:

cd $(printf %q "$PWD")
END
if ! command -v notary >/dev/null; then
    echo "${as_root}apt-get install -y notary    # the client; or \"${as_root}apt-get update\" first"
fi
cat etc/session.sh
echo

# The passphrase under which the signer keeps its keys; made once, and worth as much as var/notary-signer.sqlite3.
passphrase=var/signer-passphrase
mkdir -p var
if ! [ -s $passphrase ]; then
    (umask 077 && .venv/bin/python -c 'import secrets; print(secrets.token_urlsafe())' >$passphrase.new)
    mv $passphrase.new $passphrase
fi

trap 'trap - EXIT; kill $(jobs -p) 2>/dev/null || true; wait' EXIT
trap exit INT TERM
NOTARY_SIGNER_PASSPHRASE_1=$(cat $passphrase) .venv/bin/notary-signer -config=fixtures/signer-config.json -logf=logfmt &
.venv/bin/notary-server -config=fixtures/server-config.json -logf=logfmt &
wait -n
