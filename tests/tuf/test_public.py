"""Key ids, signatures and thresholds, against keys and metadata made by Go."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

import nacl.signing
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from notary.errors import InvalidMetadata, MalformedJSON
from notary.tuf import private, public
from notary.tuf.model import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, Envelope, RoleName, Root, Targets
from notary.tuf.public import PublicKey, RoleKeys, Signature, meets_threshold, verify
from tests.support.oddrsa import EXPONENT_32, EXPONENT_64, LARGEST_EXPONENT, OddKey

GOLDEN = Path(__file__).parent / "data"
RELEASES = RoleName("targets/releases")
GO_MESSAGE = b"signed by Go"
GO_KEYS = json.loads((GOLDEN / "keys.json").read_bytes())
MESSAGE = b'{"version":1}'


def golden(name):
    return Envelope.parse((GOLDEN / f"{name}.json").read_bytes())


def golden_roles():
    root = Root.parse(golden("root"))
    targets = Targets.parse(golden("targets"), TARGETS)
    return {**root.roles, RELEASES: targets.delegations[RELEASES].role}


def pkix(key):
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def pem(key):
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def certificate(secret, name="x", public=None):
    """A certificate as short as it can be, in PEM: of ``public``, if that is not the key of ``secret``."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    start = datetime(2024, 1, 1, tzinfo=UTC)
    builder = (
        x509.CertificateBuilder(subject, subject, public or secret.public_key(), x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start.replace(year=2034))
    )
    built = builder.sign(secret, hashes.SHA256())
    return built.public_bytes(serialization.Encoding.PEM)


