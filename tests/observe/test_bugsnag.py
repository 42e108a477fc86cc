"""Reports of errors, received by a real HTTP server: what they hold, and what they never hold."""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.logger import Logger, LogLevel, globalLogPublisher
from twisted.python.failure import Failure

from notary.errors import ConfigError
from notary.observe.bugsnag import MAX_WAITING, Reporter
from notary.observe.logs import LineObserver

SECRET = "hunter2-is-the-passphrase"
ID = "0123456789ab"


class Collector:
    """Takes reports on a port of loopback; ``hold`` makes it keep its answers back until it is released."""

    def __init__(self) -> None:
        self.received = []
        self.status = 200
        self.release = threading.Event()
        self.release.set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.release.wait()
                collector.received.append((dict(self.headers), json.loads(body)))
                self.send_response(collector.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    async def reports(self, count: int):
        while len(self.received) < count:
            await deferLater(reactor, 0.01)
        return [body for _, body in self.received]


@pytest.fixture
def collector():
    made = Collector()
    yield made
    made.close()


def settings(endpoint: str, api_key: str = "a" * 32) -> SimpleNamespace:
    return SimpleNamespace(api_key=api_key, release_stage="staging", endpoint=endpoint)


@pytest.fixture
def reporter(collector):
    made = Reporter(settings(collector.url), "notary-server", "1.2.3", reactor)
    yield made
    pytest_twisted.blockon(made.stop())


@pytest.fixture
def log():
    events = []
    globalLogPublisher.addObserver(events.append)
    yield events
    globalLogPublisher.removeObserver(events.append)


def opens(passphrase: str) -> None:
    try:
        {}[passphrase]
    except KeyError as error:
        raise ValueError(f"cannot open it with {passphrase}") from error


def fails(passphrase: str) -> Failure:
    try:
        opens(passphrase)
    except ValueError:
        return Failure()


@pytest_twisted.ensureDeferred
async def test_a_report_names_the_error_its_place_and_its_id_and_nothing_else(collector, reporter):
    reporter.report(ID, fails(SECRET), "UpdateTUF")
    await collector.reports(1)
    ((headers, body),) = collector.received
    assert headers["Bugsnag-Api-Key"] == "a" * 32
    (event,) = body["events"]
    assert {name: tab for name, tab in event["metaData"].items() if tab} == {"error": {"id": ID}}
    assert (event["context"], event["severity"], event["unhandled"]) == ("UpdateTUF", "error", True)
    assert (event["releaseStage"], event["app"]) == ("staging", {"version": "1.2.3", "type": "notary-server"})
    assert [error["errorClass"] for error in event["exceptions"]] == ["ValueError", "KeyError"]
    assert [error["message"] for error in event["exceptions"]] == ["", ""]
    place = event["exceptions"][0]["stacktrace"][0]
    assert (place["file"], place["method"], place["code"]) == ("tests/observe/test_bugsnag.py", "opens", None)
    assert event["breadcrumbs"] == []
    assert SECRET not in json.dumps(body)


@pytest_twisted.ensureDeferred
async def test_what_the_log_says_is_what_is_reported(collector, reporter):
    lines = SimpleNamespace(text="", flush=lambda: None)
    lines.write = lambda text: setattr(lines, "text", lines.text + text)
    observer = LineObserver(lines, level="error")
    observer.on_failure = reporter.report
    logger = Logger(namespace="notary.test", observer=observer)
    logger.failure("it broke", fails(SECRET), operation="GetRole", level=LogLevel.critical)
    logger.error("it broke too", log_incident=fails(SECRET), error_id=ID, operation="Sign")
    logger.error("this is no failure")
    first, second = [body["events"][0] for body in await collector.reports(2)]
    written = [json.loads(line) for line in lines.text.splitlines()]
    assert [line.get("error_id") for line in written] == [first["metaData"]["error"]["id"], ID, None]
    assert (first["context"], second["context"]) == ("GetRole", "Sign")
    assert SECRET in written[0]["error"]
    assert SECRET not in json.dumps(written[1:])
    assert len(collector.received) == 2


@pytest_twisted.ensureDeferred
async def test_a_failure_in_a_thread_is_reported_too(collector, reporter):
    thread = threading.Thread(target=lambda: reporter.report(ID, fails(SECRET), "thread"))
    thread.start()
    thread.join()
    assert (await collector.reports(1))[0]["events"][0]["context"] == "thread"


@pytest_twisted.ensureDeferred
async def test_a_collector_that_refuses_is_told_of_once_a_report(collector, reporter, log):
    collector.status = 503
    reporter.report(ID, fails(SECRET), "x")
    while not [event for event in log if event.get("error_id") == ID]:
        await deferLater(reactor, 0.01)
    (event,) = [event for event in log if event.get("error_id") == ID]
    assert event["error"] == "HTTPError: HTTP Error 503: Service Unavailable"
    collector.status = 200
    reporter.report("b" * 12, fails(SECRET), "y")
    await collector.reports(2)


@pytest_twisted.ensureDeferred
async def test_no_more_than_so_many_wait(collector, reporter, log):
    collector.release.clear()
    for _ in range(MAX_WAITING + 5):
        reporter.report(ID, fails(SECRET), "x")
    while len([event for event in log if "is not reported" in (event.get("log_format") or "")]) < 5:
        await deferLater(reactor, 0.01)
    collector.release.set()
    await collector.reports(MAX_WAITING)


@pytest_twisted.ensureDeferred
async def test_stopping_sends_what_waits(collector, reporter):
    for _ in range(3):
        reporter.report(ID, fails(SECRET), "x")
    await deferLater(reactor, 0)  # reports are taken in the reactor's next turn
    await reporter.stop()
    assert len(collector.received) == 3
    reporter.report(ID, fails(SECRET), "after the end")
    await deferLater(reactor, 0)
    assert len(collector.received) == 3


@pytest_twisted.ensureDeferred
async def test_without_a_key_nothing_is_sent(collector):
    silent = Reporter(settings(collector.url, api_key=""), "notary-server", "1.2.3", reactor)
    silent.report(ID, fails(SECRET), "x")
    await silent.stop()
    assert collector.received == []


def test_a_missing_package_is_an_error_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "bugsnag", None)
    with pytest.raises(ConfigError, match=r"reporting\.bugsnag\.api_key: .*install notary-service\[bugsnag\]"):
        Reporter(settings(""), "notary-server", "1", reactor)


@pytest.mark.parametrize("endpoint", ["notify.example.com", "ftp://example.com/", "file:///etc/passwd", "https://"])
def test_an_endpoint_that_is_no_url(endpoint):
    with pytest.raises(ConfigError, match=r"reporting\.bugsnag\.endpoint: .*https://HOST/"):
        Reporter(settings(endpoint), "notary-server", "1", reactor)
