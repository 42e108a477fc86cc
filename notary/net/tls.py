"""TLS contexts from files, and listening ports.

Rules of this module: a file that is named but cannot be used is a ConfigError that names its key, the file and the
cause, never a weaker connection; files are read when a context is built, before anything listens; TLS 1.2 is the
oldest version spoken, with forward secrecy and authenticated encryption only; every certificate of a bundle is a trust
anchor, leaf and intermediate included, as in Go, where OpenSSL by itself wants a self-signed root; a client trusts the
bundle it was given and nothing else.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

import idna
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.bindings.openssl.binding import Binding
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from OpenSSL import SSL
from OpenSSL.crypto import X509, X509StoreFlags
from OpenSSL.crypto import Error as CryptoError
from service_identity.cryptography import verify_certificate_hostname, verify_certificate_ip_address
from service_identity.exceptions import CertificateError, VerificationError
from twisted.internet import unix
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import (
    IListeningPort,
    IOpenSSLClientConnectionCreator,
    IProtocolFactory,
)
from twisted.internet.posixbase import PosixReactorBase
from twisted.internet.task import deferLater
from twisted.internet.tcp import Port, Server
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from notary import certs
from notary.errors import ConfigError, InvalidCertificate
from notary.net.handshake import Cause, HandshakeFailed, OnRefused, judge, judge_name, unreadable
from notary.net.transport import PlainServer, PlainUnixServer, SecureServer, SecureUnixServer, no_delay

_log = Logger()
_lib: Final = Binding.lib

HTTP: Final = (b"http/1.1",)
"""The protocols (ALPN) of HTTPS."""
GRPC: Final = (b"h2",)
"""The protocols (ALPN) of gRPC."""
_CIPHERS: Final = b"ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL"
_SUITES: Final = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
"""Of TLS 1.3: all of OpenSSL's, the cheapest handshake first, as in Go."""
_DEMAND: Final = SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT
_BACKLOG: Final = 1024
_ACCEPTS_A_TURN: Final = 16  # connections that a port which stops accepts in a turn of the reactor
_NO_IPV6: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})

_Key: TypeAlias = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


class ServerOptions:
    """Makes the server's side of connections.

    ``use`` replaces the context: the connections that are made from then on use the new one.
    """

    def __init__(self, context: SSL.Context) -> None:
        self.use(context)

    def use(self, context: SSL.Context) -> None:
        """Make connections with this context from now on."""
        self._context = context

    def connection(self, cause: Cause) -> SSL.Connection:
        """Return the OpenSSL side of a new connection, which notes in ``cause`` what is wrong with the client."""
        connection = SSL.Connection(self._context)
        connection.set_app_data(cause)
        connection.set_accept_state()
        return connection


class _Connection(SSL.Connection):
    """One for Twisted's TLS: empties OpenSSL's queue of errors before each call (see :mod:`notary.net.transport`)."""

    def send(self, buf: Any, flags: int = 0) -> int:
        """Encrypt."""
        _lib.ERR_clear_error()
        return super().send(buf, flags)

    def recv(self, bufsiz: int, flags: int | None = None) -> bytes:
        """Decrypt."""
        _lib.ERR_clear_error()
        return super().recv(bufsiz, flags)

    def do_handshake(self) -> None:
        """Go on with the handshake."""
        _lib.ERR_clear_error()
        super().do_handshake()

    def shutdown(self) -> bool:
        """Say goodbye."""
        _lib.ERR_clear_error()
        return super().shutdown()


@implementer(IOpenSSLClientConnectionCreator)
class ClientOptions:
    """Makes the client's side of connections to ``hostname`` (a name or an IP address), which the server must prove.

    ``use`` replaces the context: the connections that are made from then on use the new one.
    """

    def __init__(self, context: SSL.Context, hostname: str, trusted_by: str = "trust_service.tls_ca_file") -> None:
        self.trusted_by = trusted_by
        self._hostname = hostname
        self._is_address = _is_address(hostname)
        self.use(context)

    def use(self, context: SSL.Context) -> None:
        """Make connections with this context from now on."""
        context.set_verify(_DEMAND, self._verify)
        self._context = context

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """Return the OpenSSL side of a new connection."""
        connection = _Connection(self._context)
        connection.set_app_data(tlsProtocol)
        if not self._is_address:
            connection.set_tlsext_host_name(idna.encode(self._hostname, uts46=True))
        return connection

    def _verify(self, connection: SSL.Connection, certificate: X509, error: int, depth: int, trusted: int) -> bool:
        cause: Cause = connection.get_app_data().cause
        if not trusted:
            return _refuse(cause, judge(certificate, error, depth, self.trusted_by))
        if depth > 0:
            return True
        try:
            leaf = certificate.to_cryptography()
            try:
                if self._is_address:
                    verify_certificate_ip_address(leaf, self._hostname)
                else:
                    verify_certificate_hostname(leaf, self._hostname)
            except (VerificationError, CertificateError) as unlike:
                return _refuse(cause, judge_name(leaf, self._hostname, unlike))
        except Exception as strange:  # noqa: BLE001 - parsers of strangers' bytes raise what they like
            return _refuse(cause, unreadable(strange))
        return True


