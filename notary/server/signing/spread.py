"""A signing service that is several notary-signers: calls are spread over them, and one that fails is repeated.

Rules of this module:

- Any of the signer's four methods may be called again, at another signer or at the same one, while the first call may
  still have its effect. *Sign* and *GetKeyInfo* store nothing but the time of a key's first use, and any of two
  signatures by one key over one payload is as good as the other. *CreateKey* returns the pending key of a collection
  and role if there is one, so a repeat finds the key that the first call made; where two signers make one each at the
  same moment, one of them is never used. *DeleteKey* (which a server never calls) succeeds for a key that is gone.
- Repeats are bounded: ``MAX_ATTEMPTS`` for one call, the time of the first attempt for all, and a ``Budget`` for all
  calls together. An answer that says that there is too much to do (RESOURCE_EXHAUSTED) is never repeated.
- A call that takes ``LATE_FACTOR`` times its usual time is also sent to another signer, and the first answer counts.
- NOT_FOUND is believed once a second process says so too: signers on different nodes of a database may not see a new
  key at the same moment. That is one call more, beside the budget.
- One signer may have several processes at one address, and the kernel chooses which of them gets a connection. The
  processes of our signers say how many they are, and each has an id: connections are made anew until there is one to
  each process. A signer that does not say so gets one connection, or two if there is no other signer.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Generic, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredList, fail, gatherResults
from twisted.internet.interfaces import IDelayedCall, IOpenSSLClientConnectionCreator, IReactorTime
from twisted.python.failure import Failure

from notary.config import TrustService
from notary.config.files import SIGNER_CLIENT_TLS
from notary.config.values import Address
from notary.errors import KeyNotFound, NotaryError, SigningFailed
from notary.net.address import join
from notary.net.grpc import Channel, RpcError, Status
from notary.net.tls import contexts
from notary.net.tls.wording import Wording
from notary.observe.metrics import DaemonMetrics
from notary.server.signing import SERVING, Signing
from notary.server.signing.directory import Directory, resolver
from notary.server.signing.links import Link, best, best_other
from notary.server.signing.remote import SIGNER_SECONDS, RemoteSigner
from notary.server.sources import Source
from notary.tuf.model import Gun, RoleName
from notary.tuf.public import PublicKey
from notary.work.attempts import Budget, UsualTime
from notary.work.backoff import Backoff
from notary.work.reactor import Reactor
from notary.work.singleflight import SingleFlight

MAX_ATTEMPTS: Final = 4
"""How often one call is sent, the first time included."""

LATE_FACTOR: Final = 10.0
"""A call is late after so many times its usual time."""

LATE_SECONDS: Final = 0.05
"""The shortest time after which a call is late: less is the noise of a busy machine."""

LATE_AT_FIRST_SECONDS: Final = 1.0
"""After how long a call is late before the first one has ended."""

REPEATS_SHARE: Final = 0.1
"""The share of all calls that are repeated at most, in the long run."""

MOST_REPEATS: Final = 250.0
"""How many calls are repeated at once at most, as when a signer dies that many calls wait for."""

MAX_LINKS: Final = 32
"""How many connections there are to one address at most."""

_RECONNECT: Final = Backoff(first=0.05, most=30.0, factor=1.5, jitter=0.2)
"""The pauses, in seconds, before a connection that leads to a process that has one already is made anew."""

_NOT_REPEATED: Final = frozenset({Status.RESOURCE_EXHAUSTED, Status.CANCELLED})

T = TypeVar("T")
Connect = Callable[[Address, Callable[[], object], bool], Channel]
"""Makes the channel to an address; it gets what to call when the channel can take calls, and whether not to log."""


class Place:
    """The signer at one address, and the connections to its processes."""

    def __init__(self) -> None:
        self.links: list[Link] = []
        self.processes = 1
        self.tries = 0
        """Number of connections in a row that led to a process that had one already."""
        self.results: Counter[str] = Counter({"ok": 0, "failed": 0, "late": 0})
        """Number of attempts of calls, by their outcome."""


class _Call(Generic[T]):
    """One call of a server: all attempts together."""

    def __init__(self, signers: Signers, method: str, work: Callable[[RemoteSigner, float], Deferred[T]]) -> None:
        self.result: Deferred[T] = Deferred(lambda _: self._give_up())
        self._signers = signers
        self._usual = signers.usual[method]
        self._work = work
        self._deadline = signers.clock.seconds() + SIGNER_SECONDS
        self._tried: list[Link] = []
        self._running: dict[Link, Deferred[Any]] = {}
        self._timer: IDelayedCall | None = None
        self._was_late = False
        self._not_found: Failure | None = None
        self._over = False

    def attempt(self, link: Link) -> None:
        """Send the call on a link, which may have to connect first."""
        signers, now = self._signers, self._signers.clock.seconds()
        self._tried.append(link)
        signers.begun(link)
        work = self._work(link.signer, self._deadline - now)
        self._running[link] = work
        if link.ready:
            self._watch(link)
        else:
            signers.waiting[self] = None
        work.addBoth(self._ended, link, now)

    def use(self, link: Link) -> None:
        """Go on with a link that has a connection now; the call waits for one, alone or as it is late."""
        if link in self._running:
            self._watch(link)
        elif late := [each for each in self._running if each.ready]:
            self._is_late(late[0])
        elif len(self._tried) < MAX_ATTEMPTS:
            self.attempt(link)

    def _watch(self, link: Link) -> None:
        """See to it that the call does not wait for ``link`` alone if the call is late."""
        self._signers.waiting.pop(self, None)
        if self._timer is None and not self._was_late:
            seconds = self._usual.late_after(LATE_FACTOR, LATE_SECONDS, LATE_AT_FIRST_SECONDS)
            self._timer = self._signers.clock.callLater(seconds, self._is_late, link)

    def _is_late(self, link: Link) -> None:
        """Send the call to another signer too, as soon as one has a connection."""
        signers = self._signers
        signers.waiting.pop(self, None)
        self._timer = None
        other = best_other(signers.links(), self._tried, signers.clock.seconds())
        if other is None:
            signers.waiting[self] = None
            return
        if other.same_process(link) or len(self._tried) >= MAX_ATTEMPTS:
            return
        if signers.may_repeat("late"):
            self._was_late = True
            signers.was_late(link)
            self.attempt(other)

    def _ended(self, result: Any, link: Link, begun: float) -> None:
        signers = self._signers
        self._running.pop(link, None)
        if self._over:
            signers.ended(link)
        elif not isinstance(result, Failure):
            self._usual.observe(signers.clock.seconds() - begun)
            signers.ended(link, "ok")
            self._give_up()
            self.result.callback(result)
        else:
            signers.ended(link, "ok" if result.check(KeyNotFound) else "" if _is_final(result) else "failed")
            self._failed(result, link)

    def _failed(self, failure: Failure, link: Link) -> None:
        if any(each.ready for each in self._running):
            return  # the other attempt decides
        self._stop_timer()
        if not self._repeated(failure, link) and not self._running:
            self._give_up()
            self.result.errback(self._not_found or failure)

    def _repeated(self, failure: Failure, link: Link) -> bool:
        """Send a call that has failed again, if it may be."""
        signers = self._signers
        now = signers.clock.seconds()
        if signers.closed or _is_final(failure) or len(self._tried) >= MAX_ATTEMPTS or now >= self._deadline:
            return False
        other = best_other(signers.links(), self._tried, now)
        if failure.check(KeyNotFound):
            if self._not_found is not None or other is None or other.same_process(link):
                return False
            self._not_found = failure
            signers.repeats["not_found"] += 1
            self.attempt(other)
            return True
        if _was_lost(failure):
            if other is None and not self._running:
                other = best(signers.links(), now)
        elif other is not None and other.same_process(link):
            other = None
        if other is None or not signers.may_repeat("failed"):
            return False
        self.attempt(other)
        return True

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        """End all attempts that are under way."""
        self._over = True
        self._stop_timer()
        self._signers.waiting.pop(self, None)
        for work in list(self._running.values()):
            work.cancel()


def _status(failure: Failure) -> Status | None:
    cause = getattr(failure.value, "__cause__", None)
    return cause.status if isinstance(cause, RpcError) else None


def _is_final(failure: Failure) -> bool:
    """Whether another signer would do no better: there is too much to do, or the call was cancelled."""
    if failure.check(KeyNotFound):
        return False
    status = _status(failure)
    if status is not None:
        return status in _NOT_REPEATED
    return type(failure.value) is not SigningFailed  # which is what an answer that makes no sense comes to


def _was_lost(failure: Failure) -> bool:
    """Whether the same signer may answer once there is a connection again."""
    return _status(failure) is Status.UNAVAILABLE


class Signers:
    """All signers of a configuration as one signing service; it connects when it is first asked.

    ``directory`` says where they are, ``connect`` makes the connections, ``algorithm`` is that of new keys. ``chance``
    returns a number in [0, 1).
    """

    def __init__(
        self,
        directory: Directory,
        connect: Connect,
        algorithm: str,
        clock: IReactorTime,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.clock = clock
        self.closed = False
        self.usual = {method: UsualTime() for method in ("create_key", "get_key", "sign")}
        """How long each method usually takes."""
        self.waiting: dict[_Call[Any], None] = {}
        """The calls that wait for a connection: no signer has them, or they are late and no other signer has one."""
        self.repeats: Counter[str] = Counter({"failed": 0, "late": 0, "not_found": 0, "refused": 0})
        """Number of repeats by their reason, and of those that the budget refused."""
        self._directory = directory
        self._connect = connect
        self._algorithm = algorithm
        self._chance = chance
        self._budget = Budget(REPEATS_SHARE, MOST_REPEATS)
        self._places: dict[Address, Place] = {}
        self._leaving: set[Link] = set()
        self._closing: set[Deferred[None]] = set()
        self._renewals: dict[Link, IDelayedCall] = {}
        self._begun = False
        self._chosen = 0
        self._links: Sequence[Link] = ()
        self._told: set[str] = set()
        self._checking: SingleFlight[Link, None] = SingleFlight(self._check_link)

    # -- the port -----------------------------------------------------------------------------------------------------

    def create_key(self, gun: Gun, role: RoleName) -> Deferred[PublicKey]:
        """See the port."""
        return self._call("create_key", lambda signer, seconds: signer.create_key(gun, role, seconds))

    def get_key(self, key_id: str) -> Deferred[PublicKey]:
        """See the port."""
        return self._call("get_key", lambda signer, seconds: signer.get_key(key_id, seconds))

    def sign(self, key_id: str, payload: bytes) -> Deferred[tuple[str, bytes]]:
        """See the port."""
        return self._call("sign", lambda signer, seconds: signer.sign(key_id, payload, seconds))

    def check(self) -> Deferred[None]:
        """Ask all signers for their health; passes as soon as one of them serves."""
        if not self.closed:
            self._begin()
        checks = [self._checking(link) for link in self._links if not link.leaving]
        return DeferredList(checks, fireOnOneCallback=True, consumeErrors=True).addCallback(_one_serves)

    def close(self) -> Deferred[None]:
        """See the port."""
        if not self.closed:
            self.closed = True
            self._directory.close()
            while self._renewals:
                self._renewals.popitem()[1].cancel()
            for link in [*self._links]:
                self._close(link)
        return gatherResults(list(self._closing)).addCallback(lambda _: None)

    def _call(self, method: str, work: Callable[[RemoteSigner, float], Deferred[T]]) -> Deferred[T]:
        if self.closed:
            return fail(SigningFailed("the signers' connections are closed: the server stops"))
        self._begin()
        self._budget.earn()
        call = _Call(self, method, work)
        call.attempt(best(self._links, self.clock.seconds()))
        return call.result

    # -- for calls ----------------------------------------------------------------------------------------------------

    def links(self) -> Sequence[Link]:
        """All connections, also those that are being made."""
        return self._links

    def begun(self, link: Link) -> None:
        """Note that a call begins on ``link``."""
        self._chosen += 1
        link.last_chosen = self._chosen
        link.calls += 1

    def ended(self, link: Link, outcome: str = "") -> None:
        """Note that a call has ended on ``link``: "ok", "failed", or "" for neither."""
        link.calls -= 1
        if outcome:
            self._count(link, outcome)
        if outcome == "ok":
            link.worked()
        elif outcome == "failed":
            link.failed(self.clock.seconds())
        if link.ready and not self.closed and (outcome == "failed" if link.serves else outcome == "ok"):
            self._look(link)
        if link in self._leaving:
            self._close_left()

    def was_late(self, link: Link) -> None:
        """Note that a call on ``link`` is late."""
        self._count(link, "late")
        link.failed(self.clock.seconds())

    def may_repeat(self, reason: str) -> bool:
        """Take a repeat from the budget, for ``reason``."""
        may = self._budget.take()
        self.repeats[reason if may else "refused"] += 1
        return may

    def _count(self, link: Link, outcome: str) -> None:
        place = self._places.get(link.place)
        if place is not None:
            place.results[outcome] += 1

    # -- what is known of the signers ---------------------------------------------------------------------------------

    def states(self) -> Mapping[str, str]:
        """Return SERVING, or what is wrong, for each signer by its address."""
        found = {}
        for address, place in self._places.items():
            known = [link.status for link in place.links]
            found[str(address)] = SERVING if SERVING in known else known[0]
        return found

    def show(self, metrics: DaemonMetrics) -> None:
        """Show what there is to count."""
        metrics.gauge(
            "signer_up",
            "1 if the signer serves",
            lambda: {(name,): float(state == SERVING) for name, state in self.states().items()},
            ("signer",),
            across_workers="min",
        )
        metrics.gauge(
            "signer_connections",
            "Connections to the signer",
            lambda: {
                (str(address),): sum(link.ready for link in place.links) for address, place in self._places.items()
            },
            ("signer",),
        )
        metrics.counter(
            "signer_calls",
            "Calls that were sent to the signer, by their outcome",
            lambda: {
                (str(address), outcome): count
                for address, place in self._places.items()
                for outcome, count in place.results.items()
            },
            ("signer", "result"),
        )
        metrics.counter(
            "signer_repeats",
            "Calls that were repeated, and those that the budget refused to repeat",
            lambda: {(reason,): count for reason, count in self.repeats.items()},
            ("reason",),
        )

    def _look(self, link: Link) -> None:
        """Ask for the health of a signer, of which a call said something else than the last check."""
        if link.may_look(self.clock.seconds()):
            self._checking(link).addErrback(lambda failure: failure.trap(NotaryError))

    async def _check_link(self, link: Link) -> None:
        try:
            await link.signer.check()
        except NotaryError as error:
            link.problem = str(error)
            raise
        link.problem = ""

    # -- connections --------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            self._directory.begin(self._follow)

    def _follow(self, addresses: Sequence[Address]) -> None:
        """Have connections to these addresses, and to no others once one of these works."""
        for address in [address for address in self._places if address not in addresses]:
            for link in self._places.pop(address).links:
                link.leaving = True
                self._leaving.add(link)
                self._forget_renewal(link)
        for address in addresses:
            self._places.setdefault(address, Place())
        self._list()
        for address in addresses:
            self._fill(address)
        self._close_left()

    def _list(self) -> None:
        self._links = [*(link for place in self._places.values() for link in place.links), *self._leaving]

    def _wanted(self, place: Place) -> int:
        return max(1 if len(self._places) > 1 else 2, min(place.processes, MAX_LINKS))

    def _fill(self, address: Address) -> None:
        """Make the connections to one address that are not there yet."""
        place = self._places[address]
        while len(place.links) < self._wanted(place):
            place.links.append(
                Link(address, self._connect, self._algorithm, self._ready, self._told, quiet=bool(place.links))
            )
            self._list()
            place.links[-1].channel.connect()

    def _ready(self, link: Link) -> None:
        """Use a link that has a connection; find out to what process it leads, and whether that serves."""
        link.instance = ""
        for call in list(self.waiting):
            call.use(link)
        self._close_left()
        if not link.leaving and not self.closed:
            link.signer.describe().addErrback(_unknown_process).addCallback(self._described, link)
            self._checking(link).addErrback(lambda failure: failure.trap(NotaryError))

    def _described(self, found: tuple[str, int], link: Link) -> None:
        """Connect anew if another link leads to the same process, and some process has no link."""
        if link.leaving or self.closed:
            return
        place = self._places[link.place]
        link.instance, place.processes = found[0], max(1, found[1])
        self._fill(link.place)
        if not self._is_twin(link):
            place.tries = 0
        elif self._lacks_one(place):
            place.tries += 1
            self._forget_renewal(link)
            seconds = _RECONNECT.delay(place.tries, self._chance())
            self._renewals[link] = self.clock.callLater(seconds, self._renew, link)

    def _is_twin(self, link: Link) -> bool:
        others = self._places[link.place].links
        return link.instance != "" and any(
            other is not link and other.ready and other.instance == link.instance for other in others
        )

    def _lacks_one(self, place: Place) -> bool:
        return len({link.instance for link in place.links if link.ready}) < min(place.processes, MAX_LINKS)

    def _renew(self, link: Link) -> None:
        del self._renewals[link]
        if self._is_twin(link) and self._lacks_one(self._places[link.place]):
            link.channel.reconnect()

    def _forget_renewal(self, link: Link) -> None:
        renewal = self._renewals.pop(link, None)
        if renewal is not None:
            renewal.cancel()

    def _close_left(self) -> None:
        """Close the links that are left and have no calls, once there is another one."""
        if any(link.ready and not link.leaving for link in self._links):
            for link in [link for link in self._leaving if not link.calls]:
                self._leaving.discard(link)
                self._list()
                self._close(link)

    def _close(self, link: Link) -> None:
        closing = link.channel.close()
        self._closing.add(closing)
        closing.addCallback(lambda _: self._closing.discard(closing))


def _one_serves(found: Any) -> None:
    """Raise the reasons why no signer serves, if none does."""
    if isinstance(found, tuple):  # the value, and the place in the list, of the first success
        return
    if any(failure.check(CancelledError) for _, failure in found):
        raise CancelledError
    reasons = dict.fromkeys(str(failure.value) for _, failure in found)
    raise SigningFailed("; ".join(reasons))


def _unknown_process(failure: Failure) -> tuple[str, int]:
    """What to make of a signer that does not say which process it is."""
    failure.trap(NotaryError)
    return "", 1


def build(trust: TrustService, reactor: Reactor) -> Signing:
    """Build the service, which connects when it is first asked. Raises ConfigError if a file cannot be used."""
    wording = Wording(**SIGNER_CLIENT_TLS)
    files = trust.tls_ca_file, trust.tls_client_cert, trust.tls_client_key
    options = contexts.client_options(trust.hostname, *files, wording=wording)
    keys = ("trust_service.tls_ca_file", "trust_service.tls_client_cert", "trust_service.tls_client_key")

    def sources(trust: TrustService) -> Sequence[Source]:
        files = trust.tls_ca_file, trust.tls_client_cert, trust.tls_client_key
        return (Source(keys, files, partial(contexts.client_context, *files, wording=wording), options.use),)

    signers = signers_of(trust, reactor, options)
    return Signing(signers, "Using remote signing service", sources, signers.states, signers.show)


def signers_of(
    trust: TrustService,
    reactor: Reactor,
    tls: IOpenSSLClientConnectionCreator | None,
    chance: Callable[[], float] = random.random,
) -> Signers:
    """Return the signers of a configuration, with connections of ``tls``; ``chance`` as for :class:`Signers`."""

    def connect(place: Address, on_ready: Callable[[], object], quiet: bool) -> Channel:
        authority = join(trust.hostname, trust.port)
        return Channel.to(
            reactor,
            place.host,
            place.port,
            tls,
            authority=authority,
            chance=chance,
            on_ready=on_ready,
            quiet=quiet,
        )

    directory = Directory(trust.signers, resolver(reactor), reactor)
    return Signers(directory, connect, trust.key_algorithm, reactor, chance)
