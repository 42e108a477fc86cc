-- Metadata is read by its checksum (of what is there: see fills.sql).
-- Recognised by: tuf_files.sha256

ALTER TABLE tuf_files
    ADD COLUMN sha256 char(64) DEFAULT NULL AFTER version,
    ADD INDEX sha256 (sha256);
