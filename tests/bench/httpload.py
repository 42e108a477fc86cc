"""Load over HTTPS: wrk for reads, and uploads one after the other.

Rules of this module: every answer must be a success, otherwise there is no figure but a BenchError.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.bench.figures import BenchError, quantile

_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}
_LENGTH = re.compile(rb"(?i)\ncontent-length: *(\d+)")
_PIECE = 1 << 16
_SPARE_SECONDS = 30.0
_TIMEOUT = 10.0
_CONNECTING = 0.004
"""Seconds that a new connection takes of a busy machine: before all have one, wrk asks for little."""


def parse_wrk(output: str, *, forgiving: bool = False) -> dict[str, float]:
    """What ``wrk --latency`` printed: ``requests``, ``rate`` (a second), ``p50`` and ``p99`` (ms), and the part of all
    requests that ``failed``.

    Raises BenchError if a request failed, unless it is ``forgiving``, or if there was none.
    """
    failures = re.findall(r"Non-2xx or 3xx responses: (\d+)|(?:connect|read|write|timeout) (\d+)", output)
    failed = sum(int(number) for numbers in failures for number in numbers if number)
    count = re.search(r"(\d+) requests in ", output)
    rate = re.search(r"^Requests/sec:\s+([\d.]+)", output, re.MULTILINE)
    parts = dict(re.findall(r"^\s+(50|99)%\s+([\d.]+(?:us|ms|s|m)) ?$", output, re.MULTILINE))
    if (failed and not forgiving) or not count or not rate or len(parts) != 2 or not int(count[1]):
        raise BenchError(f"wrk found no figures:\n{output}")
    return {
        "requests": float(count[1]),
        "rate": float(rate[1]),
        "p50": _milliseconds(parts["50"]),
        "p99": _milliseconds(parts["99"]),
        "failed": failed / int(count[1]),
    }


def _milliseconds(text: str) -> float:
    value, unit = re.fullmatch(r"([\d.]+)(\w+)", text).groups()
    return float(value) * _UNITS[unit]


def lua_of(paths: Sequence[str]) -> str:
    """A script for wrk that asks for these paths in turn."""
    listed = ",\n".join(f'  "{path}"' for path in paths)
    return (
        f"local paths = {{\n{listed}\n}}\nlocal last = 0\n"
        'function request()\n  last = last % #paths + 1\n  return wrk.format("GET", paths[last])\nend\n'
    )


def wrk(
    url: str,
    connections: int,
    seconds: float,
    *,
    keep_alive: bool = True,
    script: Path | None = None,
    forgiving: bool = False,
) -> dict[str, float]:
    """GET ``url``, or what a Lua script says, over and over; see :func:`parse_wrk`.

    For so many seconds and those that the connections need; wrk counts whole ones.
    """
    if shutil.which("wrk") is None:
        raise BenchError("wrk is not installed: it is in the Debian package wrk, which `make bench` installs")
    duration = max(1, round(seconds + connections * _CONNECTING))
    command = ["wrk", "--latency", "-t1", f"-c{connections}", f"-d{duration}s"]
    command += [] if keep_alive else ["-H", "Connection: close"]
    command += ["-s", str(script)] if script else []
    done = subprocess.run(
        [*command, url], capture_output=True, text=True, timeout=duration + _SPARE_SECONDS, check=False
    )
    return parse_wrk(done.stdout + done.stderr, forgiving=forgiving)


@dataclass(frozen=True)
class Request:
    """What to ask for."""

    method: str
    path: str
    body: bytes = b""
    content_type: str = ""

    def encoded(self) -> bytes:
        """What goes to the server."""
        lines = [f"{self.method} {self.path} HTTP/1.1", "Host: localhost"]
        if self.content_type:
            lines += [f"Content-Type: {self.content_type}", f"Content-Length: {len(self.body)}"]
        return "\r\n".join([*lines, "\r\n"]).encode("ascii") + self.body


def get(port: int, ca: Path, path: str) -> bytes:
    """The body of an answer of any form. Raises BenchError unless it is a 200."""
    connection = http.client.HTTPSConnection("localhost", port, context=ssl.create_default_context(cafile=ca))
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
    if answer.status != http.client.OK:
        raise BenchError(f"GET {path}: {answer.status} {body[:500].decode(errors='replace')}")
    return body


class Browser:
    """One keep-alive connection to a server. It reads of an answer what it must: what it takes, the server lacks."""

    def __init__(self, port: int, ca: Path) -> None:
        context = ssl.create_default_context(cafile=ca)
        plain = socket.create_connection(("localhost", port), timeout=_TIMEOUT)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = context.wrap_socket(plain, server_hostname="localhost")

    def close(self) -> None:
        self._socket.close()

    def send(self, request: bytes) -> bytes:
        """The body of the answer to an encoded request. Raises BenchError unless it is a 200 of a known length."""
        asked = request.partition(b" HTTP/1.1\r\n")[0].decode()
        try:
            self._socket.sendall(request)
            head, found, body = b"", b"", b""
            while not found:
                head, found, body = self._more(head + found + body).partition(b"\r\n\r\n")
            length = _LENGTH.search(head)
            if length is None:
                raise BenchError(f"{asked}: an answer without a length: {head.decode(errors='replace')}")
            while len(body) < int(length[1]):
                body = self._more(body)
        except OSError as error:
            raise BenchError(f"{asked}: {type(error).__name__}: {error}") from error
        if not head.startswith(b"HTTP/1.1 200 "):
            raise BenchError(f"{asked}: {(head[9:] + body)[:500].decode(errors='replace')}")
        return body

    def _more(self, so_far: bytes) -> bytes:
        more = self._socket.recv(_PIECE)
        if not more:
            raise ConnectionError("the server has closed the connection")
        return so_far + more


class Crowd:
    """So many keep-alive connections to a server, each with one request in flight at most."""

    def __init__(self, in_flight: int, port: int, ca: Path) -> None:
        self._browsers = [Browser(port, ca) for _ in range(in_flight)]
        self._threads = ThreadPoolExecutor(in_flight)

    def close(self) -> None:
        self._threads.shutdown()
        for browser in self._browsers:
            browser.close()

    def send(self, requests: Sequence[Request]) -> tuple[list[bytes], dict[str, float]]:
        """Send all; the bodies of their answers, and ``requests``, ``rate`` (a second), ``p50`` and ``p99`` (ms).

        Raises BenchError unless every answer is a 200.
        """
        encoded = [request.encoded() for request in requests]
        todo = iter(range(len(requests)))  # of which each thread takes the next one
        bodies, seconds = [b""] * len(requests), [0.0] * len(requests)

        def work(browser: Browser) -> None:
            for number in todo:
                begun = time.perf_counter()
                bodies[number] = browser.send(encoded[number])
                seconds[number] = time.perf_counter() - begun

        begun = time.perf_counter()
        for done in [self._threads.submit(work, browser) for browser in self._browsers]:
            done.result()
        took = time.perf_counter() - begun
        return bodies, {
            "requests": len(requests),
            "rate": len(requests) / took,
            "p50": 1000 * quantile(seconds, 0.5),
            "p99": 1000 * quantile(seconds, 0.99),
        }
