-- The indexes. Each is recorded by its own presence: an index of any name counts, if it begins with the same columns.

-- Pending keys only: few, however many keys there are.
CREATE INDEX idx_private_keys_pending ON private_keys (gun, role, algorithm) WHERE last_used IS NULL;