def raw_ecdsa(secret, message, width):
    r, s = decode_dss_signature(secret.sign(message, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(width, "big") + s.to_bytes(width, "big")


def pss(secret, message, salt=32, digest=None):
    digest = digest or hashes.SHA256()
    return secret.sign(message, padding.PSS(padding.MGF1(digest), salt), digest)


ED25519 = nacl.signing.SigningKey(bytes(range(32)))
P256 = ec.derive_private_key(7, ec.SECP256R1())
P384 = ec.derive_private_key(7, ec.SECP384R1())
K1 = ec.derive_private_key(7, ec.SECP256K1())
RSA = serialization.load_der_private_key(
    base64.b64decode(next(row["private"] for row in GO_KEYS if row["keytype"] == "rsa")), None
)


# -- what Go made -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", GO_KEYS, ids=[f"{row['method']}-{number}" for number, row in enumerate(GO_KEYS)])
def test_golden_keys(row):
    key = PublicKey(row["keytype"], base64.b64decode(row["public"]))
    sig = base64.b64decode(row["sig"])
    assert key.key_id == key.canonical_id == row["id"]
    assert verify(key, Signature(row["id"], row["method"], sig), GO_MESSAGE)
    assert not verify(key, Signature(row["id"], row["method"], sig), GO_MESSAGE + b"\n")
    assert not verify(key, Signature(row["id"], row["method"].upper(), sig), GO_MESSAGE)
    for place in (0, len(sig) // 2, len(sig) - 1):
        changed = sig[:place] + bytes([sig[place] ^ 1]) + sig[place + 1 :]
        assert not verify(key, Signature(row["id"], row["method"], changed), GO_MESSAGE)
    for changed in (b"", sig[:-1], sig + b"\0", b"\0" + sig, bytes(len(sig)), b"\xff" * len(sig)):
        assert not verify(key, Signature(row["id"], row["method"], changed), GO_MESSAGE)


def test_the_golden_keys_cover_every_method():
    assert {row["method"] for row in GO_KEYS} == {"eddsa", "ecdsa", "rsapss", "rsapkcs1v15", "pycrypto-pkcs#1 pss"}


@pytest.mark.parametrize(
    ("name", "role", "signers"),
    [
        ("root", ROOT, 1),
        ("targets", TARGETS, 1),
        ("snapshot", SNAPSHOT, 1),
        ("timestamp", TIMESTAMP, 1),
        ("releases", RELEASES, 2),
    ],
)
def test_golden_signatures(name, role, signers):
    envelope, keys = golden(name), golden_roles()[role]
    assert meets_threshold(envelope, keys).ok
    result = meets_threshold(envelope, RoleKeys(keys.keys, signers))
    assert result.ok
    assert result.valid_key_ids == {signature.key_id for signature in envelope.signatures} == set(keys.keys)
    assert len(result.valid_key_ids) == signers
    assert not meets_threshold(envelope, RoleKeys(keys.keys, signers + 1)).ok
    others = golden_roles()[TIMESTAMP if role != TIMESTAMP else SNAPSHOT]
    assert not meets_threshold(envelope, others).ok


def test_golden_certificates():
    roles = golden_roles()
    (key,) = roles[ROOT].keys.values()
    (leaf,) = key.certificates
    assert leaf.common_name == "example.org/golden"
    assert key.canonical_id != key.key_id
    # "notary delegation add" printed these for the ECDSA and the RSA certificate.
    assert [key.canonical_id for key in roles[RELEASES].keys.values()] == [
        "fc62cb70f5a97666d1c0670c28c1d0ca8285b739fbf4bf201f18a50c5a5e9381",
        "205a84b8fd28e72b8594ff0b8c499a52b006cb146d177050e8534e817964c021",
    ]


def accepted(data, role):
    try:
        return meets_threshold(Envelope.parse(data), role).ok
    except (MalformedJSON, InvalidMetadata):
        return False


@pytest.mark.parametrize("name", ["timestamp", "snapshot"])
def test_a_changed_bit_anywhere_in_what_is_signed_is_refused(name):
    envelope, role = golden(name), golden_roles()[RoleName(name)]
    start = envelope.data.index(envelope.payload)
    assert accepted(envelope.data, role)
    for place in range(start, start + len(envelope.payload)):
        for bit in range(8):
            changed = bytearray(envelope.data)
            changed[place] ^= 1 << bit
            assert not accepted(bytes(changed), role), (place, bit)


@given(st.sampled_from(["root", "releases"]), st.data())
def test_a_changed_bit_is_refused_whatever_the_algorithm(name, data):
    envelope, role = golden(name), golden_roles()[RELEASES if name == "releases" else ROOT]
    place = envelope.data.index(envelope.payload) + data.draw(st.integers(0, len(envelope.payload) - 1))
    changed = bytearray(envelope.data)
    changed[place] ^= 1 << data.draw(st.integers(0, 7))
    assert not accepted(bytes(changed), role)


# -- keys as JSON -----------------------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=["Cs"])), st.binary())
def test_a_key_is_read_as_it_is_written(key_type, public):
    key = PublicKey(key_type, public)
    again = PublicKey.parse(key.to_json())
    assert again == key
    assert again.key_id == key.key_id
    assert key.key_id == key.key_id.lower()
    assert len(key.key_id) == 64


def test_the_id_of_a_key_depends_on_type_and_content_alone():
    json_key = {"keytype": "ed25519", "keyval": {"public": "AA==", "private": "c2VjcmV0"}, "x": 1}
    key = PublicKey.parse(json_key)
    assert key == PublicKey("ed25519", b"\0")
    assert key.to_json() == {"keytype": "ed25519", "keyval": {"private": None, "public": "AA=="}}
    assert key.key_id != PublicKey("ed25519", b"\1").key_id != PublicKey("ecdsa", b"\1").key_id


@pytest.mark.parametrize("key_type", ["ecdsa", "rsa", "ed25519", "dilithium", ""])
def test_bare_keys_have_one_id(key_type):
    key = PublicKey(key_type, b"not a key")
    assert key.canonical_id == key.key_id


# -- certificates -----------------------------------------------------------------------------------------------------

LEAF = certificate(P256, "leaf")
OTHER = certificate(RSA, "other")


@pytest.mark.parametrize(
    ("public", "names"),
    [
        pytest.param(LEAF, ["leaf"], id="one"),
        pytest.param(LEAF + OTHER, ["leaf", "other"], id="chain"),
        pytest.param(b"", [], id="nothing"),
        pytest.param(b"\0" * 40, [], id="garbage"),
        pytest.param(LEAF[:-40], [], id="truncated"),
        pytest.param(LEAF[100:], [], id="no-beginning"),
        pytest.param(LEAF.replace(b"\n", b"\r\n"), [], id="other-line-ends"),
        pytest.param(b"leaf\n" + LEAF, [], id="text-before"),
        pytest.param(LEAF + b"\n", [], id="line-after"),
        pytest.param(LEAF.rstrip(), [], id="no-last-newline"),
        pytest.param(LEAF + pem(P256.public_key()), [], id="bare-key-after"),
        pytest.param(pem(P256.public_key()), [], id="bare-key"),
        pytest.param(LEAF.replace(b"MII", b"MIJ", 1), [], id="not-der"),
    ],
)
def test_certificate_chains(public, names):
    chain = PublicKey("ecdsa-x509", public).certificates
    assert [str(entry.subject) for entry in chain] == [f"CN={name}" for name in names]


@pytest.mark.parametrize("public", [b"", b"garbage", LEAF[:-40], pem(P256.public_key())])
def test_no_canonical_id_without_a_certificate(public):
    with pytest.raises(InvalidMetadata, match="holds no certificate"):
        _ = PublicKey("ecdsa-x509", public).canonical_id


def test_the_canonical_id_is_that_of_the_bare_key_of_the_leaf():
    bare = PublicKey("ecdsa", pkix(P256.public_key()))
    assert PublicKey("ecdsa-x509", LEAF).canonical_id == bare.key_id
    assert PublicKey("ecdsa-x509", LEAF + OTHER).canonical_id == bare.key_id
    assert PublicKey("ecdsa-x509", certificate(P256, "renewed")).canonical_id == bare.key_id
    assert PublicKey("rsa-x509", OTHER).canonical_id == PublicKey("rsa", pkix(RSA.public_key())).key_id


def damaged(public):
    """The same certificate, of an unknown version: Go reads nothing of it, but its key is there."""
    der = base64.b64decode(b"".join(public.splitlines()[1:-1]))
    assert der.count(b"\xa0\x03\x02\x01\x02") == 1
    der = der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x09")
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    ("key", "bare"),
    [
        pytest.param(PublicKey("ecdsa", b"not a key"), PublicKey("ecdsa", b"not a key"), id="bare"),
        pytest.param(PublicKey("ecdsa-x509", LEAF + OTHER), PublicKey("ecdsa", pkix(P256.public_key())), id="ecdsa"),
        pytest.param(PublicKey("rsa-x509", OTHER), PublicKey("rsa", pkix(RSA.public_key())), id="rsa"),
        pytest.param(PublicKey("ecdsa-x509", damaged(LEAF)), PublicKey("ecdsa", pkix(P256.public_key())), id="damaged"),
    ],
)
def test_a_key_without_its_certificate(key, bare):
    assert key.without_certificate() == bare


def test_nothing_is_left_of_what_was_no_certificate():
    assert PublicKey("ecdsa-x509", damaged(LEAF)).certificates == ()
    key = PublicKey("ecdsa-x509", b"garbage")
    with pytest.raises(InvalidMetadata, match=f"^key {key.key_id} holds no certificate with a key that can be read$"):
        key.without_certificate()


# -- verification -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key_type", "public", "method", "sig"),
    [
        pytest.param("ed25519", bytes(ED25519.verify_key), "eddsa", ED25519.sign(MESSAGE).signature, id="ed25519"),
        pytest.param("ecdsa", pkix(P256.public_key()), "ecdsa", raw_ecdsa(P256, MESSAGE, 32), id="p-256"),
        pytest.param("ecdsa-x509", LEAF, "ecdsa", raw_ecdsa(P256, MESSAGE, 32), id="p-256-certificate"),
        pytest.param("ecdsa-x509", LEAF + OTHER, "ecdsa", raw_ecdsa(P256, MESSAGE, 32), id="p-256-chain"),
        pytest.param("ecdsa-x509", b"x\n" + LEAF, "ecdsa", raw_ecdsa(P256, MESSAGE, 32), id="pem-with-text-before"),
        pytest.param("ecdsa-x509", certificate(P384), "ecdsa", raw_ecdsa(P384, MESSAGE, 48), id="p-384-certificate"),
        pytest.param("rsa", pkix(RSA.public_key()), "rsapss", pss(RSA, MESSAGE), id="pss"),
        pytest.param("rsa-x509", OTHER, "rsapss", pss(RSA, MESSAGE), id="pss-certificate"),
        pytest.param(
            "rsa-x509",
            OTHER,
            "rsapkcs1v15",
            RSA.sign(MESSAGE, padding.PKCS1v15(), hashes.SHA256()),
            id="pkcs1v15-certificate",
        ),
        pytest.param("rsa", pem(RSA.public_key()), "pycrypto-pkcs#1 pss", pss(RSA, MESSAGE), id="pycrypto"),
    ],
)
def test_what_is_verified(key_type, public, method, sig):
    signature = Signature("whatever", method, sig)
    assert verify(PublicKey(key_type, public), signature, MESSAGE)
    assert not verify(PublicKey(key_type, public), signature, MESSAGE[:-1])
    for other in ("ed25519", "ecdsa", "ecdsa-x509", "rsa", "rsa-x509", "dilithium", ""):
        assert other == key_type or not verify(PublicKey(other, public), signature, MESSAGE)
    for other in ("eddsa", "ecdsa", "rsapss", "rsapkcs1v15", "pycrypto-pkcs#1 pss", "none", ""):
        assert other == method or not verify(PublicKey(key_type, public), Signature("", other, sig), MESSAGE)


SMALL = rsa.generate_private_key(65537, 1024)
ODD = rsa.generate_private_key(65537, 2047)
DSA = dsa.generate_private_key(1024)
COMPRESSED = P256.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
SPKI_COMPRESSED = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200") + COMPRESSED
UNCOMPRESSED = P256.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
GOOD_ECDSA = raw_ecdsa(P256, MESSAGE, 32)


@pytest.mark.parametrize(
    ("key_type", "public", "method", "sig"),
    [
        pytest.param("rsa", pkix(SMALL.public_key()), "rsapss", pss(SMALL, MESSAGE), id="rsa-1024"),
        pytest.param("rsa", pkix(ODD.public_key()), "rsapss", pss(ODD, MESSAGE), id="rsa-2047"),
        pytest.param("rsa-x509", certificate(SMALL), "rsapss", pss(SMALL, MESSAGE), id="rsa-1024-certificate"),
        pytest.param("rsa", pem(SMALL.public_key()), "pycrypto-pkcs#1 pss", pss(SMALL, MESSAGE), id="rsa-1024-pem"),
        pytest.param(
            "rsa",
            pkix(SMALL.public_key()),
            "rsapkcs1v15",
            SMALL.sign(MESSAGE, padding.PKCS1v15(), hashes.SHA256()),
            id="rsa-1024-pkcs1v15",
        ),
        pytest.param("rsa", pkix(RSA.public_key()), "rsapss", pss(RSA, MESSAGE, salt=20), id="other-salt-length"),
        pytest.param(
            "rsa", pkix(RSA.public_key()), "rsapss", pss(RSA, MESSAGE, digest=hashes.SHA512()), id="other-digest"
        ),
        pytest.param("rsa-x509", LEAF, "rsapss", GOOD_ECDSA, id="ecdsa-certificate-as-rsa"),
        pytest.param("rsa", pkix(P256.public_key()), "rsapss", GOOD_ECDSA, id="ecdsa-key-as-rsa"),
        pytest.param("ecdsa", pkix(RSA.public_key()), "ecdsa", pss(RSA, MESSAGE), id="rsa-key-as-ecdsa"),
        pytest.param("ecdsa", pkix(DSA.public_key()), "ecdsa", GOOD_ECDSA, id="dsa-key-as-ecdsa"),
        pytest.param("ecdsa", pkix(K1.public_key()), "ecdsa", raw_ecdsa(K1, MESSAGE, 32), id="curve-unknown-to-go"),
        pytest.param("ecdsa-x509", certificate(K1), "ecdsa", raw_ecdsa(K1, MESSAGE, 32), id="its-certificate"),
        pytest.param("ecdsa", pem(P256.public_key()), "ecdsa", GOOD_ECDSA, id="pem-where-der-belongs"),
        pytest.param("ecdsa", pkix(P256.public_key()) + b"\0", "ecdsa", GOOD_ECDSA, id="der-and-more"),
        pytest.param("ecdsa", SPKI_COMPRESSED, "ecdsa", GOOD_ECDSA, id="compressed-point"),
        pytest.param("ecdsa", UNCOMPRESSED, "ecdsa", GOOD_ECDSA, id="bare-point"),
        pytest.param(
            "ecdsa",
            pkix(P256.public_key()),
            "ecdsa",
            P256.sign(MESSAGE, ec.ECDSA(hashes.SHA256())),
            id="der-signature",
        ),
        pytest.param("ecdsa", pkix(P256.public_key()), "ecdsa", raw_ecdsa(P256, MESSAGE, 48), id="too-wide"),
        pytest.param("ed25519", bytes(31), "eddsa", bytes(64), id="short-key"),
        pytest.param("ed25519", bytes(33), "eddsa", bytes(64), id="long-key"),
        pytest.param("ed25519", bytes(32), "eddsa", bytes(64), id="key-of-small-order"),
        pytest.param("ed25519", bytes(ED25519.verify_key), "eddsa", bytes(63), id="short-signature"),
        pytest.param(
            "dilithium", bytes(ED25519.verify_key), "eddsa", ED25519.sign(MESSAGE).signature, id="unknown-key-type"
        ),
    ],
)
def test_what_is_not_verified(key_type, public, method, sig):
    assert verify(PublicKey(key_type, public), Signature("", method, sig), MESSAGE) is False


@pytest.mark.parametrize(
    ("odd", "good"),
    [
        pytest.param(OddKey(), True, id="exponent-of-17-bits"),
        pytest.param(OddKey(exponent=LARGEST_EXPONENT), True, id="exponent-of-31-bits"),
        pytest.param(OddKey(primes=8), True, id="8192-bits"),
        pytest.param(OddKey(exponent=EXPONENT_32), False, id="exponent-of-32-bits"),
        pytest.param(OddKey(exponent=EXPONENT_64), False, id="exponent-of-64-bits"),
        pytest.param(OddKey(exponent=65537**100), False, id="exponent-of-1601-bits"),
        pytest.param(OddKey(primes=9), False, id="9216-bits"),
    ],
)
@pytest.mark.parametrize("key_type", ["rsa", "rsa-x509"])
def test_rsa_keys_have_bounds(odd, good, key_type):
    public = odd.public
    if key_type == "rsa-x509":
        public = certificate(P256, public=serialization.load_der_public_key(public))
    assert verify(PublicKey(key_type, public), Signature("", "rsapkcs1v15", odd.sign(MESSAGE)), MESSAGE) is good


EXPONENTS = "RSA key has a public exponent that is not 3 to 2^31 - 1; 65537 is usual"


@pytest.mark.parametrize(
    ("bits", "exponent", "costly", "fault"),
    [
        pytest.param(2047, 65537, False, "RSA key has 2047 bits; at least 2048 needed", id="short"),
        pytest.param(2048, 65537, False, None, id="shortest"),
        pytest.param(8192, 65537, False, None, id="longest"),
        pytest.param(8193, 65537, True, "RSA key has 8193 bits; at most 8192 allowed", id="long"),
        pytest.param(2048, 3, False, None, id="least-exponent"),
        pytest.param(2048, LARGEST_EXPONENT, False, None, id="largest-exponent"),
        pytest.param(2048, LARGEST_EXPONENT + 2, True, EXPONENTS, id="large-exponent"),
    ],
)
def test_the_bounds_of_rsa_keys_to_the_bit(bits, exponent, costly, fault):
    key = rsa.RSAPublicNumbers(exponent, 1 << bits - 1 | 1).public_key()
    assert public.rsa_is_costly(key) is costly
    assert public.rsa_fault(key) == fault


def test_an_exponent_of_1_signs_nothing():
    odd = OddKey(exponent=1)
    assert not verify(PublicKey("rsa", odd.public), Signature("", "rsapkcs1v15", odd.sign(MESSAGE)), MESSAGE)


def test_the_material_of_the_bad_table_is_good_but_for_its_fault():
    assert serialization.load_der_public_key(SPKI_COMPRESSED).public_numbers() == P256.public_key().public_numbers()
    SMALL.public_key().verify(
        pss(SMALL, MESSAGE), MESSAGE, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256()
    )
    assert verify(PublicKey("ecdsa", pkix(P256.public_key())), Signature("", "ecdsa", GOOD_ECDSA), MESSAGE)


PUBLICS = [
    bytes(ED25519.verify_key),
    pkix(P256.public_key()),
    pkix(RSA.public_key()),
    pem(RSA.public_key()),
    LEAF,
    OTHER,
]


@settings(max_examples=300)
@given(
    st.sampled_from(["ed25519", "ecdsa", "ecdsa-x509", "rsa", "rsa-x509"]),
    st.sampled_from(["eddsa", "ecdsa", "rsapss", "rsapkcs1v15", "pycrypto-pkcs#1 pss"]),
    st.binary(max_size=80) | st.sampled_from(PUBLICS),
    st.binary(max_size=300),
    st.data(),
)
@pytest.mark.filterwarnings("ignore")
def test_garbage_verifies_nothing_and_raises_nothing(key_type, method, public, sig, data):
    if public and data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(public) - 1))
        public = public[:place] + data.draw(st.binary(max_size=3)) + public[place + 1 :]
    key = PublicKey(key_type, public)
    assert verify(key, Signature(key.key_id, method, sig), MESSAGE) is False
    assert isinstance(key.certificates, tuple)


