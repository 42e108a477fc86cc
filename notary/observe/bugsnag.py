"""Reports of unexpected errors to Bugsnag, or to what speaks its protocol.

Rules of this module: a report says which kind of error it was, where it happened, and the id under which the log and
the client's answer name it. It never holds the error's text, arguments, source lines or anything of a request: those
may be secret, and the log has what an operator may see. Reports are made and sent in a thread; there are never more
than ``MAX_WAITING`` of them, and none is waited for longer than ``SEND_SECONDS``. A report that cannot be sent is lost,
and the log says so.
"""

from __future__ import annotations

import importlib
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
from pathlib import Path
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from notary.errors import ConfigError
from notary.work.reactor import Reactor

MAX_WAITING: Final = 32
"""How many reports may wait to be sent; further reports are dropped."""

SEND_SECONDS: Final = 10.0
"""How long the receiver may take for one report."""

LAST_SECONDS: Final = 3.0
"""How long a stopping daemon goes on beginning to send what still waits."""

_CAUSES: Final = 16


class Bugsnag(Protocol):
    """The section ``reporting.bugsnag`` of a configuration; nothing is reported if ``api_key`` is empty."""

    @property
    def api_key(self) -> str:
        """API key of the Bugsnag project."""

    @property
    def release_stage(self) -> str:
        """The release stage that reports carry."""

    @property
    def endpoint(self) -> str:
        """The URL that reports are sent to; "" for Bugsnag's own."""


class Reporter:
    """Sends reports as ``settings`` say; ``program`` and ``version`` are what they are about.

    Raises ConfigError if the package for it is missing or the endpoint is no URL.
    """

    def __init__(self, settings: Bugsnag, program: str, version: str, reactor: Reactor) -> None:
        self._log = Logger(namespace="notary.observe.bugsnag")
        self._reactor = reactor
        self._pool = ThreadPool(0, 1)
        self._waiting = 0
        self._last: float | None = None
        self._started = False
        self._client = self._make_client(settings, program, version) if settings.api_key else None

    @staticmethod
    def _make_client(settings: Bugsnag, program: str, version: str) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # webob, which it needs, imports a module of old
                bugsnag: Any = importlib.import_module("bugsnag")
        except ImportError as error:
            raise ConfigError(
                "reporting.bugsnag.api_key: given, but the Python module bugsnag is missing; install "
                "notary-service[bugsnag], or remove the key"
            ) from error
        parts = urllib.parse.urlsplit(settings.endpoint)
        if settings.endpoint and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise ConfigError("reporting.bugsnag.endpoint: not a URL; expected https://HOST/ or http://HOST/")
        return bugsnag.Client(
            install_sys_hook=False,
            api_key=str(settings.api_key),
            endpoint=settings.endpoint or "https://notify.bugsnag.com/",
            session_endpoint=settings.endpoint or "https://sessions.bugsnag.com/",
            auto_capture_sessions=False,
            auto_notify=False,
            send_code=False,
            send_environment=False,
            max_breadcrumbs=0,
            release_stage=settings.release_stage or "production",
            app_type=program,
            app_version=version,
            project_root=str(Path(__file__).resolve().parents[2]),
            delivery=_Delivery(),
        )

    def report(self, error_id: str, failure: Failure, operation: str) -> None:
        """Send a report, soon. May be called in any thread; never raises."""
        if self._client is not None:
            self._reactor.callFromThread(self._report, error_id, failure, operation, failure.getTracebackObject())

    def _report(self, error_id: str, failure: Failure, operation: str, places: Any) -> None:
        if self._last is not None:
            return
        if self._waiting >= MAX_WAITING:
            self._log.warn(
                "error {error_id} is not reported: {count} reports wait", error_id=error_id, count=MAX_WAITING
            )
            return
        if not self._started:
            self._started = True
            self._pool.start()
        self._waiting += 1
        sending = deferToThreadPool(
            self._reactor, self._pool, self._send, error_id, _bare(failure.value), places, operation
        )
        sending.addCallbacks(self._sent, self._not_sent, errbackArgs=(error_id,))

    def stop(self) -> Deferred[None]:
        """Send what waits, for a short while, then end the thread."""
        self._last = time.monotonic() + LAST_SECONDS
        if not self._started:
            return succeed(None)
        self._started = False
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), self._pool.stop)

    def _send(self, error_id: str, error: BaseException, places: Any, operation: str) -> None:
        if self._last is not None and time.monotonic() > self._last:
            raise TimeoutError("the daemon stops")
        client: Any = self._client
        client.notify_exc_info(
            type(error),
            error,
            places,
            severity="error",
            unhandled=True,
            severity_reason={"type": "unhandledException"},
            context=operation,
            metadata={"error": {"id": error_id}},
        )
        failed, client.configuration.delivery.failed = client.configuration.delivery.failed, None
        if failed is not None:
            raise failed

    def _sent(self, _: None) -> None:
        self._waiting -= 1

    def _not_sent(self, failure: Failure, error_id: str) -> None:
        self._waiting -= 1
        error = failure.value
        # Not `failure`: what is logged as one is reported.
        self._log.warn(
            "error {error_id} could not be reported: {error}",
            error_id=error_id,
            error=f"{type(error).__name__}: {error}",
        )


class _Delivery:
    """How the bugsnag package sends: its own way has no time-out and makes a thread a report."""

    failed: Exception | None = None

    def deliver(self, config: Any, payload: str, options: Any) -> None:
        """Send a payload now; what goes wrong is kept, since the package would swallow it."""
        options["post_delivery_callback"]()  # the package counts what is under way
        headers = {
            "Content-Type": "application/json",
            "Bugsnag-Api-Key": config.api_key,
            "Bugsnag-Payload-Version": "4.0",
            "Bugsnag-Sent-At": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        request = urllib.request.Request(config.endpoint, payload.encode("utf-8", "replace"), headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=SEND_SECONDS):  # noqa: S310 - the scheme was checked
                pass
        except urllib.error.HTTPError as error:
            error.close()  # it is the answer, too
            self.failed = error
        except (OSError, ValueError) as error:
            self.failed = error

    def deliver_sessions(self, config: Any, payload: str, options: Any = None) -> None:
        """Nothing: we have no sessions."""


def _bare(error: BaseException | None, depth: int = _CAUSES) -> BaseException:
    """An exception of the same name, place and causes, without anything that it says."""
    kind = type(error)
    made: BaseException = type(
        kind.__name__, (Exception,), {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    )()
    made.__traceback__ = None if error is None else error.__traceback__
    made.__suppress_context__ = True
    if error is not None and error.__cause__ is not None and depth:
        made.__cause__ = _bare(error.__cause__, depth - 1)
    return made