def _refuse(cause: Cause, verdict: HandshakeFailed) -> bool:
    """Note what is wrong with the peer's certificate; OpenSSL then tells the peer by an alert that it is refused."""
    cause.verdict = verdict
    return False


def server_context(
    cert_file: Path,
    key_file: Path,
    client_ca_file: Path | None = None,
    protocols: Sequence[bytes] = HTTP,
    *,
    section: str = "server",
) -> SSL.Context:
    """Return the context of a server.

    ``cert_file`` holds the leaf, then the intermediates; with ``client_ca_file`` every client must show a certificate
    that is, or chains to, one in it. ``protocols`` are offered by ALPN, best first. ``section`` is where the
    configuration names the files, for messages. Raises ConfigError. An expired certificate is only warned about: a
    server that does not start helps nobody, and its clients will say so.
    """
    context = _context(SSL.TLS_SERVER_METHOD)
    _use_certificate(context, f"{section}.tls_cert_file", cert_file, f"{section}.tls_key_file", key_file)
    context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE)
    context.set_alpn_select_callback(lambda _, offered: _choose(protocols, offered))
    if client_ca_file is not None:
        _trust(context, f"{section}.client_ca_file", client_ca_file)
        context.set_verify(_DEMAND, partial(_verify_client, f"{section}.client_ca_file"))
        # OpenSSL resumes the session of a client with a certificate only within a named context.
        context.set_session_id(b"notary")
    return context


def server_options(
    cert_file: Path,
    key_file: Path,
    client_ca_file: Path | None = None,
    protocols: Sequence[bytes] = HTTP,
    *,
    section: str = "server",
) -> ServerOptions:
    """Return what `listen` needs for TLS; see `server_context`."""
    return ServerOptions(server_context(cert_file, key_file, client_ca_file, protocols, section=section))


def client_context(
    ca_file: Path | None = None,
    cert_file: Path | None = None,
    key_file: Path | None = None,
    protocols: Sequence[bytes] = GRPC,
    *,
    section: str = "trust_service",
) -> SSL.Context:
    """Return the context of a client.

    Trusted are the certificates in ``ca_file`` and no other; without it, those of the system. ``cert_file`` and
    ``key_file`` (both or neither) are what the client shows. Raises ConfigError.
    """
    context = _context(SSL.TLS_CLIENT_METHOD)
    if cert_file is not None and key_file is not None:
        _use_certificate(context, f"{section}.tls_client_cert", cert_file, f"{section}.tls_client_key", key_file)
    context.set_alpn_protos(list(protocols))
    if ca_file is not None:
        _trust(context, f"{section}.tls_ca_file", ca_file)
    else:
        context.set_default_verify_paths()
    return context


def client_options(
    hostname: str,
    ca_file: Path | None = None,
    cert_file: Path | None = None,
    key_file: Path | None = None,
    protocols: Sequence[bytes] = GRPC,
) -> ClientOptions:
    """Return the options of a TLS client of ``hostname``, for a `HandshakeFactory`; see `client_context`."""
    return ClientOptions(client_context(ca_file, cert_file, key_file, protocols), hostname)


def _verify_client(
    trusted_by: str, connection: SSL.Connection, certificate: X509, error: int, depth: int, trusted: int
) -> bool:
    return bool(trusted) or _refuse(connection.get_app_data(), judge(certificate, error, depth, trusted_by))


def _context(method: int) -> SSL.Context:
    context = SSL.Context(method)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(_CIPHERS)
    context.set_tls13_ciphersuites(_SUITES)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)  # sessions resume by ticket; nothing is kept here
    return context


def _choose(ours: Sequence[bytes], offered: Sequence[bytes]) -> Any:
    return next((protocol for protocol in ours if protocol in offered), SSL.NO_OVERLAPPING_PROTOCOLS)


# -- files ------------------------------------------------------------------------------------------------------------


