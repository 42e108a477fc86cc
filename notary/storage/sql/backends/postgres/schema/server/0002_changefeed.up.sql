-- The changefeed; it begins with what was published before there was one, and has not been deleted since.
-- Recognised by: changefeed.category

CREATE TABLE IF NOT EXISTS change_category (
    category varchar(20) PRIMARY KEY
);

INSERT INTO change_category (category) VALUES ('update'), ('deletion') ON CONFLICT DO NOTHING;

CREATE TABLE IF NOT EXISTS changefeed (
    id serial PRIMARY KEY,
    created_at timestamp NULL DEFAULT CURRENT_TIMESTAMP,
    gun varchar(255) NOT NULL,
    version integer NOT NULL,
    sha256 char(64) DEFAULT NULL,
    category varchar(20) NOT NULL DEFAULT 'update' REFERENCES change_category (category)
);

CREATE INDEX IF NOT EXISTS idx_changefeed_gun ON changefeed (gun);

INSERT INTO changefeed (created_at, gun, version, sha256)
    SELECT created_at, gun, version, COALESCE(sha256, encode(sha256(data), 'hex')) FROM tuf_files
    WHERE role = 'timestamp' AND deleted_at IS NULL AND NOT EXISTS (SELECT 1 FROM changefeed)
    ORDER BY created_at, id;
