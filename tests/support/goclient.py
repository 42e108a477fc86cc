"""The stock ``notary`` 0.7.0 command, one trust directory a "machine".

Rules of this module: a machine knows only its own directory, the server's URL and its CA; what the command prints is
returned, and shown when it fails.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.support.author import Key, make_certificate, public_bytes
from tests.support.peers import clean_environment

CLIENT = "/usr/bin/notary"
PASSPHRASE = "correct horse battery"
COMMAND_SECONDS = 60.0


class Machine:
    """One user of the stock client: a trust directory and a server. ``enter`` begins a command in another network."""

    def __init__(self, directory: Path, url: str, ca: Path, enter: Sequence[str] = ()) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._base = (*enter, CLIENT, "-s", url, "--tlscacert", str(ca), "-d", str(directory / "trust"))
        roles = ("ROOT", "TARGETS", "SNAPSHOT", "DELEGATION")
        self._environment = clean_environment({f"NOTARY_{role}_PASSPHRASE": PASSPHRASE for role in roles})

    def run(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run the command to its end, good or bad."""
        return subprocess.run(
            (*self._base, *arguments),
            input=stdin,
            capture_output=True,
            cwd=self.directory,
            env=self._environment,
            timeout=COMMAND_SECONDS,
            check=False,
        )

    def __call__(self, *arguments: str, stdin: bytes = b"") -> str:
        """What the command printed; AssertionError if it failed."""
        done = self.run(*arguments, stdin=stdin)
        output = (done.stdout + done.stderr).decode()
        assert done.returncode == 0, f"notary {' '.join(arguments)}: status {done.returncode}\n{output}"
        return output

    def refused(self, *arguments: str, stdin: bytes = b"") -> str:
        """What the command printed when it failed; AssertionError if it succeeded."""
        done = self.run(*arguments, stdin=stdin)
        output = (done.stdout + done.stderr).decode()
        assert done.returncode != 0, f"notary {' '.join(arguments)} succeeded:\n{output}"
        return output

    def targets(self, gun: str, *roles: str) -> dict[str, tuple[str, int, str]]:
        """What ``list`` shows: for each name its SHA-256 (hex), its size in bytes and the role that signed it."""
        chosen = [flag for role in roles for flag in ("--roles", role)]
        lines = [line.split() for line in self("list", gun, *chosen).splitlines()]
        return {line[0]: (line[1], int(line[2]), line[3]) for line in lines if len(line) == 4 and line[2].isdigit()}

    def delegations(self, gun: str) -> dict[str, list[str]]:
        """What ``delegation list`` shows: for each role the ids of its keys."""
        found: dict[str, list[str]] = {}
        role = ""
        for line in self("delegation", "list", gun).splitlines():
            words = line.split()
            role = words[0] if words and words[0].startswith("targets/") else role
            keys = [word for word in words if len(word) == 64 and set(word) <= set("0123456789abcdef")]
            if role:
                found.setdefault(role, []).extend(keys)
        return found


class Delegate:
    """A person to delegate to: files with their certificate and their private key (PEM), and the key's canonical id."""

    def __init__(self, directory: Path, name: str) -> None:
        private = ec.generate_private_key(ec.SECP256R1())
        self.certificate, self.key = str(directory / f"{name}.crt"), str(directory / f"{name}.key")
        self.key_id = Key("ecdsa", public_bytes(private)).key_id
        Path(self.certificate).write_bytes(make_certificate(private, name))
        Path(self.key).write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


class Audience:
    """Consumers that look at a collection after every step: one who came early, and a newcomer each time."""

    def __init__(self, machine: Callable[[str], Machine], gun: str) -> None:
        self.machine = machine
        self.gun = gun
        self.regular = machine("regular")
        self.newcomers = 0

    def sees(self, *roles: str, **expected: tuple[bytes, str]) -> None:
        """Everybody lists exactly these targets: for each name the content and the role that signed it."""
        wanted = {
            name: (hashlib.sha256(content).hexdigest(), len(content), role)
            for name, (content, role) in expected.items()
        }
        self.newcomers += 1
        for who in (self.machine(f"newcomer-{self.newcomers}"), self.regular):
            seen = who.targets(self.gun, *roles)
            assert seen == wanted, f"step {self.newcomers}, {who.directory.name} sees {seen} instead of {wanted}"


