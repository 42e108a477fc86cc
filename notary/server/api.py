"""The HTTP API: ONE route table and its handlers.

Rules of this module: docs/protocol.md section 1 is its specification. A route says everything besides the work of its
handler: which rights are needed, and how a name that cannot exist is answered. A handler calls one use case of
:mod:`notary.server.repository` and turns the result into a response.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from math import ceil
from typing import Any, TypeAlias, cast

from twisted.internet.defer import Deferred, DeferredSemaphore, execute
from twisted.logger import Logger
from twisted.python.failure import Failure

from notary import errors
from notary.errors import (
    InvalidGun,
    InvalidParameters,
    MalformedUpload,
    NotaryError,
    NotFound,
    ReadOnly,
    TooManyKeys,
)
from notary.net.http.bodies import peer_of
from notary.net.http.site import Call, Response, parse_multipart
from notary.observe.logs import error_id
from notary.observe.readiness import ALIVE
from notary.server.auth import AccessController
from notary.server.caching import JSON, Answers, CachePolicy
from notary.server.faults import CLIENT_GONE, FAULTS, JSON_UTF8, UNKNOWN, UPDATING, HttpFault, detail, fault_response
from notary.server.health import Health
from notary.server.metrics import ACCEPTED, ServerMetrics
from notary.server.page import PAGE, wants_html
from notary.server.repository import SMALL_BYTES, Repository
from notary.server.routes import CHECKSUM, ROLE, SERVER_ROLE, VERSION, Match, Route, Router
from notary.server.validators import Validators
from notary.storage import Change
from notary.tuf import canonical
from notary.tuf.model import Gun
from notary.tuf.publish import MAX_FILES
from notary.work.allowance import Allowance
from notary.work.repeats import Seldom
from notary.work.threads import InThread

DEFAULT_RECORDS = 100
"""How many changes an answer holds if the client asks for 0."""

MAX_RECORDS = 10_000
"""The most changes that an answer holds. A client asks for further changes with the last id."""

PAGES = 4
"""How many pages of the changefeed are made at the same time: making the largest takes several megabytes."""

_VERSION_DIGITS = 10
_INT32 = range(-(2**31), 2**31)

Handler: TypeAlias = "Callable[[Api, Call, Match[object]], Deferred[Response] | Coroutine[Any, Any, Response]]"
"""Answers the calls of one route."""


class Api:
    """Answers calls.

    ``current`` is the cache policy of files that may be replaced, ``consistent`` that of files that never change.
    ``gun_prefixes`` are the prefixes of the collections that this server holds; without any, it holds all.
    ``time_of_day`` returns seconds since the epoch. ``keys`` limits how many new keys each peer asks for. ``seconds``
    is the clock that limits how often some lines are logged. With ``read_only``, requests that would write are refused.
    ``logs_info`` says whether lines of level info are written at present: making one takes as long as a cached answer.
    """

    def __init__(
        self,
        repository: Repository,
        access: AccessController,
        health: Health,
        metrics: ServerMetrics,
        in_thread: InThread,
        validators: Validators,
        time_of_day: Callable[[], float],
        gun_prefixes: tuple[str, ...],
        current: CachePolicy,
        consistent: CachePolicy,
        keys: Allowance,
        seconds: Callable[[], float],
        logs_info: Callable[[], bool] = lambda: True,
        *,
        read_only: bool = False,
    ) -> None:
        self._read_only = read_only
        self._repository = repository
        self._access = access
        self._health = health
        self._metrics = metrics
        self._in_thread = in_thread
        self._validators = validators
        self._time_of_day = time_of_day
        self._gun_prefixes = gun_prefixes
        self._answers = Answers(time_of_day, in_thread)
        self._current = current
        self._consistent = consistent
        self._keys = keys
        self._logs_info = logs_info
        self._pages = DeferredSemaphore(PAGES)
        self._log = Logger(namespace="notary.server.api")
        self._many_keys = Seldom(self._no_key, seconds)
        self._no_signer = Seldom(self._no_key, seconds)

    def takes_body(self, call: Call) -> bool:
        """Return whether a handler reads the body of ``call``."""
        return _find(call).route.takes_body

    def admit(self, call: Call) -> Response | None:
        """Refuse a call before its body is read, if it would be refused for any body."""
        match = _find(call)
        call.notes["operation"] = match.route.operation
        try:
            self._let_in(match, call)
        except NotaryError as error:
            return self._refuse(match.route, call, error)
        return None

    def __call__(self, call: Call) -> Response | Deferred[Response]:
        """Answer one call. Never fails with a domain error.

        Reads that can be answered from memory need no coroutine, which would cost as much as all the rest of them.
        """
        match = _find(call)
        call.notes["operation"] = match.route.operation
        try:
            self._let_in(match, call)
            result = match.route.handler(self, call, match)
        except Exception as error:  # noqa: BLE001 - the client gets an answer to every error
            return self._answer_to(error, match.route, call)
        if isinstance(result, Response):
            return result
        answer = result if isinstance(result, Deferred) else Deferred.fromCoroutine(result)
        return answer.addErrback(self._handler_failed, match.route, call)

    def _handler_failed(self, failure: Failure, route: Route[object], call: Call) -> Response:
        return self._answer_to(cast("BaseException", failure.value), route, call, failure)

    def _answer_to(
        self, error: BaseException, route: Route[object], call: Call, failure: Failure | None = None
    ) -> Response:
        """Return the answer to the failure of a handler."""
        if isinstance(error, InvalidGun) and not isinstance(error, route.bad_name):
            error = route.bad_name(str(error))  # the store cannot tell the name from another one
        if isinstance(error, NotaryError):
            return self._refuse(route, call, error)
        return self._unexpected(route.broken, failure or Failure(error), route.operation, call.path)

    def finished(self, call: Call, status: int, sent: int, seconds: float) -> None:
        """Write the log line of a request that was answered (also of one that never became a call) and count it."""
        operation = call.notes.get("operation", "Malformed")
        self._metrics.observe_request(operation, call.method, status, seconds, call.size, sent)
        if not self._logs_info():
            return
        self._log.info(
            "{method} {path} {status}",
            method=call.method,
            path=call.path,
            status=status,
            bytes=sent,
            seconds=round(seconds, 6),
            remote=call.remote,
            **{"operation": operation, **call.notes},
        )

    def failed(self, error: Exception) -> Response:
        """Return the answer to a bug in the HTTP layer or in this class."""
        return self._unexpected(UNKNOWN, Failure(error), "none", "")

    def _unexpected(self, fault: HttpFault, failure: Failure, operation: str, path: str) -> Response:
        """Log a bug, and return the answer, which shows only the id of the log entry."""
        known_as = error_id()
        self._metrics.unexpected()
        self._metrics.refused(fault.code)
        self._log.failure(
            "unexpected error in operation {operation}", failure, operation=operation, path=path, error_id=known_as
        )
        return fault_response(fault, {"id": known_as})

    def _let_in(self, match: Match[object], call: Call) -> None:
        """Raise the error for which the call is refused with any body; note collection and user for the log."""
        route, name = match.route, match.name
        if route.writes and self._read_only:
            # Refused before any rights are checked: a client need not get a token first.
            raise ReadOnly("this server is read-only: send changes to the server whose collections it serves")
        if name is not None:
            call.notes["gun"] = name
            if self._gun_prefixes and not name.startswith(self._gun_prefixes):
                raise route.bad_prefix(f"Require GUNs with prefix: {list(self._gun_prefixes)}")
            if match.gun is None and not route.any_name:
                raise route.bad_name(match.bad_name)
        if route.actions is not None:
            headers = call.headers
            now = datetime.fromtimestamp(self._time_of_day(), UTC)
            user = self._access.authorize(headers.get("authorization"), headers.get("host", ""), match.access, now)
            if user:
                call.notes["user"] = user

    def _refuse(self, route: Route[object], call: Call, error: NotaryError) -> Response:
        # An error that Twisted throws into a coroutine is part of a reference cycle through its traceback, which would
        # keep a whole upload until the next garbage collection.
        error.__traceback__ = None
        fault = CLIENT_GONE if isinstance(error, errors.ClientGone) else FAULTS.get(type(error), route.broken)
        server_error = fault.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        if isinstance(error, errors.SigningUnavailable):
            self._no_signer(str(error))
        else:
            ours = server_error and not isinstance(error, errors.Overloaded)
            report = self._log.error if ours else self._log.info
            report("{code}: {error}", code=fault.code, error=str(error), operation=route.operation, path=call.path)
        if route.counts_upload:
            self._metrics.uploaded(fault.code, call.size)
        self._metrics.refused(fault.code)
        headers: tuple[tuple[str, str], ...] = ()
        if isinstance(error, errors.Unauthorized):
            headers = (("WWW-Authenticate", error.challenge),)
        elif isinstance(error, ReadOnly):
            headers = (("Allow", "" if _ROUTER.find("GET", call.path).route.writes else "GET, HEAD"),)
        elif isinstance(error, (errors.Overloaded, errors.SigningUnavailable, TooManyKeys)):
            headers = (("Retry-After", str(ceil(error.retry_seconds))),)
        return fault_response(fault, None if server_error else detail(error), headers)

    # -- handlers -----------------------------------------------------------------------------------------------------

    async def ping(self, _call: Call, _match: Match[object]) -> Response:
        """Answer the request by which clients find out whether they need a token."""
        return Response(200, b"{}", (("Content-Type", JSON_UTF8),))

    async def options(self, _call: Call, match: Match[object]) -> Response:
        """Say which methods the path has."""
        return Response(200, b"", (("Allow", match.names["allow"]),))

    async def page(self, _call: Call, _match: Match[object]) -> Response:
        """Serve the page for a person who opens the server in a browser."""
        return PAGE

    async def not_found(self, _call: Call, _match: Match[object]) -> Response:
        """Raise NotFound, for each path that is not in the table."""
        raise NotFound("nothing is served at this path")

    async def update(self, call: Call, match: Match[object]) -> Response:
        """Publish the uploaded files."""
        gun = match.collection()
        validator = self._validators.of(peer_of(call), lambda: call.gone)
        run = execute if call.size <= SMALL_BYTES else validator.in_thread
        files = await run(partial(read_files, call.headers.get("content-type", ""), call.take_body()))
        timestamp = await self._repository.publish(gun, files, validator)
        self._metrics.uploaded(ACCEPTED, call.size)
        self._log.info("updated {gun} to timestamp version {version}", gun=gun, version=timestamp.version)
        return Response(200, b"", ())

    def by_hash(self, _call: Call, match: Match[object]) -> Deferred[Response]:
        """Serve one immutable file, by checksum."""
        stored = self._repository.by_checksum(*match.gun_and_role(), match.names["checksum"].lower())
        return stored.addCallback(self._answers.answer, self._consistent)

    def by_version(self, _call: Call, match: Match[object]) -> Deferred[Response]:
        """Serve one immutable file, by version."""
        stored = self._repository.by_version(*match.gun_and_role(), _version(match.names["version"]))
        return stored.addCallback(self._answers.answer, self._consistent)

    def current(self, _call: Call, match: Match[object]) -> Deferred[Response]:
        """Serve the current file of a role."""
        return self._repository.current(*match.gun_and_role()).addCallback(self._answers.answer, self._current)

    async def get_key(self, call: Call, match: Match[object]) -> Response:
        """Serve the public key with which the server signs a role."""
        gun, role = match.gun_and_role()
        key = await self._repository.get_key(gun, role, partial(self._may_ask_for_key, call))
        return Response(200, canonical.dumps(key.to_json()), (("Content-Type", JSON),))

    async def rotate_key(self, call: Call, match: Match[object]) -> Response:
        """Serve the public key with which the server will sign a role."""
        gun, role = match.gun_and_role()
        key = await self._repository.rotate_key(gun, role, partial(self._may_ask_for_key, call))
        return Response(200, canonical.dumps(key.to_json()), (("Content-Type", JSON),))

    def _no_key(self, why: str) -> None:
        self._log.error("no key is made: {why}", why=why)

    def _may_ask_for_key(self, call: Call) -> None:
        """Count a new key for the peer of ``call``. Raises TooManyKeys."""
        peer = peer_of(call)
        seconds = self._keys.take(peer)
        self._metrics.asked_for_key(refused=bool(seconds))
        if seconds:
            self._many_keys(f"{peer} has asked for more keys than limits.pending_keys_per_hour allows")
            raise TooManyKeys("more new keys were asked for than one may have in an hour; try again later", seconds)

    async def delete(self, _call: Call, match: Match[object]) -> Response:
        """Delete a collection. One whose name cannot exist is not there, like any other that is not there."""
        gun = match.gun
        if gun is not None and await self._repository.delete(gun):
            self._log.info("trust data deleted for {gun}", gun=gun)
        return Response(200, b"", ())

    async def changefeed(self, call: Call, match: Match[object]) -> Response:
        """Serve a page of the changes of one collection, or of all."""
        records = _integer(call, "records")
        change_id = _integer(call, "change_id") if call.query.get("change_id", ("",))[0] else None
        page = max(-MAX_RECORDS, min(records or DEFAULT_RECORDS, MAX_RECORDS))
        if match.name is not None and match.gun is None:  # such a collection cannot have changed
            body = _changes([])
        else:
            body = await self._pages.run(self._page, match.gun, change_id, page)
        return Response(200, body, (("Content-Type", JSON),))

    async def _page(self, gun: Gun | None, change_id: int | None, records: int) -> bytes:
        changes = await self._repository.changes(gun, change_id, records)
        return await self._in_thread(lambda: _changes(changes))

    async def health(self, _call: Call, _match: Match[object]) -> Response:
        """Serve the failures of the database and the signing service."""
        failures = self._health.failures()
        return Response(503 if failures else 200, json.dumps(failures).encode(), (("Content-Type", JSON_UTF8),))

    async def alive(self, _call: Call, _match: Match[object]) -> Response:
        """Answer that this process runs."""
        return ALIVE

    async def ready(self, _call: Call, _match: Match[object]) -> Response:
        """Serve whether this process is ready for requests, and what it can do."""
        return self._health.readiness().response()

    async def metrics(self, _call: Call, _match: Match[object]) -> Response:
        """Serve the metrics of this process, for Prometheus."""
        content_type, body = await self._metrics.whole()
        return Response(200, body, (("Content-Type", content_type),))


_PUSH, _PULL, _ALL = ("push", "pull"), ("pull",), ("*",)

# fmt: off
ROUTES: Sequence[Route[Handler]] = (
    Route("Ping", "GET", r"/v2/", Api.ping),
    Route("UpdateTUF", "POST", r"tuf/", Api.update, _PUSH,
          bad_prefix=InvalidGun, bad_name=InvalidGun, broken=UPDATING, takes_body=True, counts_upload=True,
          writes=True),
    Route("GetRoleByHash", "GET", rf"tuf/{ROLE}\.{CHECKSUM}\.json", Api.by_hash, _PULL),
    Route("GetRoleByVersion", "GET", rf"tuf/{VERSION}\.{ROLE}\.json", Api.by_version, _PULL),
    Route("GetRole", "GET", rf"tuf/{ROLE}\.json", Api.current, _PULL),
    Route("GetKey", "GET", rf"tuf/{SERVER_ROLE}\.key", Api.get_key, _PUSH, bad_name=InvalidGun, writes=True),
    Route("RotateKey", "POST", rf"tuf/{SERVER_ROLE}\.key", Api.rotate_key, _ALL, bad_name=InvalidGun, writes=True),
    Route("DeleteTUF", "DELETE", r"tuf/", Api.delete, _ALL, any_name=True, writes=True),
    Route("Changefeed", "GET", r"changefeed", Api.changefeed, _PULL, any_name=True),
    Route("Changefeed", "GET", r"/v2/_trust/changefeed", Api.changefeed),
    Route("Health", "GET", r"/_notary_server/health", Api.health, None),
    Route("Alive", "GET", r"/livez", Api.alive, None),
    Route("Ready", "GET", r"/readyz", Api.ready, None),
    Route("Metrics", "GET", r"/metrics", Api.metrics, None),
    Route("Page", "GET", r"/", Api.page, None, for_browsers=True),
)
# fmt: on
_ROUTER = Router(
    ROUTES,
    options=Route("Options", "OPTIONS", r"/", Api.options, None),
    otherwise=Route("NotFound", "", r"/", Api.not_found),
)


def _find(call: Call) -> Match[Handler]:
    """Return the row of a call, and what the path of the call names."""
    match = _ROUTER.find(call.method, call.path)
    if match.route.for_browsers and not wants_html(call.headers.get("accept", "")):
        return _ROUTER.nothing
    return match


# -- what handlers read and write -------------------------------------------------------------------------------------


def read_files(content_type: str, blocks: Iterable[bytes]) -> list[tuple[str, bytes]]:
    """Return the files of an upload, in their order: the name of each role, as the client wrote it, and the content.

    The role is the raw file name of a part, less a trailing ``.json`` (docs/protocol.md, section 1). Raises
    MalformedUpload.
    """
    parts = parse_multipart(content_type, blocks)
    if len(parts) > MAX_FILES:
        raise MalformedUpload(f"the upload has {len(parts)} files; at most {MAX_FILES} are taken at once")
    return [(part.filename.removesuffix(".json"), part.data) for part in parts]


def _version(text: str) -> int:
    """Return a version from a path. Raises NotFound for 0, and for more digits than a 32-bit integer has."""
    digits = text.lstrip("0")
    if not 0 < len(digits) <= _VERSION_DIGITS:
        raise NotFound(f"there is no version {text[:20]}")
    return int(digits)


def _integer(call: Call, name: str) -> int:
    text = call.query.get(name, ("",))[0]
    if re.fullmatch(r"[+-]?[0-9]{1,20}", text, re.ASCII) and int(text) in _INT32:
        return int(text)
    raise InvalidParameters(f"{name} must be a whole number of 32 bits, not {text[:40]!r}")


def _changes(changes: Sequence[Change]) -> bytes:
    records = (
        {
            "ID": str(change.id),
            "CreatedAt": change.created.astimezone(UTC).isoformat().replace("+00:00", "Z"),
            "GUN": change.gun,
            "Version": change.version,
            "SHA256": change.sha256,
            "Category": change.category,
        }
        for change in changes
    )
    # Each record is serialised on its own, so that other threads run in between.
    listed = ", ".join([json.dumps(record) for record in records])
    return f'{{"count": {len(changes)}, "records": [{listed}]}}'.encode()
