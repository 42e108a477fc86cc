"""Reading X.509 certificates as Go reads them.

Rules of this module: pure. All code in ``notary`` reads certificates here, in files, in metadata and from peers; only
OpenSSL reads them too, where it makes TLS or follows a chain. The parser of ``cryptography`` is not used: it refuses
certificates that Notary's own tools made for years and that Go and OpenSSL read (docs/adr/0028-certificates.md).

This module reads the names, times, public key, signature algorithm, basic constraints and alternative names of a
certificate; other parts may hold anything. Reading is linear in the size of a certificate, and is bounded by
:data:`MAX_BYTES` and :data:`MAX_ELEMENTS`. Every failure is an InvalidCertificate.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone
from functools import cached_property
from ipaddress import ip_address
from types import MappingProxyType
from typing import Final, TypeAlias

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from notary.errors import InvalidCertificate

MAX_BYTES: Final = 1 << 16
"""The size of the largest certificate that is read. Real ones have a few thousand bytes."""
MAX_ELEMENTS: Final = 1000
"""The most elements of DER that are read in one certificate. Real ones have a hundred."""
MAX_NAMES: Final = 1000
"""The most alternative names of one certificate."""

COMMON_NAME: Final = "2.5.4.3"

Key: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


class Certificate:
    """One certificate in DER. Raises InvalidCertificate if its structure or its times cannot be read.

    ``serial_number`` may be negative. ``signature_algorithm`` is an object identifier. ``not_before`` and ``not_after``
    are aware, UTC. ``is_authority`` says whether the certificate may issue others.
    """

    def __init__(self, der: bytes) -> None:
        if len(der) > MAX_BYTES:
            raise InvalidCertificate(f"the certificate has more than {MAX_BYTES} bytes")
        self.der = der
        whole = _Elements(der, 0, len(der), _Budget(MAX_ELEMENTS))
        outer = whole.enter(_SEQUENCE)
        whole.end()
        fields = outer.enter(_SEQUENCE)
        version = _version(fields)
        self.serial_number = fields.integer()
        algorithm = fields.take(_SEQUENCE)
        if outer.take(_SEQUENCE) != algorithm:
            raise InvalidCertificate("the certificate names two algorithms for its signature")
        self.signature_algorithm, self._signature_parameters = _algorithm(algorithm)
        self.issuer = Name(fields.enter(_SEQUENCE))
        validity = fields.enter(_SEQUENCE)
        self.not_before, self.not_after = _time(*validity.any()), _time(*validity.any())
        self.subject = Name(fields.enter(_SEQUENCE))
        self._key = fields.take(_SEQUENCE)
        extensions = _extensions(fields) if version == _WITH_EXTENSIONS else {}
        self.is_authority = _is_authority(extensions.get(_BASIC_CONSTRAINTS))
        self._alternatives = extensions.get(_ALTERNATIVE_NAMES)
        outer.bits()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Certificate) and self.der == other.der

    def __hash__(self) -> int:
        return hash(self.der)

    @cached_property
    def public_key(self) -> Key | None:
        """The public key; None if its kind is not RSA, ECDSA or Ed25519. Raises InvalidCertificate."""
        return _public_key(self._key)

    @cached_property
    def signature_hash(self) -> str:
        """The hash of the signature if it is weak (``md2``, ``md5`` or ``sha1``), else an empty string."""
        if self.signature_algorithm == _PSS:
            return _pss_hash(self._signature_parameters)
        return _WEAK_SIGNATURES.get(self.signature_algorithm, "")

    @cached_property
    def common_name(self) -> str:
        """The last common name of the subject, which is the one that counts; may be empty. Raises InvalidCertificate.

        Every part of the subject and of the issuer must be of a kind that Go reads.
        """
        self.issuer.check()
        names = self.subject.texts(COMMON_NAME)
        return names[-1] if names else ""

    @cached_property
    def alternatives(self) -> tuple[tuple[int, bytes], ...]:
        """The alternative names: a tag, such as :data:`DNS`, and the content. Raises InvalidCertificate."""
        if self._alternatives is None:
            return ()
        names = _Elements(self._alternatives, 0, len(self._alternatives), _Budget(MAX_NAMES)).enter(_SEQUENCE)
        found = []
        while names.left():
            found.append(names.any())
        return tuple(found)

    @cached_property
    def dns_names(self) -> tuple[str, ...]:
        """The host names in the alternative names, unchanged. Raises InvalidCertificate."""
        try:
            return tuple(content.decode("ascii") for kind, content in self.alternatives if kind == DNS)
        except UnicodeDecodeError:
            raise InvalidCertificate("the certificate has a DNS name that is not ASCII") from None

    def alternatives_text(self) -> str:
        """Return the alternative names for messages; they may be cut. Raises InvalidCertificate."""
        return ", ".join(_alternative_text(kind, content) for kind, content in self.alternatives[:_SHOWN])

    @cached_property
    def pem(self) -> bytes:
        """The certificate in PEM, as Go and OpenSSL write it."""
        text = base64.b64encode(self.der)
        lines = [text[at : at + _PEM_LINE] for at in range(0, len(text), _PEM_LINE)]
        return b"\n".join([b"-----BEGIN CERTIFICATE-----", *lines, b"-----END CERTIFICATE-----", b""])


class Name:
    """A distinguished name. ``str()`` is for messages: it never fails, cuts long values, has no control characters."""

    def __init__(self, elements: _Elements) -> None:
        self._parts: list[list[tuple[bytes, int, bytes]]] = []
        while elements.left():
            part, attributes = list[tuple[bytes, int, bytes]](), elements.enter(_SET)
            while attributes.left():
                attribute = attributes.enter(_SEQUENCE)
                part.append((attribute.take(_OBJECT), *attribute.any()))
            self._parts.append(part)

    def texts(self, kind: str) -> tuple[str, ...]:
        """Return all attributes of one kind, an object identifier. Raises InvalidCertificate as :meth:`check` does.

        Bytes of a TeletexString that are not UTF-8 are kept by ``surrogateescape``: in Go, they equal nothing else.
        """
        return tuple(text for identifier, text in self._texts if _dotted(identifier) == kind)

    def check(self) -> None:
        """Require that Go reads this name, all of its attributes. Raises InvalidCertificate."""
        _ = self._texts

    @cached_property
    def _texts(self) -> list[tuple[bytes, str]]:
        return [(identifier, _text(tag, content)) for part in self._parts for identifier, tag, content in part]

    def __str__(self) -> str:
        """The name in the form of RFC 4514: the last part first."""
        shown = ["+".join(_attribute_text(*attribute) for attribute in part) for part in reversed(self._parts)]
        return ",".join(shown)


# -- PEM --------------------------------------------------------------------------------------------------------------

_PEM_LINE = 64
_BLOCK = re.compile(rb"-----BEGIN (?:X509 )?CERTIFICATE-----([^-]*+)-----END (?:X509 )?CERTIFICATE-----")
_BEGIN = re.compile(rb"-----BEGIN (?:X509 )?CERTIFICATE-----")


def ders_in_pem(data: bytes) -> tuple[bytes, ...]:
    """Return the DER of every certificate in PEM, in order. Raises InvalidCertificate, also if there is none."""
    blocks = _BLOCK.findall(data)
    if not blocks:
        raise InvalidCertificate("there is no certificate")
    if len(_BEGIN.findall(data)) != len(blocks):
        raise InvalidCertificate("a certificate has no end")
    return tuple(map(_decoded, blocks))


def _decoded(block: bytes) -> bytes:
    try:
        return base64.b64decode(b"".join(block.split()), validate=True)
    except binascii.Error:
        raise InvalidCertificate("a certificate is not base64") from None


def first_in_pem(data: bytes) -> Certificate:
    """Read the first certificate in PEM; text after it is ignored. Raises InvalidCertificate, also if there is none."""
    found = _BLOCK.search(data)
    if found is None:
        raise InvalidCertificate("there is no certificate")
    return Certificate(_decoded(found[1]))


def all_in_pem(data: bytes) -> tuple[Certificate, ...]:
    """Read every certificate in PEM, in order. Raises InvalidCertificate, also if there is none."""
    return tuple(map(Certificate, ders_in_pem(data)))


# -- DER --------------------------------------------------------------------------------------------------------------

_BOOLEAN, _INTEGER, _BIT_STRING, _OCTETS, _OBJECT = 0x01, 0x02, 0x03, 0x04, 0x06
_SEQUENCE, _SET = 0x30, 0x31
_TAG_NUMBER = 0x1F
_LONG = 0x80  # the length is longer than a byte; the other bits say how many follow
_MAX_LENGTH_BYTES = 3


class _Budget:
    """How many more elements may be read."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left


