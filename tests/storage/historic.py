"""The tables of Notary 0.3 to 0.7 at every state, written down from the reference, and data as it left them there.

Rules of this module: nothing of ours is used, so that our migrations cannot be timed by themselves. What a state
adds to the one before is a list of statements; so is the data that a daemon of that time has written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

OLD_GUN = "docker.io/library/alpine"
DELETED_GUN = "docker.io/library/deleted"
ROLES = ("root", "targets", "snapshot", "timestamp")

_TIMES = "created_at timestamp NULL DEFAULT NULL, updated_at timestamp NULL DEFAULT NULL, deleted_at timestamp NULL"
_INNODB = "ENGINE=InnoDB DEFAULT CHARSET=utf8"
_MYSQL_ID = "id int(11) NOT NULL AUTO_INCREMENT"

MYSQL_SERVER: Mapping[int, Sequence[str]] = {
    1: [
        (
            f"CREATE TABLE timestamp_keys ({_MYSQL_ID}, {_TIMES}, gun varchar(255) NOT NULL, "
            f"cipher varchar(50) NOT NULL, public blob NOT NULL, PRIMARY KEY (id), UNIQUE KEY gun (gun)) {_INNODB}"
        ),
        (
            f"CREATE TABLE tuf_files ({_MYSQL_ID}, {_TIMES}, gun varchar(255) NOT NULL, role varchar(255) NOT NULL, "
            "version int(11) NOT NULL, data longblob NOT NULL, PRIMARY KEY (id), UNIQUE KEY gun (gun, role, version)) "
            f"{_INNODB}"
        ),
    ],
    2: [
        "ALTER TABLE timestamp_keys ADD COLUMN role varchar(255) NOT NULL, DROP KEY gun, ADD UNIQUE gun (gun, role)",
        "UPDATE timestamp_keys SET role = 'timestamp'",
    ],
    3: ["ALTER TABLE tuf_files ADD COLUMN sha256 char(64) DEFAULT NULL, ADD INDEX (sha256)"],
    4: ["DROP TABLE timestamp_keys"],
    5: [
        f"CREATE TABLE change_category (category varchar(20) NOT NULL, PRIMARY KEY (category)) {_INNODB}",
        "INSERT INTO change_category VALUES ('update'), ('deletion')",
        (
            f"CREATE TABLE changefeed ({_MYSQL_ID}, created_at timestamp DEFAULT CURRENT_TIMESTAMP, "
            "gun varchar(255) NOT NULL, version int(11) NOT NULL, sha256 char(64) DEFAULT NULL, "
            "category varchar(20) NOT NULL DEFAULT 'update', PRIMARY KEY (id), "
            "FOREIGN KEY (category) REFERENCES change_category (category), INDEX idx_changefeed_gun (gun)) "
            f"{_INNODB}"
        ),
        (
            "INSERT INTO changefeed (created_at, gun, version, sha256) SELECT created_at, gun, version, sha256 "
            "FROM tuf_files WHERE role = 'timestamp' ORDER BY created_at ASC"
        ),
    ],
}

_KEY = (
    "key_id varchar(255) NOT NULL, encryption_alg varchar(255) NOT NULL, keywrap_alg varchar(255) NOT NULL, "
    "algorithm varchar(50) NOT NULL, passphrase_alias varchar(50) NOT NULL"
)

MYSQL_SIGNER: Mapping[int, Sequence[str]] = {
    1: [
        (
            f"CREATE TABLE private_keys ({_MYSQL_ID}, {_TIMES}, {_KEY}, public blob NOT NULL, private blob NOT NULL, "
            f"PRIMARY KEY (id), UNIQUE key_id (key_id), UNIQUE key_id_2 (key_id, algorithm)) {_INNODB}"
        )
    ],
    2: [
        (
            "ALTER TABLE private_keys ADD COLUMN gun varchar(255) NOT NULL, ADD COLUMN role varchar(255) NOT NULL, "
            "ADD COLUMN last_used timestamp NULL DEFAULT NULL"
        )
    ],
}

POSTGRES_SERVER: Mapping[int, Sequence[str]] = {
    1: [
        (
            f"CREATE TABLE tuf_files (id serial PRIMARY KEY, {_TIMES}, gun varchar(255) NOT NULL, "
            "role varchar(255) NOT NULL, version integer NOT NULL, data bytea NOT NULL, sha256 char(64) DEFAULT NULL, "
            "UNIQUE (gun, role, version))"
        ),
        "CREATE INDEX tuf_files_sha256_idx ON tuf_files (sha256)",
    ],
    2: [
        "CREATE TABLE change_category (category varchar(20) PRIMARY KEY)",
        "INSERT INTO change_category VALUES ('update'), ('deletion')",
        (
            "CREATE TABLE changefeed (id serial PRIMARY KEY, created_at timestamp DEFAULT CURRENT_TIMESTAMP, "
            "gun varchar(255) NOT NULL, version integer NOT NULL, sha256 char(64) DEFAULT NULL, "
            "category varchar(20) NOT NULL DEFAULT 'update' REFERENCES change_category)"
        ),
        "CREATE INDEX idx_changefeed_gun ON changefeed (gun)",
        (
            "INSERT INTO changefeed (created_at, gun, version, sha256) SELECT created_at, gun, version, sha256 "
            "FROM tuf_files WHERE role = 'timestamp' ORDER BY created_at ASC"
        ),
    ],
}

POSTGRES_SIGNER: Mapping[int, Sequence[str]] = {
    1: [
        (
            f"CREATE TABLE private_keys (id serial PRIMARY KEY, {_TIMES}, {_KEY}, public bytea NOT NULL, "
            "private bytea NOT NULL, gun varchar(255) NOT NULL, role varchar(255) NOT NULL, "
            "last_used timestamp NULL DEFAULT NULL, CONSTRAINT key_id UNIQUE (key_id), "
            "CONSTRAINT key_id_2 UNIQUE (key_id, algorithm))"
        )
    ]
}

# What the reference's object mapper makes by itself, as in databases that no migration tool has seen.
GORM_SERVER: Sequence[str] = [
    (
        "CREATE TABLE tuf_files (id int unsigned AUTO_INCREMENT, created_at timestamp NULL, updated_at timestamp NULL, "
        "deleted_at timestamp NULL, gun varchar(255) NOT NULL, role varchar(255) NOT NULL, version int NOT NULL, "
        "sha256 varchar(64), data longblob NOT NULL, PRIMARY KEY (id))"
    ),
    "CREATE INDEX idx_tuf_files_deleted_at ON tuf_files (deleted_at)",
    "CREATE UNIQUE INDEX idx_gun ON tuf_files (gun, role, version)",
    (
        "CREATE TABLE changefeed (id int unsigned NOT NULL AUTO_INCREMENT, created_at timestamp NULL, "
        "gun varchar(255) NOT NULL, version int NOT NULL, sha256 varchar(64), category varchar(20) NOT NULL, "
        "PRIMARY KEY (id))"
    ),
]
GORM_SIGNER: Sequence[str] = [
    (
        "CREATE TABLE private_keys (id int unsigned AUTO_INCREMENT, created_at timestamp NULL, "
        f"updated_at timestamp NULL, deleted_at timestamp NULL, {_KEY}, gun varchar(255) NOT NULL, "
        "role varchar(255) NOT NULL, public blob NOT NULL, private blob NOT NULL, "
        "last_used datetime NULL DEFAULT NULL, PRIMARY KEY (id), UNIQUE key_id (key_id))"
    ),
]


# -- what the state is recorded in ------------------------------------------------------------------------------------


def unrecorded(_version: int) -> Iterator[str]:
    """By nothing, as where the tables came from a script of docker-compose."""
    return iter(())


def recorded(version: int, *, dirty: bool = False) -> Iterator[str]:
    """By one row, as golang-migrate does it."""
    yield "CREATE TABLE schema_migrations (version bigint NOT NULL PRIMARY KEY, dirty boolean NOT NULL)"
    yield f"INSERT INTO schema_migrations VALUES ({version}, {dirty})"


def recorded_as_of_old(version: int) -> Iterator[str]:
    """By a row for each migration, as its predecessor did it (Notary up to 0.6)."""
    yield "CREATE TABLE schema_migrations (version int NOT NULL PRIMARY KEY)"
    for each in range(1, version + 1):
        yield f"INSERT INTO schema_migrations VALUES ({each})"


def half_converted(version: int) -> Iterator[str]:
    """By several rows in the new form."""
    yield "CREATE TABLE schema_migrations (version bigint NOT NULL PRIMARY KEY, dirty boolean NOT NULL)"
    for each in range(1, version + 1):
        yield f"INSERT INTO schema_migrations VALUES ({each}, false)"


def counted_as_mysql(rows: Sequence[int], *, dirty: str = "") -> Callable[[int], Iterator[str]]:
    """By the numbers that the same tables have on MySQL: left by a tool that moved a database to PostgreSQL row by row.

    Harbor's own does so, into a table without the column ``dirty``, which its later releases add.
    """

    def form(_version: int) -> Iterator[str]:
        column = f", dirty boolean NOT NULL DEFAULT {dirty}" if dirty else ""
        yield f"CREATE TABLE schema_migrations (version int PRIMARY KEY{column})"
        for each in rows:
            yield f"INSERT INTO schema_migrations (version) VALUES ({each})"

    return form


FORMS: Sequence[Callable[[int], Iterator[str]]] = (unrecorded, recorded, recorded_as_of_old, half_converted)


# -- data -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class File:
    """A row of tuf_files."""

    gun: str
    role: str
    version: int
    data: bytes
    created: str
    deleted: str | None = None

    @property
    def sha256(self) -> str:
        """In hex."""
        return hashlib.sha256(self.data).hexdigest()


FILES = [
    *(
        File(OLD_GUN, role, version, f'{{"{role}": {version}}}'.encode() + b"\x00\xff'", f"2016-03-0{version} 12:00:00")
        for version in (2, 1)  # a feed in the order of the rows would be wrong
        for role in ROLES
    ),
    *(File(DELETED_GUN, role, 1, b"deleted", "2016-02-01 00:00:00", "2016-02-02 00:00:00") for role in ROLES),
]

KEYS = {"ab" * 32: "2016-05-01 10:00:00", "cd" * 32: None}
"""Key ids, and when each was used."""
KEY_PRIVATE = b"eyJhbGciOiJQQkVTMi1IUzI1NitBMTI4S1cifQ.\x00\xff"
KEY_PUBLIC = b"\x30\x59\x00\xff'"


def server_rows(columns: set[str]) -> Iterator[tuple[str, Sequence[object]]]:
    """Statements, with ``%s`` for each value, that fill the server's tables; a changefeed is filled already, or empty.

    ``columns`` are those of tuf_files.
    """
    for file in FILES:
        values: dict[str, object] = {
            "created_at": file.created,
            "updated_at": file.created,
            "deleted_at": file.deleted,
            "gun": file.gun,
            "role": file.role,
            "version": file.version,
            "data": file.data,
        }
        if "sha256" in columns:
            values["sha256"] = file.sha256
        yield _insert("tuf_files", values)


def signer_rows(columns: set[str]) -> Iterator[tuple[str, Sequence[object]]]:
    """The same for private_keys."""
    for key_id, used in KEYS.items():
        values: dict[str, object] = {
            "created_at": "2016-04-01 10:00:00",
            "updated_at": "2016-04-01 10:00:00",
            "key_id": key_id,
            "encryption_alg": "A256GCM",
            "keywrap_alg": "PBES2-HS256+A128KW",
            "algorithm": "ecdsa",
            "passphrase_alias": "alias1",
            "public": KEY_PUBLIC,
            "private": KEY_PRIVATE,
        }
        if "last_used" in columns:
            values |= {"gun": OLD_GUN, "role": "timestamp", "last_used": used}
        yield _insert("private_keys", values)


def _insert(table: str, values: Mapping[str, object]) -> tuple[str, Sequence[object]]:
    marks = ", ".join(["%s"] * len(values))
    return f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})", list(values.values())
