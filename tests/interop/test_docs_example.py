"""The daemon as an operator meets it: the guide's example, every way to start it, signals, refused configurations.

Rules of this module: every server is a real process. The test waits for what it expects to see (a line, an answer, an
exit status) and fails when that does not come.
"""

from __future__ import annotations

import copy
import json
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from tests.support.peers import (
    OUR_SERVER,
    OUR_TWISTD,
    Certificates,
    Daemon,
    clean_environment,
    free_port,
    is_open,
    mint_certificates,
    server_config,
)
from tests.support.sides import Side, make_collection

EXIT_SECONDS = 30.0
OPERATIONS = Path(__file__).parents[2] / "docs/operations.md"

GUIDE = {
    "server": {"http_addr": ":4443", "tls_key_file": "./server.key", "tls_cert_file": "./server.crt"},
    "trust_service": {
        "type": "remote",
        "hostname": "notarysigner",
        "port": "7899",
        "tls_ca_file": "./root-ca.crt",
        "key_algorithm": "ecdsa",
        "tls_client_cert": "./notary-server.crt",
        "tls_client_key": "./notary-server.key",
    },
    "storage": {"backend": "mysql", "db_url": "server@tcp(mysql:3306)/notaryserver?parseTime=True"},
}
"""The configuration of the operator's guide (running_a_service.md)."""

OVERRIDES = {
    "NOTARY_SERVER_TRUST_SERVICE_TYPE": "local",
    "NOTARY_SERVER_STORAGE_BACKEND": "memory",
    "NOTARY_SERVER_LOGGING_LEVEL": "debug",
}


LOCAL_SIGNING = (
    "Using local signing service, which requires ED25519. "
    "Ignoring all other trust_service parameters, including keyAlgorithm"
)


def entries(output: str) -> list[dict[str, Any]]:
    """The log lines, each of which must be a JSON object."""
    return [json.loads(line) for line in output.splitlines()]


def said(server: Daemon) -> list[str]:
    """What a server has printed since it named its version, which it does before it reads its configuration."""
    version, *rest = server.output().splitlines()
    assert json.loads(version)["msg"].startswith("Version: ")
    return rest


def guide_server(directory: Path, command: tuple[str, ...], *arguments: str) -> Daemon:
    """The guide's example in ``directory``, on a free port; ``{}`` in ``arguments`` is its file."""
    files = mint_certificates(directory)
    port = free_port()
    config = copy.deepcopy(GUIDE)
    config["server"]["http_addr"] = f":{port}"
    (directory / "config.json").write_text(json.dumps(config))
    given = [argument.replace("{}", str(directory / "config.json")) for argument in arguments]
    return Daemon("guide", (*command, *given), port, directory, tls=files, environment=OVERRIDES)


# -- the guide --------------------------------------------------------------------------------------------------------


def test_the_guides_example(tmp_path: Path) -> None:
    with guide_server(tmp_path, OUR_SERVER, "-config={}", "-logf=json") as server:
        log = entries(server.output())
    messages = [entry["msg"] for entry in log if entry["level"] == "info"]
    version, *rest = messages[:6]
    assert version.startswith("Version: ")
    assert ", Git commit: " in version
    assert rest == [
        LOCAL_SIGNING,
        "Using memory backend",
        "Starting Server",
        "Enabling TLS",
        f"Starting on :{server.port}",
    ]
    for entry in log:
        assert {"level", "msg", "time"} <= entry.keys()
        assert time.strptime(entry["time"], "%Y-%m-%dT%H:%M:%SZ")


