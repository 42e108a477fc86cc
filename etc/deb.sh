#!/usr/bin/env bash
# Build the Debian package from the wheel in dist/: etc/deb.sh [SUITE [VERSION]]
#
# For the release of this machine or, in a root that debootstrap makes in build/deb/ (for root only), for another one:
# bookworm, trixie, noble, resolute. VERSION replaces the version of the wheel. The package is put into dist/.
set -euo pipefail

cd "$(dirname "$0")/.."
suite=${1-}
packages=build-essential,ca-certificates,debhelper,fakeroot,libmariadb-dev,pkg-config,python3-dev,python3-venv
wheels=(dist/notary_service-*.whl)
[ -f "${wheels[0]}" ] || { echo "error: dist/ has no wheel; run make dist first" >&2; exit 1; }

root=
if [ -n "$suite" ]; then
    root=build/deb/$suite
    etc/debootstrap.sh "$suite" "$root" $packages
    # A proxy in front of the packages has certificates that this machine trusts.
    cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
fi

# Of Debian 12, the version 0.2.0.dev1 is 0.2.0~dev1+debian12: a release of the distribution has its own Python.
version=${2-}
if [ -z "$version" ]; then
    version=$(sed -E 's/.*notary_service-([^-]+)-.*/\1/; s/\.?(dev|a|b|rc)([0-9])/~\1\2/' <<<"${wheels[0]}")
fi
release=$(. "$root/etc/os-release" && echo "$ID$VERSION_ID")
version+=+$release
date=$(date -u -R -d "@${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}")

stage=$root/var/tmp/notary-service
[ -n "$root" ] || stage=build/deb/notary-service
rm -rf "$stage"
mkdir -p "$stage"
cp -r debian "${wheels[0]}" debian/requirements.lock docker/build.lock "$stage"
cat >"$stage/debian/changelog" <<END
notary-service ($version) unstable; urgency=medium

  * Version ${version%+*}. CHANGELOG.md of the source has the changes.

 -- The notary-service developers <maintainers@notary-service.example>  $date
END

build=(dpkg-buildpackage --build=binary --no-sign)
if [ -n "$root" ]; then
    chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
        PIP_CERT=/etc/ssl/certs/ca-certificates.crt sh -c "cd /var/tmp/notary-service && ${build[*]}"
else
    (cd "$stage" && "${build[@]}")
fi
mkdir -p dist
rm -f dist/notary-service_*+"$release"_*.deb
beside=$(dirname "$stage")
mv "$beside"/notary-service_*.deb dist/
rm -rf "$stage" "$beside"/notary-service_*.{buildinfo,changes}
