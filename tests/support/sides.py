"""The two sides of the differential tests: a server, a client of it, collections on it, and what an answer says.

Rules of this module: both servers get the same requests, made by the same recipe; keys that a server holds differ, so
metadata is authored for each side. Nothing here imports the package under test. An :class:`Answer` keeps the whole
response; its ``brief`` is what two servers must agree on.
"""

from __future__ import annotations

import base64
import copy
import itertools
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import quote

from treq.client import HTTPClient
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.ssl import Certificate, trustRootFromCertificates
from twisted.python.failure import Failure
from twisted.web.client import (
    Agent,
    BrowserLikePolicyForHTTPS,
    HTTPConnectionPool,
    RequestTransmissionFailed,
    ResponseFailed,
)

from tests.support.author import Author, Damage, Edit, Key, make_key, server_key_from
from tests.support.newcomer import BASE_ROLES, verify_collection
from tests.support.peers import Daemon
from tests.support.uploads import Upload

BOUNDARY = "----interop-boundary"
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"
REQUEST_SECONDS = 30
PREFIX = "example.com/"
"""Every collection of the tests has a name under this."""

_numbers = itertools.count(1)


# -- answers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """One response. ``status`` 0 means that the server closed the connection without one."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def errors(self) -> list[dict[str, Any]]:
        """The list of errors in the body, if it is the body of an error; else nothing."""
        try:
            value = json.loads(self.body)
        except ValueError:
            return []
        return value["errors"] if isinstance(value, dict) and "errors" in value else []

    @property
    def brief(self) -> str:
        """Status, then code and validation error of an error, or what a body of success holds."""
        if not self.status:
            return "dropped"
        words = [str(self.status)]
        for error in self.errors:
            words.append(error["code"])
            detail = error.get("detail")
            if error["code"] == "INVALID_UPDATE" and isinstance(detail, dict):
                words += [detail["Name"], *([detail["Error"]["Missing"]] if "Missing" in detail["Error"] else [])]
        if self.body and not self.errors:
            words.append(_summary(self.body))
        return " ".join(words)

    def __str__(self) -> str:
        return f"{self.brief}: {self.body[:500].decode(errors='replace')}"


def _summary(body: bytes) -> str:
    """What a body of success holds, without what differs between two honest servers."""
    try:
        value = json.loads(body)
    except ValueError:
        return "text"
    if value == {}:
        return "{}"
    if "signed" in value:
        return f"{value['signed']['_type']} {value['signed']['version']}"
    if "keytype" in value:
        assert value["keyval"]["private"] is None, "a private key came out of the server"
        return f"{value['keytype']} key"
    if "records" in value:
        records = value["records"] or []
        assert value["count"] == len(records), value
        ids = [int(record["ID"]) for record in records]
        assert ids == sorted(ids), f"not oldest to newest: {ids}"
        return " ".join(["changes", *(f"{one['Category']}:{one['Version']}" for one in records)])
    return "json"


# -- requests ---------------------------------------------------------------------------------------------------------


def part(filename: str, data: bytes, headers: str | None = None) -> bytes:
    """One part of an upload, as the Go client writes it; ``headers`` (with CR LF between) replaces the usual ones."""
    if headers is None:
        headers = (
            f'Content-Disposition: form-data; name="files"; filename="{filename}"\r\n'
            "Content-Type: application/octet-stream"
        )
    return b"--%b\r\n%b\r\n\r\n%b\r\n" % (BOUNDARY.encode(), headers.encode(), data)


def form(*parts: bytes) -> bytes:
    """The body of an upload."""
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def form_of(files: Upload) -> bytes:
    """The body of an upload of ``files``."""
    pairs = files.items() if isinstance(files, Mapping) else files
    return form(*(part(role, data) for role, data in pairs))


