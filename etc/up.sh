#!/usr/bin/env bash
# Serve https://localhost:4443 in the foreground from this clone, after printing a session to paste: make up
#
# Two processes, as in production: the signer, which holds the keys, and the server, which talks to it over mutual TLS.
# When one ends, the other is ended too.
set -euo pipefail

cd "$(dirname "$0")/.."

# The likeliest reason not to start, said once and before all else.
for port in 4443 7899; do
    if (: </dev/tcp/127.0.0.1/$port) 2>/dev/null; then
        echo "error: port $port of localhost is in use already; is another \"make up\" running?" >&2
        exit 1
    fi
done

# The passphrase under which the signer keeps its keys; made once, and worth as much as var/notary-signer.sqlite3.
passphrase=var/signer-passphrase
mkdir -p var
if ! [ -s $passphrase ]; then
    (umask 077 && .venv/bin/python -c 'import secrets; print(secrets.token_urlsafe())' >$passphrase.new)
    mv $passphrase.new $passphrase
fi

printf '\n  Notary on https://localhost:4443 · certificates in fixtures/ · databases in var/ · Ctrl-C stops it\n\n'
if ! command -v notary >/dev/null; then
    as_root=
    [ "$(id -u)" -eq 0 ] || as_root="sudo "
    # Not in the session itself: apt-get and sudo would swallow the rest of what is pasted.
    printf '  To try it, install the client first, in another terminal:\n\n'
    echo "${as_root}apt-get update && ${as_root}apt-get install -y notary"
    printf '\n  Then paste this there:\n\n'
else
    printf '  To try it, paste this into another terminal:\n\n'
fi
echo "cd $(printf %q "$PWD")"
cat etc/session.sh
echo

trap 'trap - EXIT; kill $(jobs -p) 2>/dev/null || true; wait' EXIT
trap exit HUP INT TERM
NOTARY_SIGNER_PASSPHRASE_1=$(cat $passphrase) .venv/bin/notary-signer -config=fixtures/signer-config.json -logf=logfmt &
signer=$!
.venv/bin/notary-server -config=fixtures/server-config.json -logf=logfmt &
status=0
wait -n -p ended || status=$?
name=notary-server
[ "$ended" != $signer ] || name=notary-signer
echo "error: $name ended with status $status; its last lines above say why. Stopping the other one." >&2
exit $((status == 0 ? 1 : status))
