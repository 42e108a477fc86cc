"""Certificates that Go reads, or OpenSSL, and a strict parser does not: written byte by byte, and well signed.

make("an asterisk in a PrintableString", "example.com/*", private)      # DER
ODD     # what Go 1.19 reads, and so does everything here
REFUSED # what Go 1.19 refuses
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

Private = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

BOOLEAN, INTEGER, BITS, OCTETS, NULL, OID, UTF8 = 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x0C
NUMERIC, PRINTABLE, TELETEX, IA5, UTC, GENERALIZED, UNIVERSAL, BMP = 0x12, 0x13, 0x14, 0x16, 0x17, 0x18, 0x1C, 0x1E
SEQUENCE, SET = 0x30, 0x31
CN, ORGANISATION, COUNTRY = bytes.fromhex("550403"), bytes.fromhex("55040a"), bytes.fromhex("550406")
BASIC, ALTERNATIVES = bytes.fromhex("551d13"), bytes.fromhex("551d11")
KEY_USAGE, EXTENDED_USAGE = bytes.fromhex("551d0f"), bytes.fromhex("551d25")
ECDSA_SHA256, RSA_SHA256 = bytes.fromhex("2a8648ce3d040302"), bytes.fromhex("2a864886f70d01010b")
ED25519 = bytes.fromhex("2b6570")
TRUE, FALSE = b"\x01\x01\xff", b"\x01\x01\x00"
LOOPBACK = ("localhost", "notarysigner", "notary-signer", "notaryserver", "notary-server")


def der(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def attribute(kind: bytes, tag: int, content: bytes) -> bytes:
    return der(SET, der(SEQUENCE, der(OID, kind), der(tag, content)))


def distinguished(tag: int, common: bytes, *more: bytes) -> bytes:
    return der(SEQUENCE, *more, attribute(CN, tag, common))


def extension(kind: bytes, content: bytes, critical: bytes = b"") -> bytes:
    return der(SEQUENCE, der(OID, kind), critical, der(OCTETS, content))


def alternatives(*hosts: str) -> bytes:
    addresses = [der(0x87, bytes([127, 0, 0, 1]))]
    return extension(ALTERNATIVES, der(SEQUENCE, *(der(0x82, host.encode()) for host in hosts), *addresses))


CLIENT_AND_SERVER = extension(
    EXTENDED_USAGE,
    der(SEQUENCE, der(OID, bytes.fromhex("2b06010505070301")), der(OID, bytes.fromhex("2b06010505070302"))),
)
AUTHORITY = extension(BASIC, der(SEQUENCE, TRUE), TRUE)
NO_AUTHORITY = extension(BASIC, der(SEQUENCE), TRUE)


@dataclass(frozen=True)
class Form:
    """The parts of a certificate in which it may be odd; ``name`` makes a distinguished name of a common name."""

    name: Callable[[bytes], bytes] = lambda common: distinguished(UTF8, common)
    version: bytes = der(0xA0, der(INTEGER, b"\x02"))
    serial: bytes = b"\x05"
    begins: bytes = der(UTC, b"200101000000Z")
    ends: bytes = der(UTC, b"491231000000Z")
    ids: bytes = b""
    constraints: bytes = NO_AUTHORITY
    extensions: Sequence[bytes] = field(default=(CLIENT_AND_SERVER,))
    hosts: Sequence[str] = LOOPBACK
    edit: Callable[[bytes], bytes] = lambda fields: fields
    behind: bytes = b""


def named(tag: int, *more: bytes, recode: Callable[[bytes], bytes] = lambda common: common) -> Form:
    return Form(name=lambda common: distinguished(tag, recode(common), *more))


def with_extensions(*more: bytes) -> Form:
    return Form(extensions=(CLIENT_AND_SERVER, *more))


def with_uri(uri: bytes) -> Form:
    hosts = (der(0x82, host.encode()) for host in LOOPBACK)
    names = extension(ALTERNATIVES, der(SEQUENCE, *hosts, der(0x87, bytes([127, 0, 0, 1])), der(0x86, uri)))
    return Form(hosts=(), extensions=(CLIENT_AND_SERVER, names))


ODD: Mapping[str, Form] = MappingProxyType(
    {
        "nothing odd": Form(),
        "a name in a PrintableString": named(PRINTABLE),
        "an ampersand in a PrintableString": named(UTF8, attribute(ORGANISATION, PRINTABLE, b"Smith & Sons *")),
        "Latin-1 in a T61String": named(TELETEX, attribute(ORGANISATION, TELETEX, b"Soci\xe9t\xe9")),
        "UTF-8 in a T61String": named(TELETEX, attribute(ORGANISATION, TELETEX, "Société".encode())),
        "a name in a BMPString": named(BMP, recode=lambda common: common.decode().encode("utf-16-be")),
        "a BMPString with a terminator": named(
            BMP, recode=lambda common: common.decode().encode("utf-16-be") + b"\0\0"
        ),
        "half a character in a BMPString": named(UTF8, attribute(ORGANISATION, BMP, b"\xd8\x00")),
        "a name in an IA5String": named(IA5),
        "a NumericString": named(UTF8, attribute(ORGANISATION, NUMERIC, b"12 34")),
        "a name that is empty": named(UTF8, attribute(ORGANISATION, PRINTABLE, b"")),
        "a country of one letter": named(UTF8, attribute(COUNTRY, PRINTABLE, b"D")),
        "a control character in a name": named(UTF8, attribute(ORGANISATION, UTF8, b"a\nb\x00c")),
        "two common names": named(UTF8, attribute(CN, UTF8, b"another")),
        "two attributes in one part, unsorted": Form(
            name=lambda common: der(
                SEQUENCE,
                der(
                    SET,
                    der(SEQUENCE, der(OID, ORGANISATION), der(UTF8, b"z")),
                    der(SEQUENCE, der(OID, CN), der(UTF8, common)),
                    der(SEQUENCE, der(OID, COUNTRY), der(PRINTABLE, b"DE")),
                ),
            )
        ),
        "a part without attributes": named(UTF8, der(SET)),
        "CA:FALSE written out": Form(constraints=extension(BASIC, der(SEQUENCE, FALSE), TRUE)),
        "not critical, written out": Form(constraints=extension(BASIC, der(SEQUENCE), FALSE)),
        "a path length without CA": Form(constraints=extension(BASIC, der(SEQUENCE, der(INTEGER, b"\x00")))),
        "no constraints": Form(constraints=b""),
        "a negative serial number": Form(serial=b"\x85"),
        "serial number 0": Form(serial=b"\x00"),
        "a serial number of 40 bytes": Form(serial=b"\x11" * 40),
        "UTCTime without seconds": Form(begins=der(UTC, b"2001010000Z"), ends=der(UTC, b"4912310000Z")),
        "UTCTime with an offset": Form(begins=der(UTC, b"200101000000+0100"), ends=der(UTC, b"491231000000-0500")),
        "GeneralizedTime for a near year": Form(
            begins=der(GENERALIZED, b"20200101000000Z"), ends=der(GENERALIZED, b"20491231000000Z")
        ),
        "GeneralizedTime with an offset": Form(ends=der(GENERALIZED, b"20491231000000+0130")),
        "without an end": Form(ends=der(GENERALIZED, b"99991231235959Z")),
        "UTCTime of 1950": Form(begins=der(UTC, b"500101000000Z")),
        "unique identifiers": Form(ids=der(0x81, b"\x00\x01") + der(0x82, b"\x00\x02")),
        "a host with an underscore": Form(hosts=(*LOOPBACK, "notary_signer")),
        "an address as a name of a host": Form(hosts=(*LOOPBACK, "127.0.0.1")),
        "hosts with odd asterisks": Form(hosts=(*LOOPBACK, "a*b.example.com", "*.*.example.com", "*")),
        "a URI with a port": with_uri(b"https://example.com:8443/"),
        "a host that ends in a dot": Form(hosts=(*LOOPBACK, "example.com.")),
        "a netscape comment": with_extensions(
            extension(bytes.fromhex("6086480186f842010d"), der(IA5, b"OpenSSL Generated Certificate"))
        ),
        "an unknown extension that holds no DER": with_extensions(extension(bytes.fromhex("2a0304"), b"\xff\xff")),
        "key usage with trailing zeros": with_extensions(extension(KEY_USAGE, der(BITS, b"\x00\xa0"), TRUE)),
        "bytes behind the extensions": Form(behind=der(INTEGER, b"\x01")),
    }
)
"""What Go 1.19 reads."""

REFUSED: Mapping[str, Form] = MappingProxyType(
    {
        "an at sign in a PrintableString": named(UTF8, attribute(ORGANISATION, PRINTABLE, b"a@b")),
        "bytes that are not UTF-8": named(UTF8, attribute(ORGANISATION, UTF8, b"\xff")),
        "an umlaut in an IA5String": named(UTF8, attribute(ORGANISATION, IA5, b"\xe4")),
        "half a BMPString": named(UTF8, attribute(ORGANISATION, BMP, b"abc")),
        "a UniversalString": named(UTF8, attribute(ORGANISATION, UNIVERSAL, b"\0\0\0a")),
        "month 13": Form(ends=der(UTC, b"491331000000Z")),
        "day 32": Form(ends=der(UTC, b"491232000000Z")),
        "second 60": Form(ends=der(UTC, b"491231000060Z")),
        "a time of another zone that is none": Form(ends=der(UTC, b"491231000000+0000")),
        "GeneralizedTime without seconds": Form(ends=der(GENERALIZED, b"204912310000Z")),
        "GeneralizedTime with a fraction": Form(ends=der(GENERALIZED, b"20491231000000.5Z")),
        "a serial number in more bytes than needed": Form(serial=b"\x00\x05"),
        "a negative serial number in more bytes than needed": Form(serial=b"\xff\x85"),
        "version 4": Form(version=der(0xA0, der(INTEGER, b"\x03"))),
        "an extension twice": with_extensions(CLIENT_AND_SERVER),
        "constraints that hold nothing": Form(constraints=extension(BASIC, der(NULL))),
        "a truth value that is neither": Form(constraints=extension(BASIC, der(SEQUENCE, b"\x01\x01\x01"))),
        "two algorithms": Form(edit=lambda fields: fields.replace(ECDSA_SHA256, bytes.fromhex("2a8648ce3d040303"))),
        "an indefinite length": Form(edit=lambda fields: b"\x30\x80" + fields[4:] + b"\0\0"),
    }
)
"""What Go 1.19 refuses."""


BEYOND_OPENSSL = frozenset(
    {"half a character in a BMPString", "UTCTime without seconds", "bytes behind the extensions"}
)
"""What Go reads and OpenSSL does not: of no use in TLS."""


def make(form: Form, name: str, private: Private, *, issuer: tuple[Form, str, Private] | None = None) -> bytes:
    """A certificate in DER with the common name ``name`` and the key ``private``, self-signed without ``issuer``."""
    issuing, issuing_name, signing = issuer or (form, name, private)
    algorithm = der(SEQUENCE, *_algorithm(signing))
    extensions = [form.constraints, *form.extensions, *([alternatives(*form.hosts)] if form.hosts else [])]
    fields = der(
        SEQUENCE,
        form.version,
        der(INTEGER, form.serial),
        algorithm,
        issuing.name(issuing_name.encode()),
        der(SEQUENCE, form.begins, form.ends),
        form.name(name.encode()),
        private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        form.ids,
        der(0xA3, der(SEQUENCE, *extensions)),
        form.behind,
    )
    fields = form.edit(fields)
    return der(SEQUENCE, fields, algorithm, der(BITS, b"\x00", _sign(signing, fields)))


def authority(form: Form) -> Form:
    """The same form, of an authority."""
    return replace(form, constraints=AUTHORITY, extensions=(), hosts=())


def pem(*certificates: bytes) -> bytes:
    blocks = []
    for each in certificates:
        text = base64.b64encode(each)
        lines = b"\n".join(text[at : at + 64] for at in range(0, len(text), 64))
        blocks.append(b"-----BEGIN CERTIFICATE-----\n" + lines + b"\n-----END CERTIFICATE-----\n")
    return b"".join(blocks)


def write(folder: Path, name: str, private: Private, *certificates: bytes) -> tuple[Path, Path]:
    """Write the certificates and the key; return both paths."""
    cert_file, key_file = folder / f"{name}.crt", folder / f"{name}.key"
    cert_file.write_bytes(pem(*certificates))
    key_file.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return cert_file, key_file


def _algorithm(private: Private) -> tuple[bytes, ...]:
    if isinstance(private, rsa.RSAPrivateKey):
        return der(OID, RSA_SHA256), der(NULL)
    return (der(OID, ED25519 if isinstance(private, ed25519.Ed25519PrivateKey) else ECDSA_SHA256),)


def _sign(private: Private, data: bytes) -> bytes:
    if isinstance(private, rsa.RSAPrivateKey):
        return private.sign(data, padding.PKCS1v15(), hashes.SHA256())
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return private.sign(data)
    return private.sign(data, ec.ECDSA(hashes.SHA256()))
