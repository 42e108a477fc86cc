"""A server that is told to stop serves every connection that it has accepted, even one that was silent until then.

Rules of this module: where a connection stands when the signal comes is decided by the test, step by step, and not by
the speed of either side: TLS runs in memory here, and a server that is stopped (SIGSTOP) leaves connections in the
queue of its port.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.peers import OUR_SERVER, Certificates, Daemon, daemon, mint_certificates
from tests.support.readers import messages
from tests.support.waiting import PATIENCE_SECONDS, until

REQUEST = b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\n\r\n"
ANSWER = re.compile(rb".*\r\nContent-Length: (\d+)\r\n.*?\r\n\r\n", re.DOTALL)
QUEUED = 40
"""More than a port accepts in one turn of the reactor when it stops."""


class Visitor:
    """A client that goes on only when it is told to."""

    def __init__(self, port: int, tls: Certificates) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context(cafile=str(tls.ca))
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self._kept = b""

    def greet(self, *, half: bool = False) -> None:
        """Send the first message of the handshake, or half of it; the rest is sent by what comes next."""
        with pytest.raises(ssl.SSLWantReadError):
            self._tls.do_handshake()
        said = self._outgoing.read()
        place = len(said) // 2 if half else len(said)
        self._kept = said[place:]
        self.socket.sendall(said[:place])

    def finish_handshake(self) -> None:
        """Complete the handshake, wherever it was."""
        while True:
            self.socket.sendall(self._kept)
            self._kept = b""
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._turn()
            else:
                self.socket.sendall(self._outgoing.read())
                return

    def say(self, data: bytes) -> None:
        self._tls.write(data)
        self.socket.sendall(self._outgoing.read())

    def hear(self) -> bytes:
        """All that the server says until it says goodbye."""
        heard = b""
        while True:
            try:
                piece = self._tls.read(1 << 16)
            except ssl.SSLWantReadError:
                self._turn()
            else:
                if not piece:
                    return heard
                heard += piece

    def hear_answer(self) -> bytes:
        """One answer."""
        heard = b""
        while (whole := ANSWER.match(heard)) is None or len(heard) < whole.end() + int(whole[1]):
            try:
                heard += self._tls.read(1)
            except ssl.SSLWantReadError:
                self._turn()
        return heard

    def _turn(self) -> None:
        """Send what there is to send, then wait for more."""
        self.socket.sendall(self._outgoing.read())
        received = self.socket.recv(1 << 16)
        if received:
            self._incoming.write(received)
        else:
            self._incoming.write_eof()


@pytest.fixture
def drain_seconds() -> float:
    """As long as the tests wait, in each of its parts: how fast they are decides nothing."""
    return 3 * PATIENCE_SECONDS


@pytest.fixture
def server(tmp_path: Path, drain_seconds: float) -> Iterator[Daemon]:
    made = daemon("server", OUR_SERVER, tmp_path, tls=mint_certificates(tmp_path / "tls"), level="info")
    config = tmp_path / "server.json"
    tree = json.loads(config.read_text())
    tree["server"]["drain_timeout"] = drain_seconds
    config.write_text(json.dumps(tree))
    with made as server:
        yield server


def test_a_stopping_server_serves_each_connection_that_it_has_accepted_or_that_waits_in_its_queue(
    server: Daemon,
) -> None:
    with ExitStack() as stack:

        def visit() -> Visitor:
            visitor = Visitor(server.port, server.tls)
            stack.enter_context(visitor.socket)
            return visitor

        connected, half, greeted, shaken, begun, asked, idle = (visit() for _ in range(7))
        half.greet(half=True)
        greeted.greet()
        for visitor in (shaken, begun, asked, idle):
            visitor.greet()
            visitor.finish_handshake()
        idle.say(REQUEST)
        assert b"Connection" not in idle.hear_answer()
        begun.say(REQUEST[:20])
        asked.say(REQUEST)  # its answer is not awaited
        server.signal(signal.SIGSTOP)
        queued = [visit() for _ in range(QUEUED)]
        for visitor in queued[::2]:
            visitor.greet()
        server.signal(signal.SIGTERM)
        server.signal(signal.SIGCONT)
        until(lambda: "Stopping" in messages(server), "the stop begins")
        for visitor in (connected, *queued[1::2]):
            visitor.greet()
        for visitor in (connected, half, greeted, *queued):
            visitor.finish_handshake()
        for visitor in (connected, half, greeted, shaken, idle, *queued):
            visitor.say(REQUEST)
        begun.say(REQUEST[20:])
        answers = [visitor.hear() for visitor in (connected, half, greeted, shaken, begun, idle, *queued)]
        assert [answer[:13] for answer in answers] == [b"HTTP/1.1 200 "] * (6 + QUEUED)
        assert all(b"\r\nConnection: close\r\n" in answer for answer in answers)
        # It may have been answered before the signal came: then it gets one more answer, and that one says so.
        answer = asked.hear_answer()
        assert answer.startswith(b"HTTP/1.1 200 ")
        if b"\r\nConnection: close\r\n" not in answer:
            asked.say(REQUEST)
            assert b"\r\nConnection: close\r\n" in asked.hear()
    assert server.wait() == -signal.SIGTERM
    assert "traceback" not in server.output().lower()


@pytest.mark.parametrize("drain_seconds", [1.0])
def test_a_stopping_server_says_goodbye_to_a_client_that_stays_silent(server: Daemon) -> None:
    visitor = Visitor(server.port, server.tls)
    with visitor.socket:
        visitor.greet()
        visitor.finish_handshake()
        visitor.say(REQUEST)
        assert b"Connection" not in visitor.hear_answer()
        server.signal(signal.SIGTERM)
        assert visitor.hear() == b""
    assert server.wait() == -signal.SIGTERM
