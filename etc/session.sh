openssl s_client -connect localhost:4443 -CAfile fixtures/root-ca.crt -verify_return_error -brief </dev/null

export NOTARY_ROOT_PASSPHRASE=correct-horse NOTARY_TARGETS_PASSPHRASE=correct-horse NOTARY_SNAPSHOT_PASSPHRASE=correct-horse
n() { notary -s https://localhost:4443 --tlscacert fixtures/root-ca.crt -d var/client "$@"; }
gun=example.com/hello-$(date +%s)
n init "$gun"
n add "$gun" v1 README.md
n publish "$gun"
n list "$gun"
n verify "$gun" v1 -i README.md -q && echo "README.md is what was signed"
