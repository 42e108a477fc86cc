"""One connection to one process of a signer, and which of several is the best for a call.

Rules of this module: a link keeps its connection for ever. What it knows of the signer comes from the calls and health
checks on it. A link that failed, or was late, is avoided for a time that grows with each failure in a row; one call
after that time is the trial.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Final, TypeAlias

from notary.config.values import Address
from notary.net.grpc import Channel, State
from notary.server.signing import SERVING
from notary.server.signing.remote import RemoteSigner
from notary.work.backoff import Backoff

_AVOIDED: Final = Backoff(first=0.2, most=10.0, factor=2.0, jitter=0.0)
"""For how long, in seconds, a link is avoided after failures in a row."""

_LOOK_SECONDS: Final = 1.0
"""The shortest time between two health checks because of calls."""

Rank: TypeAlias = tuple[bool, bool, bool, bool, int, int]


class Link:
    """A connection to the signer at ``place``.

    ``connect`` makes the channel; it is given the place, what to call when the channel can take calls, and ``quiet``:
    whether another link to this place logs what happens. ``algorithm`` is that of new keys. ``told`` names the signers
    of which the log says already that they have no health service.
    """

    def __init__(
        self,
        place: Address,
        connect: Callable[[Address, Callable[[], object], bool], Channel],
        algorithm: str,
        on_ready: Callable[[Link], object],
        told: set[str],
        *,
        quiet: bool,
    ) -> None:
        self.place = place
        self.channel = connect(place, lambda: on_ready(self), quiet)
        self.signer = RemoteSigner(self.channel, algorithm, told)
        self.calls = 0
        """Number of calls under way."""
        self.instance = ""
        """The id of the process at the other end; "" if it is unknown."""
        self.leaving = False
        """True if the signer is no longer among those of the configuration."""
        self.problem: str | None = None
        """What the last health check found, "" for nothing; None before the first one."""
        self.last_chosen = 0
        self.looked_at = -_LOOK_SECONDS
        self._failures = 0
        self._avoided_until = 0.0

    @property
    def ready(self) -> bool:
        """Whether there is a connection."""
        return self.channel.state is State.READY

    @property
    def serves(self) -> bool:
        """Whether there is a connection, and the last health check found nothing."""
        return self.ready and self.problem == ""

    @property
    def status(self) -> str:
        """What to say of the signer at the other end: SERVING, or what is wrong."""
        if self.serves:
            return SERVING
        name = self.channel.name
        if self.ready:
            return self.problem or f"the signer at {name} is being asked"
        return f"the signer at {name}: UNAVAILABLE: no connection to {name}: {self.channel.last_error or 'connecting'}"

    def same_process(self, other: Link) -> bool:
        """Whether both links may lead to one process."""
        return self.instance == other.instance if self.instance else self.place == other.place

    def may_look(self, now: float) -> bool:
        """Whether to ask for the health of the signer because of a call; not too often."""
        if now - self.looked_at < _LOOK_SECONDS:
            return False
        self.looked_at = now
        return True

    def worked(self) -> None:
        """Note that a call had an answer."""
        self._failures = 0
        self._avoided_until = 0.0

    def failed(self, now: float) -> None:
        """Avoid this link for a while."""
        self._failures += 1
        self._avoided_until = now + _AVOIDED.delay(self._failures, 0.5)

    def avoided(self, now: float) -> bool:
        """Whether other links are better, because of the last failures here."""
        return now < self._avoided_until

    def rank(self, now: float) -> Rank:
        """How good the link is for a call; the least is the best."""
        return (
            not self.ready,
            self.leaving,
            self.avoided(now),
            bool(self.problem),
            self.calls,
            self.last_chosen,
        )


def best(links: Sequence[Link], now: float) -> Link:
    """Return the link for a call: one that works, with the fewest calls under way."""
    return min(links, key=lambda link: link.rank(now))


def best_other(links: Sequence[Link], tried: Collection[Link], now: float) -> Link | None:
    """Return the link for a call that ``tried`` have not answered; another process before another connection.

    None if there is no other link with a connection.
    """
    others = [link for link in links if link not in tried and link.ready]

    def rank(link: Link) -> tuple[bool, Rank]:
        return any(link.same_process(each) for each in tried), link.rank(now)

    return min(others, key=rank, default=None)
