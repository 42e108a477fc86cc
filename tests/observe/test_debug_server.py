"""The debug server on a loopback port: its pages, what it refuses, and that it stops in the middle of a profile."""

from __future__ import annotations

import json
import re
import sys
import tracemalloc
from pathlib import Path

import pytest
import pytest_twisted
import treq
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import ClientCreator, Protocol
from twisted.internet.task import deferLater
from twisted.logger import globalLogPublisher
from twisted.web.client import Agent

import notary
from notary.net.http.site import Response
from notary.observe import debug
from notary.observe.debug import DebugServer
from notary.observe.debug.guard import refusal
from notary.observe.readiness import ALIVE
from tests.support.pprof import Read


def broken() -> Response:
    raise ZeroDivisionError("a secret")


async def slow() -> Response:
    return Response(200, b"slow\n")


PAGES = {"/metrics": lambda: Response(200, b"figures\n"), "/livez": lambda: ALIVE, "/slow": slow, "/broken": broken}


class Running:
    def __init__(self) -> None:
        self.server = DebugServer(reactor, "localhost", 0, PAGES, lambda: {"sheep_total": 3.0})

    async def get(self, path: str, method: str = "GET", headers=None):
        url = f"http://127.0.0.1:{self.server.port}{path}"
        answer = await treq.request(method, url, agent=Agent(reactor), headers=headers)
        body = await answer.content()
        return answer.code, {name.lower(): value for name, (value, *_) in answer.headers.getAllRawHeaders()}, body


@pytest.fixture
def running():
    made = Running()
    pytest_twisted.blockon(made.server.startService())
    yield made
    pytest_twisted.blockon(made.server.stopService())


@pytest_twisted.ensureDeferred
async def test_the_index_leads_to_every_page(running):
    status, headers, body = await running.get("/debug/pprof/")
    assert (status, headers[b"content-type"]) == (200, b"text/html; charset=utf-8")
    for name in ("profile", "heap", "objects", "tasks", "goroutine", "threads", "cmdline"):
        assert f'href="{name}?debug=1"'.encode() in body
    for path in (*PAGES, "/debug/vars"):
        assert f'href="{path}"'.encode() in body
    assert b"`" not in body


def test_every_page_of_a_daemon_is_explained():
    found = set()
    for file in Path(notary.__file__).parent.rglob("*.py"):
        for pages in re.findall(r"pages(?:: [^=]+)? = \{([^}]+)\}", file.read_text()):
            found |= set(re.findall(r'"(/\w+)":', pages))
    assert {"/metrics", "/livez", "/readyz"} <= found
    assert found <= set(debug._PAGES)


@pytest_twisted.ensureDeferred
async def test_other_ways_to_the_index(running):
    agent = Agent(reactor)
    for path, status in (("/", 302), ("/debug/pprof", 301)):
        answer = await treq.get(f"http://127.0.0.1:{running.server.port}{path}", agent=agent, allow_redirects=False)
        assert (answer.code, answer.headers.getRawHeaders("location")) == (status, ["/debug/pprof/"])


@pytest_twisted.ensureDeferred
async def test_cmdline_is_that_of_the_process(running):
    status, _, body = await running.get("/debug/pprof/cmdline")
    assert (status, body.decode().split("\0")) == (200, sys.argv)


@pytest_twisted.ensureDeferred
async def test_variables(running):
    status, headers, body = await running.get("/debug/vars")
    assert (status, headers[b"content-type"]) == (200, b"application/json; charset=utf-8")
    variables = json.loads(body)
    assert variables["cmdline"] == sys.argv
    assert variables["counters"] == {"sheep_total": 3.0}
    memory = variables["memstats"]
    assert 1 << 20 < memory["Alloc"] <= memory["Sys"]
    assert memory["Peak"] > 1 << 20
    assert memory["HeapObjects"] > 1000
    assert variables["threads"] >= 1
    assert variables["cpu"]["user"] > 0


@pytest_twisted.ensureDeferred
async def test_further_pages(running):
    assert (await running.get("/metrics"))[::2] == (200, b"figures\n")
    assert (await running.get("/slow"))[::2] == (200, b"slow\n")
    assert json.loads((await running.get("/livez"))[2]) == {"status": "alive"}


@pytest_twisted.ensureDeferred
async def test_a_page_that_breaks(running):
    events = []
    globalLogPublisher.addObserver(events.append)
    try:
        status, _, body = await running.get("/broken")
    finally:
        globalLogPublisher.removeObserver(events.append)
    assert (status, body) == (500, b"this page broke (ZeroDivisionError); the log says why\n")
    (failure,) = [event["log_failure"] for event in events if "log_failure" in event]
    assert failure.type is ZeroDivisionError
    assert (await running.get("/livez"))[0] == 200


@pytest.mark.parametrize(
    "name", ["profile?seconds=0.05", "heap?seconds=0.05", "objects", "tasks", "goroutine", "threads"]
)
@pytest_twisted.ensureDeferred
async def test_each_profile_as_protobuf_and_as_text(running, name):
    status, headers, body = await running.get(f"/debug/pprof/{name}")
    assert (status, headers[b"content-type"]) == (200, b"application/octet-stream")
    read = Read(body)
    assert read.raw.duration_nanos >= 0
    assert read.kinds[0][1] == "count"
    status, headers, body = await running.get(f"/debug/pprof/{name}{'&' if '?' in name else '?'}debug=1")
    assert (status, headers[b"content-type"]) == (200, b"text/plain; charset=utf-8")
    assert body.decode().startswith(read.comments[0])