@settings(max_examples=300)
@given(st.sampled_from([LEAF, OTHER]), st.data())
@pytest.mark.filterwarnings("ignore")
def test_damaged_certificates_raise_nothing(public, data):
    body = bytearray(base64.b64decode(b"".join(public.splitlines()[1:-1])))
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    damaged = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(body) + b"-----END CERTIFICATE-----\n"
    for key_type in ("ecdsa-x509", "rsa-x509"):
        key = PublicKey(key_type, damaged)
        assert len(key.certificates) <= 1
        assert verify(key, Signature("", "ecdsa", bytes(64)), MESSAGE) is False
        assert verify(key, Signature("", "rsapss", bytes(256)), MESSAGE) is False
        try:
            assert len(key.canonical_id) == 64
        except InvalidMetadata:
            continue


# -- thresholds -------------------------------------------------------------------------------------------------------


class Signed:
    """The two attributes that a threshold is met by."""

    def __init__(self, *signatures, payload=MESSAGE):
        self.signatures = signatures
        self.payload = payload


def signed_by(*keys):
    return [Signature(key.public.key_id, key.method, key.sign(MESSAGE)) for key in keys]


def role_of(threshold, *keys):
    return RoleKeys({key.key_id: key for key in keys}, threshold)


A, B = private.generate("ed25519"), private.generate("ecdsa")
BAD = Signature(B.public.key_id, "ecdsa", bytes(range(64)))


