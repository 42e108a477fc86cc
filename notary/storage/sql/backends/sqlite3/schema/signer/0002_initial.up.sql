-- The signer's table as of the reference's migration 2 (docs/protocol.md, section 5): wrapped private keys.
-- SQLite has no older history, so the first file carries that number.
-- Recognised by: private_keys.key_id
--
-- Times are text, "YYYY-MM-DD hh:mm:ss[.ffffff]+00:00"; the declared type makes Go's driver read them as times.

CREATE TABLE private_keys (
    id integer PRIMARY KEY AUTOINCREMENT,
    created_at datetime,
    updated_at datetime,
    deleted_at datetime,
    key_id varchar(255) NOT NULL UNIQUE,
    encryption_alg varchar(255) NOT NULL,
    keywrap_alg varchar(255) NOT NULL,
    algorithm varchar(50) NOT NULL,
    passphrase_alias varchar(50) NOT NULL,
    public blob NOT NULL,
    private blob NOT NULL,
    gun varchar(255) NOT NULL,
    role varchar(255) NOT NULL,
    last_used datetime DEFAULT NULL
);
