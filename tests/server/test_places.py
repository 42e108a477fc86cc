"""Where the server does what it is asked to do: what is small at once, the rest where it keeps nobody waiting."""

from __future__ import annotations

import hashlib
import threading

import pytest
import pytest_twisted
from cryptography.hazmat.primitives.asymmetric import ec
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread

from notary.server.repository import LARGE_BYTES, SMALL_BYTES
from notary.server.validators import WAITING
from notary.storage.cache import CachedMetadataStore
from notary.storage.open import open_metadata_store
from notary.tuf import canonical, model, public
from notary.tuf.model import FileMeta, Gun, RoleName
from tests.support.api import GUN, TUF, new_author, new_store, published
from tests.support.author import Key, make_key, make_root_key, public_bytes
from tests.support.inmemory import Server, maybe_now, multipart
from tests.support.rawhttp import Transport
from tests.support.uploads import bogus


class Places:
    """A server, and the names of what ran where: by ``readers`` and ``validators`` in threads, by ``processes``."""

    def __init__(self, store=None) -> None:
        self.server = server = Server(store or new_store())
        self.ran: list[str] = []
        server.repository._in_thread = server.api._in_thread = self._noting("readers")
        server.repository.renewals._in_thread = server.repository._in_thread
        server.validators.in_thread = self._noting("validators")
        run = server.validators.in_process

        def in_process(work, *args, **options):
            self.ran.append("processes")
            return run(work, *args, **options)

        server.validators.in_process = in_process

    def _noting(self, name: str):
        def in_thread(work):
            self.ran.append(name)
            return maybe_now(work)

        return in_thread

    async def during(self, asked) -> tuple[object, set[str]]:
        self.ran.clear()
        answer = await asked
        return answer, set(self.ran)


P384 = ec.generate_private_key(ec.SECP384R1())


@pytest_twisted.ensureDeferred
async def test_an_ordinary_small_publish_is_done_at_once():
    places = Places()
    author = await new_author(places.server)
    for files in (author.first(), author.publish("targets"), author.publish("root", "targets")):
        answer, ran = await places.during(places.server.upload(GUN, files))
        assert (answer.status, ran) == (200, set())
        author.add("another", b"content")


@pytest_twisted.ensureDeferred
async def test_few_bytes_that_are_much_work_are_verified_in_a_thread():
    places = Places()
    author = await new_author(places.server)
    author.rotate("targets", Key("ecdsa", public_bytes(P384), P384))
    files = author.first()
    files["targets"] = bogus(files["targets"], author.roles["targets"].keys[0], 15, 96)
    assert sum(map(len, files.values())) < SMALL_BYTES
    answer, ran = await places.during(places.server.upload(GUN, files))
    assert (answer.code, ran) == ("INVALID_UPDATE", {"validators"})


@pytest_twisted.ensureDeferred
async def test_a_small_upload_to_a_large_collection_is_judged_in_a_thread():
    places = Places()
    author = await new_author(places.server)
    for number in range(400):
        author.add(f"{number}", b"content")
    author.delegate("targets/a")
    assert (await places.server.upload(GUN, author.first())).status == 200
    author.add("one", b"content", "targets/a")
    answer, ran = await places.during(places.server.upload(GUN, author.publish("targets/a")))
    assert (answer.status, ran) == (200, {"validators"})


@pytest_twisted.ensureDeferred
async def test_less_than_a_large_upload_that_is_very_much_work_is_judged_in_a_process():
    places = Places()
    author = await new_author(places.server)
    bad = Key("ecdsa", public_bytes(P384), P384)
    for number in range(8):
        author.delegate(f"targets/a{number}", bad)
    files = author.first()
    files |= {role: bogus(data, bad, 90, 96) for role, data in files.items() if "/" in role}
    assert sum(map(len, files.values())) < LARGE_BYTES
    answer, ran = await places.during(places.server.upload(GUN, files))
    assert (answer.code, answer.detail["Name"]) == ("INVALID_UPDATE", "ErrBadTargets")
    assert ran == {"validators", "processes"}


