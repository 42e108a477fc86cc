"""The HTTP API: ONE route table, its handlers, and ONE table from domain errors to answers.

Rules of this module: docs/protocol.md section 1 is its specification. A route says everything that is not its handler's
own work: who may, what may be cached, how a name that cannot exist is answered. Handlers turn a call into a use case of
:mod:`notary.server.repository` and its result into a response, and nothing more. Errors of 5xx give no details to the
client; the log has them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from http import HTTPStatus
from typing import Any

from twisted.logger import Logger
from twisted.python.failure import Failure

from notary import errors
from notary.errors import (
    InvalidGun,
    InvalidParameters,
    InvalidRole,
    MalformedUpload,
    NoFilename,
    NotaryError,
    NotFound,
)
from notary.net.http import Call, Response, parse_multipart
from notary.net.logs import error_id
from notary.net.readiness import ALIVE
from notary.server.auth import AccessController
from notary.server.health import Health
from notary.server.metrics import ACCEPTED, Metrics
from notary.server.repository import InThread, Repository
from notary.storage import Change, Stored
from notary.tuf import canonical
from notary.tuf.model import Gun, RoleName
from notary.tuf.publish import MAX_FILES, Upload

JSON = "application/json"
JSON_UTF8 = "application/json; charset=utf-8"

DEFAULT_RECORDS = 100
"""How many changes an answer holds when the client says 0."""

MAX_RECORDS = 10_000
"""How many changes an answer holds at the most: a client that wants more asks again with the last id."""

_VERSION_DIGITS = 10
_INT32 = range(-(2**31), 2**31)


# -- errors -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fault:
    """How one kind of error is answered."""

    status: int
    code: str
    message: str


UNKNOWN = Fault(500, "UNKNOWN", "unknown error")
TOO_LARGE = Fault(413, "TOO_LARGE", "The request is larger than this server accepts.")
UPDATING = Fault(500, "UPDATING", "An error has occurred while updating the TUF repository.")

FAULTS: Mapping[type[Exception], Fault] = {
    errors.NotFound: Fault(404, "METADATA_NOT_FOUND", "You have requested metadata that does not exist."),
    errors.NoFilename: Fault(400, "NO_FILENAME", "No file/role name provided."),
    errors.InvalidRole: Fault(400, "INVALID_ROLE", "The role you are attempting to operate on is invalid."),
    errors.MalformedJSON: Fault(400, "MALFORMED_JSON", "JSON sent by the client could not be parsed by the server"),
    errors.OldVersion: Fault(400, "VERSION", "A newer version of metadata is already available."),
    errors.InvalidUpdate: Fault(400, "INVALID_UPDATE", "Update sent by the client is invalid."),
    errors.MalformedUpload: Fault(400, "MALFORMED_UPLOAD", "The body of your request is malformed."),
    errors.InvalidGun: Fault(400, "INVALID_GUN", "The server does not support actions on images of this name."),
    errors.InvalidParameters: Fault(400, "INVALID_PARAMETERS", "The parameters provided are not valid."),
    errors.Unauthorized: Fault(401, "UNAUTHORIZED", "authentication required"),
    errors.UnsupportedAlgorithm: Fault(500, "NO_KEYALGORITHM", "The server does not have a key algorithm configured."),
}


def _detail(error: Exception) -> Any:
    """What a client learns of an error beyond its code; clients of uploads parse it."""
    if isinstance(error, errors.InvalidUpdate):
        inner = {"Msg": str(error)} | ({"Missing": error.missing} if error.missing else {})
        return {"Name": error.fault.value, "Error": inner}
    if isinstance(error, errors.Unauthorized):
        return [{"Type": kind, "Class": "", "Name": name, "Action": action} for kind, name, action in error.access]
    return str(error)


def fault_response(fault: Fault, detail: Any = None, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """The answer to a failed call: a JSON body in the form that every Notary client knows."""
    body = json.dumps({"errors": [{"code": fault.code, "message": fault.message, "detail": detail}]}).encode()
    return Response(fault.status, body, (("Content-Type", JSON_UTF8), *headers))


def edge_response(status: int, message: str) -> Response:
    """The answer to what never became a call (malformed, too large, too slow); same form, the nearest code."""
    return fault_response(TOO_LARGE if status == TOO_LARGE.status else Fault(status, "UNKNOWN", message), message)


# -- routes -----------------------------------------------------------------------------------------------------------

_CATALOG = ("registry", "catalog", "*")


@dataclass(frozen=True, slots=True)
class Route:
    """One row of the table.

    ``operation`` is the label in metrics and logs. ``path`` must match the whole decoded path, or, if ``of_gun``, what
    follows ``/v2/<gun>/_trust/``. ``actions`` are the rights asked for that collection (for the catalogue where there
    is none); None asks for nothing. ``bad_prefix`` and ``bad_name`` are raised when the collection is outside the
    configured prefixes or no collection can have this name. ``broken`` answers failures that are not the client's.
    """

    operation: str
    method: str
    path: re.Pattern[str]
    of_gun: bool
    handler: Callable[[Api, Call, Mapping[str, str]], Awaitable[Response]]
    actions: tuple[str, ...] | None = ()
    bad_prefix: type[NotaryError] = NotFound
    bad_name: type[NotaryError] = NotFound
    broken: Fault = UNKNOWN


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
    """

    def __init__(
        self,
        repository: Repository,
        access: AccessController,
        health: Health,
        metrics: Metrics,
        in_thread: InThread,
        now: Callable[[], datetime],
        gun_prefixes: tuple[str, ...],
        current: CachePolicy,
        consistent: CachePolicy,
    ) -> None:
        self._repository = repository
        self._access = access
        self._health = health
        self._metrics = metrics
        self._in_thread = in_thread
        self._now = now
        self._gun_prefixes = gun_prefixes
        self._current_headers = current.headers()
        self._consistent_headers = consistent.headers()
        self._log = Logger(namespace="notary.server.api")

    def admit(self, call: Call) -> Response | None:
        """Refuse a call before its body is read, if the body cannot matter."""
        route, names = _find(call)
        call.notes["operation"] = route.operation
        try:
            self._let_in(route, names, call)
        except NotaryError as error:
            return self._refuse(route, call, error)
        return None

    async def __call__(self, call: Call) -> Response:
        """Answer one call. Never raises a domain error."""
        route, names = _find(call)
        call.notes["operation"] = route.operation
        try:
            return await self._serve(route, names, call)
        except NotaryError as error:
            return self._refuse(route, call, error)
        except Exception:  # noqa: BLE001 - a client gets an answer whatever happens
            return self._unexpected(route.broken, Failure(), route.operation, call.path)

    def finished(self, call: Call, status: int, sent: int, seconds: float) -> None:
        """Write the log line of a request that was answered (also of one that never became a call) and count it."""
        notes = {"operation": "Malformed", **call.notes}
        self._metrics.observe_request(notes["operation"], call.method, status, seconds, len(call.body), sent)
        self._log.info(
            "{method} {path} {status}",
            method=call.method,
            path=call.path,
            status=status,
            bytes=sent,
            seconds=round(seconds, 6),
            remote=call.remote,
            **notes,
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

    async def _serve(self, route: Route, names: Mapping[str, str], call: Call) -> Response:
        self._let_in(route, names, call)
        try:
            return await route.handler(self, call, names)
        except InvalidGun as error:  # the store cannot tell the name from another one
            raise route.bad_name(str(error)) from error

    def _let_in(self, route: Route, names: Mapping[str, str], call: Call) -> None:
        """Raise what stands against serving this route to this caller, whatever its body says."""
        name = names.get("gun")
        if name is not None:
            call.notes["gun"] = name
            if self._gun_prefixes and not name.startswith(self._gun_prefixes):
                raise route.bad_prefix(f"Require GUNs with prefix: {list(self._gun_prefixes)}")
            try:
                Gun(name)
            except InvalidGun as error:
                raise route.bad_name(str(error)) from error
        if route.actions is not None:
            access = (_CATALOG,) if name is None else tuple(("repository", name, action) for action in route.actions)
            user = self._access.authorize(
                call.headers.get("authorization"), call.headers.get("host", ""), access, self._now()
            )
            if user:
                call.notes["user"] = user

    def _refuse(self, route: Route, call: Call, error: NotaryError) -> Response:
        fault = FAULTS.get(type(error), route.broken)
        server_error = fault.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        report = self._log.error if server_error else self._log.info
        report("{code}: {error}", code=fault.code, error=str(error), operation=route.operation, path=call.path)
        if route.handler is Api.update:
            self._metrics.uploaded(fault.code, len(call.body))
        self._metrics.refused(fault.code)
        headers = (("WWW-Authenticate", error.challenge),) if isinstance(error, errors.Unauthorized) else ()
        return fault_response(fault, None if server_error else _detail(error), headers)

    # -- handlers -----------------------------------------------------------------------------------------------------

    async def ping(self, _call: Call, _names: Mapping[str, str]) -> Response:
        """Say that this is a registry-style API (clients ask before they ask for tokens)."""
        return Response(200, b"{}", (("Content-Type", JSON_UTF8),))

    async def not_found(self, _call: Call, _names: Mapping[str, str]) -> Response:
        """Raise NotFound: every path that is not in the table."""
        raise NotFound("nothing is served at this path")

    async def update(self, call: Call, names: Mapping[str, str]) -> Response:
        """Publish the uploaded files."""
        gun = Gun(names["gun"])
        uploads = await self._in_thread(lambda: read_uploads(call.headers.get("content-type", ""), call.body))
        timestamp = await self._repository.publish(gun, uploads)
        self._metrics.uploaded(ACCEPTED, len(call.body))
        self._log.info("updated {gun} to timestamp version {version}", gun=gun, version=timestamp.version)
        return Response(200, b"", ())

    async def by_hash(self, _call: Call, names: Mapping[str, str]) -> Response:
        """One immutable file, by checksum."""
        gun, role = _gun_and_role(names)
        return _metadata(
            await self._repository.by_checksum(gun, role, names["checksum"].lower()), self._consistent_headers
        )

    async def by_version(self, _call: Call, names: Mapping[str, str]) -> Response:
        """One immutable file, by version."""
        gun, role = _gun_and_role(names)
        return _metadata(
            await self._repository.by_version(gun, role, _version(names["version"])), self._consistent_headers
        )

    async def current(self, _call: Call, names: Mapping[str, str]) -> Response:
        """The file of a role that counts now."""
        gun, role = _gun_and_role(names)
        return _metadata(await self._repository.current(gun, role), self._current_headers)

    async def get_key(self, _call: Call, names: Mapping[str, str]) -> Response:
        """The public key with which the server signs a role."""
        gun, role = _gun_and_role(names)
        key = await self._repository.get_key(gun, role)
        return Response(200, canonical.dumps(key.to_json()), (("Content-Type", JSON),))

    async def rotate_key(self, _call: Call, names: Mapping[str, str]) -> Response:
        """The public key with which the server will sign a role."""
        gun, role = _gun_and_role(names)
        key = await self._repository.rotate_key(gun, role)
        return Response(200, canonical.dumps(key.to_json()), (("Content-Type", JSON),))

    async def delete(self, _call: Call, names: Mapping[str, str]) -> Response:
        """Forget a collection."""
        gun = Gun(names["gun"])
        if await self._repository.delete(gun):
            self._log.info("trust data deleted for {gun}", gun=gun)
        return Response(200, b"", ())

    async def changefeed(self, call: Call, names: Mapping[str, str]) -> Response:
        """A page of the changes of one collection, or of all."""
        name = names.get("gun")
        records = _integer(call, "records")
        change_id = _integer(call, "change_id") if call.query.get("change_id", ("",))[0] else None
        page = max(-MAX_RECORDS, min(records or DEFAULT_RECORDS, MAX_RECORDS))
        changes = await self._repository.changes(Gun(name) if name else None, change_id, page)
        body = await self._in_thread(lambda: _changes(changes))
        return Response(200, body, (("Content-Type", JSON),))

    async def health(self, _call: Call, _names: Mapping[str, str]) -> Response:
        """Whether the services behind this one work."""
        failures = self._health.failures()
        return Response(503 if failures else 200, json.dumps(failures).encode(), (("Content-Type", JSON_UTF8),))

    async def alive(self, _call: Call, _names: Mapping[str, str]) -> Response:
        """That this process answers."""
        return ALIVE

    async def ready(self, _call: Call, _names: Mapping[str, str]) -> Response:
        """Whether requests should be sent to this process, and what it can do."""
        return self._health.readiness().response()

    async def metrics(self, _call: Call, _names: Mapping[str, str]) -> Response:
        """The figures of this process, for Prometheus."""
        content_type, body = self._metrics.render()
        return Response(200, body, (("Content-Type", content_type),))


# A GUN is everything between these two, greedy; never "*". A role that is no role at all is found out by RoleName.
_BEFORE, _AFTER = "/v2/", "/_trust/"
_TAIL = 512  # characters: the longest role and the longest checksum need 400
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
           bad_prefix=InvalidGun, bad_name=InvalidGun, broken=UPDATING),
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