class _Collector(Protocol):
    """Sends one request as it is, and keeps all that comes back until the server closes."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.received = bytearray()
        self.closed: Deferred[bytes] = Deferred()

    def connectionMade(self) -> None:
        self.transport.write(self.request)

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.closed.called:
            self.closed.callback(bytes(self.received))


def parse_response(data: bytes) -> Answer:
    """The first response in ``data`` that is not an interim one."""
    if not data:
        return Answer(0)
    head, _, rest = data.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    status = int(status_line.split(" ")[1])
    if status == 100:
        return parse_response(rest)
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") != "chunked":
        return Answer(status, headers, rest)
    body = bytearray()
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return Answer(status, headers, bytes(body))


class Side:
    """One server under test, and a client of it; leaving it closes the client's idle connections."""

    def __init__(self, daemon: Daemon, reactor: Any) -> None:
        self.daemon = daemon
        self.reactor = reactor
        self.pool = HTTPConnectionPool(reactor)
        trusted = (
            None if daemon.tls is None else trustRootFromCertificates([Certificate.loadPEM(daemon.tls.ca.read_bytes())])
        )
        self._client = HTTPClient(Agent(reactor, BrowserLikePolicyForHTTPS(trusted), pool=self.pool))

    @property
    def name(self) -> str:
        return self.daemon.name

    async def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request by treq. ``path`` goes out as it is, so it must be escaped already."""
        try:
            response = await self._client.request(
                method,
                self.daemon.url + path,
                data=body,
                headers=dict(headers or {}),
                allow_redirects=False,
                timeout=REQUEST_SECONDS,
            )
            content = await response.content()
        except (ResponseFailed, RequestTransmissionFailed, ConnectionDone, ConnectionLost):
            return Answer(0)
        received = {
            name.decode().lower(): b", ".join(values).decode() for name, values in response.headers.getAllRawHeaders()
        }
        return Answer(response.code, received, content)

    async def get(self, path: str) -> Answer:
        """GET by treq."""
        return await self.request("GET", path)

    async def raw(self, method: str, target: bytes, body: bytes = b"", headers: Sequence[str] = ()) -> Answer:
        """A request whose target and headers go out as they are, on a connection of its own."""
        head = [f"Host: localhost:{self.daemon.port}", "Connection: close", *headers]
        lines = b"\r\n".join([b"%b %b HTTP/1.1" % (method.encode(), target), *(line.encode() for line in head)])
        collector = _Collector(lines + b"\r\n\r\n" + body)
        await connectProtocol(HostnameEndpoint(self.reactor, b"localhost", self.daemon.port), collector)
        return parse_response(await collector.closed.addTimeout(REQUEST_SECONDS, self.reactor))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.pool.closeCachedConnections()


# -- collections ------------------------------------------------------------------------------------------------------


def clone(author: Author) -> Author:
    """An author who can change without changing this one."""
    copied = copy.copy(author)
    copied.roles = {name: _cloned_role(role) for name, role in author.roles.items()}
    copied.delegations = {name: _cloned_role(role) for name, role in author.delegations.items()}
    copied.contents = {name: dict(files) for name, files in author.contents.items()}
    copied.versions, copied.lifetimes = dict(author.versions), dict(author.lifetimes)
    copied.retired, copied.stored = list(author.retired), dict(author.stored)
    return copied


def _cloned_role(role: Any) -> Any:
    copied = copy.copy(role)
    copied.keys = list(role.keys)
    return copied


class Collection:
    """One collection on one side.

    ``author`` is as it was when the server took an upload last; its ``stored`` holds what the server took. ``first``
    makes an author for a collection that does not exist.
    """

    def __init__(self, side: Side, gun: str, first: Callable[[], Author]) -> None:
        self.side = side
        self.gun = gun
        self.first = first
        self.author = first()

    @property
    def published(self) -> bool:
        """Whether the server took anything yet."""
        return bool(self.author.stored)

    @property
    def quoted(self) -> str:
        """The name as it goes into a path."""
        return quote(self.gun, safe="/:*")

    def path(self, rest: str = "") -> str:
        """The path of something in this collection."""
        return f"/v2/{self.quoted}/_trust/tuf/{rest}"

    async def key(self, role: str, method: str = "GET") -> Key:
        """The server's key for ``role``; POST asks for a new one."""
        answer = await self.side.request(method, self.path(f"{role}.key"))
        assert answer.status == 200, f"{self.side.name}: {answer}"
        return server_key_from(answer.body)

    def make(
        self,
        author: Author,
        *roles: str,
        victim: str = "",
        edit: Edit | None = None,
        signers: Sequence[Key] | None = None,
        damage: Damage | None = None,
    ) -> dict[str, bytes]:
        """The next files of ``roles``, and a snapshot that fits if the author holds its key.

        One of them, ``victim`` (else the first), is made with ``edit`` and ``signers`` and then damaged; a snapshot
        that is not the victim lists the damaged file.
        """
        roles = (*roles, *(["snapshot"] if author.holds_snapshot and "snapshot" not in roles else []))
        victim = victim or roles[0]
        author.bump(*(role for role in roles if role in author.stored))
        made: dict[str, bytes] = {}
        for role in roles:
            how = {"edit": edit, "signers": signers} if role == victim else {}
            if role == "root":
                made[role] = author.root(**how)
            elif role == "snapshot":
                made[role] = author.snapshot({**author.stored, **made}, **how)
            else:
                made[role] = author.targets(role, **how)
            if role == victim and damage is not None:
                made[role] = damage(made[role])
        return made

    async def push(self, author: Author, *roles: str, omit: Sequence[str] = (), **how: Any) -> Answer:
        """Upload what :meth:`make` makes, less ``omit``."""
        files = self.make(author, *roles, **how)
        return await self.upload({role: data for role, data in files.items() if role not in omit}, author)

    async def upload(self, files: Upload, author: Author) -> Answer:
        """Upload ``files``. If the server takes them, ``author`` becomes the author of this collection."""
        return await self.send(form_of(files), files, author)

    async def send(
        self, body: bytes, files: Upload = (), author: Author | None = None, content_type: str = MULTIPART
    ) -> Answer:
        """POST a body to the upload path; ``files`` is what it holds if the server takes it.

        AssertionError if the server refuses it and serves another timestamp than before.
        """
        timestamp = await self.side.get(self.path("timestamp.json"))
        headers = {"Content-Type": content_type} if content_type else {}
        answer = await self.side.request("POST", self.path(), body, headers)
        if answer.status == 200:
            self.took(files, author)
        else:
            self.side.daemon.ensure()
            after = await self.side.get(self.path("timestamp.json"))
            assert after.body == timestamp.body, f"{self.side.name}: {answer}, and the collection changed: {after}"
        return answer

    def took(self, files: Upload, author: Author | None = None) -> None:
        """Remember that the server took ``files``."""
        self.author = clone(author or self.author)
        self.author.stored |= {role: data for role, data in dict(files).items() if role != "timestamp"}

    async def publish(self) -> Answer:
        """An upload that is good after any other."""
        if not self.published:
            author = self.first()
            return await self.upload(author.first(), author)
        author = clone(self.author)
        author.add("afterwards", b"content")
        return await self.push(author, "targets")

    async def current(self) -> dict[str, bytes]:
        """What the server serves now: the base roles that exist, and every delegation that the snapshot lists."""
        served: dict[str, bytes] = {}
        for role in BASE_ROLES:
            answer = await self.side.get(self.path(f"{role}.json"))
            assert answer.status in (200, 404), f"{self.side.name} {role}: {answer}"
            if answer.status == 200:
                served[role] = answer.body
        if "snapshot" in served:
            for role in sorted(json.loads(served["snapshot"])["signed"]["meta"].keys() - set(BASE_ROLES)):
                answer = await self.side.get(self.path(f"{role}.json"))
                if answer.status == 200:
                    served[role] = answer.body
        return served

    async def verify(self) -> None:
        """Read every role as a client would; AssertionError unless all are there, fit together and are well signed."""
        served = await self.current()
        assert served.keys() >= set(BASE_ROLES), f"{self.side.name}: only {sorted(served)} can be read"
        for role, data in self.author.stored.items():
            assert served[role] == data or role == "snapshot", f"{self.side.name}: {role} is not what was uploaded"
        verify_collection(served)
        for role in served.keys() & json.loads(served["snapshot"])["signed"]["meta"].keys():
            meta = json.loads(served["snapshot"])["signed"]["meta"][role]
            digest = base64.b64decode(meta["hashes"]["sha256"]).hex()
            answer = await self.side.get(self.path(f"{role}.{digest}.json"))
            assert answer.body == served[role], f"{self.side.name}: {role} by its hash: {answer}"