@pytest.mark.parametrize(
    ("signatures", "threshold", "valid", "ok"),
    [
        pytest.param(signed_by(A), 1, {A}, True, id="one-of-one"),
        pytest.param(signed_by(A, B), 1, {A}, True, id="two-of-one"),
        pytest.param(signed_by(A, B), 2, {A, B}, True, id="two-of-two"),
        pytest.param(signed_by(A), 2, set(), False, id="one-of-two"),
        pytest.param(signed_by(A, A), 2, set(), False, id="one-key-twice"),
        pytest.param(signed_by(B, B), 2, set(), False, id="one-key-twice-with-different-signatures"),
        pytest.param([*signed_by(A), BAD], 2, {A}, False, id="one-good-one-bad-of-two"),
        pytest.param([BAD, *signed_by(A)], 2, set(), False, id="one-bad-one-good-of-two"),
        pytest.param([Signature(A.public.key_id, "eddsa", bytes(64)), *signed_by(A)], 1, {A}, True, id="bad-then-good"),
        pytest.param([Signature(A.public.key_id, "eddsa", bytes(64))], 1, set(), False, id="bad"),
        pytest.param(
            [Signature(A.public.key_id, "eddsa", B.sign(MESSAGE))], 1, set(), False, id="signature-of-another-key"
        ),
        pytest.param([Signature(A.public.key_id, "x", A.sign(MESSAGE))], 1, set(), False, id="unknown-method"),
        pytest.param(
            [Signature(A.public.key_id.upper(), "eddsa", A.sign(MESSAGE))], 1, set(), False, id="id-in-another-case"
        ),
        pytest.param(signed_by(private.generate("ed25519")), 1, set(), False, id="stranger"),
        pytest.param([*signed_by(private.generate("ed25519")), *signed_by(A)], 1, {A}, True, id="stranger-and-one"),
    ],
)
def test_thresholds(signatures, threshold, valid, ok):
    result = meets_threshold(Signed(*signatures), role_of(threshold, A.public, B.public))
    assert result.valid_key_ids == {key.public.key_id for key in valid}
    assert result.ok is ok


