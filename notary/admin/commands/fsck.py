"""``fsck`` checks every collection.

Rules of this module: nothing is changed, except times with ``--mend-times``. The checks are in
:mod:`notary.admin.findings`.
"""

from __future__ import annotations

import click

from notary.admin import findings
from notary.admin.collections import inventory_of, selected
from notary.admin.command import GUN_OPTION, PREFIX_OPTION, Status, command
from notary.admin.output import counted
from notary.admin.session import Session
from notary.errors import InvalidRow
from notary.storage.operators import StoredCollection


def _check(collection: StoredCollection) -> list[findings.Finding]:
    return [*findings.undated(collection.undated()), *findings.check(collection, collection.feed())]


@command("fsck")
@GUN_OPTION
@PREFIX_OPTION
@click.option("--mend-times", is_flag=True, help="Give rows without a time the best one that is known.")
async def fsck(session: Session, gun: str, prefix: str, mend_times: bool) -> int:
    """Check every collection: checksums, metadata, signatures, versions, missing and surplus files, the changefeed.

    For each kind of finding, a second table has the meaning and the remedy. Nothing is changed, unless --mend-times is
    given: then rows without a time get one. The exit status is 1 if there are errors; it stays 0 if there are only
    notes.
    """
    inventory = await inventory_of(session)
    checked = errors = notes = mended = 0
    seen: dict[str, findings.Kind] = {}
    with session.out.table("GUN", "Finding", "Role", "Version", "Detail") as add:
        async for name in selected(session, inventory, gun, prefix, "Checking", remembered=True):
            try:
                found = await inventory.visit(name, _check)
            except InvalidRow as error:
                found = [findings.unreadable(error)]
            checked += 1
            if mend_times and any(each.kind == "no-time" for each in found):
                mended += await inventory.date(name)
                found = [each for each in found if each.kind != "no-time"]
            for each in found:
                kind = seen[each.kind] = findings.KINDS[each.kind]
                errors, notes = errors + kind.error, notes + (not kind.error)
                level = "ERROR" if kind.error else "note"
                add(
                    [name, f"{level} {each.kind}", each.role or None, each.version or None, each.detail],
                    {
                        "gun": name,
                        "level": level.lower(),
                        "finding": each.kind,
                        "role": each.role,
                        "version": each.version or None,
                        "detail": each.detail,
                        "meaning": kind.meaning,
                        "remedy": kind.remedy,
                    },
                )
    if seen and not session.out.as_json:
        with session.out.table("Finding", "Meaning", "What to do") as add:
            for name, kind in sorted(seen.items()):
                add([name, kind.meaning, kind.remedy], {})
    mending = f"; {counted(mended, 'row')} given a time" if mended else ""
    session.out.summary(
        f"{counted(checked, 'collection')} checked: {counted(errors, 'error')}, {counted(notes, 'note')}{mending}"
    )
    return Status.FOUND if errors else Status.OK
