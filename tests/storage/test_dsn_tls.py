"""What a ``db_url`` says of TLS, on real connections: who is refused, and who gets through encrypted."""

from __future__ import annotations

import os
import pwd
import socket
from contextlib import closing, contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest

from notary.errors import StorageFailed
from notary.storage.sql.backends.mysql.dsn import mysql
from notary.storage.sql.backends.postgres.dsn import postgres
from notary.storage.sql.db_url import system_roots
from tests.support.certs import Authority
from tests.support.databases import MariaDB, PostgreSQL

OTHER_HOST = "127.0.0.2"
"""Reaches the server, whose certificate is for other names."""


TLS_FAILED = 2026
"""The number of the error."""


SERVER_LOST = 2013


class Authorities:
    """One that has certified the servers, and one that has not."""

    def __init__(self, folder: Path) -> None:
        right = Authority.root("right")
        self.right, self.wrong = right.write(folder, "right"), Authority.root("wrong").write(folder, "wrong")
        self.certificate, self.key = right.leaf("localhost", "127.0.0.1").write(folder, "server")
        self.key.chmod(0o600)
        folder.chmod(0o755)
        if os.geteuid() == 0:  # then PostgreSQL runs as another user, who must own the key
            os.chown(self.key, pwd.getpwnam("postgres").pw_uid, -1)


@pytest.fixture(scope="module")
def authorities():
    with TemporaryDirectory() as folder:  # pytest's own is closed to other users
        yield Authorities(Path(folder))


@pytest.fixture(scope="module")
def tls_mariadb(authorities):
    options = [f"--ssl-cert={authorities.certificate}", f"--ssl-key={authorities.key}"]
    with MariaDB(options=[*options, f"--bind-address=127.0.0.1,{OTHER_HOST}"]) as server:
        yield server


@pytest.fixture(scope="module")
def plain_mariadb():
    with MariaDB(options=["--skip-ssl"]) as server:
        yield server


@pytest.fixture(params=["mysqlclient", "pymysql"])
def driver(request):
    return import_module(f"notary.storage.sql.backends.mysql.{request.param}")


def is_mysqlclient(driver) -> bool:
    return driver.__name__.endswith(".mysqlclient")


@pytest.fixture
def mysql_cipher(driver):
    """Connects as a store does; the cipher in use, "" for none."""

    def cipher(server: MariaDB, address: str, parameters: str, roots: Path | None = None) -> str:
        name, password = server.admin
        arguments = mysql(f"{name}:{password}@{address}/mysql?{parameters}", lambda: str(roots))
        with closing(driver.connect(**arguments)) as connection, closing(connection.cursor()) as cursor:
            cursor.execute("SHOW SESSION STATUS LIKE 'Ssl_cipher'")
            return cursor.fetchone()[1]

    return cipher


@contextmanager
def refused_by_certificate(driver):
    with pytest.raises(driver.Error, match="certificate") as caught:
        yield
    assert caught.value.args[0] == TLS_FAILED


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_mysql_verifies(tls_mariadb, authorities, host, mysql_cipher):
    assert mysql_cipher(tls_mariadb, f"tcp({host}:{tls_mariadb.port})", "tls=true", authorities.right)


def test_mysql_refuses_a_wrong_authority(tls_mariadb, authorities, driver, mysql_cipher):
    with refused_by_certificate(driver):
        mysql_cipher(tls_mariadb, f"tcp(localhost:{tls_mariadb.port})", "tls=true", authorities.wrong)


def test_mysql_refuses_what_the_system_does_not_trust(tls_mariadb, driver, mysql_cipher):
    roots = Path(system_roots({}))
    with refused_by_certificate(driver):
        mysql_cipher(tls_mariadb, f"tcp(localhost:{tls_mariadb.port})", "tls=true", roots)


def test_mysql_refuses_a_wrong_host_name(tls_mariadb, authorities, driver, mysql_cipher):
    with refused_by_certificate(driver):
        mysql_cipher(tls_mariadb, f"tcp({OTHER_HOST}:{tls_mariadb.port})", "tls=true", authorities.right)


@pytest.mark.parametrize("mode", ["skip-verify", "preferred"])
@pytest.mark.parametrize("host", ["localhost", OTHER_HOST])
def test_mysql_encrypts_without_verifying(tls_mariadb, mode, host, mysql_cipher):
    assert mysql_cipher(tls_mariadb, f"tcp({host}:{tls_mariadb.port})", f"tls={mode}")


@pytest.mark.parametrize("parameters", ["tls=false", "parseTime=true"])
def test_mysql_in_plain_text(tls_mariadb, parameters, mysql_cipher):
    assert not mysql_cipher(tls_mariadb, f"tcp(localhost:{tls_mariadb.port})", parameters)


@pytest.mark.parametrize(("mode", "encrypted"), [("skip-verify", True), ("preferred", True), ("false", False)])
def test_mysql_socket(tls_mariadb, mode, encrypted, mysql_cipher):
    assert bool(mysql_cipher(tls_mariadb, f"unix({tls_mariadb.socket})", f"tls={mode}")) is encrypted


def test_mysql_never_goes_on_in_plain_text(plain_mariadb, authorities, driver, mysql_cipher):
    address = f"tcp(localhost:{plain_mariadb.port})"
    with pytest.raises(driver.Error, match=r"SSL is required,? but the server does(n't| not) support it") as caught:
        mysql_cipher(plain_mariadb, address, "tls=true", authorities.right)
    assert caught.value.args[0] == TLS_FAILED
    # MariaDB's client library does not see to this itself, and so is looked after.
    lacking = (StorageFailed, "does not offer TLS") if is_mysqlclient(driver) else (driver.Error, "SSL is required")
    with pytest.raises(lacking[0], match=lacking[1]):
        mysql_cipher(plain_mariadb, address, "tls=skip-verify")


