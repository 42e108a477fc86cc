#!/bin/sh
# MariaDB for docker-compose.yml: makes its data directory once, then serves, with our databases and users in it.
set -eu
data=/var/lib/mysql
if ! [ -d "$data/mysql" ]; then
    mariadb-install-db --no-defaults --datadir="$data" --auth-root-authentication-method=socket \
        --auth-root-socket-user=mysql --skip-test-db >/dev/null
fi
exec mariadbd --no-defaults --datadir="$data" --socket=/tmp/mariadb.sock --pid-file=/tmp/mariadb.pid --bind-address=* \
    --skip-name-resolve --max-allowed-packet=256M --init-file=/usr/local/share/notary/mariadb.sql "$@"
