"""What a read costs, in calls: timings say too little on a shared machine, calls are the same everywhere.

A bound that is exceeded means that every read has become slower. If that is meant, renew the bounds: run
``pytest tests/server/test_cost.py``, and set each to what its failure says, plus the tenth that versions of Python and
Twisted may differ by. If a bound is far above the count, lower it likewise: it guards nothing then.
"""

from __future__ import annotations

import hashlib
import sys

import pytest
import pytest_twisted

from notary.storage.cache import CachedMetadataStore
from tests.support.api import TUF, new_store, published
from tests.support.inmemory import Server
from tests.support.rawhttp import Transport

FIELDS = b"Host: notary.example\r\nUser-Agent: x\r\nAccept-Encoding: gzip\r\n\r\n"


def calls(function) -> int:
    """How many functions, Python's and C's, are called in ``function``."""
    count = 0

    def profile(_frame, event: str, _argument) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(
    ("name", "fields", "status", "bound"),
    [
        pytest.param("timestamp.json", b"", b"200", 155, id="timestamp"),
        pytest.param("targets.json", b"", b"200", 175, id="current"),
        pytest.param("targets.{checksum}.json", b"", b"200", 130, id="by-checksum"),
        pytest.param("1.targets.json", b"", b"200", 130, id="by-version"),
        pytest.param("1.targets.json", b'If-None-Match: "{checksum}"\r\n', b"304", 137, id="not-modified"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_read_from_memory_costs_no_more_calls_than_it_did(name, fields, status, bound):
    server = Server(CachedMetadataStore(new_store(), 1 << 20))
    server.api._tells = lambda: False
    server.site._on_finish = server.api.finished
    author = await published(server)
    checksum = hashlib.sha256(author.stored["targets"]).hexdigest()
    target = f"{TUF}{name.format(checksum=checksum)}".encode()
    request = b"GET " + target + b" HTTP/1.1\r\n" + fields.replace(b"{checksum}", checksum.encode()) + FIELDS
    transport = Transport()
    transport.protocol = protocol = server.site.buildProtocol(None)
    protocol.makeConnection(transport)
    for _ in range(2):  # what is slow only once
        protocol.dataReceived(request)
    transport.clear()
    counted = calls(lambda: protocol.dataReceived(request))
    assert transport.value().startswith(b"HTTP/1.1 " + status)
    transport.loseConnection()
    assert counted <= bound, f"{counted} calls, where {bound} were enough"
    assert counted > bound * 0.7, f"{counted} calls: lower the bound of {bound}"
