"""What the two sides of an HTTP/2 connection share: h2 and its bounds, batched writes, flow control, PING, closing.

Rules of this module:

- Whatever is said in one turn of the reactor leaves in one write: with TLS, one read of the socket is many records.
- h2 neither validates nor normalises headers: ours are right when they are built, and ``frames`` checks those of the
  peer in the one pass that reads them.
- A peer that breaks a rule, or makes work for nothing, gets a GOAWAY with the reason and is closed; one that does not
  let itself be closed is aborted.
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

from notary.net.grpc.fast import Fields, QuickDecoder, Request, answer
from notary.net.grpc.frames import LARGEST_FRAME, TINY_FRAME, Budget, Scanner, Violation
from notary.net.grpc.http2 import Http2
from notary.net.refusals import HandshakeFailed
from notary.net.tcp import ReadListener

_WINDOW: Final = 1 << 20  # bytes of messages, in all streams, that a peer may send before we have seen them
_INITIAL_WINDOW: Final = 65_535  # of every connection (RFC 9113, section 6.9.2)
_CONTROLS_A_CALL: Final = 8  # frames that a well-behaved peer may need around one call: PING, WINDOW_UPDATE
_SLICE: Final = 16_384  # bytes that h2 is given at a time, before what they cost is charged
_STREAMS_A_CONTROL: Final = 50  # streams that h2 walks over, for one setting, at the cost of one frame for nothing
_OF_CALLS: Final = frozenset({RequestReceived, ResponseReceived, TrailersReceived, StreamEnded})
Headers: TypeAlias = list[tuple[bytes, bytes]]

_PING: Final = b"notary.."


@dataclass(frozen=True, slots=True)
class Limits:
    """What a peer may do. Sizes are in bytes, times in seconds (kept to within one second).

    ``message`` bounds one message, ``buffered`` those of all open calls of a connection, ``all_buffered`` those of all
    connections of a server; ``headers`` is the largest header list. ``streams`` is how many calls a connection may have
    open. ``resets`` and ``controls`` bound the calls that a peer cancels, and the frames that carry nothing, at once;
    in the long run ``resets_per_second`` and ``controls_per_second``. A connection must speak HTTP/2 within
    ``handshake`` seconds, a request be complete within ``request``, an answer be taken within ``answer``. After
    ``keepalive`` seconds of silence a peer is asked for a sign of life and given ``keepalive_answer``; after ``linger``
    a connection that we closed is cut off.
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
    """What of a message has not left because the peer gives no room; then come the trailers, if any."""

    __slots__ = ("body", "trailers")

    def __init__(self, body: bytes, trailers: Headers | None) -> None:
        self.body = memoryview(body)
        self.trailers = trailers


