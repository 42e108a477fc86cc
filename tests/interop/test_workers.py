"""Daemons of several processes: under load, with workers that die, are replaced and do not start."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from prometheus_client.parser import text_string_to_metric_families

from tests.support.certs import Authority
from tests.support.goclient import Machine
from tests.support.peers import (
    OUR_SERVER,
    OUR_TWISTD,
    Certificates,
    Daemon,
    daemon,
    free_port,
    is_open,
    remote_signer,
)
from tests.support.readers import CLIENTS, Load, get, lines_of, messages, shown
from tests.support.sides import Side, make_collection
from tests.support.signer import OUR_SIGNER, Client, Pair, signer_daemon
from tests.support.waiting import PATIENCE_SECONDS, until
from tests.support.watched import checks_of, families_in, wanted_of

WORKERS = 2
PASSPHRASE = {"NOTARY_SIGNER_ALIAS_ONE": "correct-horse-battery-staple"}


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid: int) -> bool:
    """Whether a process runs no more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def listens(pid: int, port: int) -> bool:
    """Whether a process holds a socket that listens on this port of 127.0.0.1."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()]
    sockets = {f"socket:[{row[9]}]" for row in rows if row[1] == f"0100007F:{port:04X}" and row[3] == "0A"}
    return any(str(each.readlink()) in sockets for each in Path(f"/proc/{pid}/fd").iterdir())


def page_of_metrics(port: int) -> str:
    """The page ``/metrics`` of a debug server."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return text


def metrics(port: int) -> dict[str, float]:
    """All samples of ``/metrics``: values by name, those of all labels together."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(page_of_metrics(port)):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


class World:
    """A server and a signer of two workers each, on SQLite files; each has a debug server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pair = Pair.mint(folder / "tls")
        self.debug = {"server": free_port(), "signer": free_port()}
        workers = {"server": {"workers": WORKERS}}
        self.signer = signer_daemon(
            "signer",
            OUR_SIGNER,
            self.pair,
            folder,
            {"backend": "sqlite3", "db_url": "keys.db", "default_alias": "alias_one"},
            environment=PASSPHRASE,
            workers=WORKERS,
        )
        self.change("signer", debug=f"127.0.0.1:{self.debug['signer']}")
        self.authority = Authority.root("root")
        ca = self.authority.write(folder, "ca")
        self.tls = Certificates(ca, *self.new_pair())
        signer_ca = self.pair.authority.write(self.pair.folder, "root")
        client = self.pair.client.write(self.pair.folder, "client")
        self.server = daemon(
            "server",
            OUR_SERVER,
            folder,
            tls=self.tls,
            storage={"backend": "sqlite3", "db_url": "notary.db"},
            extra=remote_signer(self.signer.port, signer_ca, client),
        )
        self.change("server", debug=f"127.0.0.1:{self.debug['server']}", **workers)

    def change(self, name: str, **sections: Any) -> None:
        path = self.folder / f"{name}.json"
        config = json.loads(path.read_text())
        for section, value in sections.items():
            config[section] = config.get(section, {}) | value if isinstance(value, dict) else value
        path.write_text(json.dumps(config))

    def new_pair(self) -> tuple[Path, Path]:
        self.current = self.authority.leaf("localhost")
        return self.current.write(self.folder, "server")

    @property
    def serial(self) -> int:
        return self.current.chain[0].serial_number

    def start(self) -> None:
        for which in (self.signer, self.server):
            which.start()
        self.settle()

    def settle(self) -> None:
        """Wait until all workers serve, and the server is ready for everything."""
        until(lambda: metrics(self.debug["server"])["notary_server_workers"] == WORKERS, "all workers serve")
        well = WELL | {"signers": {f"localhost:{self.signer.port}": "serving"}}
        until(lambda: get(self.debug["server"], "/readyz") == (200, well), "the server is well")

    def pids(self) -> list[int]:
        return [pid for pid in children(self.server.pid) if not gone(pid)]

    def hang_up(self) -> dict[str, Any]:
        """Send SIGHUP and return the line of the parent that tells what came of it."""
        before = len(lines_of(self.server))
        self.server.signal(signal.SIGHUP)

        def told() -> list[dict[str, Any]]:
            return [line for line in lines_of(self.server)[before:] if "eloaded" in line["msg"]]

        until(told, "a reload")
        return told()[0]


