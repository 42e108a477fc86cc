"""Public keys: their ids, what they verify, and when signatures suffice.

Rules of this module: pure. :data:`_ALGORITHMS` is the one table of what can be verified; a new algorithm is a row in
it. Verification returns False for any malformed key or signature, and never fails. Key ids, key types and methods are
those of docs/protocol.md, section 2.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import nacl.signing
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature

from notary import certs
from notary.errors import InvalidCertificate, InvalidMetadata
from notary.tuf import canonical
from notary.tuf.canonical import Json, Members, quote

MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 8192
RSA_EXPONENTS: Final = range(3, 2**31)
"""The accepted public exponents of RSA keys. The time to verify grows with the exponent; 65537 is usual."""
CURVES: Final = frozenset({"secp224r1", "secp256r1", "secp384r1", "secp521r1"})
"""The elliptic curves that Go clients know."""

_REMEMBERED_KEYS: Final = 1024
"""How many loaded keys are remembered, of some 3 KB each."""
_REMEMBERED_KEY_BYTES: Final = 4096
"""Larger keys are not remembered."""

_KEY = frozenset({"keytype", "keyval"})
_KEYVAL = frozenset({"public", "private"})
_BARE_TYPES = MappingProxyType({"ecdsa-x509": "ecdsa", "rsa-x509": "rsa"})


@dataclass(frozen=True)
class PublicKey:
    """A public key as metadata holds it.

    ``key_type`` says how to read ``public``: ``ecdsa`` and ``rsa`` are PKIX DER, ``ed25519`` 32 raw bytes,
    ``ecdsa-x509`` and ``rsa-x509`` a PEM certificate chain, leaf first. Any other type, and any other bytes, make a key
    that verifies nothing.
    """

    key_type: str
    public: bytes = field(repr=False)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle without the cached values: certificates cannot be pickled."""
        return PublicKey, (self.key_type, self.public)

    @classmethod
    def parse(cls, value: Json) -> PublicKey:
        """Read ``{"keytype", "keyval": {"private", "public"}}``. Raises InvalidMetadata.

        The value of ``private`` is dropped, but must be null or base64, since Go clients cannot read other keys.
        """
        key = Members(value, _KEY, "key")
        halves = Members(key.mapping("keyval"), _KEYVAL, "key")
        halves.binary("private")
        return cls(key.text("keytype"), halves.binary("public"))

    def to_json(self) -> dict[str, Any]:
        """The key as metadata holds it."""
        public = base64.b64encode(self.public).decode()
        return {"keytype": self.key_type, "keyval": {"private": None, "public": public}}

    @cached_property
    def key_id(self) -> str:
        """The id by which metadata refers to this key: lower-case hex of a SHA-256."""
        return hashlib.sha256(canonical.dumps(self.to_json())).hexdigest()

    @cached_property
    def canonical_id(self) -> str:
        """The id by which key stores know the key: for certificates, that of the leaf's bare public key.

        Raises InvalidMetadata if the key type needs a certificate and the key holds none.
        """
        bare = _BARE_TYPES.get(self.key_type)
        if bare is None:
            return self.key_id
        try:
            return PublicKey(bare, _pkix(_certificate(self.public))).key_id
        except Exception:  # noqa: BLE001 - parsers of hostile bytes raise what they like
            raise InvalidMetadata(f"key {self.key_id} holds no certificate that can be read") from None

    def without_certificate(self) -> PublicKey:
        """Return the bare public key, even from a damaged certificate. Raises InvalidMetadata."""
        bare = _BARE_TYPES.get(self.key_type)
        if bare is None:
            return self
        try:
            return PublicKey(bare, _pkix(certs.key_in_pem(self.public)))
        except Exception:  # noqa: BLE001 - parsers of hostile bytes raise what they like
            raise InvalidMetadata(f"key {self.key_id} holds no certificate with a key that can be read") from None

    @cached_property
    def certificates(self) -> tuple[certs.Certificate, ...]:
        """The certificate chain, or () if ``public`` is anything else.

        Go clients compute key ids over their own encoding of the chain, so PEM that is spelled in another way (text
        between the blocks, other line lengths) could never be verified by them, and counts as no chain at all.
        """
        try:
            chain = certs.all_in_pem(self.public)
        except InvalidCertificate:
            return ()
        return chain if b"".join(certificate.pem for certificate in chain) == self.public else ()


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature: ``method`` is lower-case, ``sig`` the raw bytes."""

    key_id: str
    method: str
    sig: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class RoleKeys:
    """The keys that may sign a role, by id; ``threshold`` of them must. Raises InvalidMetadata if that is below 1.

    The ids are those that metadata claims; :func:`meets_threshold` checks them against the keys.
    """

    keys: Mapping[str, PublicKey]
    threshold: int

    def __post_init__(self) -> None:
        if self.threshold < 1:
            raise InvalidMetadata(f"invalid threshold {self.threshold}: it must be 1 or more")


class Signed(Protocol):
    """A signed file: the part of :class:`notary.tuf.model.Envelope` that this module needs."""

    @property
    def signatures(self) -> Sequence[Signature]:
        """The signatures."""
        ...

    @property
    def payload(self) -> bytes:
        """The bytes that the signatures cover."""
        ...


@dataclass(frozen=True, slots=True)
class Result:
    """The result of checking signatures against a threshold.

    ``valid_key_ids`` are the ids whose signatures were verified, ``signers`` is the number of different keys among
    them, and ``ok`` says whether that number meets the threshold. Signatures that cannot change ``ok`` are not
    verified: ``untried`` is the number of other ids that have such signatures.
    """

    valid_key_ids: frozenset[str]
    signers: int
    untried: int
    ok: bool


def verify(key: PublicKey, signature: Signature, payload: bytes) -> bool:
    """Whether ``signature`` is by ``key`` over ``payload``, with a method that fits the key. Key ids are ignored."""
    return _identity(key, signature, _Message(payload), _recall) is not None


def meets_threshold(envelope: Signed, role: RoleKeys, spend: Callable[[int], None] = lambda _cost: None) -> Result:
    """Check the signatures of ``envelope`` against the keys of ``role``, until they suffice or can no longer suffice.

    Signatures by other keys do not count and cost nothing. A public key counts once, even if it appears under several
    ids or in several certificates. ``spend`` is called with the :func:`cost` of each signature before the signature is
    verified, and may raise to end the check. Raises InvalidMetadata if there are no signatures at all, or if a
    signature names a key whose id does not match the key's content.

    Work that many signatures share is done once: hashing the payload (except for Ed25519, which cannot share a digest)
    and loading a key. :data:`notary.tuf.model.MAX_SIGNATURES` limits the rest.
    """
    if not envelope.signatures:
        raise InvalidMetadata("no signatures")
    untried = [one for one in dict.fromkeys(envelope.signatures) if one.key_id in role.keys]
    left = Counter(signature.key_id for signature in untried)
    for key_id in left:
        if role.keys[key_id].key_id != key_id:
            raise InvalidMetadata(f"key id {quote(key_id)} does not match the content of its key")
    message, load = _Message(envelope.payload), cache(_recall)
    valid: set[str] = set()
    signers: set[bytes] = set()  # the public keys behind ``valid``
    for signature in untried:
        if len(signers) >= role.threshold or len(signers) + len(left) < role.threshold:
            break
        if signature.key_id in valid:
            continue
        spend(cost(signature, len(message.data)))
        identity = _identity(role.keys[signature.key_id], signature, message, load)
        left[signature.key_id] -= 1
        if identity is not None:
            valid.add(signature.key_id)
            signers.add(identity)
        if identity is not None or not left[signature.key_id]:
            del left[signature.key_id]
    return Result(frozenset(valid), len(signers), len(left), len(signers) >= role.threshold)


def cost(signature: Signature, payload_bytes: int) -> int:
    """Return the most microseconds that verifying ``signature`` over a payload of this size takes.

    The method and the length of the signature suffice: a signature of a wrong length is refused without arithmetic.
    """
    priced = _COSTS.get(signature.method)
    return 0 if priced is None else _LOADING_MICROSECONDS + priced(len(signature.sig), payload_bytes)


# -- algorithms -------------------------------------------------------------------------------------------------------
#
# A loader turns the bytes of a key into a key of the libraries, or raises. A check raises unless the signature is good.
# A cost takes the lengths of signature and payload in bytes, and returns microseconds.

_Key: TypeAlias = Any
_Loader: TypeAlias = Callable[[bytes], _Key]
_Check: TypeAlias = Callable[[_Key, bytes, "_Message"], object]
_Cost: TypeAlias = Callable[[int, int], int]


class _Message:
    """The bytes that signatures cover. Their SHA-256 is computed once for all signatures."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    @cached_property
    def sha256(self) -> bytes:
        return hashlib.sha256(self.data).digest()


