"""The signer's use cases: make a key, look one up, sign with it, delete it.

Rules of this module:

- Keys are named by their canonical id (docs/protocol.md, section 2). The store holds keys that must be opened before
  they sign. Work of milliseconds (making and opening keys) runs in a thread, and at most once at a time for one key:
  callers that ask meanwhile share the outcome, also if the first caller gives up.
- A few keys are made at a time, in the order of the requests, and fewer still are in the threads, so that threads and
  connections are left for signatures. At most ``MAX_WAITING`` requests wait, and a key that no caller waits for any
  more is not made.
- Open keys stay in a cache that is bounded in number. A new key enters the cache when it is stored, so its first
  signature needs no opening. A deleted key leaves the cache, and a load that the deletion overtook does not bring it
  back.
- The first request for a gun, role and algorithm makes a new key at once, because a pending one is rare; the
  transaction that stores the key finds out whether one is pending.
- A key is pending from its creation to its first signature (docs/protocol.md, section 5). That signature is returned
  only when the store has recorded it; later signatures write nothing.
- No private bytes, passphrase or message is logged, or shown by an error or a ``repr``.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Final, TypeAlias

from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore

from notary.errors import InvalidGun, InvalidRole, KeyNotFound, SigningUnavailable
from notary.signer.custody import KeyCustody, OpenKey
from notary.storage import KeyStore
from notary.storage.keywrap import public_half
from notary.tuf.canonical import quote
from notary.tuf.public import PublicKey
from notary.work.lru import Lru
from notary.work.singleflight import SingleFlight
from notary.work.threads import InThread

CAPACITY: Final = 4096
"""How many open keys are cached: 15 megabytes of ecdsa keys, 38 of rsa."""

CREATIONS: Final = 6
"""How many keys are made, and stored, at a time: several share one wait for the disk of the database. More than half of
the default number of connections to the database, but not all."""

MAKERS: Final = 2
"""How many of these are in the threads at a time: fewer than the threads that make and open keys."""

MAX_WAITING: Final = 250
"""How many requests for keys may wait: a second's work for ecdsa keys, and a fraction of the calls that a connection
may have open."""

MAX_NAME_CHARACTERS: Final = 255
"""The longest name of a collection or role, in characters: what the reference's tables hold."""

_KEY_ID = re.compile(r"[0-9a-f]{64}")

_Wanted: TypeAlias = tuple[str, str, str]
"""The purpose of a key: gun, role and algorithm."""


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """The public half of a key, and the role that the key was made for."""

    key: PublicKey
    role: str


@dataclass(frozen=True, slots=True)
class Signed:
    """A signature, its key, and its method (docs/protocol.md, section 2)."""

    key: PublicKey
    method: str
    signature: bytes = field(repr=False)


