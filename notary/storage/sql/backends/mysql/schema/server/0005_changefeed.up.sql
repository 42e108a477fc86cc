-- The changefeed; it begins with what was published before there was one, and has not been deleted since.
-- Recognised by: changefeed.category

CREATE TABLE IF NOT EXISTS change_category (
    category varchar(20) NOT NULL,
    PRIMARY KEY (category)
) ENGINE=InnoDB DEFAULT CHARSET=utf8;

INSERT IGNORE INTO change_category (category) VALUES ('update'), ('deletion');

CREATE TABLE IF NOT EXISTS changefeed (
    id int(11) NOT NULL AUTO_INCREMENT,
    created_at timestamp NULL DEFAULT CURRENT_TIMESTAMP,
    gun varchar(255) NOT NULL,
    version int(11) NOT NULL,
    sha256 char(64) DEFAULT NULL,
    category varchar(20) NOT NULL DEFAULT 'update',
    PRIMARY KEY (id),
    KEY idx_changefeed_gun (gun),
    FOREIGN KEY (category) REFERENCES change_category (category)
) ENGINE=InnoDB DEFAULT CHARSET=utf8;

-- Metadata from before there were checksums lacks its own.
INSERT INTO changefeed (created_at, gun, version, sha256)
    SELECT created_at, gun, version, COALESCE(sha256, SHA2(data, 256)) FROM tuf_files
    WHERE role = 'timestamp' AND deleted_at IS NULL AND NOT EXISTS (SELECT 1 FROM changefeed)
    ORDER BY created_at, id;
