"""Every command ends by itself: when nobody reads its output any more, and on a signal at any stage."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from notary.admin.command import Status
from tests.admin.conftest import admin, write_config
from tests.admin.test_docs import COMMANDS
from tests.support.ended import STAGES
from tests.support.keyplace import NEW, OLD, PASSPHRASES, KeyPlace, make_key
from tests.support.signer import Pair
from tests.support.stored import Place, Publisher

ADMIN = Path(sys.executable).with_name("notary-admin")
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("NOTARY_")},
    **{f"NOTARY_SIGNER_{alias.upper()}": PASSPHRASES[alias] for alias in (OLD, NEW)},
}
LINES = 14
SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE_SECONDS = 60

GUNS = [f"example.com/{number}" for number in range(LINES)]
ARGUMENTS = {
    "check-config": ("server", []),
    "check-database": ("server", []),
    "health": ("server", []),
    "migrate": ("old", ["--dry-run"]),
    "repos list": ("server", []),
    "repos show": ("server", ["example.com/0"]),
    "repos delete": ("server", ["example.com/0", "--dry-run"]),
    "repos export": ("server", ["example.com/0", "{folder}/{pid}.jsonl"]),
    "repos import": ("server", ["{folder}/0.jsonl", "--dry-run"]),
    "keys list": ("signer", []),
    "keys reencrypt": ("signer", ["--to", NEW]),
    "keys prune": ("signer", ["--older-than", "0m", "--dry-run"]),
    "keys verify": ("signer", []),
    "keys bench": ("signer", ["--seconds", "0.1"]),
    "expiring": ("server", ["--within", "9999d"]),
    "fsck": ("server", []),
    "gc": ("server", ["--keep", "1", "--dry-run"]),
    "repos targets": ("server", ["example.com/0"]),
    "changes": ("server", []),
    "fetch": ("server", ["{url}", *GUNS, "--dry-run"]),
    "mirror": ("server", ["{url}", *GUNS]),
}
"""For each command the configuration that it needs, and its other arguments."""
SILENT = {"health", "mirror"}
"""Commands that write nothing to standard output."""


def test_every_command_is_here():
    assert ARGUMENTS.keys() == COMMANDS.keys() - {"files"}  # which only a wheel has: tests/test_dist.py


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    """Configurations of a server, a signer, and a server whose database is empty; all databases are files.

    The collections are also served as files, at the address in the file "url".
    """
    made = tmp_path_factory.mktemp("ends")
    pair = Pair.mint(made / "tls")
    places = Place("sqlite3", str(made / "server.db")), KeyPlace("sqlite3", str(made / "signer.db"))

    async def fill() -> None:
        for number in range(LINES):
            publisher = Publisher(f"example.com/{number}")
            await places[0].publish(publisher, publisher.next(), publisher.next())
        await places[1].fill(*(make_key(str(number)) for number in range(LINES)))

    pytest_twisted.blockon(Deferred.fromCoroutine(fill()))
    places[0].config(made)
    places[1].config(
        made, server={"grpc_addr": ":0", "tls_cert_file": "tls/signer.crt", "tls_key_file": "tls/signer.key"}
    )
    assert pair.folder == made / "tls"
    (made / "old.db").touch()
    server = json.loads((made / "server.json").read_text())
    write_config(made, "old.json", {**server, "storage": {"backend": "sqlite3", "db_url": "old.db"}})
    done = admin("repos", "export", "example.com/0", made / "0.jsonl", "--config", made / "server.json")
    assert pytest_twisted.blockon(Deferred.fromCoroutine(done)).status == Status.OK
    done = admin("repos", "export", "--static", made / "tree", "--config", made / "server.json")
    assert pytest_twisted.blockon(Deferred.fromCoroutine(done)).status == Status.OK
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(made / "tree"))) as web:
        (made / "url").write_text(f"http://127.0.0.1:{web.server_port}")
        serving = threading.Thread(target=web.serve_forever)
        serving.start()
        yield made
        web.shutdown()
        serving.join()


def arguments(name: str, folder: Path, config: Path | None = None) -> list[str]:
    kind, more = ARGUMENTS[name]
    url = (folder / "url").read_text()
    more = [each.replace("{folder}", str(folder)).replace("{url}", url) for each in more]
    return [*name.split(), "--config", str(config or folder / f"{kind}.json"), *more]


def ended(command: list[str], cases: list[dict], grace_seconds: float = PATIENCE_SECONDS) -> list[dict]:
    """What tests.support.ended says of each case."""
    request = {"arguments": command, "cases": cases, "grace_seconds": grace_seconds}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.ended", json.dumps(request)],
        capture_output=True,
        env=ENVIRONMENT,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
        cwd=Path(__file__).parent.parent.parent,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


# -- pipes ------------------------------------------------------------------------------------------------------------


def unread(command: list[str], *, program: Path = ADMIN, **more) -> tuple[int, str]:
    """The status and the errors of the console script whose standard output is a closed pipe."""
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(
        [program, *command],
        stdout=writer,
        stderr=more.pop("stderr", subprocess.PIPE),
        env=ENVIRONMENT,
        text=True,
        **more,
    )
    os.close(writer)
    err = process.communicate(timeout=PATIENCE_SECONDS)[1]
    return process.returncode, err or ""


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_closed_pipe(name, folder):
    own, *ends = ended(arguments(name, folder), [{}, {"lines": 0}, {"lines": 1}, {"lines": 12}])
    assert own["wrote"] == (name not in SILENT)
    assert [end for end in ends if "Traceback" in end["err"] or "Exception" in end["err"]] == []
    # What fits into the pipe was written before its reader went away.
    statuses = [end["status"] for end in ends]
    assert set(statuses) <= {Status.PIPE, own["status"]}
    assert statuses[0] == (Status.PIPE if own["wrote"] else own["status"])


@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize("name", ["repos list", "expiring", "gc", "keys list", "migrate"])
def test_a_reader_that_goes_away(name, as_json, folder):
    """The pipe is smaller than the output, so the command is still writing when its reader has what it wants."""
    code = (
        "import os, sys\n"
        "from notary.admin import cli, output\n"
        "write = output.Output._write\n"
        "def flushed(self, text):\n"
        "    write(self, text)\n"
        "    self.flush()\n"
        "    sys.stdin.readline()\n"
        "output.Output._write = flushed\n"
        "printed = output.Output._print\n"
        "output.Output._print = lambda self, what: (printed(self, what), sys.stdin.readline())\n"
        "cli.main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments(name, folder), *as_json],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        text=True,
    )
    process.stdout.readline()
    process.stdout.close()
    _, err = process.communicate("\n" * 1000, timeout=PATIENCE_SECONDS)
    assert (process.returncode, err) == (Status.PIPE, "")


@pytest.mark.parametrize(
    "command",
    [["--help"], ["--version"], ["migrate", "--help"], ["repos", "--help"], ["keys", "list", "--help"]],
    ids=" ".join,
)
def test_help_that_nobody_reads(command):
    assert unread(command) == (Status.PIPE, "")


@pytest.mark.parametrize("program", ["notary-server", "notary-signer", "twistd notary-server"])
@pytest.mark.parametrize("flag", ["--version", "--help"])
def test_daemons_whose_answer_nobody_reads(program, flag):
    name, *more = program.split()
    assert unread([*more, flag], program=ADMIN.with_name(name)) == (Status.PIPE, "")


@pytest.mark.parametrize("command", [["no-such-command"], ["check-config", "--config", "no-such-file"]], ids=" ".join)
def test_errors_that_nobody_reads(command):
    assert unread(command, stderr=subprocess.STDOUT) == (Status.PIPE, "")


@pytest.mark.parametrize("command", [["migrate"], ["check-config"], ["migrate", "--help"]], ids=" ".join)
def test_a_full_disk(command, folder):
    name = command[0]
    command = command if "--help" in command else arguments(name, folder)
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [ADMIN, *command], stdout=full, stderr=subprocess.PIPE, env=ENVIRONMENT, text=True, check=False
        )
    said = "notary-admin: standard output cannot be written: No space left on device\n"
    assert (ended.returncode, ended.stderr) == (Status.OUTPUT, said)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_process_without_a_stream(closed, folder):
    shell = f'exec "$@" {closed}'
    command = ["bash", "-c", shell, "bash", str(ADMIN), *arguments("migrate", folder)]
    assert subprocess.run(command, env=ENVIRONMENT, capture_output=True, check=False).returncode == Status.OK


# -- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_signal_at_each_stage(name, folder):
    cases = [(stage, number) for stage in STAGES for number in SIGNALS]
    told = [{"stage": stage, "signal": number} for stage, number in cases]
    own, *ends = ended(arguments(name, folder), [{}, *told])
    found = {case: end for case, end in zip(cases, ends, strict=True) if end["reached"]}
    assert all("Traceback" not in end["err"] for end in found.values()), found
    assert {end["status"] for end in found.values()} <= {Status.INTERRUPTED, own["status"]}, found
    for (stage, _), end in found.items():
        if stage in ("command line", "configuration", "store"):  # with all the work still to be done
            assert end["status"] == Status.INTERRUPTED, (stage, end)
    assert {"command line", "configuration", "flush", "end", "exit"} <= {stage for stage, _ in found}


@pytest.mark.parametrize("name", ["repos list", "check-config", "migrate"])
def test_a_signal_while_nobody_reads(name, folder):
    cases = [{"stage": "results", "signal": number, "lines": "none"} for number in SIGNALS]
    assert [end["status"] for end in ended(arguments(name, folder), cases, 0.2)] == [Status.INTERRUPTED] * 2


def begun(command: list[str], **more) -> subprocess.Popen:
    return subprocess.Popen([ADMIN, *command], stderr=subprocess.PIPE, env=ENVIRONMENT, text=True, **more)


@pytest.fixture
def mute():
    """A port of 127.0.0.1 that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(PATIENCE_SECONDS)
        yield listening


