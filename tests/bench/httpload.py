"""Load over HTTPS: wrk for reads, and uploads one after the other.

Rules of this module: every answer must be a success, otherwise there is no figure but a BenchError.
"""

from __future__ import annotations

import http.client
import re
import shutil
import ssl
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.bench.figures import BenchError, quantile

_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}
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
    body: bytes | None = None
    content_type: str = ""


class Browser:
    """One keep-alive connection to a server."""

    def __init__(self, port: int, ca: Path) -> None:
        context = ssl.create_default_context(cafile=ca)
        self._connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=_TIMEOUT)

    def close(self) -> None:
        self._connection.close()

    def request(self, method: str, path: str, body: bytes | None = None, content_type: str = "") -> bytes:
        """The body of the answer. Raises BenchError unless it is a 200."""
        try:
            self._connection.request(method, path, body, {"Content-Type": content_type} if content_type else {})
            answer = self._connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise BenchError(f"{method} {path}: {type(error).__name__}: {error}") from error
        if answer.status != http.client.OK:
            raise BenchError(f"{method} {path}: {answer.status} {data[:500].decode(errors='replace')}")
        return data

    def send(self, request: Request) -> bytes:
        """As :meth:`request`."""
        return self.request(request.method, request.path, request.body, request.content_type)


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
        todo = iter(range(len(requests)))  # of which each thread takes the next one
        bodies, seconds = [b""] * len(requests), [0.0] * len(requests)

        def work(browser: Browser) -> None:
            for number in todo:
                begun = time.perf_counter()
                bodies[number] = browser.send(requests[number])
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