def _use_certificate(context: SSL.Context, cert_name: str, cert_file: Path, key_name: str, key_file: Path) -> None:
    certificates = _certificates(cert_name, cert_file)
    leaf = certificates[0]
    key = _private_key(key_name, key_file)
    if _public_of(leaf, cert_name, cert_file) != _public_bytes(key.public_key()):
        raise ConfigError(
            f'{key_name}: "{key_file}" is not the key of the first certificate in "{cert_file}"; '
            f"expected a pair, and the leaf before the intermediates"
        )
    try:
        context.use_certificate(leaf)
        context.use_privatekey(key)
        for intermediate in certificates[1:]:
            context.add_extra_chain_cert(intermediate)
    except (SSL.Error, CryptoError) as error:
        raise ConfigError(f'{cert_name}: "{cert_file}" is refused by OpenSSL ({_reason(error)})') from None
    _warn_of_dates(cert_name, cert_file, certificates)


def _trust(context: SSL.Context, name: str, path: Path) -> None:
    """Make every certificate in a file, and nothing else, a trust anchor of the context."""
    certificates = _certificates(name, path)
    store = context.get_cert_store()
    assert store is not None  # noqa: S101 - a context that was just made has one
    try:
        with certs.reading():
            for certificate in certificates:
                store.add_cert(X509.from_cryptography(certificate))
    except InvalidCertificate:
        raise ConfigError(f'{name}: "{path}" holds a malformed certificate; expected certificates as PEM') from None
    store.set_flags(X509StoreFlags.PARTIAL_CHAIN)
    _warn_of_dates(name, path, certificates)


def _read(name: str, path: Path, expected: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f'{name}: "{path}" cannot be read ({error.strerror}); expected {expected}') from None


def _certificates(name: str, path: Path) -> list[x509.Certificate]:
    expected = "a file of certificates as PEM"
    data = _read(name, path, expected)
    try:
        return list(certs.all_in_pem(data))
    except InvalidCertificate:
        cause = "holds a malformed certificate" if b"-----BEGIN CERTIFICATE-----" in data else "holds no certificate"
        raise ConfigError(f'{name}: "{path}" {cause}; expected {expected}') from None


def _private_key(name: str, path: Path) -> _Key:
    expected = "a private key (RSA, ECDSA or Ed25519) as PEM, without a passphrase"
    data = _read(name, path, expected)
    try:
        key = load_pem_private_key(data, None)
    except TypeError:
        raise ConfigError(f'{name}: "{path}" is encrypted; expected {expected}') from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f'{name}: "{path}" holds no usable private key; expected {expected}') from None
    if not isinstance(key, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey)):
        raise ConfigError(f'{name}: "{path}" holds a key of another kind; expected {expected}')
    return key


def _public_of(leaf: x509.Certificate, name: str, path: Path) -> bytes:
    try:
        with certs.reading():
            return _public_bytes(leaf.public_key())
    except InvalidCertificate:
        raise ConfigError(
            f'{name}: "{path}" begins with a certificate whose key cannot be read; expected RSA, ECDSA or Ed25519'
        ) from None


def _public_bytes(key: Any) -> bytes:
    encoded: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encoded


def _warn_of_dates(name: str, path: Path, certificates: Sequence[x509.Certificate]) -> None:
    now = datetime.now(UTC)
    for certificate in certificates:
        subject = certs.subject_of(certificate)
        if certificate.not_valid_after_utc <= now:
            when = certificate.not_valid_after_utc.isoformat()
            _log.warn(
                "{key}: the certificate of {subject} in {path} EXPIRED at {when}; peers will refuse it",
                key=name,
                subject=subject,
                path=str(path),
                when=when,
            )
        elif certificate.not_valid_before_utc > now:
            when = certificate.not_valid_before_utc.isoformat()
            _log.warn(
                "{key}: the certificate of {subject} in {path} is not valid before {when}; peers will refuse it",
                key=name,
                subject=subject,
                path=str(path),
                when=when,
            )


def _reason(error: SSL.Error | CryptoError) -> str:
    reasons = [entry[2] for entry in error.args[0] if entry[2]] if error.args else []
    return "; ".join(reasons) or "unknown cause"


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


# -- listening --------------------------------------------------------------------------------------------------------


