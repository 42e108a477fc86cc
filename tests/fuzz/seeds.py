"""Writes the corpus anew, from the fixtures and helpers that other tests have: ``python -m tests.fuzz.seeds``.

Rules of this module: seeds are small and named after what they are. Inputs that once showed a fault are not made here;
their names begin with ``fault-``, and they are left alone.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hpack import Encoder
from OpenSSL import SSL

from notary.proto import health_pb2, signer_pb2
from notary.tuf.model import ROOT, SNAPSHOT, TARGETS, TIMESTAMP
from tests.fuzz.golden import NOW, world
from tests.fuzz.parsers import METHODS, SECRET
from tests.fuzz.targets import TARGETS as TABLE
from tests.fuzz.wires import _client
from tests.net.grpc.test_fast import BAD, GOOD, told
from tests.support import oddcerts, tokens
from tests.support.author import (
    MALFORMED,
    STRICTLY_MALFORMED,
    Key,
    canonical,
    make_certificate,
    make_key,
    make_private,
    public_bytes,
    raw_signature,
)
from tests.support.collection import GUN
from tests.support.inmemory import multipart
from tests.support.rawgrpc import PREFACE, SETTINGS, frame, packed, path
from tests.support.rawhttp import chunked, get, post

Seeds = Iterator[tuple[str, bytes]]


def _stored() -> dict[str, bytes]:
    return {str(role).replace("/", "-"): held.data for role, held in world().stored.items()}


def _json() -> Seeds:
    yield from _stored().items()
    yield "numbers", b'[0,-1,1.0,1e2,-0,9007199254740991,1.5,{"a":null,"b":true}]'
    yield "strings", b'{"\\u00e9":"\\ud83d\\ude00 \\n\\t\\"\\\\ \xc3\xa9"}'


def _metadata() -> Seeds:
    yield from _stored().items()
    for name, change in (MALFORMED | STRICTLY_MALFORMED).items():
        data = change(world().stored[TIMESTAMP].data)
        if len(data) < 2000:
            yield name.replace(" ", "-").replace(",", ""), data


def _signed(role: Any, **changes: Any) -> bytes:
    """The signed part of a stored file as the next version of it."""
    signed = json.loads(world().stored[role].data)["signed"]
    return canonical({**signed, "version": signed["version"] + 1, **changes})


def _publish() -> Seeds:
    root, targets, snapshot = _signed(ROOT), _signed(TARGETS), _signed(SNAPSHOT)
    yield "targets", b"\1targets\n" + targets
    yield "root", b"\1root\n" + root
    yield "snapshot", b"\1snapshot\n" + snapshot
    yield "several", b"\1root\n" + root + b"\xfftargets\n" + targets
    yield "delegation", b"\1targets/a\n" + _signed("targets/a")
    yield "leap", b"\1targets\n" + _signed(TARGETS, version=5000)
    yield "expired", b"\1targets\n" + _signed(TARGETS, expires="2001-01-01T00:00:00Z")
    yield "same", b"\0" + b"\xff".join(f"{role}\n".encode() + held.data for role, held in world().stored.items())


def _keys() -> Seeds:
    for number, (method, kind) in enumerate(METHODS):
        yield f"{kind}-{method.split('#')[0]}", bytes([number]) + _key_and_signature(make_key(kind))
    for name, curve in (("p384", ec.SECP384R1()), ("p521", ec.SECP521R1())):
        private = ec.generate_private_key(curve)
        yield name, b"\0" + _key_and_signature(Key("ecdsa", public_bytes(private), private))


def _key_and_signature(key: Key) -> bytes:
    return len(key.public).to_bytes(2, "big") + key.public + raw_signature(key.private, b"payload")


ODD_SEEDS = (
    "Latin-1 in a T61String",
    "a name in a BMPString",
    "two attributes in one part, unsorted",
    "a negative serial number",
    "UTCTime with an offset",
    "unique identifiers",
    "a URI with a port",
)


def _certificates() -> Seeds:
    cases: dict[str, tuple[str, dict[str, Any]]] = {
        "ecdsa": ("ecdsa", {}),
        "authority": ("ecdsa", {"authority": True}),
        "names": ("ecdsa", {"names": ("a", "b")}),
        "unconstrained": ("ecdsa", {"constrained": False}),
        "backwards": ("ecdsa", {"begins": NOW, "ends": NOW - timedelta(days=1)}),
        "broken": ("ecdsa", {"broken": True}),
        "ed25519": ("ed25519", {}),
        "rsa": ("rsa", {}),
        "sha1": ("rsa", {"sha1": True}),
    }
    for name, (algorithm, how) in cases.items():
        certificate = x509.load_pem_x509_certificate(make_certificate(make_private(algorithm), GUN, **how))
        yield name, b"\0" + certificate.public_bytes(Encoding.DER)
    authority = make_certificate(make_private(), "an authority", authority=True)
    yield "chain", b"\1" + make_certificate(make_private(), GUN) + authority
    private = make_private()
    for name in ODD_SEEDS:
        yield name.replace(" ", "-").lower(), b"\0" + oddcerts.make(oddcerts.ODD[name], GUN, private)


def _tokens() -> Seeds:
    holder = tokens.Holder(world().token_key, world().token_certificate, "signer of tokens")
    moment = int(NOW.timestamp())
    claims = {
        "iss": tokens.ISSUER,
        "sub": "alice",
        "aud": tokens.SERVICE,
        "exp": moment + 3600,
        "nbf": moment - 3600,
        "access": [{"type": "repository", "name": GUN, "actions": ["pull"]}],
    }
    headers = {
        "kid": {"alg": "ES256", "kid": tokens.fingerprint(holder.key)},
        "x5c": {"alg": "ES256", "x5c": tokens.x5c(holder.certificate)},
        "jwk": {"alg": "ES256", "jwk": tokens.public_jwk(holder.key)},
        "crit": {"alg": "ES256", "kid": "x", "crit": ["b64"], "b64": False},
    }
    for name, header in headers.items():
        yield name, b"\1" + json.dumps(header).encode() + b"\0" + json.dumps(claims).encode()
    yield (
        "audiences",
        b"\1" + json.dumps(headers["kid"]).encode() + b"\0" + json.dumps({**claims, "aud": ["a"]}).encode(),
    )
    yield "text", b"\0Bearer " + tokens.token(headers["kid"], claims, holder.key).encode()
    yield "basic", b"\0Basic YTpi"


def _jwe() -> Seeds:
    wrapped = world().row.private
    yield "good", wrapped
    yield "cut", wrapped[:-4]
    header, dot, rest = wrapped.partition(b".")
    for name, changes in (("rounds", {"p2c": 10**9}), ("zip", {"zip": "DEF"}), ("direct", {"alg": "dir"})):
        value = json.loads(urlsafe_b64decode(header + b"=="))
        yield name, tokens.encode(json.dumps({**value, **changes}).encode()).encode() + dot + rest


def _mysql() -> Seeds:
    yield "tcp", f"server:{SECRET}@tcp(database:3306)/notaryserver?parseTime=true".encode()
    yield "tls", f"u:{SECRET}@tcp([::1]:3306)/d?tls=skip-verify&timeout=1m30s&sql_mode=%27ANSI%27".encode()
    yield "unix", f"u:{SECRET}@unix(/tmp/mysql.sock)/d%2Fb?charset=utf8mb4,utf8&collation=utf8mb4_bin".encode()
    yield "odd", f"u:{SECRET}@/@tcp(h)/d?x=".encode()


def _postgres() -> Seeds:
    yield "url", f"postgres://server:{SECRET}@database:5432/notary?sslmode=verify-full&connect_timeout=3".encode()
    yield "hosts", f"postgresql://u:{SECRET}@a:1,[::1]:2/d?target_session_attrs=read-write&ssl=true".encode()
    yield "words", f"host=h password='{SECRET} \\' x' dbname = d application_name=a\\ b".encode()
    yield "setting", f"postgres://u:{SECRET}@h/d?statement_timeout=5&options=-c%20a%3Db".encode()


def _target() -> Seeds:
    for name, text in {
        "plain": "/v2/docker.io/library/alpine/_trust/tuf/root.json",
        "escaped": "/v2/a%2Fb/_trust/tuf/?x=1&y=%20+z;q",
        "dots": "/a/../b/./c//",
        "absolute": "http://h:80/x?y",
        "high": "/\xc3\xa9%ff",
        "star": "*",
    }.items():
        yield name, text.encode("latin-1")


def _fields() -> Seeds:
    yield "usual", b"Host: example.com\r\nAccept: */*\r\nUser-Agent: a\r\n\r\n"
    yield "twice", b"Host: a\r\nAccept: a\r\naccept: b\r\nConnection: keep-alive\r\n\r\n"
    yield "blanks", b"Host: a\r\na:  \r\nb: \t \r\n\r\n"


def _multipart() -> Seeds:
    content_type, body = multipart({"root": b"{}", "targets/a": b"[]"})
    yield "usual", content_type.encode() + b"\n" + body
    for name, disposition in {
        "extended": "filename*=UTF-8''targets%2Fa",
        "continued": 'filename*0="tar"; filename*1*=gets%2Fa',
        "quoted": 'filename="a\\"b\\c"',
        "nameless": "",
    }.items():
        part = f"--b\r\nContent-Disposition: form-data; name=files; {disposition}\r\n\r\n{{}}\r\n--b--\r\n"
        yield name, b"multipart/form-data; boundary=b\n" + part.encode()
    part = "--b\r\nContent-Disposition: form-data; filename=a\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
    yield "printable", b'multipart/mixed; boundary="b"\n' + part.encode() + b"=7B=\r\n=7D\r\n--b--"


def _http() -> Seeds:
    yield "get", get()
    yield "head", get(method=b"HEAD")
    yield "two", get(b"/a") + get(b"/b?x=y", b"Connection: close")
    yield "post", post(b"hello")
    yield "chunks", chunked(b"5\r\nhello\r\n0\r\n\r\n")
    yield "trailers", chunked(b"5;x=y\r\nhello\r\n0\r\nX: y\r\n\r\n") + get()
    yield "both", post(b"hello", b"Transfer-Encoding: chunked")
    yield "codings", chunked(b"0\r\n\r\n", b"Transfer-Encoding: identity")
    yield "expect", post(b"hello", b"Expect: 100-continue")
    yield "old", get(version=b"1.0")
    yield "folded", get(b"/", b"X: y", b" z")
    yield "lines", b"\r\n" + get() + b"\n"
    yield "absolute", get(b"http://example.com//a/../b")
    yield "redirected", get(b"//x?y")


def _api() -> Seeds:
    gun = f"/v2/{GUN}/_trust"
    for name, where in {
        "root": "/tuf/root.json",
        "version": "/tuf/1.targets.json",
        "delegation": "/tuf/targets/a.json",
        "key": "/tuf/timestamp.key",
        "feed": "/changefeed?records=3&change_id=-1",
    }.items():
        yield name, b"\0" + get((gun + where).encode())
    yield "all", b"\0" + get(b"/v2/_trust/changefeed?change_id=0")
    yield "redirected", b"\0" + get(b"//v2/?x")
    yield "ping", b"\0" + get(b"/v2/")
    yield "metrics", b"\0" + get(b"/metrics")
    yield "rotate", b"\1" + get((gun + "/tuf/snapshot.key").encode(), method=b"POST")
    yield "delete", b"\0" + get((gun + "/tuf/").encode(), method=b"DELETE")
    content_type, body = multipart({"targets": world().stored[TARGETS].data})
    head = get((gun + "/tuf/").encode(), f"Content-Type: {content_type}".encode(), method=b"POST")
    yield "upload", b"\1" + head + body
    yield "chunks", b"\2" + head + body


def _hpack() -> Seeds:
    encoder = Encoder()
    blocks = [encoder.encode([*path("Echo"), ("grpc-timeout", f"{n}S")]) for n in (1, 1, 2)]
    yield "calls", b"".join(bytes([len(block)]) + block for block in blocks)
    yield "tables", b"\x03\x40\x01x\x01\xbe\x01\x20\x02\x82\x83"
    answer = Encoder().encode([(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "0")])
    yield "answer", bytes([len(answer)]) + answer


def _frames() -> Seeds:
    yield "opening", b"\0" + PREFACE + SETTINGS + frame(6, 0, 0, b"pingpong") + frame(1, 4, 1, b"\x82")
    yield "goaway", b"\1" + frame(7, 0, 0, bytes(8) + b"why") + frame(3, 0, 1, bytes(4)) + frame(0, 1, 1, b"abc")
    yield "block", b"\1" + frame(1, 0, 1, b"\x82") + frame(9, 4, 1, b"\x83")
    yield "message", b"\1" + packed(b"a message")


def _grpc() -> Seeds:
    for name in sorted(GOOD | BAD):
        yield name, b"\xff\xfe".join(told(["echo", "echo", name, "grpcio"]))


def _answers() -> Seeds:
    status, good = [(":status", "200"), ("content-type", "application/grpc")], [("grpc-status", "0")]
    head, end = frame(1, 4, 1, Encoder().encode(status)), frame(1, 5, 1, Encoder().encode(good))
    body = frame(0, 0, 1, packed(b"answer"))
    yield "whole", head + body + end
    yield "parted", head + b"\xff\xfe" + body[:11] + b"\xff\xfe" + body[11:] + end
    yield "reset", head + frame(3, 0, 1, (8).to_bytes(4, "big"))
    yield "goaway", frame(7, 0, 0, bytes(8) + b"why") + head + body + end
    yield "no-message", head + end
    yield "settings", frame(4, 0, 0, b"\0\3\0\0\0\1\0\4\0\0\0\1") + frame(6, 0, 0, b"pingpong") + head
    for name, fields in {
        "refused": [*status, ("grpc-status", "5"), ("grpc-message", "no%20key")],
        "http": [(":status", "503")],
        "long-status": [(":status", "5" * 4000), ("grpc-status", "1" * 4000)],
    }.items():
        yield name, frame(1, 5, 1, Encoder().encode(fields))


def _rpc() -> Seeds:
    key_id = world().row.key_id
    messages = (
        ("check", health_pb2.HealthCheckRequest(service="grpc.health.v1.Health.Signer")),
        ("create", signer_pb2.CreateKeyRequest(algorithm="ed25519", gun="a/b", role="snapshot")),
        ("delete", signer_pb2.KeyID(ID=key_id)),
        ("info", signer_pb2.KeyID(ID=key_id)),
        ("sign", signer_pb2.SignatureRequest(keyID=signer_pb2.KeyID(ID=key_id), content=b"content")),
    )
    for number, (name, message) in enumerate(messages):
        yield name, bytes([number]) + message.SerializeToString()


def _tls() -> Seeds:
    client = SSL.Connection(_client(), None)
    client.set_connect_state()
    try:
        client.do_handshake()
    except SSL.WantReadError:
        hello = client.bio_read(65536)
    yield "hello", b"\0" + hello
    yield "plain", b"\0" + get()
    yield "alert", b"\0\x15\x03\x01\x00\x02\x02\x28"
    yield "old-hello", b"\0\x80\x2e\x01\x00\x02" + bytes(40)
    yield "second-flight", b"\1\x14\x03\x03\x00\x01\x01\x17\x03\x03\x00\x20" + bytes(32)
    yield "record", b"\2\x17\x03\x03\x00\x20" + bytes(32)
    yield "empty-record", b"\2\x17\x03\x03\x00\x00"
    yield "goodbye", b"\2\x15\x03\x03\x00\x02\x01\x00"


MAKERS = {
    "json": _json,
    "metadata": _metadata,
    "publish": _publish,
    "keys": _keys,
    "certificates": _certificates,
    "tokens": _tokens,
    "jwe": _jwe,
    "mysql-url": _mysql,
    "postgres-url": _postgres,
    "target": _target,
    "fields": _fields,
    "multipart": _multipart,
    "http": _http,
    "api": _api,
    "hpack": _hpack,
    "frames": _frames,
    "grpc": _grpc,
    "answers": _answers,
    "rpc": _rpc,
    "tls": _tls,
}


def main() -> None:
    """Write every seed."""
    for target in TABLE:
        target.corpus.mkdir(parents=True, exist_ok=True)
        for old in target.inputs():
            if not old.name.startswith("fault-"):
                old.unlink()
        for name, data in MAKERS[target.name]():
            (target.corpus / name).write_bytes(data)


if __name__ == "__main__":
    main()
