"""TLS contexts of servers and clients.

Rules of this module: TLS 1.2 is the oldest version spoken, with forward secrecy and authenticated encryption only; a
client trusts the bundle it was given and nothing else; files are read when a context is built, before anything listens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import idna
from OpenSSL import SSL
from OpenSSL.crypto import X509
from service_identity.exceptions import CertificateError, VerificationError
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
)
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from notary.net.refusals import HandshakeFailed, unreadable_certificate
from notary.net.tls import peers
from notary.net.tls.files import trust, use_certificate
from notary.net.tls.openssl import ClientConnection
from notary.net.tls.verdicts import Cause, explain_verify_error, explain_wrong_name
from notary.net.tls.wording import PLAIN, Wording

_log = Logger()

HTTP: Final = (b"http/1.1",)
"""The ALPN protocols of HTTPS."""
GRPC: Final = (b"h2",)
"""The ALPN protocols of gRPC."""
_CIPHERS: Final = b"ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL"
_SUITES: Final = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
"""The cipher suites of TLS 1.3: all of OpenSSL's, the cheapest handshake first, as in Go."""
_DEMAND: Final = SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT


ToPlaintext: TypeAlias = Callable[[bytes], bytes]
"""Returns the answer to a client that speaks without TLS, by the first bytes of what it says; b"" is no answer."""


def _silence(_first: bytes) -> bytes:
    return b""


class ServerOptions:
    """Makes the server's side of connections.

    ``use`` replaces the context for new connections. ``wording`` names the settings in messages. ``to_plaintext`` tells
    a client without TLS what it did wrong, in words of the protocol that the client speaks.
    """

    def __init__(self, context: SSL.Context, wording: Wording = PLAIN, to_plaintext: ToPlaintext = _silence) -> None:
        self.wording = wording
        self.to_plaintext = to_plaintext
        self.use(context)

    def use(self, context: SSL.Context) -> None:
        """Use this context for new connections."""
        self._context = context

    def connection(self, cause: Cause) -> SSL.Connection:
        """Return the OpenSSL side of a new connection, which notes in ``cause`` why it refuses the client."""
        connection = SSL.Connection(self._context)
        connection.set_app_data(cause)
        connection.set_accept_state()
        return connection


@implementer(IOpenSSLClientConnectionCreator)
class ClientOptions:
    """Makes the client's side of connections to ``hostname`` (a name or an IP address), which the server must prove.

    ``use`` replaces the context for new connections. ``wording`` names the settings in messages.
    """

    def __init__(self, context: SSL.Context, hostname: str, wording: Wording = PLAIN) -> None:
        self.wording = wording
        self._hostname = hostname
        self._is_address = peers.is_address(hostname)
        self.use(context)

    def use(self, context: SSL.Context) -> None:
        """Use this context for new connections."""
        context.set_verify(_DEMAND, self._verify)
        self._context = context

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """Return the OpenSSL side of a new connection."""
        connection = ClientConnection(self._context)
        connection.set_app_data(tlsProtocol)
        if not self._is_address:
            connection.set_tlsext_host_name(idna.encode(self._hostname, uts46=True))
        return connection

    def _verify(self, connection: SSL.Connection, certificate: X509, error: int, depth: int, trusted: int) -> bool:
        cause: Cause = connection.get_app_data().cause
        if not trusted:
            if peers.is_only_unread(certificate, error):
                return True
            return _refuse(cause, explain_verify_error(certificate, error, depth, self.wording.trusted))
        if depth > 0:
            return True
        try:
            leaf = peers.read(certificate)
            try:
                peers.require_host(leaf, self._hostname)
            except (VerificationError, CertificateError) as mismatch:
                return _refuse(cause, explain_wrong_name(leaf, self._hostname, mismatch))
        except Exception as failure:  # noqa: BLE001 - parsers of strangers' bytes raise errors of all kinds
            return _refuse(cause, unreadable_certificate(failure))
        return True


