"""One request of an HTTP/1.1 client, from its head on: the body, the call of the handler, the answer.

Rules of this module: it knows of its connection what ``Client`` says. ``release`` gives back all that an exchange has
taken from the budgets, and every end of an exchange leads there.
"""

from __future__ import annotations

from typing import Final, Protocol, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from notary.net.http.application import Service
from notary.net.http.bodies import Received, peer_of
from notary.net.http.call import Call, Response, conditional

CLOSE: Final = b"Connection: close\r\n"
PIECE_BYTES: Final = 64 * 1024
"""The part of an answer's body that is written at a time."""

_TURN_BYTES: Final = 1024 * 1024  # of one answer's body, written in a turn of the reactor before others are served
_TOO_MANY_BODIES: Final = "too many bodies are being received, of this client or of all; try again later"
_TOO_MANY_ANSWERS: Final = "too many large answers are being sent, try again later"


class Client(Protocol):
    """The connection of an exchange."""

    persistent: bool
    """Whether the connection stays open after this exchange."""
    choked: bool
    """Whether the client reads more slowly than we write."""
    deadline: float | None
    """When the client must have read more."""

    def write(self, data: bytes) -> None:
        """Send ``data``."""

    def refuse(self, status: int, message: str) -> None:
        """Answer a request before it is complete, and end the connection."""

    def exchange_done(self) -> None:
        """Go on to the next request."""

    def break_off(self, error: Exception) -> None:
        """End the connection because of a fault in this program."""


