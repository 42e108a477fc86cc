"""The signer's use cases: make a key, look one up, sign with it, delete it.

Rules of this module:

- Keys are named by their canonical id (docs/protocol.md, section 2) and come out of the store wrapped. Whatever takes
  milliseconds (making, wrapping, unwrapping) runs in a thread, and at most once at a time for one key; those who ask
  meanwhile share the outcome, also if the one who asked first gives up.
- Of keys to be made, a few are made at a time, in the order in which they were asked for, so that threads and
  connections are left for signatures. More than ``MAX_WAITING`` do not wait, and what nobody waits for any more is not
  begun.
- Unwrapped keys stay in a cache that is bounded in number, new ones from the moment they are stored: their first
  signature needs no unwrapping. A deleted key leaves it; what the deletion overtook does not bring it back.
- Who asks for a key for the first time gets a new one made at once, and only the transaction that stores it looks
  whether one is pending: nearly always there is none.
- A key is pending from its creation to its first signature (docs/protocol.md, section 5). That signature is given out
  only when the store has recorded it; later ones write nothing.
- No private bytes, passphrase or message is logged, or shown by an error or a ``repr``.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypeAlias

from twisted.internet.defer import CancelledError, Deferred

from notary.errors import InvalidGun, InvalidRole, KeyNotFound, SigningUnavailable
from notary.storage import KeyStore, StoredKey, keywrap
from notary.storage.keywrap import Passphrases, public_half
from notary.tuf import private
from notary.tuf.canonical import quote
from notary.tuf.public import PublicKey
from notary.work.lru import Lru
from notary.work.singleflight import SingleFlight
from notary.work.threads import InThread

CAPACITY: Final = 4096
"""How many unwrapped keys are kept: 15 megabytes of ecdsa keys, 38 of rsa."""

CREATIONS: Final = 2
"""How many keys are made, and stored, at a time: fewer than the threads that make and unwrap keys."""

MAX_WAITING: Final = 250
"""How many keys may wait to be made: a second's work, if they are ecdsa, and a fraction of the calls that a connection
may have open."""

MAX_NAME: Final = 255
"""The longest name of a collection or role, in characters: what the reference's tables hold."""

_KEY_ID = re.compile(r"[0-9a-f]{64}")

_Wanted: TypeAlias = tuple[str, str, str]
"""What a key is asked for: gun, role and algorithm."""


@dataclass(frozen=True, slots=True)
class Found:
    """The public half of a key, and the role that it was made for."""

    key: PublicKey
    role: str


@dataclass(frozen=True, slots=True)
class Signed:
    """A signature: by which key, with which method (docs/protocol.md, section 2)."""

    key: PublicKey
    method: str
    signature: bytes = field(repr=False)


