-- Metadata is read by its checksum; what is there gets one too.
-- Recognised by: tuf_files.sha256

ALTER TABLE tuf_files
    ADD COLUMN sha256 char(64) DEFAULT NULL AFTER version,
    ADD INDEX sha256 (sha256);

UPDATE tuf_files SET sha256 = SHA2(data, 256) WHERE sha256 IS NULL;
