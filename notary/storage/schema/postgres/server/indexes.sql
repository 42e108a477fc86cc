-- What the reference's tables lack. Each is recorded by its own presence: whatever its name, an index that begins with
-- the same columns will do.

-- The feed of one collection, in either direction, without sorting all of it.
CREATE INDEX CONCURRENTLY idx_changefeed_gun_id ON changefeed (gun, id);
