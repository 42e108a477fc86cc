"""What the server holds on behalf of strangers has a bound, however they fill it."""

from __future__ import annotations

import base64

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from notary.server import repository
from notary.server.api import PAGES
from notary.server.faults import edge_response
from notary.tuf.model import Gun
from tests.support.api import GUN, TUF, new_author, new_store, published
from tests.support.author import file_meta
from tests.support.inmemory import Server
from tests.support.stored import updates


@pytest_twisted.ensureDeferred
async def test_a_snapshot_that_lists_much_is_read_and_not_remembered(monkeypatch):
    monkeypatch.setattr(repository, "KEPT_NAMES", 400)
    store = new_store()
    server = Server(store)
    author = await new_author(server, snapshot="client")
    files = author.first()
    names = {f"targets/{number}": file_meta(b"") for number in range(150)}
    digest = base64.b64encode(b"x" * 9999).decode()
    odd = {"x" * 300: file_meta(b""), "targets/long": {"hashes": {"sha256": digest}, "length": 1}}

    def edit(signed):
        signed["meta"] |= {**names, **odd}

    files["snapshot"] = author.snapshot(files, edit=edit)
    # No upload may list what is not stored; an older server took it.
    await store.publish(
        Gun(GUN), updates({**files, "timestamp": author.timestamp(files["snapshot"], signers=[])}), None
    )
    for _ in range(2):
        assert (await server.get(TUF + "targets.json")).body == files["targets"]
    assert len(server.repository._listed._kept) == 1  # the timestamp's
    assert (await server.get(TUF + "targets/long.json")).status == 404


@pytest_twisted.ensureDeferred
async def test_an_upload_is_judged_against_a_bounded_amount_of_what_is_stored(monkeypatch):
    store = new_store()
    server = Server(store)
    author = await new_author(server)
    roles = [f"targets/{number}" for number in range(20)]
    for role in roles:
        author.delegate(role)
    assert (await server.upload(GUN, author.first())).status == 200
    loads = []
    current = store.current
    monkeypatch.setattr(store, "current", lambda gun, wanted: loads.append(len(wanted)) or current(gun, wanted))
    assert (await server.upload(GUN, author.publish(*roles))).status == 200
    assert max(loads) <= repository.STORED_AT_ONCE
    stored = [len(data) for data in author.stored.values()]
    monkeypatch.setattr(repository, "STORED_BYTES", sum(stored) // 2)
    loads.clear()
    answer = await server.upload(GUN, author.publish(*roles))
    assert (answer.status, answer.code) == (413, "TOO_LARGE")
    assert sum(loads) < len(roles)


@pytest_twisted.ensureDeferred
async def test_pages_of_the_changefeed_are_made_a_few_at_a_time(monkeypatch):
    store = new_store()
    server = Server(store)
    await published(server)
    waiting = []
    changes = store.changes

    def held(*asked):
        go: Deferred[None] = Deferred()
        waiting.append(go)
        return go.addCallback(lambda _: changes(*asked))

    monkeypatch.setattr(store, "changes", held)
    answers = [Deferred.fromCoroutine(server.get("/v2/_trust/changefeed?records=10000")) for _ in range(3 * PAGES)]
    together = []
    while not all(answer.called for answer in answers):
        together.append(len(waiting))
        now, waiting[:] = waiting[:], []
        for go in now:
            go.callback(None)
        await deferLater(reactor, 0)
    assert max(together) == PAGES
    assert {answer.status for answer in await gatherResults(answers)} == {200}


@pytest.mark.parametrize(("status", "again"), [(503, ("Retry-After", "5")), (408, None)])
def test_who_comes_too_early_is_told_when_to_come_again(status, again):
    headers = edge_response(status, "no").headers
    assert (again in headers) is (again is not None)
