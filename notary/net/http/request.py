"""One request of an HTTP/1.1 server: its body, its way to the handler, and the answer's way out.

Rules of this module: those of :mod:`notary.net.http.connection`, whose Connection makes the requests and may refuse
them before they are complete. What a request takes of the site's budget of bodies it gives back in ``release``,
whatever way it ends.
"""

# ruff: noqa: D102 - Twisted says what the methods mean that it calls
from __future__ import annotations

import re
from io import BytesIO
from typing import TYPE_CHECKING, Final, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer
from twisted.python.failure import Failure
from twisted.web import http
from zope.interface import implementer

from notary.net.http.bodies import Received, peer_of
from notary.net.http.call import Call, Response, conditional
from notary.net.http.chunked import ChunkedReader
from notary.net.http.fast import NO_QUERY
from notary.net.http.target import BadRequest, decode_path, parse_query, redirection, split_target

if TYPE_CHECKING:
    from notary.net.http.connection import Connection

CLOSE: Final = b"Connection: close\r\n"
PIECE: Final = 64 * 1024
"""Bytes of a body that are handed to the transport at a time."""

_HOST: Final = re.compile(r"[A-Za-z0-9\-._~!$&'()*+,;=:\[\]%]*")
_TURN: Final = 1024 * 1024  # bytes of a body that are handed to it before others have their turn
_TOO_MANY_BODIES: Final = "too many bodies are being received, of this client or of all; try again later"


