"""Certificates of all forms, wherever one comes in: what Go reads is read and used, and the rest is one kind of error.

Rules of this module: :data:`ODD` and :data:`REFUSED` are written byte by byte, ``HOSTILE`` is a good certificate that
is damaged in one place. Whether a hostile one is taken or refused is up to each place; that nothing but the error of
the house leaves it is what is tested.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from notary import certs
from notary.admin import certificate_dates
from notary.admin import collections as walk
from notary.admin.findings import KINDS, check
from notary.errors import ConfigError, InvalidCertificate, InvalidUpdate, Unauthorized, UploadFault
from notary.net.tls import contexts as tls
from notary.observe.expiry import certificates_in_use
from notary.server.auth.token import TokenAuth, load_bundle
from notary.signer.clients import names_of
from notary.tuf.model import ROOT
from notary.tuf.public import PublicKey, Signature, verify
from tests.support import oddcerts
from tests.support.author import Author, Key, make_certificate, make_key, make_private, make_root_key
from tests.support.certs import as_read
from tests.support.collection import GUN, Collection, Held
from tests.support.oddcerts import ODD, REFUSED, Form, Private, make
from tests.support.stored import InMemory, Publisher
from tests.support.tokens import ISSUER, REALM, SERVICE, World, fingerprint, token

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
    for found in (certs.Certificate(plain()), certs.first_in_pem(pem_of(plain())), *certs.all_in_pem(pem_of(plain()))):
        assert found.public_key == PRIVATE.public_key()


def test_a_certificate_is_read_or_it_is_the_error_of_the_house(der: bytes, pem: bytes) -> None:
    for load, data in (
        (certs.Certificate, der),
        (certs.first_in_pem, pem),
        (lambda pem: certs.all_in_pem(pem)[0], pem),
    ):
        with suppress(InvalidCertificate):
            asked_for_all(load(data))


def asked_for_all(one: certs.Certificate) -> None:
    assert str(one.subject).isprintable()
    for member in ("common_name", "public_key", "signature_hash", "dns_names", "pem"):
        with suppress(InvalidCertificate):
            getattr(one, member)
    with suppress(InvalidCertificate):
        assert one.alternatives_text().isprintable()


def test_nothing_is_a_certificate_either() -> None:
    for load in (certs.Certificate, certs.first_in_pem, certs.all_in_pem):
        with pytest.raises(InvalidCertificate):
            load(b"")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(plain()[:-1], id="cut"),
        pytest.param(plain() + b"\0", id="followed"),
        pytest.param(b"\x30\x84\x00\x00\x00\x00", id="a length in more bytes than needed"),
        pytest.param(b"\x30\x88" + b"\xff" * 8, id="a length of 64 bits"),
        pytest.param(b"\x3f\x81\x01\x00", id="a long tag"),
        pytest.param(b"\x30\x82\xff\xff" * 20000, id="nested for ever"),
        pytest.param(make(Form(extensions=[b"\x30\x00"] * 2000), GUN, PRIVATE), id="too many elements"),
        pytest.param(make(Form(behind=b"\x04\x82\xff\xff" + bytes(65535)), GUN, PRIVATE), id="too large"),
    ],
)
def test_bounds(data: bytes) -> None:
    with pytest.raises(InvalidCertificate):
        certs.Certificate(data)


# -- what Go reads ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=ODD)
def odd(request: pytest.FixtureRequest) -> Form:
    return ODD[request.param]


@pytest.fixture(scope="module")
def odd_private() -> Private:
    return make_private()


def test_odd_certificates_are_read(odd: Form, odd_private: Private) -> None:
    data = make(odd, GUN, odd_private)
    one = certs.Certificate(data)
    assert (one.common_name, one.is_authority, one.pem) == (GUN, False, oddcerts.pem(data))
    assert one.not_before.year in {1950, 2019, 2020}
    assert one.not_after >= datetime(2049, 12, 30, tzinfo=UTC)
    assert one.public_key == odd_private.public_key()
    assert {"localhost", "notarysigner"} <= set(one.dns_names)
    asked_for_all(one)
    assert certs.Certificate(make(oddcerts.authority(odd), GUN, odd_private)).is_authority


@pytest.mark.parametrize("form", REFUSED.values(), ids=REFUSED)
def test_what_go_refuses_vouches_for_no_collection(form: Form, odd_private: Private) -> None:
    with pytest.raises(InvalidCertificate):
        _ = certs.Certificate(make(form, GUN, odd_private)).common_name


def test_odd_times(odd_private: Private) -> None:
    def ends(name: str) -> datetime:
        return certs.Certificate(make(ODD[name], GUN, odd_private)).not_after

    assert ends("UTCTime without seconds") == datetime(2049, 12, 31, tzinfo=UTC)
    assert ends("UTCTime with an offset") == datetime(2049, 12, 31, 5, tzinfo=UTC)
    assert ends("GeneralizedTime with an offset") == datetime(2049, 12, 30, 22, 30, tzinfo=UTC)
    assert ends("without an end") == datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


def test_what_messages_say_of_odd_names(odd_private: Private) -> None:
    def subject(form: Form) -> str:
        return str(certs.Certificate(make(form, GUN, odd_private)).subject)

    assert subject(ODD["Latin-1 in a T61String"]) == f"CN={GUN},O=Société"
    assert subject(ODD["UTF-8 in a T61String"]) == f"CN={GUN},O=Société"
    assert subject(ODD["a control character in a name"]) == f"CN={GUN},O=a\\0ab\\00c"
    assert subject(ODD["two attributes in one part, unsorted"]) == f"O=z+CN={GUN}+C=DE"
    assert subject(REFUSED["bytes that are not UTF-8"]) == f"CN={GUN},O=ÿ"


def key_of(data: bytes, private: Private) -> Key:
    return Key("ecdsa-x509", oddcerts.pem(data), private)


def test_odd_roots_and_delegations_publish(odd: Form, odd_private: Private) -> None:
    collection = Collection()
    author = collection.author()
    author.roles["root"].keys[:] = [key_of(make(odd, GUN, odd_private), odd_private)]
    author.delegate("targets/a", key_of(make(odd, "a", odd_private), odd_private))
    assert collection.outcome(author.first()) == "OK"
    author.add("one", b"content", "targets/a")
    assert collection.outcome(author.publish("targets/a")) == "OK"
    author.rotate("root", make_root_key(GUN))
    assert collection.outcome(author.publish("root", "targets")) == "OK"


def test_fsck_finds_nothing_wrong_with_odd_certificates(odd: Form, odd_private: Private) -> None:
    publisher = Publisher(GUN)
    publisher.author.roles["root"].keys[:] = [key_of(make(odd, GUN, odd_private), odd_private)]
    publisher.author.delegate("targets/releases", key_of(make(odd, "releases", odd_private), odd_private))
    stored = InMemory(GUN)
    stored.add(publisher.next())
    assert check(stored) == []


def test_the_names_of_an_odd_root_are_compared_as_go_does(odd_private: Private) -> None:
    """Latin-1 in a certificate equals no UTF-8 in the name of a collection."""
    form = replace(ODD["nothing odd"], name=lambda _: oddcerts.distinguished(oddcerts.TELETEX, b"caf\xe9"))
    assert certs.Certificate(make(form, GUN, odd_private)).common_name != "café"


# -- a stored root that is not read -----------------------------------------------------------------------------------


def held(form: Form, private: Private) -> tuple[Collection, Author]:
    """A collection that another server has accepted with such a root."""
    collection = Collection()
    author = collection.author()
    collection.publish(author.first())
    author.roles["root"].keys[:] = [key_of(make(form, GUN, private), private)]
    collection.current[ROOT] = Held(1, author.root())
    return collection, author


OF_ANOTHER = replace(ODD["nothing odd"], name=lambda _: oddcerts.distinguished(oddcerts.UTF8, b"other"))
UNREAD = {name: form for name, form in REFUSED.items() if name != "an indefinite length"} | {"other": OF_ANOTHER}
"""Roots that another server may have accepted, long ago."""


@pytest.mark.parametrize("form", UNREAD.values(), ids=UNREAD)
def test_a_stored_root_that_cannot_be_used_is_replaced_by_the_holders_of_its_keys(
    form: Form, odd_private: Private
) -> None:
    collection, author = held(form, odd_private)
    author.add("one", b"content")
    with pytest.raises(InvalidUpdate, match="rotate the root key") as caught:
        collection.validate(author.publish("targets"))
    assert caught.value.fault is UploadFault.ROOT
    stranger = make_root_key(GUN)
    mine, author.roles["root"].keys[:] = author.roles["root"].keys[:], [stranger]
    author.bump("root")
    with pytest.raises(InvalidUpdate, match="valid signature") as caught:
        collection.validate(author.files("root", "targets"))
    assert caught.value.fault is UploadFault.ROOT
    author.retired.extend(mine)
    assert collection.outcome(author.files("root", "targets")) == "OK"
    author.retired.clear()
    author.add("two", b"content")
    assert collection.outcome(author.publish("targets")) == "OK"


@pytest.mark.parametrize("form", UNREAD.values(), ids=UNREAD)
def test_fsck_advises_to_keep_a_collection_whose_root_cannot_be_used(form: Form, odd_private: Private) -> None:
    publisher = Publisher(GUN)
    publisher.author.roles["root"].keys[:] = [key_of(make(form, GUN, odd_private), odd_private)]
    stored = InMemory(GUN)
    stored.add(publisher.next())
    (finding,) = check(stored)
    assert (finding.kind, finding.role) == ("root-certificate", "root")
    assert "keep the collection" in KINDS[finding.kind].remedy


def test_fsck_never_advises_to_delete_what_clients_trust() -> None:
    for name, kind in KINDS.items():
        assert "delete the collection" not in kind.remedy, name


# -- other places of odd ones -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world() -> World:
    return World(NOW)


IN_OPENSSL = {name: form for name, form in ODD.items() if name not in oddcerts.BEYOND_OPENSSL}


@pytest.mark.parametrize("form", IN_OPENSSL.values(), ids=IN_OPENSSL)
def test_odd_tokens_and_bundles(form: Form, odd_private: Private, world: World, tmp_path: Path) -> None:
    leaf, above = make_private(), oddcerts.authority(form)
    root = make(above, "an authority", odd_private)
    shown = make(form, "a leaf", leaf, issuer=(above, "an authority", odd_private))
    path, _ = oddcerts.write(tmp_path, "bundle", odd_private, root)
    access = TokenAuth(REALM, SERVICE, ISSUER, load_bundle(path))
    claims = world.claims()
    chain = {"alg": "ES256", "x5c": [base64.b64encode(shown).decode()]}
    for header, key in ((chain, leaf), ({"alg": "ES256", "kid": fingerprint(odd_private)}, odd_private)):
        assert access.authorize(f"Bearer {token(header, claims, key)}", "localhost", [], NOW) == "alice"
    for late in (datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), datetime(1949, 1, 1, tzinfo=UTC)):
        forever = world.claims(exp=2**40, nbf=-(2**40))
        with pytest.raises(Unauthorized, match="does not lead to one that is trusted"):
            access.authorize(f"Bearer {token(chain, forever, leaf)}", "localhost", [], late)


def test_odd_clients_of_the_signer(odd: Form, odd_private: Private) -> None:
    assert "notary-server" in names_of(make(odd, GUN, odd_private))
    assert names_of(make(replace(odd, hosts=(), extensions=()), "Alone", odd_private)) >= {"alone"}


def test_odd_files_are_watched(odd: Form, odd_private: Private, tmp_path: Path) -> None:
    path, _ = oddcerts.write(tmp_path, "odd", odd_private, make(odd, GUN, odd_private))
    (dates,) = certificate_dates.read("server.tls_cert_file", path)
    assert dates.valid_until >= datetime(2049, 12, 30, tzinfo=UTC)
    ((key, subject, _), expiry), *more = certificates_in_use({"the key": path}).items()
    assert (key, subject, more) == ("the key", "another" if GUN not in subject else GUN, [])
    assert expiry == dates.valid_until.timestamp()
    leaf = walk.leaf_of(PublicKey("ecdsa-x509", path.read_bytes()))
    assert leaf is not None
    assert (leaf.subject, leaf.valid_until) == (dates.subject, dates.valid_until)


# -- hostile ones, place by place -------------------------------------------------------------------------------------


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


def test_chains_of_tokens(der: bytes, world: World) -> None:
    access = TokenAuth(REALM, SERVICE, ISSUER, as_read(*(holder.certificate for holder in world.trusted)))
    for chain in ([der], [der, der]):
        header = world.headed(world.ec, x5c=[base64.b64encode(one).decode() for one in chain])
        with pytest.raises(Unauthorized, match="its chain "):
            access.authorize(header, "localhost", [], NOW)
