"""docs/architecture.md says how the program is built: its tables are the tree, its walks are what calls really do."""

from __future__ import annotations

import ast
import http.client
import re
import ssl
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, execute, maybeDeferred
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread

from notary.admin import cli
from notary.config import ServerConfig
from notary.config.table import keys
from notary.config.values import Address
from notary.net.grpc import Channel, GrpcFactory
from notary.net.listen import listen
from notary.net.tls import contexts
from notary.proto import health_pb2, instance_pb2, paths, signer_pb2
from notary.server.signing.directory import Directory, resolver
from notary.server.signing.spread import Signers
from notary.signer.clients import Clients
from notary.signer.custody import ByKeywrap
from notary.signer.custody.jwe import JweCustody
from notary.signer.metrics import SignerMetrics
from notary.signer.rpc import Rpc
from notary.signer.watches import HealthWatches
from notary.storage.cache import CachedMetadataStore
from notary.storage.open import open_key_store, open_metadata_store
from notary.tuf import private, public
from notary.tuf.jwe import KEYWRAP
from notary.tuf.model import Signature
from tests.signer import conftest
from tests.support.api import new_author
from tests.support.inmemory import Server, multipart
from tests.support.signer import Pair
from tests.test_layout import OURS, ROOT, name_of, read

PAGE = read(ROOT / "docs/architecture.md")


