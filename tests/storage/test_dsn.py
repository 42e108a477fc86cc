"""``storage.db_url`` of MySQL and PostgreSQL: what is read in it, what is refused and how, and what no error shows."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from notary.errors import ConfigError
from notary.storage.sql.backends.mysql import dsn as mysql_dsn
from notary.storage.sql.backends.mysql.dsn import duration, mysql
from notary.storage.sql.backends.postgres import dsn as postgres_dsn
from notary.storage.sql.backends.postgres.dsn import postgres
from notary.storage.sql.db_url import system_roots

ROOTS = "/the/roots.pem"

MYSQL_ALWAYS = {
    "charset": "utf8mb4",
    "local_infile": 0,
    "multi_statements": True,
    "password": "",
    "ssl_mode": "DISABLED",
}
TCP = {"user": "u", "host": "h", "port": 3306, "database": "db"}

MYSQL = {
    "the guide's own": (
        "server@tcp(mysql:3306)/notaryserver?parseTime=True",
        {"user": "server", "host": "mysql", "port": 3306, "database": "notaryserver"},
    ),
    "user and password": ("u:pw@tcp(h:3307)/db", {**TCP, "password": "pw", "port": 3307}),
    "empty password": ("u:@tcp(h)/db", TCP),
    "password of every special character": (
        "u:p@:/?#&=%zz([1])@tcp(h)/db",
        {**TCP, "password": "p@:/?#&=%zz([1])"},
    ),
    "password not of ASCII": ("u:pä✓@tcp(h)/db", {**TCP, "password": "pä✓"}),
    "no address": ("u@/db", {**TCP, "host": "127.0.0.1"}),
    "no net": ("u@(h)/db", TCP),
    "net without an address": ("u@tcp/db", {**TCP, "host": "127.0.0.1"}),
    "empty address": ("u@tcp()/db", {**TCP, "host": "127.0.0.1"}),
    "port only": ("u@tcp(:3307)/db", {**TCP, "host": "127.0.0.1", "port": 3307}),
    "localhost is TCP too": ("u@tcp(localhost)/db", {**TCP, "host": "LOCALHOST"}),
    "IPv6": ("u@tcp([::1]:3307)/db", {**TCP, "host": "::1", "port": 3307}),
    "IPv6 without a port": ("u@tcp([fe80::1%eth0])/db", {**TCP, "host": "fe80::1%eth0"}),
    "IPv6 without brackets": ("u@tcp(fe80::1)/db", {**TCP, "host": "fe80::1"}),
    "Unix socket": (
        "u@unix(/run/my sql/d.sock)/db",
        {"user": "u", "unix_socket": "/run/my sql/d.sock", "database": "db"},
    ),
    "Unix socket, by default": ("u@unix/db", {"user": "u", "unix_socket": "/tmp/mysql.sock", "database": "db"}),
    "encoded database": ("u@tcp(h)/d%2Fb%20c+d", {**TCP, "database": "d/b c+d"}),
    "no parameters": ("u@tcp(h)/db?", TCP),
    "empty parameters": ("u@tcp(h)/db?&timeout=1s&&", {**TCP, "connect_timeout": 1}),
    "the last of two counts": ("u@tcp(h)/db?timeout=1s&timeout=2s", {**TCP, "connect_timeout": 2}),
    "time-outs": (
        "u@tcp(h)/db?timeout=90s&readTimeout=1m30.5s&writeTimeout=500ms",
        {**TCP, "connect_timeout": 90, "read_timeout": 91, "write_timeout": 1},
    ),
    "no time-out": ("u@tcp(h)/db?timeout=0", {**TCP, "connect_timeout": 0}),
    "tls=true": ("u@tcp(h)/db?tls=true", {**TCP, "ssl_mode": "VERIFY_IDENTITY", "ssl": {"ca": ROOTS}}),
    "tls=1": ("u@tcp(h)/db?tls=1", {**TCP, "ssl_mode": "VERIFY_IDENTITY", "ssl": {"ca": ROOTS}}),
    "tls=skip-verify": ("u@tcp(h)/db?tls=Skip-Verify", {**TCP, "ssl_mode": "REQUIRED"}),
    "tls=preferred": (
        "u@tcp(h)/db?tls=preferred",
        {**TCP, "ssl_mode": "PREFERRED", "ssl": {"cipher": "HIGH:!aNULL"}},
    ),
    "tls=false": ("u@tcp(h)/db?tls=False", TCP),
    "tls with a socket": (
        "u@unix(/s)/db?tls=skip-verify",
        {"user": "u", "unix_socket": "/s", "database": "db", "ssl_mode": "REQUIRED"},
    ),
    "charset": ("u@tcp(h)/db?charset=latin1,utf8", TCP),
    "collation": ("u@tcp(h)/db?collation=utf8mb4_bin", {**TCP, "collation": "utf8mb4_bin"}),
    "collation of three bytes": ("u@tcp(h)/db?collation=utf8_general_ci", TCP),
    "compress": ("u@tcp(h)/db?compress=true", {**TCP, "compress": 1}),
    "rejectReadOnly": ("u@tcp(h)/db?rejectReadOnly=0", {**TCP, "reject_read_only": False}),
    "compress=false": ("u@tcp(h)/db?compress=false", TCP),
    "without effect": (
        (
            "u@tcp(h)/db?parseTime=true&loc=US%2FPacific&maxAllowedPacket=4194304&allowNativePasswords=true"
            "&allowCleartextPasswords=1&interpolateParams=TRUE&multiStatements=True&clientFoundRows=false"
            "&columnsWithAlias=FALSE&allowAllFiles=True&allowOldPasswords=false&checkConnLiveness=true"
            "&connectionAttributes=program_name:x&allowFallbackToPlaintext=false"
        ),
        TCP,
    ),
    "session variables": (
        "u@tcp(h)/db?innodb_lock_wait_timeout=5&@@session.wait_timeout=9&optimizer_switch=%27mrr%3Don%27",
        {
            **TCP,
            "init_command": "SET innodb_lock_wait_timeout=5, @@session.wait_timeout=9, optimizer_switch='mrr=on'",
        },
    ),
    "session variables that are ours": (
        (
            "u@tcp(h)/db?time_zone=%27SYSTEM%27&AUTOCOMMIT=1&sql_mode=''&session.tx_isolation='READ-COMMITTED'"
            "&@@transaction_isolation='SERIALIZABLE'"
        ),
        TCP,
    ),
}

SHAPE = "as in user:password@tcp(host:port)/database"
MYSQL_REFUSED = {
    "nothing": ("", f"its end: expected / and the name of the database, {SHAPE}"),
    "no slash": ("u:pw@tcp(h)", f"its end: expected / and the name of the database, {SHAPE}"),
    "no user": ("tcp(h)/db", f"its beginning: expected the name of a user, {SHAPE}"),
    "no user but a password": (":pw@tcp(h)/db", f"its beginning: expected the name of a user, {SHAPE}"),
    "no database": ("u@tcp(h)/", "its end: expected the name of the database after the last /"),
    "no database but parameters": ("u@tcp(h)/?tls=true", "its end: expected the name of the database after the last /"),
    "a URL": (
        "mysql://u:pw@h/db",
        f"character 14: expected tcp(host:port) or unix(path) between the @ after the password and the last /, {SHAPE}",
    ),
    "a net of somebody's own": (
        "u@cloudsql(h)/db",
        f"character 3: expected tcp(host:port) or unix(path) between the @ after the password and the last /, {SHAPE}",
    ),
    "no @": (
        "u:pwtcp(h)/db",
        f"character 1: expected tcp(host:port) or unix(path) between the @ after the password and the last /, {SHAPE}",
    ),
    "address without end": ("u@tcp(h/db", "character 8: expected ) before this /, to end the address"),
    "slash in a parameter": (
        "u@tcp(h)/db?loc=US/Pacific",
        "character 19: expected ) before this /, the last one; in a parameter's value, / is written %2F",
    ),
    "port too large": ("u@tcp(h:65536)/db", "the port: expected a number from 1 to 65535"),
    "port zero": ("u@tcp(h:0)/db", "the port: expected a number from 1 to 65535"),
    "port by name": ("u@tcp(h:mysql)/db", "the port: expected a number from 1 to 65535"),
    "port missing": (
        "u@tcp(h:)/db",
        "character 7: expected host:port, or [address]:port for IPv6, between the parentheses",
    ),
    "brackets without end": (
        "u@tcp([::1)/db",
        "character 7: expected host:port, or [address]:port for IPv6, between the parentheses",
    ),
    "database badly encoded": (
        "u@tcp(h)/50%",
        "the name of the database: expected percent-encoded UTF-8, where % is written %25",
    ),
    "NUL": ("u:p\0w@tcp(h)/db", "character 4: expected text, without NUL and in UTF-8"),
    "encoded NUL": (
        "u@tcp(h)/a%00",
        "the name of the database: expected percent-encoded UTF-8, where % is written %25",
    ),
    "not Unicode": ("u:\udcff@tcp(h)/db", "character 3: expected text, without NUL and in UTF-8"),
    "parameter without a value": ("u@tcp(h)/db?tls", "character 13: expected parameter=value"),
    "parameter with an empty value": ("u@tcp(h)/db?timeout=1s&tls=", "character 24: expected parameter=value"),
    "parameter without a name": ("u@tcp(h)/db?=1", "character 13: expected parameter=value"),
    "parameter badly encoded": (
        "u@tcp(h)/db?loc=%zz",
        "loc: expected percent-encoded UTF-8, where % is written %25",
    ),
    "variable badly encoded": (
        "u@tcp(h)/db?sql_notes=%ff",
        "character 13: expected percent-encoded UTF-8, where % is written %25",
    ),
    "parameter in other letters": ("u@tcp(h)/db?TLS=true", "character 13: expected tls, in just these letters"),
    "global variable": (
        "u@tcp(h)/db?global.wait_timeout=1",
        "character 13: expected the name of a parameter or of a session variable before =",
    ),
    "SQL for a name": (
        "u@tcp(h)/db?a;b=1",
        "character 13: expected the name of a parameter or of a session variable before =",
    ),
    "tls by a name": (
        "u@tcp(h)/db?tls=custom",
        "tls: expected true, false, skip-verify or preferred (other names exist only inside Go programs)",
    ),
    "tls=true with a socket": (
        "u@unix(/s)/db?tls=true",
        "tls: expected no verification with a Unix socket, which has no host name to verify",
    ),
    "time-out without a unit": (
        "u@tcp(h)/db?timeout=30",
        "timeout: expected a duration such as 30s, 1m30s or 500ms, of a year at most",
    ),
    "negative time-out": (
        "u@tcp(h)/db?readTimeout=-1s",
        "readTimeout: expected a duration such as 30s, 1m30s or 500ms, of a year at most",
    ),
    "endless time-out": (
        "u@tcp(h)/db?writeTimeout=9999999h",
        "writeTimeout: expected a duration such as 30s, 1m30s or 500ms, of a year at most",
    ),
    "charset that lacks most names": (
        "u@tcp(h)/db?charset=latin1",
        "charset: expected a list with utf8mb4, utf8mb3 or utf8 in it (utf8mb4 is used)",
    ),
    "collation of another set": (
        "u@tcp(h)/db?collation=latin1_swedish_ci",
        "collation: expected a collation of utf8mb4, utf8mb3 or utf8",
    ),
    "collation with SQL": (
        "u@tcp(h)/db?collation=utf8mb4_bin;drop",
        "collation: expected a collation of utf8mb4, utf8mb3 or utf8",
    ),
    "boolean": ("u@tcp(h)/db?parseTime=yes", "parseTime: expected true or false"),
    "number": ("u@tcp(h)/db?maxAllowedPacket=4M", "maxAllowedPacket: expected a number of bytes"),
    "native passwords": (
        "u@tcp(h)/db?allowNativePasswords=false",
        "allowNativePasswords: expected true: the driver cannot do without",
    ),
    "fallback": (
        "u@tcp(h)/db?tls=true&allowFallbackToPlaintext=true",
        "allowFallbackToPlaintext: expected false (for that, say tls=preferred)",
    ),
    "public key": (
        "u@tcp(h)/db?serverPubKey=x",
        "serverPubKey: expected no such parameter: keys have names only inside Go programs; use tls=true",
    ),
    "strict": (
        "u@tcp(h)/db?strict=true",
        "strict: expected no such parameter: it was removed; name a sql_mode on the server",
    ),
}

REQUIRE = {"sslmode": "require", "client_encoding": "UTF8"}
FULL = {"host": "h", "port": "5433", "user": "u", "password": "pw", "dbname": "db"}

POSTGRES = {
    "URL": ("postgres://u:pw@h:5433/db", {**FULL, **REQUIRE}),
    "the other scheme": ("postgresql://u:pw@h:5433/db", {**FULL, **REQUIRE}),
    "keywords": ("host=h port=5433 user=u password=pw dbname=db", {**FULL, **REQUIRE}),
    "keywords with spaces and quotes": (
        "  host = h\n port='5433' user=u password = 'pw' dbname='db' ",
        {**FULL, **REQUIRE},
    ),
    "quotes, backslashes and spaces in a password": (
        r"host=h password='it\'s a \\ secret'",
        {"host": "h", "password": r"it's a \ secret", **REQUIRE},
    ),
    "backslash without quotes": (r"host=h password=a\ b\'c", {"host": "h", "password": "a b'c", **REQUIRE}),
    "characters that are blank to Python only": (
        "host=h\v password=a\x1cb\x85c\xa0d\u2003e\fuser=u",
        {"host": "h", "password": "a\x1cb\x85c\xa0d\u2003e", "user": "u", **REQUIRE},
    ),
    "encoded password": ("postgres://u:p%40%3A%2F%25@h", {"host": "h", "user": "u", "password": "p@:/%", **REQUIRE}),
    "password of raw characters": (
        "postgres://u:p?#&=:@h",
        {"host": "h", "user": "u", "password": "p?#&=:", **REQUIRE},
    ),
    "nothing": ("", {"host": "localhost", **REQUIRE}),
    "nothing but a scheme": ("postgres://", {"host": "localhost", **REQUIRE}),
    "no host": ("postgres:///db", {"host": "localhost", "dbname": "db", **REQUIRE}),
    "address alone": ("hostaddr=::1", {"hostaddr": "::1", **REQUIRE}),
    "several hosts": (
        "postgres://a:1,b:2,[::1]/db?target_session_attrs=read-write",
        {"host": "a,b,::1", "port": "1,2,", "dbname": "db", "target_session_attrs": "read-write", **REQUIRE},
    ),
    "Unix socket": ("host=/run/postgresql", {"host": "/run/postgresql", **REQUIRE}),
    "Unix socket in a URL": (
        "postgres://%2Frun%2Fpostgresql/db",
        {"host": "/run/postgresql", "dbname": "db", **REQUIRE},
    ),
    "Unix socket as a parameter": ("postgres:///db?host=/run/pg", {"host": "/run/pg", "dbname": "db", **REQUIRE}),
    "sslmode": ("postgres://h?sslmode=disable", {"host": "h", "sslmode": "disable", "client_encoding": "UTF8"}),
    "empty sslmode": ("postgres://h?sslmode=", {"host": "h", **REQUIRE}),
    "ssl as in JDBC": ("postgres://h?ssl=true", {"host": "h", **REQUIRE}),
    "certificates": (
        "host=h sslmode=verify-full sslrootcert=ca.crt sslcert='my certs/c.crt' sslkey=../c.key",
        {
            "host": "h",
            "sslmode": "verify-full",
            "sslrootcert": "ca.crt",
            "sslcert": "my certs/c.crt",
            "sslkey": "../c.key",
            "client_encoding": "UTF8",
        },
    ),
    "the system's authorities": (
        "postgres://h?sslmode=verify-full",
        {"host": "h", "sslmode": "verify-full", "sslrootcert": ROOTS, "client_encoding": "UTF8"},
    ),
    "the system's authorities, any name": (
        "postgres://h?sslmode=verify-ca",
        {"host": "h", "sslmode": "verify-ca", "sslrootcert": ROOTS, "client_encoding": "UTF8"},
    ),
    "connect_timeout": ("host=h connect_timeout=10", {"host": "h", "connect_timeout": "10", **REQUIRE}),
    "settings of the session": (
        "postgres://h?lock_timeout=3s&search_path=a%20b%5Cc&my.setting=1",
        {"host": "h", "options": r"-c lock_timeout=3s -c search_path=a\ b\\c -c my.setting=1", **REQUIRE},
    ),
    "settings beside options": (
        "host=h lock_timeout=3s options='-c geqo=off'",
        {"host": "h", "options": "-c geqo=off -c lock_timeout=3s", **REQUIRE},
    ),
    "settings that are ours": (
        (
            "host=h client_encoding=utf-8 DateStyle='German' TimeZone=Asia/Kathmandu extra_float_digits=0 "
            "sslinline=false binary_parameters=yes disable_prepared_binary_result=yes "
            "default_transaction_isolation=serializable"
        ),
        {"host": "h", **REQUIRE},
    ),
    "service": ("service=notary user=u", {"service": "notary", "user": "u", "client_encoding": "UTF8"}),
    "the last of two counts": ("host=a host=b", {"host": "b", **REQUIRE}),
    "plus is no space": ("postgres://h?application_name=a+b", {"host": "h", "application_name": "a+b", **REQUIRE}),
}

POSTGRES_REFUSED = {
    "no pair": ("notary", "character 1: expected keyword=value, or a URL that begins with postgres://"),
    "word between pairs": (
        "host=h x y=1",
        "character 8: expected keyword=value, or a URL that begins with postgres://",
    ),
    "another scheme": (
        "mysql://u:pw@h/db",
        "character 1: expected keyword=value, or a URL that begins with postgres://",
    ),
    "no end of a quote": ("host=h password='pw", "character 17: expected a ' that ends this value"),
    "raw @ in a password": (
        "postgres://u:p@w@h/db",
        "character 17: expected no second @; in a name or password, @ is written %40 and / is written %2F",
    ),
    "raw / in a password": (
        "postgres://u:5432/w@h/db",
        "character 20: expected no second @; in a name or password, @ is written %40 and / is written %2F",
    ),
    "raw % in a password": (
        "postgres://u:p%w@h/db",
        "the part before the parameters: expected percent-encoded UTF-8, where % is written %25",
    ),
    "brackets without end": (
        "postgres://[::1/db",
        "the part before the parameters: expected postgres://user:password@host:port/database",
    ),
    "parameter without a value": (
        "postgres://h/db?sslmode",
        "character 17: expected parameter=value, where = in a value is written %3D",
    ),
    "two equals signs": (
        "postgres://h/db?sslmode=a=b",
        "character 17: expected parameter=value, where = in a value is written %3D",
    ),
    "parameter badly encoded": (
        "postgres://h/db?a=1&b=%zz",
        "character 21: expected percent-encoded UTF-8, where % is written %25",
    ),
    "name of a setting": (
        "postgres://h/db?a%20b=1",
        "character 17: expected the name of a parameter or of a setting before =",
    ),
    "NUL": ("host=h password=a\0b", "character 18: expected text, without NUL and in UTF-8"),
    "port": ("postgres://h:x/db", "port: expected a number, or one for each host, with commas"),
    "sslmode": (
        "host=h sslmode=on",
        "sslmode: expected disable, allow, prefer, require, verify-ca or verify-full",
    ),
    "connect_timeout": ("host=h connect_timeout=10s", "connect_timeout: expected a whole number"),
    "client_encoding": ("host=h client_encoding=latin1", "client_encoding: expected UTF8"),
    "replication": ("host=h replication=true", "replication: expected no such parameter: it is for replicas"),
    "sslinline": (
        "host=h sslinline=true",
        "sslinline: expected no such parameter: name the files of the certificates instead",
    ),
    "krbspn": (
        "host=h krbspn=x",
        "krbspn: expected no such parameter: it exists only inside Go programs; use krbsrvname",
    ),
}


def table(cases):
    return pytest.mark.parametrize(("db_url", "expected"), list(cases.values()), ids=list(cases))


@table(MYSQL)
def test_mysql(db_url, expected):
    assert dict(mysql(db_url, lambda: ROOTS)) == {**MYSQL_ALWAYS, **expected}


@table(POSTGRES)
def test_postgres(db_url, expected):
    assert dict(postgres(db_url, lambda: ROOTS)) == expected


@table(MYSQL_REFUSED)
def test_mysql_refused(db_url, expected):
    with pytest.raises(ConfigError) as caught:
        mysql(db_url)
    assert str(caught.value) == f"storage.db_url: {expected}"


@table(POSTGRES_REFUSED)
def test_postgres_refused(db_url, expected):
    with pytest.raises(ConfigError) as caught:
        postgres(db_url)
    assert str(caught.value) == f"storage.db_url: {expected}"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("0s", 0),
        ("30s", 30),
        ("+1s", 1),
        ("1m30s", 90),
        ("1h0m0.5s", Fraction(7201, 2)),
        (".5s", Fraction(1, 2)),
        ("5.s", 5),
        ("500ms", Fraction(1, 2)),
        ("1s1s", 2),
        ("250us", Fraction(250, 10**6)),
        ("1µs", Fraction(1, 10**6)),
        ("1μs", Fraction(1, 10**6)),
        ("1ns", Fraction(1, 10**9)),
        ("8760h", 31_536_000),
    ],
)
def test_a_go_duration(text, seconds):
    assert duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "1", ".s", "1 s", "-1s", "1S", "1d", "1s2", "8760h1ns", "0" * 64 + "1s", "\u0661s"]
)
def test_no_go_duration(text):
    with pytest.raises(ValueError):
        duration(text)


# -- what no error shows -----------------------------------------------------------------------------------------------

PASSWORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).map(lambda text: f"S3{text}cr3t")
MYSQL_PIECES = [
    "@",
    "tcp",
    "unix",
    "(",
    ")",
    "/",
    "?",
    "tls=",
    "true",
    "timeout=",
    "charset=",
    "&",
    "=",
    ":",
    "%",
    "[",
    "]",
    "h",
    "db",
]
POSTGRES_PIECES = [
    "postgres://",
    "@",
    ":",
    "/",
    "?",
    "&",
    "=",
    "%",
    "'",
    "\\",
    " ",
    "host=",
    "sslmode=",
    "port=",
    "[",
    "]",
    ",",
    "h",
]


def refusal(parse, db_url) -> ConfigError | None:
    try:
        parse(db_url, lambda: ROOTS)
    except ConfigError as error:
        return error
    return None


@pytest.mark.parametrize(("parse", "pieces"), [(mysql, MYSQL_PIECES), (postgres, POSTGRES_PIECES)])
def test_only_a_config_error_that_shows_nothing(parse, pieces):
    around = st.lists(st.sampled_from([*pieces, "u"])).map("".join)

    @given(around, PASSWORDS, around)
    def check(left, password, right):
        error = refusal(parse, left + password + right)
        assert error is None or not re.search("S3|cr3t|\n", str(error))
        assert error is None or error.__context__ is None or error.__suppress_context__

    check()


@given(st.sampled_from([mysql, postgres]), st.sampled_from(["", "postgres://"]), st.text())
def test_any_text(parse, scheme, text):
    error = refusal(parse, scheme + text)
    assert error is None or re.fullmatch(r"storage\.db_url: [^\n]+", str(error))


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_any_password_reaches_mysql(password):
    assert mysql(f"u:{password}@tcp(h)/db")["password"] == password


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_libpq_reads_what_we_read(password):
    text = make_conninfo(host="h", password=password, application_name=password)
    assert postgres(text) == {**conninfo_to_dict(text), **REQUIRE}


@pytest.mark.parametrize("blank", [chr(code) for code in range(1, 0x3001) if chr(code).isspace()])
def test_libpq_ends_a_value_where_we_do(blank):
    text = f"host=h{blank}user=u{blank}password=p{blank}"
    theirs = conninfo_to_dict(text)
    assert {name: value for name, value in postgres(text).items() if name in theirs} == theirs


# -- certificate authorities -------------------------------------------------------------------------------------------


def test_ssl_cert_file_names_the_authorities(tmp_path: Path):
    own = tmp_path / "own.pem"
    own.touch()
    assert system_roots({"SSL_CERT_FILE": str(own)}) == str(own)
    assert Path(system_roots({})).is_file()


def test_ssl_cert_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(ConfigError, match="set SSL_CERT_FILE to a file of your own"):
        system_roots({"SSL_CERT_FILE": str(tmp_path / "none")})


def test_authorities_are_only_looked_for_if_there_is_something_to_verify():
    def roots() -> str:
        raise AssertionError("nothing to verify")

    for mode in ("skip-verify", "preferred", "false"):
        mysql(f"u@tcp(h)/db?tls={mode}", roots)
    for mode in ("disable", "allow", "prefer", "require"):
        postgres(f"postgres://h?sslmode={mode}", roots)
    postgres("host=h sslmode=verify-full sslrootcert=x", roots)


def test_the_page_names_every_parameter():
    page = (Path(__file__).parents[2] / "docs" / "db-url.md").read_text("utf-8")
    for name in (*mysql_dsn._MYSQL, *mysql_dsn._MYSQL_OURS, *postgres_dsn._POSTGRES, *postgres_dsn._POSTGRES_OURS):
        assert f"`{name}`" in page
