-- Signed metadata, all versions. Times are UTC, without a zone.
-- Recognised by: tuf_files.sha256
--
-- Every statement of these files may be run again after the file broke off half-way.

CREATE TABLE IF NOT EXISTS tuf_files (
    id serial PRIMARY KEY,
    created_at timestamp NULL DEFAULT NULL,
    updated_at timestamp NULL DEFAULT NULL,
    deleted_at timestamp NULL DEFAULT NULL,
    gun varchar(255) NOT NULL,
    role varchar(255) NOT NULL,
    version integer NOT NULL,
    data bytea NOT NULL,
    sha256 char(64) DEFAULT NULL,
    UNIQUE (gun, role, version)
);

CREATE INDEX IF NOT EXISTS tuf_files_sha256_idx ON tuf_files (sha256);
