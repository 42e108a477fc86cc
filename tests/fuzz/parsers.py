"""Fuzz targets for what is pure: bytes in, a value or a typed error out.

Rules of this module: a function takes any bytes and returns, or raises what is a fault of ours. What the bytes mean is
said by each function; a first byte that chooses a way is taken modulo the number of ways, so that every input has one.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import pairwise
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hpack import Decoder, HPACKError
from OpenSSL import crypto
from OpenSSL._util import lib as openssl
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from service_identity.exceptions import CertificateError, VerificationError
from twisted.internet.task import Clock

from notary import certs
from notary.errors import (
    ConfigError,
    InvalidCertificate,
    InvalidMetadata,
    InvalidRole,
    InvalidUpdate,
    MalformedJSON,
    MalformedUpload,
    NoFilename,
    OldVersion,
    SigningFailed,
    Unauthorized,
)
from notary.net.grpc import Context, Peer
from notary.net.grpc.fast import FastDecoder
from notary.net.grpc.frames import (
    Malformed,
    Message,
    NotGrpc,
    Scanner,
    Violation,
    check_answer,
    check_trailers,
    decode_timeout,
    encode_timeout,
    parse_request,
)
from notary.net.grpc.status import RpcError
from notary.net.http import fast as plain
from notary.net.http import target
from notary.net.http.multipart import FormPart, parse_multipart
from notary.net.tls import peers
from notary.net.tls.verdicts import explain_verify_error
from notary.server.auth.token import TokenAuth
from notary.signer.clients import Clients
from notary.storage.keywrap import unwrap
from notary.storage.sql.backends.mysql.dsn import mysql
from notary.storage.sql.backends.postgres.dsn import postgres
from notary.tuf import canonical, public
from notary.tuf.model import (
    ROOT,
    SNAPSHOT,
    TARGETS,
    TIMESTAMP,
    Delegation,
    Envelope,
    Gun,
    RoleName,
    Root,
    Snapshot,
    Targets,
    Timestamp,
    VersionedMetadata,
    peek,
)
from notary.tuf.public import PublicKey, RoleKeys, Signature
from notary.tuf.publish import read
from notary.tuf.root_certificates import certified_keys, check_delegation_certificate
from tests.fuzz.golden import ALIAS, NOW, PASSPHRASE, world
from tests.support import tokens
from tests.support.author import canonical as written
from tests.support.certs import as_read
from tests.support.collection import GUN

SECRET = "hunter2-hunter2"
"""The password of the seeds of db_url: no error may show it."""


def split(data: bytes, ways: int) -> tuple[int, bytes]:
    """The way that the first byte chooses, and the rest."""
    return (data[0] % ways, data[1:]) if data else (0, b"")


# -- JSON and metadata ------------------------------------------------------------------------------------------------


def json_values(data: bytes) -> None:
    """What is read means the same to Python's own reader, and its canonical form is stable."""
    try:
        value = canonical.parse(data)
    except MalformedJSON:
        return
    assert value == json.loads(data)
    try:
        once = canonical.dumps(value)
    except InvalidMetadata:
        return
    # Canonical JSON writes control characters as they are, and whole floats as integers, which JSON readers refuse.
    try:
        again = canonical.parse(once)
    except MalformedJSON:
        assert re.search(rb"[\x00-\x1f]", once) is not None, once
    else:
        assert again == value
        assert canonical.dumps(again) == once


def metadata(data: bytes) -> None:
    """One file, read as each kind of metadata."""
    try:
        envelope, version = peek(data)
    except MalformedJSON:
        with suppress(MalformedJSON):
            Envelope.parse(data)
        return
    assert envelope.data == data
    with suppress(InvalidMetadata):
        assert canonical.dumps(envelope.signed) == envelope.payload
    for kind in (Root.parse, Snapshot.parse, Timestamp.parse, _targets(TARGETS), _targets(RoleName("targets/a"))):
        with suppress(InvalidMetadata):
            found: VersionedMetadata = kind(envelope)
            assert found.version == version
            _use(found)


def _targets(role: RoleName) -> Any:
    return lambda envelope: Targets.parse(envelope, role)