@pytest_twisted.ensureDeferred
async def test_reads_never_wait_for_validation():
    store = new_store()
    writer = Places(store)
    author = await new_author(writer.server)
    for number in range(12):
        author.rotate("targets", *[make_key() for _ in range(20)])
        author.delegate(f"targets/a{number}")
    assert (await writer.server.upload(GUN, author.first())).status == 200
    places = Places(store)
    places.server.signing = places.server.repository._signing = writer.server.signing
    never: Deferred = Deferred()
    places.server.validators.in_thread = lambda _work: never
    places.server.validators.in_process = lambda _work, *_args, **_options: never
    for name in ("timestamp", "snapshot", "targets", "root", "targets/a1"):
        answer, _ = await places.during(places.server.get(f"{TUF}{name}.json"))
        assert answer.status == 200
    assert (await places.server.get(f"{TUF}timestamp.key")).status == 200
    assert (await places.server.get(f"/v2/{GUN}/_trust/changefeed?records=100")).status == 200
    places.server.advance(days=15)
    assert (await places.server.get(f"{TUF}timestamp.json")).json["signed"]["version"] == 2


class Threads:
    """Runs what was begun before, each time it is told to go."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Deferred, object]] = []

    def __call__(self, work):
        asked: Deferred = Deferred()
        self.waiting.append((asked, work))
        return asked

    def go(self) -> None:
        waiting, self.waiting = self.waiting, []
        for asked, work in waiting:
            maybe_now(work).chainDeferred(asked)


@pytest.mark.parametrize(
    ("names", "days", "times"),
    [
        (["targets"], 0, 2),  # the timestamp, then the snapshot
        (["timestamp"], 0, 1),
        (["timestamp"], 15, 3),  # until when, what is due, what is signed
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_many_readers_need_at_once_is_looked_into_once(names, days, times):
    store = new_store()
    first = Server(store)
    await published(first)
    server = Server(store, signing=first.signing)
    server.advance(days=days)
    threads = server.repository._in_thread = server.repository.renewals._in_thread = Threads()
    asked = [server.repository.current(Gun(GUN), RoleName(name)) for _ in range(50) for name in names]
    count = 0
    while threads.waiting:
        assert len(threads.waiting) == 1
        count += 1
        threads.go()
    found = await gatherResults(asked)
    assert len({stored.sha256 for stored in found}) == 1
    assert count == times


@pytest_twisted.ensureDeferred
async def test_too_many_uploads_that_wait_are_refused_with_a_time_to_try_again():
    server = Server(new_store())
    author = await new_author(server)
    for number in range(200):
        author.add(f"{number}", b"content")
    files = author.first()
    assert sum(map(len, files.values())) > SMALL_BYTES
    busy = server.validators.in_thread = Threads()
    asked = [server.upload(GUN, files) for _ in range(2 + WAITING)]
    waiting = [Deferred.fromCoroutine(one) for one in asked]
    assert server.validators.waiting == WAITING
    refused = await server.upload(GUN, files)
    assert (refused.status, refused.code, refused.detail) == (503, "UNAVAILABLE", None)
    assert int(refused.headers["retry-after"]) > 0
    assert server.metrics._errors["UNAVAILABLE"] == server.metrics._uploads["UNAVAILABLE"] == 1
    done = gatherResults(waiting)
    while not done.called:
        busy.go()
        await deferToThread(lambda: None)
    answers = await done
    assert sorted({answer.status for answer in answers}) == [200, 400]
    assert [answer.status for answer in answers].count(200) == 1


@pytest_twisted.ensureDeferred
async def test_an_upload_whose_client_has_gone_is_dropped():
    server = Server(new_store())
    author = await new_author(server)
    for number in range(200):
        author.add(f"{number}", b"content")
    busy = server.validators.in_thread = Threads()
    content_type, body = multipart(author.first())
    head = f"POST {TUF} HTTP/1.1\r\nHost: a\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    transports = [Transport() for _ in range(3)]
    for transport in transports:
        transport.protocol = server.site.buildProtocol(None)
        transport.protocol.makeConnection(transport)
        transport.protocol.dataReceived(head.encode() + body)
    assert (len(busy.waiting), server.validators.waiting) == (2, 1)
    transports[2].loseConnection()
    transports[0].loseConnection()
    looked_into = []
    while busy.waiting:
        looked_into.append(len(busy.waiting))
        busy.go()
    assert sum(looked_into) == 5, "splitting two bodies; then for one: reading it, what it needs, judging it"
    outcomes = dict(server.metrics._uploads)
    assert (outcomes["accepted"], outcomes["CLIENT_GONE"]) == (1, 2)


LONG = "x" * 200


@pytest_twisted.ensureDeferred
async def test_nothing_large_is_read_written_or_digested_on_the_reactors_thread(monkeypatch):
    seen: list[tuple[str, int]] = []
    here = threading.get_ident()

    def watched(owner, name, size):
        real = getattr(owner, name)

        def spy(*arguments, **options):
            result = real(*arguments, **options)
            if threading.get_ident() == here:
                seen.append((name, size(arguments, result)))
            return result

        monkeypatch.setattr(owner, name, staticmethod(spy) if isinstance(owner, type) else spy)

    watched(canonical, "parse", lambda given, _: len(given[0]))
    watched(canonical, "dumps", lambda _, result: len(result))
    watched(FileMeta, "of", lambda given, _: len(given[0]))
    watched(public, "_identity", lambda given, _: len(given[2].data))
    server = Server(CachedMetadataStore(new_store(), 1 << 24, reactor))
    server.repository._in_thread = server.api._in_thread = server.validators.in_thread = deferToThread
    server.repository.renewals._in_thread = deferToThread
    author = await new_author(server)
    for number in range(90):
        author.add(f"{number}{LONG}", b"content")
        author.delegate(f"targets/a{number}")
        author.roles["root"].keys.append(make_root_key(GUN, private=author.roles["root"].keys[0].private))
    files = author.first()
    assert min(len(files[role]) for role in ("root", "targets")) > 2 * SMALL_BYTES
    assert (await server.upload(GUN, files)).status == 200
    snapshot = await server.get(f"{TUF}snapshot.json")
    assert len(snapshot.body) > 2 * SMALL_BYTES
    author.add("another", b"content", "targets/a1")
    assert (await server.upload(GUN, author.publish("targets/a1"))).status == 200
    server.repository._listed = type(server.repository._listed)(10)
    for name in ("timestamp", "snapshot", "targets", "targets/a1"):
        assert (await server.get(f"{TUF}{name}.json")).status == 200
    for role in ("timestamp", "snapshot"):
        assert (await server.get(f"{TUF}{role}.key")).status == 200
    assert (await server.get("/v2/_trust/changefeed?records=100")).status == 200
    server.advance(days=365 * 4)
    assert (await server.get(f"{TUF}snapshot.json")).json["signed"]["version"] == 3
    assert seen
    assert [one for one in seen if one[1] > 2 * SMALL_BYTES] == []


@pytest_twisted.ensureDeferred
async def test_no_more_keys_are_asked_for_than_the_server_would_sign_with():
    server = Server(new_store())
    author = await new_author(server)
    held = author.roles["snapshot"].keys[0]
    author.rotate("snapshot", *[make_key("ed25519").public_part for _ in range(150)], held)
    asked = []
    real = server.signing.get_key
    server.signing.get_key = lambda key_id: (asked.append(key_id), real(key_id))[1]
    files = author.first()
    answer = await server.upload(GUN, files)
    assert answer.code == "INVALID_UPDATE", "the server's own key is not among the first"
    author.rotate("snapshot", held, *[make_key("ed25519").public_part for _ in range(150)])
    assert (await server.upload(GUN, author.first())).status == 200
    assert (await server.get(f"{TUF}snapshot.key")).status == 200
    assert len(asked) == 1


@pytest_twisted.ensureDeferred
async def test_a_publish_digests_a_bounded_number_of_bytes_to_remember_its_files(monkeypatch, tmp_path):
    digested = []
    real, here = hashlib.sha256, threading.get_ident()

    def sha256(data=b""):
        if threading.get_ident() == here:
            digested.append(len(data))
        return real(data)

    store = CachedMetadataStore(await open_metadata_store("sqlite3", str(tmp_path / "db"), reactor), 1 << 24, reactor)
    try:
        monkeypatch.setattr(hashlib, "sha256", sha256)
        files = [model.Update(RoleName(f"targets/a{number}"), 1, bytes(100_000)) for number in range(100)]
        await store.publish(Gun(GUN), files)
        assert 0 < sum(digested) <= 1 << 18
    finally:
        await store.close()
