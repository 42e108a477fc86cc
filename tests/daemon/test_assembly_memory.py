"""What a refused upload had in memory goes with its answer, not with a garbage collection some day."""

from __future__ import annotations

import gc
import sys

import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import deferLater

from notary.errors import MalformedUpload
from notary.work.lifecycle import Assembly


class Parts(Assembly):
    async def assemble(self) -> None:
        """There are none."""


@pytest_twisted.async_yield_fixture
async def parts():
    made = Parts(reactor, 1)
    await made.startService()
    yield made
    await made.stopService()


def parse(body: bytes) -> None:
    piece = body
    try:
        int(piece)
    except ValueError as error:
        raise MalformedUpload("no") from error


@pytest_twisted.ensureDeferred
async def test_a_refused_body_is_let_go_at_once(parts):
    body = bytes(bytearray(1000))
    before = sys.getrefcount(body)
    outcomes = []
    gc.collect()
    gc.disable()
    try:
        work = parts.in_thread(lambda: parse(body))
        await work.addErrback(lambda failure: outcomes.append(failure.check(MalformedUpload)))
        for _ in range(200):  # the thread may still be on its way out of the work
            if sys.getrefcount(body) == before:
                break
            await deferLater(reactor, 0.01)
        assert (outcomes, sys.getrefcount(body)) == ([MalformedUpload], before)
    finally:
        gc.enable()
