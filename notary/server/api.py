"""The HTTP API: ONE route table and its handlers.

Rules of this module: docs/protocol.md section 1 is its specification. A route says everything that is not its handler's
own work: who may, what may be cached, how a name that cannot exist is answered. Handlers turn a call into a use case of
:mod:`notary.server.repository` and its result into a response, and nothing more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import lru_cache, partial
from http import HTTPStatus
from math import ceil
from typing import Any, cast

from twisted.internet.defer import Deferred, DeferredSemaphore, execute
from twisted.logger import Logger
from twisted.python.failure import Failure

from notary import errors
from notary.errors import (
    InvalidGun,
    InvalidParameters,
    InvalidRole,
    MalformedUpload,
    NotaryError,
    NotFound,
    TooManyKeys,
)
from notary.net.http.bodies import peer_of
from notary.net.http.site import Call, Response, parse_multipart
from notary.observe.logs import error_id
from notary.observe.readiness import ALIVE
from notary.server.auth import Access, AccessController
from notary.server.faults import CLIENT_GONE, FAULTS, JSON_UTF8, UNKNOWN, UPDATING, Fault, detail, fault_response
from notary.server.health import Health
from notary.server.metrics import ACCEPTED, ServerMetrics
from notary.server.repository import SMALL, Repository
from notary.server.validators import InThread, Validators
from notary.storage import Change, Stored
from notary.storage.cache import SHARED
from notary.tuf import canonical
from notary.tuf.model import Gun, RoleName
from notary.tuf.publish import MAX_FILES
from notary.work.allowance import Allowance, Seldom

JSON = "application/json"

DEFAULT_RECORDS = 100
"""How many changes an answer holds when the client says 0."""

MAX_RECORDS = 10_000
"""How many changes an answer holds at the most: a client that wants more asks again with the last id."""

PAGES = 4
"""How many pages of the changefeed are made at the same time: the largest takes several megabytes while it is."""

_VERSION_DIGITS = 10
_INT32 = range(-(2**31), 2**31)


# -- routes -----------------------------------------------------------------------------------------------------------

_CATALOG = ("registry", "catalog", "*")


@dataclass(frozen=True, slots=True)
class Route:
    """One row of the table.

    ``operation`` is the label in metrics and logs. ``path`` must match the whole decoded path, or, if ``of_gun``, what
    follows ``/v2/<gun>/_trust/``. ``actions`` are the rights asked for that collection (for the catalogue where there
    is none); None asks for nothing. ``bad_prefix`` and ``bad_name`` are raised when the collection is outside the
    configured prefixes or no collection can have this name. ``broken`` answers failures that are not the client's.
    ``takes_body`` says whether the handler reads a body.
    """

    operation: str
    method: str
    path: re.Pattern[str]
    of_gun: bool
    handler: Callable[[Api, Call, Found], Deferred[Response] | Coroutine[Any, Any, Response]]
    actions: tuple[str, ...] | None = ()
    bad_prefix: type[NotaryError] = NotFound
    bad_name: type[NotaryError] = NotFound
    broken: Fault = UNKNOWN
    takes_body: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """What a path asks for: its row of the table, and what it names.

    ``name`` is the collection as it is written, None if the path has none; ``bad_name`` and ``bad_role`` say why there
    can be no such collection or role. ``names`` has the other groups of the row's pattern. ``access`` are the rights
    that its caller needs.
    """

    route: Route
    names: Mapping[str, str]
    access: Sequence[Access] = ()
    name: str | None = None
    gun: Gun | None = None
    bad_name: str = ""
    role: RoleName | None = None
    bad_role: str = ""

    def collection(self) -> Gun:
        """The collection; ``Api`` has refused what can be none."""
        if self.gun is None:
            raise NotFound(self.bad_name)
        return self.gun

    def gun_and_role(self) -> tuple[Gun, RoleName]:
        """The collection and the role. Raises NotFound if there can be no such role."""
        if self.role is None:
            raise NotFound(self.bad_role)
        return self.collection(), self.role


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """How long caches may keep an answer, in seconds; 0 forbids keeping it."""

    max_age: int
    must_revalidate: bool

    def headers(self) -> tuple[tuple[str, str], ...]:
        """The headers that say so (docs/protocol.md, section 1)."""
        if self.max_age == 0:
            return (("Cache-Control", "max-age=0, no-cache, no-store"), ("Pragma", "no-cache"))
        value = f"public, max-age={self.max_age}, s-maxage={self.max_age}"
        return (("Cache-Control", value + ", must-revalidate" if self.must_revalidate else value),)


class Api:
    """Answers calls.

    ``current`` and ``consistent`` are the policies for files that may be replaced and for those that never change;
    ``gun_prefixes`` the beginnings of the names that this server holds (none: all); ``now`` is aware, UTC.
    ``keys`` is how many new keys each peer may ask for; ``seconds`` a clock, for lines that are not written too often.
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
        now: Callable[[], datetime],
        gun_prefixes: tuple[str, ...],
        current: CachePolicy,
        consistent: CachePolicy,
        keys: Allowance,
        seconds: Callable[[], float],
        logs_info: Callable[[], bool] = lambda: True,
    ) -> None:
        self._repository = repository
        self._access = access
        self._health = health
        self._metrics = metrics
        self._in_thread = in_thread
        self._validators = validators
        self._now = now
        self._gun_prefixes = gun_prefixes
        self._current_headers = current.headers()
        self._consistent_headers = consistent.headers()
        self._keys = keys
        self._logs_info = logs_info
        self._pages = DeferredSemaphore(PAGES)
        self._log = Logger(namespace="notary.server.api")
        self._many_keys = Seldom(self._no_key, seconds)
        self._no_signer = Seldom(self._no_key, seconds)

    def takes_body(self, call: Call) -> bool:
        """Whether anything is done with the body of a call."""
        return find(call.method, call.path).route.takes_body

    def admit(self, call: Call) -> Response | None:
        """Refuse a call before its body is read, if the body cannot matter."""
        found = find(call.method, call.path)
        call.notes["operation"] = found.route.operation
        try:
            self._let_in(found, call)
        except NotaryError as error:
            return self._refuse(found.route, call, error)
        return None

    def __call__(self, call: Call) -> Response | Deferred[Response]:
        """Answer one call. Never fails with a domain error.

        Reads that can be answered from memory need no coroutine, which would cost as much as all the rest of them.
        """
        found = find(call.method, call.path)
        call.notes["operation"] = found.route.operation
        try:
            self._let_in(found, call)
            result = found.route.handler(self, call, found)
        except Exception as error:  # noqa: BLE001 - a client gets an answer whatever happens
            return self._answer_to(error, found.route, call)
        if isinstance(result, Response):
            return result
        answer = result if isinstance(result, Deferred) else Deferred.fromCoroutine(result)
        return answer.addErrback(self._handler_failed, found.route, call)

    def _handler_failed(self, failure: Failure, route: Route, call: Call) -> Response:
        return self._answer_to(cast("BaseException", failure.value), route, call, failure)

    def _answer_to(self, error: BaseException, route: Route, call: Call, failure: Failure | None = None) -> Response:
        """What is answered if a handler fails."""
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
        """The answer to a fault of the HTTP layer itself, or of this class: it is not the client's."""
        return self._unexpected(UNKNOWN, Failure(error), "none", "")

    def _unexpected(self, fault: Fault, failure: Failure, operation: str, path: str) -> Response:
        """The answer to a fault of this program: nothing but the id under which the log has it."""
        known_as = error_id()
        self._metrics.unexpected()
        self._metrics.refused(fault.code)
        self._log.failure(
            "unexpected error in operation {operation}", failure, operation=operation, path=path, error_id=known_as
        )
        return fault_response(fault, {"id": known_as})

    def _let_in(self, found: Found, call: Call) -> None:
        """Raise what stands against serving this route to this caller, whatever its body says."""
        route, name = found.route, found.name
        if name is not None:
            call.notes["gun"] = name
            if self._gun_prefixes and not name.startswith(self._gun_prefixes):
                raise route.bad_prefix(f"Require GUNs with prefix: {list(self._gun_prefixes)}")
            if found.gun is None:
                raise route.bad_name(found.bad_name)
        if route.actions is not None:
            headers = call.headers
            user = self._access.authorize(
                headers.get("authorization"), headers.get("host", ""), found.access, self._now()
            )
            if user:
                call.notes["user"] = user

    def _refuse(self, route: Route, call: Call, error: NotaryError) -> Response:
        # What Twisted throws into a coroutine refers to itself by its traceback, and so to a whole upload, until the
        # garbage collector comes by.
        error.__traceback__ = None
        fault = CLIENT_GONE if isinstance(error, errors.ClientGone) else FAULTS.get(type(error), route.broken)
        server_error = fault.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        if isinstance(error, errors.SigningUnavailable):
            self._no_signer(str(error))
        else:
            ours = server_error and not isinstance(error, errors.Overloaded)
            report = self._log.error if ours else self._log.info
            report("{code}: {error}", code=fault.code, error=str(error), operation=route.operation, path=call.path)
        if route.handler is Api.update:
            self._metrics.uploaded(fault.code, call.size)
        self._metrics.refused(fault.code)
        headers: tuple[tuple[str, str], ...] = ()
        if isinstance(error, errors.Unauthorized):
            headers = (("WWW-Authenticate", error.challenge),)
        elif isinstance(error, (errors.Overloaded, errors.SigningUnavailable, TooManyKeys)):
            headers = (("Retry-After", str(ceil(error.retry_seconds))),)
        return fault_response(fault, None if server_error else detail(error), headers)

    # -- handlers -----------------------------------------------------------------------------------------------------

    async def ping(self, _call: Call, _found: Found) -> Response:
        """Say that this is a registry-style API (clients ask before they ask for tokens)."""
        return Response(200, b"{}", (("Content-Type", JSON_UTF8),))

    async def not_found(self, _call: Call, _found: Found) -> Response:
        """Raise NotFound: every path that is not in the table."""
        raise NotFound("nothing is served at this path")

    async def update(self, call: Call, found: Found) -> Response:
        """Publish the uploaded files."""
        gun = found.collection()
        validator = self._validators.of(peer_of(call), lambda: call.gone)
        run = execute if call.size <= SMALL else validator.in_thread
        files = await run(partial(read_files, call.headers.get("content-type", ""), call.take_body()))
        timestamp = await self._repository.publish(gun, files, validator)
        self._metrics.uploaded(ACCEPTED, call.size)
        self._log.info("updated {gun} to timestamp version {version}", gun=gun, version=timestamp.version)
        return Response(200, b"", ())

    def by_hash(self, _call: Call, found: Found) -> Deferred[Response]:
        """One immutable file, by checksum."""
        stored = self._repository.by_checksum(*found.gun_and_role(), found.names["checksum"].lower())
        return stored.addCallback(_metadata, self._consistent_headers)

    def by_version(self, _call: Call, found: Found) -> Deferred[Response]:
        """One immutable file, by version."""
        stored = self._repository.by_version(*found.gun_and_role(), _version(found.names["version"]))
        return stored.addCallback(_metadata, self._consistent_headers)

    def current(self, _call: Call, found: Found) -> Deferred[Response]:
        """The file of a role that counts now."""
        return self._repository.current(*found.gun_and_role()).addCallback(_metadata, self._current_headers)

    async def get_key(self, call: Call, found: Found) -> Response:
        """The public key with which the server signs a role."""
        gun, role = found.gun_and_role()
        key = await self._repository.get_key(gun, role, partial(self._may_ask_for_key, call))
        return Response(200, canonical.dumps(key.to_json()), (("Content-Type", JSON),))

    async def rotate_key(self, call: Call, found: Found) -> Response:
        """The public key with which the server will sign a role."""
        gun, role = found.gun_and_role()
        key = await self._repository.rotate_key(gun, role, partial(self._may_ask_for_key, call))
        return Response(200, canonical.dumps(key.to_json()), (("Content-Type", JSON),))

    def _no_key(self, why: str) -> None:
        self._log.error("no key is made: {why}", why=why)

    def _may_ask_for_key(self, call: Call) -> None:
        """Count a key for its caller. Raises TooManyKeys."""
        peer = peer_of(call)
        seconds = self._keys.take(peer)
        self._metrics.asked_for_key(refused=bool(seconds))
        if seconds:
            self._many_keys(f"{peer} has asked for more keys than limits.pending_keys_per_hour allows")
            raise TooManyKeys("more new keys were asked for than one may have in an hour; try again later", seconds)

    async def delete(self, _call: Call, found: Found) -> Response:
        """Forget a collection."""
        gun = found.collection()
        if await self._repository.delete(gun):
            self._log.info("trust data deleted for {gun}", gun=gun)
        return Response(200, b"", ())

    async def changefeed(self, call: Call, found: Found) -> Response:
        """A page of the changes of one collection, or of all."""
        records = _integer(call, "records")
        change_id = _integer(call, "change_id") if call.query.get("change_id", ("",))[0] else None
        page = max(-MAX_RECORDS, min(records or DEFAULT_RECORDS, MAX_RECORDS))
        body = await self._pages.run(self._page, found.gun, change_id, page)
        return Response(200, body, (("Content-Type", JSON),))

    async def _page(self, gun: Gun | None, change_id: int | None, records: int) -> bytes:
        changes = await self._repository.changes(gun, change_id, records)
        return await self._in_thread(lambda: _changes(changes))

    async def health(self, _call: Call, _found: Found) -> Response:
        """Whether the services behind this one work."""
        failures = self._health.failures()
        return Response(503 if failures else 200, json.dumps(failures).encode(), (("Content-Type", JSON_UTF8),))

    async def alive(self, _call: Call, _found: Found) -> Response:
        """That this process answers."""
        return ALIVE

    async def ready(self, _call: Call, _found: Found) -> Response:
        """Whether requests should be sent to this process, and what it can do."""
        return self._health.readiness().response()

    async def metrics(self, _call: Call, _found: Found) -> Response:
        """The figures of this process, for Prometheus."""
        content_type, body = await self._metrics.whole()
        return Response(200, body, (("Content-Type", content_type),))


