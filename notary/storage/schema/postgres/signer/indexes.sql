-- What the reference's tables lack. Each is recorded by its own presence: whatever its name, an index that begins with
-- the same columns will do.

-- Pending keys only: few, however many keys there are.
CREATE INDEX CONCURRENTLY idx_private_keys_pending ON private_keys (gun, role, algorithm) WHERE last_used IS NULL;
