"""``fsck`` checks every collection.

Rules of this module: nothing is changed. The checks are in :mod:`notary.admin.findings`.
"""

from __future__ import annotations

from notary.admin import findings
from notary.admin.collections import inventory_of, selected
from notary.admin.command import GUN_OPTION, PREFIX_OPTION, Status, command
from notary.admin.output import counted
from notary.admin.session import Session
from notary.errors import InvalidRow
from notary.storage.operators import StoredCollection


def _check(collection: StoredCollection) -> list[findings.Finding]:
    return findings.check(collection, collection.feed())


@command("fsck")
@GUN_OPTION
@PREFIX_OPTION
async def fsck(session: Session, gun: str, prefix: str) -> int:
    """Check every collection: checksums, metadata, signatures, versions, missing and surplus files, the changefeed.

    For each kind of finding, a second table has the meaning and the remedy. Nothing is changed. The exit status is 1 if
    there are errors; it stays 0 if there are only notes.
    """
    inventory = await inventory_of(session)
    checked = errors = notes = 0
    seen: dict[str, findings.Kind] = {}
    with session.out.table("GUN", "Finding", "Role", "Version", "Detail") as add:
        async for name in selected(session, inventory, gun, prefix, "Checking", remembered=True):
            try:
                found = await inventory.visit(name, _check)
            except InvalidRow as error:
                found = [findings.unreadable(error)]
            checked += 1
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
    session.out.summary(
        f"{counted(checked, 'collection')} checked: {counted(errors, 'error')}, {counted(notes, 'note')}"
    )
    return Status.FOUND if errors else Status.OK
