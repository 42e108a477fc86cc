-- Which keys the server holds is read from each collection's root. The keys themselves are the signer's.
-- Recognised by: tuf_files.sha256, no timestamp_keys

DROP TABLE IF EXISTS timestamp_keys;