# A GUN is everything between these two, greedy; never "*". A role that is no role at all is found out by RoleName.
_BEFORE, _AFTER = "/v2/", "/_trust/"
_TAIL = 512  # characters: the longest role and the longest checksum need 400
_PATHS = 4096  # of those asked for last, it is remembered what they name: each of them has at most _TAIL characters
_ROLE = r"(?P<role>root|targets(?:/[^/\s]+)*|snapshot|timestamp)"
_SERVER_ROLE = r"(?P<role>snapshot|timestamp)"
_HEX = r"(?P<checksum>[a-fA-F0-9]{64}|[a-fA-F0-9]{96}|[a-fA-F0-9]{128})"
_PUSH, _PULL, _ALL = ("push", "pull"), ("pull",), ("*",)


def _route(operation: str, method: str, path: str, handler: Any, actions: Any, **options: Any) -> Route:
    return Route(operation, method, re.compile(path, re.ASCII), not path.startswith("/"), handler, actions, **options)


# fmt: off
ROUTES: Sequence[Route] = (
    _route("Ping", "GET", r"/v2/", Api.ping, ()),
    _route("UpdateTUF", "POST", r"tuf/", Api.update, _PUSH,
           bad_prefix=InvalidGun, bad_name=InvalidGun, broken=UPDATING, takes_body=True),
    _route("GetRoleByHash", "GET", rf"tuf/{_ROLE}\.{_HEX}\.json", Api.by_hash, _PULL),
    _route("GetRoleByVersion", "GET", rf"tuf/(?P<version>[0-9]+)\.{_ROLE}\.json", Api.by_version, _PULL),
    _route("GetRole", "GET", rf"tuf/{_ROLE}\.json", Api.current, _PULL),
    _route("GetKey", "GET", rf"tuf/{_SERVER_ROLE}\.key", Api.get_key, _PUSH, bad_name=InvalidGun),
    _route("RotateKey", "POST", rf"tuf/{_SERVER_ROLE}\.key", Api.rotate_key, _ALL, bad_name=InvalidGun),
    _route("DeleteTUF", "DELETE", r"tuf/", Api.delete, _ALL),
    _route("Changefeed", "GET", r"changefeed", Api.changefeed, _PULL),
    _route("Changefeed", "GET", r"/v2/_trust/changefeed", Api.changefeed, ()),
    _route("Health", "GET", r"/_notary_server/health", Api.health, None),
    _route("Alive", "GET", r"/livez", Api.alive, None),
    _route("Ready", "GET", r"/readyz", Api.ready, None),
    _route("Metrics", "GET", r"/metrics", Api.metrics, None),
)
# fmt: on
_NOTHING = _route("NotFound", "", r"", Api.not_found, ())


