"""The suites: what is started, what is asked of it, and the rows that the answers fill.

Rules of this module: both sides get the same configuration, the same data and the same load. What prepares a
measurement (keys, uploads, first signatures) happens before its clock starts. Everything listens on loopback; a
process is ended by the code that started it. A suite is a class with ``title``, ``text``, ``rows``, a context that runs
its processes, and ``works``; ``__main__`` lists them.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import grpc
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

from notary.proto import signer_pb2
from tests.bench.figures import GO, OURS, SIDES, BenchError, Row, at_least, under
from tests.bench.grpcload import FRAMES, GRPCIO, Target, load
from tests.bench.httpload import Browser, Crowd, Request, wrk
from tests.bench.processes import Side, memory, start
from tests.support.author import Author, server_key_from
from tests.support.peers import GO_SERVER, OUR_SERVER, Certificates, Daemon, daemon
from tests.support.sides import MULTIPART, form_of
from tests.support.signer import GO_SIGNER, OUR_SIGNER, Client, Pair, signer_daemon

KEYS = 50
FIXTURES = Path(__file__).parents[2] / "fixtures"
ROOT_CA = FIXTURES / "root-ca.crt"

Work = Callable[[Side], Mapping[str, float]]


@dataclass(frozen=True)
class Pace:
    """How long a measurement takes, how long a process rests before its memory counts as idle, how many uploads.

    ``workers`` says whether ours is measured with two of them as well.
    """

    seconds: float
    rest: float
    uploads: int
    workers: bool = True


class Suite(Protocol):
    """See the rules of this module."""

    title: str
    text: str
    rows: Sequence[Row]

    def __init__(self, folder: Path, pace: Pace) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...

    @property
    def sides(self) -> Mapping[str, Side]:
        """The running processes."""
        ...

    def works(self) -> Mapping[str, Work]:
        """What to measure in every round, by name."""
        ...


class _Running(ABC):
    """Processes that live as long as a ``with``, and the measurement of starting one more of them."""

    part: str

    def __init__(self, folder: Path, pace: Pace) -> None:
        self.folder = folder
        self.pace = pace
        self.sides: dict[str, Side] = {}
        self._stack = contextlib.ExitStack()

    @abstractmethod
    def make(self, side: str, name: str) -> Daemon:
        """A daemon of this side, not started."""

    @abstractmethod
    def prepare(self, side: Side) -> None:
        """Fill a running side with what will be asked for."""

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for name in SIDES:
                made = self.make(name, f"{name}-{self.part}")
                stack.callback(made.kill)
                start(made)
                self.sides[name] = Side(name, {self.part: made})
                self._prepare(self.sides[name])
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _prepare(self, side: Side) -> None:
        try:
            self.prepare(side)
        except (BenchError, grpc.RpcError, InvalidSignature) as error:
            output = "".join(one.output() for one in side.processes.values())
            raise BenchError(f"{side.name}-{self.part} is not as it should be: {error!r}\n{output}") from error

    def starting(self, side: Side) -> dict[str, float]:
        """Start one more process, let it rest, end it."""
        one = self.make(side.name, f"{side.name}-{self.part}-idle")
        try:
            seconds = start(one)
            time.sleep(self.pace.rest)
            return {f"{self.part} start": 1000 * seconds, f"{self.part} idle": memory(one.pid, "VmRSS")}
        finally:
            one.kill()


class Signers(_Running):
    """Two signers on memory, with ecdsa keys, under mutual TLS."""

    title = "Sign, both on memory"
    text = (
        f"gRPC over mutual TLS, one connection, {KEYS} ecdsa keys in turn, messages of 0.5 KB; every key has\n"
        "signed before. The load comes from one process of `tests/bench/grpcload.py`: from ready-made frames, which\n"
        "leave nearly all of the machine to the signer, or from grpcio, as an example of real clients. The share of a\n"
        "core that this process used tells how far it was what limited the rate."
    )
    rows = (
        Row("sign-1 p50", "1 in flight, p50", "ms"),
        Row("sign-1 p99", "1 in flight, p99", "ms"),
        Row("sign-1 signer cpu", "1 in flight, CPU of the signer", "ms/sign"),
        Row("sign-grpcio-1 p50", "1 in flight, by grpcio, p50", "ms"),
        Row("sign-grpcio-1 signer cpu", "1 in flight, by grpcio, CPU of the signer", "ms/sign"),
        Row("sign-16 rate", "16 in flight", "signs/s", at_least(0.5)),
        Row("sign-16 p99", "16 in flight, p99", "ms"),
        Row("sign-16 signer cpu", "16 in flight, CPU of the signer", "ms/sign"),
        Row("sign-16 generator", "16 in flight, the load", "% of a core"),
        Row("sign-32 rate", "32 in flight", "signs/s"),
        Row("sign-32 p99", "32 in flight, p99", "ms"),
        Row("sign-32 signer cpu", "32 in flight, CPU of the signer", "ms/sign"),
        Row("sign-32 generator", "32 in flight, the load", "% of a core"),
        Row("sign-grpcio-16 rate", "16 in flight, by grpcio", "signs/s", at_least(0.5)),
        Row("sign-grpcio-16 signer cpu", "16 in flight, by grpcio, CPU of the signer", "ms/sign"),
        Row("sign-grpcio-16 generator", "16 in flight, by grpcio, the load", "% of a core"),
        Row("sign-grpcio-32 rate", "32 in flight, by grpcio", "signs/s"),
        Row("sign-grpcio-32 signer cpu", "32 in flight, by grpcio, CPU of the signer", "ms/sign"),
        Row("sign-grpcio-32 generator", "32 in flight, by grpcio, the load", "% of a core"),
        Row("signer start", "start to ready", "ms", under(1000, "ms")),
        Row("signer idle", "memory, idle", "MB"),
        Row("signer peak", "memory, most", "MB", under(90, "MB")),
    )
    part = "signer"

    def __init__(self, folder: Path, pace: Pace) -> None:
        super().__init__(folder, pace)
        self._pair = Pair.mint(folder / "certificates")
        self._targets: dict[str, Target] = {}

    def make(self, side: str, name: str) -> Daemon:
        command = {GO: GO_SIGNER, OURS: OUR_SIGNER}[side]
        # The Go signer wants a default passphrase even where it keeps nothing.
        secret = {"NOTARY_SIGNER_DEFAULT_ALIAS": "bench", "NOTARY_SIGNER_BENCH": "of no worth"}
        storage = {"backend": "memory"}
        return signer_daemon(name, command, self._pair, self.folder, storage, environment=secret)

    def prepare(self, side: Side) -> None:
        self._targets[side.name] = sign_target(self._pair, side.processes["signer"].port)
        self.sign(side, 16)  # what is slow only once

    def sign(self, side: Side, in_flight: int, client: str = FRAMES) -> dict[str, float]:
        work = f"sign-{in_flight}" if client == FRAMES else f"sign-{client}-{in_flight}"
        target = self._targets[side.name]
        return side.measure(work, lambda: load(target, client, in_flight, self.pace.seconds))

    def works(self) -> Mapping[str, Work]:
        return {
            "start": self.starting,
            **{f"sign, {n} in flight": lambda side, n=n: self.sign(side, n) for n in (1, 16, 32)},
            **{f"sign by grpcio, {n} in flight": lambda side, n=n: self.sign(side, n, GRPCIO) for n in (1, 16, 32)},
            "memory": Side.peak,
        }


def sign_target(pair: Pair, port: int) -> Target:
    """A signer's method Sign, with requests for new keys that have each signed once."""
    message = json.dumps({"signed": {"_type": "Timestamp", "filling": "x" * 460}}).encode()
    requests = []
    with Client(pair, port) as client:
        for number in range(KEYS):
            made = client.create(f"example.com/bench/{number}", "timestamp", "ecdsa")
            key_id = made.keyInfo.keyID.ID
            _check_signature(made.publicKey, client.sign(key_id, message).content, message)
            request = signer_pb2.SignatureRequest(keyID=signer_pb2.KeyID(ID=key_id), content=message)
            requests.append(request.SerializeToString())
    certificate, key = pair.client.write(pair.folder, "load")
    ca = pair.authority.write(pair.folder, "root")
    return Target(port, ca, certificate, key, "/proto.Signer/Sign", requests)


