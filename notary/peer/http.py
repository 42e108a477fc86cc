"""HTTP requests to servers that may be hostile: by treq, on our own TLS rules, with every wait and buffer bounded.

Rules of this module: a body is read up to the limit of its request, and a head up to :data:`MAX_HEAD_BYTES`. A server
that sends too slowly is cut off. No body is inflated, and no cookie is kept. Redirects are followed a few times, never
from HTTPS to HTTP, and an ``Authorization`` goes to the origin that it was meant for, and no other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn, cast
from urllib.parse import urljoin, urlsplit

from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import (
    IConsumer,
    IDelayedCall,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, HTTPConnectionPool, ResponseDone
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IAgent, IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from notary import __version__
from notary.errors import NotaryError, PeerFailed, PeerUnavailable
from notary.net.tls.contexts import HTTP, ClientOptions, client_options
from notary.net.tls.handshake import HandshakeFactory
from notary.net.tls.wording import Wording
from notary.work.reactor import Reactor

MAX_HEAD_BYTES: Final = 1 << 17
MAX_REDIRECTS: Final = 5
MIN_BYTES_PER_SECOND: Final = 1_000
"""A slower body is given up."""
LOOK_SECONDS: Final = 10.0
"""The time over which the rate of a body is measured."""
_IDLE_SECONDS: Final = 60
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_REDIRECT_BODY_BYTES: Final = 1 << 16
_USER_AGENT: Final = f"notary-admin/{__version__}"
_WORDING: Final = Wording("--client-cert", "--client-key", trusted="--ca", client_cert="--client-cert")


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request. ``headers`` has the values of each field, by its name in lower case."""

    status: int
    headers: Mapping[str, Sequence[str]]
    body: bytes = field(repr=False)

    def header(self, name: str) -> str:
        """Return the first value of a field, "" if there is none."""
        return next(iter(self.headers.get(name, ())), "")


