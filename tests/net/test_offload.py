"""Work in a process of its own: results and errors come back, and it leaves nothing behind."""

from __future__ import annotations

import hashlib
import os
import signal
import sys

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import gatherResults

from notary.errors import Fault, InvalidUpdate
from notary.net.offload import Offload, OffloadFailed
from notary.server.repository import LARGE
from notary.tuf.model import TARGETS, Gun
from tests.support.api import GUN, new_author, new_store
from tests.support.inmemory import Server


@pytest_twisted.async_yield_fixture
async def offload():
    made = Offload(reactor, 1)
    yield made
    await made.close()


# What the processes do: functions of a module that they can import.


def refuse() -> None:
    sys.stdout.write("this must not get into the answer")
    raise InvalidUpdate(Fault.HIERARCHY, "no", missing="snapshot")


def environment() -> tuple[int, dict[str, str]]:
    return os.getpid(), dict(os.environ)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait() -> None:
    signal.pause()


@pytest_twisted.ensureDeferred
async def test_it_runs_elsewhere_and_without_our_environment(offload, monkeypatch):
    monkeypatch.setenv("NOTARY_SIGNER_SECRET", "passphrase")
    pid, environ = await offload.run(environment)
    assert pid != os.getpid()
    assert set(environ) <= {"PYTHONPATH", "LC_CTYPE"}


@pytest_twisted.ensureDeferred
async def test_nothing_is_imported_from_where_it_was_started(offload, monkeypatch, tmp_path):
    for name in ("notary", "pickle", "tests"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", ".", "here", *sys.path])
    await offload.run(environment)
    assert not (tmp_path / "imported").exists()


@pytest_twisted.ensureDeferred
async def test_errors_come_back_whole(offload):
    with pytest.raises(InvalidUpdate, match="no") as caught:
        await offload.run(refuse)
    assert (caught.value.fault, caught.value.missing) == (Fault.HIERARCHY, "snapshot")


@pytest_twisted.ensureDeferred
async def test_large_values_go_there_and_back(offload):
    data = os.urandom(5_000_000)
    results = await gatherResults([offload.run(bytes.upper, data), offload.run(bytes.lower, data)])
    assert results == [data.upper(), data.lower()]


@pytest_twisted.ensureDeferred
async def test_a_process_that_dies_fails_its_work_and_no_other(offload):
    with pytest.raises(OffloadFailed, match="signal 9"):
        await offload.run(die)
    assert await offload.run(len, b"abc") == 3


@pytest_twisted.ensureDeferred
async def test_closing_ends_what_runs_and_what_waits():
    offload = Offload(reactor, 1)
    running, waiting = offload.run(wait), offload.run(wait)
    await offload.close()
    with pytest.raises(OffloadFailed, match="signal 9"):
        await running
    with pytest.raises(OffloadFailed, match="stopping"):
        await waiting


@pytest_twisted.ensureDeferred
async def test_a_large_upload_is_judged_as_a_small_one(offload):
    server = Server(new_store())
    calls = []

    def counted(work, *args, **options):
        calls.append(work)
        return offload.run(work, *args, **options)

    server.repository._offload = counted
    author = await new_author(server)
    for number in range(12_000):
        author.add(f"{number:040}", b"")
    files = author.first()
    assert len(files["targets"]) > LARGE
    broken = await server.upload(GUN, {**files, "targets": files["targets"] + b"x"})
    assert broken.code == "MALFORMED_JSON"
    nameless = await server.upload(GUN, [("", b"{}"), *files.items()])
    assert nameless.code == "NO_FILENAME"
    orphan = await server.upload(GUN, {name: data for name, data in files.items() if name != "root"})
    assert (orphan.code, orphan.detail["Name"]) == ("INVALID_UPDATE", "ErrValidation")
    assert (await server.upload(GUN, files)).status == 200
    assert len(calls) == 4
    stored = await server.repository.current(Gun(GUN), TARGETS)
    assert stored.sha256 == hashlib.sha256(files["targets"]).hexdigest()