def _check_signature(public: bytes, signature: bytes, message: bytes) -> None:
    """Raises InvalidSignature."""
    r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
    key = load_der_public_key(public)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))


class Servers(_Running):
    """Two servers on memory with their local signers."""

    title = "Server, both on memory with the local signer"
    text = (
        "Reads by wrk, one collection of one target, 32 connections. A first publish uploads root, targets and\n"
        "snapshot, and the server signs the timestamp with ed25519. Uploads are prepared before the clock starts.\n"
        "No database is asked, so this is what HTTP and TLS alone take; of a new connection, wrk's own side takes\n"
        "half of the machine, for either server."
    )
    rows = (
        Row("timestamp rate", "GET current timestamp", "requests/s"),
        Row("timestamp p99", "GET current timestamp, p99", "ms"),
        Row("timestamp server cpu", "GET current timestamp, CPU", "ms/request"),
        Row("checksum rate", "GET by checksum, 0.5 KB", "requests/s", at_least(0.8)),
        Row("checksum p99", "GET by checksum, p99", "ms"),
        Row("checksum server cpu", "GET by checksum, CPU", "ms/request"),
        Row("handshake rate", "a new TLS connection per request", "requests/s"),
        Row("handshake server cpu", "a new TLS connection per request, CPU", "ms/request"),
        Row("publish p50", "first publish, 1 in flight, p50", "ms"),
        Row("publish server cpu", "first publish, CPU", "ms/publish"),
        Row("server start", "start to ready", "ms", under(1000, "ms")),
        Row("server idle", "memory, idle", "MB"),
        Row("server peak", "memory, most", "MB", under(90, "MB")),
    )
    part = "server"

    def __init__(self, folder: Path, pace: Pace) -> None:
        super().__init__(folder, pace)
        self._numbers = itertools.count()
        self._paths: dict[str, tuple[str, str]] = {}

    def make(self, side: str, name: str) -> Daemon:
        files = Certificates(ROOT_CA, FIXTURES / "notary-server.crt", FIXTURES / "notary-server.key")
        return daemon(name, {GO: GO_SERVER, OURS: OUR_SERVER}[side], self.folder, tls=files)

    def prepare(self, side: Side) -> None:
        with self._browser(side) as browser:
            files, path = self._collection(browser)
            browser.send(Request("POST", path, form_of(files), MULTIPART).encoded())
        url = side.processes["server"].url + path
        digest = hashlib.sha256(files["targets"]).hexdigest()
        self._paths[side.name] = (f"{url}timestamp.json", f"{url}targets.{digest}.json")

    def _browser(self, side: Side) -> contextlib.closing[Browser]:
        return contextlib.closing(Browser(side.processes["server"].port, ROOT_CA))

    def _collection(self, browser: Browser) -> tuple[dict[str, bytes], str]:
        """The first files of a new collection, and the path to upload them to."""
        gun = f"example.com/bench/{next(self._numbers)}"
        path = f"/v2/{gun}/_trust/tuf/"
        author = Author(gun, timestamp=server_key_from(browser.send(Request("GET", f"{path}timestamp.key").encoded())))
        author.add("v1", b"content")
        return author.first(), path

    def read(self, side: Side, work: str, *, keep_alive: bool = True) -> dict[str, float]:
        url = self._paths[side.name][work == "checksum"]
        return side.measure(work, lambda: wrk(url, 32, self.pace.seconds, keep_alive=keep_alive))

    def publish(self, side: Side) -> dict[str, float]:
        with self._browser(side) as browser:
            made = [self._collection(browser) for _ in range(self.pace.uploads)]
        uploads = [Request("POST", path, form_of(files), MULTIPART) for files, path in made]
        with contextlib.closing(Crowd(1, side.processes["server"].port, ROOT_CA)) as crowd:
            return side.measure("publish", lambda: crowd.send(uploads)[1])

    def works(self) -> Mapping[str, Work]:
        return {
            "start": self.starting,
            "GET timestamp": lambda side: self.read(side, "timestamp"),
            "GET by checksum": lambda side: self.read(side, "checksum"),
            "new TLS connections": lambda side: self.read(side, "handshake", keep_alive=False),
            "first publish": self.publish,
            "memory": Side.peak,
        }
