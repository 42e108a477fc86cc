"""Where uploads are validated: few at a time, and each client in its turn.

Rules of this module: reads never come here, so no upload can make a read wait. A client that sends many uploads delays
its own uploads, and those of each other client by one upload at a time. The number of waiting uploads is bounded;
beyond the bound, the newest upload of the client with the most waiting uploads is refused. An upload whose client has
gone is not begun.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

from twisted.internet.defer import Deferred, fail, maybeDeferred

from notary.errors import ClientGone, Overloaded
from notary.work.processes import InProcess
from notary.work.threads import InThread

P = ParamSpec("P")
T = TypeVar("T")

WAITING: Final = 64
"""How many uploads may wait for a thread, and how many for a process. Each of them takes a second at most."""

RETRY_SECONDS: Final = 5
"""Seconds after which a refused client may try again."""


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """Work that waits for its turn; ``done`` fires with its result."""

    start: Callable[[], Deferred[Any]]
    gone: Callable[[], bool]
    done: Deferred[Any]


class Turns:
    """Runs up to ``at_once`` pieces of work at a time; up to ``room`` pieces wait, in one queue for each client.

    The queues take turns.
    """

    def __init__(self, at_once: int, room: int = WAITING) -> None:
        self._free = at_once
        self._room = room
        self._lines: OrderedDict[str, deque[_Waiting]] = OrderedDict()  # none is empty; the first has the next turn

    @property
    def waiting(self) -> int:
        """How many pieces of work wait."""
        return sum(map(len, self._lines.values()))

    def run(self, client: str, gone: Callable[[], bool], start: Callable[[], Deferred[T]]) -> Deferred[T]:
        """Call ``start`` when ``client`` has its turn; return the result of its Deferred.

        Fails with Overloaded if there is no room to wait, now or later, and with ClientGone if ``gone`` returns True
        when the turn has come.
        """
        if self.waiting >= self._room:
            self._drop_gone()
        if self.waiting >= self._room and not self._make_room(client):
            return fail(_overloaded())
        entry = _Waiting(start, gone, Deferred())
        self._lines.setdefault(client, deque()).append(entry)
        self._next()
        return entry.done

    def close(self) -> None:
        """Refuse the waiting work, and all further work."""
        self._room = self._free = 0
        while self._lines:
            self._pop(next(iter(self._lines))).done.errback(_overloaded())

    def _drop_gone(self) -> None:
        for client, line in tuple(self._lines.items()):
            for entry in [entry for entry in line if entry.gone()]:
                line.remove(entry)
                entry.done.errback(_client_gone())
            if not line:
                del self._lines[client]

    def _make_room(self, client: str) -> bool:
        """Refuse the newest work of the longest queue. False if that of ``client`` would be as long."""
        longest = max(self._lines, key=lambda name: len(self._lines[name]), default=None)
        if longest is None or len(self._lines[longest]) <= len(self._lines.get(client, ())) + 1:
            return False
        self._pop(longest, newest=True).done.errback(_overloaded())
        return True

    def _pop(self, client: str, *, newest: bool = False) -> _Waiting:
        line = self._lines[client]
        entry = line.pop() if newest else line.popleft()
        if not line:
            del self._lines[client]
        return entry

    def _next(self) -> None:
        while self._free and self._lines:
            client = next(iter(self._lines))
            entry = self._pop(client)
            if client in self._lines:
                self._lines.move_to_end(client)
            if entry.gone():
                entry.done.errback(_client_gone())
                continue
            self._free -= 1
            maybeDeferred(entry.start).addBoth(self._ended, entry.done)

    def _ended(self, result: Any, done: Deferred[Any]) -> None:
        self._free += 1
        self._next()
        done.callback(result)  # of a failure, Twisted makes an errback


@dataclass(frozen=True, slots=True)
class Validator:
    """Runs the validation of one client's upload. The methods also fail as :meth:`Turns.run` does."""

    _validators: Validators
    _client: str
    _gone: Callable[[], bool]

    def in_thread(self, work: Callable[[], T], /) -> Deferred[T]:
        """Call ``work`` in a thread."""
        validators = self._validators
        return validators.threads.run(self._client, self._gone, partial(validators.in_thread, work))

    def in_process(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Call ``work`` in a process: see InProcess."""
        validators = self._validators
        start = partial(validators.in_process, work, *args, **kwargs)
        return validators.processes.run(self._client, self._gone, start)


class Validators:
    """Runs the validation of all uploads.

    ``threads`` has the turns of ``in_thread``, and ``processes`` those of ``in_process``.
    """

    def __init__(self, in_thread: InThread, threads: Turns, in_process: InProcess, processes: Turns) -> None:
        self.in_thread = in_thread
        self.threads = threads
        self.in_process = in_process
        self.processes = processes

    @property
    def waiting(self) -> int:
        """How many uploads wait."""
        return self.threads.waiting + self.processes.waiting

    def close(self) -> None:
        """Refuse all waiting uploads."""
        self.threads.close()
        self.processes.close()

    def of(self, client: str, gone: Callable[[], bool]) -> Validator:
        """Return the validator of an upload of ``client``; ``gone`` returns True when the client waits no longer."""
        return Validator(self, client, gone)


def _client_gone() -> ClientGone:
    return ClientGone("the client went away before its upload was validated")


def _overloaded() -> Overloaded:
    return Overloaded("too many uploads wait to be validated: nothing was stored, try again later", RETRY_SECONDS)
