"""Load for unary gRPC, by two clients: ready-made frames, which cost little, and grpcio, which is what others use.

Rules of this module: it runs as a process of its own (``python -m tests.bench.grpcload``, a job on standard input, the
outcome on standard output), so that its work is told from what it measures. One connection with mutual TLS, a fixed
number of calls in flight, each answered call followed by the next. Requests are made before the clock starts.

A client library takes about 100 microseconds a call: most of what limits the rate of a fast server on the same cores.
The client of frames takes 10. As any client does, it sends repeated headers as indexes of HPACK's table and
acknowledges SETTINGS and PING. It knows of an answer only that it has a message: its worth is checked elsewhere.
"""

from __future__ import annotations

import base64
import json
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from hpack import Encoder, NeverIndexedHeaderTuple

from tests.bench.figures import BenchError, quantile

_SPARE_SECONDS = 30.0
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM = _ACK = 1
_END_HEADERS = 4
_WINDOW = (1 << 31) - 1
_INITIAL_WINDOW = 65_535

FRAMES, GRPCIO = "frames", "grpcio"
"""The clients."""


@dataclass(frozen=True)
class Target:
    """Where to call, with whose certificate, and what: ``requests`` are sent in turn."""

    port: int
    ca: Path
    certificate: Path
    key: Path
    path: str
    requests: Sequence[bytes]


def load(target: Target, client: str, in_flight: int, seconds: float) -> dict[str, float]:
    """Run the generator. Returns ``requests``, ``rate`` (a second), ``p50`` and ``p99`` (ms) and ``generator`` (% of a
    core); raises BenchError.
    """
    job = {
        "port": target.port,
        "files": [str(target.ca), str(target.certificate), str(target.key)],
        "path": target.path,
        "requests": [base64.b64encode(request).decode() for request in target.requests],
        "client": client,
        "in_flight": in_flight,
        "seconds": seconds,
    }
    command = [sys.executable, "-m", "tests.bench.grpcload"]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(job),
            capture_output=True,
            text=True,
            timeout=seconds + _SPARE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"the load generator got no answers from port {target.port}") from None
    if done.returncode:
        raise BenchError(f"the load generator failed:\n{done.stderr.strip()}")
    outcome: dict[str, float] = json.loads(done.stdout)
    return outcome


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One HTTP/2 frame."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


