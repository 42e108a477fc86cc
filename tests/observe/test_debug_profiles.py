"""Profiles of this very process: what they say of functions, memory, threads and tasks that the tests make."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import tracemalloc
from collections import Counter
from functools import partial

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import blockingCallFromThread, deferToThread

from notary.observe.debug.cpu import cpu_profile, cpu_time_of
from notary.observe.debug.heap import heap_profile, object_profile
from notary.observe.debug.profile import Frame, Profile, stack_of
from notary.observe.debug.tasks import task_profile, thread_profile
from tests.support.pprof import Read, go_tool_pprof

INNER, OUTER = Frame("app.inner", "/app.py", 7), Frame("app.outer", "/app.py", 20)


def example() -> Profile:
    profile = Profile(
        (("samples", "count"), ("cpu", "nanoseconds")), 1_700_000_000 * 10**9, 2 * 10**9, 10**7, "example"
    )
    profile.add((INNER, OUTER), 1, 3000)
    profile.add((INNER, OUTER), 2, 4000)
    profile.add((OUTER,), 4, 8000)
    return profile


def test_what_is_written_can_be_read():
    read = Read(example().encode())
    assert read.kinds == [("samples", "count"), ("cpu", "nanoseconds")]
    assert read.samples == [(["app.inner", "app.outer"], [3, 7000]), (["app.outer"], [4, 8000])]
    assert read.files == {"app.inner": "/app.py", "app.outer": "/app.py"}
    assert read.lines == {"app.inner": 7, "app.outer": 20}
    assert read.comments == ["example"]
    assert (read.raw.time_nanos, read.raw.duration_nanos, read.raw.period) == (1_700_000_000 * 10**9, 2 * 10**9, 10**7)
    assert len(read.raw.function) == len(read.raw.location) == 2


def test_the_text_has_the_heaviest_first():
    assert example().text().splitlines() == [
        "example",
        "from 2023-11-14T22:13:20+00:00, for 2.0 s; numbers: samples (count), cpu (nanoseconds)",
        "",
        "4 8000",
        "    app.outer  /app.py:20",
        "",
        "3 7000",
        "    app.inner  /app.py:7",
        "    app.outer  /app.py:20",
    ]


def test_go_reads_it(tmp_path):
    printed = go_tool_pprof(tmp_path, example().encode())
    assert "Type: cpu" in printed
    assert "Duration: 2s, Total samples = 15us" in printed
    assert [line.split() for line in printed.splitlines() if "app." in line] == [
        ["8us", "53.33%", "53.33%", "15us", "100%", "app.outer"],
        ["7us", "46.67%", "100%", "7us", "46.67%", "app.inner"],
    ]


def test_go_reads_an_empty_one(tmp_path):
    empty = Profile((("samples", "count"), ("cpu", "nanoseconds")), time.time_ns(), 10**9)
    assert "Total samples = 0" in go_tool_pprof(tmp_path, empty.encode())


# -- processor time ---------------------------------------------------------------------------------------------------


def burn_in_a_loop(seconds: float) -> None:
    """Use processor time of the calling thread."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(100))


async def profiled(seconds: float, stop: threading.Event) -> Read:
    take = partial(cpu_profile, partial(blockingCallFromThread, reactor), seconds, stop)
    return Read((await deferToThread(take)).encode())


@pytest_twisted.ensureDeferred
async def test_processor_time_is_that_of_the_function_that_used_it():
    stop = threading.Event()
    taking = Deferred.fromCoroutine(profiled(600, stop))
    while signal.getsignal(signal.SIGPROF) in (signal.SIG_DFL, signal.SIG_IGN):
        await deferToThread(lambda: None)
    burn_in_a_loop(0.3)  # in the reactor's thread
    await deferToThread(burn_in_a_loop, 0.2)
    stop.set()
    read = await taking
    assert read.kinds == [("samples", "count"), ("cpu", "nanoseconds")]
    here = [(stack, values) for stack, values in read.samples if any("burn_in_a_loop" in name for name in stack)]
    by_place = Counter({"reactor": 0, "thread": 0})
    for stack, (_, used) in here:
        assert stack.index("tests.observe.test_debug_profiles.burn_in_a_loop") >= 0
        by_place["thread" if any("threadpool" in name for name in stack) else "reactor"] += used
    assert by_place["reactor"] > 0.15e9
    assert by_place["thread"] > 0.1e9
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


def test_the_clock_of_a_thread_that_has_ended():
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    while cpu_time_of(thread.native_id) is not None:  # Python is done with it a moment before the kernel is
        os.sched_yield()
    assert cpu_time_of(threading.get_native_id()) > 0


# -- memory -----------------------------------------------------------------------------------------------------------


class Kept:
    """A kind of object that only these tests make."""

    def __init__(self) -> None:
        self.text = "x" * 4096 + str(id(self))


def keep_much() -> list[Kept]:
    return [Kept() for _ in range(500)]