def _find(call: Call) -> tuple[Route, Mapping[str, str]]:
    """The first row that fits, and what its path names. HEAD is answered wherever GET is."""
    method = "GET" if call.method == "HEAD" else call.method
    for gun, path in _splits(call.path):
        for route in ROUTES:
            if route.method == method and route.of_gun is bool(gun) and (match := route.path.fullmatch(path)):
                return route, match.groupdict() | ({"gun": gun} if gun else {})
    return _NOTHING, {}


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


def read_uploads(content_type: str, body: bytes) -> list[Upload]:
    """The files of an upload, in its order (docs/protocol.md, section 1).

    The role is the raw file name of a part, less a trailing ``.json``. Raises MalformedUpload, NoFilename, InvalidRole
    and MalformedJSON.
    """
    parts = parse_multipart(content_type, body)
    if len(parts) > MAX_FILES:
        raise MalformedUpload(f"the upload has {len(parts)} files; at most {MAX_FILES} are taken at once")
    uploads = []
    for part in parts:
        name = part.filename.removesuffix(".json")
        if not name:
            raise NoFilename("a part of the upload has no file name; it must be the name of a role")
        uploads.append(Upload(RoleName(name), part.data))
    return uploads


def _gun_and_role(names: Mapping[str, str]) -> tuple[Gun, RoleName]:
    try:
        return Gun(names["gun"]), RoleName(names["role"])
    except InvalidRole as error:
        raise NotFound(str(error)) from error