def section(heading: str) -> str:
    """The text below a heading, up to the next one of any level."""
    found = re.search(rf"^#+ {heading}\n(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"docs/architecture.md has no section {heading!r}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of each row of the table in ``text``."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines[1].startswith("|---"), text
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


# -- the table of modules ---------------------------------------------------------------------------------------------


def test_the_table_of_modules_is_the_tree() -> None:
    """Each row names a path, then files beside it. A package that has nothing but a docstring needs no row."""
    named = set()
    for cell, *_ in rows(section("Modules")):
        first, *others = quoted(cell)
        named |= {first, *(str(Path(first).with_name(other)) for other in others)}
    tree = {name_of(path) for path in OURS if len(ast.parse(read(path)).body) > 1}
    gone = named - tree - {"notary/proto/__init__.py"}
    assert gone == set(), "the table `Modules` of docs/architecture.md has files that are not there: take them out"
    without = tree - named - {"notary/__init__.py", "notary/net/grpc/__init__.py"}
    assert without == set(), "add these files to the table `Modules` of docs/architecture.md: path, and what it is"


# -- the walks --------------------------------------------------------------------------------------------------------


class Trace:
    """Every call of a function of the package while it records, in the threads that begin while it is installed."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self._recording = False

    def _profile(self, frame: FrameType, event: str, _argument: object) -> None:
        name = frame.f_code.co_filename
        if self._recording and event == "call" and name.startswith(f"{ROOT}/notary/"):
            self.calls.append((name.removeprefix(f"{ROOT}/"), frame.f_code.co_qualname))

    @contextmanager
    def installed(self) -> Iterator[None]:
        before = sys.getprofile()
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)
        try:
            yield
        finally:
            sys.setprofile(before)
            threading.setprofile(None)  # type: ignore[arg-type]

    async def of(self, work: Callable[[], Deferred[object]]) -> list[tuple[str, str]]:
        """The calls until ``work`` is done."""
        self.calls, self._recording = [], True
        try:
            await work()
        finally:
            self._recording = False
        return self.calls


def out_of_order(walk: Sequence[tuple[str, str]], calls: Sequence[tuple[str, str]]) -> list[str]:
    """The steps that were never called, or first called before the step above them; both from the first step on."""
    calls = calls[calls.index(walk[0]) :]
    found, last = [], 0
    for step in walk:
        if step not in calls:
            found.append(f"{step[0]} {step[1]} is never called")
        elif calls.index(step) < last:
            found.append(f"{step[0]} {step[1]} is called earlier")
        else:
            last = calls.index(step)
    return found


def walk_of(heading: str) -> list[tuple[str, str]]:
    return [(quoted(file)[0], quoted(function)[0]) for file, function, _ in rows(section(heading))]


class Bench(conftest.Bench):
    """Its keyrings run in the thread that is traced what they would run in another one."""

    def in_thread(self, work: Callable[[], object]) -> Deferred[object]:
        return execute(work)


class Site:
    """A server and its signer on SQLite, with TLS between them and to clients, in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pair = Pair.mint(folder / "tls")
        self.authority = self.pair.authority.write(self.pair.folder, "root")
        self.closers: list[Callable[[], object]] = []

    async def open(self) -> None:
        self.store = await open_metadata_store("sqlite3", str(self.folder / "server.db"), reactor)
        self.keys = await open_key_store("sqlite3", str(self.folder / "signer.db"), reactor)
        self.closers += [self.keys.close, self.store.close]

    def tls(self, *more: object) -> contexts.ServerOptions:
        return contexts.server_options(self.pair.folder / "signer.crt", self.pair.folder / "signer.key", *more)

    async def signing_service(self) -> Signers:
        """A signer that has just been started, and the connections to it."""
        custody = ByKeywrap({KEYWRAP: JweCustody(conftest.PASSPHRASES.get, conftest.ALIAS)})
        methods = Rpc(Bench(self.keys).keyring_of(custody), self.keys.check, SignerMetrics(version="0")).methods()
        factory = GrpcFactory(Clients(["notary-server"]).guard(methods), reactor)
        port = await listen(reactor, "127.0.0.1", 0, factory, self.tls(self.pair.folder / "clients.crt", contexts.GRPC))
        shown = self.pair.client.write(self.pair.folder, "shown")
        options = contexts.client_options("localhost", self.authority, *shown)
        directory = Directory([Address("127.0.0.1", port.getHost().port)], resolver(reactor), reactor)

        def connect(place: Address, on_ready: Callable[[], object], quiet: bool) -> Channel:
            return Channel.to(reactor, place.host, place.port, options, on_ready=on_ready, quiet=quiet)

        service = Signers(directory, connect, "ecdsa", reactor)
        await service.check()
        self.closers += [lambda: factory.stop(0), port.stopListening, service.close]
        return service

    async def client_of(self, server: Server) -> Callable[..., Deferred[None]]:
        """What sends a request on one connection to ``server``, in a thread."""
        port = await listen(reactor, "127.0.0.1", 0, server.site, self.tls())
        trusted = ssl.create_default_context(cafile=str(self.authority))
        client = http.client.HTTPSConnection("localhost", port.getHost().port, context=trusted, timeout=30)
        self.closers += [port.stopListening, client.close]

        def send(*request: object) -> None:
            client.request(*request)
            answer = client.getresponse()
            body = answer.read()
            assert answer.status == 200, body

        await deferToThread(send, "GET", "/v2/")  # so that what is slow only once is over
        return partial(deferToThread, send)

    async def close(self) -> None:
        for close in reversed(self.closers):
            await maybeDeferred(close)


@pytest_twisted.ensureDeferred
async def test_the_walks_are_what_calls_do(tmp_path: Path) -> None:
    trace, site = Trace(), Site(tmp_path)
    with trace.installed():
        await site.open()
        gun = f"example.com/{uuid.uuid4()}"  # of which nothing is remembered yet
        target = f"/v2/{gun}/_trust/tuf/"
        author = await new_author(Server(site.store, signing=await site.signing_service()), gun)
        author.add("first", b"content")
        content_type, body = multipart(author.first())
        restarted = await site.signing_service()
        publish = await site.client_of(Server(CachedMetadataStore(site.store, 1 << 20, Clock()), signing=restarted))
        published = await trace.of(lambda: publish("POST", target, body, {"Content-Type": content_type}))
        get = await site.client_of(Server(CachedMetadataStore(site.store, 1 << 20, Clock()), signing=restarted))
        read_once = await trace.of(lambda: get("GET", f"{target}targets.json"))
        await site.close()
    assert out_of_order(walk_of("A read"), read_once) == []
    assert out_of_order(walk_of("A publish"), published) == []
    assert out_of_order(walk_of("A signature"), published) == []


def test_a_step_that_is_out_of_order_is_noticed() -> None:
    calls = [("a.py", "zero"), ("a.py", "one"), ("b.py", "two"), ("a.py", "one"), ("a.py", "three"), ("b.py", "two")]
    one, two, three = calls[1], calls[2], calls[4]
    assert out_of_order([one, two, three], calls) == []
    assert out_of_order([one, three, two], calls) == ["b.py two is called earlier"]
    assert out_of_order([one, ("b.py", "four"), three], calls) == ["b.py four is never called"]


# -- where a newcomer adds --------------------------------------------------------------------------------------------

NEWCOMERS = rows(section("Where a newcomer adds"))


@pytest.mark.parametrize("row", NEWCOMERS, ids=lambda row: row[0])
def test_the_places_of_a_row_exist(row: list[str]) -> None:
    """Paths and targets of make exist; other names stand in one of the row's files."""
    _, touch, tests = row
    names = quoted(touch) + quoted(tests)
    paths = [name for name in names if "/" in name]
    for path in paths:
        assert (ROOT / path).exists() or (ROOT / "notary" / path).exists(), path
    texts = [read(ROOT / "notary" / path) for path in paths if (ROOT / "notary" / path).is_file()]
    for name in set(names) - set(paths):
        if name.startswith("make "):
            assert f"\n{name.removeprefix('make ')}:" in read(ROOT / "Makefile")
        elif name.endswith(".py"):
            assert list((ROOT / "notary").rglob(name)), name
        else:
            assert any(f"def {name}(" in text for text in texts), name


def choices(config: type, path: str) -> set[str]:
    """The values that a key of the configuration may have."""
    (kind,) = (key.kind for name, key, _ in keys(config) if name == path)
    return set(re.findall(r'"(\w+)"', kind.expected))


def modules_in(folder: str) -> set[str]:
    return {path.stem for path in (ROOT / "notary" / folder).glob("*.py")} - {"__init__"}


def test_each_algorithm_of_the_configuration_makes_keys_that_verify() -> None:
    names = choices(ServerConfig, "trust_service.key_algorithm")
    assert names == set(private._ALGORITHMS)
    for name in names:
        key = private.generate(name)
        signature = Signature(key.public.key_id, key.method, key.sign(b"message"))
        assert public.verify(key.public, signature, b"message")


def test_each_way_to_authenticate_is_a_module() -> None:
    assert choices(ServerConfig, "auth.type") | {"none"} <= modules_in("server/auth")


def test_each_signing_service_is_a_module() -> None:
    assert choices(ServerConfig, "trust_service.type") <= modules_in("server/signing")


NOT_CALLED = {paths.DELETE_KEY, paths.WATCH_HEALTH}
"""Methods of the signer that a server never calls: other clients may."""


def test_each_method_of_the_signer_has_its_path_its_row_and_its_call() -> None:
    declared = {
        f"/{service.full_name}/{method.name}"
        for file in (signer_pb2, health_pb2, instance_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    streams = HealthWatches(None, (), Clock()).methods()  # type: ignore[arg-type]
    methods = Rpc(None, None, SignerMetrics(version="0")).methods()  # type: ignore[arg-type]  # none is called
    assert {*methods, *streams} == declared
    named = {name: value for name, value in vars(paths).items() if name.isupper() and value.startswith("/")}
    assert set(named.values()) == declared
    called = set(re.findall(r"\bpaths\.(\w+),", read(ROOT / "notary/server/signing/remote.py"))) & set(named)
    assert {named[name] for name in called} == declared - NOT_CALLED


def test_each_module_of_commands_is_in_the_list_of_commands() -> None:
    """Directly, or by the group of commands that it is in."""
    listing = (Path(cli.__file__), ROOT / "notary/admin/commands/repos.py")
    imported = {
        name
        for file in listing
        for name in re.findall(r"^from notary\.admin\.commands\.(\w+) import", read(file), re.MULTILINE)
    }
    assert imported == modules_in("admin/commands")
