-- The server's keys are told apart by role, for snapshot keys had come. What was there before is of the timestamp.
-- Recognised by: timestamp_keys.role

ALTER TABLE timestamp_keys
    ADD COLUMN role varchar(255) NOT NULL DEFAULT 'timestamp' AFTER gun,
    DROP KEY gun,
    ADD UNIQUE KEY gun (gun, role);
