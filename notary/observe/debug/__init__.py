"""The debug server: profiles that ``go tool pprof`` reads, variables, figures and health, for one operator at a time.

Rules of this package: every process that reaches the port is served, so the port is on loopback unless its
configuration says twice that it is not. A web page in the operator's browser reaches the port too, which is why
:mod:`notary.observe.debug.guard` looks at each request. The server changes nothing, and costs nothing while nobody
asks. What takes time runs in threads of its own, and ends when its client has gone. Profiles name functions and places;
no value of the program is ever shown. Paths are those of Go's ``net/http/pprof`` and ``expvar``, so that what people
know works: docs/debugging.md.
"""

from __future__ import annotations

import gc
import html
import json
import math
import os
import resource
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.task import LoopingCall
from twisted.internet.threads import blockingCallFromThread
from twisted.logger import Logger
from twisted.python.failure import Failure

from notary.net import listen
from notary.net.http.connection import HttpConnection
from notary.net.http.site import Call, HttpLimits, Response, Site
from notary.observe.debug.cpu import cpu_profile
from notary.observe.debug.guard import refusal
from notary.observe.debug.heap import heap_profile, object_profile
from notary.observe.debug.profile import Profile
from notary.observe.debug.tasks import task_profile, thread_profile
from notary.work.lifecycle import Assembly
from notary.work.reactor import Clock, Reactor

MAX_SECONDS: Final = 600.0
"""The longest that a profile of processor time may take."""

MAX_HEAP_SECONDS: Final = 60.0
"""The longest that allocations may be watched: each of them is slower meanwhile."""

PROFILE_SECONDS: Final = 30.0
"""How long processor time is watched if the request does not say; Go's default."""

HEAP_SECONDS: Final = 10.0
"""How long allocations are watched if the request does not say."""

Page: TypeAlias = Callable[[], Response | Awaitable[Response]]
"""Answers one path."""

_TEXT: Final = (("Content-Type", "text/plain; charset=utf-8"), ("X-Content-Type-Options", "nosniff"))
_JSON: Final = (("Content-Type", "application/json; charset=utf-8"),)
_STOP_SECONDS: Final = 1.0
_CLIENT_POLL_SECONDS: Final = 0.25  # between two checks whether the client of a profile is still connected
_PROFILES: Final = {
    "profile": "processor time by function; `seconds=` says how long to watch, 30 by default",
    "heap": "memory that is allocated within `seconds=` (10 by default) and still in use at their end",
    "objects": "what is in memory now, by type",
    "tasks": "every pending Deferred and coroutine",
    "goroutine": "the same, by the name that Go's tools ask for",
    "threads": "every thread",
    "cmdline": "the command line, its parts separated by NUL",
}


def until_gone(clock: Clock, call: Call, leave: Callable[[], object]) -> Callable[[], None]:
    """Call ``leave`` once when the client of ``call`` has gone; return what ends the watch."""

    def look() -> None:
        if call.gone:
            looking.stop()
            leave()

    def end() -> None:
        if looking.running:
            looking.stop()

    looking = LoopingCall(look)
    looking.clock = clock
    looking.start(_CLIENT_POLL_SECONDS)
    return end


class _Connection(HttpConnection):
    """A client of the debug server."""

    def readConnectionLost(self) -> None:
        """The client sends no more: it has gone, for nothing else tells a client that has closed its connection."""
        self.transport.loseConnection()


class _Site(Site):
    connection_type = _Connection


