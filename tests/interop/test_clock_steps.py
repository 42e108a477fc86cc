"""The time of day of a server and a signer jumps by 20 days, forth and back: only what has expired changes.

Rules of this module: real processes under libfaketime, which sets the time of day of a process but not its monotonic
clock, as an operator or NTP would. What a timer must do shortly is waited for; a timer that follows the time of day
would do it in 20 days.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from tests.support.peers import OUR_SERVER, Daemon, daemon, remote_signer
from tests.support.sides import Side, make_collection
from tests.support.signer import OUR_SIGNER, Pair, signer_daemon

LIBRARIES = list(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
PATIENCE_SECONDS = 60.0
TICK_SECONDS = 0.05
HEALTH = "/_notary_server/health"
IDLE_SECONDS = 3.0


class TimeOfDay:
    """The time of day of processes that were started in its ``environment``."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set("+0")
        self.environment = {
            "LD_PRELOAD": str(LIBRARIES[0]),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, difference: str) -> None:
        """Set it to the real one plus ``difference``, such as "-20d"."""
        new = self._file.with_suffix(".new")
        new.write_text(difference + "\n")
        new.replace(self._file)


@pytest.fixture
def time_of_day(tmp_path: Path) -> TimeOfDay:
    return TimeOfDay(tmp_path / "time")


@pytest.fixture
def daemons(tmp_path: Path, time_of_day: TimeOfDay) -> Iterator[tuple[Daemon, Daemon]]:
    pair = Pair.mint(tmp_path / "tls")
    storage = {"backend": "sqlite3", "db_url": "keys.db", "default_alias": "alias_one"}
    passphrase = {"NOTARY_SIGNER_ALIAS_ONE": "correct-horse-battery-staple"}
    environment = time_of_day.environment
    signer = signer_daemon("signer", OUR_SIGNER, pair, tmp_path, storage, environment=environment | passphrase)
    ca, client = pair.authority.write(pair.folder, "root"), pair.client.write(pair.folder, "client")
    extra = remote_signer(signer.port, ca, client) | {"limits": {"idle_timeout": IDLE_SECONDS}}
    kept = {"backend": "sqlite3", "db_url": "notary.db"}
    server = daemon("server", OUR_SERVER, tmp_path, storage=kept, extra=extra, environment=environment, level="info")
    with signer, server:
        yield signer, server


class Idle(Protocol):
    """A client that says nothing after its first request."""

    def __init__(self) -> None:
        self.closed: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.transport.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.closed.callback(None)


async def until(reactor: Any, condition: Callable[[], Awaitable[bool]]) -> None:
    ends = reactor.seconds() + PATIENCE_SECONDS
    while not await condition():
        assert reactor.seconds() < ends, "it never came to that"
        await deferLater(reactor, TICK_SECONDS)


@pytest.mark.parametrize("steps", [("-20d",), ("+20d", "+0", "-20d", "+0")], ids=["back", "forth-and-back"])
@pytest_twisted.ensureDeferred
async def test_a_jump_changes_nothing_but_what_has_expired(
    reactor: Any, daemons: tuple[Daemon, Daemon], time_of_day: TimeOfDay, steps: tuple[str, ...]
) -> None:
    signer, server = daemons
    async with Side(server, reactor) as side:
        collection = await make_collection(side, server_snapshot=True)
        for step in steps:
            before = reactor.seconds()
            time_of_day.set(step)
            # The connection to the signer lives on, with all its budgets and deadlines.
            for _ in range(3):
                assert (await collection.publish()).status == 200
            await collection.verify()
            # Health is checked every few seconds, and idle connections end.
            idle = await connectProtocol(HostnameEndpoint(reactor, b"localhost", server.port), Idle())
            await idle.closed.addTimeout(PATIENCE_SECONDS, reactor)
            assert reactor.seconds() - before >= IDLE_SECONDS, "the jump itself ended the connection"
        assert "gRPC connection" not in server.output()
        assert "ends the connection" not in server.output()
        signer.kill()
        await until(reactor, lambda: _is(side, 503))
        time_of_day.set("+0")  # else certificates are not valid yet
        signer.ensure()
        await until(reactor, lambda: _is(side, 200))
        assert (await collection.publish()).status == 200


async def _is(side: Side, status: int) -> bool:
    return (await side.get(HEALTH)).status == status