@dataclass(frozen=True, slots=True)
class Trust:
    """The files of the client's side of TLS, PEM: trusted certificates (None: those of the system), and its own."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None


def origin(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of a URL. Raises PeerFailed if it is not one of HTTP or HTTPS."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise PeerFailed(f"{url!r} is not a URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise PeerFailed(f"{url!r} is not a URL of http or https")
    return parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80)


class Http:
    """Makes requests, over at most ``connections`` kept connections.

    ``home`` is the URL of the server of the client's certificate: no other server is shown it. If that URL is one of
    HTTPS, no other scheme is spoken. A server has ``timeout`` seconds to begin its answer. ``wording`` names the files
    of ``trust`` in messages. Raises ConfigError.
    """

    def __init__(
        self,
        reactor: Reactor,
        home: str,
        trust: Trust,
        *,
        connections: int,
        timeout: float,
        wording: Wording = _WORDING,
    ) -> None:
        self._reactor = reactor
        self._timeout = timeout
        self._pool = HTTPConnectionPool(cast("Any", reactor))
        self._pool.maxPersistentPerHost = connections
        self._pool.cachedConnectionTimeout = _IDLE_SECONDS
        endpoints = _Endpoints(reactor, home, trust, timeout, wording)
        self._client = HTTPClient(_Plain(Agent.usingEndpointFactory(cast("Any", reactor), endpoints, self._pool)))

    async def request(
        self,
        method: str,
        url: str,
        limit: int,
        *,
        headers: Mapping[str, str] | None = None,
        form: Mapping[str, str] | bytes | None = None,
        follow: bool = True,
    ) -> Answer:
        """Make one request; the body of its answer may have ``limit`` bytes. Redirects of GET are followed, if at all.

        ``form`` is the body of the request: the fields of a form, or bytes.

        Raises PeerUnavailable if the server cannot be reached or is too slow; PeerFailed if the body is too long or a
        redirect leads nowhere.
        """
        sent = dict(headers or {})
        for _ in range(MAX_REDIRECTS + 1):
            answer = await self._once(method, url, limit, sent, form)
            if answer.status not in _REDIRECTS or method != "GET" or not follow:
                return answer
            location = answer.header("location")
            following = urljoin(url, location)
            if origin(url)[0] == "https" and origin(following)[0] != "https":
                raise PeerFailed(f"{url} redirects to plain HTTP ({location[:200]!r}), which is not followed")
            if origin(following) != origin(url):
                sent.pop("Authorization", None)
            url = following
        raise PeerFailed(f"more than {MAX_REDIRECTS} redirects, the last one to {url[:200]!r}")

    async def close(self) -> None:
        """Close the idle connections."""
        await self._pool.closeCachedConnections()

    async def _once(
        self, method: str, url: str, limit: int, headers: Mapping[str, str], form: Mapping[str, str] | bytes | None
    ) -> Answer:
        name = "{}://{}:{}".format(*origin(url))
        try:
            asked = self._client.request(
                method,
                url,
                headers=Headers({"User-Agent": [_USER_AGENT], **{name: [value] for name, value in headers.items()}}),
                data=_Bytes(form) if isinstance(form, bytes) else None if form is None else dict(form),
                allow_redirects=False,
                unbuffered=True,
                reactor=cast("Any", self._reactor),
            )
            response = await asked.addTimeout(self._timeout, cast("Any", self._reactor), self._timed_out)
            fields = {
                field_name.decode("latin-1").lower(): [value.decode("latin-1") for value in values]
                for field_name, values in response.headers.getAllRawHeaders()
            }
            if response.code in _REDIRECTS:
                limit = _REDIRECT_BODY_BYTES
            elif response.code >= 400:  # noqa: PLR2004 - what an error is
                limit = max(limit, _REDIRECT_BODY_BYTES)
            body = _Body(cast("IReactorTime", self._reactor), limit, response.length)
            response.deliverBody(body)
            return Answer(response.code, fields, await body.done)
        except NotaryError as error:
            raise type(error)(f"{name}: {error}") from None
        except Exception as error:  # noqa: BLE001 - Twisted and OpenSSL have many; all mean that there is no answer
            cause = _cause(error)
            if isinstance(cause, NotaryError):
                raise cause from None
            if isinstance(cause, CancelledError):
                raise cause from None
            raise PeerUnavailable(f"{name}: {str(cause) or type(cause).__name__}") from None

    def _timed_out(self, _result: object, seconds: float) -> NoReturn:
        raise PeerUnavailable(f"no answer within {seconds:g} seconds")


def _cause(error: BaseException) -> BaseException:
    """Return the innermost of the causes that Twisted keeps inside errors of its own."""
    while reasons := getattr(error, "reasons", None):
        inner = reasons[-1].value if isinstance(reasons[-1], Failure) else reasons[-1]
        if not isinstance(inner, BaseException):
            break
        error = inner
    return error


class _Body(Protocol):
    """Collects a body of at most ``limit`` bytes, and gives it up if it comes too slowly.

    ``done`` fires with the bytes, or fails with PeerFailed or PeerUnavailable. Cancelling it ends the connection.
    """

    def __init__(self, clock: IReactorTime, limit: int, announced: Any) -> None:
        self.done: Deferred[bytes] = Deferred(lambda _: self._abort())
        self._clock = clock
        self._limit = limit
        self._announced = announced
        self._chunks: list[bytes] = []
        self._size = 0
        self._seen = 0
        self._look: IDelayedCall | None = None

    def connectionMade(self) -> None:
        """Begin to measure."""
        if self._announced is not UNKNOWN_LENGTH and self._announced > self._limit:
            self._give_up(PeerFailed(f"the answer has {self._announced} bytes; at most {self._limit} are read"))
            return
        self._look = self._clock.callLater(LOOK_SECONDS, self._measure)

    def dataReceived(self, data: bytes) -> None:
        """Keep what has come."""
        self._size += len(data)
        if self._size > self._limit:
            self._give_up(PeerFailed(f"the answer has more than {self._limit} bytes, which is all that is read"))
        elif not self.done.called:
            self._chunks.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """End: with the body if it is complete."""
        self._stop()
        if self.done.called:
            return
        if reason.check(ResponseDone):
            self.done.callback(b"".join(self._chunks))
        else:
            self.done.errback(PeerUnavailable("the connection was lost before the end of the answer"))

    def _measure(self) -> None:
        self._look = None
        if self._size - self._seen < MIN_BYTES_PER_SECOND * LOOK_SECONDS:
            self._give_up(PeerUnavailable(f"the answer comes at less than {MIN_BYTES_PER_SECOND} bytes a second"))
            return
        self._seen = self._size
        self._look = self._clock.callLater(LOOK_SECONDS, self._measure)

    def _give_up(self, error: NotaryError) -> None:
        self._abort()
        if not self.done.called:
            self.done.errback(error)

    def _abort(self) -> None:
        self._stop()
        self._chunks.clear()
        if self.transport is not None:
            self.transport.loseConnection()

    def _stop(self) -> None:
        if self._look is not None and self._look.active():
            self._look.cancel()
        self._look = None


@implementer(IBodyProducer)
class _Bytes:
    """The body of a request, written at once: treq's own would need the reactor that is installed."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.length = len(data)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """See IBodyProducer."""
        consumer.write(self._data)
        return succeed(None)

    def pauseProducing(self) -> None:
        """See IBodyProducer: all is written."""

    def resumeProducing(self) -> None:
        """See IBodyProducer: all is written."""

    def stopProducing(self) -> None:
        """See IBodyProducer: all is written."""


