#!/usr/bin/env bash
# Make the root of a release of Debian or Ubuntu, for root only: etc/debootstrap.sh SUITE ROOT PACKAGE,PACKAGE...
#
# Debian's debootstrap knows no release of Ubuntu that is newer than itself, and no component but main. Without the key
# of an archive it would install what nobody has signed; Ubuntu's is in the package ubuntu-keyring, of Debian 13 too.
set -euo pipefail

suite=$1 root=$2 packages=$3
options=(--force-check-gpg --variant=minbase "--include=$packages")
archive=()
case $suite in
    noble | resolute)
        options+=(--components=main,universe)
        archive=(http://archive.ubuntu.com/ubuntu gutsy)
        ;;
esac

[ ! -e "$root/made" ] || exit 0
rm -rf "$root"
mkdir -p "$(dirname "$root")"
debootstrap "${options[@]}" "$suite" "$root" "${archive[@]}"
touch "$root/made"
