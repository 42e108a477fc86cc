"""Messages between two processes of one daemon over a pair of pipes: either side may request, and both answer.

Rules of this module: a message is a netstring, ``WORD NUMBER NAME``, a line end, and a body of any bytes. Answers come
in any order; each request has its own timeout. The other side is the same program: its messages are trusted, and a
message that makes no sense closes the pipe.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.protocols.basic import NetstringReceiver
from twisted.python.failure import Failure

from notary.errors import NotaryError

LARGEST_BYTES: Final = 64 << 20
"""The largest message, in bytes: a profile or all metrics take a fraction of it."""

Handler: TypeAlias = Callable[[bytes], bytes | Awaitable[bytes]]


class NoReply(NotaryError):
    """The other process did not answer, could not answer, or has ended."""


class Pipe(NetstringReceiver):
    """One side of the pipes. ``handlers`` answer requests, by name; ``on_lost`` is called when the other ends."""

    MAX_LENGTH = LARGEST_BYTES

    def __init__(self, clock: IReactorTime, handlers: dict[str, Handler], on_lost: Callable[[], object]) -> None:
        self._clock = clock
        self._handlers = handlers
        self._on_lost = on_lost
        self._numbers = itertools.count(1)
        self._requests: dict[bytes, Deferred[bytes]] = {}

    def request(self, name: str, body: bytes = b"", seconds: float = 5.0) -> Deferred[bytes]:
        """Send a request; the Deferred fails with NoReply, after ``seconds`` at the latest."""
        number = b"%d" % next(self._numbers)
        asked: Deferred[bytes] = Deferred(lambda _: self._forget(number))
        asked.addTimeout(seconds, self._clock, lambda *_: Failure(NoReply(f"no answer in {seconds:g} s")))
        self._requests[number] = asked
        self._say(b"ask", number, name, body)
        return asked

    def notify(self, name: str, body: bytes) -> None:
        """Send a message that needs no answer."""
        self._say(b"tell", b"0", name, body)

    def stringReceived(self, string: bytes) -> None:
        """Take one message."""
        head, _, body = string.partition(b"\n")
        word, number, name = head.split(b" ", 2)
        if word in (b"ask", b"tell"):
            answer: Deferred[Any] = maybeDeferred(self._answer, name.decode(), body)
            if word == b"ask":
                answer.addCallbacks(
                    lambda said: self._say(b"said", number, "", said),
                    lambda failure: self._say(b"failed", number, "", failure.getErrorMessage().encode()),
                )
            return
        asked = self._requests.pop(number, None)
        if asked is None:
            return  # nobody waits any more
        if word == b"said":
            asked.callback(body)
        else:
            asked.errback(NoReply(body.decode("utf-8", "replace")))

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002 - it is over, however
        """Fail the requests that wait for an answer."""
        while self._requests:
            self._requests.popitem()[1].errback(NoReply("the other process is gone"))
        self._on_lost()

    async def _answer(self, name: str, body: bytes) -> bytes:
        said = self._handlers[name](body)
        return said if isinstance(said, bytes) else await said

    def _forget(self, number: bytes) -> None:
        self._requests.pop(number, None)

    def _say(self, word: bytes, number: bytes, name: str, body: bytes) -> None:
        if self.transport is not None:
            self.sendString(b"%b %b %b\n%b" % (word, number, name.encode(), body))


def request_at_once(reading: int, writing: int, name: str) -> bytes:
    """Send a request over two descriptors and wait for the answer, before there is an event loop.

    It must be the first message. Raises NoReply if the other side has ended or has no such handler.
    """
    question = b"ask 0 %b\n" % name.encode()
    os.write(writing, b"%d:%b," % (len(question), question))
    size = 0
    while (digit := _read(reading, 1)) != b":":
        size = size * 10 + int(digit)
    answer = _read(reading, size + 1)[:-1]
    head, _, body = answer.partition(b"\n")
    if not head.startswith(b"said "):
        raise NoReply(body.decode("utf-8", "replace"))
    return body


def _read(descriptor: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(descriptor, size)
        if not part:
            raise NoReply("the other process is gone")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
