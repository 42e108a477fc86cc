"""Whether the passphrase of new keys opens stored keys: the health of a signer, and the leave to make keys.

Rules of this module: a few keys are tried, the newest and the oldest. Opening a key takes milliseconds of a thread, so
a key that has been opened is not tried again while its row and the passphrases stay as they are. The store is asked at
most every ``INTERVAL_SECONDS``, at the first question after a key could not be opened, and before each new key until a
stored key has been opened: two signers that begin on an empty store with different passphrases must not both make keys.
What this process has made itself proves nothing while there are keys of others under the alias.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from notary.envelope.envelopes import under
from notary.errors import CustodyUnavailable, SigningFailed, StorageFailed
from notary.storage import StoredKey
from notary.storage.keywrap import refused_aliases
from notary.work.lru import Lru
from notary.work.singleflight import SingleFlight
from notary.work.threads import InThread

INTERVAL_SECONDS: Final = 60.0
"""Seconds between two trials while nothing is suspicious."""


_REMEMBERED: Final = 4096
"""How many keys of its own a signer knows to be its own: the sample has the newest keys, and the oldest."""


class Trial:
    """Tries the passphrases of a signer on stored keys.

    Args:
        sample: Returns a few stored keys.
        open_key: Opens a key with the passphrases that are in force. Blocks.
        alias: What new keys are under: the alias of a passphrase, or the name of a key-encrypting key.
        in_thread: Runs what takes milliseconds.
        seconds: The clock.
        what: The passphrase, or what else new keys are under, for log lines.
    """

    def __init__(
        self,
        sample: Callable[[], Deferred[Sequence[StoredKey]]],
        open_key: Callable[[StoredKey], object],
        alias: str,
        in_thread: InThread,
        seconds: Callable[[], float],
        what: str = "",
    ) -> None:
        self._sample = sample
        self._open_key = open_key
        self._alias = alias
        self._what = what or f"the passphrase of alias {alias}"
        self._in_thread = in_thread
        self._seconds = seconds
        self._opened: frozenset[tuple[str, object]] = frozenset()  # keys by their id and their wrapped half
        self._own: Lru[str, bool] = Lru(_REMEMBERED)
        self._proven = False
        self._due = 0.0
        self._reason = ""
        self._trying: SingleFlight[str, None] = SingleFlight(self._try)
        self._log = Logger(namespace="notary.signer.trial")

    def made(self, key_id: str) -> None:
        """Note that this process has made a key."""
        self._own.put(key_id, True)

    def suspect(self) -> None:
        """Try at the next question: a key could not be opened."""
        self._due = 0.0

    def begin_anew(self) -> None:
        """Forget what was found: the passphrases may be others, or those of the stored keys."""
        self._opened = frozenset()
        self._own = Lru(_REMEMBERED)
        self._proven = False
        self._due = 0.0

    async def reason(self) -> str:
        """Return why the passphrase of new keys opens no stored key; "" if it does, or if there is none to try.

        While the store does not answer, or what opens keys is away, the last reason counts.
        """
        if self._seconds() >= self._due:
            with suppress(StorageFailed, CustodyUnavailable):  # which other checks find too
                await self._trying("")
        return self._reason

    async def before_a_key(self) -> None:
        """Raise SigningFailed if a new key could not be opened by others.

        Raises StorageFailed and CustodyUnavailable if that cannot be found out.
        """
        if not self._proven or self._reason or self._seconds() >= self._due:
            await self._trying("")
        if self._reason:
            raise SigningFailed(self._reason)

    async def _try(self, _what: str) -> None:
        rows = await self._sample()
        of_others = {under(row) for row in rows if row.key_id not in self._own}
        evidence = [row for row in rows if row.key_id not in self._own or under(row) not in of_others]
        try:
            opened, refused = await self._in_thread(partial(self._try_all, evidence))
        except CustodyUnavailable:
            self._due = self._seconds() + INTERVAL_SECONDS
            raise
        self._opened = opened
        self._due = self._seconds() + INTERVAL_SECONDS
        self._proven = any(under(row) == self._alias for row in rows) and self._alias not in refused
        reason = refused.get(self._alias, "")
        if reason and not self._reason:
            self._log.error(
                "{reason}; no keys are made, and health checks fail, until {what} is the one that the stored keys are "
                "wrapped with",
                reason=reason,
                what=self._what,
            )
        elif self._reason and not reason:
            self._log.error("{what} opens the stored keys again", what=self._what)
        self._reason = reason

    def _try_all(self, rows: Sequence[StoredKey]) -> tuple[frozenset[tuple[str, object]], Mapping[str, str]]:
        known, opened = self._opened, set()

        def open_key(row: StoredKey) -> None:
            mark = row.key_id, row.private
            if mark not in known:
                self._open_key(row)
            opened.add(mark)

        refused = refused_aliases(rows, open_key, under)
        return frozenset(opened), refused
