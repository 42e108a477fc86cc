-- Run once, when the database of docker-compose.postgres.yml is made.
-- The passwords are public, like the keys in fixtures/: nobody but the containers can reach this database.
CREATE USER migrate PASSWORD 'migrate-password';
CREATE USER server PASSWORD 'server-password';
CREATE USER signer PASSWORD 'signer-password';
CREATE DATABASE notaryserver OWNER migrate;
CREATE DATABASE notarysigner OWNER migrate;
REVOKE CONNECT ON DATABASE notaryserver, notarysigner FROM PUBLIC;
GRANT CONNECT ON DATABASE notaryserver TO server;
GRANT CONNECT ON DATABASE notarysigner TO signer;
-- The user of migrations makes the tables, and the daemons' users may use these. Serial ids need their sequences.
\connect notaryserver
ALTER DEFAULT PRIVILEGES FOR USER migrate GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO server;
ALTER DEFAULT PRIVILEGES FOR USER migrate GRANT USAGE ON SEQUENCES TO server;
\connect notarysigner
ALTER DEFAULT PRIVILEGES FOR USER migrate GRANT SELECT, INSERT, DELETE ON TABLES TO signer;
ALTER DEFAULT PRIVILEGES FOR USER migrate GRANT USAGE ON SEQUENCES TO signer;