async def make_collection(
    side: Side, *, published: bool = True, server_snapshot: bool = False, gun: str = "", root: Key | None = None
) -> Collection:
    """A new collection; ``published`` with a delegation ``targets/releases`` and a first version of everything.

    ``gun`` and ``root`` stand in for a name and a root key of its own.
    """
    gun = gun or f"{PREFIX}app{next(_numbers):05}x"
    path = f"/v2/{quote(gun, safe='/:*')}/_trust/tuf"
    keys = {}
    for role in ("timestamp", *(["snapshot"] if server_snapshot else [])):
        answer = await side.get(f"{path}/{role}.key")
        assert answer.status == 200, f"{side.name}: {role} key of {gun}: {answer}\n{side.daemon.output()[-2000:]}"
        keys[role] = server_key_from(answer.body)
    collection = Collection(side, gun, lambda: Author(gun, root=root, **keys))
    if published:
        author = clone(collection.author)
        author.add("v1", b"content of v1")
        author.delegate("targets/releases", make_key())
        author.add("rel1", b"content of rel1", "targets/releases")
        answer = await collection.upload(author.first(), author)
        assert answer.status == 200, f"{side.name}: first publish of {gun}: {answer}\n{side.daemon.output()[-2000:]}"
    return collection


# -- cases ------------------------------------------------------------------------------------------------------------

