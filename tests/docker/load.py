"""Readers and publishers that go on while containers come and go, and count what became of each try."""

from __future__ import annotations

import http.client
import ssl
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.support.goclient import Machine

PATIENCE = 60.0
"""Seconds that a read may take in all, tries included."""

PAUSE = 0.25
"""Seconds between two tries."""


@dataclass
class Reads:
    """What readers saw: how many reads ended well, how many had to be tried again, and those that never ended well."""

    done: int = 0
    retried: int = 0
    failed: list[str] = field(default_factory=list)


class Reader(threading.Thread):
    """Reads one path over and over on a connection that it keeps, as any HTTP client does.

    A kept connection that turns out closed is replaced at once and is no failure: RFC 9112, section 9.3.1. An answer of
    5xx and a connection that cannot be made are tried again, as ``curl --retry --retry-connrefused`` does, and counted.
    """

    def __init__(self, path: str, ca: Path, reads: Reads) -> None:
        super().__init__(daemon=True)
        self._path = path
        self._context = ssl.create_default_context(cafile=str(ca))
        self._reads = reads
        self._ending = threading.Event()
        self._connection: http.client.HTTPSConnection | None = None

    def run(self) -> None:
        """Read until told to stop."""
        while not self._ending.is_set():
            deadline = time.monotonic() + PATIENCE
            while (trouble := self._read()) and time.monotonic() < deadline:
                self._reads.retried += 1
                time.sleep(PAUSE)
            if trouble:
                self._reads.failed.append(trouble)
            else:
                self._reads.done += 1
        self._drop()

    def stop(self) -> None:
        """Finish the read that is under way, and end."""
        self._ending.set()
        self.join()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _read(self) -> str:
        """Read once; "" or what went wrong."""
        kept = self._connection is not None
        try:
            return self._ask()
        except (OSError, http.client.HTTPException) as error:
            self._drop()
            if not kept:
                return repr(error)
        try:
            return self._ask()
        except (OSError, http.client.HTTPException) as error:
            self._drop()
            return repr(error)

    def _ask(self) -> str:
        if self._connection is None:
            self._connection = http.client.HTTPSConnection("localhost", 4443, timeout=15, context=self._context)
        self._connection.request("GET", self._path)
        answer = self._connection.getresponse()
        body = answer.read()
        return "" if answer.status == 200 else f"{answer.status} {body[:200]!r}"


class Publisher(threading.Thread):
    """Publishes one target after the other with the stock client, and remembers which were acknowledged."""

    def __init__(self, machine: Machine, gun: str) -> None:
        super().__init__(daemon=True)
        self.machine = machine
        self.gun = gun
        self.acknowledged: set[str] = set()
        self.refused = 0
        self._ending = threading.Event()
        (machine.directory / "file").write_bytes(b"content")

    def run(self) -> None:
        """Publish until told to stop."""
        number = 0
        while not self._ending.is_set():
            number += 1
            name = f"v{number}"
            self.machine("add", self.gun, name, "file")
            if self.machine.run("publish", self.gun).returncode == 0:
                self.acknowledged.add(name)
            else:  # it stays staged, and goes with the next one
                self.refused += 1
                time.sleep(PAUSE)

    def stop(self) -> None:
        """Finish what is under way, and end."""
        self._ending.set()
        self.join()


@dataclass
class Load:
    """Readers and a publisher of one collection, for as long as the context lasts."""

    machine: Machine
    gun: str
    ca: Path
    readers: int = 8
    reads: Reads = field(default_factory=Reads)

    def __enter__(self) -> Self:
        self.publisher = Publisher(self.machine, self.gun)
        paths = [f"/v2/{self.gun}/_trust/tuf/{role}.json" for role in ("timestamp", "root", "targets", "snapshot")]
        self._readers = [Reader(paths[number % 4], self.ca, self.reads) for number in range(self.readers)]
        for thread in (*self._readers, self.publisher):
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in (*self._readers, self.publisher):
            thread.stop()

    def goes_on(self, reads: int = 200, publishes: int = 1, seconds: float = 60) -> None:
        """Wait until this many more reads and publishes have ended well; AssertionError if that does not happen."""
        done, acknowledged = self.reads.done + reads, len(self.publisher.acknowledged) + publishes
        deadline = time.monotonic() + seconds
        while self.reads.done < done or len(self.publisher.acknowledged) < acknowledged:
            assert time.monotonic() < deadline, (self.reads, len(self.publisher.acknowledged), self.publisher.refused)
            time.sleep(0.05)