@pytest.mark.parametrize("mode", ["preferred", "false"])
def test_mysql_goes_on_in_plain_text(plain_mariadb, mode, mysql_cipher):
    assert not mysql_cipher(plain_mariadb, f"tcp(localhost:{plain_mariadb.port})", f"tls={mode}")


def test_mysql_parameters_take_effect(plain_mariadb, driver):
    name, password = plain_mariadb.admin
    settings = "innodb_lock_wait_timeout=7&@@session.wait_timeout=99&time_zone='Nowhere'&collation=utf8mb4_bin"
    db_url = f"{name}:{password}@tcp(localhost:{plain_mariadb.port})/mysql?{settings}&compress=true&timeout=5s"
    with closing(driver.connect(**mysql(db_url))) as connection, closing(connection.cursor()) as cursor:
        cursor.execute(
            "SELECT @@innodb_lock_wait_timeout, @@wait_timeout, @@character_set_connection, @@collation_connection"
        )
        assert cursor.fetchone() == (7, 99, "utf8mb4", "utf8mb4_bin")
        cursor.execute("SHOW SESSION STATUS LIKE 'Compression'")
        assert cursor.fetchone()[1] == ("ON" if is_mysqlclient(driver) else "OFF")  # PyMySQL cannot


def test_mysql_that_accepts_and_says_nothing_is_given_up_in_the_time_of_connecting(driver):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp(127.0.0.1:{silent.getsockname()[1]})"
        with pytest.raises(driver.Error) as caught:
            driver.connect(**mysql(f"user:password@{address}/mysql?timeout=1s&readTimeout=1h"))
    assert caught.value.args[0] == SERVER_LOST


@pytest.mark.parametrize(
    ("address", "number"),
    [("tcp(127.0.0.1:1)", {2002, 2003}), ("tcp(no-such-host.invalid)", {2005})],
)
def test_mysql_that_cannot_be_reached(driver, address, number):
    with pytest.raises(driver.Error) as caught:
        driver.connect(**mysql(f"user:password@{address}/mysql"))
    assert caught.value.args[0] in number


# -- PostgreSQL -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls_postgres(authorities):
    settings = ["ssl=on", f"ssl_cert_file={authorities.certificate}", f"ssl_key_file={authorities.key}"]
    settings.append(f"listen_addresses=127.0.0.1,{OTHER_HOST}")
    with PostgreSQL(options=[word for setting in settings for word in ("-c", setting)]) as server:
        yield server


@pytest.fixture(scope="module")
def plain_postgres():
    with PostgreSQL() as server:
        yield server


def postgres_encrypted(server: PostgreSQL, host: str, parameters: str, roots: Path | None = None) -> bool:
    name, password = server.admin
    db_url = f"postgres://{name}:{password}@{host}:{server.port}/postgres?{parameters}"
    with closing(psycopg.connect(**postgres(db_url, lambda: str(roots)))) as connection:
        return connection.pgconn.ssl_in_use


@pytest.mark.parametrize("mode", ["verify-full", "verify-ca"])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_postgres_verifies(tls_postgres, authorities, mode, host):
    assert postgres_encrypted(tls_postgres, host, f"sslmode={mode}", authorities.right)
    assert postgres_encrypted(tls_postgres, host, f"sslmode={mode}&sslrootcert={authorities.right}")


@pytest.mark.parametrize("mode", ["verify-full", "verify-ca"])
def test_postgres_refuses_a_wrong_authority(tls_postgres, authorities, mode):
    for roots in (authorities.wrong, Path(system_roots({}))):
        with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
            postgres_encrypted(tls_postgres, "localhost", f"sslmode={mode}", roots)


def test_postgres_refuses_a_wrong_host_name(tls_postgres, authorities):
    with pytest.raises(psycopg.OperationalError, match="does not match host name"):
        postgres_encrypted(tls_postgres, OTHER_HOST, "sslmode=verify-full", authorities.right)
    assert postgres_encrypted(tls_postgres, OTHER_HOST, "sslmode=verify-ca", authorities.right)


@pytest.mark.parametrize(
    ("parameters", "encrypted"),
    [
        ("", True),
        ("sslmode=require", True),
        ("sslmode=prefer", True),
        ("sslmode=allow", False),
        ("sslmode=disable", False),
    ],
)
def test_postgres_without_verifying(tls_postgres, parameters, encrypted):
    assert postgres_encrypted(tls_postgres, "localhost", parameters) is encrypted


def test_postgres_never_goes_on_in_plain_text(plain_postgres, authorities):
    for parameters in ("", "sslmode=require", "sslmode=verify-full"):
        with pytest.raises(psycopg.OperationalError, match="server does not support SSL, but SSL was required"):
            postgres_encrypted(plain_postgres, "localhost", parameters, authorities.right)
    assert not postgres_encrypted(plain_postgres, "localhost", "sslmode=prefer")


def test_postgres_keyword_string_by_socket(plain_postgres):
    db_url = f"host='{plain_postgres.directory}' port={plain_postgres.port} user=root dbname=postgres lock_timeout=3s"
    with closing(psycopg.connect(**postgres(f"{db_url} application_name='a b' TimeZone=Nowhere"))) as connection:
        row = connection.execute(
            "SELECT current_setting('lock_timeout'), current_setting('application_name'), "
            "current_setting('client_encoding')"
        ).fetchone()
    assert row == ("3s", "a b", "UTF8")