@implementer(IHandshakeListener)
class Connection(ReadListener):
    """One side of a connection; a subclass says which, and takes the events of streams."""

    client_side: ClassVar[bool]
    on_event: ClassVar[dict[type[Event], Callable[[Any, Any], None]]]
    """What to do with each kind of event; those that are not here are h2's own business."""

    def __init__(self, clock: IReactorTime, limits: Limits) -> None:
        self.clock = clock
        self.limits = limits
        now = clock.seconds()
        self.since = now
        self.heard = now  # when the last bytes came
        self.asked: float | None = None  # when we asked for a sign of life that has not come
        self.closing: float | None = None  # since when
        self.spoke = False  # the peer: HTTP/2
        self.why = ""  # the connection ended
        self._decoder: QuickDecoder[Any] = QuickDecoder(self.meaning)
        self._h2 = self._make_h2()
        self._scanner = Scanner(preface=not self.client_side, headers=limits.headers)
        self._controls = Budget(limits.controls, limits.controls_per_second, now)
        self._resets = Budget(limits.resets, limits.resets_per_second, now)
        self._seen = 0  # bytes of messages that the window of the connection does not yet allow for again
        self._outgoing: dict[int, Outgoing] = {}
        self._starved: OrderedDict[int, None] = OrderedDict()  # of these, those that wait for the connection's window
        self._written: list[bytes] = []  # frames that are not h2's
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

    # -- what a subclass says -----------------------------------------------------------------------------------------

    def meaning(self, fields: Fields) -> object:
        """What a block of headers that may come often says; None if calls with it go the general way."""

    def established(self) -> None:
        """The peer speaks HTTP/2 and has accepted us."""

    def going_away(self, last_stream: int, code: int, debug: bytes) -> None:
        """The peer takes no more streams than up to ``last_stream``."""

    def ending(self, reason: str) -> None:
        """Nothing can be said any more on any stream."""

    def lost(self, *, quiet: bool) -> None:
        """The connection is no more; ``quiet`` says that it just closed, or that TLS has told why it did not begin."""

    def sent(self, stream: int) -> None:
        """All that there is to send on a stream is sent."""

    # -- the transport ------------------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        """Begin; with TLS, once it is up."""
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        if not ISSLTransport.providedBy(self.transport):
            self.begin()

    def begin(self) -> None:
        """Open with the settings."""
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_WINDOW - _INITIAL_WINDOW)
        # The limit is told as it is, and kept by us with a reset of the one stream: h2 would end the connection, and a
        # client may open streams before it has read our settings.
        self._h2.local_settings = Settings(
            client=self.client_side,
            initial_values={**self._own, SettingCodes.MAX_CONCURRENT_STREAMS: (1 << 31) - 1},
        )
        self.flush()

    def handshakeCompleted(self) -> None:
        """TLS is up: it must have agreed on HTTP/2."""
        protocol = getattr(self.transport, "negotiatedProtocol", None)
        if protocol != b"h2":
            said = "nothing" if protocol is None else f'"{protocol.decode("ascii", "replace")}"'
            self.close(f"TLS (ALPN) negotiated {said} and not h2: the peer speaks no gRPC; the port may be another's")
        else:
            self.begin()

    def dataReceived(self, data: bytes) -> None:
        """Take what came."""
        if self.closing is not None:
            return
        self.heard = self.clock.seconds()
        self.asked = None
        try:
            self.receive(data)
        except Violation as violation:
            self.fail(violation.code, str(violation))
        except ProtocolError as error:
            self.fail(error.error_code, str(error))
        else:
            self.later()

    def receive(self, data: bytes) -> None:
        """Let h2 take what came, and handle what that means. Raises Violation, ProtocolError."""
        for begin in range(0, len(data), _SLICE):
            events = self._h2.receive_data(self._scan(data[begin : begin + _SLICE]))
            self._charge_for_claims(events)
            self._dispatch(events)
            if self.closing is not None:
                return

    def readEnded(self) -> None:
        """All that came in one read is handled."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        if self.closing is None:
            self.flush()

    def _scan(self, data: bytes) -> bytes:
        scanner = self._scanner
        data = scanner.feed(data)
        if scanner.controls or scanner.settings:
            walked = len(self._h2.streams) + scanner.claims
            self._spend_controls(scanner.controls + scanner.settings * (1 + walked // _STREAMS_A_CONTROL))
            scanner.controls = scanner.settings = 0
        if scanner.resets:
            self.spend_resets(scanner.resets)
            scanner.resets = 0
        return data

    def _charge_for_claims(self, events: list[Event]) -> None:
        """Charge for frames that begin or end nothing, because their stream is over or they came before."""
        claims, self._scanner.claims = self._scanner.claims, 0
        if claims:
            wasted = claims - sum([type(event) in _OF_CALLS for event in events])
            if wasted > 0:
                self._spend_controls(wasted)

    def _spend_controls(self, count: int) -> None:
        """Count frames that carry nothing. Raises Violation."""
        if not self._controls.spend(count, self.heard):
            raise Violation(ErrorCodes.ENHANCE_YOUR_CALM, "too many frames that carry nothing")

    def spend_resets(self, count: int) -> None:
        """Count streams that the peer opened for nothing. Raises Violation."""
        if not self._resets.spend(count, self.heard):
            raise Violation(ErrorCodes.ENHANCE_YOUR_CALM, "too many streams that end in a reset")

    def _dispatch(self, events: list[Event]) -> None:
        on_event = self.on_event
        for event in events:
            handle = on_event.get(type(event))
            if handle is not None:
                handle(self, event)
                if self.closing is not None:
                    return
        if self._scanner.goaways:
            goaways, self._scanner.goaways = self._scanner.goaways, []
            for goaway in goaways:
                self.going_away(*goaway)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Forget everything."""
        quiet = not self.why and isinstance(reason.value, (ConnectionDone, ConnectionLost, HandshakeFailed))
        self._end(describe(reason))
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        self.lost(quiet=quiet)

    def _end(self, why: str) -> None:
        """Stop all streams, once."""
        if self.closing is None:
            self.closing = self.clock.seconds()
            self.why = self.why or why
            self._outgoing.clear()
            self._starved.clear()
            self.ending(self.why)

    # -- saying something ---------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Send what there is to send."""
        data = self._h2.data_to_send()
        if self._written:
            data += b"".join(self._written)
            self._written.clear()
        if data and self.transport is not None:
            self.transport.write(data)

    def later(self) -> None:
        """See that what was just said leaves soon."""
        if self._flushing is None and self.closing is None and not self.reading:
            self._flushing = self.clock.callLater(0, self._flush_now)

    def _flush_now(self) -> None:
        self._flushing = None
        self.flush()

    def send_answer(self, stream: int, body: bytes, head: Headers, trailers: Headers) -> bool:
        """Send an answer: its head, a packed message, its trailers; whether all of it could be sent.

        An answer that fits in one frame is written without h2, which then forgets the stream: that halves its cost.
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

    def send_at_once(self, request: Request[Any], body: bytes) -> bool:
        """Send the answer to a request of which h2 does not know, a packed message; whether that was possible.

        h2 only learns that the stream is over, and what the windows of the connection are.
        """
        h2 = self._h2
        size = len(body)
        window = h2.outbound_flow_control_window + request.more_room
        stream_window = h2.remote_settings.initial_window_size + request.room
        if size > min(window, stream_window, LARGEST_FRAME) or h2.encoder.header_table.resized:
            return False
        h2.highest_inbound_stream_id = request.stream
        h2.outbound_flow_control_window = window - size
        h2._inbound_flow_control_window_manager.window_consumed(request.size)  # noqa: SLF001 - there is no public way
        self.count(request.size)
        self._written.append(answer(request.stream, body))
        return True

    def send_message(self, stream: int, body: bytes, trailers: Headers | None) -> bool:
        """Send a packed message and end the stream, with trailers if given; whether all of it could be sent.

        The rest follows when the peer gives room; then ``sent`` is called.
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
        """Send as much of a message as the peer gives room for; whether that was all."""
        h2 = self._h2
        body = outgoing.body
        while body:
            step = min(len(body), h2.local_flow_control_window(stream), h2.max_outbound_frame_size)
            if step <= 0:
                outgoing.body = body
                if h2.outbound_flow_control_window <= 0:
                    self._starved[stream] = None
                return False
            last = step == len(body) and outgoing.trailers is None
            h2.send_data(stream, body[:step], end_stream=last)
            if step >= TINY_FRAME:  # not if the peer asks for a byte at a time
                self._controls.earn(2)
            body = body[step:]
        self.unsend(stream)
        if outgoing.trailers is not None:
            h2.send_headers(stream, outgoing.trailers, end_stream=True)
        return True

    def room(self, event: WindowUpdated | RemoteSettingsChanged) -> None:
        """The peer gives more room: on one stream, on all, or on the connection.

        Only streams that can send something are looked at, so that an update costs no more than what it lets go.
        """
        if isinstance(event, RemoteSettingsChanged):
            if SettingCodes.INITIAL_WINDOW_SIZE in event.changed_settings:
                for stream in list(self._outgoing):
                    self._push_on(stream)
        elif event.stream_id:
            self._push_on(event.stream_id)
        else:
            while self._starved and self._h2.outbound_flow_control_window > 0:
                self._push_on(self._starved.popitem(last=False)[0])

    def _push_on(self, stream: int) -> None:
        outgoing = self._outgoing.get(stream)
        if outgoing is not None and not self.is_closed(stream) and self._push(stream, outgoing):
            self.sent(stream)

    def unsend(self, stream: int) -> None:
        """Forget what has not left on a stream."""
        self._outgoing.pop(stream, None)
        self._starved.pop(stream, None)

    def is_closed(self, stream: int) -> bool:
        """Whether nothing may be said on a stream: a reset may have come that is not yet reported."""
        found = self._h2.streams.get(stream)
        return found is None or found.closed

    def seen(self, event: DataReceived) -> None:
        """Let the peer send as much again as just came. A stream needs no such care: its window holds any message."""
        self.count(event.flow_controlled_length)

    def count(self, size: int) -> None:
        """Count bytes of messages that are taken."""
        self._seen += size
        if self._seen >= _WINDOW // 2:
            self._h2.increment_flow_control_window(self._seen)
            self._seen = 0

    def earn(self) -> None:
        """A call was worth it: its peer may send a few more frames that carry nothing."""
        self._controls.earn(_CONTROLS_A_CALL)

    def reset(self, stream: int, code: ErrorCodes) -> None:
        """End a stream at once, in both directions."""
        self.unsend(stream)
        if not self.is_closed(stream):
            self._h2.reset_stream(stream, code)
            self.later()

    def say_goodbye(self, last_stream: int, code: ErrorCodes = ErrorCodes.NO_ERROR, debug: bytes = b"") -> None:
        """Tell the peer that no stream above ``last_stream`` will be served; those below go on (h2 would end them)."""
        frame = GoAwayFrame(0, last_stream_id=last_stream, error_code=code, additional_data=debug)
        if self.transport is not None:
            self.flush()
            self.transport.write(frame.serialize())

    # -- life and death -----------------------------------------------------------------------------------------------

    def ping(self) -> None:
        """Ask for a sign of life."""
        self.asked = self.clock.seconds()
        self._h2.ping(_PING)
        self.later()

    def check_life(self, now: float) -> None:
        """Cut off a peer that does not answer, does not begin or does not let itself be closed."""
        limits = self.limits
        if self.closing is not None:
            if now - self.closing >= limits.linger:
                self.abort()
        elif not self.spoke:
            if now - self.since >= limits.handshake:
                self.cut("HTTP/2 did not begin in time")
        elif self.asked is not None and now - self.asked >= limits.keepalive_answer:
            self.cut("no sign of life")

    def fail(self, code: int, text: str) -> None:
        """End the connection because of what the peer did."""
        if self.closing is None:
            self._h2.close_connection(code, text.encode("utf-8", "replace")[:128])
            self.close(text)

    def close(self, why: str) -> None:
        """Send what there is to send, then end the connection."""
        if self.closing is None:
            self._end(why)
            self.flush()
            if self.transport is not None:
                self.transport.loseConnection()

    def cut(self, why: str) -> None:
        """End the connection at once; ``why`` is for the log."""
        self._end(why)
        self.abort()

    def abort(self) -> None:
        """Drop the connection, and what has not left."""
        transport: Any = self.transport
        if transport is not None:
            transport.abortConnection()


def describe(reason: Failure) -> str:
    """Return in words why a connection ended or could not be made."""
    error = reason.value
    if isinstance(error, ConnectionDone):
        return "the peer closed the connection"
    if isinstance(error, ConnectionLost):
        return "the connection was lost"
    return str(error) or type(error).__name__