def _use(found: VersionedMetadata) -> None:
    """What is done with metadata once it is read."""
    roles: list[RoleKeys] = []
    if isinstance(found, Root):
        roles = list(found.roles.values())
        with suppress(InvalidMetadata):
            certified_keys(found, Gun(GUN), NOW)
        with suppress(InvalidMetadata):
            certified_keys(found, Gun(GUN), None)
    elif isinstance(found, Targets):
        roles = [each.role for each in found.delegations.values()]
    for role in roles[:8]:
        with suppress(InvalidMetadata):
            public.meets_threshold(found.envelope, role)
        for key in list(role.keys.values())[:4]:
            with suppress(InvalidMetadata):
                assert len(key.key_id) == len(key.canonical_id) == 64


def _records(data: bytes) -> list[tuple[str, bytes]]:
    """Files of an upload: each is the name of its role, a line end and its content; 0xFF is between two."""
    records = (record.partition(b"\n") for record in data.split(b"\xff")[:8])
    return [(name.decode("latin-1"), content) for name, _, content in records]


def publish(data: bytes) -> None:
    """An upload to the golden collection: what is accepted can be read, and published to again.

    The first byte says whether the files are whole, or only their signed parts, which are then signed with the keys
    that the collection has: no fuzzer finds a signature.
    """
    way, rest = split(data, 2)
    files = _records(rest)
    if way == 1:
        files = [(name, _signed(name, content)) for name, content in files]
    try:
        uploads = read(files)
    except (NoFilename, InvalidRole, MalformedJSON):
        return
    collection = world().collection()
    try:
        collection.publish([(upload.role, upload.data) for upload in uploads])
    except (InvalidUpdate, OldVersion):
        return
    collection.check()
    _walk({role: held.data for role, held in collection.current.items()})
    # The server can go on from what it now holds.
    again = world().collection()
    again.current = collection.current
    targets = json.loads(collection.current[TARGETS].data)["signed"]
    targets["version"] += 1
    with suppress(InvalidUpdate):  # another root may have taken the keys away
        again.publish({"targets": _signed("targets", written(targets))})


def _walk(stored: Mapping[RoleName, bytes]) -> None:
    """What a client without a past does, which is that of Notary 0.7: from root to all that targets delegates to.

    It passes over a delegation that the snapshot does not list, or whose signatures fall short: that is how it is
    between a change of a delegation's keys and its next publish. Everything else makes it refuse the collection.
    """
    root = Root.parse(Envelope.parse(stored[ROOT]))
    for role in (ROOT, TIMESTAMP, SNAPSHOT, TARGETS):
        signers = certified_keys(root, Gun(GUN), NOW) if role == ROOT else root.roles[role]
        assert public.meets_threshold(Envelope.parse(stored[role]), signers).ok, (
            f"{role}: a client refuses its signatures"
        )
    listed = Snapshot.parse(Envelope.parse(stored[SNAPSHOT])).meta
    waiting = [TARGETS]
    while waiting:
        role = waiting.pop()
        assert role in stored, f"{role} is listed, and was never stored"
        assert listed[role].matches(stored[role]), f"the snapshot lists another {role}"
        children = Targets.parse(Envelope.parse(stored[role]), role).delegations
        waiting += [name for name, child in children.items() if name in listed and _counts(stored, name, child)]


def _counts(stored: Mapping[RoleName, bytes], name: RoleName, child: Delegation) -> bool:
    return name not in stored or public.meets_threshold(Envelope.parse(stored[name]), child.role).ok


def _signed(name: str, payload: bytes) -> bytes:
    """A file with this signed part, as it is, signed with the golden key of its role."""
    key = world().keys.get(name)
    try:
        covered = canonical.dumps(canonical.parse(payload))
    except (MalformedJSON, InvalidMetadata):
        covered = payload
    signatures = written([key.sign(covered)]) if key is not None else b"[]"
    return b'{"signed":' + payload + b',"signatures":' + signatures + b"}"


# -- keys, certificates, tokens ---------------------------------------------------------------------------------------

METHODS = (("ecdsa", "ecdsa"), ("rsapss", "rsa"), ("pycrypto-pkcs#1 pss", "rsa"), ("eddsa", "ed25519"))


