"""What all connections of a site share: the application behind it, its limits, its budgets, the time.

Rules of this module: what the application raises is contained here, so a connection need not expect it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from notary.net.connections import Connections
from notary.net.http.answers import AnswerBudget
from notary.net.http.bodies import BodyBudget
from notary.net.http.call import Admit, Call, EdgeError, Handler, OnError, OnFinish, Response, TakesBody
from notary.net.http.limits import HttpLimits

_log = Logger(namespace="notary.net.http.site")


class Application:
    """The functions of an application, as :class:`notary.net.http.site.Site` describes them; they may fail."""

    def __init__(
        self,
        handler: Handler,
        *,
        edge_error: EdgeError,
        on_error: OnError,
        on_finish: OnFinish,
        admit: Admit,
        takes_body: TakesBody,
    ) -> None:
        self.handler = handler
        self.edge_error = edge_error
        self.on_error = on_error
        self.on_finish = on_finish
        self.takes_body = takes_body
        self._admit = admit

    def admit(self, call: Call) -> Response | None:
        """Return what the application refuses a call with, whose body has not been read; None if it admits it."""
        try:
            return self._admit(call)
        except Exception as error:  # noqa: BLE001 - the application's table decides
            return self.failed(error)

    def handle(self, call: Call) -> Response | Deferred[Response]:
        """Return the answer of the application's handler to a call."""
        try:
            result = self.handler(call)
            if isinstance(result, Response):
                return result
            deferred = result if isinstance(result, Deferred) else ensureDeferred(result)
            if deferred.called and isinstance(deferred.result, Response):
                return deferred.result
        except Exception as error:  # noqa: BLE001 - the application's table decides
            return self.failed(error)
        return deferred

    def refused(self, status: int, message: str) -> Response:
        """Return the application's wording of an answer of the HTTP layer."""
        try:
            return self.edge_error(status, message)
        except Exception:  # noqa: BLE001 - an answer is owed all the same
            _log.failure("edge_error raised")
            return Response(status)

    def failed(self, error: Exception) -> Response:
        """Return the application's answer to an exception of its handler, or of the HTTP layer, and have it logged."""
        try:
            return self.on_error(error)
        except Exception:  # noqa: BLE001 - an answer is owed all the same
            _log.failure("on_error raised")
            return self.refused(500, "internal error")

    def finished(self, call: Call, status: int, sent_bytes: int, seconds: float) -> None:
        """Report a request."""
        try:
            self.on_finish(call, status, sent_bytes, seconds)
        except Exception:  # noqa: BLE001 - the request is answered; a log that fails must not break the next
            _log.failure("on_finish raised")


class DateField:
    """The Date field of an answer, and the end of its head; encoded once a second.

    ``seconds`` returns the time of day, in seconds since the epoch.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._second = -1
        self._encoded = b""

    def __call__(self) -> bytes:
        """Return the field for this second."""
        second = int(self._seconds())
        if second != self._second:
            self._second = second
            self._encoded = f"Date: {formatdate(second, usegmt=True)}\r\n\r\n".encode("ascii")
        return self._encoded


@dataclass(frozen=True, slots=True)
class Service:
    """What a site gives to each of its connections."""

    application: Application
    limits: HttpLimits
    clock: IReactorTime
    seconds: Callable[[], float]
    connections: Connections
    bodies: BodyBudget
    answers: AnswerBudget
    date: DateField