class Generator:
    """One connection and its calls."""

    def __init__(self, connection: socket.socket, path: str, requests: Sequence[bytes]) -> None:
        self._connection = connection
        fields: list[Any] = [
            (b":method", b"POST"),
            (b":scheme", b"https"),
            (b":path", path.encode()),
            (b":authority", b"localhost"),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"user-agent", b"notary-service-bench"),
            NeverIndexedHeaderTuple(b"grpc-timeout", b"9999999u"),
        ]
        encoder = Encoder()
        self._first = encoder.encode(fields)  # puts the fields into the table
        self._block = encoder.encode(fields)
        self._bodies = [b"\0" + struct.pack(">I", len(request)) + request for request in requests]
        self._stream = 1
        self._begun: dict[int, float] = {}
        self._answered: set[int] = set()  # those of whose answer there is a message
        self._held = b""
        self.latencies: list[float] = []

    def open(self) -> None:
        settings = struct.pack(">HIHI", 2, 0, 4, _WINDOW)  # no push; any amount of answers
        self._connection.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + frame(_SETTINGS, 0, 0, settings)
            + frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _WINDOW - _INITIAL_WINDOW))
        )

    def run(self, in_flight: int, seconds: float) -> float:
        """Call for so long; the seconds that it took until the last answer."""
        begun = now = time.perf_counter()
        end = begun + seconds
        self._connection.sendall(b"".join(self._call(now) for _ in range(in_flight)))
        while self._begun:
            data = self._connection.recv(1 << 16)
            if not data:
                raise BenchError("the server closed the connection")
            now = time.perf_counter()
            done, control = self._take(data, now)
            calls = [self._call(now) for _ in range(done)] if now < end else []
            if calls or control:
                self._connection.sendall(b"".join((control, *calls)))
        return now - begun

    def _call(self, now: float) -> bytes:
        stream = self._stream
        self._stream += 2
        self._begun[stream] = now
        block = self._first if stream == 1 else self._block
        body = self._bodies[stream // 2 % len(self._bodies)]
        return frame(_HEADERS, _END_HEADERS, stream, block) + frame(_DATA, _END_STREAM, stream, body)

    def _take(self, data: bytes, now: float) -> tuple[int, bytes]:
        """How many calls ended, and what to say about the connection itself."""
        data = self._held + data
        position, size, done, control = 0, len(data), 0, b""
        while size - position >= 9:
            length = int.from_bytes(data[position : position + 3], "big")
            behind = position + 9 + length
            if behind > size:
                break
            kind, flags = data[position + 3], data[position + 4]
            stream = int.from_bytes(data[position + 5 : position + 9], "big")
            if kind == _DATA:
                if length > 5:
                    self._answered.add(stream)
            elif kind == _HEADERS:
                if flags & _END_STREAM:
                    if stream not in self._answered:
                        raise BenchError("an answer without a message: the call failed")
                    self._answered.discard(stream)
                    self.latencies.append(now - self._begun.pop(stream))
                    done += 1
            elif kind == _GOAWAY or (kind == _RST_STREAM and stream in self._begun):
                # Go sometimes resets a stream behind its answer, before it has seen that the request is complete.
                raise BenchError(f"the server gave up: frame {kind}, {data[position + 9 : behind]!r}")
            elif kind == _SETTINGS and not flags & _ACK:
                control += frame(_SETTINGS, _ACK, 0)
            elif kind == _PING and not flags & _ACK:
                control += frame(_PING, _ACK, 0, data[position + 9 : behind])
            position = behind
        self._held = data[position:]
        return done, control


class Library:
    """Calls by grpcio."""

    def __init__(self, channel: grpc.Channel, path: str, requests: Sequence[bytes]) -> None:
        self._method = channel.unary_unary(path)
        self._requests = requests
        self._sent = 0
        self._end = 0.0
        self._idle = threading.Semaphore(0)
        self._error = ""
        self.latencies: list[float] = []

    def open(self) -> None:
        self._method(self._requests[0], timeout=_SPARE_SECONDS / 2)

    def run(self, in_flight: int, seconds: float) -> float:
        """Call for so long; the seconds that it took until the last answer."""
        begun = time.perf_counter()
        self._end = begun + seconds
        for _ in range(in_flight):
            self._call()
        for _ in range(in_flight):
            self._idle.acquire()
        if self._error:
            raise BenchError(self._error)
        return time.perf_counter() - begun

    def _call(self) -> None:
        self._sent += 1
        now = time.perf_counter()
        future = self._method.future(self._requests[self._sent % len(self._requests)], timeout=_SPARE_SECONDS / 2)
        future.add_done_callback(lambda done: self._answered(done, now))

    def _answered(self, done: grpc.Future, begun: float) -> None:
        now = time.perf_counter()
        if done.code() is not grpc.StatusCode.OK:
            self._error = f"{done.code().name}: {done.details()}"
        else:
            self.latencies.append(now - begun)
        if now < self._end and not self._error:
            self._call()
        else:
            self._idle.release()


def _connect(port: int, ca: str, certificate: str, key: str) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=ca)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2"])
    plain = socket.create_connection(("127.0.0.1", port), timeout=_SPARE_SECONDS / 2)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return context.wrap_socket(plain, server_hostname="localhost")


def work(job: Mapping[str, Any]) -> dict[str, float]:
    """Do what :func:`load` asks for, in this process."""
    requests = [base64.b64decode(request) for request in job["requests"]]
    if job["client"] == GRPCIO:
        root, certificate, key = (Path(name).read_bytes() for name in job["files"])
        credentials = grpc.ssl_channel_credentials(root, key, certificate)
        with grpc.secure_channel(f"localhost:{job['port']}", credentials) as channel:
            return _measured(Library(channel, job["path"], requests), job)
    # Bodies count against the server's window, which it renews; so few bytes never have to wait for that.
    if job["in_flight"] * (max(map(len, requests)) + 5) > _INITIAL_WINDOW // 2:
        raise BenchError("too much in flight for this generator")
    with _connect(job["port"], *job["files"]) as connection:
        return _measured(Generator(connection, job["path"], requests), job)


def _measured(client: Generator | Library, job: Mapping[str, Any]) -> dict[str, float]:
    client.open()
    used = time.process_time()
    seconds = client.run(job["in_flight"], job["seconds"])
    used = time.process_time() - used
    count = len(client.latencies)
    return {
        "requests": count,
        "rate": count / seconds,
        "p50": 1000 * quantile(client.latencies, 0.5),
        "p99": 1000 * quantile(client.latencies, 0.99),
        "generator": 100 * used / seconds,
    }


if __name__ == "__main__":
    try:
        sys.stdout.write(json.dumps(work(json.load(sys.stdin))))
    except (BenchError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
