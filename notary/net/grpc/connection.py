"""What the two sides of an HTTP/2 connection share: h2 and its bounds, batched writes, flow control, PING, closing.

Rules of this module:

- All frames of one reactor turn leave in one write: with TLS, one read of the socket is many records.
- h2 neither validates nor normalises headers: ours are correct by construction, and ``frames`` checks those of the peer
  in the one pass that reads them.
- A peer that breaks a rule, or causes work for nothing, gets a GOAWAY with the reason, and its connection is closed. A
  connection that the peer keeps open after that is aborted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeAlias

from h2.config import H2Configuration
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IDelayedCall, IHandshakeListener, IReactorTime, ISSLTransport, ITCPTransport
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from notary.net.grpc.fast import FastDecoder, Fields, Request, answer
from notary.net.grpc.frames import LARGEST_FRAME, TINY_FRAME, Budget, Scanner, Violation
from notary.net.grpc.http2 import Http2
from notary.net.refusals import HandshakeFailed
from notary.net.tcp import ReadListener

_WINDOW_BYTES: Final = 1 << 20  # receive window of a connection
_INITIAL_WINDOW_BYTES: Final = 65_535  # of every connection (RFC 9113, section 6.9.2)
_CONTROLS_PER_CALL: Final = 8  # control frames that a well-behaved peer may need for one call: PING, WINDOW_UPDATE
_SLICE_BYTES: Final = 16_384  # h2 gets so much at a time; then its cost is charged
_STREAMS_PER_CONTROL: Final = 50  # streams that h2 walks over for one setting, at the price of one control frame
_CALL_EVENTS: Final = frozenset({RequestReceived, ResponseReceived, TrailersReceived, StreamEnded})
Headers: TypeAlias = list[tuple[bytes, bytes]]

_PING: Final = b"notary.."


@dataclass(frozen=True, slots=True)
class GrpcLimits:
    """The limits of a connection. Sizes are in bytes; times are in seconds and exact to one second.

    ``message`` bounds one message, ``buffered`` the messages of all open calls of a connection, ``all_buffered`` those
    of all connections of a server, and ``headers`` a header list. ``streams`` is the number of calls that a connection
    may have open. ``resets`` bounds the calls that a peer cancels in a burst, ``controls`` the frames without content
    that it sends in a burst; ``resets_per_second`` and ``controls_per_second`` are the long-term rates. The first
    HTTP/2 frames must arrive within ``handshake`` seconds, a request must be complete within ``request``, and the peer
    must read an answer within ``answer``. After ``keepalive`` seconds without a byte the peer gets a PING, which it
    must answer within ``keepalive_answer``. A connection that we closed is aborted after ``linger``.
    """

    message: int = 4 * 1024 * 1024
    buffered: int = 64 * 1024 * 1024
    all_buffered: int = 256 * 1024 * 1024
    headers: int = 16 * 1024
    streams: int = 1000
    resets: int = 1000
    resets_per_second: float = 100.0
    controls: int = 2000
    controls_per_second: float = 100.0
    handshake: float = 10.0
    request: float = 60.0
    answer: float = 60.0
    keepalive: float = 120.0
    keepalive_answer: float = 20.0
    linger: float = 3.0


class Outgoing:
    """The unsent rest of a message, which waits for the peer's window, and the trailers that follow, if any."""

    __slots__ = ("body", "trailers")

    def __init__(self, body: bytes, trailers: Headers | None) -> None:
        self.body = memoryview(body)
        self.trailers = trailers