@pytest_twisted.ensureDeferred
async def test_tasks_has_the_request_itself(running):
    _, _, body = await running.get("/debug/pprof/tasks")
    (stack,) = Read(body).stacks("DebugServer._look")
    assert [name.rpartition(".")[2] for name in stack[:4]] == ["(waiting)", "_outcome", "_look", "answer"]
    assert any(name.startswith("notary.net.http.exchange.") for name in stack[4:])


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "600.1", "soon"])
@pytest_twisted.ensureDeferred
async def test_times_that_are_no_time(running, seconds):
    status, headers, body = await running.get(f"/debug/pprof/profile?seconds={seconds}")
    assert (status, headers[b"x-go-pprof"]) == (400, b"1")
    assert body == b"seconds must be a number above 0, at most 600\n"


@pytest_twisted.ensureDeferred
async def test_allocations_are_not_watched_for_long(running):
    status, _, body = await running.get("/debug/pprof/heap?seconds=60.5")
    assert (status, body) == (400, b"seconds must be a number above 0, at most 60\n")


def hosts(port: int, name: str) -> list[str]:
    return [name, f"{name}:{port}", f"{name.upper()}:1"]


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]", "127.0.0.2"])
@pytest_twisted.ensureDeferred
async def test_names_of_loopback_are_answered(running, name):
    for host in hosts(running.server.port, name):
        assert (await running.get("/debug/vars", headers={"Host": host}))[0] == 200


FOREIGN = {
    *("rebind.example", "localhost.example", "127.0.0.1.example", "example:8080", "192.0.2.1", "[2001:db8::1]"),
    *("", ":80", "localhost:80:80", "[::1", "::1", "[localhost", "[127.0.0.1]x", "localhost."),
}


@pytest.mark.parametrize("host", sorted(FOREIGN))
@pytest.mark.parametrize("path", ["/debug/vars", "/metrics", "/livez", "/debug/pprof/heap?seconds=60", "/nothing", "/"])
@pytest_twisted.ensureDeferred
async def test_no_other_name_is(running, host, path):
    status, headers, body = await running.get(path, headers={"Host": host})
    assert (status, headers[b"x-go-pprof"]) in [(403, b"1"), (400, b"1")]
    assert b"localhost" in body or status == 400  # no Host at all


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": ["none", "cross-site"]}, 403),
        ({"Origin": "http://pages.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "https://{host}"}, 403),
        ({"Origin": "http://{host}"}, 200),
        ({"Referer": "http://pages.example/x"}, 403),
        ({"Referer": "http://{host}.pages.example/"}, 403),
        ({"Referer": "http://{host}/debug/pprof/"}, 200),
    ],
)
@pytest_twisted.ensureDeferred
async def test_no_page_of_another_site_causes_a_request(running, headers, status):
    host = f"127.0.0.1:{running.server.port}"
    given = {
        name: [each.format(host=host) for each in ([value] if isinstance(value, str) else value)]
        for name, value in headers.items()
    }
    seen, _, body = await running.get("/debug/pprof/profile?seconds=0.01", headers=given)
    assert seen == status
    assert status == 200 or body.startswith(b"requests that a web page")


def test_where_the_names_are_not_known_every_host_counts():
    assert refusal({"host": "notary-server:8080"}, local=False) is None
    assert refusal({"host": "notary-server:8080", "sec-fetch-site": "cross-site"}, local=False) is not None
    assert refusal({"host": "a", "origin": "http://b"}, local=False) is not None


@pytest.mark.parametrize("abrupt", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_profile_ends_with_its_client(running, abrupt):
    connected = ClientCreator(reactor, Protocol).connectTCP("127.0.0.1", running.server.port)
    client = await connected
    client.transport.write(b"GET /debug/pprof/heap?seconds=60 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    while running.server._until is None:
        await deferLater(reactor, 0)
    assert (await running.get("/debug/pprof/profile?seconds=0.01"))[0] == 409
    (client.transport.abortConnection if abrupt else client.transport.loseConnection)()
    while running.server._until is not None:
        await deferLater(reactor, 0)
    assert not tracemalloc.is_tracing()
    assert (await running.get("/debug/pprof/heap?seconds=0.01"))[0] == 200


@pytest_twisted.ensureDeferred
async def test_what_is_not_there(running):
    status, _, body = await running.get("/debug/pprof/mutex")
    assert (status, body) == (404, b"there is nothing here; /debug/pprof/ lists what there is\n")
    status, _, body = await running.get("/debug/vars", "DELETE")
    assert (status, body) == (405, b"only GET is understood here\n")


@pytest_twisted.ensureDeferred
async def test_one_profile_at_a_time_and_none_outlives_the_server(running):
    first = Deferred.fromCoroutine(running.get("/debug/pprof/profile?seconds=600"))
    while running.server._until is None:
        await deferLater(reactor, 0)
    status, headers, body = await running.get("/debug/pprof/heap")
    assert status == 409
    assert body.startswith(b"another profile is being taken until 2")
    assert headers[b"x-go-pprof"] == b"1"
    assert (await running.get("/debug/pprof/threads"))[0] == 200
    assert not first.called
    await running.server.stopService()
    status, _, body = await first
    assert status == 200
    assert Read(body).raw.duration_nanos < 600 * 10**9


@pytest_twisted.ensureDeferred
async def test_a_port_that_is_taken(running):
    second = DebugServer(reactor, "127.0.0.1", running.server.port, {}, dict)
    with pytest.raises(CannotListenError):
        await second.startService()
    await second.stopService()


@pytest_twisted.ensureDeferred
async def test_it_has_no_threads_before_it_is_asked(running):
    assert running.server._threads._pool.threads == []
    await running.get("/debug/vars")
    assert running.server._threads._pool.threads == []