class _Elements:
    """Elements of DER that follow each other in ``data`` from ``at`` to ``stop``; each method reads the next one."""

    __slots__ = ("_at", "_budget", "_data", "_stop")

    def __init__(self, data: bytes, at: int, stop: int, budget: _Budget) -> None:
        self._data, self._at, self._stop, self._budget = data, at, stop, budget

    def left(self) -> bool:
        """True if another element follows."""
        return self._at < self._stop

    def next_is(self, tag: int) -> bool:
        """True if an element with this tag follows."""
        return self._at < self._stop and self._data[self._at] == tag

    def end(self) -> None:
        """Require that nothing follows."""
        if self._at != self._stop:
            raise InvalidCertificate("the certificate is followed by other bytes")

    def any(self) -> tuple[int, bytes]:
        """Return the tag and the content of the next element, of any kind."""
        tag, start = self._head()
        return tag, self._data[start : self._at]

    def take(self, wanted: int) -> bytes:
        """Return the content of the next element, which must have this tag."""
        tag, start = self._head()
        if tag != wanted:
            raise InvalidCertificate(f"the certificate has {tag:#04x} at byte {start} where {wanted:#04x} must be")
        return self._data[start : self._at]

    def enter(self, wanted: int) -> _Elements:
        """Return the elements inside of the next one, which must have this tag."""
        tag, start = self._head()
        if tag != wanted:
            raise InvalidCertificate(f"the certificate has {tag:#04x} at byte {start} where {wanted:#04x} must be")
        return _Elements(self._data, start, self._at, self._budget)

    def integer(self) -> int:
        """Return the next element, an integer in the fewest bytes."""
        content = self.take(_INTEGER)
        if not content or (len(content) > 1 and content[0] in {0, 0xFF} and (content[0] ^ content[1]) < _LONG):
            raise InvalidCertificate("the certificate has an integer that is not in the fewest bytes")
        return int.from_bytes(content, "big", signed=True)

    def bits(self) -> bytes:
        """Return the next element, a string of bits that fills its bytes."""
        content = self.take(_BIT_STRING)
        if content[:1] != b"\0":
            raise InvalidCertificate("the certificate has a key or a signature that does not fill its bytes")
        return content[1:]

    def _head(self) -> tuple[int, int]:
        """Read over the next element; return its tag and where its content begins."""
        data, at, stop, budget = self._data, self._at, self._stop, self._budget
        if at + 2 > stop:
            raise InvalidCertificate("the certificate is cut")
        if not budget.left:
            raise InvalidCertificate("the certificate has too many elements")
        budget.left -= 1
        tag, length = data[at], data[at + 1]
        at += 2
        if length >= _LONG:
            count = length - _LONG
            length = int.from_bytes(data[at : at + count], "big") if count <= _MAX_LENGTH_BYTES else -1
            if length < _LONG or length >> 8 * (count - 1) == 0:
                raise InvalidCertificate("the certificate has a length that is not in the fewest bytes")
            at += count
        if at + length > stop or tag & _TAG_NUMBER == _TAG_NUMBER:
            raise InvalidCertificate("the certificate is cut")
        self._at = at + length
        return tag, at


