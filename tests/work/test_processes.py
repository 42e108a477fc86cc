"""Work in a process of its own: results and errors come back, and it leaves nothing behind."""

from __future__ import annotations

import gc
import hashlib
import os
import resource
import signal
import sys
import tracemalloc
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import gatherResults

from notary.errors import InvalidUpdate, TooDemanding, UploadFault
from notary.server.repository import LARGE_BYTES
from notary.tuf.model import TARGETS, Gun
from notary.work.processes import Bounds, Offload, OffloadFailed
from tests.support.api import GUN, new_author, new_store
from tests.support.inmemory import Server


@pytest_twisted.async_yield_fixture
async def offload():
    made = Offload(reactor)
    yield made
    await made.close()


# What the processes do: functions of a module that they can import.


def refuse() -> None:
    sys.stdout.write("this must not get into the answer")
    raise InvalidUpdate(UploadFault.HIERARCHY, "no", missing="snapshot")


def environment() -> tuple[int, dict[str, str]]:
    return os.getpid(), dict(os.environ)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait() -> None:
    signal.pause()


def bounds(_ballast: bytes = b"") -> tuple[list[tuple[int, int]], str]:
    kinds = resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_CORE
    return [resource.getrlimit(kind) for kind in kinds], Path("/proc/self/oom_score_adj").read_text()


def compute_for_ever() -> None:
    while True:
        pass


def keep(*values: bytes) -> tuple[bytes, ...]:
    return *values, b"x" * MIB


MIB = 1 << 20


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
    assert (caught.value.fault, caught.value.missing) == (UploadFault.HIERARCHY, "snapshot")


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
async def test_closing_ends_what_runs_and_refuses_what_comes():
    offload = Offload(reactor)
    running = offload.run(wait)
    await offload.close()
    with pytest.raises(OffloadFailed, match="signal 9"):
        await running
    with pytest.raises(OffloadFailed, match="stopping"):
        await offload.run(wait)


@pytest_twisted.ensureDeferred
async def test_what_a_process_may_take_follows_from_its_call(offload):
    (memory, seconds, core), first_to_go = await offload.run(bounds)
    assert seconds[0] == Bounds().cpu_seconds
    assert core == (0, 0)
    assert int(first_to_go) == 1000
    (larger, _, _), _ = await offload.run(bounds, bytes(10 * MIB))
    assert memory[0] == memory[1] >= Bounds().memory_bytes
    assert larger[0] >= memory[0] + Bounds().memory_factor * 10 * MIB


async def of_bounds(limits: Bounds, error: type[Exception], message: str, work, *args) -> None:
    """See that ``work`` fails, and that the next one does not."""
    offload = Offload(reactor, limits)
    with pytest.raises(error, match=message):
        await offload.run(work, *args)
    assert await offload.run(len, b"abc") == 3
    await offload.close()


@pytest_twisted.ensureDeferred
async def test_work_that_takes_too_much_memory_fails_alone():
    await of_bounds(Bounds(), TooDemanding, "too much memory", bytes, 1 << 40)


@pytest_twisted.ensureDeferred
async def test_a_call_that_takes_too_much_memory_fails_alone():
    limits = Bounds(memory_bytes=96 * MIB, memory_factor=1)
    await of_bounds(limits, TooDemanding, "too much memory", bytes.upper, bytes(200 * MIB))


@pytest_twisted.ensureDeferred
async def test_work_that_takes_too_much_time_fails_alone():
    await of_bounds(Bounds(cpu_seconds=1), TooDemanding, "too much time", compute_for_ever)


@pytest_twisted.ensureDeferred
async def test_an_answer_that_is_too_large_fails_alone():
    await of_bounds(Bounds(answer_bytes=MIB), OffloadFailed, "larger than", bytes.ljust, b"", 64 * MIB)


@pytest_twisted.ensureDeferred
async def test_what_a_call_brings_is_never_held_twice(offload):
    data = os.urandom(32 * MIB)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        *kept, made = await offload.run(keep, data, data, b"small")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept[0] is kept[1] is data
    assert (kept[2], len(made)) == (b"small", MIB)
    assert peak - before < 8 * MIB


@pytest_twisted.ensureDeferred
async def test_an_upload_beyond_the_bounds_is_answered_413_and_is_let_go_at_once():
    offload = Offload(reactor, Bounds(memory_bytes=96 * MIB, memory_factor=2))
    server = Server(new_store())
    server.validators.in_process = offload.run
    author = await new_author(server)
    wide = ("\U0001f600" + "a" * 24 * MIB).encode()  # of which Python makes four times as much
    files = {**author.first(), "targets": b'{"signed":{"x":"' + wide + b'"},"signatures":[]}'}
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        answer = await server.upload(GUN, files)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert (answer.status, answer.code) == (413, "TOO_LARGE")
    assert "too much memory" in answer.detail
    assert after - before < 4 * MIB
    assert (await server.upload(GUN, author.first())).status == 200
    await offload.close()


@pytest_twisted.ensureDeferred
async def test_the_largest_collection_that_is_promised_fits_into_the_bounds(offload):
    server = Server(new_store())
    server.repository._offload = offload.run
    author = await new_author(server)
    entry = {"hashes": {"sha256": "A" * 43 + "=", "sha512": "A" * 86 + "=="}, "length": 1}
    author.contents["targets"] = {f"some/name/{number}": entry for number in range(140_000)}
    author.contents["targets"]["wide \U0001f600"] = entry
    assert (await server.upload(GUN, author.first())).status == 200


@pytest_twisted.ensureDeferred
async def test_an_upload_whose_process_is_killed_is_answered_500_and_the_next_is_taken(offload):
    server = Server(new_store())
    server.validators.in_process = lambda *_, **__: offload.run(die)
    author = await new_author(server)
    files = author.first()
    answer = await server.upload(GUN, {**files, "targets": b" " * LARGE_BYTES})
    assert (answer.status, answer.code, answer.detail) == (500, "UPDATING", None)
    assert (await server.upload(GUN, files)).status == 200


@pytest_twisted.ensureDeferred
async def test_a_large_upload_is_judged_as_a_small_one(offload):
    server = Server(new_store())
    calls = []

    def counted(work, *args, **options):
        calls.append(work)
        return offload.run(work, *args, **options)

    server.validators.in_process = counted
    author = await new_author(server)
    for number in range(12_000):
        author.add(f"{number:040}", b"")
    files = author.first()
    assert len(files["targets"]) > LARGE_BYTES
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
