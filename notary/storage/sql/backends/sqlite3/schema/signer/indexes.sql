-- The indexes. Each is recorded by its own presence: whatever its name, one that begins with the same columns will do.

-- Pending keys only: few, however many keys there are.
CREATE INDEX idx_private_keys_pending ON private_keys (gun, role, algorithm) WHERE last_used IS NULL;
