"""What a service tells systemd (sd_notify(3)) and gets from it (the sockets of sd_listen_fds(3)).

Rules of this module: both protocols are a few lines, so there is no library. Without systemd nothing happens and
nothing fails; a message that cannot be sent is dropped, because the service itself works. A socket that is passed and
cannot be used is a ConfigError: to bind another one instead would serve nobody.
"""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Mapping
from typing import Final

from notary.errors import ConfigError

_FIRST_DESCRIPTOR: Final = 3  # of the sockets that are passed
_FAMILIES: Final = frozenset({socket.AF_INET, socket.AF_INET6, socket.AF_UNIX})


class Notifier:
    """Tells the service manager of ``environ`` (NOTIFY_SOCKET), if there is one, how the service is doing."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        if address.startswith("@"):
            address = "\0" + address[1:]  # Linux's abstract names
        self._address = address if address[:1] in ("/", "\0") else ""
        self.watchdog = self._watchdog(environ)
        """The longest time, in seconds, between two signs of life; None if the service manager expects none."""

    def _watchdog(self, environ: Mapping[str, str]) -> float | None:
        try:
            seconds = int(environ.get("WATCHDOG_USEC", "0")) / 1e6
            process = int(environ.get("WATCHDOG_PID", str(os.getpid())))
        except ValueError:
            return None
        return seconds if self._address and seconds > 0 and process == os.getpid() else None

    def ready(self, status: str) -> None:
        """Say that the start, or a reload, is done."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Say that a reload begins; ``ready`` ends it."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={microseconds}", "STATUS=Reloading")

    def stopping(self) -> None:
        """Say that the stop begins."""
        self._send("STOPPING=1", "STATUS=Stopping: no new connections, answers under way are finished")

    def alive(self) -> None:
        """Give a sign of life."""
        self._send("WATCHDOG=1")

    def starting(self, status: str, seconds: float) -> None:
        """Say that the start goes on, and that the next message may take ``seconds`` from now."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}", f"STATUS={status}")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        message = "\n".join(line.replace("\n", " ") for line in lines).encode()
        try:
            with socket.socket(
                socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            ) as sender:
                sender.sendto(message, self._address)
        except OSError:
            return  # nobody listens, or not fast enough


def passed_sockets(environ: Mapping[str, str]) -> tuple[socket.socket, ...]:
    """Return the listening sockets that were passed to this process (LISTEN_PID, LISTEN_FDS), in their order.

    ``environ`` is that of :mod:`notary.daemon.environment`. There are none if they were meant for another process.
    Raises ConfigError for a descriptor that is no listening stream socket of TCP or of the Unix domain.
    """
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return ()
    given = environ.get("LISTEN_FDS", "")
    if not given.isdecimal():
        raise ConfigError(f'LISTEN_FDS: "{given}" is not a number; expected how many sockets are passed')
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    numbers = range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + int(given))
    return tuple(_adopt(number, name) for number, name in zip(numbers, [*names, *[""] * len(numbers)], strict=False))


def _adopt(number: int, name: str) -> socket.socket:
    called = f"LISTEN_FDS: descriptor {number}" + (f' ("{name}")' if name else "")
    try:
        if not stat.S_ISSOCK(os.fstat(number).st_mode):
            raise ConfigError(f"{called} is not a socket; expected a listening stream socket (ListenStream=)")
        passed = socket.socket(fileno=number)
    except OSError as error:
        raise ConfigError(f"{called} cannot be used ({error.strerror}); expected a listening stream socket") from None
    listens = passed.type == socket.SOCK_STREAM and passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if passed.family not in _FAMILIES or not listens:
        passed.detach()  # stays open: the service manager may want to look at the descriptor
        raise ConfigError(
            f"{called} is not a listening stream socket of TCP or of the Unix domain; "
            f"expected one (ListenStream=, Accept=no)"
        )
    passed.set_inheritable(False)
    passed.setblocking(False)
    return passed
