"""Certificates that the library reads in part, or not at all: one kind of error wherever strangers' ones come in.

Rules of this module: a certificate is damaged in one place of its DER. Whether it is taken or refused is up to each
place; that nothing but the error of the house leaves it is what is tested.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from notary import certs
from notary.admin import certificate_dates
from notary.admin import collections as walk
from notary.errors import ConfigError, InvalidCertificate, Unauthorized
from notary.net.tls import contexts as tls
from notary.observe.expiry import certificates_in_use
from notary.server.auth.token import TokenAuth, load_bundle
from notary.tuf.public import PublicKey, Signature, verify
from tests.support.author import Key, make_certificate, make_key, make_private, make_root_key
from tests.support.collection import GUN, Collection
from tests.support.tokens import ISSUER, REALM, SERVICE, World

NOW = datetime.now(UTC)
PRIVATE = make_private()


def plain() -> bytes:
    return x509.load_pem_x509_certificate(make_certificate(PRIVATE, GUN)).public_bytes(Encoding.DER)


def other(before: bytes, after: bytes) -> Callable[[], bytes]:
    """A certificate in which other bytes stand somewhere."""

    def make() -> bytes:
        der = plain()
        assert before in der
        assert len(before) == len(after)
        return der.replace(before, after)

    return make


def negative_serial_number() -> bytes:
    der = bytearray(plain())
    first = der.index(bytes.fromhex("a003020102")) + 7  # the version is followed by tag and length of the number
    der[first] |= 0x80
    return bytes(der)


def extension_twice() -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, GUN)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(PRIVATE.public_key())
        .serial_number(5)
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2049, 1, 1, tzinfo=UTC))
    )
    for last in (1, 2):
        identifier = x509.ObjectIdentifier(f"1.2.3.4.{last}")
        builder = builder.add_extension(x509.UnrecognizedExtension(identifier, b"\x05\x00"), critical=False)
    der = builder.sign(PRIVATE, hashes.SHA256()).public_bytes(Encoding.DER)
    return der.replace(bytes.fromhex("2a030402"), bytes.fromhex("2a030401"))


_TEXT = GUN.encode()
_NAME = bytes([0x0C, len(_TEXT)]) + _TEXT
HOSTILE = {
    "version 57": other(bytes.fromhex("a003020102"), bytes.fromhex("a003020139")),
    "negative serial number": negative_serial_number,
    "month 13": other(b"491231", b"491331"),
    "unknown curve": other(bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2a8648ce3d030105")),
    "unknown key": other(bytes.fromhex("2a8648ce3d0201"), bytes.fromhex("2a8648ce3d0209")),
    "point that is on no curve": other(bytes.fromhex("03420004"), bytes.fromhex("03420005")),
    "unknown signature": other(bytes.fromhex("2a8648ce3d040302"), bytes.fromhex("2a8648ce3d04037f")),
    "name in a type of its own": other(_NAME, b"\x14" + _NAME[1:2] + b"\xff" + _TEXT[1:]),
    "name that is not UTF-8": other(_NAME, _NAME[:2] + b"\xff" + _TEXT[1:]),
    "extension twice": extension_twice,
    "constraints that hold nothing": other(
        bytes.fromhex("0603551d130101ff04023000"), bytes.fromhex("0603551d130101ff04020500")
    ),
    "no certificate": lambda: b"\x30\x00",
}


def pem_of(der: bytes) -> bytes:
    lines = base64.encodebytes(der).replace(b"\n", b"")
    cut = b"\n".join(lines[start : start + 64] for start in range(0, len(lines), 64))
    return b"-----BEGIN CERTIFICATE-----\n" + cut + b"\n-----END CERTIFICATE-----\n"


@pytest.fixture(params=HOSTILE)
def der(request: pytest.FixtureRequest) -> bytes:
    return HOSTILE[request.param]()


@pytest.fixture
def pem(der: bytes) -> bytes:
    return pem_of(der)


@pytest.fixture
def file(tmp_path: Path, pem: bytes) -> Path:
    path = tmp_path / "hostile.pem"
    path.write_bytes(pem)
    return path


def test_what_was_damaged_can_be_read_as_it_is() -> None:
    for found in (certs.from_der(plain()), certs.first_in_pem(pem_of(plain())), *certs.all_in_pem(pem_of(plain()))):
        assert found.public_key() == PRIVATE.public_key()


def inside(load: Callable[[bytes], x509.Certificate | tuple[x509.Certificate, ...]], data: bytes) -> None:
    """Ask a certificate for all that anybody asks for."""
    with certs.reading():
        found = load(data)
        one = found[0] if isinstance(found, tuple) else found
        for member in ("subject", "extensions", "signature_hash_algorithm", "not_valid_after_utc"):
            getattr(one, member)
        one.public_key()


def test_a_certificate_is_read_or_it_is_the_error_of_the_house(der: bytes, pem: bytes) -> None:
    for load, data in ((certs.from_der, der), (certs.first_in_pem, pem), (certs.all_in_pem, pem)):
        with pytest.raises(InvalidCertificate, match=r"^the certificate cannot be read$"):
            inside(load, data)


def test_nothing_is_a_certificate_either() -> None:
    for load in (certs.from_der, certs.first_in_pem, certs.all_in_pem):
        with pytest.raises(InvalidCertificate):
            load(b"")


def test_delegation_keys(pem: bytes) -> None:
    for collection, second in ((Collection(), False), (Collection(), True)):
        author = collection.author()
        author.delegate("targets/a", *([make_key()] if second else []), Key("ecdsa-x509", pem, PRIVATE))
        assert collection.outcome(author.first()) in {"OK", "ErrBadTargets"}


def test_root_keys(pem: bytes) -> None:
    collection = Collection()
    author = collection.author()
    author.roles["root"].keys.append(Key("ecdsa-x509", pem, PRIVATE))
    assert collection.outcome(author.first()) == "OK"
    alone = Collection()
    author = alone.author()
    author.roles["root"].keys[:] = [Key("ecdsa-x509", pem, PRIVATE)]
    assert alone.outcome(author.first()) in {"OK", "ErrBadRoot"}


@pytest.mark.parametrize("role", ["snapshot", "timestamp"])
def test_keys_that_are_not_the_servers(pem: bytes, role: str) -> None:
    collection = Collection()
    author = collection.author()
    author.roles[role].keys.append(Key("ecdsa-x509", pem))
    assert collection.outcome(author.first()) in {"OK", "ErrValidation"}


def test_signatures(pem: bytes) -> None:
    assert not verify(PublicKey("ecdsa-x509", pem), Signature("", "ecdsa", bytes(64)), b"payload")


def test_what_operators_are_told_of_a_key(pem: bytes) -> None:
    leaf = walk.leaf_of(PublicKey("ecdsa-x509", pem))
    assert leaf is None or leaf.valid_until.year == 2049
    good = walk.leaf_of(PublicKey("ecdsa-x509", make_root_key(GUN).public))
    assert good is not None
    assert good.subject == f"CN={GUN}"


def test_files_of_operators(file: Path, tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_bytes(PRIVATE.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    for read in (
        lambda: certificate_dates.read("server.tls_cert_file", file),
        lambda: tls.client_options("localhost", file, None, None),
        lambda: tls.server_context(file, key),
        lambda: load_bundle(file),
    ):
        with suppress(ConfigError):
            read()
    assert {key for key, _, _ in certificates_in_use({"the key": file})} == {"the key"}


def test_chains_of_tokens(der: bytes) -> None:
    world = World(NOW)
    access = TokenAuth(REALM, SERVICE, ISSUER, [holder.certificate for holder in world.trusted])
    for chain in ([der], [der, der]):
        header = world.headed(world.ec, x5c=[base64.b64encode(one).decode() for one in chain])
        with pytest.raises(Unauthorized, match="its chain "):
            access.authorize(header, "localhost", [], NOW)
