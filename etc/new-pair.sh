#!/bin/bash
# notary-new-pair [DIRECTORY]: certificates and a passphrase for a server and a signer on this machine, and start both.
#
# Without DIRECTORY, for root: completes the configuration of the Debian package in /etc/notary, then enables and starts
# the units. With DIRECTORY: everything is in it, configuration and databases too, and both daemons run in the
# foreground; when one ends, the other is ended too. Files that are there are kept.
set -euo pipefail
umask 022

fail() {
    echo "error: $*" >&2
    exit 1
}

bin=$(dirname "$(readlink -f "$0")")
etc=${1:-/etc/notary}
case $#$etc in
    2* | 1-*) fail "usage: notary-new-pair [DIRECTORY]" ;;
esac
command -v openssl >/dev/null || fail "openssl is missing; install it (apt-get install openssl)"
owned() { # user, file: the daemon's user may read it
    [ "$etc" != /etc/notary ] || chown "$1:" "$2"
}

if [ $# -eq 0 ]; then
    [ "$(id -u)" -eq 0 ] || fail "only root may write in /etc/notary; to run a pair as yourself: notary-new-pair DIRECTORY"
    [ -f $etc/server-config.json ] || fail "the Debian package is not installed; without it: notary-new-pair DIRECTORY"
    [ -d /run/systemd/system ] || fail "systemd does not run here; without it: notary-new-pair DIRECTORY"
else
    (umask 077 && mkdir -p "$etc/secrets")
    etc=$(cd "$etc" && pwd)
    # The likeliest reason not to start, said once and before all else.
    for port in 4443 7899; do
        if (: </dev/tcp/127.0.0.1/$port) 2>/dev/null; then
            fail "port $port of localhost is in use already; is another notary-new-pair running?"
        fi
    done
    for daemon in server signer; do
        [ -f "$etc/$daemon-config.json" ] && continue
        sed "s|/var/lib/notary-$daemon/notary|notary-$daemon|" \
            "$bin"/../lib/python3*/site-packages/notary/files/share/notary/config/one-machine/$daemon-config.json \
            >"$etc/$daemon-config.json"
    done
fi
cd "$etc"

# A chain of their own: a root, an intermediate, a leaf for each daemon. It moves into place only when it is whole.
make_certificates() {
    cat >pki.cnf <<'END'
[req]
distinguished_name = name
[name]
[root]
basicConstraints = critical, CA:true, pathlen:1
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[intermediate]
basicConstraints = critical, CA:true, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[leaf]
basicConstraints = critical, CA:false
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectAltName = ${ENV::NAMES}
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
END
    certificate root root-ca 3650 "Notary root CA"
    certificate intermediate intermediate-ca 1825 "Notary intermediate CA" -CA root-ca.crt -CAkey root-ca.key
    local host name names
    host=$(uname -n)
    for name in notary-server notary-signer; do
        names=DNS:$name,DNS:localhost,IP:127.0.0.1
        case $name,$host in
            notary-signer,* | *,localhost | *,*[!A-Za-z0-9.-]*) ;;
            *) names+=,DNS:$host ;;
        esac
        NAMES=$names certificate leaf $name 397 $name -CA intermediate-ca.crt -CAkey intermediate-ca.key
        cat intermediate-ca.crt >>$name.crt
        owned $name $name.key
    done
    rm pki.cnf
}
certificate() { # section, file, days, common name, more options
    NAMES=${NAMES-DNS:none} openssl req -x509 -config pki.cnf -extensions "$1" -newkey ec \
        -pkeyopt ec_paramgen_curve:P-256 -noenc -keyout "$2.key" -out "$2.crt" -days "$3" -subj "/CN=$4" "${@:5}" 2>openssl.log ||
        fail "openssl cannot make a certificate: $(cat openssl.log)"
    rm openssl.log
}
if ! [ -e notary-server.crt ]; then
    ! compgen -G '*.crt' >/dev/null || fail "$etc has certificates, but no notary-server.crt; remove them, or add yours"
    new=$(mktemp -d "$etc/new.XXXXXX")
    trap 'rm -rf "$new"' EXIT
    (cd "$new" && make_certificates)
    mv "$new"/*.key "$new"/*.crt .
    rm -rf "$new"
    trap - EXIT
fi
if ! [ -s secrets/passphrase_2026 ]; then
    (umask 077 && openssl rand -base64 32 >secrets/passphrase_2026.new)
    owned notary-signer secrets/passphrase_2026.new
    mv secrets/passphrase_2026.new secrets/passphrase_2026
fi

cat <<END

  Notary on https://localhost:4443 · configuration and certificates in $etc
  Sign a first file in another terminal, with the client of Debian's package notary:

notary -s https://localhost:4443 --tlscacert $(printf %q "$etc/root-ca.crt") add -p example.com/first v1 /etc/hostname

END

if [ $# -eq 0 ]; then
    systemctl enable --now --quiet notary-server.socket notary-signer.service notary-server.service
    exit
fi
trap 'trap - EXIT; kill $(jobs -p) 2>/dev/null || true; wait' EXIT
trap exit HUP INT TERM
NOTARY_SIGNER_PASSPHRASE_2026_FILE=$etc/secrets/passphrase_2026 \
    "$bin/notary-signer" -config="$etc/signer-config.json" -logf=logfmt &
signer=$!
"$bin/notary-server" -config="$etc/server-config.json" -logf=logfmt &
status=0
wait -n -p ended || status=$?
name=notary-server
[ "$ended" != $signer ] || name=notary-signer
fail "$name ended with status $status; its last lines above say why. Stopping the other one."