class _AcceptsAll(Port):
    """A port that accepts the connections in its queue before it closes: closed with the socket, they would be reset.

    A port that does not read (the parent of workers has one) leaves the queue to the others that share the socket.
    """

    def stopListening(self) -> Deferred[None]:  # type: ignore[override]
        """Accept what waits, a few connections in a turn of the reactor, then close."""
        return Deferred.fromCoroutine(self._accept_and_close())

    async def _accept_and_close(self) -> None:
        clock: Any = self.reactor
        readers: list[Any] = clock.getReaders()
        if self in readers:
            self.stopReading()
            for _ in range(_BACKLOG // _ACCEPTS_A_TURN):
                self.numberAccepts = _ACCEPTS_A_TURN
                super().doRead()
                if self.numberAccepts <= _ACCEPTS_A_TURN:  # doRead raises it if there were as many
                    break
                await deferLater(clock, 0)
        await maybeDeferred(self.loseConnection)


class _Port(_AcceptsAll):
    """A port whose connections write at once; "::" takes IPv4 too, whatever the system's default is."""

    def createInternetSocket(self) -> socket.socket:
        """Return the socket that will be bound."""
        made: socket.socket = super().createInternetSocket()
        if self.interface == "::":
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        no_delay(made)
        return made

    def doRead(self) -> None:
        """Accept one connection: other workers that wait for one shall have the next, while this one is greeted."""
        self.numberAccepts = 1
        super().doRead()


class _UnixPort(_AcceptsAll, unix.Port):
    """A port of the Unix domain that was passed: its file belongs to whoever passed it, and stays."""

    def connectionLost(self, reason: Failure) -> None:
        """Close the port."""
        Port.connectionLost(self, reason)


def listen(
    reactor: Any,
    host: str,
    port: int,
    factory: IProtocolFactory,
    tls: ServerOptions | None = None,
    on_refused: OnRefused | None = None,
) -> Deferred[IListeningPort]:
    """Listen on ``host`` and ``port``; connections speak TLS if ``tls`` is given; ``on_refused`` hears of failures.

    ``host`` is an IP address, a name, or "" for every interface, IPv6 and IPv4 (IPv4 alone where there is no IPv6);
    ``port`` 0 means any. Fails with CannotListenError.
    """
    return maybeDeferred(_listen, reactor, host, port, factory, _transport(PlainServer, SecureServer, tls, on_refused))


def adopt(
    reactor: Any,
    listening: socket.socket,
    factory: IProtocolFactory,
    tls: ServerOptions | None = None,
    on_refused: OnRefused | None = None,
) -> IListeningPort:
    """Serve a socket that listens already, of TCP or of the Unix domain; otherwise as `listen`.

    The port has a descriptor of its own: ``listening`` stays open, and listening, when the port stops.
    """
    number, family = listening.fileno(), listening.family
    # As reactor.adoptStreamPort does, which makes ports of the stock kinds only.
    port: Any
    if family == socket.AF_UNIX:
        port = _UnixPort._fromListeningDescriptor(reactor, number, factory)  # noqa: SLF001
        port.transport = _transport(PlainUnixServer, SecureUnixServer, tls, on_refused)
    else:
        port = _Port._fromListeningDescriptor(reactor, number, family, factory)  # noqa: SLF001
        port.transport = _transport(PlainServer, SecureServer, tls, on_refused)
    no_delay(listening)
    listening.setblocking(False)  # of several that share it and are told of a connection, one gets it
    port.startListening()
    return cast("IListeningPort", port)


def _transport(
    plain: type[PlainServer], secure: type[SecureServer], tls: ServerOptions | None, on_refused: OnRefused | None
) -> Callable[..., Server]:
    """Return what makes the connections of a port."""
    return plain if tls is None else partial(secure, tls, on_refused)


def _listen(
    reactor: Any, host: str, port: int, factory: IProtocolFactory, transport: Callable[..., Server]
) -> IListeningPort:
    if host:
        return _bind(reactor, _resolve(host, port), port, factory, transport)
    try:
        return _bind(reactor, "::", port, factory, transport)
    except CannotListenError as error:
        if error.socketError.errno not in _NO_IPV6:
            raise
        return _bind(reactor, "0.0.0.0", port, factory, transport)  # noqa: S104 - what "every interface" means


def _bind(
    reactor: Any, interface: str, port: int, factory: IProtocolFactory, transport: Callable[..., Server]
) -> IListeningPort:
    if not isinstance(reactor, PosixReactorBase):
        if transport is not PlainServer:
            raise TypeError("TLS is there for the reactors of POSIX only")
        listening: IListeningPort = reactor.listenTCP(port, factory, _BACKLOG, interface)
        return listening
    bound: Any = _Port(port, factory, _BACKLOG, interface, reactor)
    bound.transport = transport
    bound.startListening()
    return cast("IListeningPort", bound)


def _resolve(host: str, port: int) -> str:
    """Return one address of a host, IPv4 if it has one, as Go does."""
    if _is_address(host):
        return host
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise CannotListenError(host, port, error) from None
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    return str(found[0][4][0])