class Exchange:
    """One request and its answer.

    The connection calls ``receive`` for each piece of the body, ``handle`` when the request is complete, ``resume``
    whenever the client can be sent more of a large answer, and ``lost`` when the client is gone.
    """

    def __init__(self, client: Client, service: Service, call: Call, started: float) -> None:
        self.call: Call | None = call
        self.elsewhere: Response | None = None
        """The redirection that answers the request in place of the handler, if its path is not clean."""
        self.response: Response | None = None
        self.is_writing = False
        """Whether a part of the answer has yet to be written."""
        self._client: Client | None = client
        self._service = service
        self._started = started
        self._is_handled = False  # whether the handler has the call: it will answer
        self._body: Received | None = None  # of the request; None if there is none, or it is dropped
        self._body_bytes = 0
        self._peer = ""  # the peer to which the bytes that are held count
        self._held_bytes = 0
        self._rest = b""  # the body of an answer that goes out in pieces
        self._sent_bytes = 0
        self._turn: IDelayedCall | None = None  # the timer of the next pieces

    # -- the request ---------------------------------------------------------------------------------------------------

    def keep_body(self) -> None:
        """Keep the body that is coming for the handler; else it would be dropped."""
        self._body = Received()
        self._peer = peer_of(cast("Call", self.call))

    def receive(self, data: bytes) -> None:
        """Take a piece of the body."""
        self._body_bytes += len(data)
        if self._body is None:
            return
        if self._service.bodies.take(self._peer, len(data)):
            self._held_bytes += len(data)
            self._body.write(data)
        elif self._client is not None:
            self._client.refuse(503, _TOO_MANY_BODIES)

    def handle(self) -> None:
        """Have the handler answer the request, which is complete."""
        if self.elsewhere is not None:
            self.answer(self.elsewhere)
            return
        call = cast("Call", self.call)
        if self._body is not None:
            call.body = self._body.take()
        call.size = self._body_bytes
        self.answer_with(self._service.application.handle(call))

    def answer_with(self, result: Response | Deferred[Response]) -> None:
        """Send what the handler answers, now or when it does."""
        self._is_handled = True
        if isinstance(result, Response):
            self.answer(result)
        else:
            self._service.connections.begin_work(self)
            result.addCallbacks(self._done, self._failed)

    def _done(self, result: object) -> None:
        if not isinstance(result, Response):
            fault = TypeError(f"a handler returned {type(result).__name__}, not a Response")
            result = self._service.application.failed(fault)
        client = self._client
        try:
            self.answer(result)
        except Exception as error:  # noqa: BLE001 - the last line of defence
            self.release()
            if client is not None:
                client.break_off(error)
        finally:
            self._service.connections.end_work(self)

    def _failed(self, failure: Failure) -> None:
        error = failure.value
        fault = error if isinstance(error, Exception) else RuntimeError(repr(error))
        self._done(self._service.application.failed(fault))

    # -- the answer ----------------------------------------------------------------------------------------------------

    def answer(self, response: Response) -> None:
        """Send ``response``, or its 304; if the client is gone, only log it."""
        service, client, call = self._service, self._client, cast("Call", self.call)
        self.response = response = conditional(call, response)
        if client is None:
            self._report(call, response)
            return
        body = b"" if call.method == "HEAD" else response.body
        if len(body) > PIECE_BYTES and service.answers.take(body):
            self._rest = body
        elif len(body) > PIECE_BYTES:
            self.response = response = service.application.refused(503, _TOO_MANY_ANSWERS)
            body = response.body
        if service.connections.draining:
            client.persistent = False
        first = body[:PIECE_BYTES]
        self._sent_bytes = len(first)
        client.write(b"".join((response.head, b"" if client.persistent else CLOSE, service.date(), first)))
        if len(body) > PIECE_BYTES or client.choked:
            # The exchange is not over before the client has read the most of it: a client that sends requests and does
            # not read cannot pile up answers.
            self._rest = body
            self.is_writing = True
            self.resume()
        else:
            self._finish(client, call, response)

    def resume(self) -> None:
        """Write more of a large body, as much as the client reads; then the client has a while to read more.

        A client that reads everything at once gets a part in each turn of the reactor, so that others are served too.
        """
        client = self._client
        if self._turn is not None or client is None:
            return
        end = self._sent_bytes + _TURN_BYTES
        while not client.choked:
            piece = self._rest[self._sent_bytes : self._sent_bytes + PIECE_BYTES]
            if not piece:
                self.is_writing = False
                self._finish(client, cast("Call", self.call), cast("Response", self.response))
                return
            if self._sent_bytes >= end:
                self._turn = self._service.clock.callLater(0, self._take_turn, client)
                break
            self._sent_bytes += len(piece)
            client.write(piece)
        client.deadline = self._service.seconds() + self._service.limits.write_seconds

    def _take_turn(self, client: Client) -> None:
        self._turn = None
        try:
            self.resume()
        except Exception as error:  # noqa: BLE001 - the last line of defence
            client.break_off(error)

    def _finish(self, client: Client, call: Call, response: Response) -> None:
        self._client = None
        self._report(call, response)
        client.exchange_done()

    # -- the end -------------------------------------------------------------------------------------------------------

    def lost(self) -> None:
        """The client is gone. What the handler does goes on."""
        self._client = None
        call, response = self.call, self.response
        if call is not None:
            call.gone = True
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        if call is not None and response is not None:
            self._report(call, response)  # half of an answer is one too
        elif not self._is_handled:
            self.release()

    @property
    def is_untouched(self) -> bool:
        """Whether neither the handler nor the client has heard of the request."""
        return not self._is_handled and self.response is None

    def _report(self, call: Call, response: Response) -> None:
        seconds = self._service.seconds() - self._started
        self._service.application.finished(call, response.status, self._sent_bytes, seconds)
        self.release()

    def release(self) -> None:
        """Drop the bodies: the request has been logged, or will never be complete.

        Another reference to the exchange or its call (a traceback, a cycle) must not hold megabytes until the garbage
        collector runs.
        """
        if self.call is not None:
            self.call.body = ()
        self.call = self.response = self._body = None
        rest, self._rest = self._rest, b""
        if len(rest) > PIECE_BYTES:
            self._service.answers.give_back(rest)
        if self._held_bytes:
            self._service.bodies.give_back(self._peer, self._held_bytes)
            self._held_bytes = 0
