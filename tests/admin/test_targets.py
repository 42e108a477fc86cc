"""``repos targets``: what was verified, in every form, and nothing else."""

from __future__ import annotations

import csv
import hashlib
import io
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_twisted

from notary.admin import listing
from notary.admin.command import Status
from notary.errors import InvalidGun, InvalidMetadata
from tests.admin.conftest import admin
from tests.support.author import make_key
from tests.support.stored import InMemory, Publisher

GUN = "registry.example.com:5000/team/app"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def targets(place, tmp_path, *arguments, gun=GUN, status=Status.OK):
    outcome = await admin("repos", "targets", gun, "--config", place.config(tmp_path), *arguments)
    assert outcome.status == status, outcome
    return outcome


def delegated(gun: str = GUN) -> Publisher:
    """Targets, two levels of delegations with paths, and names outside of these paths."""
    publisher = Publisher(gun)
    author = publisher.author
    author.delegate("targets/releases", paths=["v", "rc/"])
    author.delegate("targets/releases/beta", paths=["v2/", "x/"])
    author.delegate("targets/none", paths=[])
    for role, *names in (
        ("targets", "v1", "latest"),
        ("targets/releases", "v1", "v2/a", "rc/1", "outside"),
        ("targets/releases/beta", "v2/b", "x/1", "v1"),
        ("targets/none", "v9"),
    ):
        for name in names:
            author.add(name, f"{name} of {role}".encode(), role)
    return publisher


ALLOWED = [
    ("latest", "targets"),
    ("v1", "targets"),
    ("rc/1", "targets/releases"),
    ("v1", "targets/releases"),
    ("v2/a", "targets/releases"),
    ("v2/b", "targets/releases/beta"),
]


@pytest_twisted.ensureDeferred
async def test_every_form(place, tmp_path):
    await place.publish(delegated())
    outcome = await targets(place, tmp_path, "--json")
    assert [(record["name"], record["role"]) for record in outcome.records] == ALLOWED
    first = outcome.records[0]
    assert first == {
        "gun": GUN,
        "name": "latest",
        "role": "targets",
        "sha256": digest(b"latest of targets"),
        "sha512": hashlib.sha512(b"latest of targets").hexdigest(),
        "bytes": 17,
    }
    assert (await targets(place, tmp_path, "--format", "json")).records == outcome.records
    rows = (await targets(place, tmp_path)).out.splitlines()
    assert rows[0].split("\t") == ["Name", "Role", "SHA256", "Size"]
    assert rows[1].split("\t") == ["latest", "targets", first["sha256"], "17"]
    table = list(csv.DictReader(io.StringIO((await targets(place, tmp_path, "--format", "csv")).out)))
    assert [(row["name"], row["role"], row["sha256"], int(row["size"])) for row in table] == [
        (record["name"], record["role"], record["sha256"], record["bytes"]) for record in outcome.records
    ]
    outcome = await targets(place, tmp_path, "--role", "targets/releases", "--json")
    assert {record["role"] for record in outcome.records} == {"targets/releases"}
    assert "different content" not in outcome.err
    assert "'v1' has different content in different roles" in (await targets(place, tmp_path)).err


@pytest.mark.parametrize("tool", ["cosign", "notation"])
@pytest_twisted.ensureDeferred
async def test_commands_sign_what_was_verified(place, tmp_path, tool):
    await place.publish(delegated())
    outcome = await targets(place, tmp_path, "--format", tool)
    expected = [
        f'{tool} sign "$@" {GUN}@sha256:{digest(f"{name} of {role}".encode())}  # {name} in {role}'
        for name, role in ALLOWED
    ]
    assert outcome.out.splitlines() == expected
    records = (await targets(place, tmp_path, "--format", tool, "--json")).records
    assert [f"{record['command']}  # {record['name']} in {record['role']}" for record in records] == expected
    said = run_as_script(outcome.out, tmp_path, tool)
    assert said == [
        f"sign --key k.key --yes {GUN}@sha256:{digest(f'{name} of {role}'.encode())}" for name, role in ALLOWED
    ]


