-- Columns that the reference left empty in rows from before it had them. A fill is recorded by there being no such row.

UPDATE tuf_files SET sha256 = SHA2(data, 256) WHERE sha256 IS NULL;
