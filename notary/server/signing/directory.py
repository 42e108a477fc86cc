"""Where the signers are: from the names of a configuration to one address for each signer.

Rules of this module: a name with several addresses stands for a signer at each address. A name with one address, and
one that stands for this machine, stays a name, which every attempt to connect resolves anew. Names are resolved again
every ``INTERVAL_SECONDS``; while a name cannot be resolved, its last addresses count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import ip_address
from typing import Any, Final, TypeAlias

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IHostResolution, IReactorTime, IResolutionReceiver
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from notary.config.values import Address
from notary.net.address import host_of
from notary.net.tls.peers import is_address

INTERVAL_SECONDS: Final = 10.0
"""Seconds between two questions for the addresses of a name."""

MAX_ADDRESSES: Final = 64
"""How many addresses of one name are used."""

Resolve: TypeAlias = Callable[[str], Deferred[Sequence[str]]]
"""Returns the IP addresses of a name; none if there are none, or if that cannot be found out."""


@implementer(IResolutionReceiver)
class _Receiver:
    """Collects the addresses of one name."""

    def __init__(self) -> None:
        self.found: Deferred[Sequence[str]] = Deferred()
        self._hosts: list[str] = []

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        """Do nothing: a resolution ends by itself."""

    def addressResolved(self, address: IAddress) -> None:
        """Note one address."""
        self._hosts.append(host_of(address))

    def resolutionComplete(self) -> None:
        """Return what was found."""
        self.found.callback(self._hosts)


def resolver(reactor: Any) -> Resolve:
    """Return the function that asks the resolver of ``reactor``, which is the system's."""

    def resolve(host: str) -> Deferred[Sequence[str]]:
        receiver = _Receiver()
        reactor.nameResolver.resolveHostName(receiver, host)
        return receiver.found

    return resolve


def places_of(name: Address, hosts: Sequence[str]) -> Sequence[Address]:
    """Return where to connect for a name with the addresses ``hosts``. Pure."""
    found = sorted({host for host in hosts if host}, key=lambda host: (":" in host, ip_address(host)))
    if len(found) < 2 or all(ip_address(host).is_loopback for host in found):  # noqa: PLR2004
        return (name,)
    return tuple(Address(host, name.port) for host in found[:MAX_ADDRESSES])


class Directory:
    """Tells where the signers ``names`` are, and each change of it, from ``begin`` to ``close``."""

    def __init__(self, names: Sequence[Address], resolve: Resolve, clock: IReactorTime) -> None:
        self._resolve = resolve
        self._clock = clock
        self._known: dict[Address, Sequence[Address]] = {name: (name,) for name in names}
        self._told: Sequence[Address] = ()
        self._on_change: Callable[[Sequence[Address]], object] = lambda _places: None
        self._next: dict[Address, IDelayedCall] = {}
        self._closed = False
        self._log = Logger(namespace="notary.server.signing.directory")

    def begin(self, on_change: Callable[[Sequence[Address]], object]) -> None:
        """Call ``on_change`` at once and whenever there are other places."""
        self._on_change = on_change
        self._tell()
        for name in self._known:
            if not is_address(name.host):
                self._ask(name)

    def close(self) -> None:
        """Ask and tell no more."""
        self._closed = True
        while self._next:
            self._next.popitem()[1].cancel()

    def _ask(self, name: Address) -> None:
        self._next.pop(name, None)
        self._resolve(name.host).addCallbacks(partial(self._resolved, name), partial(self._broken, name))

    def _broken(self, name: Address, failure: Failure) -> None:
        self._log.failure("the name {name} cannot be resolved", failure, name=name.host)
        self._resolved(name, ())

    def _resolved(self, name: Address, hosts: Sequence[str]) -> None:
        if self._closed:
            return
        self._next[name] = self._clock.callLater(INTERVAL_SECONDS, self._ask, name)
        if hosts:
            self._known[name] = places_of(name, hosts)
            self._tell()

    def _tell(self) -> None:
        places = tuple(dict.fromkeys(place for known in self._known.values() for place in known))
        if places != self._told:
            if self._told:
                self._log.info("signers: {places}", places=", ".join(str(place) for place in places))
            self._told = places
            self._on_change(places)
