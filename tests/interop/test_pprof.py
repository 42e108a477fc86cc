"""``go tool pprof`` on our daemons as processes: a server under load, an idle one, and the signer."""

from __future__ import annotations

import json
import subprocess
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from notary.proto import signer_pb2
from tests.support.peers import OUR_SERVER, daemon, free_port, mint_certificates
from tests.support.pprof import go_tool_pprof
from tests.support.signer import OUR_SIGNER, Client, Pair, signer_daemon

GUN = "example.com/profiled"
MOST_PROFILES = 10


def get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


class Load:
    """Reads the same metadata again and again, in a thread, until the block ends."""

    def __init__(self, work) -> None:
        self._work = work
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._work()

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def processor_time(directory: Path, url: str, *functions: str) -> str:
    """What a profile of the processor says; a new one as long as it lacks one of these ``functions``.

    A daemon that gets little of a busy processor gets few samples too, and a function that is short is in none of them.
    """
    for _ in range(MOST_PROFILES):
        printed = go_tool_pprof(directory, f"{url}/debug/pprof/profile?seconds=2", "-cum")
        if all(function in printed for function in functions):
            break
    return printed


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("profiled")
    port = free_port()
    storage = {"backend": "sqlite3", "db_url": str(directory / "server.db")}
    debug = {"debug": f"localhost:{port}"}
    with daemon("profiled", OUR_SERVER, directory, storage=storage, extra=debug) as running:
        yield running, f"http://localhost:{port}"


def test_processor_time_of_a_server_under_load(server, tmp_path):
    running, debug = server
    functions = ("notary.server.api.Api.__call__", "notary.server.repository.Repository.current")
    with Load(lambda: get(f"{running.url}/v2/{GUN}/_trust/tuf/root.json")):
        printed = processor_time(tmp_path, debug, *functions)
    assert "Type: cpu" in printed
    assert all(function in printed for function in functions), printed


def test_memory_of_a_server_under_load(server, tmp_path):
    running, debug = server
    with Load(lambda: get(f"{running.url}/v2/{GUN}/_trust/tuf/root.json")):
        printed = go_tool_pprof(tmp_path, f"{debug}/debug/pprof/heap?seconds=2", "-cum")
    assert "Type: inuse_space" in printed
    assert "notary.observe.metrics.Distribution.observe" in printed or "notary.server.api" in printed


def test_an_idle_server(server, tmp_path):
    _, debug = server
    assert "Type: cpu" in go_tool_pprof(tmp_path, f"{debug}/debug/pprof/profile?seconds=1")
    assert "Type: inuse_space" in go_tool_pprof(tmp_path, f"{debug}/debug/pprof/heap?seconds=1")
    assert "Type: tasks" in go_tool_pprof(tmp_path, f"{debug}/debug/pprof/goroutine")
    assert "thread MainThread" in go_tool_pprof(tmp_path, f"{debug}/debug/pprof/threads")
    assert "builtins.dict" in go_tool_pprof(tmp_path, f"{debug}/debug/pprof/objects")


def test_what_is_on_both_ports_of_the_server(server):
    running, debug = server
    for url in (running.url, debug):
        assert get(f"{url}/livez") == (200, b'{"status": "alive"}')
        status, body = get(f"{url}/readyz")
        assert (status, json.loads(body)) == (200, {"status": "ok", "reads": True, "writes": True, "failures": {}})
        status, body = get(f"{url}/metrics")
        assert status == 200
        assert b"\nnotary_server_connections " in body
    assert get(f"{running.url}/debug/pprof/")[0] == 404
    counters = json.loads(get(f"{debug}/debug/vars")[1])["counters"]
    assert counters["notary_server_unexpected_errors_total"] == 0


def test_without_debug_there_is_no_debug_server(tmp_path):
    with daemon("plain", OUR_SERVER, tmp_path) as running:
        found = subprocess.run(("ss", "-Hltnp"), capture_output=True, text=True, check=True).stdout
        assert sum(f"pid={running.pid}," in line for line in found.splitlines()) == 1


def test_the_signer(tmp_path):
    pair, port = Pair.mint(tmp_path / "tls"), free_port()
    made = signer_daemon("signer", OUR_SIGNER, pair, tmp_path, {"backend": "memory"})
    config = tmp_path / "signer.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"debug": f"localhost:{port}"}))
    debug = f"http://localhost:{port}"
    with made, Client(pair, made.port) as client:
        key_id = client.create(GUN, "timestamp", "ed25519").keyInfo.keyID.ID
        message = signer_pb2.SignatureRequest(keyID=signer_pb2.KeyID(ID=key_id), content=b"x" * 1000)
        with Load(lambda: client.send("Sign", message.SerializeToString())):
            printed = processor_time(tmp_path, debug, "notary.signer.keyring.Keyring.sign")
        assert "notary.signer.keyring.Keyring.sign" in printed
        assert get(f"{debug}/livez") == (200, b'{"status": "alive"}')
        assert json.loads(get(f"{debug}/readyz")[1]) == {"status": "ok", "failures": {}}
        figures = get(f"{debug}/metrics")[1].decode()
        counters = json.loads(get(f"{debug}/debug/vars")[1])["counters"]
        assert client.health("") == 1
    assert counters['notary_signer_signatures_total{algorithm="ed25519"}'] > 0
    assert counters['notary_signer_grpc_requests_total{method="Sign",status="OK"}'] > 0
    assert counters['notary_signer_key_cache_total{result="hit"}'] > 0
    assert 'notary_signer_certificate_days{key="server.tls_cert_file",' in figures
    assert "\nnotary_signer_connections 1.0\n" in figures


def test_a_server_without_its_signer_is_ready_for_reads(tmp_path):
    """Alive, ready for reads, and says so; on the debug port it can be seen while the main port stays what it is."""
    files = mint_certificates(tmp_path / "tls")
    port = free_port()
    trust = {
        "type": "remote",
        "hostname": "localhost",
        "port": str(free_port()),
        "tls_ca_file": str(files.ca),
        "key_algorithm": "ecdsa",
    }
    extra = {"trust_service": trust, "debug": f"localhost:{port}"}
    with daemon("degraded", OUR_SERVER, tmp_path, extra=extra) as running:
        for url in (running.url, f"http://localhost:{port}"):
            while (answer := get(f"{url}/readyz"))[1] == b'{"status": "starting"}':
                assert answer[0] == 503
            status, body = answer
            facts = json.loads(body)
            assert (status, facts["status"], facts["reads"], facts["writes"]) == (200, "degraded", True, False)
            assert "UNAVAILABLE" in facts["failures"]["Trust operational"]
            assert get(f"{url}/livez")[0] == 200
        assert get(f"{running.url}/_notary_server/health")[0] == 503