@implementer(IAgent)
class _Plain:
    """Asks for bodies as they are, refuses others, and drops cookies: both would let a server fill the memory."""

    def __init__(self, agent: IAgent) -> None:
        self._agent = agent

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        """See IAgent."""
        sent = Headers() if headers is None else headers.copy()
        sent.setRawHeaders(b"Accept-Encoding", [b"identity"])
        sent.removeHeader(b"Cookie")
        return self._agent.request(method, uri, sent, bodyProducer).addCallback(self._check)

    @staticmethod
    def _check(response: IResponse) -> IResponse:
        response.headers.removeHeader(b"Set-Cookie")
        codings = response.headers.getRawHeaders(b"Content-Encoding", [])
        if [coding for coding in codings if coding.strip().lower() != b"identity"]:
            response.deliverBody(_Abort())
            raise PeerFailed("the answer is compressed although the request does not allow that")
        return response


class _Abort(Protocol):
    """Ends the connection of a response that nobody reads."""

    def connectionMade(self) -> None:
        """End the connection."""
        if self.transport is not None:
            self.transport.loseConnection()


# -- connections ------------------------------------------------------------------------------------------------------


class _Guard(ProtocolWrapper):
    """A connection that is ended when the head of an answer is too long, and at once when it is ended.

    Twisted stops reading when it has the head of a response, until somebody takes the body.
    """

    _in_head = True
    _head_bytes = 0

    def write(self, data: bytes) -> None:
        """Send a request, or a part of one."""
        self._in_head = True
        self._head_bytes = 0
        super().write(data)

    def writeSequence(self, data: Any) -> None:
        """See ITransport."""
        self.write(b"".join(data))

    def pauseProducing(self) -> None:
        """Stop reading: the head of the answer is there."""
        self._in_head = False
        cast("Any", self.transport).pauseProducing()

    def dataReceived(self, data: bytes) -> None:
        """Pass data on."""
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                cast("Any", self.transport).abortConnection()
                return
        super().dataReceived(data)

    def loseConnection(self) -> None:
        """End the connection without waiting for the server, which may be hostile."""
        cast("Any", self.transport).abortConnection()


class _Guarding(WrappingFactory):
    protocol = _Guard
    noisy = False


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """Makes the endpoints of requests, with TLS contexts of our own for HTTPS."""

    def __init__(self, reactor: Reactor, home: str, trust: Trust, timeout: float, wording: Wording) -> None:
        self._reactor = reactor
        self._wording = wording
        self._home = origin(home)
        self._trust = trust
        self._timeout = timeout
        self._options: dict[tuple[str, int], ClientOptions] = {}
        if self._home[0] == "https":
            self._creator(*self._home[1:])  # files that cannot be used are found now

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """See IAgentEndpointFactory."""
        scheme, host, port = origin(uri.toBytes().decode("ascii"))
        endpoint = HostnameEndpoint(self._reactor, host, port, timeout=self._timeout)
        if scheme == "https":
            return _Endpoint(endpoint, self._reactor, self._creator(host, port))
        if self._home[0] == "https":
            raise PeerFailed(f"{scheme}://{host}:{port} is plain HTTP, to which a server of HTTPS may not lead")
        return _Endpoint(endpoint, self._reactor, None)

    def _creator(self, host: str, port: int) -> ClientOptions:
        known = self._options.get((host, port))
        if known is not None:
            return known
        at_home = (host, port) == self._home[1:]
        made = client_options(
            host,
            self._trust.ca_file,
            self._trust.cert_file if at_home else None,
            self._trust.key_file if at_home else None,
            HTTP,
            wording=self._wording,
        )
        if len(self._options) < MAX_REDIRECTS:  # else a hostile server could have us keep any number
            self._options[host, port] = made
        return made


@implementer(IStreamClientEndpoint)
class _Endpoint:
    """Connects to a server, with TLS if there is a ``creator``; the innermost protocol is returned."""

    def __init__(self, inner: IStreamClientEndpoint, reactor: Reactor, creator: ClientOptions | None) -> None:
        self._inner = inner
        self._reactor = reactor
        self._creator = creator

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """See IStreamClientEndpoint."""
        factory: Any = _Guarding(cast("Any", protocolFactory))
        if self._creator is not None:
            factory = HandshakeFactory(self._creator, factory, cast("IReactorTime", self._reactor))
        layers = 1 if self._creator is None else 2

        def innermost(protocol: Any) -> IProtocol:
            for _ in range(layers):
                protocol = protocol.wrappedProtocol
            return cast("IProtocol", protocol)

        return self._inner.connect(factory).addCallback(innermost)
