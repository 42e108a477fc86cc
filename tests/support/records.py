"""Records of TLS that no honest client would send: made by hand, with the keys of a client whose handshake is done.

client = Forger(SSL.TLS1_3_VERSION, ca)     # its handshake is driven by the bytes that go in and out
client.record(HANDSHAKE, KEY_UPDATE)        # the bytes of one encrypted record
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from OpenSSL import SSL

CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, DATA = 20, 21, 22, 23
KEY_UPDATE = b"\x18\x00\x00\x01\x00"
KEY_UPDATE_ASKED = b"\x18\x00\x00\x01\x01"
"""The same, which asks the peer for one in return."""
TICKET = b"\x04\x00\x00\x0d" + bytes(13)
WARNING = b"\x01\x5a"
"""user_canceled: an alert that ends nothing."""


def plain(kind: int, content: bytes) -> bytes:
    """A record that is not encrypted."""
    return bytes([kind, 3, 3]) + len(content).to_bytes(2, "big") + content


class Forger:
    """A client. Nothing of its own is sent once the handshake is done, so records that are made by hand follow on."""

    def __init__(self, version: int, ca: Path, certificate: tuple[Path, Path] | None = None) -> None:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
        context.set_cipher_list(b"ECDHE-ECDSA-AES128-GCM-SHA256")
        context.set_tls13_ciphersuites(b"TLS_AES_128_GCM_SHA256")
        context.load_verify_locations(str(ca))
        if certificate is not None:
            context.use_certificate_file(str(certificate[0]))
            context.use_privatekey_file(str(certificate[1]))
        context.set_keylog_callback(self._learn)
        self.version = version
        self._secret = b""
        self.tls = SSL.Connection(context, None)
        self.tls.set_connect_state()
        self.done = False

    def _learn(self, _: SSL.Connection, line: bytes) -> None:
        label, _random, secret = line.split()
        if label == b"CLIENT_TRAFFIC_SECRET_0":
            self._secret = bytes.fromhex(secret.decode())
            self._derive()

    def handshake(self, received: bytes = b"") -> bytes:
        """Take what the server said; return what to say to it. ``done`` tells whether that was all."""
        if received:
            self.tls.bio_write(received)
        try:
            self.tls.do_handshake()
        except SSL.WantReadError:
            pass
        else:
            self.done = True
            if self.version == SSL.TLS1_2_VERSION:
                self._derive_old()
        try:
            return self.tls.bio_read(1 << 16)
        except SSL.WantReadError:
            return b""

    def record(self, kind: int, content: bytes) -> bytes:
        """Return one encrypted record of the client's."""
        if self.version == SSL.TLS1_2_VERSION:
            number = self._sequence.to_bytes(8, "big")
            head = bytes([kind, 3, 3])
            sealed = number + self._cipher.encrypt(
                self._iv + number, content, number + head + len(content).to_bytes(2, "big")
            )
            self._sequence += 1
            return head + len(sealed).to_bytes(2, "big") + sealed
        head = bytes([DATA, 3, 3]) + (len(content) + 17).to_bytes(2, "big")
        nonce = (int.from_bytes(self._iv, "big") ^ self._sequence).to_bytes(12, "big")
        self._sequence += 1
        sealed = self._cipher.encrypt(nonce, content + bytes([kind]), head)
        if content in (KEY_UPDATE, KEY_UPDATE_ASKED):
            self._secret = self._expand(b"traffic upd", 32)
            self._derive()
        return head + sealed

    def _derive(self) -> None:
        self._cipher, self._iv = AESGCM(self._expand(b"key", 16)), self._expand(b"iv", 12)
        self._sequence = 0

    def _expand(self, label: bytes, size: int) -> bytes:
        """HKDF-Expand-Label with an empty context (RFC 8446, section 7.1), for one block of output."""
        label = b"tls13 " + label
        info = size.to_bytes(2, "big") + bytes([len(label)]) + label + b"\x00"
        return hmac.digest(self._secret, info + b"\x01", "sha256")[:size]

    def _derive_old(self) -> None:
        """The keys of TLS 1.2 (RFC 5246, section 6.3; RFC 5288); the client's Finished was its first record."""
        seed = b"key expansion" + self.tls.server_random() + self.tls.client_random()
        made, step = b"", seed
        while len(made) < 40:
            step = hmac.digest(self.tls.master_key(), step, hashlib.sha256)
            made += hmac.digest(self.tls.master_key(), step + seed, hashlib.sha256)
        self._cipher, self._iv = AESGCM(made[:16]), made[32:36]
        self._sequence = 1