def _version(text: str) -> int:
    """A version from a path. No stored version is 0 or has more digits than a 32-bit integer."""
    digits = text.lstrip("0")
    if not 0 < len(digits) <= _VERSION_DIGITS:
        raise NotFound(f"there is no version {text[:20]}")
    return int(digits)


def _metadata(stored: Stored, cache: tuple[tuple[str, str], ...]) -> Response:
    modified = format_datetime(stored.modified, usegmt=True)
    headers = (("Content-Type", JSON), ("Last-Modified", modified), *cache)
    return Response(200, stored.data, headers, stored.sha256)


def _integer(call: Call, name: str) -> int:
    text = call.query.get(name, ("",))[0]
    if re.fullmatch(r"[+-]?[0-9]{1,20}", text, re.ASCII) and int(text) in _INT32:
        return int(text)
    raise InvalidParameters(f"{name} must be a whole number of 32 bits, not {text[:40]!r}")


def _changes(changes: Sequence[Change]) -> bytes:
    records = [
        {
            "ID": str(change.id),
            "CreatedAt": change.created.astimezone(UTC).isoformat().replace("+00:00", "Z"),
            "GUN": change.gun,
            "Version": change.version,
            "SHA256": change.sha256,
            "Category": change.category,
        }
        for change in changes
    ]
    return json.dumps({"count": len(records), "records": records}).encode()
