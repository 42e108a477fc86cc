"""The manhole, entered by OpenSSH's own client."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.logger import globalLogPublisher

from notary.errors import ConfigError
from notary.observe.manhole import Manhole

COMMAND_SECONDS = 30.0


class World:
    """A folder with a key that may enter, one that may not, and a host key."""

    def __init__(self, folder) -> None:
        self.folder = folder
        for name in ("friend", "stranger", "host"):
            subprocess.run(("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", folder / name), check=True)
        self.authorized = folder / "authorized_keys"
        self.authorized.write_bytes(b"# who may\n\n" + (folder / "friend.pub").read_bytes())
        self.authorized.chmod(0o600)
        self.host = folder / "host"

    def manhole(self, **names) -> Manhole:
        return Manhole(reactor, 0, self.authorized, self.host, names)

    def ssh(self, manhole: Manhole, key: str, typed: str) -> subprocess.CompletedProcess[str]:
        known = self.folder / "known_hosts"
        known.write_text(f"[127.0.0.1]:{manhole.port} {(self.folder / 'host.pub').read_text()}")
        options = {
            "UserKnownHostsFile": known,
            "StrictHostKeyChecking": "yes",
            "IdentitiesOnly": "yes",
            "IdentityFile": self.folder / key,
            "BatchMode": "yes",
        }
        arguments = [f"-o{name}={value}" for name, value in options.items()]
        return subprocess.run(
            ("ssh", "-F", "none", "-tt", *arguments, "-p", str(manhole.port), "operator@127.0.0.1"),
            input=typed,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("manhole"))


@pytest.fixture
def log():
    events = []
    globalLogPublisher.addObserver(events.append)
    yield events
    globalLogPublisher.removeObserver(events.append)


@pytest_twisted.ensureDeferred
async def test_a_friend_finds_the_service_at_the_prompt(world, log):
    service = object()
    manhole = world.manhole(service=[service, 6])
    manhole.startService()
    try:
        done = await deferToThread(world.ssh, manhole, "friend", "print('answer', service[1] * 7)\r\x04")
    finally:
        await manhole.stopService()
    assert "answer 42" in re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", done.stdout), done.stderr
    said = [event["log_format"] for event in log if event.get("log_namespace") == "notary.observe.manhole"]
    assert said[0].startswith("A manhole is open on")
    assert said[1] == "manhole: {user} logged in"


@pytest_twisted.ensureDeferred
async def test_a_stranger_does_not_get_in(world, log):
    manhole = world.manhole()
    manhole.startService()
    try:
        done = await deferToThread(world.ssh, manhole, "stranger", "print('answer')\r\x04")
    finally:
        await manhole.stopService()
    assert done.returncode == 255
    assert "Permission denied" in done.stderr
    assert "manhole: {user} was refused" in [event.get("log_format") for event in log]


@pytest_twisted.ensureDeferred
async def test_stopping_ends_the_sessions(world):
    manhole = world.manhole()
    manhole.startService()
    process = await deferToThread(
        subprocess.Popen,
        ("ssh-keyscan", "-p", str(manhole.port), "127.0.0.1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    found, _ = await deferToThread(process.communicate)
    assert (world.folder / "host.pub").read_text().split()[1].encode() in found
    await manhole.stopService()
    assert not manhole._sessions


@pytest_twisted.ensureDeferred
async def test_a_host_key_is_made_where_none_is_given(world):
    first, second = (Manhole(reactor, 0, world.authorized, None, {}) for _ in range(2))
    assert first.fingerprint != second.fingerprint


def test_without_conch_the_error_names_the_extra(world, monkeypatch):
    monkeypatch.setitem(sys.modules, "twisted.conch.checkers", None)
    with pytest.raises(ConfigError, match=r"manhole\.port: .*install notary-service\[manhole\]"):
        world.manhole()


def replaced(content: bytes, mode: int = 0o600):
    def replace(path) -> None:
        path.write_bytes(content)
        path.chmod(mode)

    return replace


@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        pytest.param("authorized", lambda path: path.unlink(), "cannot be read", id="no file"),
        pytest.param("authorized", replaced(b""), "has no key", id="nobody"),
        pytest.param("authorized", replaced(b"not a key\n"), "no public key", id="nonsense"),
        pytest.param("authorized", lambda path: path.chmod(0o664), "write to", id="others may write"),
        pytest.param("host", lambda path: path.unlink(), "cannot be read", id="no host key"),
        pytest.param("host", replaced(b"nonsense"), "no usable private key", id="host key nonsense"),
        pytest.param("host", lambda path: path.chmod(0o640), "read it", id="others may read the host key"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, which, change, message):
    fresh = World(tmp_path)
    change(getattr(fresh, which))
    with pytest.raises(
        ConfigError,
        match=rf"manhole\.{'authorized_keys_file' if which == 'authorized' else 'host_key_file'}.*{message}",
    ):
        fresh.manhole()