Recipe = Callable[[Collection, Author], Awaitable[Answer]]


@dataclass(frozen=True)
class Case:
    """One thing to do to both servers.

    ``reference`` is what the Go server answers (``Answer.brief``), and what ours must answer, unless ``own`` says
    otherwise; then ``row`` quotes the sentence of the protocol that it rests on. ``published`` and ``server_snapshot``
    describe the collection that the case gets. ``reserialised``: the Go server takes the upload and promises hashes of
    its own form of the files, so nothing can be verified there. ``incoherent``: the upload is taken though clients
    cannot follow it, so the files are not verified.
    """

    name: str
    recipe: Recipe
    reference: str
    own: str = ""
    row: str = ""
    published: bool = True
    server_snapshot: bool = False
    reserialised: bool = False
    incoherent: bool = False

    def __post_init__(self) -> None:
        assert bool(self.own) == bool(self.row), f"{self.name}: an answer of our own needs the row it rests on"
        assert self.own != self.reference, f"{self.name}: this is no exception"

    @property
    def expected(self) -> str:
        """What our server must answer."""
        return self.own or self.reference


class Table(list[Case]):
    """Cases under names of their own; ``options`` are what all have, unless one says otherwise."""

    def __init__(self, cases: Iterable[Case] = (), **options: Any) -> None:
        super().__init__(cases)
        self.options = options

    def case(self, name: str, recipe: Recipe, reference: str, **options: Any) -> None:
        """Put a case into the table."""
        assert name not in {one.name for one in self}, name
        self.append(Case(name, recipe, reference, **self.options | options))
