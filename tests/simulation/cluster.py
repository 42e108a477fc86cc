"""The processes of a simulated cluster: servers and signers of this program, started, stopped, stalled and killed.

Rules of this module: the objects are those of the daemons. A server is :class:`notary.server.tap.Server` itself, whose
connection to the signer has no TLS; a signer is put together here, because ``notary.signer.tap`` demands TLS, and
because its custody wraps keys at no cost.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random
from typing import Any

import nacl.signing
from hpack import hpack
from hpack.huffman import HuffmanEncoder
from hyperframe.frame import Frame

from notary import certs
from notary.config import ServerConfig, load_server
from notary.daemon.serving import Serving
from notary.net.grpc import GrpcFactory
from notary.net.listen import listen
from notary.proto import paths, signer_pb2
from notary.server.signing import Signing, services
from notary.server.signing.spread import signers_of
from notary.server.tap import Server
from notary.signer.custody.in_memory import KeyInMemory
from notary.signer.keyring import Keyring
from notary.signer.metrics import SignerMetrics
from notary.signer.rpc import SERVICES, Rpc
from notary.signer.trial import Trial
from notary.signer.watches import HealthWatches
from notary.storage import StoredKey
from notary.storage import open as opening
from notary.storage.sql.dialect import PoolSettings
from notary.tuf import private, public
from notary.work.allowance import Allowance
from notary.work.usage import PoolUsage
from tests.simulation import driver
from tests.simulation.network import Network
from tests.simulation.reactor import Reactor
from tests.simulation.scheduler import Host, World
from tests.simulation.watch import ServerWatch, SignerWatch

REMEMBERED = 4096
"""How many results of a pure function are remembered."""

HTTP_PORT = 4443
GRPC_PORT = 7899
SERVERS = ("server-1", "server-2")
SIGNERS = ("signer-1", "signer-2")
SIGNER_THREADS = 3
_CONFIG = """{"server": {"http_addr": ":4443", "drain_timeout": 5},
  "trust_service": {"type": "remote", "hostname": "signer-1", "port": "7899", "key_algorithm": "ed25519"},
  "storage": {"backend": "sqlite3", "db_url": "server", "connections": 4, "query_timeout": 4},
  "lifetimes": {"timestamp": 86400, "snapshot": 864000},
  "limits": {"pending_keys_per_hour": 0, "idle_timeout": 8, "header_timeout": 5, "body_timeout": 8}}"""


class Custody:
    """Ed25519 keys of a chance that the seed decides; a stored key names its alias and is not wrapped."""

    makes = True

    def __init__(self, random: Random, alias: Callable[[], str]) -> None:
        self._random = random
        self._alias = alias

    @property
    def under(self) -> str:
        return self._alias()

    def make(self, gun: str, role: str, algorithm: str) -> tuple[KeyInMemory, StoredKey]:
        key = decoded(self._random.randbytes(32))
        row = StoredKey(key.public.key_id, algorithm, key.public.public, key.encode(), gun, role, self._alias())
        return KeyInMemory.of(key), row

    def open(self, row: StoredKey) -> KeyInMemory:
        return KeyInMemory.of(private.decode(row.algorithm, row.public, row.private))

    def check(self) -> None:
        """It needs nothing that could be away."""

    def close(self) -> None:
        """It holds nothing."""


def decoded(seed: bytes) -> private.PrivateKey:
    """Return the Ed25519 key of a seed."""
    secret = nacl.signing.SigningKey(seed)
    public = bytes(secret.verify_key)
    return private.decode("ed25519", public, public + seed + public)


class Signer(Serving):
    """A signer, as :class:`notary.signer.tap.Signer` puts it together, without TLS and with :class:`Custody`."""

    def __init__(self, reactor: Any, machine: Any, custody: Custody, settings: PoolSettings) -> None:
        super().__init__(reactor, SIGNER_THREADS, machine=machine)
        self.on_signed: Callable[[str], None] = lambda _key_id: None
        self._custody = custody
        self._settings = settings

    async def assemble(self) -> None:
        machine = self.machine
        store = await opening.open_key_store(
            "sqlite3",
            f"signer@{self.reactor.host.name}",
            self.reactor,
            replace(self._settings, usage=PoolUsage()),
            machine,
        )
        self.at_end(store.close)
        metrics = SignerMetrics(version="0")
        allowance = Allowance(0, self.reactor.seconds)
        self._trial = Trial(store.sample, self._custody.open, "alias", self.in_thread, self.reactor.seconds)
        self.keyring = Keyring(
            store,
            self._custody,
            self.in_thread,
            machine.utc_now,
            allow=allowance.take,
            on_made=self._trial.made,
        )
        rpc = Rpc(self.keyring, store.check, metrics, lambda: False, self.reactor.seconds, trial=self._trial)
        watches = HealthWatches(rpc.works, SERVICES, self.reactor)
        methods = {**rpc.methods(), paths.SIGN: self._watched(rpc.methods()[paths.SIGN])}
        self.grpc = GrpcFactory(methods, self.reactor, streaming=watches.methods(), on_finish=metrics.observe_call)
        self.at_end(lambda: self.grpc.stop(5.0))
        port = await listen(self.reactor, "", GRPC_PORT, self.grpc, None)
        self.at_end(port.stopListening)
        self.at_end(rpc.retire)

    def _watched(self, sign: Any) -> Any:
        """Have the history look at each signature, before the caller gets it."""

        def handle(request: bytes, context: Any) -> Any:
            answer = sign(request, context)
            key_id = signer_pb2.SignatureRequest.FromString(request).keyID.ID
            if isinstance(answer, bytes):
                self.on_signed(key_id)
                return answer
            return self._later(answer, key_id)

        return handle

    async def _later(self, answer: Any, key_id: str) -> bytes:
        made: bytes = await answer
        self.on_signed(key_id)
        return made


class Process:
    """A place in the cluster: it has a name and, most of the time, a running service."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.host = Host(name)
        self.host.dead = True
        self.service: Any = None
        self.reactor: Any = None
        self.state = "down"
        self.starts = 0
        self.error = ""

    def start(self) -> None:
        """Start a new process; it is up some time later."""
        assert self.state == "down"
        cluster = self.cluster
        self.host = driver.hosts[self.name] = Host(self.name)
        self.starts += 1
        self.reactor = Reactor(cluster.world, cluster.network, self.host)
        self.service = cluster.build(self)
        self.state = "starting"
        cluster.world.tell(f"start {self.name}")
        self.service.startService().addCallbacks(
            self._up, self._failed, callbackArgs=(self.host,), errbackArgs=(self.host,)
        )

    def _up(self, _: object, host: Host) -> None:
        if host is self.host and self.state == "starting":
            self.state = "up"
            host.after_step = self.cluster.watch(self)

    def _failed(self, failure: Any, host: Host) -> None:
        self.error = failure.getErrorMessage()
        self.cluster.world.tell(f"{self.name} cannot start: {self.error}")
        self.service.stopService()
        self.kill()
        self.cluster.world.later(self.cluster.ether, 1.0, self.start_if_down)

    def start_if_down(self) -> None:
        if self.state == "down":
            self.start()

    def kill(self) -> None:
        """End the process at once; the kernel resets its connections, and the database rolls back."""
        if self.state == "down":
            return
        world = self.cluster.world
        world.tell(f"kill {self.name}")
        self.host.dead = True
        world.graveyard.append((self.service, self.reactor))
        for timer in [timer for timer in world.timers if timer.host is self.host]:
            del world.timers[timer]
        self.cluster.network.host_died(self.host)
        for store in self.cluster.stores:
            store.host_died(self.host)
        self.service = None
        self.state = "down"

    def stop(self) -> None:
        """Stop the service as a signal does, and end the process when nothing is left."""
        assert self.state == "up"
        self.state = "stopping"
        self.cluster.world.put(self.host, self.cluster.world.now, self._stop)

    def _stop(self) -> None:
        host = self.host
        self.cluster.world.tell(f"stop {self.name}")
        self.service.stopService().addCallback(self._stopped, host)

    def _stopped(self, _: object, host: Host) -> None:
        if host is self.host and self.state == "stopping":
            self.cluster.check_leftovers(self)
            self.kill()


