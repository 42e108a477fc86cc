"""What stands for a store whose database does not answer yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred, fail

from notary.errors import StorageUnreachable


class Closable(Protocol):
    """What a store is here."""

    def close(self) -> Deferred[None]:
        """Release connections."""


class Pending:
    """Stands for a store that is not open: has every method, each of which fails with ``error`` until it is."""

    def __init__(self, error: StorageUnreachable) -> None:
        self.error = error
        self._store: Closable | None = None

    def __getattr__(self, name: str) -> Callable[..., Deferred[Any]]:
        # Whoever keeps the method has that of the store later on.
        return lambda *given, **named: (
            fail(self.error) if self._store is None else getattr(self._store, name)(*given, **named)
        )

    def become(self, store: Closable) -> None:
        """Have the methods of ``store``, at no cost for a call."""
        self._store = store
        self.__dict__ |= {name: getattr(store, name) for name in dir(store) if not name.startswith("_")}

    def shut(self) -> Deferred[None] | None:
        """Close the store, if there is one by now."""
        return None if self._store is None else self._store.close()
