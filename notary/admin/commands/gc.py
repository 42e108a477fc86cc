"""``gc`` removes old versions that nothing refers to.

Rules of this module: :mod:`notary.admin.collectable` decides what may be removed, anew in each transaction.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import click

from notary.admin.collectable import collectable
from notary.admin.collections import inventory_of, selected
from notary.admin.command import DRY_RUN_OPTION, GUN_OPTION, PREFIX_OPTION, YES_OPTION, Status, command
from notary.admin.output import counted, size_text
from notary.admin.session import Session
from notary.errors import InvalidMetadata, InvalidRow, NotFound

BATCH_FILES: Final = 200
"""The most files that one transaction removes."""


@command("gc")
@click.option(
    "--keep",
    required=True,
    type=click.IntRange(min=1),
    help="Number of the newest timestamps and snapshots to keep, with all files that they list.",
)
@GUN_OPTION
@PREFIX_OPTION
@DRY_RUN_OPTION
@YES_OPTION
async def gc(session: Session, keep: int, gun: str, prefix: str, dry_run: bool, yes: bool) -> int:
    """Remove old versions that no kept timestamp or snapshot lists.

    Roots, the newest version of each role, and the files that the current or a kept timestamp or snapshot lists are
    never removed. The command is safe while servers run and publishers publish. A collection whose current state is
    broken is skipped, and the exit status is then 1.
    """
    where = gun or (f"all collections that begin with {prefix}" if prefix else "all collections")
    if not dry_run and not session.confirm(f"Remove old versions of {where}, except the newest {keep}?", yes=yes):
        return Status.REFUSED
    inventory = await inventory_of(session)
    choose = partial(collectable, keep=keep)
    total = total_size = broken = 0
    with session.out.table("GUN", "Removed" if not dry_run else "Would remove", "Size", "Problem") as add:
        async for name in selected(session, inventory, gun, prefix, "Collecting"):
            problem, count, freed = "", 0, 0
            try:
                found = await inventory.visit(name, choose)
                count, freed = len(found), sum(file.size for file in found)
                if found and not dry_run:
                    count = freed = 0
                    while removed := await inventory.remove(name, choose, BATCH_FILES):
                        count, freed = count + len(removed), freed + sum(file.size for file in removed)
            except (NotFound, InvalidMetadata, InvalidRow) as error:
                problem = str(error)
            broken += bool(problem)
            total, total_size = total + count, total_size + freed
            if count or problem:
                record = {"gun": name, "files": count, "bytes": freed, "removed": not dry_run, "problem": problem}
                add([name, count, size_text(freed), problem or None], record)
    said = "would be removed" if dry_run else "removed"
    session.out.summary(
        f"{counted(total, 'file')} {said} ({size_text(total_size)}); "
        f"{counted(broken, 'collection')} skipped because of problems"
    )
    return Status.FOUND if broken else Status.OK