class Keyring:
    """The keys of one store.

    Args:
        store: Where keys are, wrapped.
        passphrases: What opens stored keys, and wraps new ones.
        alias: The alias of the passphrase that wraps new keys.
        in_thread: Runs what takes milliseconds.
        now: The time (aware).
        capacity: How many unwrapped keys to keep, and of how many it is remembered for what they were asked for.
        allow: Counts a key that is about to be made, and returns 0; or the seconds until another one may be.
    """

    def __init__(
        self,
        store: KeyStore,
        passphrases: Passphrases,
        alias: str,
        in_thread: InThread,
        now: Callable[[], datetime],
        capacity: int = CAPACITY,
        allow: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._store = store
        self._passphrases = passphrases
        self._alias = alias
        self._in_thread = in_thread
        self._now = now
        self._allow = allow
        self._begun = 0  # creations
        self._waiting: OrderedDict[_Wanted, Deferred[None]] = OrderedDict()
        self.creations = Counter(dict.fromkeys(("made", "found", "limited", "busy", "abandoned"), 0))
        """How often a key was asked for, by what came of it."""
        self._unwrapped: Lru[str, _Unwrapped] = Lru(capacity)
        self._asked_for: Lru[_Wanted, bool] = Lru(capacity)
        self.hits = 0
        """How many times a key was in the cache."""
        self.misses = 0
        """How many times it was not."""
        self._deletions = 0
        self._creating = SingleFlight(self._create)
        self._loading = SingleFlight(self._load, self._unwrapped.put)
        self._marking = SingleFlight(self._mark)
        self._deleting = SingleFlight(self._delete)

    @property
    def cached(self) -> int:
        """How many unwrapped keys are kept now."""
        return len(self._unwrapped)

    @property
    def waiting(self) -> int:
        """How many keys wait to be made."""
        return len(self._waiting)

    async def create(self, gun: str, role: str, algorithm: str) -> PublicKey:
        """The pending key of this collection, role and algorithm, made now if there is none.

        Raises UnsupportedAlgorithm, InvalidGun or InvalidRole (a name too long to be stored), SigningFailed (there is
        no passphrase to wrap it), SigningUnavailable (too many are being made, or were in this hour), StorageFailed.
        """
        if len(gun) > MAX_NAME:
            raise InvalidGun(f"{quote(gun)}: no key is made for names of more than {MAX_NAME} characters")
        if len(role) > MAX_NAME:
            raise InvalidRole(f"{quote(role)}: no key is made for roles of more than {MAX_NAME} characters")
        return await self._creating((gun, role, algorithm))

    async def find(self, key_id: str) -> Found:
        """The public half of a key. Raises KeyNotFound, SigningFailed, StorageFailed."""
        known = self._recall(key_id)
        if known is not None:
            return Found(known.key.public, known.role)
        row = await self._store.get(_checked(key_id))
        return Found(public_half(row), row.role)

    def sign_at_once(self, key_id: str, message: bytes) -> Signed | None:
        """What :meth:`sign` returns, or None if that has to wait for the store or a thread."""
        known = self._recall(key_id)
        return None if known is None or known.pending else known.sign(message)

    async def sign(self, key_id: str, message: bytes) -> Signed:
        """Sign ``message``, which is the whole of it, not a digest.

        Raises KeyNotFound, SigningFailed (the key cannot be unwrapped or used), UnsupportedAlgorithm, StorageFailed.
        """
        known = self._recall(key_id)
        if known is None:
            known = await self._loading(_checked(key_id))
        signed = known.sign(message)
        if known.pending:
            await self._marking(key_id)
            known.pending = False
        return signed

    async def delete(self, key_id: str) -> bool:
        """Remove a key; False if there was none. Raises StorageFailed."""
        return _KEY_ID.fullmatch(key_id) is not None and await self._deleting(key_id)

    # -- making -------------------------------------------------------------------------------------------------------

    async def _create(self, wanted: _Wanted) -> PublicKey:
        await self._turn(wanted)
        try:
            return await self._create_now(wanted)
        finally:
            self._begun -= 1
            self._begin_next()

    async def _turn(self, wanted: _Wanted) -> None:
        """Wait until a key may be made. Raises SigningUnavailable, or CancelledError if nobody wants it any more."""
        if self._begun < CREATIONS:
            self._begun += 1
            return
        if len(self._waiting) >= MAX_WAITING:
            for each in [each for each in self._waiting if not self._creating.wanted(each)]:
                self._abandon(each)
        if len(self._waiting) >= MAX_WAITING:
            self.creations["busy"] += 1
            raise SigningUnavailable(f"{MAX_WAITING} keys wait to be made already; try again later")
        turn = self._waiting[wanted] = Deferred()
        await turn

    def _begin_next(self) -> None:
        while self._waiting and self._begun < CREATIONS:
            wanted = next(iter(self._waiting))
            if self._creating.wanted(wanted):
                self._begun += 1
                self._waiting.pop(wanted).callback(None)
            else:
                self._abandon(wanted)

    def _abandon(self, wanted: _Wanted) -> None:
        self.creations["abandoned"] += 1
        self._waiting.pop(wanted).errback(CancelledError())

    async def _create_now(self, wanted: _Wanted) -> PublicKey:
        # Those who ask for the first time nearly always need a new key, and the store looks once more in any case.
        kept = await self._store.pending(*wanted) if wanted in self._asked_for else None
        self._asked_for.put(wanted, True)
        if kept is not None:
            self.creations["found"] += 1
            return public_half(kept)
        if not self._creating.wanted(wanted):
            self.creations["abandoned"] += 1
            raise CancelledError
        seconds = self._allow()
        if seconds:
            self.creations["limited"] += 1
            raise SigningUnavailable(
                "as many keys as limits.pending_keys_per_hour allows were made in this hour; try again later", seconds
            )
        key, row = await self._in_thread(lambda: self._make(*wanted))
        deletions = self._deletions
        kept = await self._store.add(row)
        self.creations["made" if kept.key_id == row.key_id else "found"] += 1
        if kept.key_id == row.key_id and deletions == self._deletions:
            self._unwrapped.put(kept.key_id, _Unwrapped(key, kept.role, pending=True))
        return public_half(kept)

    def _make(self, gun: str, role: str, algorithm: str) -> tuple[private.PrivateKey, StoredKey]:
        key = private.generate(algorithm)
        return key, keywrap.wrap(key, gun, role, self._alias, self._passphrases)

    # -- unwrapping ---------------------------------------------------------------------------------------------------

    async def _load(self, key_id: str) -> _Unwrapped:
        row = await self._store.get(key_id)
        key = await self._in_thread(lambda: keywrap.unwrap(row, self._passphrases))
        return _Unwrapped(key, row.role, pending=row.last_used is None)

    # -- the cache ----------------------------------------------------------------------------------------------------

    def _recall(self, key_id: str) -> _Unwrapped | None:
        known = self._unwrapped.get(key_id)
        if known is None:
            self.misses += 1
        else:
            self.hits += 1
        return known

    async def _mark(self, key_id: str) -> None:
        await self._store.mark_used(key_id, self._now())

    async def _delete(self, key_id: str) -> bool:
        deleted = await self._store.delete(key_id)
        # Not before: until now the row could be read again.
        self._deletions += 1
        self._unwrapped.pop(key_id)
        self._loading.forget(key_id)
        return deleted


@dataclass(slots=True)
class _Unwrapped:
    """A key that can sign; ``pending`` until its first signature is recorded."""

    key: private.PrivateKey
    role: str
    pending: bool

    def sign(self, message: bytes) -> Signed:
        """Sign ``message``; as long as the key is pending, the signature is not to be given out."""
        return Signed(self.key.public, self.key.method, self.key.sign(message))


def _checked(key_id: str) -> str:
    """The same id. Raises KeyNotFound, without telling what was asked for, if no key can have it."""
    if _KEY_ID.fullmatch(key_id) is None:
        raise KeyNotFound("there is no such key: a key id is 64 hexadecimal digits, in lower case")
    return key_id
