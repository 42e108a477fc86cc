-- Run at each start of the database of docker-compose.yml; changes nothing that is there.
-- The passwords are public, like the keys in fixtures/: nobody but the containers can reach this database.
CREATE DATABASE IF NOT EXISTS notaryserver;
CREATE DATABASE IF NOT EXISTS notarysigner;
-- The user of migrations may alter tables; the daemons' users may not.
CREATE USER IF NOT EXISTS migrate@'%' IDENTIFIED BY 'migrate-password';
GRANT ALL PRIVILEGES ON notaryserver.* TO migrate@'%';
GRANT ALL PRIVILEGES ON notarysigner.* TO migrate@'%';
CREATE USER IF NOT EXISTS server@'%' IDENTIFIED BY 'server-password';
GRANT SELECT, INSERT, UPDATE, DELETE ON notaryserver.* TO server@'%';
CREATE USER IF NOT EXISTS signer@'%' IDENTIFIED BY 'signer-password';
GRANT SELECT, INSERT, DELETE ON notarysigner.* TO signer@'%';
