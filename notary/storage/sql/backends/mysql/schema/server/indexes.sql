-- Indexes that the reference's migrations do not make; and those that tables lack which they did not make. Each is
-- recorded by its own presence: an index of any name counts, if it begins with the same columns. They are made while
-- the daemons work.

-- Reads by checksum.
CREATE INDEX sha256 ON tuf_files (sha256) ALGORITHM=INPLACE LOCK=NONE;

-- The feed of one collection, in either direction: an index of InnoDB ends in the row's id.
CREATE INDEX idx_changefeed_gun ON changefeed (gun) ALGORITHM=INPLACE LOCK=NONE;