def public_keys(data: bytes) -> None:
    """A key of each type that verifies a signature: its first half is the key, its second half the signature."""
    way, rest = split(data, len(METHODS))
    method, key_type = METHODS[way]
    half = min(len(rest), int.from_bytes(rest[:2], "big")) if len(rest) > 2 else 0
    key = PublicKey(key_type, rest[2 : 2 + half])
    assert public.verify(key, Signature("", method, rest[2 + half :]), b"payload") in {True, False}
    assert len(key.key_id) == 64
    with suppress(InvalidMetadata):
        assert len(key.canonical_id) == 64


def certificates(data: bytes) -> None:
    """A certificate in DER, or PEM as it is: wherever a stranger's certificate is looked at."""
    way, rest = split(data, 2)
    shown = rest if way else _armoured(rest)
    for key_type, method in (("ecdsa-x509", "ecdsa"), ("rsa-x509", "rsapss"), ("rsa-x509", "rsapkcs1v15")):
        key = PublicKey(key_type, shown)
        assert public.verify(key, Signature("", method, b"\0" * 64), b"payload") is False
        with suppress(InvalidMetadata):
            assert len(key.canonical_id) == 64
        with suppress(InvalidMetadata):
            check_delegation_certificate(RoleName("targets/a"), key)
    root = Root.parse(Envelope.parse(world().stored[ROOT].data))
    for when in (None, NOW):
        with suppress(InvalidMetadata):
            named = RoleKeys({key.key_id: key}, 1)
            certified_keys(_with_root_keys(root, named), Gun(GUN), when)
    if way == 0:
        _read_alone(rest)
        _shown_in_a_handshake(rest)


def _read_alone(der: bytes) -> None:
    """What is read of a certificate can be shown, and is the certificate."""
    try:
        one = certs.Certificate(der)
    except InvalidCertificate:
        return
    assert one.der == der
    assert certs.all_in_pem(one.pem) == (one,)
    assert str(one.subject).isprintable()
    assert str(one.issuer).isprintable()
    assert one.signature_hash in {"", "md2", "md5", "sha1"}
    with suppress(InvalidCertificate):
        assert one.alternatives_text().isprintable()
    with suppress(InvalidCertificate):
        assert all(name.isascii() for name in one.dns_names)
    with suppress(InvalidCertificate):
        assert one.public_key == certs.key_in_pem(one.pem)
    with suppress(InvalidCertificate, CertificateError, VerificationError):
        peers.require_host(one, "localhost")


def _armoured(der: bytes) -> bytes:
    text = base64.b64encode(der)
    lines = b"\n".join(text[at : at + 64] for at in range(0, len(text), 64))
    return b"-----BEGIN CERTIFICATE-----\n" + lines + b"\n-----END CERTIFICATE-----\n"


def _with_root_keys(root: Root, named: RoleKeys) -> Root:
    return Root(
        version=root.version,
        expires=root.expires,
        envelope=root.envelope,
        roles={**root.roles, ROOT: named},
        consistent_snapshot=False,
    )


def _shown_in_a_handshake(der: bytes) -> None:
    """A certificate that OpenSSL could read is one that a client can show: the verdict on it must be had."""
    try:
        shown = crypto.load_certificate(crypto.FILETYPE_ASN1, der)
    except (crypto.Error, ValueError, UnsupportedAlgorithm):
        return
    for number in (9, 10, 18, 22, 1000):
        assert explain_verify_error(shown, number, 0, "server.client_ca_file").kind
    certificate = crypto.dump_certificate(crypto.FILETYPE_ASN1, shown)
    context = Context("/method", Peer("192.0.2.1:5", certificate), Clock(), None)
    with suppress(RpcError):
        Clients({"notary-server"}).guard({"/method": lambda _request, _context: b""})["/method"](b"", context)


@cache
def _access() -> TokenAuth:
    certificate = world().token_certificate
    return TokenAuth(tokens.REALM, tokens.SERVICE, tokens.ISSUER, as_read(certificate))