def tried(signatures, role):
    """The result, and how many signatures were verified for it."""
    costs = []
    return meets_threshold(Signed(*signatures), role, costs.append), len(costs)


def bad_by(signer, count):
    return [Signature(signer.public.key_id, signer.method, bytes([number]) * 64) for number in range(1, count + 1)]


C = private.generate("ed25519")


@pytest.mark.parametrize(
    ("signatures", "threshold", "ok", "verified"),
    [
        pytest.param([*signed_by(A), *bad_by(A, 90)], 1, True, 1, id="met-at-once"),
        pytest.param([*bad_by(A, 2), *signed_by(A)], 1, True, 3, id="met-in-the-end"),
        pytest.param([*signed_by(A, B), *bad_by(C, 90)], 2, True, 2, id="met-by-two"),
        pytest.param([*signed_by(A), *bad_by(A, 40), *signed_by(B)], 2, True, 2, id="met-past-others-by-the-first"),
        pytest.param(bad_by(A, 90), 2, False, 0, id="one-key-is-not-two"),
        pytest.param(bad_by(private.generate("ed25519"), 90), 1, False, 0, id="strangers"),
        pytest.param([*bad_by(A, 1), *bad_by(B, 90)], 2, False, 1, id="out-of-reach-after-the-first"),
        pytest.param([*bad_by(A, 3), *bad_by(B, 4)], 1, False, 7, id="all-of-them"),
        pytest.param(bad_by(A, 1) * 90, 1, False, 1, id="the-same-again"),
    ],
)
def test_nothing_is_verified_that_cannot_matter(signatures, threshold, ok, verified):
    result, count = tried(signatures, role_of(threshold, A.public, B.public, C.public))
    assert (result.ok, count) == (ok, verified)