def find(method: str, path: str) -> Found:
    """The first row that fits, and what its path names. HEAD is answered wherever GET is."""
    return (_remembered if len(path) <= _TAIL else _find)("GET" if method == "HEAD" else method, path)


def _find(method: str, path: str) -> Found:
    for name, rest in _splits(path):
        for route in ROUTES:
            if route.method == method and route.of_gun is bool(name) and (match := route.path.fullmatch(rest)):
                return _found(route, name, match.groupdict())
    return Found(_NOTHING, {}, [_CATALOG])


_remembered = lru_cache(_PATHS)(_find)


def _found(route: Route, name: str, names: dict[str, str]) -> Found:
    gun, bad_name, role, bad_role = None, "", None, ""
    if name:
        try:
            gun = Gun(name)
        except InvalidGun as error:
            bad_name = str(error)
    if "role" in names:
        try:
            role = RoleName(names.pop("role"))
        except InvalidRole as error:
            bad_role = str(error)
    access = [("repository", name, action) for action in route.actions or ()] if name else [_CATALOG]
    return Found(route, names, access, name or None, gun, bad_name, role, bad_role)


def _splits(path: str) -> Iterator[tuple[str, str]]:
    """The ways to read a path: as a whole, and as a GUN and what follows it, from the longest GUN to the shortest.

    A delegation may hold ``/_trust/`` too. What follows a GUN is never longer than ``_TAIL``, which bounds the work.
    """
    yield "", path
    if not path.startswith(_BEFORE):
        return
    end = len(path)
    while (end := path.rfind(_AFTER, len(_BEFORE), end)) > len(_BEFORE) - 1 and len(path) - end <= _TAIL:
        gun = path[len(_BEFORE) : end]
        if gun and "*" not in gun:
            yield gun, path[end + len(_AFTER) :]