def authorization(data: bytes) -> None:
    """A header of an HTTP request, or the header and the claims of a token, with a zero byte between, to be signed."""
    openssl.ERR_clear_error()  # what something else has left in the queue
    way, rest = split(data, 2)
    header, _, claims = rest.partition(b"\0")
    text = f"Bearer {_token(header, claims)}" if way else rest.decode("latin-1")
    try:
        subject = _access().authorize(text, "notary.example.com", (("repository", GUN, "pull"),), NOW)
    except Unauthorized as error:
        assert re.fullmatch(r"[^\x00-\x1f\x7f]+", error.challenge)
        assert error.__cause__ is None
    else:
        assert isinstance(subject, str)
        _check_signature(text)
    assert openssl.ERR_peek_error() == 0, "an error that stays in OpenSSL's queue ends the next TLS connection"


def _check_signature(text: str) -> None:
    signed, _, signature = text.partition(" ")[2].rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
    r, s = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
    key = world().token_key.public_key()
    key.verify(encode_dss_signature(r, s), signed.encode("ascii"), ec.ECDSA(hashes.SHA256()))


def _token(header: bytes, claims: bytes) -> str:
    signed = f"{tokens.encode(header)}.{tokens.encode(claims)}"
    return f"{signed}.{tokens.encode(tokens.sign('ES256', world().token_key, signed.encode()))}"


def wrapped_keys(data: bytes) -> None:
    """What a row of the signer's table may hold in place of a wrapped key."""
    row = world().row
    changed = type(row)(**{**{name: getattr(row, name) for name in row.__slots__}, "private": data})
    try:
        key = unwrap(changed, {ALIAS: PASSPHRASE}.get)
    except SigningFailed as error:
        assert PASSPHRASE not in str(error)
        assert error.__cause__ is None
    else:
        assert _bytes_of(data) == _bytes_of(row.private)
        assert key.public.key_id == row.key_id


def _bytes_of(jwe: bytes) -> list[bytes]:
    """The parts of a JWE: the last character of each may be spelled in more than one way."""
    return [base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4)) for part in jwe.split(b".")]


# -- configuration ----------------------------------------------------------------------------------------------------


def mysql_url(data: bytes) -> None:
    """A ``db_url`` of MySQL."""
    _url(data, mysql)


def postgres_url(data: bytes) -> None:
    """A ``db_url`` of PostgreSQL, in either form: what libpq reads too, it reads as we do."""
    arguments = _url(data, postgres)
    if arguments is None:
        return
    try:
        theirs = conninfo_to_dict(data.decode())
    except ProgrammingError:
        return  # among other things, settings of the session, which libpq does not know
    if not (theirs.get("service") or theirs.get("hostaddr") or theirs.get("host")):
        theirs["host"] = "localhost"
    for name in ("host", "hostaddr", "port", "user", "password", "dbname", "service"):
        assert arguments.get(name) == (theirs.get(name) or None), name


def _url(data: bytes, parse: Any) -> Any:
    text = data.decode("utf-8", "surrogateescape")
    try:
        arguments = parse(text, lambda: "ca.crt")
    except ConfigError as error:
        assert SECRET not in str(error)
        assert "\n" not in str(error)
        return None
    assert all(isinstance(name, str) for name in arguments)
    return arguments


# -- HTTP -------------------------------------------------------------------------------------------------------------


def targets_of_requests(data: bytes) -> None:
    """A request target: its path is clean once it has been redirected, and read likewise on both paths."""
    text = data.decode("latin-1")
    try:
        origin, raw, query = target.split_target(text)
        path = target.decode_path(raw)
    except target.BadRequest as refused:
        assert refused.status == 400
        return
    values = target.parse_query(query[1:])
    clean = target.clean_path(path)
    assert target.clean_path(clean) == clean
    location = target.redirection(origin, path, query)
    if location is not None and path.startswith("/"):
        where, moved, asked = target.split_target(location)
        assert (where, asked) == (origin, query)
        assert target.decode_path(moved) == clean
        assert target.redirection(where, target.decode_path(moved), asked) is None
    quick = plain.read_line(b"GET " + data + b" HTTP/1.1")
    if quick is not None:
        assert quick == ("GET", path, raw.encode("latin-1"), values)