class Cluster:
    """Two servers, two signers, their two databases, and the network between them and their clients."""

    def __init__(self, world: World, knobs: Mapping[str, Any]) -> None:
        self.world = world
        self.network = Network(world)
        self.ether = Host("ether")
        """Runs what is no process: actors, faults."""
        self.stores = driver.open_stores(world)
        self.server_store, self.signer_store = self.stores
        for store in self.stores:
            store.pace = knobs.get("statement_seconds", store.pace)
            store.heal()
        self.knobs = knobs
        self.alias = "alias_1"
        self.processes = {name: Process(self, name) for name in (*SIGNERS, *SERVERS)}
        self.leftovers: list[str] = []
        self.on_signed: Callable[[str], None] = lambda _key_id: None
        """Called with the id of each key that has signed, before the signature leaves the signer."""
        self.key_row: Callable[[str], tuple[str, str, str | None] | None] = lambda _key_id: None
        """Returns the collection, the role and the first use of a key that is stored."""
        self._config = _config()
        if "renew_at" in knobs:
            self._config = replace(self._config, lifetimes=replace(self._config.lifetimes, renew_at=knobs["renew_at"]))
        self._settings = PoolSettings(connections=4, query_timeout=4.0)
        for name in (*SERVERS, *SIGNERS):
            self.network.address(name)

    def build(self, process: Process) -> Any:
        reactor, machine = process.reactor, process.reactor.machine()
        if process.name in SIGNERS:
            custody = Custody(self.world.random(f"custody/{process.name}/{process.starts}"), lambda: self.alias)
            signer = Signer(reactor, machine, custody, self._settings)
            signer.on_signed = self.on_signed
            return signer
        config = replace(
            self._config,
            storage=replace(
                self._config.storage, db_url=f"server@{process.name}", connections=self.knobs["connections"]
            ),
            trust_service=replace(self._config.trust_service, addresses=self.knobs["signers"][process.name]),
            caching=replace(self._config.caching, memory_bytes=self.knobs.get("cache_bytes", 1 << 24)),
        )
        return Server(config, reactor, logs_info=lambda: False, machine=machine)

    def watch(self, process: Process) -> Callable[[], None]:
        """Return what looks at a process after each of its steps."""
        if process.name in SIGNERS:
            return SignerWatch(process.host, process.service.keyring, self.key_row)
        return ServerWatch(process.host, process.service._metrics)

    def check_leftovers(self, process: Process) -> None:
        """Note what a service that has stopped still holds."""
        timers = [timer for timer in process.reactor.getDelayedCalls() if timer.active()]
        self.leftovers += [f"{process.name}: timer {timer.func!r}" for timer in timers]
        links = [
            link.name for link in self.network.links for end in link.ends if end.host is process.host and end.protocol
        ]
        self.leftovers += [f"{process.name}: connection {name}" for name in links]
        threads = self.world.threads_of(process.host)
        self.leftovers += [f"{process.name}: thread {thread}" for thread in threads]
        for store in self.stores:
            held = sum(connection.host is process.host for connection in store.connections)
            self.leftovers += [f"{process.name}: {held} connections to the database"] * bool(held)