@pytest.mark.parametrize("name", [name for name in ARGUMENTS if name not in {"repos export", "keys bench"}])
def test_a_signal_while_nobody_answers(name, folder, mute, tmp_path):
    """The connection to a database cannot be cancelled: it is not waited for once a second signal has come."""
    tree = json.loads((folder / f"{ARGUMENTS[name][0].replace('old', 'server')}.json").read_text())
    host, port = mute.getsockname()
    tree["server"] |= {key: str(folder / value) for key, value in tree["server"].items() if key.startswith("tls_")}
    tree["storage"] |= {"backend": "mysql", "db_url": f"u:p@tcp({host}:{port})/d", "connect_timeout": 600}
    if name == "health":
        tree["server"]["http_addr"] = f"{host}:{port}"
    process = begun(arguments(name, folder, write_config(tmp_path, "mute.json", tree)), stdout=subprocess.DEVNULL)
    with mute.accept()[0]:
        for number in SIGNALS:
            process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, err) == (Status.INTERRUPTED, "")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_at_a_question(number, folder):
    ours, theirs = pty.openpty()
    process = begun(arguments("gc", folder)[:-1], stdin=theirs)
    os.close(theirs)
    try:
        assert process.stderr.readline().endswith("[y/N]\n")
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE_SECONDS)
    finally:
        os.close(ours)
    assert (process.returncode, err) == (Status.INTERRUPTED, "")
