-- The indexes. Each is recorded by its own presence: an index of any name counts, if it begins with the same columns.

-- Reads by checksum. All three columns, or SQLite would rather walk every version of the role by the unique index.
CREATE INDEX idx_tuf_files_sha256 ON tuf_files (sha256, gun, role);

-- The feed of one collection, in either direction: an index of SQLite ends in the row's id.
CREATE INDEX idx_changefeed_gun ON changefeed (gun);
