-- Indexes that the reference's migrations do not make; and those that tables lack which they did not make. Each is
-- recorded by its own presence: an index of any name counts, if it begins with the same columns. They are made while
-- the daemons work.
-- What is dropped is one whose making broke off: it is there, but not valid.

-- Pending keys only: few, however many keys there are.
DROP INDEX CONCURRENTLY IF EXISTS idx_private_keys_pending;
CREATE INDEX CONCURRENTLY idx_private_keys_pending ON private_keys (gun, role, algorithm) WHERE last_used IS NULL;