WELL = {"status": "ok", "reads": True, "writes": True, "failures": {}}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    try:
        yield made
    finally:
        for which in (made.server, made.signer):
            which.kill()
        # What a parent that was killed leaves behind ends by itself.
        until(lambda: not is_open(made.server.port) and not is_open(made.signer.port), "all workers end")


async def published(world: World, reactor: Any) -> tuple[str, bytes]:
    """A path of the server that can be read, and what is there."""
    async with Side(world.server, reactor) as side:
        collection = await make_collection(side)
        path = collection.path("targets.json")
        return path, (await side.get(path)).body


def test_a_clients_life_and_what_is_shown_of_all_workers(world: World) -> None:
    world.start()
    owner = Machine(world.folder / "owner", world.server.url, world.tls.ca)
    (owner.directory / "v1").write_bytes(b"content")
    for number in range(6):
        owner("init", f"example.com/app/{number}")
        owner("add", f"example.com/app/{number}", "v1", "v1", "-p")
    for name in ("server", "signer"):
        seen = metrics(world.debug[name])
        assert seen[f"notary_{name}_workers"] == WORKERS
        assert seen[f"notary_{name}_worker_starts_total"] == WORKERS
        page = page_of_metrics(world.debug[name])
        assert wanted_of(name, mirror=False) <= families_in(page).keys()
        assert all(f'check="{check}"' in page for check in checks_of(name))
    assert metrics(world.debug["server"])["notary_server_uploads_total"] == 6
    assert metrics(world.debug["signer"])["notary_signer_signatures_total"] == 6
    # The main port shows the same, from any worker.
    owner("list", "example.com/app/0")
    with socket.create_connection(("127.0.0.1", world.server.port)):
        pass
    for number in range(1, WORKERS + 1):
        connection = http.client.HTTPConnection("127.0.0.1", world.debug["server"], timeout=30)
        connection.request("GET", f"/workers/{number}/debug/pprof/threads?debug=1")
        answer = connection.getresponse()
        assert (answer.status, b"MainThread" in answer.read()) == (200, True)
        connection.request("GET", f"/workers/{number + WORKERS}/debug/vars")
        assert connection.getresponse().status == 404
        connection.close()


def shown_environment(pid: int) -> dict[str, str]:
    """The variables of a process that ``/proc`` shows to this one; none if it hides them."""
    try:
        data = Path(f"/proc/{pid}/environ").read_bytes()
    except PermissionError:
        return {}
    return dict(entry.decode().partition("=")[::2] for entry in data.split(b"\0") if entry)


def test_workers_have_no_secrets_in_their_environment_and_import_nothing_from_where_they_start(world: World) -> None:
    for name in ("notary", "twisted", "json"):
        (world.folder / f"{name}.py").write_text(f"open({str(world.folder / 'imported')!r}, 'w').close()")
    world.server.environment["NOTARY_SERVER_LOGGING_LEVEL"] = "debug"
    world.start()
    for parent in (world.signer, world.server):
        workers = children(parent.pid)
        assert len(workers) == WORKERS
        for worker in workers:
            assert Path(f"/proc/{worker}/cwd").readlink() == world.folder
            own = {name for name in shown_environment(worker) if name.startswith("NOTARY_")}
            assert own <= {"NOTARY_SUPERVISOR"}
    assert PASSPHRASE["NOTARY_SIGNER_ALIAS_ONE"] not in shown_environment(world.signer.pid).values()
    assert not (world.folder / "imported").exists()
    assert any(line["level"] == "debug" for line in lines_of(world.server))


