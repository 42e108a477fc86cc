# What the compose files put beside the daemons for trying things out, one target each. From Debian's packages, like the
# daemons' own images: one base to fetch, or to make where no registry can be reached.
ARG NOTARY_BASE=
ARG BASE=${NOTARY_BASE:-docker.io/library/debian:bookworm-slim@sha256:abd67ffcfa541b485a3dff59865ab629aa048a6c613e639d36e7456b0b229241}

FROM ${BASE} AS mariadb
RUN apt-get update \
    && apt-get install -y --no-install-recommends mariadb-server \
    && rm -rf /var/cache/apt/* /var/lib/apt/lists/* /var/lib/mysql/* \
    && chown mysql:mysql /var/lib/mysql
COPY docker/mariadb.sh docker/mariadb.sql /usr/local/share/notary/
USER mysql
VOLUME /var/lib/mysql
EXPOSE 3306
HEALTHCHECK --interval=2s --timeout=5s --start-period=60s CMD ["mariadb-admin", "--socket=/tmp/mariadb.sock", "ping"]
ENTRYPOINT ["/bin/sh", "/usr/local/share/notary/mariadb.sh"]

FROM ${BASE} AS postgres
RUN apt-get update \
    && apt-get install -y --no-install-recommends postgresql-15 \
    && rm -rf /var/cache/apt/* /var/lib/apt/lists/* /var/lib/postgresql/15 \
    && install -d -o postgres -g postgres -m 700 /var/lib/postgresql/data
COPY docker/postgres.sh docker/postgres.sql /usr/local/share/notary/
USER postgres
VOLUME /var/lib/postgresql/data
EXPOSE 5432
HEALTHCHECK --interval=2s --timeout=5s --start-period=60s \
    CMD ["psql", "--host=/tmp", "--command=SELECT 1", "notaryserver", "postgres"]
STOPSIGNAL SIGINT
ENTRYPOINT ["/bin/sh", "/usr/local/share/notary/postgres.sh"]

FROM ${BASE} AS haproxy
RUN apt-get update \
    && apt-get install -y --no-install-recommends haproxy \
    && rm -rf /var/cache/apt/* /var/lib/apt/lists/*
COPY docker/haproxy.cfg /etc/haproxy/haproxy.cfg
USER haproxy
EXPOSE 4443 7899
STOPSIGNAL SIGUSR1
ENTRYPOINT ["haproxy", "-W", "-db", "-f", "/etc/haproxy/haproxy.cfg"]
