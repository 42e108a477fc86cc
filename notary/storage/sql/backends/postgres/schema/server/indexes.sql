-- Indexes that the reference's migrations do not make; and those that tables lack which they did not make. Each is
-- recorded by its own presence: an index of any name counts, if it begins with the same columns. They are made while
-- the daemons work.
-- What is dropped is one whose making broke off: it is there, but not valid.

-- Reads by checksum.
DROP INDEX CONCURRENTLY IF EXISTS tuf_files_sha256_idx;
CREATE INDEX CONCURRENTLY tuf_files_sha256_idx ON tuf_files (sha256);

-- The feed of one collection, in either direction, without sorting all of it.
DROP INDEX CONCURRENTLY IF EXISTS idx_changefeed_gun_id;
CREATE INDEX CONCURRENTLY idx_changefeed_gun_id ON changefeed (gun, id);