def _refuse(cause: Cause, verdict: HandshakeFailed) -> bool:
    """Note why the peer's certificate is refused. OpenSSL then sends the peer an alert."""
    cause.verdict = verdict
    return False


def server_context(
    cert_file: Path,
    key_file: Path,
    client_ca_file: Path | None = None,
    protocols: Sequence[bytes] = HTTP,
    *,
    wording: Wording = PLAIN,
) -> SSL.Context:
    """Return the context of a server.

    ``cert_file`` holds the leaf, then the intermediates. With ``client_ca_file`` every client must show a certificate
    that is in this file or chains to one in it. ``protocols`` are offered by ALPN, best first. ``wording`` names the
    files in messages. Raises ConfigError. An expired certificate causes only a warning: clients report it, and a server
    that does not start would not help them.
    """
    context = _context(SSL.TLS_SERVER_METHOD)
    use_certificate(context, wording.cert_file, cert_file, wording.key_file, key_file)
    context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE)
    context.set_alpn_select_callback(partial(_choose, protocols))
    if client_ca_file is not None:
        trust(context, wording.trusted, client_ca_file)
        context.set_verify(_DEMAND, _verify_client)
        # OpenSSL resumes the session of a client with a certificate only within a named context.
        context.set_session_id(b"notary")
    return context


def server_options(
    cert_file: Path,
    key_file: Path,
    client_ca_file: Path | None = None,
    protocols: Sequence[bytes] = HTTP,
    *,
    wording: Wording = PLAIN,
    to_plaintext: ToPlaintext = _silence,
) -> ServerOptions:
    """Return what `listen` needs for TLS; see `server_context` and `ServerOptions`."""
    context = server_context(cert_file, key_file, client_ca_file, protocols, wording=wording)
    return ServerOptions(context, wording, to_plaintext)


def client_context(
    ca_file: Path | None = None,
    cert_file: Path | None = None,
    key_file: Path | None = None,
    protocols: Sequence[bytes] = GRPC,
    *,
    wording: Wording = PLAIN,
) -> SSL.Context:
    """Return the context of a client.

    The client trusts the certificates in ``ca_file`` and no others; without ``ca_file``, those of the system. It shows
    the certificate of ``cert_file`` and ``key_file`` (both or neither). Raises ConfigError.
    """
    context = _context(SSL.TLS_CLIENT_METHOD)
    if cert_file is not None and key_file is not None:
        use_certificate(context, wording.cert_file, cert_file, wording.key_file, key_file)
    context.set_alpn_protos(list(protocols))
    if ca_file is not None:
        trust(context, wording.trusted, ca_file)
    else:
        context.set_default_verify_paths()
    return context


def client_options(
    hostname: str,
    ca_file: Path | None = None,
    cert_file: Path | None = None,
    key_file: Path | None = None,
    protocols: Sequence[bytes] = GRPC,
    *,
    wording: Wording = PLAIN,
) -> ClientOptions:
    """Return the options of a TLS client of ``hostname``, for a `HandshakeFactory`; see `client_context`."""
    return ClientOptions(client_context(ca_file, cert_file, key_file, protocols, wording=wording), hostname, wording)


def _verify_client(connection: SSL.Connection, certificate: X509, error: int, depth: int, trusted: int) -> bool:
    if trusted or peers.is_only_unread(certificate, error):
        return True
    cause: Cause = connection.get_app_data()
    return _refuse(cause, explain_verify_error(certificate, error, depth, cause.wording.trusted))


def _context(method: int) -> SSL.Context:
    context = SSL.Context(method)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(_CIPHERS)
    context.set_tls13_ciphersuites(_SUITES)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)  # sessions resume by ticket; nothing is kept here
    return context


def _choose(ours: Sequence[bytes], connection: SSL.Connection, offered: Sequence[bytes]) -> Any:
    cause: Cause = connection.get_app_data()
    cause.offered = offered
    return next((protocol for protocol in ours if protocol in offered), SSL.NO_OVERLAPPING_PROTOCOLS)