def test_what_spends_ends_the_check():
    def spend(cost):
        assert cost > 0
        raise Exhausted

    class Exhausted(Exception):
        pass

    with pytest.raises(Exhausted):
        meets_threshold(Signed(*signed_by(A)), role_of(1, A.public), spend)


def test_every_method_has_its_price():
    assert all(public._COSTS[method] is row.cost for (method, _), row in public._ALGORITHMS.items())


@pytest.mark.parametrize(
    ("method", "cheaper", "dearer"),
    [
        ("ecdsa", (64, 0), (96, 0)),
        ("rsapss", (256, 0), (1024, 0)),
        ("rsapkcs1v15", (256, 0), (1024, 0)),
        ("pycrypto-pkcs#1 pss", (256, 0), (1024, 0)),
        ("eddsa", (64, 1_000), (64, 1_000_000)),
    ],
)
def test_what_takes_longer_costs_more(method, cheaper, dearer):
    def cost(size, payload_bytes):
        return public.cost(Signature("", method, bytes(size)), payload_bytes)

    assert cost(7, 0) < cost(*cheaper) < cost(*dearer)
    assert public.cost(Signature("", "x", bytes(64)), 1_000_000) == 0


@pytest.mark.parametrize(
    ("key", "method", "sig"),
    [
        pytest.param(PublicKey("ecdsa", pkix(P256.public_key())), "ecdsa", GOOD_ECDSA, id="ecdsa"),
        pytest.param(PublicKey("rsa", pkix(RSA.public_key())), "rsapss", pss(RSA, MESSAGE), id="rsapss"),
    ],
)
def test_many_signatures_cost_one_digest_and_one_reading_of_their_key(monkeypatch, key, method, sig):
    digested, read = [], []

    def sha256(data):
        digested.append(data)
        return original_sha256(data)

    def load(data):
        read.append(data)
        return original_load(data)

    original_sha256, original_load = hashlib.sha256, serialization.load_der_public_key
    public._remembered.cache_clear()
    role = role_of(1, key)
    monkeypatch.setattr(hashlib, "sha256", sha256)
    monkeypatch.setattr(serialization, "load_der_public_key", load)
    bad = [Signature(key.key_id, method, bytes([number]) * len(sig)) for number in range(1, 100)]
    assert meets_threshold(Signed(*bad, Signature(key.key_id, method, sig)), role).ok
    assert (digested.count(MESSAGE), len(read)) == (1, 1)
    assert meets_threshold(Signed(Signature(key.key_id, method, sig)), role).ok
    assert not meets_threshold(Signed(*bad), role).ok
    assert len(read) == 1  # it is remembered, and judges as before