def _load(loader: _Loader, public: bytes) -> _Key | None:
    try:
        return loader(public)
    except Exception:  # noqa: BLE001 - fails closed: parsers of hostile bytes raise what they like
        return None


_remembered = lru_cache(_REMEMBERED_KEYS)(_load)


def _recall(loader: _Loader, public: bytes) -> _Key | None:
    """Like :func:`_load`, but small keys are remembered: publishers use the same keys again."""
    return (_remembered if len(public) <= _REMEMBERED_KEY_BYTES else _load)(loader, public)


def _identity(
    key: PublicKey, signature: Signature, message: _Message, load: Callable[[_Loader, bytes], _Key | None]
) -> bytes | None:
    """Return bytes that identify the public key that was verified, or None if the signature is not valid."""
    row = _ALGORITHMS.get((signature.method, key.key_type))
    if row is None:
        return None
    loader, check, _, exact = row
    loaded = load(loader, key.public)
    if loaded is None:
        return None
    try:
        check(loaded, signature.sig, message)
        return key.public if exact else _pkix(loaded)
    except Exception:  # noqa: BLE001 - fails closed: parsers of hostile bytes raise what they like
        return None


def _pkix(key: _Key) -> bytes:
    encoded: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return encoded


def _der(public: bytes) -> _Key:
    key = serialization.load_der_public_key(public)
    if _pkix(key) != public:
        # Compressed points, missing parameters: OpenSSL reads more spellings than Go clients do.
        raise ValueError
    return key


