"""Which certificates of root keys are valid for a collection, and how a fault is told."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from notary.errors import InvalidMetadata, NoUsableCertificate
from notary.tuf.model import ROOT, SNAPSHOT, Envelope, Gun, RoleName, Root
from notary.tuf.public import PublicKey
from notary.tuf.root_certificates import certified_keys, check_delegation_certificate, some
from tests.support.author import Author, Key, make_certificate, make_key, make_private, make_root_key
from tests.support.collection import GUN, NOW

BEGINS, ENDS = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def root_of(*keys: Key, threshold: int = 1) -> Root:
    author = Author(GUN, now=NOW)
    author.rotate("root", *keys, threshold=threshold)
    return Root.parse(Envelope.parse(author.root(signers=[])))


def authority(**how: object) -> bytes:
    return make_certificate(make_private(), "an authority", authority=True, **how)


def off_the_curve() -> Key:
    """A certificate with a point that is not on its curve."""
    private = make_private()
    der = x509.load_pem_x509_certificate(make_certificate(private, GUN)).public_bytes(Encoding.DER)
    point = private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    damaged = der.replace(point, b"\4" + bytes(63) + b"\1")
    return Key("ecdsa-x509", x509.load_der_x509_certificate(damaged).public_bytes(Encoding.PEM), private)


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        pytest.param(make_key, "not a chain of certificates in the usual PEM form", id="bare"),
        pytest.param(
            lambda: make_root_key(GUN, authority=True),
            "the first certificate must be the leaf, not an authority",
            id="authority",
        ),
        pytest.param(
            lambda: make_root_key(GUN, intermediates=[authority(), make_certificate(make_private(), GUN)]),
            "more than one leaf certificate",
            id="two leaves",
        ),
        pytest.param(
            lambda: make_root_key("example.com/teamX*"),
            r"common name 'example.com/teamX\*' is neither the collection nor a prefix of it with a \*",
            id="name of another",
        ),
        pytest.param(
            lambda: make_root_key("example.com/team"),
            "common name 'example.com/team' is neither the collection nor a prefix",
            id="prefix without an asterisk",
        ),
        pytest.param(
            lambda: make_root_key(GUN, begins=ENDS, ends=BEGINS),
            "the certificate ends before it begins",
            id="reverse",
        ),
        pytest.param(lambda: make_root_key(GUN, "rsa", sha1=True), "the certificate is signed with SHA-1", id="sha-1"),
        pytest.param(
            lambda: make_root_key(GUN, "rsa", bits=1024),
            "the certificate's RSA key has 1024 bits; at least 2048 needed",
            id="rsa-1024",
        ),
        pytest.param(
            lambda: make_root_key(GUN, "ed25519"), "the certificate's key is neither ECDSA nor RSA", id="ed25519"
        ),
        pytest.param(off_the_curve, "the certificate's public key cannot be read", id="point off the curve"),
    ],
)
def test_keys_that_cannot_vouch_for_a_root(make: Callable[[], Key], fault: str) -> None:
    key = make()
    message = f"^root: no root key is a valid certificate for {GUN} \\({key.key_id}: {fault}[^;]*\\)$"
    with pytest.raises(NoUsableCertificate, match=message):
        certified_keys(root_of(key), Gun(GUN), None)


@pytest.mark.parametrize("name", [GUN, f"{GUN}*", "example.com/*", "example.com/te**", "*"])
@pytest.mark.parametrize("algorithm", ["ecdsa", "rsa"])
def test_keys_that_can(name: str, algorithm: str) -> None:
    key = make_root_key(name, algorithm, intermediates=[authority()])
    keys = certified_keys(root_of(key, make_key(), threshold=2), Gun(GUN), NOW)
    assert keys.keys == {key.key_id: PublicKey(key.key_type, key.public)}
    assert keys.threshold == 2


@pytest.mark.parametrize(
    ("now", "valid"),
    [
        pytest.param(BEGINS - timedelta(days=1), True, id="a day ahead"),
        pytest.param(BEGINS - timedelta(days=1) - SECOND, False, id="more than a day ahead"),
        pytest.param(ENDS, True, id="at its end"),
        pytest.param(ENDS + SECOND, False, id="after its end"),
        pytest.param(None, True, id="at any time"),
    ],
)
def test_when_a_certificate_is_valid(now: datetime | None, valid: bool) -> None:
    root = root_of(make_root_key(GUN, begins=BEGINS, ends=ENDS))
    if valid:
        assert certified_keys(root, Gun(GUN), now).keys == root.roles[ROOT].keys
        return
    period = r"2026-01-01T00:00:00\+00:00 to 2026-02-01T00:00:00\+00:00"
    with pytest.raises(NoUsableCertificate, match=f": the certificate is valid only from {period}\\)$"):
        certified_keys(root, Gun(GUN), now)


def test_a_certificate_may_end_when_it_begins() -> None:
    root = root_of(make_root_key(GUN, begins=BEGINS, ends=BEGINS))
    assert certified_keys(root, Gun(GUN), BEGINS).keys == root.roles[ROOT].keys


def test_an_expired_intermediate_is_dropped_if_expiry_counts_and_the_key_has_another_id() -> None:
    good, old = authority(), authority(ends=BEGINS)
    private = make_private()
    leaf = make_certificate(private, GUN)
    root = root_of(Key("ecdsa-x509", leaf + old + good, private))
    shorter = PublicKey("ecdsa-x509", leaf + good)
    assert certified_keys(root, Gun(GUN), NOW).keys == {shorter.key_id: shorter}
    assert certified_keys(root, Gun(GUN), None).keys == root.roles[ROOT].keys


def test_the_certificate_of_a_delegation_has_no_fault_but_may_have_expired() -> None:
    role = RoleName("targets/a")
    for good in (make_key(), make_root_key("x", ends=BEGINS), make_root_key("x", authority=True)):
        check_delegation_certificate(role, PublicKey(good.key_type, good.public))
    bad = make_root_key("x", "rsa", sha1=True)
    message = f"^targets/a: key {bad.key_id}: the certificate is signed with SHA-1$"
    with pytest.raises(InvalidMetadata, match=message):
        check_delegation_certificate(role, PublicKey(bad.key_type, bad.public))


@pytest.mark.parametrize(("count", "shown"), [(0, ""), (1, "0"), (3, "0; 1; 2"), (4, "0; 1; 2; and 1 more")])
def test_a_message_shows_some_of_many(count: int, shown: str) -> None:
    assert some([str(number) for number in range(count)], "; ") == shown


def test_only_the_keys_of_root_count() -> None:
    key = make_root_key(GUN)
    author = Author(GUN, now=NOW, root=make_key(), snapshot=key)
    root = Root.parse(Envelope.parse(author.root(signers=[])))
    assert root.roles[SNAPSHOT].keys.keys() == {key.key_id}
    with pytest.raises(NoUsableCertificate):
        certified_keys(root, Gun(GUN), None)