# -- what handlers read and write -------------------------------------------------------------------------------------


def read_files(content_type: str, blocks: Iterable[bytes]) -> list[tuple[str, bytes]]:
    """The files of an upload, in its order: their roles, as they are written, and their contents.

    The role is the raw file name of a part, less a trailing ``.json`` (docs/protocol.md, section 1). Raises
    MalformedUpload.
    """
    parts = parse_multipart(content_type, blocks)
    if len(parts) > MAX_FILES:
        raise MalformedUpload(f"the upload has {len(parts)} files; at most {MAX_FILES} are taken at once")
    return [(part.filename.removesuffix(".json"), part.data) for part in parts]


def _version(text: str) -> int:
    """A version from a path. No stored version is 0 or has more digits than a 32-bit integer."""
    digits = text.lstrip("0")
    if not 0 < len(digits) <= _VERSION_DIGITS:
        raise NotFound(f"there is no version {text[:20]}")
    return int(digits)


def _metadata(stored: Stored, cache: tuple[tuple[str, str], ...]) -> Response:
    response: Response | None = stored.notes.get(cache)
    if response is None:
        modified = format_datetime(stored.modified, usegmt=True)
        headers = (("Content-Type", JSON), ("Last-Modified", modified), *cache)
        if len(stored.data) > SHARED:  # remembered, it would keep the file that keeps it
            return Response(200, stored.data, headers, stored.sha256, keeps=stored)
        response = stored.notes[cache] = Response(200, stored.data, headers, stored.sha256)
    return response


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
    # One by one: in between, other threads go on.
    listed = ", ".join([json.dumps(record) for record in records])
    return f'{{"count": {len(changes)}, "records": [{listed}]}}'.encode()
