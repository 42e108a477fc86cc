"""What tests of running daemons share: clients that read all the time, and looks at a process from outside."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
from pathlib import Path
from typing import Any, Self

from cryptography import x509

from tests.support.peers import Daemon
from tests.support.waiting import until

CLIENTS = 50


def lines_of(daemon: Daemon) -> list[dict[str, Any]]:
    return [json.loads(line) for line in daemon.output().splitlines()]


def messages(daemon: Daemon) -> list[str]:
    return [line["msg"] for line in lines_of(daemon)]


class Reader(threading.Thread):
    """Reads one path again and again over a connection that it keeps until an answer says that it is the last one.

    ``failures`` says what went wrong. A reader sends nothing twice: a connection that ends without an answer is one.
    """

    def __init__(self, port: int, trusted: ssl.SSLContext, path: str, expected: bytes, status: int = 200) -> None:
        super().__init__(name=f"reader of {path}")
        self.port, self.trusted, self.path, self.expected, self.status = port, trusted, path, expected, status
        self.reads = 0
        self.connects = 0
        self.failures: list[str] = []
        self.over = False

    def ask(self, connection: http.client.HTTPConnection) -> None:
        """Send the request."""
        connection.request("GET", self.path)

    def run(self) -> None:
        connection = None
        try:
            while not self.over:
                if connection is None:
                    connection = http.client.HTTPSConnection("localhost", self.port, timeout=30, context=self.trusted)
                    connection.connect()
                    self.connects += 1
                self.ask(connection)
                response = connection.getresponse()
                body = response.read()
                if (response.status, body) != (self.status, self.expected):
                    self.failures.append(f"{response.status} {body!r}")
                self.reads += 1
                if response.will_close:
                    connection.close()
                    connection = None
        except Exception as error:  # noqa: BLE001 - any exception is a request that failed
            self.failures.append(repr(error))
        finally:
            if connection is not None:
                connection.close()


class Load:
    """``CLIENTS`` readers at work; leaving it ends them and fails if any request of theirs did."""

    def __init__(self, port: int, ca: Path, path: str, expected: bytes) -> None:
        trusted = ssl.create_default_context(cafile=str(ca))
        self.readers = [Reader(port, trusted, path, expected) for _ in range(CLIENTS)]

    def __enter__(self) -> Self:
        for reader in self.readers:
            reader.start()
        self.go_on()
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self.readers:
            reader.over = True
        for reader in self.readers:
            reader.join()
        assert self.failures == []

    @property
    def failures(self) -> list[str]:
        return [failure for reader in self.readers for failure in reader.failures]

    @property
    def connects(self) -> int:
        return sum(reader.connects for reader in self.readers)

    def go_on(self, reads: int = 3) -> None:
        """Wait until each has read a few times more."""
        before = [reader.reads for reader in self.readers]

        def done() -> bool:
            assert self.failures == []
            return all(reader.reads >= count + reads for reader, count in zip(self.readers, before, strict=True))

        until(done, "all readers go on")


def shown(port: int, ca: Path) -> int:
    """The serial number of the certificate that a new connection gets."""
    context = ssl.create_default_context(cafile=str(ca))
    with (
        socket.create_connection(("127.0.0.1", port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        return x509.load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"").serial_number


def get(port: int, path: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()
