"""Private MariaDB and PostgreSQL servers for tests.

Rules of this module: a server is a process of ours in a directory of its own, on a loopback port and a socket in that
directory, found and ended by its pid; it dies with the process that started it. It shares nothing with an instance of
the Debian packages. A server that is not installed fails the test that wants it.

``fast`` settings never wait for the disk: what was committed survives the death of the server, not that of the
machine. Tests of that want ``fast=False``. The servers' own time zone is an odd one, which nobody may notice.
"""

from __future__ import annotations

import itertools
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import MySQLdb
import psycopg

from tests.support.peers import free_port

SERVER_RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE")
SIGNER_RIGHTS = ("SELECT", "INSERT", "DELETE")
"""What the operator's guide grants to each daemon."""

READY_SECONDS = 60.0
STOP_SECONDS = 60.0


class User(NamedTuple):
    """An account of a database server."""

    name: str
    password: str


class DatabaseServer(ABC):
    """One server. A context manager: started when it is entered, stopped and removed when it is left.

    Args:
        fast: No waiting for the disk.
        options: More arguments for the server's command line.
    """

    backend: ClassVar[str]
    """The value of ``storage.backend``."""

    unreachable: ClassVar[type[Exception]]
    """What the driver raises while nobody answers."""

    _ending: ClassVar[signal.Signals]
    """What makes it stop at once, in good order."""

    def __init__(self, *, fast: bool = True, options: Sequence[str] = ()) -> None:
        self.fast = fast
        self.options = list(options)
        self.directory = Path(tempfile.mkdtemp(prefix="notary-tests-"))  # short: it holds a socket
        self.port = free_port()
        self.admin = User("admin", secrets.token_hex(12))
        self._names = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._install()
            self.start()
            self._create_admin()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    # -- the process --------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self._process is not None, "the server does not run"
        return self._process.pid

    def start(self) -> None:
        """Start it, and wait until it answers."""
        deadline = time.monotonic() + READY_SECONDS
        self._process = self._spawn()
        while True:
            try:
                self._connect_as_root("").close()
            except self.unreachable:
                if self._process.poll() is not None:  # what a killed one held may not be free yet
                    self._process = self._spawn()
                assert time.monotonic() < deadline, f"{self.backend} does not answer:\n{self.log()}"
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """End it in good order."""
        self._signal(self._ending)
        self._wait()

    def kill(self) -> None:
        """End it as ``kill -9`` does, with every process that it has."""
        self._signal(signal.SIGSTOP)  # so that no process is made meanwhile
        for pid in (*self._children(), self.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._wait()

    def restart(self) -> None:
        """Stop it in good order, and start it again on the same port."""
        self.stop()
        self.start()

    def ensure(self) -> None:
        """Start it if it does not run."""
        if self._process is None:
            self.start()

    def pause(self) -> None:
        """Let it hang: connections stay open, and nobody answers."""
        for pid in (self.pid, *self._children()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
            while not _has_stopped(pid):
                time.sleep(0.01)

    def resume(self) -> None:
        """End the pause."""
        for pid in (*self._children(), self.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def remove(self) -> None:
        """End it, if it runs, and delete its data."""
        if self._process is not None:
            self.kill()
        shutil.rmtree(self.directory)

    def log(self) -> str:
        """The end of what the server wrote."""
        return (self.directory / "log").read_text("utf-8", "replace")[-4000:]

    def _spawn(self) -> subprocess.Popen[bytes]:
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self._account(), *self._command(), *self.options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,  # a Ctrl-C is for the tests; they stop the server
            )

    def _signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def _wait(self) -> None:
        assert self._process is not None
        self._process.wait(STOP_SECONDS)
        self._process = None

    def _children(self) -> list[int]:
        found = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text("ascii")
        return [int(pid) for pid in found.split()]

    def _run(self, *command: str) -> None:
        done = subprocess.run(
            ["setpriv", *self._account(), *command], capture_output=True, text=True, cwd=self.directory, check=False
        )
        assert done.returncode == 0, f"{command[0]} failed:\n{done.stdout}\n{done.stderr}"

    # -- databases and users ------------------------------------------------------------------------------------------

    def database(self) -> str:
        """Create an empty database; its name."""
        name = f"notary{next(self._names)}"
        for statement in self._create_database(name):
            self.execute("", statement)
        return name

    def drop(self, database: str) -> None:
        """Remove a database, even one that is still in use."""
        self.execute("", self._drop_database(database))

    def empty(self, database: str, tables: Iterable[str]) -> None:
        """Remove all rows of these tables; numbers begin at 1 again."""
        for table in tables:
            self.execute(database, self._empty_table(table))

    def user(self, database: str, rights: Iterable[str]) -> User:
        """Create a user with exactly these rights on all tables of one database, those to come included."""
        user = User(f"user{next(self._names)}", secrets.token_hex(12))
        for statement in self._create_user(user, database, ", ".join(rights)):
            self.execute(database, statement)
        return user

    def execute(self, database: str, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Run one statement as the owner of everything, ``%s`` for each value; its rows, if it has any."""
        with closing(self._connect_as_root(database)) as connection, closing(connection.cursor()) as cursor:
            cursor.execute(sql, values or None)
            return list(cursor.fetchall()) if cursor.description else []

    @abstractmethod
    def db_url(self, database: str, user: User | None = None) -> str:
        """``storage.db_url`` of a database, for ``user`` or for one who may do everything."""

    # -- what differs -------------------------------------------------------------------------------------------------

    @abstractmethod
    def _account(self) -> Sequence[str]: ...

    @abstractmethod
    def _install(self) -> None: ...

    @abstractmethod
    def _command(self) -> Sequence[str]: ...

    @abstractmethod
    def _create_admin(self) -> None: ...

    @abstractmethod
    def _connect_as_root(self, database: str) -> Any: ...

    @abstractmethod
    def _create_database(self, name: str) -> Iterable[str]: ...

    @abstractmethod
    def _drop_database(self, name: str) -> str: ...

    @abstractmethod
    def _empty_table(self, table: str) -> str: ...

    @abstractmethod
    def _create_user(self, user: User, database: str, rights: str) -> Iterable[str]: ...


class MariaDB(DatabaseServer):
    """A ``mariadbd``."""

    backend = "mysql"
    unreachable = MySQLdb.OperationalError
    _ending = signal.SIGTERM

    @property
    def socket(self) -> Path:
        """The server's Unix socket."""
        return self.directory / "socket"

    @property
    def runs_as(self) -> str:
        """The user of the server's process."""
        return pwd.getpwuid(os.geteuid()).pw_name

    def db_url(self, database: str, user: User | None = None) -> str:
        name, password = user or self.admin
        return f"{name}:{password}@tcp(127.0.0.1:{self.port})/{database}?parseTime=true"

    def _account(self) -> Sequence[str]:
        return []

    def _install(self) -> None:
        self._run(
            "mariadb-install-db",
            "--no-defaults",
            f"--datadir={self.directory}/data",
            f"--tmpdir={self.directory}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            f"--user={self.runs_as}",
        )

    def _command(self) -> Sequence[str]:
        fast = [
            "--innodb-flush-log-at-trx-commit=2",
            "--innodb-flush-method=nosync",
            "--skip-innodb-doublewrite",
        ]
        return [
            _program("mariadbd"),
            "--no-defaults",
            f"--user={self.runs_as}",
            f"--datadir={self.directory}/data",
            f"--socket={self.socket}",
            f"--pid-file={self.directory}/pid",
            f"--tmpdir={self.directory}",  # a server that starts deletes what others have in a shared one
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            "--skip-name-resolve",
            "--default-time-zone=-03:30",
            "--innodb-buffer-pool-size=64M",
            *(fast if self.fast else []),
        ]

    def _create_admin(self) -> None:
        name, password = self.admin
        self.execute("", f"CREATE USER {name}@'%%' IDENTIFIED BY %s", password)
        self.execute("", f"GRANT ALL ON *.* TO {name}@'%' WITH GRANT OPTION")

    def _connect_as_root(self, database: str) -> Any:
        return MySQLdb.connect(
            unix_socket=str(self.socket), user="root", database=database, autocommit=True, charset="utf8mb4"
        )

    def _create_database(self, name: str) -> Iterable[str]:
        yield f"CREATE DATABASE {name} CHARACTER SET utf8"

    def _drop_database(self, name: str) -> str:
        return f"DROP DATABASE {name}"

    def _empty_table(self, table: str) -> str:
        return f"TRUNCATE {table}"

    def _create_user(self, user: User, database: str, rights: str) -> Iterable[str]:
        yield f"CREATE USER {user.name}@'%' IDENTIFIED BY '{user.password}'"
        yield f"GRANT {rights} ON {database}.* TO {user.name}@'%'"


class PostgreSQL(DatabaseServer):
    """A ``postgres``. It refuses to run as root: then it runs as the user that the Debian package has made."""

    backend = "postgres"
    unreachable = psycopg.OperationalError
    _ending = signal.SIGINT

    def db_url(self, database: str, user: User | None = None) -> str:
        name, password = user or self.admin
        return f"postgres://{name}:{password}@127.0.0.1:{self.port}/{database}?sslmode=disable"

    def _account(self) -> Sequence[str]:
        return ["--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []

    def _install(self) -> None:
        if self._account():
            self._give_away()
        self._run(
            _program("initdb"),
            *("-D", f"{self.directory}/data", "-U", "root", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"),
            *("--auth-local=trust", "--auth-host=scram-sha-256"),
        )

    def _give_away(self) -> None:
        postgres = pwd.getpwnam("postgres")
        os.chown(self.directory, postgres.pw_uid, postgres.pw_gid)

    def _command(self) -> Sequence[str]:
        fast = ["fsync=off", "full_page_writes=off"]
        settings = [
            "listen_addresses=127.0.0.1",
            f"unix_socket_directories={self.directory}",
            "timezone=Asia/Kathmandu",
            *(fast if self.fast else []),
        ]
        return [
            _program("postgres"),
            *("-D", f"{self.directory}/data", "-p", str(self.port)),
            *itertools.chain.from_iterable(("-c", setting) for setting in settings),
        ]

    def _create_admin(self) -> None:
        name, password = self.admin
        self.execute("", f"CREATE ROLE {name} SUPERUSER LOGIN PASSWORD '{password}'")

    def _connect_as_root(self, database: str) -> Any:
        return psycopg.connect(
            host=str(self.directory), port=self.port, user="root", dbname=database or "postgres", autocommit=True
        )

    def _create_database(self, name: str) -> Iterable[str]:
        yield f"CREATE DATABASE {name} STRATEGY = file_copy"
        yield f"REVOKE ALL ON DATABASE {name} FROM PUBLIC"

    def _drop_database(self, name: str) -> str:
        return f"DROP DATABASE {name} WITH (FORCE)"

    def _empty_table(self, table: str) -> str:
        return f"TRUNCATE {table} RESTART IDENTITY"

    def _create_user(self, user: User, database: str, rights: str) -> Iterable[str]:
        yield f"CREATE ROLE {user.name} LOGIN PASSWORD '{user.password}'"
        yield f"GRANT CONNECT ON DATABASE {database} TO {user.name}"
        for maker in ("root", self.admin.name):
            for_tables_of = f"ALTER DEFAULT PRIVILEGES FOR ROLE {maker} IN SCHEMA public"
            yield f"{for_tables_of} GRANT {rights} ON TABLES TO {user.name}"
            yield f"{for_tables_of} GRANT USAGE ON SEQUENCES TO {user.name}"
        yield f"GRANT {rights} ON ALL TABLES IN SCHEMA public TO {user.name}"
        yield f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {user.name}"  # serial columns count with these


def _has_stopped(pid: int) -> bool:
    """Whether each thread of a process is stopped, or has ended: its parent, which is stopped, does not remove it."""
    states = []
    for file in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread has ended meanwhile
            states.append(file.read_text("ascii").rpartition(")")[2].split()[0])
    return all(state in "TZX" for state in states)


def _program(name: str) -> str:
    """Where a server's program lies: Debian keeps them out of the ordinary PATH."""
    newest_first = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -int(path.parent.name))
    found = shutil.which(name, path=os.pathsep.join([os.environ["PATH"], "/usr/sbin", *map(str, newest_first)]))
    assert found, f"{name} is not installed: run etc/require-packages.sh test"
    return found
