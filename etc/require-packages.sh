#!/usr/bin/env bash
# Install the Debian packages that a make target needs: etc/require-packages.sh up|dev|test|bench|diagrams|docker|cluster|deb
#
# Nothing missing: says nothing, does nothing, needs no network. Otherwise root gets them by apt-get; anybody else gets
# the command to run, and status 1. What is needed is probed by what it provides, so other sources of it do as well.
set -euo pipefail

target=${1:?up, dev, test, bench, diagrams, docker, cluster or deb}
python=${PYTHON:-python3}

if ! command -v "$python" >/dev/null; then
    echo "error: $python is not installed; Python 3.11 to 3.14 is needed (make PYTHON=python3.12 names another)" >&2
    exit 1
fi
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case $version in
    3.11 | 3.12 | 3.13 | 3.14) ;;
    *)
        echo "error: $python is Python $version; 3.11 to 3.14 is needed (make PYTHON=python3.12 names another)" >&2
        exit 1
        ;;
esac

missing_packages() {
    "$python" -c 'import ensurepip, venv' 2>/dev/null || echo "python$version-venv"
    if [ "$target" = dev ]; then
        # mysqlclient comes as source.
        command -v gcc >/dev/null || echo gcc
        command -v pkg-config >/dev/null || echo pkg-config
        pkg-config --exists libmariadb 2>/dev/null || echo libmariadb-dev
        "$python" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null ||
            echo "python$version-dev"
    fi
    if [ "$target" = test ]; then
        command -v openssl >/dev/null || echo openssl
        # systemd-socket-activate; nothing needs systemd to run.
        command -v systemd-socket-activate >/dev/null || echo systemd
        # `go tool pprof` reads our profiles, OpenSSH enters the manhole, ss tells who listens.
        command -v go >/dev/null || echo golang-go
        command -v ssh >/dev/null || echo openssh-client
        command -v ss >/dev/null || echo iproute2
        # The client, the server and the signer that the interop tests talk to.
        { command -v notary && command -v notary-server && command -v notary-signer; } >/dev/null || echo notary
        command -v mandoc >/dev/null || echo mandoc # checks the manual pages
        command -v curl >/dev/null || echo curl # etc/take-over.sh
        command -v /usr/sbin/haproxy >/dev/null || echo haproxy # the load balancer of docs/high-availability.md
        command -v /usr/sbin/nginx >/dev/null || echo nginx # serves the tree of docs/mirror.md
        command -v promtool >/dev/null || echo prometheus # tries the alerts
        # A token in software, and the tool for tokens; gcc builds a module that goes wrong.
        command -v softhsm2-util >/dev/null || echo softhsm2
        command -v pkcs11-tool >/dev/null || echo opensc
        command -v gcc >/dev/null || echo gcc
        compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null || echo faketime # clocks that step
        # Private instances of these are started by the tests; whether the system's own runs does not matter.
        command -v /usr/sbin/mariadbd >/dev/null || echo mariadb-server
        compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || echo postgresql
    fi
    if [ "$target" = docker ]; then
        command -v docker >/dev/null && command -v dockerd >/dev/null || echo docker.io
        command -v docker-compose >/dev/null || docker compose version >/dev/null 2>&1 || echo docker-compose
        command -v docker-registry >/dev/null || echo docker-registry
        command -v podman >/dev/null || echo podman
        command -v debootstrap >/dev/null || echo debootstrap
        command -v iptables >/dev/null || echo iptables
        { command -v notary && command -v notary-server; } >/dev/null || echo notary
        command -v openssl >/dev/null || echo openssl
        command -v /usr/sbin/nginx >/dev/null || echo nginx # serves the tree of docs/mirror.md
    fi
    if [ "$target" = cluster ]; then
        compgen -G '/usr/lib*/galera*/libgalera_smm.so' >/dev/null || echo galera-4
        command -v rsync >/dev/null || echo rsync # how a node of Galera gets the data of another
        command -v wrk >/dev/null || echo wrk # one of the clients that restarts must not disturb
    fi
    if [ "$target" = deb ]; then
        command -v dpkg-buildpackage >/dev/null || echo dpkg-dev
        command -v dh >/dev/null || echo debhelper
        command -v fakeroot >/dev/null || echo fakeroot
        command -v debootstrap >/dev/null || echo debootstrap
        command -v systemd-nspawn >/dev/null || echo systemd-container # boots what the package is installed in
        # The package is built on the distribution's Python, not on the one that make uses.
        /usr/bin/python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
        dpkg-query --show python3-dev >/dev/null 2>&1 || echo python3-dev
    fi
    if [ "$target" = bench ]; then
        command -v wrk >/dev/null || echo wrk
    fi
    if [ "$target" = diagrams ]; then
        command -v dot >/dev/null || echo graphviz
    fi
}

missing=$(missing_packages | tr '\n' ' ')
missing=${missing% }
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "error: missing, and there is no apt-get to install it with; the Debian packages are: $missing" >&2
    exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "Some packages are missing. Run this, then the same make command again:" >&2
    echo "    sudo apt-get update && sudo apt-get install -y $missing" >&2
    exit 1
fi

export DEBIAN_FRONTEND=noninteractive
install() {
    # shellcheck disable=SC2086  # one word a package
    apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends $missing </dev/null
}
echo "Installing Debian packages: $missing"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# The package lists may be good already. If not, or if an earlier run was cut off, put things in order and try again.
if ! install >"$log" 2>&1; then
    if ! { dpkg --configure -a && apt-get update && install; } >"$log" 2>&1; then
        cat "$log" >&2
        echo "error: could not install: $missing" >&2
        exit 1
    fi
fi
missing=$(missing_packages | tr '\n' ' ')
if [ -n "$missing" ]; then
    echo "error: installed, yet $python still lacks what these should bring: $missing" >&2
    exit 1
fi