def _dotted(identifier: bytes) -> str:
    """Return an object identifier in dots, or something that is none if it is damaged."""
    numbers, value = list[int](), 0
    for byte in identifier[:_MAX_IDENTIFIER]:
        value = value << 7 | byte & 0x7F
        if byte < _LONG:
            numbers.append(value)
            value = 0
    if not numbers:
        return "?"
    first = min(numbers[0] // 40, 2)
    return ".".join(map(str, [first, numbers[0] - 40 * first, *numbers[1:]]))


_MAX_IDENTIFIER: Final = 64  # bytes of an object identifier that are looked at


# -- the parts of a certificate ---------------------------------------------------------------------------------------

_VERSION, _ISSUER_ID, _SUBJECT_ID, _EXTENSIONS = 0xA0, 0x81, 0x82, 0xA3
_WITH_EXTENSIONS: Final = 2  # the version, which counts from 0
_BASIC_CONSTRAINTS: Final = bytes.fromhex("551d13")
_ALTERNATIVE_NAMES: Final = bytes.fromhex("551d11")


def _version(fields: _Elements) -> int:
    if not fields.next_is(_VERSION):
        return 0
    version = fields.enter(_VERSION).integer()
    if not 0 <= version <= _WITH_EXTENSIONS:
        raise InvalidCertificate("the certificate is of an unknown version")
    return version


def _algorithm(content: bytes) -> tuple[str, bytes]:
    """Return the identifier of an algorithm, and its parameters as they are written."""
    fields = _Elements(content, 0, len(content), _Budget(2))
    identifier = fields.take(_OBJECT)
    return _dotted(identifier), content[2 + len(identifier) :] if len(identifier) < _LONG else b""


def _extensions(fields: _Elements) -> Mapping[bytes, bytes]:
    """Return the extensions by their identifiers, both as they are written."""
    for tag in (_ISSUER_ID, _SUBJECT_ID):
        if fields.next_is(tag):
            fields.any()
    if not fields.next_is(_EXTENSIONS):
        return {}
    found: dict[bytes, bytes] = {}
    extensions = fields.enter(_EXTENSIONS).enter(_SEQUENCE)
    while extensions.left():
        extension = extensions.enter(_SEQUENCE)
        identifier = extension.take(_OBJECT)
        if identifier in found:
            raise InvalidCertificate("the certificate has an extension twice")
        if extension.next_is(_BOOLEAN):
            _boolean(extension)
        found[identifier] = extension.take(_OCTETS)
    return found


def _boolean(elements: _Elements) -> bool:
    content = elements.take(_BOOLEAN)
    if content not in {b"\x00", b"\xff"}:
        raise InvalidCertificate("the certificate has a truth value that is neither")
    return content == b"\xff"


def _is_authority(constraints: bytes | None) -> bool:
    """Return the CA flag of basicConstraints; a FALSE that is written out is accepted."""
    if constraints is None:
        return False
    fields = _Elements(constraints, 0, len(constraints), _Budget(3)).enter(_SEQUENCE)
    authority = fields.next_is(_BOOLEAN) and _boolean(fields)
    if fields.next_is(_INTEGER):
        fields.integer()  # the path length, which is not used
    return authority


_UTC = re.compile(rb"([0-9]{2})([0-9]{2})([0-9]{2})([0-9]{2})([0-9]{2})([0-9]{2})?(Z|[+-][0-9]{4})")
_GENERALIZED = re.compile(rb"([0-9]{4})([0-9]{2})([0-9]{2})([0-9]{2})([0-9]{2})([0-9]{2})(Z|[+-][0-9]{4})")
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_FIRST_YEAR: Final = 50  # of UTCTime: 50 is 1950, 49 is 2049


def _time(tag: int, content: bytes) -> datetime:
    """Return a time as an aware datetime in UTC. UTCTime may lack its seconds, and both may have an offset."""
    found = None
    if tag == _UTC_TIME:
        found = _UTC.fullmatch(content)
    elif tag == _GENERALIZED_TIME:
        found = _GENERALIZED.fullmatch(content)
    if found is None or found[7][1:] == b"0000":
        raise InvalidCertificate("the certificate has a time that is none")
    year, month, day, hour, minute, second = (int(number or 0) for number in found.groups()[:6])
    if tag == _UTC_TIME:
        year += 1900 if year >= _FIRST_YEAR else 2000
    zone = found[7]
    try:
        offset = timedelta() if zone == b"Z" else timedelta(hours=int(zone[1:3]), minutes=int(zone[3:]))
        place = timezone(-offset if zone[:1] == b"-" else offset)
        return datetime(year, month, day, hour, minute, second, tzinfo=place).astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidCertificate("the certificate has a time that is none") from None


# -- names ------------------------------------------------------------------------------------------------------------

_UTF8, _NUMERIC, _PRINTABLE, _TELETEX, _IA5, _BMP = 0x0C, 0x12, 0x13, 0x14, 0x16, 0x1E
# Go adds the asterisk and the ampersand, which names of collections, hosts and companies have.
_PRINTABLES = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 '()+,-./:=?*&")
_NUMERICS = frozenset(b"0123456789 ")
_CHARACTERS: Final = MappingProxyType({_PRINTABLE: _PRINTABLES, _NUMERIC: _NUMERICS, _IA5: frozenset(range(0x80))})
_SHORT_NAMES: Final = MappingProxyType(
    {
        COMMON_NAME: "CN",
        "2.5.4.6": "C",
        "2.5.4.7": "L",
        "2.5.4.8": "ST",
        "2.5.4.9": "STREET",
        "2.5.4.10": "O",
        "2.5.4.11": "OU",
        "0.9.2342.19200300.100.1.1": "UID",
        "0.9.2342.19200300.100.1.25": "DC",
    }
)
DNS: Final = 0x82
"""The tag of an alternative name that is that of a host (RFC 5280, section 4.2.1.6)."""
ADDRESS: Final = 0x87
"""The tag of an alternative name that is an IP address: 4 or 16 bytes."""
_TEXTS: Final = frozenset({0x81, DNS, 0x86})  # a mail address, a host, a URI
_SHOWN: Final = 20  # alternative names of a message
_SHOWN_CHARACTERS: Final = 500  # of one attribute of a name in a message


def _text(tag: int, content: bytes) -> str:
    """Return a string of ASN.1 as Go reads it."""
    characters = _CHARACTERS.get(tag)
    if characters is not None and characters.issuperset(content):
        return content.decode("ascii")
    if tag == _TELETEX:
        return content.decode("utf-8", "surrogateescape")
    if tag == _BMP and len(content) % 2 == 0:
        return content.removesuffix(b"\0\0").decode("utf-16-be", "replace")
    try:
        if tag == _UTF8:
            return content.decode("utf-8")
    except UnicodeDecodeError:
        pass
    raise InvalidCertificate("the certificate has a name that cannot be read")


def _attribute_text(identifier: bytes, tag: int, content: bytes) -> str:
    kind = _dotted(identifier)
    try:
        text = _text(tag, content)
    except InvalidCertificate:
        text = content.decode("utf-8", "surrogateescape")
    return f"{_SHORT_NAMES.get(kind, kind)}={_escaped(text[:_SHOWN_CHARACTERS])}"


def _escaped(text: str) -> str:
    """Return a value of a name with its separators and all that is not printable escaped (RFC 4514, 2.4)."""
    # What is not UTF-8 is most often Latin-1.
    read = "".join(chr(ord(each) - 0xDC00) if "\udc80" <= each <= "\udcff" else each for each in text)
    shown = "".join(
        "\\" + each
        if each in '"+,;<>\\'
        else each
        if each.isprintable()
        else "".join(f"\\{byte:02x}" for byte in each.encode("utf-8", "replace"))
        for each in read
    )
    if shown.startswith((" ", "#")):
        shown = "\\" + shown
    return shown[:-1] + "\\ " if shown.endswith(" ") and len(shown) > 1 else shown


def _alternative_text(kind: int, content: bytes) -> str:
    try:
        if kind == ADDRESS:
            return str(ip_address(content))
        if kind in _TEXTS:
            return _escaped(content[:_SHOWN_CHARACTERS].decode("utf-8", "surrogateescape"))
    except ValueError:
        pass
    return "a name of another kind"


# -- keys and signatures ----------------------------------------------------------------------------------------------


def key_in_pem(data: bytes) -> Key | None:
    """Read only the public key of the first certificate in PEM; the rest of the certificate may be damaged.

    Returns None for a key of another kind than RSA, ECDSA and Ed25519. Raises InvalidCertificate.
    """
    found = _BLOCK.search(data)
    der = b"" if found is None else _decoded(found[1])
    fields = _Elements(der[:MAX_BYTES], 0, min(len(der), MAX_BYTES), _Budget(MAX_ELEMENTS))
    fields = fields.enter(_SEQUENCE).enter(_SEQUENCE)
    if fields.next_is(_VERSION):
        fields.any()
    for _ in ("serial number", "algorithm", "issuer", "validity", "subject"):
        fields.any()
    return _public_key(fields.take(_SEQUENCE))


def _public_key(info: bytes) -> Key | None:
    fields = _Elements(info, 0, len(info), _Budget(2))
    algorithm, parameters = _algorithm(fields.take(_SEQUENCE))
    key = fields.bits()
    load = _KEYS.get(algorithm)
    try:
        return None if load is None else load(parameters, key)
    except InvalidCertificate:
        raise
    except Exception:  # noqa: BLE001 - the library may raise any error for a hostile key
        raise InvalidCertificate("the certificate's public key cannot be read") from None


_NULL: Final = b"\x05\x00"
_CURVES: Final[Mapping[str, Callable[[], ec.EllipticCurve]]] = MappingProxyType(
    {
        "1.3.132.0.33": ec.SECP224R1,
        "1.2.840.10045.3.1.7": ec.SECP256R1,
        "1.3.132.0.34": ec.SECP384R1,
        "1.3.132.0.35": ec.SECP521R1,
    }
)
_UNCOMPRESSED: Final = b"\x04"


def _rsa(parameters: bytes, key: bytes) -> Key:
    if parameters != _NULL:
        raise InvalidCertificate("the certificate's RSA key has other parameters than NULL")
    numbers = _Elements(key, 0, len(key), _Budget(3)).enter(_SEQUENCE)
    modulus = numbers.integer()
    return rsa.RSAPublicNumbers(numbers.integer(), modulus).public_key()


def _ecdsa(parameters: bytes, key: bytes) -> Key:
    curve = _CURVES.get(_dotted(_Elements(parameters, 0, len(parameters), _Budget(1)).take(_OBJECT)))
    if curve is None:
        raise InvalidCertificate("the certificate's key is on a curve that is not supported")
    if not key.startswith(_UNCOMPRESSED):
        raise InvalidCertificate("the certificate's key is a point in another form than x and y")
    return ec.EllipticCurvePublicKey.from_encoded_point(curve(), key)


def _ed25519(parameters: bytes, key: bytes) -> Key:
    if parameters:
        raise InvalidCertificate("the certificate's Ed25519 key has parameters")
    return ed25519.Ed25519PublicKey.from_public_bytes(key)


_KEYS: Final[Mapping[str, Callable[[bytes, bytes], Key]]] = MappingProxyType(
    {"1.2.840.113549.1.1.1": _rsa, "1.2.840.10045.2.1": _ecdsa, "1.3.101.112": _ed25519}
)
_PSS: Final = "1.2.840.113549.1.1.10"
_WEAK_SIGNATURES: Final = MappingProxyType(
    {
        "1.2.840.113549.1.1.2": "md2",  # RSA
        "1.2.840.113549.1.1.4": "md5",  # RSA
        "1.2.840.113549.1.1.5": "sha1",  # RSA
        "1.3.14.3.2.29": "sha1",  # RSA, the older identifier
        "1.2.840.10040.4.3": "sha1",  # DSA
        "1.2.840.10045.4.1": "sha1",  # ECDSA
    }
)
_WEAK_HASHES: Final = MappingProxyType(
    {"1.3.14.3.2.26": "sha1", "1.2.840.113549.2.2": "md2", "1.2.840.113549.2.5": "md5"}
)
_PSS_HASH: Final = 0xA0


def _pss_hash(parameters: bytes) -> str:
    """Return the hash of RSASSA-PSS if it is a weak one; the one that is not named is SHA-1 (RFC 4055, 3.1)."""
    try:
        fields = _Elements(parameters, 0, len(parameters), _Budget(3)).enter(_SEQUENCE)
        if not fields.next_is(_PSS_HASH):
            return "sha1"
        return _WEAK_HASHES.get(_algorithm(fields.enter(_PSS_HASH).take(_SEQUENCE))[0], "")
    except InvalidCertificate:
        return "sha1"