def live(machine: Callable[[str], Machine], gun: str) -> None:
    """The whole life of a collection, by the stock client; AssertionError where the client or a consumer is unhappy.

    ``machine`` makes (or finds) a machine by its name; all of them talk to the server under test. The collection must
    not exist; it does not exist afterwards.
    """
    owner, audience = machine("owner"), Audience(machine, gun)
    contents = {name: f"content of {name}".encode() for name in ("v1", "v2", "v3", "rel1", "rel2", "rel3", "nested1")}
    for name, content in contents.items():
        (owner.directory / name).write_bytes(content)

    # Before anything is published, nobody sees anything.
    assert "does not have trust data" in audience.regular.refused("list", gun)

    # init, add, addhash, publish
    owner("init", gun)
    assert f'Addition of target "v1" to repository "{gun}" staged' in owner("add", gun, "v1", "v1")
    digests = [f"--{name}={hashlib.new(name, contents['v2']).hexdigest()}" for name in ("sha256", "sha512")]
    assert 'Addition of target "v2"' in owner("addhash", gun, "v2", str(len(contents["v2"])), *digests)
    status = owner("status", gun)
    assert "v1" in status
    assert "v2" in status
    assert f"Successfully published changes for repository {gun}" in owner("publish", gun)
    assert f"No unpublished changes for {gun}" in owner("status", gun)
    v1, v2 = (contents["v1"], "targets"), (contents["v2"], "targets")
    audience.sees(v1=v1, v2=v2)

    # lookup; verify good and bad content
    found = audience.regular("lookup", gun, "v1")
    assert found.split() == ["v1", f"sha256:{hashlib.sha256(contents['v1']).hexdigest()}", str(len(contents["v1"]))]
    assert "No valid trust data for nothing" in audience.regular.refused("lookup", gun, "nothing")
    for name in ("v1", "v2"):
        assert audience.regular("verify", gun, name, stdin=contents[name]) == contents[name].decode()
    for wrong in (contents["v2"], contents["v1"] + b"x", b""):
        said = audience.regular.refused("verify", gun, "v1", "-q", stdin=wrong)
        assert "data not present in the trusted collection" in said, said

    # remove
    assert "Removal of v2" in owner("remove", gun, "v2", "-p")
    audience.sees(v1=v1)

    # the snapshot key goes to the server
    assert f"Successfully rotated snapshot key for repository {gun}" in owner("key", "rotate", gun, "snapshot", "-r")
    audience.sees(v1=v1)
    owner("add", gun, "v2", "v2", "-p")
    audience.sees(v1=v1, v2=v2)

    # delegations, and nested ones, by X.509 keys
    a, b, c = (Delegate(owner.directory, name) for name in ("alice", "bob", "carol"))
    added = owner("delegation", "add", gun, "targets/releases", a.certificate, "--all-paths", "-p")
    assert "Addition of delegation role targets/releases" in added
    assert list(audience.regular.delegations(gun)) == ["targets/releases"]
    audience.sees(v1=v1, v2=v2)

    # a delegate publishes from another machine
    alice = machine("alice")
    alice("key", "import", a.key, "-r", "targets/releases")
    alice("add", gun, "rel1", str(owner.directory / "rel1"), "-r", "targets/releases", "-p")
    rel1 = (contents["rel1"], "targets/releases")
    audience.sees(v1=v1, v2=v2, rel1=rel1)
    audience.sees("targets/releases", rel1=rel1)

    # she delegates further, and bob publishes under her
    alice("delegation", "add", gun, "targets/releases/beta", b.certificate, "--paths", "nested", "-p")
    bob = machine("bob")
    bob("key", "import", b.key, "-r", "targets/releases/beta")
    bob("add", gun, "nested1", str(owner.directory / "nested1"), "-r", "targets/releases/beta", "-p")
    nested1 = (contents["nested1"], "targets/releases/beta")
    audience.sees(v1=v1, v2=v2, rel1=rel1, nested1=nested1)

    # who has no key for a role cannot publish in it
    bob("add", gun, "rel2", str(owner.directory / "rel2"), "-r", "targets/releases")
    bob.refused("publish", gun)
    bob("reset", gun, "--all")
    audience.sees(v1=v1, v2=v2, rel1=rel1, nested1=nested1)

    # a second key for the role; the first one goes; the new holder witnesses what was there
    owner("delegation", "add", gun, "targets/releases", c.certificate, "-p")
    assert set(audience.regular.delegations(gun)["targets/releases"]) == {a.key_id, c.key_id}
    owner("delegation", "remove", gun, "targets/releases", a.key_id, "-p")
    assert audience.regular.delegations(gun)["targets/releases"] == [c.key_id]
    audience.sees(v1=v1, v2=v2)
    carol = machine("carol")
    carol("key", "import", c.key, "-r", "targets/releases")
    witnessed = carol("witness", gun, "targets/releases", "-p")
    assert "targets/releases" in witnessed
    audience.sees(v1=v1, v2=v2, rel1=rel1, nested1=nested1)
    carol("add", gun, "rel2", str(owner.directory / "rel2"), "-r", "targets/releases", "-p")
    rel2 = (contents["rel2"], "targets/releases")
    audience.sees(v1=v1, v2=v2, rel1=rel1, rel2=rel2, nested1=nested1)
    carol("remove", gun, "rel2", "-r", "targets/releases", "-p")
    audience.sees(v1=v1, v2=v2, rel1=rel1, nested1=nested1)

    # every key rotates, and everybody follows
    for role, flags, stdin in (
        ("targets", [], b""),
        ("timestamp", ["-r"], b""),
        ("root", [], b"yes\n"),
        ("snapshot", ["-r"], b""),
        ("snapshot", [], b""),
        ("root", [], b"yes\n"),
        ("snapshot", ["-r"], b""),
    ):
        said = owner("key", "rotate", gun, role, *flags, stdin=stdin)
        assert f"Successfully rotated {role} key for repository {gun}" in said, said
        audience.sees(v1=v1, v2=v2, rel1=rel1, nested1=nested1)
    owner("add", gun, "v3", "v3", "-p")
    audience.sees(v1=v1, v2=v2, v3=(contents["v3"], "targets"), rel1=rel1, nested1=nested1)
    carol("add", gun, "rel3", str(owner.directory / "rel3"), "-r", "targets/releases", "-p")
    audience.sees(
        v1=v1,
        v2=v2,
        v3=(contents["v3"], "targets"),
        rel1=rel1,
        rel3=(contents["rel3"], "targets/releases"),
        nested1=nested1,
    )

    # the delegation goes, and all that was signed under it
    owner("delegation", "remove", gun, "targets/releases", "-y", "-p")
    assert audience.regular.delegations(gun) == {}
    audience.sees(v1=v1, v2=v2, v3=(contents["v3"], "targets"))

    # delete, and the name begins anew with other keys
    assert f"Successfully deleted local and remote trust data for repository {gun}" in owner("delete", gun, "--remote")
    assert "does not have trust data" in machine("latecomer").refused("list", gun)
    heir = machine("heir")
    (heir.directory / "v1").write_bytes(b"another content")
    heir("init", gun, "-p")
    heir("add", gun, "v1", "v1", "-p")
    assert machine("stranger").targets(gun) == {
        "v1": (hashlib.sha256(b"another content").hexdigest(), len(b"another content"), "targets")
    }
    audience.regular.refused("list", gun)
    assert "Successfully deleted" in heir("delete", gun, "--remote")
    assert "does not have trust data" in machine("last").refused("list", gun)
