"""Signing for the server: the port, what a signing service is, and how a draft is signed through one.

Rules of this package:

- Each service is a module beside this one and a row in :mod:`notary.server.signing.services`. Every service passes the
  contract in ``tests/server/signing/test_contract.py``.
- Keys are named by their *canonical* id (docs/protocol.md, section 2).
- A key is pending from its creation to its first signature. While a key is pending, each request for a key of the same
  collection and role gets this key, so that a client that asks twice before it publishes gets one key.
- Private keys never leave this package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from twisted.internet.defer import Deferred

from notary.config import TrustService
from notary.errors import KeyNotFound
from notary.observe.metrics import DaemonMetrics
from notary.server.sources import Source
from notary.tuf.draft import Draft
from notary.tuf.model import MAX_SIGNATURES, Gun, RoleName, Signature
from notary.tuf.public import PublicKey
from notary.work.reactor import Reactor
from notary.work.threads import InThread


class SigningService(Protocol):
    """Holds the timestamp and snapshot keys of collections and signs with them.

    Every method fails with SigningFailed when the service cannot be reached or cannot do its work; those about keys
    with SigningUnavailable if asking again later may help.
    """

    def create_key(self, gun: Gun, role: RoleName) -> Deferred[PublicKey]:
        """The pending key of this collection and role, made now if there is none."""
        ...

    def get_key(self, key_id: str) -> Deferred[PublicKey]:
        """The public part of a key. Raises KeyNotFound."""
        ...

    def sign(self, key_id: str, payload: bytes) -> Deferred[tuple[str, bytes]]:
        """The signature method (docs/protocol.md, section 2) and signature of ``payload``. Raises KeyNotFound."""
        ...

    def check(self) -> Deferred[None]:
        """Do the smallest real piece of work; raises SigningFailed if that is not possible."""
        ...

    def close(self) -> Deferred[None]:
        """Release connections. Nothing may be called after."""
        ...


def no_sources(_trust: TrustService) -> Sequence[Source]:
    """Return no files: what a signing service that reads none has as its ``sources``."""
    return ()


SERVING: Final = "serving"
"""The state of a signer that serves."""


def no_states() -> Mapping[str, str]:
    """Return the states of no signers: what a signing service without any has as its ``states``."""
    return {}


def show_nothing(_metrics: DaemonMetrics) -> None:
    """Show no metrics: what a signing service that counts nothing has as its ``show``."""


@dataclass(frozen=True, slots=True)
class Signing:
    """A signing service that has been built.

    Args:
        service: The signing service.
        log_line: What the log says of ``service`` at the start.
        sources: The files that ``service`` is to be read from by a configuration, which may be newer than the one that
            built ``service``.
        states: Returns ``SERVING``, or what is wrong, for each signer by its address.
        show: Adds what ``service`` counts to metrics.
    """

    service: SigningService
    log_line: str
    sources: Callable[[TrustService], Sequence[Source]] = no_sources
    states: Callable[[], Mapping[str, str]] = no_states
    show: Callable[[DaemonMetrics], None] = show_nothing


Builder: TypeAlias = Callable[[TrustService, Reactor], Signing]
"""Builds the signing service of a configuration; reads files and opens nothing. Raises ConfigError."""


async def sign_draft(service: SigningService, draft: Draft, place: InThread) -> bytes:
    """Sign ``draft`` with every key of its role that the service holds; the bytes of the finished file.

    ``place`` is where the signatures are verified and the file is put together.

    Raises what ``draft.assemble`` raises when these are fewer than the role's threshold, and SigningFailed.
    """
    signatures = []
    for key in draft.keys[:MAX_SIGNATURES]:  # nearly always one; beyond that, no reader would take the file
        try:
            method, sig = await service.sign(key.canonical_id, draft.payload)
        except KeyNotFound:
            continue
        signatures.append(Signature(key_id=key.key_id, method=method, sig=sig))
    return await place(lambda: draft.assemble(signatures))
