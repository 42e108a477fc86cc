#!/bin/sh
# PostgreSQL for docker-compose.postgres.yml: makes its data directory once, with our databases and users, then serves.
set -eu
data=/var/lib/postgresql/data
bin=/usr/lib/postgresql/15/bin
if ! [ -s "$data/ready" ]; then
    rm -rf "${data:?}"/*
    "$bin/initdb" --pgdata="$data" --username=postgres --encoding=UTF8 --auth-local=trust --auth-host=scram-sha-256 >/dev/null
    echo 'host all all all scram-sha-256' >>"$data/pg_hba.conf"
    "$bin/pg_ctl" --pgdata="$data" --wait --options="-c listen_addresses='' -c unix_socket_directories=/tmp" start >/dev/null
    psql --quiet --host=/tmp --username=postgres --set=ON_ERROR_STOP=1 --file=/usr/local/share/notary/postgres.sql postgres
    "$bin/pg_ctl" --pgdata="$data" --wait --mode=fast stop >/dev/null
    echo yes >"$data/ready"
fi
exec "$bin/postgres" -D "$data" -c listen_addresses='*' -c unix_socket_directories=/tmp "$@"
