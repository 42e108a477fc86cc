"""The table of what is fuzzed: for each parser of strangers' bytes a function that takes any bytes.

Rules of this module: a function returns if the bytes were met as they should be, refused in words or understood, and
raises anything else. It keeps no state from one input to the next, so that an input found once is found again. Knows
no fuzzer: ``make fuzz`` feeds the table by atheris, ``make test`` feeds it what lies in ``corpus/``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import parsers, wires

CORPUS = Path(__file__).with_name("corpus")


@dataclass(frozen=True)
class Target:
    """``run`` takes inputs of up to ``most`` bytes; ``words`` are pieces that inputs are likely made of."""

    name: str
    run: Callable[[bytes], None]
    most: int = 4096
    words: tuple[bytes, ...] = ()

    @property
    def corpus(self) -> Path:
        """The folder of the inputs that it starts from, and of those that once showed a fault."""
        return CORPUS / self.name

    def inputs(self) -> list[Path]:
        """The files there."""
        return sorted(self.corpus.iterdir())


_JSON = (b'"signed"', b'"signatures"', b'"_type"', b'"version"', b'"expires"', b'"keys"', b'"roles"', b'"keyids"')
_META = (*_JSON, b'"threshold"', b'"meta"', b'"hashes"', b'"sha256"', b'"length"', b'"targets"', b'"delegations"')
_HTTP = (b"\r\n", b"\r\n\r\n", b"GET ", b"POST ", b" HTTP/1.1", b"Host: a", b"Content-Length: ", b"%2F", b"/../", b"//")
_CODED = (
    b"\x7f",
    b"\x80",
    b"?",
    b"Transfer-Encoding: chunked",
    b"0\r\n\r\n",
    b"Expect: 100-continue",
    b"Connection: close",
    b"identity",
)

TARGETS = (
    Target("json", parsers.json_values, words=(b"1e2", b"-0", b"\\ud800", b"\\u0000", b"9007199254740991", b"[[[[")),
    Target("metadata", parsers.metadata, most=8192, words=(*_META, b'"ecdsa-x509"', b'"keyval"', b'"public"')),
    Target("publish", parsers.publish, most=16384, words=(*_META, b"\xffroot\n", b"\xfftargets\n", b"\xffsnapshot\n")),
    Target("keys", parsers.public_keys, most=2048),
    Target("certificates", parsers.certificates, most=4096),
    Target("tokens", parsers.authorization, words=(b'"x5c"', b'"jwk"', b'"kid"', b'"alg"', b'"access"', b'"aud"')),
    Target("jwe", parsers.wrapped_keys, most=2048, words=(b'"p2c":', b'"p2s":', b"PBES2-HS256+A128KW", b"A256GCM")),
    Target("mysql-url", parsers.mysql_url, most=512, words=(b"@tcp(", b")/", b"&tls=", b"?timeout=", b"unix(", b"%2F")),
    Target("postgres-url", parsers.postgres_url, most=512, words=(b"postgres://", b"sslmode=", b"host=", b"%40", b"'")),
    Target(
        "target", parsers.targets_of_requests, most=512, words=(b"%2F", b"%2e", b"/../", b"//", b"http://h", b"%ff")
    ),
    Target("fields", parsers.header_fields, most=1024, words=(b"Host: a\r\n", b"\r\n\r\n", b"Connection: close\r\n")),
    Target("multipart", parsers.multipart, words=(b"multipart/form-data; boundary=", b"filename*0*=", b"UTF-8''")),
    Target("http", wires.http, most=1500, words=(*_HTTP, *_CODED)),
    Target("api", wires.api, most=16384, words=(*_HTTP, b"/_trust/tuf/", b"changefeed", b"filename=", b".json")),
    Target("hpack", parsers.header_blocks, most=1024),
    Target("frames", parsers.frames, most=2048),
    Target("grpc", wires.grpc, most=2048, words=(b"\xff\xfe",)),
    Target("answers", wires.answers, most=8192, words=(b"\xff\xfe",)),
    Target("rpc", wires.rpc, most=1024, words=(b"ecdsa", b"ed25519", b"snapshot")),
    Target("tls", wires.tls, most=2048, words=(b"\x16\x03\x01", b"\x17\x03\x03", b"\x15\x03\x03", b"\x14\x03\x03")),
)