@pytest.mark.parametrize(("key_bytes", "remembered"), [(4096, 1), (4097, 0)])
def test_large_keys_are_not_remembered(key_bytes, remembered):
    public._remembered.cache_clear()
    assert not verify(PublicKey("rsa", bytes(key_bytes)), Signature("", "rsapss", bytes(256)), MESSAGE)
    assert public._remembered.cache_info().currsize == remembered


def test_no_signatures_at_all():
    with pytest.raises(InvalidMetadata, match="no signatures"):
        meets_threshold(Signed(), role_of(1, A.public))


def test_a_key_under_a_false_id_matters_only_when_it_signs():
    role = RoleKeys({"false": A.public, B.public.key_id: B.public}, 1)
    assert meets_threshold(Signed(*signed_by(B)), role).ok
    with pytest.raises(InvalidMetadata, match="'false' does not match"):
        meets_threshold(Signed(*signed_by(B), Signature("false", "eddsa", A.sign(MESSAGE))), role)


def aliases(secret):
    """One key in every form that metadata may hold it in, each with an id of its own, with its method."""
    if isinstance(secret, rsa.RSAPrivateKey):
        yield PublicKey("rsa", pkix(secret.public_key())), "rsapss"
        yield PublicKey("rsa", pem(secret.public_key())), "pycrypto-pkcs#1 pss"
        yield PublicKey("rsa", b"\n" + pem(secret.public_key())), "pycrypto-pkcs#1 pss"
        yield PublicKey("rsa-x509", certificate(secret, "a")), "rsapss"
    else:
        yield PublicKey("ecdsa", pkix(secret.public_key())), "ecdsa"
        yield PublicKey("ecdsa-x509", certificate(secret, "a")), "ecdsa"
        yield PublicKey("ecdsa-x509", certificate(secret, "b") + OTHER), "ecdsa"


@pytest.mark.parametrize(("secret", "count"), [(P256, 3), (RSA, 4)], ids=["ecdsa", "rsa"])
def test_one_key_in_many_guises_counts_once(secret, count):
    sig = pss(secret, MESSAGE) if secret is RSA else GOOD_ECDSA
    guises = list(aliases(secret))
    keys = [key for key, _ in guises]
    envelope = Signed(*[Signature(key.key_id, method, sig) for key, method in guises])
    for key, signature in zip(keys, envelope.signatures, strict=True):
        assert meets_threshold(Signed(signature), role_of(1, key)).ok
    twice = meets_threshold(envelope, role_of(2, *keys))
    assert (len(twice.valid_key_ids), twice.signers, twice.untried) == (count, 1, 0)
    assert not twice.ok
    with_another = Signed(*envelope.signatures, *signed_by(A))
    assert meets_threshold(with_another, role_of(2, A.public, *keys)).ok
