"""The worker's side of the pipes to its parent.

Rules of this module: a worker is an ordinary daemon that tells its parent what it would tell systemd, shows the metrics
of all workers in place of its own, and ends when its parent does.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, cast

from twisted.internet.defer import Deferred
from twisted.internet.stdio import StandardIO

from notary.daemon.systemd import Notifier
from notary.daemon.workers.pipe import Answer, Talk, Unanswered, ask_at_once
from notary.net.http.call import Call, Response
from notary.observe.debug import DebugServer
from notary.observe.metrics import DaemonMetrics
from notary.work.reactor import Reactor

PIPES: Final = "NOTARY_SUPERVISOR"
"""The variable that names a worker's pipes to its parent: the descriptor to read, a comma, the one to write."""

OURS: Final = "NOTARY_"
"""What the names of the daemon's own variables begin with."""


class _Told(Notifier):
    """Tells the parent what would be told to systemd."""

    def __init__(self, tell: Callable[[bytes], None]) -> None:
        super().__init__({})
        self._tell = tell

    def _send(self, *lines: str) -> None:
        self._tell("\n".join(lines).encode())


class Worker:
    """The side of a process that a parent has started: see `join`. ``environ`` is what the parent said of it."""

    def __init__(self, reactor: Reactor, reading: int, writing: int, environ: Mapping[str, str]) -> None:
        self._answers: dict[str, Answer] = {}
        self._calls: dict[str, Call] = {}  # of the debug server that are being answered, by their numbers
        self._talk = Talk(reactor, self._answers, lambda: os.kill(os.getpid(), signal.SIGTERM))
        cast("Any", StandardIO)(self._talk, reading, writing, reactor)  # its stub knows less than it takes
        self.surroundings: dict[str, Any] = {
            "notifier": _Told(partial(self._talk.tell, "notify")),
            "environ": {**os.environ, **environ},
        }
        """What stands in for systemd and the environment: keyword arguments of ``make_daemon``."""

    def show(self, figures: DaemonMetrics, ready: Callable[[], Any], debug: DebugServer | None) -> None:
        """Answer the questions of the parent."""
        self._answers["metrics"] = lambda _: figures.render_for_totals()
        self._answers["ready"] = lambda _: _encoded(ready())
        if debug is not None:
            self._answers["debug"] = partial(self._debug, debug)
            self._answers["gone"] = self._gone

    def all_metrics(self) -> Deferred[bytes]:
        """Ask the parent for the metrics of all workers, in Prometheus' text form."""
        return self._talk.ask("metrics")

    async def _debug(self, server: DebugServer, asked: bytes) -> bytes:
        number, method, path, query = json.loads(asked)
        call = Call(method, path, query={name: tuple(values) for name, values in query.items()})
        self._calls[number] = call
        try:
            return await _encoded(server.answer(call))
        finally:
            del self._calls[number]

    def _gone(self, number: bytes) -> bytes:
        """The client of a call of the debug server has left the parent."""
        call = self._calls.get(number.decode())
        if call is not None:
            call.gone = True
        return b""

    async def farewell(self, figures: DaemonMetrics) -> None:
        """Leave the last figures to the parent."""
        with suppress(Unanswered):
            await self._talk.ask("figures", figures.render_for_totals(), 1.0)


def join(environ: Mapping[str, str], reactor: Reactor) -> Worker | None:
    """What a worker has of its parent; None for a process that is no worker. ``environ`` is the first environment.

    Blocks until the parent has told the daemon's own variables, which is before the event loop runs.
    """
    pipes = environ.get(PIPES)
    if pipes is None:
        return None
    os.environ.pop(PIPES, None)
    reading, writing = (int(number) for number in pipes.split(","))
    try:
        own = json.loads(ask_at_once(reading, writing, "environment"))
    except Unanswered as error:
        sys.exit(str(error))
    return Worker(reactor, reading, writing, own)


async def _encoded(answer: Any) -> bytes:
    response: Response = answer if isinstance(answer, Response) else await answer
    return json.dumps([response.status, response.headers]).encode() + b"\n" + response.body


def decoded(data: bytes) -> Response:
    """Read an answer that a worker wrote by :func:`_encoded`."""
    head, _, body = data.partition(b"\n")
    status, headers = json.loads(head)
    return Response(status, body, tuple((name, value) for name, value in headers))