@pytest_twisted.ensureDeferred
async def test_memory_is_that_of_the_function_that_allocated_it():
    stop = threading.Event()
    taking = deferToThread(heap_profile, 600, stop)
    while not tracemalloc.is_tracing():
        await deferToThread(lambda: None)
    kept = keep_much()
    lost = keep_much()
    del lost
    stop.set()
    read = Read((await taking).encode())
    assert read.kinds == [("inuse_objects", "count"), ("inuse_space", "bytes")]
    stacks = [
        (stack, values) for stack, values in read.samples if stack[0].endswith("test_debug_profiles.Kept.__init__")
    ]
    size = sum(values[1] for _, values in stacks)
    assert 500 * 4096 <= size < 1000 * 4096
    assert all(any("test_debug_profiles.keep_much" in name for name in stack) for stack, _ in stacks)
    assert not tracemalloc.is_tracing()
    assert len(kept) == 500


def test_what_has_been_traced_from_the_start_is_shown_at_once():
    tracemalloc.start(5)
    try:
        kept = keep_much()
        read = Read(heap_profile(600, threading.Event()).encode())
        assert tracemalloc.is_tracing()
    finally:
        tracemalloc.stop()
    assert read.stacks("Kept.__init__")
    assert "since the start" in read.comments[0]
    assert len(kept) == 500


def test_objects_by_type():
    class Special(Kept):
        """Of this test alone: what other tests made may not be collected yet."""

    kept = [Special() for _ in range(500)]
    read = Read(object_profile().encode())
    by_stack = {tuple(stack): values for stack, values in read.samples}
    name = f"{Special.__module__}.{Special.__qualname__}"
    assert by_stack[name,][0] == 500
    (texts,) = [values for stack, values in by_stack.items() if stack == ("builtins.str", name)] or [
        by_stack["builtins.str", "builtins.dict"]
    ]
    assert texts[0] >= 500
    assert texts[1] >= 500 * 4096
    assert len(kept) == 500


# -- threads and tasks ------------------------------------------------------------------------------------------------


def wait_for(event: threading.Event) -> None:
    event.wait()


def test_threads_are_named():
    event = threading.Event()
    thread = threading.Thread(target=wait_for, args=(event,), name="the-one-that-waits")
    thread.start()
    try:
        read = Read(thread_profile().encode())
    finally:
        event.set()
        thread.join()
    (stack,) = read.stacks("test_debug_profiles.wait_for")
    assert stack[-1] == "thread the-one-that-waits"
    assert any(stack[-1] == "thread MainThread" for stack, _ in read.samples)


async def innermost(deferred: Deferred) -> None:
    await deferred


async def middle(deferred: Deferred) -> None:
    await innermost(deferred)


async def outermost(deferred: Deferred) -> None:
    await Deferred.fromCoroutine(middle(deferred))


def at_last(result: object) -> object:
    return result


def tasks() -> Read:
    return Read(task_profile(list.clear).encode())


def test_a_task_is_shown_from_what_it_waits_for_outwards():
    waited: Deferred[None] = Deferred()
    running = Deferred.fromCoroutine(outermost(waited)).addCallback(at_last)
    (stack,) = tasks().stacks("test_debug_profiles.innermost")
    module = "tests.observe.test_debug_profiles"
    assert stack == ["(waiting)", *(f"{module}.{name}" for name in ("innermost", "middle", "outermost", "at_last"))]
    waited.callback(None)
    assert running.called
    assert tasks().stacks("test_debug_profiles.innermost") == []


def test_chained_deferreds_are_one_task():
    inner: Deferred[None] = Deferred()
    outer: Deferred[None] = Deferred()
    outer.addCallback(lambda _: inner).addCallback(at_last)
    outer.callback(None)
    assert [stack for stack in tasks().stacks("at_last") if len(stack) == 2] == [
        ["(waiting)", "tests.observe.test_debug_profiles.at_last"]
    ]
    inner.callback(None)


def test_a_coroutine_that_awaits_nothing_of_twisted_s():
    class Forever:
        def __await__(self):
            yield

    async def stuck() -> None:
        await Forever()

    coroutine = stuck()
    coroutine.send(None)
    assert len(tasks().stacks("<locals>.stuck")) == 1
    coroutine.close()
    assert tasks().stacks("<locals>.stuck") == []


@pytest.mark.parametrize("callback", [partial(at_last), [].append, str, at_last], ids=["partial", "C", "type", "plain"])
def test_any_callable_may_be_a_callback(callback):
    waited: Deferred[None] = Deferred().addCallback(callback)
    assert len(tasks().samples) >= 1
    waited.callback(None)


def test_nothing_is_kept_of_what_was_looked_at():
    released = []
    task_profile(released.extend)
    assert released
    released.clear()
    kept = Deferred()
    tasks()
    assert [type(each) for each in gc.get_referrers(kept)].count(list) == 0


def test_the_stack_of_a_frame():
    stack = stack_of(__import__("sys")._getframe())
    assert stack[0].function == "tests.observe.test_debug_profiles.test_the_stack_of_a_frame"
    assert stack[0].file == __file__
