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
from notary.daemon.workers.pipe import Handler, NoReply, Pipe, request_at_once
from notary.net.http.call import Call, Response
from notary.observe.debug import DebugServer
from notary.observe.metrics import DaemonMetrics
from notary.work.reactor import Reactor

PIPES: Final = "NOTARY_SUPERVISOR"
"""The variable that tells a worker, with commas between, the descriptor to read of the pipes to its parent, the one to
write, and how many workers there are."""

OURS: Final = "NOTARY_"
"""What the names of the daemon's own variables begin with."""


class ParentNotifier(Notifier):
    """Tells the parent what would be told to systemd."""

    def __init__(self, notify: Callable[[bytes], None]) -> None:
        super().__init__({})
        self._notify = notify

    def _send(self, *lines: str) -> None:
        self._notify("\n".join(lines).encode())


class Worker:
    """The side of a process that a parent has started: see `join_parent`.

    ``environ`` is what the parent said of it, ``count`` how many workers there are.
    """

    def __init__(self, reactor: Reactor, reading: int, writing: int, environ: Mapping[str, str], count: int) -> None:
        self.count = count
        self._handlers: dict[str, Handler] = {}
        self._calls: dict[str, Call] = {}  # of the debug server that are being answered, by their numbers
        self._pipe = Pipe(reactor, self._handlers, lambda: os.kill(os.getpid(), signal.SIGTERM))
        cast("Any", StandardIO)(self._pipe, reading, writing, reactor)  # its stub knows less than it takes
        self.surroundings: dict[str, Any] = {
            "notifier": ParentNotifier(partial(self._pipe.notify, "notify")),
            "environ": {**os.environ, **environ},
        }
        """What stands in for systemd and the environment: keyword arguments of ``make_daemon``."""

    def answer_parent(self, figures: DaemonMetrics, ready: Callable[[], Any], debug: DebugServer | None) -> None:
        """Answer the questions of the parent."""
        self._handlers["metrics"] = lambda _: figures.render_for_totals()
        self._handlers["ready"] = lambda _: _encoded(ready())
        if debug is not None:
            self._handlers["debug"] = partial(self._debug, debug)
            self._handlers["gone"] = self._gone

    def all_metrics(self) -> Deferred[bytes]:
        """Ask the parent for the metrics of all workers, in Prometheus' text form."""
        return self._pipe.request("metrics")

    async def _debug(self, server: DebugServer, asked: bytes) -> bytes:
        number, method, path, query = json.loads(asked)
        call = Call(method, path, query={name: tuple(values) for name, values in query.items()})
        self._calls[number] = call
        try:
            return await _encoded(server.answer(call))
        finally:
            del self._calls[number]

    def _gone(self, number: bytes) -> bytes:
        """Note that the client of a call of the debug server has gone."""
        call = self._calls.get(number.decode())
        if call is not None:
            call.gone = True
        return b""

    async def send_final_metrics(self, figures: DaemonMetrics) -> None:
        """Send the last metrics of this worker to the parent."""
        with suppress(NoReply):
            await self._pipe.request("figures", figures.render_for_totals(), 1.0)


def join_parent(environ: Mapping[str, str], reactor: Reactor) -> Worker | None:
    """Return the way from a worker to its parent; None for a process that is no worker.

    ``environ`` is the first environment. The call blocks until the parent has sent the daemon's own variables, before
    the event loop runs.
    """
    pipes = environ.get(PIPES)
    if pipes is None:
        return None
    os.environ.pop(PIPES, None)
    reading, writing, count = (int(number) for number in pipes.split(","))
    try:
        own = json.loads(request_at_once(reading, writing, "environment"))
    except NoReply as error:
        sys.exit(str(error))
    return Worker(reactor, reading, writing, own, count)


async def _encoded(answer: Any) -> bytes:
    response: Response = answer if isinstance(answer, Response) else await answer
    return json.dumps([response.status, response.headers]).encode() + b"\n" + response.body


def decoded(data: bytes) -> Response:
    """Read an answer that a worker wrote by :func:`_encoded`."""
    head, _, body = data.partition(b"\n")
    status, headers = json.loads(head)
    return Response(status, body, tuple((name, value) for name, value in headers))