class DebugServer(Assembly):
    """Serves the debug pages on one address.

    ``pages`` are further paths (``/metrics``, ``/readyz``) with what answers them; ``counters`` gives what
    ``/debug/vars`` shows of the daemon's own figures; ``elsewhere`` may answer paths that are not known here. Without a
    ``host`` it listens nowhere, and is there for calls of ``answer``. Starting fails with CannotListenError.
    """

    def __init__(
        self,
        reactor: Reactor,
        host: str | None,
        port: int,
        pages: Mapping[str, Page],
        counters: Callable[[], Mapping[str, float]],
        elsewhere: Callable[[Call], Awaitable[Response] | None] = lambda _: None,
    ) -> None:
        super().__init__(reactor, 2)  # one that takes long, one that does not
        self._host, self._port = host, port
        self._elsewhere = elsewhere
        self._counters = counters
        self._log = Logger(namespace="notary.observe.debug")
        self._stop_profile = threading.Event()  # of the profile that is being taken
        self._local = True
        self._until: float | None = None
        self.port = 0
        in_main = partial(blockingCallFromThread, reactor)
        self._pages: dict[str, Callable[[Call], Response | Awaitable[Response]]] = {
            "/": lambda _: Response(302, b"", (("Location", "/debug/pprof/"),)),
            "/debug/pprof": lambda _: Response(301, b"", (("Location", "/debug/pprof/"),)),
            "/debug/pprof/": lambda _: _index([*pages, "/debug/vars"]),
            "/debug/pprof/cmdline": lambda _: Response(200, "\0".join(sys.argv).encode("utf-8", "replace"), _TEXT),
            "/debug/pprof/profile": partial(self._profile, partial(cpu_profile, in_main), PROFILE_SECONDS, MAX_SECONDS),
            "/debug/pprof/heap": partial(self._profile, heap_profile, HEAP_SECONDS, MAX_HEAP_SECONDS),
            "/debug/pprof/objects": partial(self._look, object_profile),
            "/debug/pprof/tasks": partial(self._look, partial(task_profile, self._forget)),
            "/debug/pprof/goroutine": partial(self._look, partial(task_profile, self._forget)),
            "/debug/pprof/threads": partial(self._look, thread_profile),
            "/debug/vars": lambda _: self._variables(),
        }
        for path, page in pages.items():
            self._pages[path] = lambda _, page=page: page()  # type: ignore[misc]

    async def assemble(self) -> None:
        """Listen, if it is to."""
        if self._host is not None:
            await self._listen(self._host)
        self.at_end(self._end_profile)

    async def _listen(self, host: str) -> None:
        site = _Site(
            self._serve,
            self.reactor,
            edge_error=_refusal,
            on_error=self._failed,
            on_finish=lambda *_: None,
            limits=HttpLimits(body=0, other_body=0),
        )
        self.at_end(lambda: site.stop(_STOP_SECONDS))
        listening = await listen.listen(self.reactor, host, self._port, site)
        self.at_end(listening.stopListening)
        bound = cast("IPv4Address | IPv6Address", listening.getHost())
        self.port = bound.port
        self._local = ip_address(bound.host).is_loopback
        say = self._log.info if self._local else self._log.warn
        say(
            "The debug server listens on {host}:{port}, for every client that can reach it",
            host=bound.host,
            port=bound.port,
        )

    async def _serve(self, call: Call) -> Response:
        why = refusal(call.headers, local=self._local)
        return await self.answer(call) if why is None else _refusal(403, why)

    async def answer(self, call: Call) -> Response:
        """What the server answers to a request that may be answered."""
        page = self._pages.get(call.path)
        if call.method not in ("GET", "HEAD"):
            return _refusal(405, "only GET is understood here")
        if page is None:
            other = self._elsewhere(call)
            if other is not None:
                return await other
            return _refusal(404, "there is nothing here; /debug/pprof/ lists what there is")
        answer = page(call)
        return answer if isinstance(answer, Response) else await answer

    def _failed(self, error: Exception) -> Response:
        self._log.failure("a debug page broke", Failure(error))
        return _refusal(500, f"this page broke ({type(error).__name__}); the log says why")

    # -- profiles -----------------------------------------------------------------------------------------------------

    async def _profile(
        self, take: Callable[[float, threading.Event], Profile], default: float, most: float, call: Call
    ) -> Response:
        """A profile that takes its time. One at a time: two would measure each other."""
        seconds = _seconds(call, default, most)
        if seconds is None:
            return _refusal(400, f"seconds must be a number above 0, at most {most:.0f}")
        if self._until is not None:
            until = datetime.fromtimestamp(math.ceil(self._until), UTC).isoformat()
            return _refusal(409, f"another profile is being taken until {until}; ask again after that")
        if not self.running:
            return _refusal(503, "the daemon is stopping")
        self._until = time.time() + seconds
        self._stop_profile = stop = threading.Event()
        end_watch = until_gone(self.reactor, call, stop.set)
        try:
            return await self.in_thread(lambda: _shown(take(seconds, stop), call))
        finally:
            end_watch()
            self._until = None

    def _end_profile(self) -> None:
        self._stop_profile.set()

    async def _look(self, take: Callable[[], Profile], call: Call) -> Response:
        return await self.in_thread(lambda: _shown(take(), call))

    def _forget(self, found: list[Any]) -> None:
        # In the reactor's thread: what nobody else holds any more ends here, and may run code of its own then.
        self.reactor.callFromThread(found.clear)

    # -- variables ----------------------------------------------------------------------------------------------------

    def _variables(self) -> Response:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        resident, virtual = _memory()
        variables = {
            "cmdline": sys.argv,
            "memstats": {
                "Alloc": resident,
                "Sys": virtual,
                "Peak": usage.ru_maxrss * 1024,
                "HeapObjects": sys.getallocatedblocks(),
                "NumGC": sum(generation["collections"] for generation in gc.get_stats()),
            },
            "cpu": {"user": usage.ru_utime, "system": usage.ru_stime},
            "threads": threading.active_count(),
            "counters": dict(self._counters()),
        }
        return Response(200, json.dumps(variables, indent=1).encode(), _JSON)


