"""Whether a database works, and takes writes: what the health checks of the daemons ask.

Rules of this module: the questions have a connection of their own, so that they wait for the database, and never for
the work of the daemon. A database that does not answer within ``_QUERY_SECONDS`` has failed. What is written is rolled
back: nobody ever sees it, and it does not use up the numbers of a sequence.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Final

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from notary.errors import StorageUnreachable
from notary.storage.sql.cursor import Cursor, insert
from notary.storage.sql.database import Database
from notary.storage.sql.dialect import DISK_IS_FULL, TAKES_NO_WRITES
from notary.storage.sql.migrate import SERVER, Service, probe

_QUERY_SECONDS: Final = 2.0

_CONNECTIONS: Final = 2
"""The second one is for a question that begins while another one hangs."""

_ROW_BYTES: Final = 16_384
"""The size of the row that is written, about that of a publish: more than what a page that is not full has left."""

_INT32_MAX: Final = 2**31 - 1

_FREE_BYTES: Final = 1 << 20
"""The room that a database in a file must have on its disk."""


class _ReadOnly(StorageUnreachable):
    """The server takes no writes."""


class Prober:
    """Asks the database of ``database``; ``close`` must be called before that one is closed."""

    def __init__(self, database: Database, service: Service = SERVER) -> None:
        self._database = database
        self._service = service
        self._own: Database | None = None

    def check(self) -> Deferred[None]:
        """Read a row of the main table. Fails with StorageFailed if that is not possible."""
        return self._asked().read(probe, self._service)

    def check_writes(self) -> Deferred[None]:
        """Find out whether a publish would be stored. Fails with StorageFailed if not."""
        database = self._database
        with_row = database.is_full or database.dialect.undo_leaves_nothing

        def succeeded(_: None) -> None:
            database.is_full = False
            database.care.accepted()

        def failed(failure: Failure) -> Failure:
            if failure.check(_ReadOnly):
                database.care.refused()
            return failure

        row_of = database.chance if with_row else None
        return self._asked().undone(_try_to_write, row_of).addCallbacks(succeeded, failed)

    async def close(self) -> None:
        """End the connections."""
        if self._own is not None and self._own is not self._database:
            await self._own.close()

    def _asked(self) -> Database:
        if self._own is None:
            settings = self._database.settings
            if self._database.dialect.embedded is not None:
                self._own = self._database
            else:
                self._own = self._database.beside(
                    replace(
                        settings,
                        connections=_CONNECTIONS,
                        connect_timeout=min(settings.connect_timeout, _QUERY_SECONDS),
                        query_timeout=min(settings.query_timeout, _QUERY_SECONDS),
                        usage=None,
                    )
                )
        return self._own


def _try_to_write(cursor: Cursor, row_of: Random | None) -> None:
    """Ask, and find out whether there is room; if ``row_of`` is given, write a row of random bytes too."""
    dialect = cursor.dialect
    if dialect.read_only and cursor.all(dialect.read_only)[0][0]:
        raise _ReadOnly(TAKES_NO_WRITES)
    free = cursor.free_bytes()
    if free is not None and free < _FREE_BYTES:
        raise StorageUnreachable(DISK_IS_FULL)
    for statement in dialect.try_room:
        cursor.all(statement)
    if row_of is not None:
        # With a number of its own, below those of the sequence, and a name that no collection can have.
        number = -row_of.randint(1, _INT32_MAX)
        insert(
            cursor,
            "tuf_files",
            {
                "id": number,
                "gun": f"probe {number}",
                "role": "probe",
                "version": 1,
                "data": row_of.randbytes(_ROW_BYTES),  # as hard to compress as signatures
            },
        )
