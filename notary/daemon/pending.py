"""What stands for a store whose database does not answer yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred, fail

from notary.errors import StorageUnreachable
from notary.work.forwarding import Forwarding


class Closable(Protocol):
    """What a store is here."""

    def close(self) -> Deferred[None]:
        """Release connections."""


class Pending(Forwarding):
    """Stands for a store that is not open: each method of ``port`` fails with ``error`` until the store is open."""

    def __init__(self, port: type, error: StorageUnreachable) -> None:
        self.error = error
        self._store: Closable | None = None
        super().__init__(port, self._late_method)

    def _late_method(self, name: str) -> Callable[..., Deferred[Any]]:
        # The store is looked up when the method is called: callers may hold the method since before it opened.
        return lambda *args, **kwargs: (
            fail(self.error) if self._store is None else getattr(self._store, name)(*args, **kwargs)
        )

    def become(self, store: Closable) -> None:
        """Have the methods of ``store``; a call then costs no more than a call of the store."""
        self._store = store
        self.replace_methods(lambda name: getattr(store, name))

    def shut(self) -> Deferred[None] | None:
        """Close the store if it has been opened."""
        return None if self._store is None else self._store.close()
