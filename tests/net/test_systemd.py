"""The notify protocol against a real datagram socket, and sockets that are passed to a real process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from notary.net.systemd import Notifier, passed_sockets

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """The socket of a service manager, and what NOTIFY_SOCKET says of it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@notary-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(name.replace("@", "\0", 1))
        made.settimeout(10)
        yield made, name


@pytest.mark.parametrize(
    ("tell", "expected"),
    [
        pytest.param(lambda n: n.ready("Serving"), ["READY=1", "STATUS=Serving"], id="ready"),
        pytest.param(lambda n: n.alive(), ["WATCHDOG=1"], id="alive"),
        pytest.param(
            lambda n: n.starting("Waiting:\nREADY=1", 90),
            ["EXTEND_TIMEOUT_USEC=90000000", "STATUS=Waiting: READY=1"],
            id="starting",
        ),
    ],
)
def test_what_is_said(
    manager: tuple[socket.socket, str], tell: Callable[[Notifier], None], expected: list[str]
) -> None:
    listening, name = manager
    tell(Notifier({"NOTIFY_SOCKET": name}))
    assert listening.recv(4096).decode().split("\n") == expected


def test_a_reload_says_when_it_began(manager: tuple[socket.socket, str]) -> None:
    listening, name = manager
    before = time.monotonic_ns() // 1000
    Notifier({"NOTIFY_SOCKET": name}).reloading()
    first, second, _ = listening.recv(4096).decode().split("\n")
    assert first == "RELOADING=1"
    assert before <= int(second.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


def test_the_stop_is_told(manager: tuple[socket.socket, str]) -> None:
    listening, name = manager
    Notifier({"NOTIFY_SOCKET": name}).stopping()
    assert listening.recv(4096).startswith(b"STOPPING=1\nSTATUS=Stopping")


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": "/nowhere/at/all"}, {"NOTIFY_SOCKET": "relative"}])
def test_nobody_listens(environ: dict[str, str]) -> None:
    notifier = Notifier(environ)
    notifier.ready("Serving")
    notifier.stopping()


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        pytest.param({"WATCHDOG_USEC": "3000000"}, 3.0, id="anybody"),
        pytest.param({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0, id="us"),
        pytest.param({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None, id="another"),
        pytest.param({"WATCHDOG_USEC": "0"}, None, id="zero"),
        pytest.param({"WATCHDOG_USEC": "soon"}, None, id="nonsense"),
        pytest.param({}, None, id="none"),
        pytest.param({"WATCHDOG_USEC": "3000000", "NOTIFY_SOCKET": ""}, None, id="nobody-listens"),
    ],
)
def test_the_watchdog(changes: dict[str, str], seconds: float | None) -> None:
    assert Notifier({"NOTIFY_SOCKET": "/run/notify"} | changes).watchdog == seconds


# -- sockets ----------------------------------------------------------------------------------------------------------

SHOW = """
import twisted.internet.endpoints
from notary.errors import ConfigError
from notary.net.environment import first_environment
from notary.net.systemd import passed_sockets
try:
    print([each.getsockname() for each in passed_sockets(first_environment())])
except ConfigError as error:
    print(error)
"""


def told(passed: list[int], **environ: str) -> str:
    """What a process says that gets these descriptors, from 3 on."""
    plumbing = " ".join(f"{3 + place}<&{number}" for place, number in enumerate(passed))
    shell = f'LISTEN_PID=${{LISTEN_PID-$$}} exec "$0" -c "$1" {plumbing}'
    ran = subprocess.run(
        ["bash", "-c", shell, sys.executable, SHOW],
        pass_fds=passed,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "LISTEN_FDS": str(len(passed)), **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout.strip()


@pytest.fixture
def sockets(tmp_path: Path) -> Iterator[dict[str, socket.socket]]:
    made = {
        "tcp": socket.create_server(("127.0.0.1", 0)),
        "tcp6": socket.create_server(("::1", 0), family=socket.AF_INET6),
        "unix": socket.socket(socket.AF_UNIX),
        "udp": socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "bound": socket.socket(socket.AF_INET),
    }
    made["unix"].bind(str(tmp_path / "socket"))
    made["unix"].listen()
    made["bound"].bind(("127.0.0.1", 0))
    made["connected"] = socket.create_connection(made["tcp"].getsockname())
    yield made
    for each in made.values():
        each.close()


def test_listening_sockets_are_taken_in_their_order(sockets: dict[str, socket.socket]) -> None:
    chosen = [sockets[name] for name in ("unix", "tcp", "tcp6")]
    assert told([each.fileno() for each in chosen]) == str([each.getsockname() for each in chosen])


@pytest.mark.parametrize("name", ["udp", "bound", "connected"])
def test_a_socket_that_cannot_be_served_is_refused(sockets: dict[str, socket.socket], name: str) -> None:
    said = told([sockets["tcp"].fileno(), sockets[name].fileno()], LISTEN_FDNAMES="https:odd")
    assert said.startswith('LISTEN_FDS: descriptor 4 ("odd") is not a listening stream socket of TCP or of the Unix')


def test_a_file_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        assert told([file.fileno()]).startswith("LISTEN_FDS: descriptor 3 is not a socket; expected")


def test_a_descriptor_that_is_not_there(sockets: dict[str, socket.socket]) -> None:
    said = told([sockets["tcp"].fileno()], LISTEN_FDS="2")
    assert said.startswith("LISTEN_FDS: descriptor 4 cannot be used (Bad file descriptor)")


def test_sockets_of_another_process_are_left_alone(sockets: dict[str, socket.socket]) -> None:
    assert told([sockets["tcp"].fileno()], LISTEN_PID="1") == "[]"
    assert passed_sockets({}) == ()


def test_a_number_that_is_none(sockets: dict[str, socket.socket]) -> None:
    assert told([sockets["tcp"].fileno()], LISTEN_FDS="many").startswith('LISTEN_FDS: "many" is not a number')
