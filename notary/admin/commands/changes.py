"""``changes`` prints the changefeed, once or for as long as it runs.

Rules of this module: every record is printed exactly once, in the order of the feed. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import click
from twisted.internet.task import deferLater

from notary.admin.command import GUN_OPTION, Status, command
from notary.admin.session import Session
from notary.errors import StorageUnreachable
from notary.storage import Change
from notary.storage.open import open_metadata_store
from notary.tuf.model import Gun

_PAGE_RECORDS: Final = 1000

_POLL_SECONDS: Final = 1.0
"""The pause after a page that is not full, with ``--follow``."""

_COLUMNS: Final = ("ID", "Created", "GUN", "Version", "SHA256", "Category")


@command("changes")
@click.option(
    "--after",
    type=click.IntRange(min=-1),
    default=0,
    show_default=True,
    metavar="ID",
    help="Only records after this one; -1 stands for the newest.",
)
@click.option("--follow", is_flag=True, help="Wait for further records, until interrupted.")
@GUN_OPTION
async def changes(session: Session, after: int, follow: bool, gun: str) -> int:
    """Print the changefeed: a record for each publish, and for each collection that was deleted, oldest first.

    To go on later, give the ID of the last record that was printed: no record is missed or printed twice.
    """
    only = Gun(gun) if gun else None
    store = await session.open(session.server(), open_metadata_store)
    if after < 0:
        after = max((change.id for change in await store.changes(only, -1, 1)), default=0)
    away = False
    heading = True
    while True:
        try:
            page = await store.changes(only, after, _PAGE_RECORDS)
        except StorageUnreachable as error:
            if not follow:
                raise
            if not away:
                session.out.say(f"notary-admin: {error}; trying again until it answers")
            page, away = [], True
        else:
            away = False
        if page or heading:
            _show(session, page, heading=heading)
            heading = False
        after = page[-1].id if page else after
        if len(page) < _PAGE_RECORDS:
            if not follow:
                return Status.OK
            session.out.flush()
            await deferLater(session.reactor, _POLL_SECONDS)


def _show(session: Session, page: Sequence[Change], *, heading: bool) -> None:
    with session.out.table(*_COLUMNS, heading=heading) as add:
        for change in page:
            cells = [change.id, change.created, change.gun, change.version, change.sha256 or None, change.category]
            add(cells, {name.lower(): cell for name, cell in zip(_COLUMNS, cells, strict=True)})