@functools.cache
def _config() -> ServerConfig:
    """Read the configuration of the servers."""
    return load_server(_CONFIG, {}, "/")


def between(one: str, other: str) -> str:
    """Return the name of the network between two hosts, as a place of faults."""
    return "~".join(sorted((one, other)))


def plain_signers(trust: Any, reactor: Any) -> Signing:
    """Build the client of the signers as ``notary.server.signing.spread.build`` does, without TLS."""
    chance = reactor.world.random(f"channel/{reactor.host.name}").random
    signers = reactor.host.signers = signers_of(trust, reactor, None, chance)
    return Signing(signers, "Using remote signing service", states=signers.states, show=signers.show)


def remembering_verification(verify: Callable[..., bytes | None]) -> Callable[..., bytes | None]:
    """Return ``verify``, which verifies one signature: what it found is remembered, for it follows from its arguments.

    Both servers, and the history, look at the same signatures again and again.
    """
    found: dict[tuple[object, ...], bytes | None] = {}

    def look(key: Any, signature: Any, message: Any, load: Any) -> bytes | None:
        what = (key.key_type, key.public, signature.method, signature.sig, message.data)
        if what not in found:
            if len(found) >= REMEMBERED:
                found.clear()
            found[what] = verify(key, signature, message, load)
        return found[what]

    return look


def know_own_signatures() -> None:
    """Let Ed25519 keys know the signatures that were made in this process: to verify one takes longer than to sign."""
    made: dict[tuple[bytes, bytes, bytes], None] = {}
    sign, verify = nacl.signing.SigningKey.sign, nacl.signing.VerifyKey.verify

    def sign_and_note(key: nacl.signing.SigningKey, message: bytes) -> nacl.signing.SignedMessage:
        signed = sign(key, message)
        if len(made) >= REMEMBERED:
            made.clear()
        made[bytes(key.verify_key), message, signed.signature] = None
        return signed

    def look_or_verify(key: nacl.signing.VerifyKey, message: bytes, signature: bytes) -> bytes:
        return message if (bytes(key), message, signature) in made else verify(key, message, signature)

    nacl.signing.SigningKey.sign = sign_and_note  # type: ignore[method-assign, assignment]
    nacl.signing.VerifyKey.verify = look_or_verify  # type: ignore[method-assign, assignment]


def install() -> None:
    """Put the simulated database, and signers without TLS, into the tables of this process.

    Work without an effect, and work that has been done with the same result before, is left out.
    """
    opening.DIALECTS = {"sqlite3": driver.dialect()}
    services.SERVICES = {"remote": plain_signers}
    know_own_signatures()
    public._identity = remembering_verification(public._identity)
    certs.all_in_pem = functools.lru_cache(REMEMBERED)(certs.all_in_pem)
    certs.first_in_pem = functools.lru_cache(REMEMBERED)(certs.first_in_pem)
    decode = functools.lru_cache(REMEMBERED)(hpack.decode_huffman)  # type: ignore[attr-defined]
    encode = functools.lru_cache(REMEMBERED)(hpack.Encoder().huffman_coder.encode)
    hpack.decode_huffman = lambda text: decode(bytes(text))  # type: ignore[attr-defined]
    HuffmanEncoder.encode = lambda _encoder, text: encode(text)  # type: ignore[method-assign]
    Frame.__repr__ = object.__repr__  # type: ignore[method-assign]  # h2 asks for it at each frame, for a log
