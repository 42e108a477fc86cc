-- What the reference's tables lack. Each is recorded by its own presence: whatever its name, an index that begins with
-- the same columns will do.

-- Pending keys: all others of the same gun, role and algorithm have been used.
CREATE INDEX idx_private_keys_pending ON private_keys (gun, role, algorithm, last_used) ALGORITHM=INPLACE LOCK=NONE;