def run_as_script(script: str, tmp_path: Path, tool: str) -> list[str]:
    """Give the output to a shell, with options; what the tool is called with."""
    program = tmp_path / "bin" / tool
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    environment = {"PATH": f"{program.parent}:/usr/bin:/bin"}
    done = subprocess.run(
        ("sh", "-s", "--", "--key", "k.key", "--yes"), input=script, capture_output=True, text=True, env=environment,
        check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


HOSTILE = [
    "x\n; touch hacked",
    "a\r\ntouch hacked",
    "$(touch hacked)",
    "`touch hacked`",
    "'\"; touch hacked #",
    "\u2028x",
]


def test_names_of_targets_are_never_commands(tmp_path):
    found = [
        listing.Listed(name, "targets", {"sha256": digest(name.encode())}, number)
        for number, name in enumerate(HOSTILE)
    ]
    script = "".join(f"{line}\n" for line, _ in listing.commands("cosign", GUN, found))
    assert len(script.splitlines()) == len(HOSTILE)
    assert len(run_as_script(script, tmp_path, "cosign")) == len(HOSTILE)
    assert not list(tmp_path.rglob("hacked"))


@pytest_twisted.ensureDeferred
async def test_names_with_quotes_and_commas_are_whole_in_csv(place, tmp_path):
    names = ['a,b"c', "'; touch hacked #", "$(x)"]
    publisher = Publisher(GUN)
    for name in names:
        publisher.author.add(name, name.encode())
    await place.publish(publisher)
    table = list(csv.DictReader(io.StringIO((await targets(place, tmp_path, "--format", "csv")).out)))
    assert sorted(row["name"] for row in table) == sorted(names)


@pytest.mark.parametrize(
    "gun",
    [
        "-rf/x",
        "Example.com/Team",
        "a b/c",
        "a/b;c",
        "a/$(c)",
        "single",
        "a/b@sha256:c",
        "a/b:tag",
        "a//b",
        "a/b/",
        "é/b",
    ],
)
def test_what_is_no_name_of_images_gets_no_commands(gun):
    found = [listing.Listed("v1", "targets", {"sha256": "0" * 64}, 1)]
    with pytest.raises(InvalidGun, match="is not the name of a repository of images"):
        list(listing.commands("cosign", gun, found))


@pytest.mark.parametrize("gun", ["docker.io/library/alpine", "localhost:5000/a/b", "r.example/a__b/c-d.e", "LOCAL/x"])
def test_names_of_images(gun):
    found = [listing.Listed(name, "targets", {"sha256": "0" * 64}, 1) for name in ("v1", "latest")]
    assert len(list(listing.commands("cosign", gun, found))) == 1, "one image, two names"


@pytest.mark.parametrize("hashes", [{}, {"sha512": "0" * 128}, {"sha256": ""}, {"sha256": "0" * 62}])
def test_a_target_without_a_sha256_gets_no_command(hashes):
    with pytest.raises(InvalidMetadata, match="without a SHA-256"):
        list(listing.commands("cosign", GUN, [listing.Listed("v1", "targets", hashes, 1)]))


@pytest_twisted.ensureDeferred
async def test_roles_and_collections_that_are_not_there(place, tmp_path):
    await place.publish(delegated())
    outcome = await targets(place, tmp_path, "--role", "targets/nobody", status=Status.MISSING)
    assert "it has targets, targets/releases, targets/releases/beta" in outcome.err
    await targets(place, tmp_path, "--role", "root", status=Status.MISSING)
    await targets(place, tmp_path, gun="nobody", status=Status.MISSING)


# -- what does not verify ---------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_what_has_expired_is_listed_with_a_warning(place, tmp_path):
    publisher = Publisher(GUN)
    publisher.author.lifetimes |= {"timestamp": timedelta(days=-1), "targets": timedelta(days=-2)}
    publisher.author.add("v1", b"one")
    await place.publish(publisher)
    outcome = await targets(place, tmp_path, "--json")
    assert [record["name"] for record in outcome.records] == ["v1"]
    assert [line.split()[0] for line in outcome.err.splitlines()] == ["targets", "timestamp"]


def forged(publisher: Publisher, role: str) -> None:
    """Publish a role that a stranger has signed."""
    author = publisher.author
    made = author.publish("root", "targets", *author.delegations)
    made[role] = author.targets(role, signers=[make_key()])
    made["snapshot"] = author.snapshot({**author.stored, **made})
    publisher.stamped(made)


@pytest_twisted.ensureDeferred
async def test_targets_that_a_stranger_signed_are_refused(place, tmp_path):
    publisher = delegated()
    forged(publisher, "targets")
    await place.publish(publisher, publisher.files)
    outcome = await targets(place, tmp_path, status=Status.REFUSED)
    assert outcome.out == ""
    assert "targets version 1: signature" in outcome.err


@pytest_twisted.ensureDeferred
async def test_a_delegation_that_a_stranger_signed_is_left_out_with_all_below(place, tmp_path):
    publisher = delegated()
    forged(publisher, "targets/releases")
    await place.publish(publisher, publisher.files)
    outcome = await targets(place, tmp_path, "--json", status=Status.FOUND)
    assert {record["role"] for record in outcome.records} == {"targets"}
    assert "targets/releases is left out: signature" in outcome.err
    assert (await targets(place, tmp_path, "--role", "targets")).status == Status.OK
    await targets(place, tmp_path, "--role", "targets/releases", status=Status.FOUND)


@pytest.mark.parametrize("damage", ["timestamp", "snapshot", "root", "targets"])
@pytest_twisted.ensureDeferred
async def test_a_changed_byte_is_refused(place, tmp_path, damage):
    publisher = delegated()
    await place.publish(publisher)
    await place.execute(
        "UPDATE tuf_files SET data = ? WHERE role = ?", publisher.files[damage].replace(b'"version":1', b'"version":2'),
        damage,
    )  # fmt: skip
    outcome = await targets(place, tmp_path, status=Status.REFUSED)
    assert outcome.out == ""


def test_an_undelegated_role_is_not_listed():
    publisher = delegated()
    collection = InMemory(GUN)
    made = publisher.next()
    extra = Publisher(GUN)
    extra.author.delegate("targets/stray")
    extra.author.add("v1", b"stray", "targets/stray")
    made["targets/stray"] = extra.author.targets("targets/stray")
    made["snapshot"] = publisher.author.snapshot({**publisher.author.stored, **made})
    collection.add(publisher.stamped(made))
    found = listing.verified(collection, publisher.author.now)
    assert "targets/stray" not in found.roles
    assert [(each.name, each.role) for each in found.targets] == ALLOWED