@implementer(IPushProducer)
class Request(http.Request):
    """One request: collects a bounded body, has the site's handler answer it, writes the answer in one piece."""

    channel: Connection
    content: BytesIO

    def __init__(self, channel: Connection, queued: object = None) -> None:  # noqa: ARG002 - twisted.web passes it
        # twisted.web would read a multipart body itself, lose the file names and drop the connection on a bad one.
        super().__init__(channel, parsePOSTFormSubmission=False)
        self.site = channel.site
        self.started = channel.site.seconds()
        self.call: Call | None = None
        self.response: Response | None = None
        self._limit = 0  # bytes of the body
        self._size = 0  # bytes of the body that have come
        self._body = Received()
        self._kept = True  # whether the body is for the handler, or dropped
        self._peer = ""  # for whom the bytes that are held are counted
        self._held = 0
        self._called = False  # whether the handler was given the call, and so will answer it
        self._rest = b""  # a body that goes out in pieces
        self._turn: IDelayedCall | None = None  # when it goes on

    def gotLength(self, length: int | None) -> None:
        """The head is complete: decide whether its body (None: of a length that is not known yet) may come."""
        site, limits = self.site, self.site.limits
        self.content = BytesIO()  # which stays empty: twisted.web asks for its size, and closes it
        if length == 0:
            return
        self._limit = limits.body
        if length is not None and length > limits.body:
            self._refuse_size()
            return
        try:
            call, refusal = self._read_head()
        except BadRequest as refused:
            self.channel.refuse(refused.status, str(refused))
            return
        refusal = refusal or site.admit(call)
        if refusal is not None:
            self.channel.reject(refusal)
            return
        self._kept = site.takes_body(call)
        if not self._kept:
            self._limit = limits.other_body
            if length is not None and length > self._limit:
                self._refuse_size()
                return
        self._peer = peer_of(call)

    def reader(self) -> ChunkedReader:
        """What reads the body if it comes in chunks."""
        limits = self.site.limits
        return ChunkedReader(self._limit, limits.fields, limits.head)

    def handleContentChunk(self, data: bytes) -> None:
        if self.channel.deaf:  # refused in the middle of what has been read
            return
        self._size += len(data)
        if self._size > self._limit:
            self._refuse_size()
        elif self._kept:
            if self.site.bodies.take(self._peer, len(data)):
                self._held += len(data)
                self._body.write(data)
            else:
                self.channel.refuse(503, _TOO_MANY_BODIES)

    def _refuse_size(self) -> None:
        self.channel.refuse(413, f"the body is larger than {self._limit} bytes")

    def parseCookies(self) -> None:
        """Nobody here reads cookies."""

    def process(self) -> None:
        call, elsewhere = self.call, None
        if call is None:  # there was no body
            try:
                call, elsewhere = self._read_head()
            except BadRequest as refused:
                self.channel.refuse(refused.status, str(refused))
                return
        if elsewhere is not None:
            self.answer(elsewhere)
            return
        call.body = self._body.take()
        call.size = self._size
        self._called = True
        result = self.site.handle(call)
        if isinstance(result, Response):
            self.answer(result)
        else:
            self._wait_for(result)

    def _wait_for(self, deferred: Deferred[Response]) -> None:
        self.site.working.add(self)
        deferred.addCallbacks(self._done, self._failed)

    def _read_head(self) -> tuple[Call, Response | None]:
        """The call, without its body, and what sends it to the clean form of its path. Raises BadRequest."""
        origin, path, query = split_target(self.uri.decode("latin-1"))
        self.call = call = self._make_call(origin, path, query)
        location = redirection(origin, call.path, query)
        return call, None if location is None else Response(301, b"", (("Location", location),))

    def _make_call(self, origin: str, path: str, query: str) -> Call:
        headers = {
            name.decode("ascii").lower(): b", ".join(values).decode("latin-1")
            for name, values in self.requestHeaders.getAllRawHeaders()
        }
        if self.clientproto == b"HTTP/1.1" and len(self.requestHeaders.getRawHeaders(b"host", ())) != 1:
            raise BadRequest(400, "exactly one Host field is needed")
        if origin:
            headers["host"] = origin.partition("://")[2]  # RFC 9112, section 3.2.2
        if _HOST.fullmatch(headers.get("host", "")) is None:
            raise BadRequest(400, "the host is malformed")
        if headers.get("expect", "100-continue").lower() != "100-continue":
            raise BadRequest(417, "the only expectation known here is 100-continue")
        return Call(
            method=self.method.decode("ascii"),
            path="" if path == "*" else decode_path(path),
            raw_path=path.encode("latin-1"),
            query=parse_query(query[1:]) if query else NO_QUERY,
            headers=headers,
            remote=self.channel.remote,
            secure=self.channel.secure,
        )

    def _done(self, result: object) -> None:
        if not isinstance(result, Response):
            result = self.site.failed(TypeError(f"a handler returned {type(result).__name__}, not a Response"))
        channel = self.channel
        try:
            self.answer(result)
        except Exception as error:  # noqa: BLE001 - the last line of defence
            self.release()
            if channel is not None:
                channel.break_off(error)
        finally:
            self.site.worked(self)

    def _failed(self, failure: Failure) -> None:
        error = failure.value
        self._done(self.site.failed(error if isinstance(error, Exception) else RuntimeError(repr(error))))

    def answer(self, response: Response) -> None:
        """Send ``response``, or the 304 that stands for it; if the client is gone, only log it."""
        call = cast("Call", self.call)
        self.response = response = conditional(call, response)
        if self._disconnected:
            self.site.log(self)
            return
        body = b"" if call.method == "HEAD" else response.body
        if len(body) > PIECE and self.site.answers.take(body):
            self._rest = body
        elif len(body) > PIECE:
            self.response = response = self.site.refused(503, "too many large answers are being sent, try again later")
            body = response.body
        channel = self.channel
        if self.site.stopping:
            channel.persistent = False
        connection = b"" if channel.persistent else CLOSE
        first = body[:PIECE]
        self.sentLength = len(first)
        self.startedWriting = 1  # all of it: what twisted.web would do in seven steps
        channel.write(b"".join((response.head, connection, self.site.date(), first)))
        if len(body) > PIECE or channel.choked:
            # The request is not done before the client has taken the most of it: a client that sends requests and does
            # not read cannot pile up answers.
            self._rest = body
            self.registerProducer(self, True)
            self.resumeProducing()
        else:
            self.finish()

    def resumeProducing(self) -> None:
        """Write more of a large body, as much as the client takes; then it has a while to take more.

        A client that takes all at once gets a part in each turn of the reactor, so that others are served as well.
        """
        if self._turn is not None:
            return
        channel = self.channel
        end = self.sentLength + _TURN
        while not channel.choked:
            piece = self._rest[self.sentLength : self.sentLength + PIECE]
            if not piece:
                self.unregisterProducer()
                self.finish()
                return
            if self.sentLength >= end:
                self._turn = self.site.soon(self._take_turn)
                break
            self.sentLength += len(piece)
            channel.write(piece)
        channel.deadline = self.site.seconds() + self.site.limits.write_seconds

    def _take_turn(self) -> None:
        self._turn = None
        try:
            self.resumeProducing()
        except Exception as error:  # noqa: BLE001 - the last line of defence
            self.channel.break_off(error)

    def pauseProducing(self) -> None:
        """The channel knows: see ``choked``."""

    def stopProducing(self) -> None:
        """The connection is going away: ``connectionLost`` follows."""

    def connectionLost(self, reason: Failure) -> None:
        super().connectionLost(reason)
        self.producer = None  # it was the request itself
        if self.call is not None:
            self.call.gone = True
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        if self.response is not None:
            self.site.log(self)  # half of an answer is one too
        elif not self._called:
            self.release()

    @property
    def untouched(self) -> bool:
        """Whether neither the handler nor the client has heard of the request."""
        return not self._called and self.response is None

    def release(self) -> None:
        """Drop the bodies, when the request has been logged or will never be complete.

        Whoever still refers to the request or its call (a traceback, a cycle) must not hold megabytes until the
        garbage collector comes by.
        """
        if self.call is not None:
            self.call.body = ()
        self.call = self.response = None
        self._body = Received()
        self._let_go()
        self.site.bodies.give_back(self._peer, self._held)
        self._held = 0

    def _let_go(self) -> None:
        rest, self._rest = self._rest, b""
        if len(rest) > PIECE:
            self.site.answers.give_back(rest)


class PlainRequest(Request):
    """A request that the parser has not seen: complete from the beginning, and waiting for its handler."""

    queued = False
    response: Response | None = None
    _called = True
    _rest = b""
    _turn = None

    def __init__(self, channel: Connection, call: Call, started: float, waits_for: Deferred[Response]) -> None:
        # Not Request's: nothing of what it prepares for the parser and for stock resources is needed.
        self.channel = channel
        self.site = channel.site
        self.call = call
        self.started = started
        self.notifications = []
        channel.requests.append(self)
        self._wait_for(waits_for)

    def finish(self) -> None:
        if self.channel.waits_for_nothing:
            self.site.log(self)
            self.finished = 1
            self.channel.plain_done()
        else:
            super().finish()

    def release(self) -> None:
        """See Request: there was no body."""
        self.call = self.response = None
        self._let_go()
