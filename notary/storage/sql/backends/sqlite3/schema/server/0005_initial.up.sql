-- The server's tables as of the reference's migration 5 (docs/protocol.md, section 5): signed metadata, all versions,
-- and the changefeed. SQLite has no older history, so the first file carries that number.
-- Recognised by: tuf_files.gun
--
-- Times are text, "YYYY-MM-DD hh:mm:ss[.ffffff]+00:00"; the declared type makes Go's driver read them as times.

CREATE TABLE tuf_files (
    id integer PRIMARY KEY AUTOINCREMENT,
    created_at datetime,
    updated_at datetime,
    deleted_at datetime,
    gun varchar(255) NOT NULL,
    role varchar(255) NOT NULL,
    version integer NOT NULL,
    sha256 char(64),
    data longblob NOT NULL
);

-- Newest version of a role; also what makes a lost race visible.
CREATE UNIQUE INDEX idx_tuf_files_gun_role_version ON tuf_files (gun, role, version);

CREATE TABLE change_category (
    category varchar(20) NOT NULL PRIMARY KEY
);

INSERT INTO change_category (category) VALUES ('update'), ('deletion');

CREATE TABLE changefeed (
    id integer PRIMARY KEY AUTOINCREMENT,
    created_at datetime,
    gun varchar(255) NOT NULL,
    version integer NOT NULL,
    sha256 char(64),
    category varchar(20) NOT NULL REFERENCES change_category (category)
);
