-- Indexes that the reference's migrations do not make; and those that tables lack which they did not make. Each is
-- recorded by its own presence: an index of any name counts, if it begins with the same columns. They are made while
-- the daemons work.

-- Pending keys: all others of the same gun, role and algorithm have been used.
CREATE INDEX idx_private_keys_pending ON private_keys (gun, role, algorithm, last_used) ALGORITHM=INPLACE LOCK=NONE;
