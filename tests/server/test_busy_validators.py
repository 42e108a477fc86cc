"""A whole server whose validating threads are all busy."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import pytest
import pytest_twisted
import treq
from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.internet.task import deferLater

from notary.config import load_server
from notary.server import tap
from notary.tuf import publish
from tests.support.author import Author, server_key_from
from tests.support.inmemory import multipart


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.setblocking(False)
        yield made


async def author_of(url: str, gun: str) -> Author:
    keys = []
    for role in ("timestamp", "snapshot"):
        answer = await treq.get(f"{url}/v2/{gun}/_trust/tuf/{role}.key", persistent=False)
        keys.append(server_key_from(await answer.content()))
    return Author(gun, timestamp=keys[0], snapshot=keys[1])


def upload(url: str, author: Author):
    content_type, body = multipart(author.first())
    fields = {"Content-Type": content_type}
    return treq.post(f"{url}/v2/{author.gun}/_trust/tuf/", body, headers=fields, persistent=False)


@pytest_twisted.ensureDeferred
async def test_cold_reads_are_answered_while_every_validator_is_busy(tmp_path: Path, monkeypatch, listening) -> None:
    text = json.dumps(
        {
            "server": {"http_addr": "127.0.0.1:1"},
            "trust_service": {"type": "local"},
            "storage": {"backend": "sqlite3", "db_url": "server.db"},
        }
    )
    server = tap.Server(load_server(text, {}, tmp_path), reactor, [listening])
    await server.startService()
    url = "http://{}:{}".format(*listening.getsockname())
    let_go, real, inside = threading.Event(), publish.read, []

    def read(files):
        if threading.current_thread() is not threading.main_thread():
            inside.append(files)
            let_go.wait()
        return real(files)

    try:
        good = await author_of(url, "example.com/good")
        assert (await upload(url, good)).code == 200
        monkeypatch.setattr(publish, "read", read)
        uploads = []
        for number in range(tap.VALIDATORS + 3):
            large = await author_of(url, f"example.com/large{number}")
            for each in range(200):
                large.add(f"{each}", b"content")
            uploads.append(upload(url, large))
        while len(inside) < tap.VALIDATORS:
            await deferLater(reactor, 0)
        for name in ("timestamp", "snapshot", "targets", "root"):
            answer = await treq.get(f"{url}/v2/{good.gun}/_trust/tuf/{name}.json", persistent=False)
            assert (answer.code, len(inside)) == (200, tap.VALIDATORS)
            await answer.content()
        let_go.set()
        assert {answer.code for answer in await gatherResults(uploads)} == {200}
    finally:
        let_go.set()
        await server.stopService()