def _pem(public: bytes) -> _Key:
    return serialization.load_pem_public_key(public)


def _certificate(public: bytes) -> _Key:
    return certs.first_in_pem(public).public_key


def _ecdsa(key: _Key, sig: bytes, message: _Message) -> None:
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in CURVES:
        raise ValueError  # not a key on a known curve
    width = (key.curve.key_size + 7) // 8
    if len(sig) != 2 * width:
        raise ValueError  # not r and s in fixed width
    r, s = int.from_bytes(sig[:width]), int.from_bytes(sig[width:])
    key.verify(encode_dss_signature(r, s), message.sha256, ec.ECDSA(Prehashed(hashes.SHA256())))


def rsa_is_costly(key: rsa.RSAPublicKey) -> bool:
    """Whether the key is so large that verifying with it takes too long."""
    return key.key_size > MAX_RSA_BITS or key.public_numbers().e not in RSA_EXPONENTS


def rsa_fault(key: rsa.RSAPublicKey) -> str | None:
    """Return the reason why an RSA key is not accepted, if there is one. Larger keys are too slow to verify with."""
    if key.key_size < MIN_RSA_BITS:
        return f"RSA key has {key.key_size} bits; at least {MIN_RSA_BITS} needed"
    if key.key_size > MAX_RSA_BITS:
        return f"RSA key has {key.key_size} bits; at most {MAX_RSA_BITS} allowed"
    if key.public_numbers().e not in RSA_EXPONENTS:
        return f"RSA key has a public exponent that is not {RSA_EXPONENTS.start} to 2^31 - 1; 65537 is usual"
    return None


