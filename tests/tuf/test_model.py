"""Envelopes and the four kinds of metadata: what is valid, and what is refused as what."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from notary.errors import InvalidMetadata, MalformedJSON
from notary.tuf import canonical
from notary.tuf.model import (
    BASE_ROLES,
    MAX_SIGNATURES,
    ROOT,
    SNAPSHOT,
    TARGETS,
    TIMESTAMP,
    Envelope,
    FileMeta,
    RoleKeys,
    RoleName,
    Root,
    Snapshot,
    Targets,
    Timestamp,
    peek,
)

GOLDEN = Path(__file__).parent / "data"
RELEASES = RoleName("targets/releases")


def golden(name):
    return (GOLDEN / f"{name}.json").read_bytes()


# -- metadata made here -----------------------------------------------------------------------------------------------

KEY = {"keytype": "ed25519", "keyval": {"private": None, "public": base64.b64encode(bytes(32)).decode()}}
HASHES = {
    "sha256": base64.b64encode(hashlib.sha256(b"x").digest()).decode(),
    "sha512": base64.b64encode(hashlib.sha512(b"x").digest()).decode(),
}
FILE = {"hashes": HASHES, "length": 1}
EXPIRES = "2030-01-31T12:00:00Z"
SIGNED = {
    "root": {
        "_type": "Root",
        "consistent_snapshot": False,
        "expires": EXPIRES,
        "keys": {"k1": KEY, "k2": KEY},
        "roles": {name: {"keyids": ["k1"], "threshold": 1} for name in BASE_ROLES},
        "version": 1,
    },
    "targets": {
        "_type": "Targets",
        "delegations": {
            "keys": {"k1": KEY},
            "roles": [{"keyids": ["k1"], "name": "targets/a", "paths": ["", "b/"], "threshold": 1}],
        },
        "expires": EXPIRES,
        "targets": {"v1": {**FILE, "custom": {"any": ["thing", 15]}}, "": FILE},
        "version": 1,
    },
    "snapshot": {"_type": "Snapshot", "expires": EXPIRES, "meta": {"root": FILE, "targets": FILE}, "version": 1},
    "timestamp": {"_type": "Timestamp", "expires": EXPIRES, "meta": {"snapshot": FILE}, "version": 1},
}
PARSE = {
    "root": Root.parse,
    "targets": lambda envelope: Targets.parse(envelope, TARGETS),
    "snapshot": Snapshot.parse,
    "timestamp": Timestamp.parse,
}
ABSENT = object()


def changed(role, path, value):
    """The metadata of ``role`` with one member put, or removed."""
    signed = copy.deepcopy(SIGNED[role])
    *outer, last = path.split(".") if isinstance(path, str) else path
    inner = signed
    for step in outer:
        inner = inner[int(step) if isinstance(inner, list) else step]
    if value is ABSENT:
        del inner[last]
    else:
        inner[int(last) if isinstance(inner, list) else last] = value
    return signed


def envelope(signed):
    return Envelope.parse(json.dumps({"signed": signed, "signatures": []}).encode())


@pytest.mark.parametrize("role", SIGNED)
def test_good_metadata(role):
    metadata = PARSE[role](envelope(SIGNED[role]))
    assert metadata.version == 1
    assert metadata.expires == datetime(2030, 1, 31, 12, tzinfo=UTC)
    assert metadata.envelope.signed == SIGNED[role]


def test_good_root():
    root = Root.parse(envelope(SIGNED["root"]))
    assert set(root.roles) == set(BASE_ROLES)
    assert list(root.roles[ROOT].keys) == ["k1"]
    assert root.roles[ROOT].keys["k1"].public == bytes(32)
    assert root.roles[ROOT].threshold == 1
    assert root.consistent_snapshot is False


def test_good_targets():
    targets = Targets.parse(envelope(SIGNED["targets"]), TARGETS)
    assert targets.role == TARGETS
    assert targets.targets["v1"].matches(b"x")
    assert targets.delegations[RoleName("targets/a")].paths == ("", "b/")
    assert targets.delegations[RoleName("targets/a")].role.threshold == 1


def test_metadata_is_immutable():
    root = Root.parse(envelope(SIGNED["root"]))
    for value, name in [(root, "version"), (root.envelope, "data"), (root.roles[ROOT], "threshold")]:
        with pytest.raises(AttributeError):
            setattr(value, name, 2)


@pytest.mark.parametrize(
    ("role", "path", "value"),
    [
        pytest.param("root", "consistent_snapshot", ABSENT, id="no-consistent-snapshot"),
        pytest.param("root", "consistent_snapshot", True, id="consistent-snapshot"),
        pytest.param("root", "roles.root.keyids", ["k1", "k1", "k2"], id="key-id-twice"),
        pytest.param("root", "roles.root.keyids", [], id="no-keys"),
        pytest.param("root", "roles.root.keyids", None, id="null-keys-as-go-writes-them"),
        pytest.param("root", "roles.mirrors", {"keyids": ["who"], "threshold": 0}, id="other-role"),
        pytest.param("root", "roles.mirrors", None, id="null-other-role"),
        pytest.param("root", "roles.root.threshold", 7, id="threshold-out-of-reach"),
        pytest.param("root", "keys.k3", {"keytype": "dilithium", "keyval": {"public": "AA=="}}, id="unknown-key-type"),
        pytest.param("root", "keys.k1.keyval.private", "AA==", id="private-is-ignored"),
        pytest.param("root", "version", 2**31 - 1, id="largest-version"),
        pytest.param("root", "x-ours", {"Version": [1]}, id="unknown-member"),
        pytest.param("root", "roles.root.x-ours", 1, id="unknown-member-of-role"),
        pytest.param("targets", "targets", ABSENT, id="no-targets"),
        pytest.param("targets", "targets", None, id="null-targets"),
        pytest.param("targets", "delegations", ABSENT, id="no-delegations"),
        pytest.param("targets", "delegations", None, id="null-delegations"),
        pytest.param("targets", "delegations", {"keys": None, "roles": None}, id="null-in-delegations"),
        pytest.param("targets", "delegations.roles.0.keyids", None, id="delegation-without-keys"),
        pytest.param("targets", "delegations.roles.0.paths", ABSENT, id="delegation-without-paths"),
        pytest.param("targets", "targets.v1.hashes", {"sha256": None, "md5": "AA=="}, id="hashes-are-the-clients"),
        pytest.param(
            "targets", "targets.v1.hashes", {"SHA256": "AA==", "sha256": "AQ=="}, id="hash-names-are-no-members"
        ),
        pytest.param("targets", "targets.v1.length", ABSENT, id="no-length"),
        pytest.param("targets", "targets.Version", FILE, id="target-called-like-a-member"),
        pytest.param("snapshot", "meta.root.hashes.sha512", ABSENT, id="sha256-alone"),
        pytest.param("snapshot", "meta.root.hashes.blake2", "AA==", id="unknown-hash"),
        pytest.param("snapshot", ("meta", "targets/a"), {"hashes": {}}, id="delegation-without-hashes"),
        pytest.param("snapshot", ("meta", "not a role"), FILE, id="other-file"),
    ],
)
def test_also_good(role, path, value):
    signed = changed(role, path, value)
    metadata = PARSE[role](envelope(signed))
    assert metadata.envelope.signed == signed, "what was signed survives"
    assert canonical.parse(metadata.envelope.payload) == signed


@pytest.mark.parametrize(
    ("role", "path", "value", "message"),
    [
        pytest.param("root", "_type", ABSENT, "expected type Root, not ''", id="no-type"),
        pytest.param("root", "_type", "root", "expected type Root, not 'root'", id="type-in-lower-case"),
        pytest.param("root", "_type", "Targets", "expected type Root", id="type-of-another-role"),
        pytest.param("root", "version", ABSENT, "invalid version 0", id="no-version"),
        pytest.param("root", "version", 0, "invalid version 0", id="version-0"),
        pytest.param("root", "version", -1, "invalid version -1", id="version-negative"),
        pytest.param("root", "version", 2**31, "invalid version 2147483648", id="version-of-32-bits"),
        pytest.param("root", "Version", 2, "must be written 'version'", id="version-in-another-case"),
        pytest.param("root", "Keys", {}, "must be written 'keys'", id="keys-in-another-case"),
        pytest.param("root", "roles.root.KeyIDs", [], "must be written 'keyids'", id="keyids-in-another-case"),
        pytest.param("root", "roles.root.THRESHOLD", 2, "must be written 'threshold'", id="threshold-in-another-case"),
        pytest.param("root", "keys.k1.KeyType", "rsa", "must be written 'keytype'", id="keytype-in-another-case"),
        pytest.param("root", "keys.k1.keyval.Public", "AA==", "must be written 'public'", id="public-in-another-case"),
        pytest.param("root", "Roles", {}, "must be written 'roles'", id="roles-in-another-case-in-root"),
        pytest.param("root", "Consistent_Snapshot", True, "must be written 'consistent_", id="flag-in-another-case"),
        pytest.param("root", "consistent_snapshot", "true", "consistent_snapshot must be", id="flag-as-text"),
        pytest.param("root", "consistent_snapshot", 1, "consistent_snapshot must be", id="flag-as-number"),
        pytest.param("root", "keys", [], "keys must be an object", id="keys-as-list"),
        pytest.param("root", "keys", ABSENT, "'k1' without corresponding key", id="no-keys"),
        pytest.param("root", "keys.k1", "k1", "key: expected an object", id="key-as-text"),
        pytest.param("root", "keys.k2.keytype", 1, "keytype must be a string", id="unused-key-without-type"),
        pytest.param("root", "keys.k1.keyval", [], "keyval must be an object", id="keyval-as-list"),
        pytest.param("root", "keys.k1.keyval.public", "?", "public must be standard base64", id="key-not-base64"),
        pytest.param("root", "keys.k1.keyval.private", {}, "private must be a string", id="private-as-object"),
        pytest.param("root", "roles", ABSENT, "missing root role", id="no-roles"),
        pytest.param("root", "roles", [], "roles must be an object", id="roles-as-list"),
        *[
            pytest.param("root", f"roles.{name}", ABSENT, f"missing {name} role", id=f"no-{name}-role")
            for name in BASE_ROLES
        ],
        pytest.param("root", "roles.targets", None, "invalid threshold 0", id="null-role"),
        pytest.param("root", "roles.targets", ["k1"], "role 'targets': expected an object", id="role-as-list"),
        pytest.param("root", "roles.targets.threshold", ABSENT, "invalid threshold 0", id="no-threshold"),
        pytest.param("root", "roles.targets.threshold", 0, "invalid threshold 0", id="threshold-0"),
        pytest.param("root", "roles.targets.threshold", -1, "invalid threshold -1", id="threshold-negative"),
        pytest.param("root", "roles.targets.threshold", True, "threshold must be an integer", id="threshold-true"),
        pytest.param("root", "roles.targets.threshold", 1.0, "threshold must be an integer", id="threshold-as-float"),
        pytest.param("root", "roles.targets.threshold", "1", "threshold must be an integer", id="threshold-as-text"),
        pytest.param("root", "roles.targets.keyids", ["k3"], "'k3' without corresponding key", id="key-not-there"),
        pytest.param("root", "roles.targets.keyids", "k1", "keyids must be a list", id="keyids-as-text"),
        pytest.param("root", "roles.targets.keyids", [1], "keyids must be a list of strings", id="keyid-as-number"),
        pytest.param("root", "roles.mirrors", "x", "role 'mirrors': expected", id="other-role-as-text"),
        pytest.param("root", "roles.mirrors", {"keyids": 1}, "keyids must be a list", id="other-role-malformed"),
        pytest.param("root", "roles.mirrors", {"threshold": ""}, "threshold must be an", id="other-threshold-as-text"),
        pytest.param("targets", "_type", "Root", "expected type Targets", id="targets-of-wrong-type"),
        pytest.param("targets", "version", 0, "invalid version 0", id="targets-version-0"),
        pytest.param("targets", "Targets", {}, "must be written 'targets'", id="targets-in-another-case"),
        pytest.param("targets", "Delegations", {}, "must be written 'delegations'", id="delegations-in-another-case"),
        pytest.param("targets", "targets", [], "targets must be an object", id="targets-as-list"),
        pytest.param("targets", "targets.v1", "x", "a target: expected an object", id="target-as-text"),
        pytest.param("targets", "targets.v1.length", "1", "length must be an integer", id="length-as-text"),
        pytest.param("targets", "targets.v1.length", True, "length must be an integer", id="length-true"),
        pytest.param("targets", "targets.v1.length", 1.5, "length must be an integer", id="length-fraction"),
        pytest.param("targets", "targets.v1.Length", 1, "must be written 'length'", id="length-in-another-case"),
        pytest.param("targets", "targets.v1.hashes", [], "hashes must be an object", id="hashes-as-list"),
        pytest.param("targets", "targets.v1.hashes.sha256", 1, "sha256 must be a string", id="hash-as-number"),
        pytest.param("targets", "targets.v1.hashes.sha256", "ab_d", "sha256 must be standard", id="hash-not-base64"),
        pytest.param("targets", "delegations", [], "delegations must be an object", id="delegations-as-list"),
        pytest.param("targets", "delegations.Roles", [], "must be written 'roles'", id="roles-in-another-case"),
        pytest.param("targets", "delegations.keys", [], "keys must be an object", id="delegation-keys-as-list"),
        pytest.param("targets", "delegations.roles", {}, "roles must be a list", id="delegation-roles-as-object"),
        pytest.param("targets", "delegations.roles.0", "targets/a", "expected an object", id="delegation-as-text"),
        pytest.param("targets", "delegations.roles.0", None, "'' is not the name of a role", id="delegation-null"),
        pytest.param("targets", "delegations.roles.0.name", "a", "'a' is not the name of a role", id="no-such-role"),
        pytest.param("targets", "delegations.roles.0.name", "targets", "not its direct child", id="itself"),
        pytest.param("targets", "delegations.roles.0.name", "root", "not its direct child", id="base-role"),
        pytest.param("targets", "delegations.roles.0.name", "targets/a/b", "not its direct child", id="grandchild"),
        pytest.param("targets", "delegations.roles.0.name", "targets/a/", "is not the name", id="not-clean"),
        pytest.param("targets", "delegations.roles.0.Name", "targets/b", "must be written 'name'", id="name-twice"),
        pytest.param("targets", "delegations.roles.0.keyids", ["k2"], "'k2' without corresponding", id="no-such-key"),
        pytest.param("targets", "delegations.roles.0.threshold", 0, "invalid threshold 0", id="delegation-threshold"),
        pytest.param("targets", "delegations.roles.0.paths", "a", "paths must be a list", id="paths-as-text"),
        pytest.param(
            "targets", "delegations.roles.0.paths", [1], "paths must be a list of strings", id="path-as-number"
        ),
        pytest.param("snapshot", "_type", "Timestamp", "expected type Snapshot", id="snapshot-of-wrong-type"),
        pytest.param("snapshot", "version", 0, "invalid version 0", id="snapshot-version-0"),
        pytest.param("snapshot", "meta", ABSENT, "missing root sha256", id="no-meta"),
        pytest.param("snapshot", "meta", [], "meta must be an object", id="meta-as-list"),
        pytest.param("snapshot", "Meta", {}, "must be written 'meta'", id="meta-in-another-case"),
        pytest.param("snapshot", "meta.root", ABSENT, "missing root sha256", id="snapshot-without-root"),
        pytest.param("snapshot", "meta.targets", ABSENT, "missing targets sha256", id="snapshot-without-targets"),
        pytest.param("snapshot", "meta.root", 1, "a file: expected an object", id="file-as-number"),
        pytest.param("snapshot", "meta.root.hashes.sha256", ABSENT, "missing root sha256", id="sha512-alone"),
        pytest.param("snapshot", "meta.root.hashes.sha256", "AA==", "invalid root sha256", id="short-sha256"),
        pytest.param("snapshot", "meta.root.hashes.sha256", None, "invalid root sha256", id="null-sha256"),
        pytest.param("snapshot", "meta.root.hashes.sha512", HASHES["sha256"], "invalid root sha512", id="short-sha512"),
        pytest.param("timestamp", "_type", "Snapshot", "expected type Timestamp", id="timestamp-of-wrong-type"),
        pytest.param("timestamp", "version", 0, "invalid version 0", id="timestamp-version-0"),
        pytest.param("timestamp", "meta.snapshot", ABSENT, "missing snapshot sha256", id="timestamp-without-snapshot"),
        pytest.param("timestamp", "meta.snapshot.hashes.sha256", "AA==", "invalid snapshot", id="timestamp-short-hash"),
    ],
)
def test_bad_metadata(role, path, value, message):
    with pytest.raises(InvalidMetadata, match=f"^(({role}|key): .*)?{message}"):
        PARSE[role](envelope(changed(role, path, value)))


@pytest.mark.parametrize("role", [ROOT, SNAPSHOT, TIMESTAMP])
def test_targets_are_of_a_targets_role(role):
    with pytest.raises(InvalidMetadata, match=f"^{role} is not a targets role$"):
        Targets.parse(envelope(SIGNED["targets"]), role)


def test_a_delegation_delegates_to_its_own_children():
    signed = changed("targets", "delegations.roles.0.name", "targets/a/b")
    assert list(Targets.parse(envelope(signed), RoleName("targets/a")).delegations) == ["targets/a/b"]
    with pytest.raises(InvalidMetadata, match="not its direct child"):
        Targets.parse(envelope(signed), RoleName("targets/b"))


def test_no_role_is_delegated_to_twice():
    signed = copy.deepcopy(SIGNED["targets"])
    roles = signed["delegations"]["roles"]
    roles.append({**roles[0], "threshold": 2, "paths": []})
    with pytest.raises(InvalidMetadata, match="it delegates to targets/a twice"):
        Targets.parse(envelope(signed), TARGETS)


def test_a_threshold_is_checked_wherever_a_role_is_built():
    with pytest.raises(InvalidMetadata, match="invalid threshold 0"):
        RoleKeys({}, 0)


# -- time -------------------------------------------------------------------------------------------------------------

UTC_MIN = datetime.min.replace(tzinfo=UTC)
UTC_MAX = datetime.max.replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2030-01-31T12:00:00Z", datetime(2030, 1, 31, 12, tzinfo=UTC)),
        ("2029-11-22T20:05:17.222897805Z", datetime(2029, 11, 22, 20, 5, 17, 222897, UTC)),
        ("2030-01-31T12:00:00.5Z", datetime(2030, 1, 31, 12, 0, 0, 500000, UTC)),
        ("2030-01-31T12:00:00.000000999999Z", datetime(2030, 1, 31, 12, tzinfo=UTC)),
        ("2030-01-31T12:00:00+02:30", datetime(2030, 1, 31, 9, 30, tzinfo=UTC)),
        ("2030-12-31T23:00:00-01:30", datetime(2031, 1, 1, 0, 30, tzinfo=UTC)),
        ("2030-01-31T12:00:00.25-23:59", datetime(2030, 2, 1, 11, 59, 0, 250000, UTC)),
        ("2030-01-31T12:00:00-00:00", datetime(2030, 1, 31, 12, tzinfo=UTC)),
        ("2028-02-29T00:00:00Z", datetime(2028, 2, 29, tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", UTC_MIN),
        ("0001-01-01T00:00:00+01:00", UTC_MIN),
        ("0000-02-29T00:00:00Z", UTC_MIN),
        ("9999-12-31T23:59:59.999999999Z", UTC_MAX),
        ("9999-12-31T23:59:59-01:00", UTC_MAX),
    ],
)
def test_expiry(text, expected):
    expires = Timestamp.parse(envelope(changed("timestamp", "expires", text))).expires
    assert expires == expected
    assert expires.utcoffset() == timedelta(0)


@pytest.fixture
def in_kolkata(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "IST-5:30")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("in_kolkata")
def test_expiry_is_utc_wherever_the_server_stands():
    expires = Timestamp.parse(envelope(changed("timestamp", "expires", "2030-01-31T12:00:00+02:30"))).expires
    assert (expires.hour, expires.tzinfo) == (9, UTC)


@pytest.mark.parametrize("value", [ABSENT, None], ids=["absent", "null"])
def test_no_expiry_is_the_first_instant_as_in_go(value):
    assert Timestamp.parse(envelope(changed("timestamp", "expires", value))).expires == UTC_MIN


BAD_TIMES = [
    pytest.param("", id="empty"),
    pytest.param("2030-01-31", id="date"),
    pytest.param("2030-01-31T12:00:00", id="no-zone"),
    pytest.param("2030-01-31T12:00Z", id="no-seconds"),
    pytest.param("2030-01-31 12:00:00Z", id="space"),
    pytest.param("2030-01-31t12:00:00z", id="lower-case"),
    pytest.param("20300131T120000Z", id="basic-form"),
    pytest.param("2030-W05-4T12:00:00Z", id="week"),
    pytest.param("2030-01-31T12:00:00Z\n", id="trailing-newline"),
    pytest.param(" 2030-01-31T12:00:00Z", id="leading-space"),
    pytest.param("2030-01-31T12:00:00.Z", id="empty-fraction"),
    pytest.param("2030-01-31T12:00:00,5Z", id="comma"),
    pytest.param("2030-01-31T12:00:00+0200", id="offset-without-colon"),
    pytest.param("2030-01-31T12:00:00+02", id="offset-of-hours"),
    pytest.param("2030-01-31T12:00:00+24:00", id="offset-of-a-day"),
    pytest.param("2030-01-31T12:00:00+01:60", id="offset-of-60-minutes"),
    pytest.param("2030-01-31T12:00:00+01:00:00", id="offset-with-seconds"),
    pytest.param("2030-01-31T24:00:00Z", id="hour-24"),
    pytest.param("2030-01-31T12:60:00Z", id="minute-60"),
    pytest.param("2030-01-31T12:00:60Z", id="second-60"),
    pytest.param("2030-02-29T00:00:00Z", id="no-leap-year"),
    pytest.param("0000-02-30T00:00:00Z", id="no-such-day-in-year-0"),
    pytest.param("2030-13-01T00:00:00Z", id="month-13"),
    pytest.param("2030-00-01T00:00:00Z", id="month-0"),
    pytest.param("2030-01-00T00:00:00Z", id="day-0"),
    pytest.param("10000-01-01T00:00:00Z", id="year-10000"),
    pytest.param("-001-01-01T00:00:00Z", id="negative-year"),
    pytest.param("\u0662030-01-31T12:00:00Z", id="arabic-digit"),
    pytest.param("1900000000", id="unix-time"),
]


@pytest.mark.parametrize("text", BAD_TIMES)
def test_bad_expiry(text):
    with pytest.raises(InvalidMetadata, match=r"^expires (must be a time in RFC 3339, such as 2030|names a day or a)"):
        Timestamp.parse(envelope(changed("timestamp", "expires", text)))


@given(st.datetimes(), st.integers(-23 * 60 - 59, 23 * 60 + 59))
@example(datetime(1, 1, 1), 1)  # noqa: DTZ001 - the zone is the second argument
@example(datetime(9999, 12, 31, 23, 59), -1)  # noqa: DTZ001 - likewise
def test_any_moment_in_any_zone(naive, minutes):
    moment = naive.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    try:
        expected = moment.astimezone(UTC)
    except OverflowError:
        expected = UTC_MIN if minutes > 0 else UTC_MAX
    text = moment.isoformat().replace("+00:00", "Z")
    assert Timestamp.parse(envelope(changed("timestamp", "expires", text))).expires == expected


# -- envelopes --------------------------------------------------------------------------------------------------------


def test_an_envelope_keeps_its_bytes():
    data = b' {"signatures": [{"keyid":"k","method":"ECDSA","sig":"AAE="}],"signed":{"b":1.0,"a":"\\u0026"}}\n'
    result = Envelope.parse(data)
    assert result.data is data
    assert result.signed == {"a": "&", "b": 1}
    assert result.payload == b'{"a":"&","b":1}'
    assert result.payload is result.payload
    (signature,) = result.signatures
    assert (signature.key_id, signature.method, signature.sig) == ("k", "ecdsa", b"\0\1")


def test_its_repr_is_short():
    assert len(repr(Root.parse(Envelope.parse(golden("root"))).envelope)) < 500


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"{}", id="empty"),
        pytest.param(b"null", id="null"),
        pytest.param(b'{"signed":null,"signatures":null}', id="nulls"),
        pytest.param(b'{"signed":{}}', id="no-signatures"),
        pytest.param(b'{"signatures":[]}', id="nothing-signed"),
    ],
)
def test_empty_envelopes_parse_and_are_no_metadata(data):
    result, version = peek(data)
    assert (result.signed, result.signatures, version) == ({}, (), 0)
    for parse in PARSE.values():
        with pytest.raises(InvalidMetadata, match="expected type"):
            parse(result)


def wrapped(signed='{"version":1}', signatures="[]", more=""):
    return f'{{"signed":{signed},"signatures":{signatures}{more}}}'.encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "not JSON", id="nothing"),
        pytest.param(b"[]", "expected an object", id="list"),
        pytest.param(b'"signed"', "expected an object", id="text"),
        pytest.param(wrapped() + b"{}", "Extra data", id="trailing-data"),
        pytest.param(wrapped(more=',"x":1'), "unknown member 'x'", id="unsigned-member"),
        pytest.param(wrapped(more=',"Signed":{}'), "unknown member 'Signed'", id="signed-in-another-case"),
        pytest.param(wrapped(more=',"signed":{}'), "given twice", id="signed-twice"),
        pytest.param(wrapped('{"version":1,"version":2}'), "given twice", id="version-twice"),
        pytest.param(wrapped("[]"), "signed must be an object", id="signed-as-list"),
        pytest.param(wrapped('"e30="'), "signed must be an object", id="signed-as-text"),
        pytest.param(wrapped(signatures="{}"), "signatures must be a list", id="signatures-as-object"),
        pytest.param(wrapped(signatures="[1]"), "signature: expected an object", id="signature-as-number"),
        pytest.param(wrapped(signatures='[{"x":1}]'), "unknown member 'x'", id="unsigned-member-of-signature"),
        pytest.param(wrapped(signatures='[{"KeyID":"a"}]'), "unknown member 'KeyID'", id="keyid-in-another-case"),
        pytest.param(wrapped(signatures='[{"keyid":1}]'), "keyid must be a string", id="keyid-as-number"),
        pytest.param(wrapped(signatures='[{"method":{}}]'), "method must be a string", id="method-as-object"),
        pytest.param(wrapped(signatures='[{"sig":"a"}]'), "sig must be standard base64", id="sig-not-base64"),
        pytest.param(wrapped(signatures='[{"sig":[1]}]'), "sig must be a string", id="sig-as-list"),
    ],
)
def test_bad_envelopes(data, message):
    with pytest.raises(MalformedJSON, match=message):
        Envelope.parse(data)


def test_signatures_have_a_limit():
    one = '{"keyid":"a","method":"eddsa","sig":"AAAA"}'
    assert len(Envelope.parse(wrapped(signatures=f"[{','.join([one] * MAX_SIGNATURES)}]")).signatures) == MAX_SIGNATURES
    with pytest.raises(MalformedJSON, match=r"^101 signatures: a file holds at most 100$"):
        Envelope.parse(wrapped(signatures=f"[{','.join([one] * (MAX_SIGNATURES + 1))}]"))


@pytest.mark.large
def test_large_collections_of_targets_are_read():
    count = 140_000
    entry = {"hashes": {"sha256": "A" * 44, "sha512": "A" * 88}, "length": 1}
    signed = {
        "_type": "Targets",
        "expires": "2030-01-01T00:00:00Z",
        "targets": {f"some/name/{number}": entry for number in range(count)},
        "version": 1,
    }
    read = Targets.parse(Envelope.parse(wrapped(json.dumps(signed))), TARGETS)
    assert len(read.targets) == count


def test_fractions_are_the_business_of_whoever_checks_signatures():
    result, version = peek(wrapped('{"version":3,"x":1.5}'))
    assert version == 3
    with pytest.raises(InvalidMetadata, match="no fractions"):
        _ = result.payload


@pytest.mark.parametrize(("signed", "version"), [("{}", 0), ('{"version":null}', 0), ('{"version":-5}', -5)])
def test_peek_reads_any_integer_as_version(signed, version):
    assert peek(wrapped(signed))[1] == version


@pytest.mark.parametrize(
    "signed",
    [
        pytest.param('{"version":"1"}', id="version-as-text"),
        pytest.param('{"version":true}', id="version-true"),
        pytest.param('{"version":1.0}', id="version-as-whole-float"),
        pytest.param('{"version":1e0}', id="version-with-exponent"),
        pytest.param('{"version":1.5}', id="version-fraction"),
        pytest.param('{"version":[]}', id="version-as-list"),
        pytest.param('{"version":9223372036854775808}', id="version-of-64-bits"),
        pytest.param('{"version":1,"Version":2}', id="version-in-two-cases"),
        pytest.param('{"version":1,"EXPIRES":""}', id="expires-in-another-case"),
        pytest.param('{"_type":1}', id="type-as-number"),
        pytest.param('{"expires":1}', id="expires-as-number"),
        pytest.param('{"expires":"tomorrow"}', id="expires-as-word"),
    ],
)
def test_peek_refuses_what_no_role_may_hold(signed):
    with pytest.raises(MalformedJSON, match=r"^(signed: |expires |an integer is too large)"):
        peek(wrapped(signed))


@pytest.mark.parametrize("text", BAD_TIMES)
def test_peek_refuses_bad_times(text):
    with pytest.raises(MalformedJSON, match="expires"):
        peek(wrapped(json.dumps({"expires": text})))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-3, 3) | st.text("a\u0130\0\\\"'", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["_type", "expires", "version", "keys", "roles", "meta", "targets", "hashes", "Keys"]),
            inner,
        )
    ),
    max_leaves=8,
)


@given(st.sampled_from(list(SIGNED)), st.data())
@example("root", None)
def test_metadata_with_any_json_in_any_place_parses_or_is_refused(role, data):
    signed = copy.deepcopy(SIGNED[role])
    if data is not None:
        places = [(signed, name) for name in signed]
        for outer in signed.values():
            if isinstance(outer, dict):
                places += [(outer, name) for name in outer]
                for inner in outer.values():
                    places += [(inner, name) for name in inner] if isinstance(inner, dict) else []
        container, name = data.draw(st.sampled_from(places))
        container[name] = data.draw(JSON)
    raw = json.dumps({"signed": signed, "signatures": []}).encode()
    message = ""
    try:
        result, _ = peek(raw)
        PARSE[role](result)
    except (MalformedJSON, InvalidMetadata) as error:
        message = str(error)
    assert message.isascii()
    assert len(message) < 300


# -- files ------------------------------------------------------------------------------------------------------------


@given(st.binary())
def test_a_description_matches_its_file_alone(data):
    meta = FileMeta.of(data)
    assert meta.length == len(data)
    assert set(meta.hashes) == {"sha256", "sha512"}
    assert meta.matches(data)
    assert not meta.matches(data + b"\0")


SHA256 = hashlib.sha256(b"x").digest()
SHA512 = hashlib.sha512(b"x").digest()


@pytest.mark.parametrize(
    ("hashes", "matches"),
    [
        pytest.param({"sha256": SHA256}, True, id="sha256"),
        pytest.param({"sha512": SHA512}, True, id="sha512"),
        pytest.param({"sha256": SHA256, "sha512": SHA512, "md5": b""}, True, id="and-one-that-is-not-known"),
        pytest.param({"sha256": SHA256, "sha512": SHA512[::-1]}, False, id="one-of-two-wrong"),
        pytest.param({"sha256": SHA256[:-1]}, False, id="short"),
        pytest.param({"sha256": b""}, False, id="empty"),
        pytest.param({"md5": hashlib.md5(b"x").digest()}, False, id="none-that-is-known"),
        pytest.param({}, False, id="none"),
    ],
)
def test_matching(hashes, matches):
    assert FileMeta(1, hashes).matches(b"x") is matches


_BOTH = FileMeta.of(b"xy").hashes
_SHA256, _SHA512 = {"sha256": _BOTH["sha256"]}, {"sha512": _BOTH["sha512"]}
_OTHER = FileMeta.of(b"other").hashes


@pytest.mark.parametrize(
    ("length", "hashes", "leads"),
    [
        pytest.param(2, _BOTH, True, id="as it is"),
        pytest.param(3, _SHA256, True, id="more bytes"),
        pytest.param(-1, _SHA256, True, id="no limit"),
        pytest.param(1, _BOTH, False, id="fewer bytes"),
        pytest.param(-2, _BOTH, False, id="a length that is none"),
        pytest.param(2, _SHA512, False, id="no SHA-256"),
    ],
)
def test_what_clients_can_fetch_a_file_by(length, hashes, leads):
    assert FileMeta(length, hashes).leads_to(b"xy") is leads


@pytest.mark.parametrize(
    ("earlier", "later", "repeats"),
    [
        pytest.param((0, {}), (0, {}), True, id="useless as before"),
        pytest.param((2, _BOTH), (2, _SHA256), True, id="one digest less"),
        pytest.param((2, _SHA256), (2, _BOTH), True, id="one digest more"),
        pytest.param((-1, _BOTH), (2, _BOTH), True, id="a limit where was none"),
        pytest.param((2, _BOTH), (-1, _BOTH), True, id="no limit any more"),
        pytest.param((2, _BOTH), (1, _BOTH), False, id="fewer bytes"),
        pytest.param((2, _BOTH), (2, _SHA512), False, id="no SHA-256 any more"),
        pytest.param((2, _SHA512), (2, _BOTH), False, id="a SHA-256 where was none"),
        pytest.param((2, _BOTH), (2, {**_BOTH, "sha512": _OTHER["sha512"]}), False, id="another SHA-512"),
        pytest.param((2, _BOTH), (2, _OTHER), False, id="another file"),
    ],
)
def test_what_tells_of_the_same_file_as_before(earlier, later, repeats):
    assert FileMeta(*later).repeats(FileMeta(*earlier)) is repeats


@pytest.mark.large
def test_a_file_of_twenty_megabytes():
    targets = {f"image:{number:06}": FILE for number in range(110_000)}
    data = canonical.dumps({"signed": {**SIGNED["targets"], "targets": targets}, "signatures": []})
    assert len(data) > 20_000_000
    result, version = peek(data)
    assert version == 1
    assert len(Targets.parse(result, TARGETS).targets) == 110_000
    assert result.payload in data


# -- metadata made by Go ----------------------------------------------------------------------------------------------


def test_golden_collection():
    root = Root.parse(Envelope.parse(golden("root")))
    targets = Targets.parse(Envelope.parse(golden("targets")), TARGETS)
    releases = Targets.parse(Envelope.parse(golden("releases")), RELEASES)
    snapshot = Snapshot.parse(Envelope.parse(golden("snapshot")))
    timestamp = Timestamp.parse(Envelope.parse(golden("timestamp")))
    assert [role.version for role in (root, targets, releases, snapshot, timestamp)] == [3, 3, 1, 6, 5]
    assert set(targets.targets) == {"v1", 'a&b/<é>"\\'}
    assert targets.targets["v1"].matches(b"hello\n")
    assert targets.envelope.signed["targets"]["v1"]["custom"] == {"n": 7, "note": 'a "c" é 😀'}
    assert targets.delegations[RELEASES].paths == ("",)
    assert len(targets.delegations[RELEASES].role.keys) == 2
    assert releases.targets["rel1"] == targets.targets["v1"]
    assert root.expires == datetime(2036, 11, 20, 20, 5, 17, 391631, UTC)
    for name in ("root", "targets", "targets/releases"):
        data = golden(name.rpartition("/")[2])
        assert snapshot.meta[name].matches(data)
        assert snapshot.meta[name] == FileMeta.of(data)
    assert timestamp.meta == {"snapshot": FileMeta.of(golden("snapshot"))}


@pytest.mark.parametrize("name", ["root-1", "root", "releases", "snapshot", "timestamp"])
def test_our_canonical_form_is_gos(name):
    data = golden(name)
    assert data.startswith(b'{"signed":' + Envelope.parse(data).payload + b',"signatures":[')