class Keyring:
    """The keys of one store.

    Args:
        store: Where keys are, wrapped.
        custody: Makes private keys, and opens stored ones.
        in_thread: Runs what takes milliseconds.
        now: Returns the time (aware).
        capacity: How many open keys are cached, and how many requests for keys are remembered.
        allow: Counts a key that is about to be made and returns 0; or returns the seconds until one may be made.
        on_made: Called with the id of each new key that has been stored.
    """

    def __init__(
        self,
        store: KeyStore,
        custody: KeyCustody,
        in_thread: InThread,
        now: Callable[[], datetime],
        capacity: int = CAPACITY,
        allow: Callable[[], float] = lambda: 0.0,
        on_made: Callable[[str], object] = lambda _key_id: None,
    ) -> None:
        self._on_made = on_made
        self._store = store
        self._custody = custody
        self._in_thread = in_thread
        self._now = now
        self._allow = allow
        self._begun = 0  # creations
        self._makers = DeferredSemaphore(MAKERS)
        self._waiting: OrderedDict[_Wanted, Deferred[None]] = OrderedDict()
        self.creations = Counter(dict.fromkeys(("made", "found", "limited", "busy", "abandoned"), 0))
        """Number of requests for keys, by their outcome."""
        self._open_keys: Lru[str, _CachedKey] = Lru(capacity)
        self._asked_for: Lru[_Wanted, bool] = Lru(capacity)
        self.hits = 0
        """Number of look-ups that found a key in the cache."""
        self.misses = 0
        """Number of look-ups that found no key in the cache."""
        self._deletions = 0
        self._creating = SingleFlight(self._create)
        self._loading = SingleFlight(self._load, self._open_keys.put)
        self._marking = SingleFlight(self._mark)
        self._deleting = SingleFlight(self._delete)

    @property
    def cached(self) -> int:
        """How many open keys are cached now."""
        return len(self._open_keys)

    @property
    def waiting(self) -> int:
        """How many requests for keys wait."""
        return len(self._waiting)

    async def create(self, gun: str, role: str, algorithm: str) -> PublicKey:
        """Return the pending key of this collection, role and algorithm; make a key if none is pending.

        Raises UnsupportedAlgorithm, InvalidGun or InvalidRole (a name too long to be stored), SigningFailed (the
        custody cannot make a key), SigningUnavailable (too many keys are being made, or were in this hour),
        StorageFailed.
        """
        if len(gun) > MAX_NAME_CHARACTERS:
            raise InvalidGun(f"{quote(gun)}: no key is made for names of more than {MAX_NAME_CHARACTERS} characters")
        if len(role) > MAX_NAME_CHARACTERS:
            raise InvalidRole(f"{quote(role)}: no key is made for roles of more than {MAX_NAME_CHARACTERS} characters")
        return await self._creating((gun, role, algorithm))

    async def find(self, key_id: str) -> KeyInfo:
        """Return the public half of a key, and its role. Raises KeyNotFound, SigningFailed, StorageFailed."""
        known = self._recall(key_id)
        if known is not None:
            return KeyInfo(known.key.public, known.role)
        row = await self._store.get(_checked(key_id))
        return KeyInfo(public_half(row), row.role)

    def sign_fast(self, key_id: str, message: bytes) -> Signed | None:
        """Return exactly what :meth:`sign` would, or None if :meth:`sign` has to wait for the store or a thread."""
        known = self._recall(key_id)
        return None if known is None or known.pending or not known.key.quick else known.sign(message)

    async def sign(self, key_id: str, message: bytes) -> Signed:
        """Sign ``message``, which is the whole message, not a digest.

        Raises KeyNotFound, SigningFailed (the key cannot be opened or used), UnsupportedAlgorithm, StorageFailed.
        """
        known = self._recall(key_id)
        if known is None:
            known = await self._loading(_checked(key_id))
        signed = known.sign(message) if known.key.quick else await self._in_thread(partial(known.sign, message))
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
        """Wait until a key may be made. Raises SigningUnavailable; CancelledError if no caller waits for the key."""
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
        # A first request nearly always needs a new key, and the store looks for a pending one in any case.
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
        key, row = await self._makers.run(self._in_thread, lambda: self._custody.make(*wanted))
        deletions = self._deletions
        kept = await self._store.add(row)
        if kept.key_id != row.key_id:
            self.creations["found"] += 1
            return public_half(kept)
        self.creations["made"] += 1
        self._on_made(kept.key_id)
        if deletions == self._deletions:
            self._open_keys.put(kept.key_id, _CachedKey(key, kept.role, pending=True))
        return public_half(kept)

    # -- opening ------------------------------------------------------------------------------------------------------

    async def _load(self, key_id: str) -> _CachedKey:
        row = await self._store.get(key_id)
        key = await self._in_thread(lambda: self._custody.open(row))
        return _CachedKey(key, row.role, pending=row.last_used is None)

    # -- the cache ----------------------------------------------------------------------------------------------------

    def _recall(self, key_id: str) -> _CachedKey | None:
        known = self._open_keys.get(key_id)
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
        self._open_keys.pop(key_id)
        self._loading.forget(key_id)
        return deleted


@dataclass(slots=True)
class _CachedKey:
    """An open key in the cache; ``pending`` until the store has recorded the key's first signature."""

    key: OpenKey
    role: str
    pending: bool

    def sign(self, message: bytes) -> Signed:
        """Sign ``message``. The caller must not return the signature while the key is pending."""
        return Signed(self.key.public, self.key.method, self.key.sign(message))


def _checked(key_id: str) -> str:
    """Return ``key_id``. Raises KeyNotFound, whose message does not show ``key_id``, if no key can have this id."""
    if _KEY_ID.fullmatch(key_id) is None:
        raise KeyNotFound("there is no such key: a key id is 64 hexadecimal digits, in lower case")
    return key_id