def debug_page(port: int, path: str, host: str = "localhost") -> tuple[int, bytes]:
    """The status and the body of a page of the debug server."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers={"Host": host})
    answer = connection.getresponse()
    status, body = answer.status, answer.read()
    connection.close()
    return status, body


def test_a_profile_of_a_worker_ends_with_its_client(world: World) -> None:
    world.start()
    port, path = world.debug["server"], "/workers/1/debug/pprof/"

    def is_taken() -> bool:
        return b"cpu_profile" in debug_page(port, f"{path}threads?debug=1")[1]

    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(f"GET {path}profile?seconds=600 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        until(is_taken, "the profile is being taken")
        assert debug_page(port, f"{path}heap?seconds=0.01")[0] == 409
    until(lambda: not is_taken(), "it has ended with its client")
    until(lambda: debug_page(port, f"{path}heap?seconds=0.01")[0] == 200, "the next one can be taken")
    assert debug_page(port, f"{path}threads", "rebind.example")[0] == 403


@pytest_twisted.ensureDeferred
async def test_workers_are_replaced_under_load_without_a_failed_request(reactor: Any, world: World) -> None:
    world.change("server", server={"drain_timeout": 3 * PATIENCE_SECONDS})  # a third of it for the next request
    world.start()
    path, expected = await published(world, reactor)
    with Load(world.server.port, world.tls.ca, path, expected) as load:
        for _ in range(2):
            before, old = world.serial, world.pids()
            world.new_pair()
            assert shown(world.server.port, world.tls.ca) == before
            assert world.hang_up()["level"] == "info"
            until(lambda old=old: all(gone(pid) for pid in old), "the old ones have ended")
            # The parent looks at the files by itself too: on a busy machine it may be replacing them once more.
            until(lambda: len(world.pids()) == WORKERS, "there are as many as before")
            assert shown(world.server.port, world.tls.ca) == world.serial
            load.go_on()
        reads = sum(reader.reads for reader in load.readers)
    seen = metrics(world.debug["server"])
    assert seen["notary_server_http_requests_total"] >= reads
    assert seen["notary_server_worker_starts_total"] == 3 * WORKERS
    assert not [line for line in lines_of(world.server) if line["level"] in ("error", "fatal")]


def test_a_worker_that_is_replaced_answers_once_more_on_each_of_its_connections(world: World) -> None:
    world.change("server", server={"drain_timeout": 3 * PATIENCE_SECONDS})
    world.start()
    trusted = ssl.create_default_context(cafile=str(world.tls.ca))

    def answer(client: http.client.HTTPSConnection) -> tuple[int, str | None]:
        client.request("GET", "/v2/")
        response = client.getresponse()
        response.read()
        return response.status, response.getheader("Connection")

    with ExitStack() as stack:
        clients = [
            stack.enter_context(
                closing(http.client.HTTPSConnection("localhost", world.server.port, timeout=30, context=trusted))
            )
            for _ in range(10)
        ]
        assert [answer(client) for client in clients] == [(200, None)] * len(clients)
        old = world.pids()
        world.hang_up()
        assert not any(gone(pid) for pid in old), "they wait for their clients"
        assert [answer(client) for client in clients] == [(200, "close")] * len(clients)
        until(lambda: all(gone(pid) for pid in old), "the old ones have ended")


@pytest_twisted.ensureDeferred
async def test_a_worker_that_is_killed_comes_back(reactor: Any, world: World) -> None:
    world.start()
    path, expected = await published(world, reactor)
    for _ in range(2):
        victim, *others = world.pids()
        counted = metrics(world.debug["server"])["notary_server_http_requests_total"]
        os.kill(victim, signal.SIGKILL)
        # Connections of others are served meanwhile, new ones too.
        async with Side(world.server, reactor) as side:
            assert (await side.get(path)).body == expected
        # One that has died counts until its parent has heard of it.
        until(lambda victim=victim: victim not in world.pids() and len(world.pids()) == WORKERS, "another one")
        world.settle()
        assert set(others) < set(world.pids())
        assert metrics(world.debug["server"])["notary_server_http_requests_total"] >= counted
    ends = [line for line in lines_of(world.server) if "another one starts" in line["msg"]]
    assert [line["level"] for line in ends] == ["error"] * 2
    assert all("by signal 9" in line["msg"] for line in ends)


def test_a_worker_that_hangs_is_replaced(world: World) -> None:
    """It is asked every five seconds, and may think for thirty."""
    world.start()
    victim = world.pids()[0]
    os.kill(victim, signal.SIGSTOP)
    until(lambda: gone(victim), "it is killed")
    world.settle()
    said = [line["msg"] for line in lines_of(world.server) if line["level"] == "error"]
    assert len(said) == 2
    assert "has not answered for 30" in said[0]
    assert "by signal 9" in said[1]


def test_a_bad_certificate_replaces_nobody(world: World) -> None:
    world.start()
    good, before = world.serial, world.pids()
    world.tls.certificate.write_text("nothing")
    line = world.hang_up()
    assert line["level"] == "error"
    assert "holds no certificate" in line["msg"]
    assert world.pids() == before
    assert shown(world.server.port, world.tls.ca) == good
    world.new_pair()
    world.change("server", server={"http_addr": "127.0.0.1:1"})
    assert world.hang_up()["level"] == "info"
    assert any(line["msg"].startswith("server.http_addr has changed") for line in lines_of(world.server))
    assert shown(world.server.port, world.tls.ca) == world.serial


def test_new_workers_that_do_not_start_leave_the_old_ones(world: World) -> None:
    world.start()
    before = world.pids()
    world.change("server", storage={"db_url": str(world.folder)})
    line = world.hang_up()
    assert line["level"] == "error"
    assert "a worker ended before it served" in line["msg"]
    assert world.pids() == before
    assert metrics(world.debug["server"])["notary_server_worker_starts_total"] == WORKERS + 1
    world.change("server", storage={"db_url": "notary.db"})
    assert world.hang_up()["level"] == "info"
    until(lambda: len(world.pids()) == WORKERS, "the old ones end")
    assert not set(world.pids()) & set(before)
    assert not [line for line in lines_of(world.server) if "another one starts" in line["msg"]]
    assert shown(world.server.port, world.tls.ca) == world.serial


def test_a_stop_serves_the_connections_that_no_worker_has_accepted_yet(world: World) -> None:
    world.change("server", server={"drain_timeout": 3 * PATIENCE_SECONDS})
    world.start()
    trusted = ssl.create_default_context(cafile=str(world.tls.ca))
    workers = world.pids()
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    with ExitStack() as stack:
        address = ("127.0.0.1", world.server.port)
        queued = [stack.enter_context(socket.create_connection(address, PATIENCE_SECONDS)) for _ in range(40)]
        world.server.signal(signal.SIGTERM)
        try:
            until(lambda: not listens(world.server.pid, world.server.port), "the parent has closed the port")
        finally:
            for pid in workers:
                os.kill(pid, signal.SIGCONT)
        for client in queued:
            with trusted.wrap_socket(client, server_hostname="localhost") as secure:
                secure.sendall(b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert secure.recv(100).startswith(b"HTTP/1.1 200 ")
    assert world.server.wait() == -signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_all_end_together(world: World, number: signal.Signals) -> None:
    world.start()
    pids = world.pids()
    world.server.signal(number)
    assert world.server.wait() == -number
    assert all(gone(pid) for pid in pids)
    assert not is_open(world.server.port)


def test_workers_end_when_their_parent_is_killed(world: World) -> None:
    world.start()
    pids = world.pids()
    world.server.kill()
    until(lambda: all(gone(pid) for pid in pids), "the workers end")


def test_signals_reach_all_workers(world: World) -> None:
    world.start()
    world.server.signal(signal.SIGUSR1)
    until(lambda: messages(world.server).count("The log level is now warning") == 1 + WORKERS, "all tell")


def test_a_start_that_fails_ends_with_one_status(tmp_path: Path, world: World) -> None:
    world.signer.start()
    world.change("server", storage={"db_url": str(tmp_path)})
    world.server.spawn()
    assert world.server.wait() == 1
    # Not always the last line: the other worker may have something to say as well.
    said = [line["level"] for line in lines_of(world.server) if "a worker ended before it served" in line["msg"]]
    assert said == ["fatal"]


def test_two_signer_workers_leave_one_pending_key(world: World) -> None:
    world.signer.start()
    with ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        clients = [stack.enter_context(Client(world.pair, world.signer.port)) for _ in range(8)]
        made = pool.map(lambda number: clients[number % 8].create("example.com/app", "snapshot", "ecdsa"), range(24))
        assert len({key.keyInfo.keyID.ID for key in made}) == 1


def test_systemd_is_told_when_all_serve(tmp_path: Path, world: World) -> None:
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    manager.settimeout(30)
    world.signer.start()
    world.server.environment |= {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
    world.server.passed = socket.create_server(("127.0.0.1", world.server.port), backlog=100)
    world.server.spawn()
    heard = [manager.recv(4096).decode()]
    while not heard[-1].startswith("READY=1"):
        heard.append(manager.recv(4096).decode())
    assert shown(world.server.port, world.tls.ca) == world.serial
    assert all(one.startswith(("WATCHDOG=1", "READY=1")) for one in heard), "workers say nothing to systemd"
    assert world.server.stop() == -signal.SIGTERM
    world.server.passed.close()
    manager.close()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param({"storage": {"backend": "memory"}}, 'storage.backend "memory"', id="memory"),
        pytest.param({"trust_service": {"type": "local"}}, 'trust_service.type "local"', id="local keys"),
        pytest.param({"server": {"workers": 0}}, "server.workers: 0 cannot be used", id="none"),
    ],
)
def test_what_cannot_be_shared_is_refused(world: World, change: dict[str, Any], says: str) -> None:
    world.change("server", **change)
    world.server.spawn()
    assert world.server.wait() == 1
    last = lines_of(world.server)[-1]
    assert (last["level"], says in last["msg"]) == ("fatal", True)
    assert not is_open(world.server.port)


def test_under_twistd(world: World) -> None:
    world.signer.start()
    log = world.folder / "twistd.log"
    flags = ("-n", f"--logfile={log}", "--pidfile=", "notary-server", f"--config={world.folder / 'server.json'}")
    service = Daemon("twistd", (*OUR_TWISTD, *flags), world.server.port, world.folder, tls=world.tls)
    with service:
        world.settle()
        service.stop()
    started = [json.loads(line)["msg"] for line in log.read_text().splitlines()]
    assert sum(line.startswith("Version: ") for line in started) == 1 + WORKERS


def test_auto_is_one_for_each_processor(world: World) -> None:
    world.signer.start()
    world.change("server", server={"workers": "auto"})
    world.server.start()
    expected = len(os.sched_getaffinity(0))
    until(lambda: is_open(world.debug["server"]), "the debug server")
    until(lambda: metrics(world.debug["server"])["notary_server_workers"] == expected, "all serve")


def test_work_is_shared(world: World) -> None:
    """Many clients at once are not all served by one."""
    world.start()
    sockets = [socket.create_connection(("127.0.0.1", world.server.port)) for _ in range(CLIENTS)]
    until(lambda: metrics(world.debug["server"])["notary_server_connections"] >= CLIENTS, "all are taken")
    shares = []
    for number in range(1, WORKERS + 1):
        connection = http.client.HTTPConnection("127.0.0.1", world.debug["server"], timeout=30)
        connection.request("GET", f"/workers/{number}/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        (family,) = [one for one in text_string_to_metric_families(text) if one.name == "notary_server_connections"]
        shares.append(family.samples[0].value)
    assert all(share > 0 for share in shares), shares
    for one in sockets:
        one.close()
