-- Whose key it is, and whether it was ever used: one that was not is pending, and handed out again. Keys from before
-- belong to nobody in particular (''), so that they are never handed out again.
-- Recognised by: private_keys.last_used

ALTER TABLE private_keys
    ADD COLUMN gun varchar(255) NOT NULL,
    ADD COLUMN role varchar(255) NOT NULL,
    ADD COLUMN last_used timestamp NULL DEFAULT NULL;