def test_the_commands_of_the_page_signal_the_daemon_by_its_pid_file(tmp_path: Path) -> None:
    start, tell = re.findall(r"^(?:sh -c|kill) .*notary-server\.pid.*$", OPERATIONS.read_text(), re.MULTILINE)
    pid_file = tmp_path / "notary-server.pid"
    replaced = {
        "/run/notary-server.pid": str(pid_file),
        "exec notary-server ": f"exec {shlex.join(OUR_SERVER)} ",
        "/etc/notary/server-config.json": str(tmp_path / "config.json"),
    }
    for old, new in replaced.items():
        start, tell = start.replace(old, new), tell.replace(old, new)
    server = guide_server(tmp_path, ("bash", "-c", f"exec {start.removesuffix(' &')}"))
    with server:
        assert pid_file.read_text() == f"{server.pid}\n"
        subprocess.run(["bash", "-c", tell], check=True, timeout=EXIT_SECONDS)
        deadline = time.monotonic() + EXIT_SECONDS
        while "The log level stays debug" not in server.output():
            assert time.monotonic() < deadline, server.output()
            time.sleep(0.02)
        assert server.stop() == -signal.SIGTERM


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        pytest.param(OUR_SERVER, ["-config={}", "-logf=json"], id="one dash"),
        pytest.param(OUR_SERVER, ["--config={}", "--logf=json"], id="two dashes"),
        pytest.param(OUR_SERVER, ["-config", "{}", "-logf", "json"], id="value apart"),
        pytest.param(OUR_SERVER, ["-config={}"], id="json is the default"),
        pytest.param(OUR_TWISTD, ["-n", "--pidfile=", "notary-server", "--config", "{}"], id="twistd"),
        pytest.param(OUR_TWISTD, ["-n", "--pidfile=", "notary-server", "-config={}"], id="twistd, one dash"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_every_way_to_start_it_serves_the_same(
    reactor: Any, tmp_path: Path, command: tuple[str, ...], arguments: list[str]
) -> None:
    with guide_server(tmp_path, command, *arguments) as server:
        async with Side(server, reactor) as side:
            collection = await make_collection(side, server_snapshot=True)
            await collection.verify()
            assert (await side.get("/")).brief == "404 METADATA_NOT_FOUND"
            messages = [entry["msg"] for entry in entries(server.output()) if entry["level"] == "info"]
            assert messages[1:6] == [
                LOCAL_SIGNING,
                "Using memory backend",
                "Starting Server",
                "Enabling TLS",
                f"Starting on :{server.port}",
            ]
            # Our idle connection is still open, and the reactor must be free to see it close.
            assert await deferToThread(server.stop) == -signal.SIGTERM
    assert not is_open(server.port)


def test_logfmt(tmp_path: Path) -> None:
    with guide_server(tmp_path, OUR_SERVER, "-config={}", "-logf=logfmt") as server:
        lines = server.output().splitlines()
    (starting,) = [line for line in lines if 'msg="Starting Server"' in line]
    assert "level=info" in starting.split()
    assert any(word.startswith("time=") for word in starting.split())


@pytest.mark.parametrize("flag", ["-version", "--version"])
def test_version(flag: str) -> None:
    done = subprocess.run([*OUR_SERVER, flag], capture_output=True, env=clean_environment(), timeout=60, check=True)
    assert done.stdout.decode().startswith("notary-server Version: ")
    assert done.stderr == b""


# -- signals ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def quiet_server(tmp_path: Path) -> Iterator[Daemon]:
    """A server that logs errors only."""
    port = free_port()
    (tmp_path / "config.json").write_text(json.dumps(server_config(port)))
    with Daemon("quiet", (*OUR_SERVER, "-config=config.json"), port, tmp_path) as server:
        yield server


@pytest_twisted.ensureDeferred
async def test_signals_change_how_much_is_logged(reactor: Any, quiet_server: Daemon) -> None:
    """Levels go error, warning, info, debug; a request is logged at info."""
    async with Side(quiet_server, reactor) as side:
        count = 0

        async def is_logged() -> bool:
            nonlocal count
            count += 1
            await side.get(f"/asked-{count}")
            # The line of a request is written when its answer is; one more request later it is surely there.
            await side.get("/then")
            return f"/asked-{count}" in quiet_server.output()

        async def becomes(logged: bool) -> None:
            for _ in range(100):
                if await is_logged() == logged:
                    return
            pytest.fail(f"requests are {'never' if logged else 'still'} logged:\n{quiet_server.output()}")

        assert not await is_logged()
        for _ in range(2):
            quiet_server.signal(signal.SIGUSR1)
            assert (await side.get("/v2/")).status == 200
        await becomes(logged=True)
        quiet_server.signal(signal.SIGUSR2)
        await becomes(logged=False)
        for _ in range(9):  # beyond either end nothing happens
            quiet_server.signal(signal.SIGUSR1)
            assert (await side.get("/v2/")).status == 200
        await becomes(logged=True)
        for _ in range(9):
            quiet_server.signal(signal.SIGUSR2)
            assert (await side.get("/v2/")).status == 200
        await becomes(logged=False)
    assert quiet_server.stop() == -signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_cleanly(quiet_server: Daemon, number: signal.Signals) -> None:
    """The work is done and nothing is left open; then the process ends by the signal itself, as twistd's do."""
    quiet_server.signal(number)
    assert quiet_server.wait() == -number
    assert not is_open(quiet_server.port)
    assert said(quiet_server) == []


# -- configurations that are refused ----------------------------------------------------------------------------------

Config = dict[str, Any]
Change = Callable[[Config], Any]


def put(section: str, key: str, value: Any) -> Change:
    def change(config: Config) -> None:
        config.setdefault(section, {})[key] = value

    return change


def drop(section: str, key: str) -> Change:
    return lambda config: config[section].pop(key)


REFUSED: list[Any] = [
    pytest.param(drop("server", "http_addr"), {}, ["server.http_addr"], id="no address"),
    pytest.param(
        put("server", "http_addr", "nowhere"), {}, ["server.http_addr", "nowhere"], id="address without a port"
    ),
    pytest.param(put("server", "http_addr", ":123456"), {}, ["server.http_addr", ":123456"], id="port too large"),
    pytest.param(
        put("server", "tls_key_file", "k.pem"), {}, ["server.tls_cert_file"], id="TLS key without certificate"
    ),
    pytest.param(
        put("server", "tls_cert_file", "c.pem"), {}, ["server.tls_key_file"], id="TLS certificate without key"
    ),
    pytest.param(drop("trust_service", "type"), {}, ["trust_service.type"], id="no trust service"),
    pytest.param(put("trust_service", "type", "yubikey"), {}, ["trust_service.type", "yubikey"], id="trust service"),
    pytest.param(drop("storage", "backend"), {}, ["storage.backend"], id="no backend"),
    pytest.param(put("storage", "backend", "rethinkdb"), {}, ["storage.backend", "rethinkdb"], id="backend"),
    pytest.param(put("storage", "backend", "sqlite3"), {}, ["storage.db_url"], id="SQLite without a file"),
    pytest.param(put("logging", "level", "loud"), {}, ["logging.level", "loud"], id="level"),
    pytest.param(
        put("repositories", "gun_prefixes", ["example.com"]),
        {},
        ["repositories.gun_prefixes", "example.com"],
        id="prefix without a slash",
    ),
    pytest.param(
        put("caching", "max_age", {"current_metadata": 31536001}),
        {},
        ["caching.max_age.current_metadata", "31536001"],
        id="cache too long",
    ),
    pytest.param(
        put("caching", "max_age", {"consistent_metadata": "soon"}),
        {},
        ["caching.max_age.consistent_metadata", "soon"],
        id="cache time that is no number",
    ),
    pytest.param(put("auth", "type", "htpasswd"), {}, ["auth.type", "htpasswd"], id="auth"),
    pytest.param(
        lambda _config: None,
        {"NOTARY_SERVER_LOGGING_LEVEL": "loud"},
        ["NOTARY_SERVER_LOGGING_LEVEL", "loud"],
        id="variable",
    ),
    pytest.param(
        lambda _config: None,
        {"NOTARY_SERVER_STORAGE": '{"backend": "memory"}'},
        ["NOTARY_SERVER_STORAGE"],
        id="variable for a map",
    ),
]


def refusal(directory: Path, port: int, *arguments: str, environment: dict[str, str] | None = None) -> str:
    """What the server says when it does not start: one line, status 1, and its port stays closed."""
    server = Daemon("refused", (*OUR_SERVER, *arguments), port, directory, environment=environment)
    try:
        server.spawn()
        assert server.wait(EXIT_SECONDS) == 1, server.output()
    finally:
        server.kill()
    assert not is_open(port)
    lines = said(server)
    assert len(lines) == 1, server.output()
    return lines[0]


@pytest.mark.parametrize(("change", "environment", "words"), REFUSED)
def test_a_bad_configuration_is_refused(
    tmp_path: Path, change: Change, environment: dict[str, str], words: list[str]
) -> None:
    port = free_port()
    config: Config = server_config(port)
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    line = refusal(tmp_path, port, "-config=config.json", environment=environment)
    for word in words:
        assert word in line


@pytest.mark.parametrize("broken", ["certificate missing", "key missing", "key of another", "certificate is noise"])
def test_tls_that_cannot_be_used_is_never_plain_http(tmp_path: Path, certificates: Certificates, broken: str) -> None:
    other = mint_certificates(tmp_path / "other")
    (tmp_path / "noise.crt").write_text("noise")
    files = {
        "certificate missing": ("missing.crt", certificates.key),
        "key missing": (certificates.certificate, "missing.key"),
        "key of another": (certificates.certificate, other.key),
        "certificate is noise": ("noise.crt", certificates.key),
    }
    port = free_port()
    config: Config = server_config(port)
    certificate, key = files[broken]
    config["server"] |= {"tls_cert_file": str(certificate), "tls_key_file": str(key)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "server.tls_" in refusal(tmp_path, port, "-config=config.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "not json", '{"server": {}} trailing', "\xff"])
def test_a_configuration_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    assert "; expected " in refusal(tmp_path, free_port(), "-config=config.json")


def test_a_missing_configuration_is_refused(tmp_path: Path) -> None:
    assert "missing.json" in refusal(tmp_path, free_port(), "-config=missing.json")


def test_a_port_in_use_is_refused(tmp_path: Path, quiet_server: Daemon) -> None:
    second = Daemon("second", quiet_server.command, quiet_server.port, quiet_server.directory)
    second.spawn()
    try:
        assert second.wait(EXIT_SECONDS) == 1
    finally:
        second.kill()
    (line,) = said(second)
    assert f"127.0.0.1:{quiet_server.port}" in line
    assert quiet_server.alive


def test_an_unknown_key_is_warned_about(tmp_path: Path) -> None:
    port = free_port()
    config: Config = server_config(port, level="warning")
    config["storage"]["db_ulr"] = "notary.db"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with Daemon("warned", (*OUR_SERVER, "-config=config.json"), port, tmp_path) as server:
        (line,) = said(server)
    entry = json.loads(line)
    assert entry["level"] == "warning"
    assert "storage.db_ulr" in entry["msg"]
    assert "storage.db_url" in entry["msg"]