def _rsa(key: _Key) -> rsa.RSAPublicKey:
    if not isinstance(key, rsa.RSAPublicKey) or rsa_fault(key) is not None:
        raise ValueError
    return key


def _pss(key: _Key, sig: bytes, message: _Message) -> None:
    sha256 = hashes.SHA256()
    _rsa(key).verify(sig, message.sha256, padding.PSS(padding.MGF1(sha256), sha256.digest_size), Prehashed(sha256))


def _pkcs1v15(key: _Key, sig: bytes, message: _Message) -> None:
    _rsa(key).verify(sig, message.sha256, padding.PKCS1v15(), Prehashed(hashes.SHA256()))


def _eddsa(key: _Key, sig: bytes, message: _Message) -> None:
    key.verify(message.data, sig)


# The microseconds that verifying takes on the machine of docs/benchmarks.md, by the length of the signature in bytes
# (which determines the curve or the modulus) and of the payload. An RSA exponent may have up to 31 bits.
_LOADING_MICROSECONDS: Final = 30
_EDDSA_BYTES: Final = 64
_ECDSA_MICROSECONDS: Final[Mapping[int, int]] = MappingProxyType({56: 160, 64: 100, 96: 750, 132: 950})
_PAYLOAD_BYTES_PER_MICROSECOND: Final = 300  # of SHA-512, which Ed25519 does for each signature anew


def _cost_of_ecdsa(signature_bytes: int, _payload_bytes: int) -> int:
    return _ECDSA_MICROSECONDS.get(signature_bytes, 0)


def _cost_of_rsa(signature_bytes: int, _payload_bytes: int) -> int:
    return 0 if signature_bytes * 8 > MAX_RSA_BITS else 600 * signature_bytes**2 // 1024**2


def _cost_of_eddsa(signature_bytes: int, payload_bytes: int) -> int:
    return 70 + payload_bytes // _PAYLOAD_BYTES_PER_MICROSECOND if signature_bytes == _EDDSA_BYTES else 0


class _Algorithm(NamedTuple):
    """A method with a type of keys: how to load a key, check a signature, and estimate the cost of the check.

    ``exact`` says that the loader accepts only one encoding of a key, so that its bytes identify the key.
    """

    load: _Loader
    check: _Check
    cost: _Cost
    exact: bool = False


_ALGORITHMS: Final[Mapping[tuple[str, str], _Algorithm]] = MappingProxyType(
    {
        # (method, key type): the algorithm
        ("ecdsa", "ecdsa"): _Algorithm(_der, _ecdsa, _cost_of_ecdsa, exact=True),
        ("ecdsa", "ecdsa-x509"): _Algorithm(_certificate, _ecdsa, _cost_of_ecdsa),
        ("rsapss", "rsa"): _Algorithm(_der, _pss, _cost_of_rsa, exact=True),
        ("rsapss", "rsa-x509"): _Algorithm(_certificate, _pss, _cost_of_rsa),
        ("rsapkcs1v15", "rsa"): _Algorithm(_der, _pkcs1v15, _cost_of_rsa, exact=True),
        ("rsapkcs1v15", "rsa-x509"): _Algorithm(_certificate, _pkcs1v15, _cost_of_rsa),
        ("pycrypto-pkcs#1 pss", "rsa"): _Algorithm(_pem, _pss, _cost_of_rsa),
        ("eddsa", "ed25519"): _Algorithm(nacl.signing.VerifyKey, _eddsa, _cost_of_eddsa, exact=True),
    }
)
_COSTS: Final[Mapping[str, _Cost]] = MappingProxyType({method: row.cost for (method, _), row in _ALGORITHMS.items()})
"""The cost by method alone: all types of keys that share a method cost the same."""