def header_fields(data: bytes) -> None:
    """The fields of a plain request: no name or value that is read could break a line."""
    fields = plain.read_fields(data, 20)
    if fields is not None:
        assert "host" in fields
        assert all(name == name.lower() and name.strip() == name for name in fields)
        assert all(" " <= character <= "~" or character == "\t" for value in fields.values() for character in value)


def multipart(data: bytes) -> None:
    """A content type, a line end and a body: what is read can be written, and read again."""
    content_type, _, body = data.partition(b"\n")
    try:
        parts = parse_multipart(content_type.decode("latin-1"), body)
    except MalformedUpload:
        return
    boundary = "b" * 30
    while any(boundary.encode() in part.data for part in parts):
        boundary += "b"
    assert parse_multipart(f"multipart/form-data; boundary={boundary}", _form(parts, boundary)) == parts


def _form(parts: Sequence[FormPart], boundary: str) -> bytes:
    lines = []
    for part in parts:
        name = "".join(f"%{byte:02X}" for byte in part.filename.encode("utf-8"))
        disposition = f"Content-Disposition: form-data; name=files; filename*=UTF-8''{name}"
        if len(disposition) > 8000:  # more than a part's header may have
            disposition, part = "Content-Disposition: form-data", FormPart("", part.data)  # noqa: PLW2901
        lines.append(f"--{boundary}\r\n{disposition}\r\n\r\n".encode() + part.data + b"\r\n")
    return b"".join(lines) + f"--{boundary}--\r\n".encode()


# -- gRPC -------------------------------------------------------------------------------------------------------------


def header_blocks(data: bytes) -> None:
    """Blocks of HPACK, each behind its length: the quick decoder says what the library says, twice over."""
    slow, quick = Decoder(max_header_list_size=300), FastDecoder(len)
    quick.max_header_list_size = 300
    for block in _pieces(data):
        for _ in range(2):
            found, expected = _decoded(quick, block), _decoded(slow, block)
            assert found == expected
            if found is None:
                return
            assert quick.header_table.dynamic_entries == slow.header_table.dynamic_entries
            _heads(found)


def _decoded(decoder: Decoder, block: bytes) -> list[tuple[bytes, bytes]] | None:
    try:
        return list(decoder.decode(block, raw=True))
    except HPACKError:
        return None


def _pieces(data: bytes) -> list[bytes]:
    pieces = []
    while data and len(pieces) < 16:
        pieces.append(data[1 : 1 + data[0]])
        data = data[1 + data[0] :]
    return pieces


def _heads(fields: Sequence[tuple[bytes, bytes]]) -> None:
    with suppress(Malformed, NotGrpc):
        path, timeout = parse_request(fields)
        assert path
        if timeout is not None:
            with suppress(RpcError):
                seconds = decode_timeout(timeout)
                assert seconds >= 0
                encode_timeout(seconds)
    for ended in (False, True):
        with suppress(RpcError):
            check_answer(fields, ended=ended)
    with suppress(RpcError):
        check_trailers(fields)


def frames(data: bytes) -> None:
    """Frames of HTTP/2: the scanner finds the same in them however they are cut; the message likewise."""
    way, rest = split(data, 2)
    seen = []
    for step in (len(rest) or 1, 1, 7):
        scanner = Scanner(preface=way == 0, headers=600)
        passed = b""
        try:
            for at in range(0, len(rest), step):
                passed += scanner.feed(rest[at : at + step])
        except Violation as violation:
            seen.append((violation.code, str(violation)))
        else:
            held = scanner._held  # what has been kept back is the beginning of a frame's head
            seen.append((passed + held, scanner.controls, scanner.resets, tuple(scanner.goaways)))
    assert all(one == other for one, other in pairwise(seen)), seen
    told = []
    for step in (len(rest) or 1, 1):
        message = Message(300)
        try:
            for at in range(0, len(rest), step):
                message.feed(rest[at : at + step])
                assert len(message) <= at + step
            told.append(message.finish())
        except RpcError as error:
            told.append((error.status, str(error)))
    assert told[0] == told[1], told