@implementer(IHandshakeListener)
class Http2Connection(ReadListener):
    """One side of a connection. A subclass is the client's or the server's side and handles the events of streams."""

    client_side: ClassVar[bool]
    on_event: ClassVar[dict[type[Event], Callable[[Any, Any], None]]]
    """A handler for each kind of event. h2 itself handles the kinds that are not here."""

    def __init__(self, clock: IReactorTime, limits: GrpcLimits) -> None:
        self.clock = clock
        self.limits = limits
        now = clock.seconds()
        self.created_at = now
        self.last_received_at = now
        self.ping_sent_at: float | None = None  # None if no PING waits for its answer
        self.closing_since: float | None = None
        self.peer_spoke_http2 = False
        self.end_reason = ""
        self._decoder: FastDecoder[Any] = FastDecoder(self.meaning)
        self._h2 = self._make_h2()
        self._scanner = Scanner(preface=not self.client_side, headers=limits.headers)
        self._controls = Budget(limits.controls, limits.controls_per_second, now)
        self._resets = Budget(limits.resets, limits.resets_per_second, now)
        self._consumed = 0  # bytes received since the last update of the connection's receive window
        self._outgoing: dict[int, Outgoing] = {}
        self._blocked: OrderedDict[int, None] = (
            OrderedDict()
        )  # the streams of _outgoing that wait for the connection's window
        self._written: list[bytes] = []  # frames of the fast path, which h2 does not know
        self._flushing: IDelayedCall | None = None

    def _make_h2(self) -> Http2:
        limits = self.limits
        made = Http2(
            H2Configuration(
                client_side=self.client_side,
                header_encoding=False,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
                validate_inbound_headers=False,
                normalize_inbound_headers=False,
            )
        )
        made.decoder = self._decoder
        made.decoder.max_header_list_size = limits.headers
        self._own = {
            SettingCodes.ENABLE_PUSH: 0,
            SettingCodes.INITIAL_WINDOW_SIZE: limits.message + LARGEST_FRAME,
            SettingCodes.MAX_CONCURRENT_STREAMS: limits.streams,
            SettingCodes.MAX_HEADER_LIST_SIZE: limits.headers,
        }
        made.local_settings = Settings(client=self.client_side, initial_values=self._own)
        return made

    # -- for subclasses -----------------------------------------------------------------------------------------------

    def meaning(self, fields: Fields) -> object:
        """Return the meaning of a header block for the fast path; None sends calls with it through the full path."""

    def going_away(self, last_stream: int, code: int, debug: bytes) -> None:
        """Handle a GOAWAY: the peer serves no stream above ``last_stream``."""

    def end_streams(self, reason: str) -> None:
        """The connection is over: fail or cancel every open stream."""

    def lost(self, *, quiet: bool) -> None:
        """The transport is closed. ``quiet`` is True if the peer just closed it, or if TLS has reported the cause."""

    def sent(self, stream: int) -> None:
        """The last bytes of a message that had to wait are sent."""

    # -- the transport ------------------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        """Begin, with TLS only after its handshake."""
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        if not ISSLTransport.providedBy(self.transport):
            self.begin()

    def begin(self) -> None:
        """Send the preface and the settings."""
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_WINDOW_BYTES - _INITIAL_WINDOW_BYTES)
        # The peer is told the real limit. We enforce it by a reset of the one stream; h2 would end the connection,
        # although a client may open streams before it has read our settings.
        self._h2.local_settings = Settings(
            client=self.client_side,
            initial_values={**self._own, SettingCodes.MAX_CONCURRENT_STREAMS: (1 << 31) - 1},
        )
        self.flush()

    def handshakeCompleted(self) -> None:
        """Begin after TLS's handshake, which must have negotiated HTTP/2."""
        protocol = getattr(self.transport, "negotiatedProtocol", None)
        if protocol != b"h2":
            chosen = "nothing" if protocol is None else f'"{protocol.decode("ascii", "replace")}"'
            self.close(f"TLS (ALPN) negotiated {chosen} and not h2: the peer speaks no gRPC; the port may be another's")
        else:
            self.begin()

    def dataReceived(self, data: bytes) -> None:
        """Process received bytes."""
        if self.closing_since is not None:
            return
        self.last_received_at = self.clock.seconds()
        self.ping_sent_at = None
        try:
            self.receive(data)
        except Violation as violation:
            self.fail(violation.code, str(violation))
        except ProtocolError as error:
            self.fail(error.error_code, str(error))
        else:
            self.flush_soon()

    def receive(self, data: bytes) -> None:
        """Pass received bytes to h2 and handle the events. Raises Violation, ProtocolError."""
        for begin in range(0, len(data), _SLICE_BYTES):
            events = self._h2.receive_data(self._scan(data[begin : begin + _SLICE_BYTES]))
            self._charge_for_claims(events)
            self._dispatch(events)
            if self.closing_since is not None:
                return

    def readEnded(self) -> None:
        """Flush at the end of one read of the socket."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        if self.closing_since is None:
            self.flush()

    def _scan(self, data: bytes) -> bytes:
        scanner = self._scanner
        data = scanner.feed(data)
        if scanner.controls or scanner.settings:
            walked = len(self._h2.streams) + scanner.claims
            self._spend_controls(scanner.controls + scanner.settings * (1 + walked // _STREAMS_PER_CONTROL))
            scanner.controls = scanner.settings = 0
        if scanner.resets:
            self.spend_resets(scanner.resets)
            scanner.resets = 0
        return data

    def _charge_for_claims(self, events: list[Event]) -> None:
        """Charge for frames that neither begin nor end a call, such as frames of a closed stream and repeated ones."""
        claims, self._scanner.claims = self._scanner.claims, 0
        if claims:
            wasted = claims - sum([type(event) in _CALL_EVENTS for event in events])
            if wasted > 0:
                self._spend_controls(wasted)

    def _spend_controls(self, count: int) -> None:
        """Charge for control frames and others without content. Raises Violation."""
        if not self._controls.spend(count, self.last_received_at):
            raise Violation(ErrorCodes.ENHANCE_YOUR_CALM, "too many frames that carry nothing")

    def spend_resets(self, count: int) -> None:
        """Charge for streams that the peer opened for nothing. Raises Violation."""
        if not self._resets.spend(count, self.last_received_at):
            raise Violation(ErrorCodes.ENHANCE_YOUR_CALM, "too many streams that end in a reset")

    def _dispatch(self, events: list[Event]) -> None:
        on_event = self.on_event
        for event in events:
            handle = on_event.get(type(event))
            if handle is not None:
                handle(self, event)
                if self.closing_since is not None:
                    return
        if self._scanner.goaways:
            goaways, self._scanner.goaways = self._scanner.goaways, []
            for goaway in goaways:
                self.going_away(*goaway)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """End all streams and tell the subclass."""
        quiet = not self.end_reason and isinstance(reason.value, (ConnectionDone, ConnectionLost, HandshakeFailed))
        self._end(describe(reason))
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        self.lost(quiet=quiet)

    def _end(self, reason: str) -> None:
        """End all streams, once."""
        if self.closing_since is None:
            self.closing_since = self.clock.seconds()
            self.end_reason = self.end_reason or reason
            self._outgoing.clear()
            self._blocked.clear()
            self.end_streams(self.end_reason)

    # -- sending ------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write all queued frames to the transport."""
        data = self._h2.data_to_send()
        if self._written:
            data += b"".join(self._written)
            self._written.clear()
        if data and self.transport is not None:
            self.transport.write(data)

    def flush_soon(self) -> None:
        """Schedule a flush at the end of this read, or in the next reactor turn."""
        if self._flushing is None and self.closing_since is None and not self.reading:
            self._flushing = self.clock.callLater(0, self._flush_now)

    def _flush_now(self) -> None:
        self._flushing = None
        self.flush()

    def send_answer(self, stream: int, body: bytes, head: Headers, trailers: Headers) -> bool:
        """Send an answer: its head, a packed message, its trailers. Returns True if all of it is sent.

        An answer that fits into one frame is written without h2, which then forgets the stream: half the cost.
        """
        h2 = self._h2
        size = len(body)
        open_stream = h2.streams[stream]
        window = min(h2.outbound_flow_control_window, open_stream.outbound_flow_control_window)
        if size <= LARGEST_FRAME and size <= window and not h2.encoder.header_table.resized:
            del h2.streams[stream]
            h2.outbound_flow_control_window -= size
            self._written.append(answer(stream, body))
            return True
        h2.send_headers(stream, head)
        return self.send_message(stream, body, trailers)

    def send_fast(self, request: Request[Any], body: bytes) -> bool:
        """Send a packed message as the answer to a request that h2 has not seen. Returns False if that is not possible.

        h2 learns only that the stream is over, and the state of the connection's windows.
        """
        h2 = self._h2
        size = len(body)
        window = h2.outbound_flow_control_window + request.connection_increment
        stream_window = h2.remote_settings.initial_window_size + request.stream_increment
        if size > min(window, stream_window, LARGEST_FRAME) or h2.encoder.header_table.resized:
            return False
        h2.highest_inbound_stream_id = request.stream
        h2.outbound_flow_control_window = window - size
        h2._inbound_flow_control_window_manager.window_consumed(request.size)  # noqa: SLF001 - there is no public way
        self.count_received(request.size)
        self._written.append(answer(request.stream, body))
        return True

    def send_message(self, stream: int, body: bytes, trailers: Headers | None) -> bool:
        """Send a packed message and end the stream, with trailers if given. Returns True if all of it is sent.

        Otherwise the rest follows when the peer's window allows it; then ``sent`` is called.
        """
        h2 = self._h2
        if len(body) <= LARGEST_FRAME and len(body) <= h2.local_flow_control_window(stream):
            h2.send_data(stream, body, end_stream=trailers is None)
            if trailers is not None:
                h2.send_headers(stream, trailers, end_stream=True)
            return True
        outgoing = self._outgoing[stream] = Outgoing(body, trailers)
        return self._push(stream, outgoing)

    def _push(self, stream: int, outgoing: Outgoing) -> bool:
        """Send as much of a message as the peer's window allows. Returns True if that was all."""
        h2 = self._h2
        body = outgoing.body
        while body:
            step = min(len(body), h2.local_flow_control_window(stream), h2.max_outbound_frame_size)
            if step <= 0:
                outgoing.body = body
                if h2.outbound_flow_control_window <= 0:
                    self._blocked[stream] = None
                return False
            last = step == len(body) and outgoing.trailers is None
            h2.send_data(stream, body[:step], end_stream=last)
            if step >= TINY_FRAME:  # not if the peer asks for a byte at a time
                self._controls.earn(2)
            body = body[step:]
        self.discard_unsent(stream)
        if outgoing.trailers is not None:
            h2.send_headers(stream, outgoing.trailers, end_stream=True)
        return True

    def on_window_update(self, event: WindowUpdated | RemoteSettingsChanged) -> None:
        """Send what a larger window allows: that of one stream, of all streams, or of the connection.

        Only streams that can send something are visited, so an update costs no more than the sending that it allows.
        """
        if isinstance(event, RemoteSettingsChanged):
            if SettingCodes.INITIAL_WINDOW_SIZE in event.changed_settings:
                for stream in list(self._outgoing):
                    self._push_on(stream)
        elif event.stream_id:
            self._push_on(event.stream_id)
        else:
            while self._blocked and self._h2.outbound_flow_control_window > 0:
                self._push_on(self._blocked.popitem(last=False)[0])

    def _push_on(self, stream: int) -> None:
        outgoing = self._outgoing.get(stream)
        if outgoing is not None and not self.is_closed(stream) and self._push(stream, outgoing):
            self.sent(stream)

    def discard_unsent(self, stream: int) -> None:
        """Drop the unsent data of a stream."""
        self._outgoing.pop(stream, None)
        self._blocked.pop(stream, None)

    def is_closed(self, stream: int) -> bool:
        """Return True if nothing may be sent on a stream: h2 may have seen a reset that it has not reported yet."""
        found = self._h2.streams.get(stream)
        return found is None or found.closed

    def replenish_window(self, event: DataReceived) -> None:
        """Re-open the connection's receive window by what was received.

        Stream windows are larger than any message and need no update.
        """
        self.count_received(event.flow_controlled_length)

    def count_received(self, size: int) -> None:
        """Count received DATA bytes; update the receive window when half of it is used."""
        self._consumed += size
        if self._consumed >= _WINDOW_BYTES // 2:
            self._h2.increment_flow_control_window(self._consumed)
            self._consumed = 0

    def earn_budget(self) -> None:
        """Give the peer budget for a few control frames: it has completed a call."""
        self._controls.earn(_CONTROLS_PER_CALL)

    def reset(self, stream: int, code: ErrorCodes) -> None:
        """End a stream at once, in both directions."""
        self.discard_unsent(stream)
        if not self.is_closed(stream):
            self._h2.reset_stream(stream, code)
            self.flush_soon()

    def send_goaway(self, last_stream: int, code: ErrorCodes = ErrorCodes.NO_ERROR, debug: bytes = b"") -> None:
        """Send a GOAWAY: no stream above ``last_stream`` is served. The other streams continue (h2 would end them)."""
        frame = GoAwayFrame(0, last_stream_id=last_stream, error_code=code, additional_data=debug)
        if self.transport is not None:
            self.flush()
            self.transport.write(frame.serialize())

    # -- life and death -----------------------------------------------------------------------------------------------

    def ping(self) -> None:
        """Send a PING, which the peer must answer in time."""
        self.ping_sent_at = self.clock.seconds()
        self._h2.ping(_PING)
        self.flush_soon()

    def check_deadlines(self, now: float) -> None:
        """Abort a connection that is late: with HTTP/2 itself, with the answer to a PING, or with its close."""
        limits = self.limits
        if self.closing_since is not None:
            if now - self.closing_since >= limits.linger:
                self.abort()
        elif not self.peer_spoke_http2:
            if now - self.created_at >= limits.handshake:
                self.cut("HTTP/2 did not begin in time")
        elif self.ping_sent_at is not None and now - self.ping_sent_at >= limits.keepalive_answer:
            self.cut("no sign of life")

    def fail(self, code: int, text: str) -> None:
        """Send a GOAWAY that says what the peer did wrong, then close the connection."""
        if self.closing_since is None:
            self._h2.close_connection(code, text.encode("utf-8", "replace")[:128])
            self.close(text)

    def close(self, reason: str) -> None:
        """Flush, then close the connection."""
        if self.closing_since is None:
            self._end(reason)
            self.flush()
            if self.transport is not None:
                self.transport.loseConnection()

    def cut(self, reason: str) -> None:
        """Abort the connection; ``reason`` is for the log."""
        self._end(reason)
        self.abort()

    def abort(self) -> None:
        """Abort the transport, with all unsent data."""
        transport: Any = self.transport
        if transport is not None:
            transport.abortConnection()


def describe(reason: Failure) -> str:
    """Return the reason in words why a connection ended or could not be made."""
    error = reason.value
    if isinstance(error, ConnectionDone):
        return "the peer closed the connection"
    if isinstance(error, ConnectionLost):
        return "the connection was lost"
    return str(error) or type(error).__name__
