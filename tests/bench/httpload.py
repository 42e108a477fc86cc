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
from pathlib import Path

from tests.bench.figures import BenchError, quantile

_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}
_SPARE_SECONDS = 30.0
_TIMEOUT = 10.0


def parse_wrk(output: str) -> dict[str, float]:
    """What ``wrk --latency`` printed: ``requests``, ``rate`` (a second), ``p50`` and ``p99`` (ms).

    Raises BenchError if a request failed.
    """
    failed = re.search(r"Non-2xx or 3xx responses: \d+|Socket errors: .*", output)
    count = re.search(r"(\d+) requests in ", output)
    rate = re.search(r"^Requests/sec:\s+([\d.]+)", output, re.MULTILINE)
    parts = dict(re.findall(r"^\s+(50|99)%\s+([\d.]+(?:us|ms|s|m))$", output, re.MULTILINE))
    if failed or not count or not rate or len(parts) != 2 or not int(count[1]):
        raise BenchError(f"wrk found no figures:\n{output}")
    return {
        "requests": float(count[1]),
        "rate": float(rate[1]),
        "p50": _milliseconds(parts["50"]),
        "p99": _milliseconds(parts["99"]),
    }


def _milliseconds(text: str) -> float:
    value, unit = re.fullmatch(r"([\d.]+)(\w+)", text).groups()
    return float(value) * _UNITS[unit]


def wrk(url: str, connections: int, seconds: float, *, keep_alive: bool = True) -> dict[str, float]:
    """GET ``url`` over and over; see :func:`parse_wrk`. wrk counts whole seconds."""
    if shutil.which("wrk") is None:
        raise BenchError("wrk is not installed: it is in the Debian package wrk, which `make bench` installs")
    command = ["wrk", "--latency", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s"]
    command += [] if keep_alive else ["-H", "Connection: close"]
    done = subprocess.run(
        [*command, url], capture_output=True, text=True, timeout=seconds + _SPARE_SECONDS, check=False
    )
    return parse_wrk(done.stdout + done.stderr)


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

    def upload(self, uploads: Sequence[tuple[str, bytes]], content_type: str) -> dict[str, float]:
        """POST each body to its path, one at a time: ``requests``, ``rate`` (a second), ``p50`` and ``p99`` (ms)."""
        seconds = []
        for path, body in uploads:
            begun = time.perf_counter()
            self.request("POST", path, body, content_type)
            seconds.append(time.perf_counter() - begun)
        return {
            "requests": len(seconds),
            "rate": len(seconds) / sum(seconds),
            "p50": 1000 * quantile(seconds, 0.5),
            "p99": 1000 * quantile(seconds, 0.99),
        }
