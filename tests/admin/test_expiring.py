"""``expiring``: what it tells, and with which exit status."""

from __future__ import annotations

from datetime import timedelta

import pytest
import pytest_twisted

from notary.admin.command import Status
from tests.admin.conftest import admin, write_config
from tests.support.author import make_root_key
from tests.support.certs import Authority
from tests.support.stored import Place, Publisher

GUN = "example.com/team/app"


def lasting(gun: str = GUN, **days: float) -> Publisher:
    """A collection whose roles last so many days; by default years."""
    publisher = Publisher(gun)
    publisher.author.delegate("targets/releases")
    for role in ("root", "targets", "targets/releases", "snapshot", "timestamp"):
        publisher.author.lifetimes[role] = timedelta(days=days.get(role.rpartition("/")[2], 1000))
    return publisher


def told(outcome) -> list[tuple[str, str]]:
    return [(record["where"], record["what"]) for record in outcome.records]


@pytest_twisted.ensureDeferred
async def test_nothing_expires(place, tmp_path):
    await place.publish(lasting())
    outcome = await admin("expiring", "--config", place.config(tmp_path), "--json")
    assert (outcome.status, outcome.out) == (Status.OK, "")


@pytest.mark.parametrize("role", ["root", "targets", "releases", "snapshot", "timestamp"])
@pytest_twisted.ensureDeferred
async def test_each_role(place, tmp_path, role):
    await place.publish(lasting(**{role: 10}))
    await place.publish(lasting("example.com/other"))
    config = place.config(tmp_path)
    asked = ["--role", "timestamp"] if role == "timestamp" else []  # which a server renews by itself
    assert (await admin("expiring", "--config", config)).status == (Status.OK if asked else Status.FOUND)
    outcome = await admin("expiring", "--config", config, "--json", *asked)
    name = "targets/releases" if role == "releases" else role
    assert (outcome.status, told(outcome)) == (Status.FOUND, [(GUN, name)])
    assert outcome.records[0]["version"] == 1
    kind = "delegations" if role == "releases" else role
    assert (await admin("expiring", "--config", config, "--role", kind)).status == Status.FOUND
    others = {"root", "targets", "delegations", "snapshot", "timestamp", "certificates"} - {kind}
    quiet = await admin("expiring", "--config", config, *(f"--role={other}" for other in sorted(others)))
    assert quiet.status == Status.OK


@pytest.mark.parametrize(
    ("within", "status"),
    [("30d", Status.FOUND), ("11d", Status.FOUND), ("2w", Status.FOUND), ("9d", Status.OK), ("1w", Status.OK),
     ("200h", Status.OK), ("250h", Status.FOUND), ("5m", Status.OK)],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_how_far_ahead(server_config, tmp_path, within, status):
    await Place("sqlite3", str(tmp_path / "server.db")).publish(lasting(targets=10))
    assert (await admin("expiring", "--within", within, "--config", server_config)).status == status


@pytest.mark.parametrize("within", ["", "d", "30", "-1d", "30 d", "1y", "1.5d", "9999999d"])
@pytest_twisted.ensureDeferred
async def test_what_is_no_time(server_config, within):
    outcome = await admin("expiring", "--within", within, "--config", server_config)
    assert outcome.status == Status.USAGE
    assert "such as 30d" in outcome.err


@pytest_twisted.ensureDeferred
async def test_what_has_expired_counts_and_old_versions_do_not(place, tmp_path):
    publisher = lasting(targets=-3)
    first = publisher.next()
    config = place.config(tmp_path)
    await place.publish(publisher, first)
    text = (await admin("expiring", "--config", config)).out
    assert f"targets\t{GUN}\t1\t" in text
    assert "expired 3 d ago" in text
    publisher.author.lifetimes["targets"] = timedelta(days=1000)
    await place.publish(publisher, publisher.next("targets"))
    assert (await admin("expiring", "--config", config)).status == Status.OK


@pytest_twisted.ensureDeferred
async def test_the_certificates_of_root_keys(place, tmp_path):
    publisher = lasting()
    ends = publisher.author.now + timedelta(days=20)
    publisher.author.rotate("root", make_root_key(GUN, ends=ends))
    publisher.author.retired.clear()
    await place.publish(publisher)
    outcome = await admin("expiring", "--config", place.config(tmp_path), "--json")
    assert (outcome.status, told(outcome)) == (Status.FOUND, [(GUN, f"root certificate CN={GUN}")])


@pytest_twisted.ensureDeferred
async def test_the_certificates_of_a_daemon(tmp_path):
    root = Authority.root("root")
    root.leaf("localhost", ends=timedelta(days=5)).write(tmp_path, "signer")
    value = {
        "server": {"grpc_addr": ":0", "tls_cert_file": "signer.crt", "tls_key_file": "signer.key"},
        "storage": {"backend": "memory"},
    }
    config = write_config(tmp_path, "signer.json", value)
    outcome = await admin("expiring", "--config", config, "--json")
    assert outcome.status == Status.FOUND
    assert told(outcome) == [(f"server.tls_cert_file: {tmp_path / 'signer.crt'}", "certificate CN=localhost")]
    assert (await admin("expiring", "--within", "2d", "--config", config)).status == Status.OK
    assert (await admin("expiring", "--role", "root", "--config", config)).status == Status.OK


@pytest_twisted.ensureDeferred
async def test_a_broken_collection_is_told_as_far_as_it_can_be_read(place, tmp_path):
    await place.publish(lasting(root=5, snapshot=5))
    await place.execute("UPDATE tuf_files SET data = ? WHERE role = ?", b"{", "timestamp")
    outcome = await admin("expiring", "--config", place.config(tmp_path), "--json")
    assert sorted(told(outcome)) == [(GUN, "root"), (GUN, "snapshot")]
