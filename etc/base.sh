#!/usr/bin/env bash
# Pin the newest base of the images: etc/base.sh [NAME]
#
# NAME is the name of an image of Debian, with its tag; by default the one that is pinned. What a registry has under it now
# is pulled, and its digest written into docker/*Dockerfile.
set -euo pipefail

cd "$(dirname "$0")/.."
files=(docker/Dockerfile docker/peers.Dockerfile)
pinned=$(sed -n 's/^ARG BASE=.*:-\(.*\)}$/\1/p' "${files[0]}")
name=${1:-${pinned%@*}}
digest=$(docker pull "$name" | sed -n 's/^Digest: //p')
if ! [[ $digest =~ ^sha256:[0-9a-f]{64}$ ]]; then
    echo "error: docker pull $name did not tell a digest; nothing is changed" >&2
    exit 1
fi
sed -i "s|^ARG BASE=.*|ARG BASE=\${NOTARY_BASE:-$name@$digest}|" "${files[@]}"
if [ "$name@$digest" = "$pinned" ]; then
    echo "$pinned is still the newest"
else
    echo "$pinned was replaced by $name@$digest; next: make test-docker"
fi
