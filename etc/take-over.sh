#!/bin/sh
# For the owner of a collection that a server has fetched from another Notary, which held its snapshot key too: stage the
# change of both keys to that server's, for one `notary publish GUN`. `notary key rotate` changes one key at a time, and
# the server could not sign what the other key must sign.
#
#   etc/take-over.sh https://notary.example.com GUN [TRUST_DIRECTORY [CURL_OPTION...]]
set -eu
url=${1%/}
gun=$2
trust=${3:-$HOME/.notary}
[ $# -lt 3 ] && shift $# || shift 3

folder=$trust/tuf/$gun/changelist
mkdir -p "$folder"
number=0
for role in snapshot timestamp; do
	key=$(curl --fail --silent --show-error "$@" "$url/v2/$gun/_trust/tuf/$role.key")
	data=$(printf '{"keys":[%s],"role":"%s"}' "$key" "$role" | base64 | tr -d '\n')
	number=$((number + 1))
	printf '{"action":"create","role":"root","type":"role","path":"%s","data":"%s"}' "$role" "$data" \
		>"$folder/$(printf '%020d' $number)_take-over.change"
done
echo "Staged. Now publish: notary -s $url publish $gun"
