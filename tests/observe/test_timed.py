"""What both daemons measure of themselves: the event loop, the services behind them, their certificates."""

from __future__ import annotations

import time

import pytest
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.task import Clock

from notary.observe.expiry import INTERVAL_SECONDS, Certificates, certificates_in_use
from notary.observe.lag import Lag
from notary.observe.timed import timed
from tests.support.certs import Authority


def test_a_loop_that_is_late():
    clock, seen = Clock(), []
    lag = Lag(clock, seen.append)
    lag.startService()
    clock.advance(0.5)
    clock.advance(0.75)
    assert seen == [0.0, pytest.approx(0.25)]
    lag.stopService()
    assert clock.getDelayedCalls() == []


class Service:
    def __init__(self) -> None:
        self.waiting: Deferred[str] = Deferred()

    def wait(self) -> Deferred[str]:
        return self.waiting

    def echo(self, value: int, *, twice: bool = False) -> Deferred[int]:
        return succeed(value * (1 + twice))

    def raises(self, error: Exception) -> Deferred[None]:
        return fail(error)

    def plain(self) -> int:
        return 7


def test_calls_are_measured_and_their_results_left_alone():
    clock, seen = Clock(), []
    inner = Service()
    service = timed(
        Service, inner, clock, lambda name, seconds, *, ok: seen.append((name, seconds, ok)), expected=KeyError
    )
    results = []
    service.wait().addCallback(results.append)
    clock.advance(2)
    inner.waiting.callback("done")
    service.echo(3, twice=True).addCallback(results.append)
    service.raises(KeyError("an answer")).addErrback(lambda failure: results.append(failure.type))
    service.raises(OSError("a fault")).addErrback(lambda failure: results.append(failure.type))
    assert results == ["done", 6, KeyError, OSError]
    assert seen == [("wait", 2.0, True), ("echo", 0.0, True), ("raises", 0.0, True), ("raises", 0.0, False)]
    assert service.plain() == 7
    assert len(seen) == 4
    with pytest.raises(AttributeError):
        service.nothing  # noqa: B018


def test_certificates_of_files(tmp_path):
    root = Authority.root("a root")
    middle = root.intermediate("in the middle")
    leaf, _ = middle.leaf("notary.example.com").write(tmp_path, "server")
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("nonsense")
    files = {"leaf": leaf, "bad": nonsense, "absent": tmp_path / "absent", "none": None}
    found = certificates_in_use(files)
    assert found["bad", "", ""] == found["absent", "", ""] == 0.0
    subjects = [subject for key, subject, serial in found if key == "leaf" and int(serial, 16)]
    assert "notary.example.com" in subjects
    assert "in the middle" in subjects
    assert {key for key, _, _ in found} == {"leaf", "bad", "absent"}


def test_a_certificate_that_is_replaced_is_seen(tmp_path):
    clock = Clock()
    root = Authority.root("a root")
    path = root.write(tmp_path, "root")
    certificates = Certificates({"ca": path}, clock, maybeDeferred)
    assert certificates.days() == {}
    certificates.startService()
    ((key, subject, serial), days) = next(iter(certificates.days().items()))
    assert (key, subject) == ("ca", "a root")
    assert days > 0
    expiry = certificates_in_use({"ca": path})[key, subject, serial]
    assert days == pytest.approx((expiry - time.time()) / 86400, abs=0.01)
    Authority.root("another root").write(tmp_path, "root")
    assert [names[1] for names in certificates.days()] == ["a root"]
    clock.advance(INTERVAL_SECONDS)
    assert [names[1] for names in certificates.days()] == ["another root"]
    path.unlink()
    clock.advance(INTERVAL_SECONDS)
    assert certificates.days()["ca", "", ""] < 0
    certificates.stopService()
    assert clock.getDelayedCalls() == []