def _memory() -> tuple[int, int]:
    """Bytes that the process has in memory, and that it has mapped."""
    with open("/proc/self/statm", "rb") as figures:  # noqa: PTH123 - of the kernel; no disk is asked
        virtual, resident = figures.read().split()[:2]
    page = os.sysconf("SC_PAGE_SIZE")
    return int(resident) * page, int(virtual) * page


def _seconds(call: Call, default: float, most: float) -> float | None:
    text = call.query.get("seconds", ("",))[0]
    try:
        seconds = float(text) if text else default
    except ValueError:
        return None
    return seconds if 0 < seconds <= most else None


def _shown(profile: Profile, call: Call) -> Response:
    if call.query.get("debug", ("0",))[0] not in ("", "0"):
        return Response(200, profile.text().encode("utf-8", "replace"), _TEXT)
    name = call.path.rpartition("/")[2]
    headers = (("Content-Type", "application/octet-stream"), ("Content-Disposition", f'attachment; filename="{name}"'))
    return Response(200, profile.encode(), headers)


def _refusal(status: int, message: str) -> Response:
    """An error, in a form whose text ``go tool pprof`` shows."""
    return Response(status, f"{message}\n".encode(), (*_TEXT, ("X-Go-Pprof", "1")))


_PAGES: Final = {
    "/metrics": "figures for Prometheus: requests, errors, times, connections",
    "/livez": "whether the process runs; 200 as long as it does",
    "/readyz": "whether the daemon can serve now, and if not, why",
    "/debug/vars": "memory, processor time, threads and counters of the process, as JSON",
}
"""What is on the pages that are no profiles."""

_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;width:100%}td,th{padding:.4rem .8rem;text-align:left;vertical-align:top;"
    "border-bottom:1px solid #ddd}code{background:#f3f3f3;padding:0 .25rem}"
)


def _index(others: list[str]) -> Response:
    """The page that leads to all others, for a person."""
    program = html.escape(Path(sys.argv[0]).name or "this daemon")
    profiles = "".join(
        f'<tr><td><a href="{name}?debug=1">{name}</a></td><td>{_marked_up(meaning)}</td></tr>'
        for name, meaning in _PROFILES.items()
    )
    pages = "".join(
        f'<tr><td><a href="{path}">{path}</a></td><td>{_marked_up(_PAGES.get(path, ""))}</td></tr>' for path in others
    )
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Inside {program}</title><style>{_STYLE}</style>'
        f"<h1>Inside {program}</h1><p>What this process is doing, for its operator. No page changes anything.</p>"
        f"<h2>State</h2><table><tr><th>Page<th>What it shows</tr>{pages}</table>"
        "<h2>Profiles</h2><p>The links show text. Without <code>?debug=1</code>, each is a file for "
        "<code>go tool pprof</code>. A profile that watches for some time answers after that time.</p>"
        f"<table><tr><th>Profile<th>What it shows</tr>{profiles}</table></html>\n"
    )
    return Response(200, page.encode(), (("Content-Type", "text/html; charset=utf-8"),))


def _marked_up(text: str) -> str:
    """Return a text of the tables above as HTML; every second part between backticks is code."""
    parts = html.escape(text).split("`")
    return "".join(f"<code>{part}</code>" if number % 2 else part for number, part in enumerate(parts))
