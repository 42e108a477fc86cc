"""``expiring``, ``fsck`` and ``gc``: what an operator has done at night.

Rules of this module: the judgement is in :mod:`notary.admin.findings` and :mod:`notary.admin.collectable`; here are the
walks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from functools import partial
from typing import Final, TypeAlias

import click

from notary.admin import certificates, findings
from notary.admin.collectable import collectable
from notary.admin.collections import guns, inventory_of, summarise
from notary.admin.command import Duration, Status, command
from notary.admin.output import ago, size
from notary.admin.session import Session
from notary.config import ServerConfig
from notary.config.files import certificate_files
from notary.errors import InvalidMetadata, InvalidRow, NotFound
from notary.storage.operators import Inventory, StoredCollection
from notary.tuf.model import BASE_ROLES, TIMESTAMP

_PREFIX = click.option("--prefix", default="", help="Only collections whose names begin with this.")
_GUN = click.option("--gun", default="", help="Only this collection.")


async def _chosen(
    session: Session, inventory: Inventory, gun: str, prefix: str, what: str, *, remembered: bool = False
) -> AsyncIterator[str]:
    if gun:
        if not await inventory.visit(gun, lambda found: bool(found.files or (remembered and found.feed()))):
            raise NotFound(f"there is no collection {gun}")
        yield gun
        return
    async for each in guns(session, inventory, prefix, what, remembered=remembered):
        yield each


# -- expiring ---------------------------------------------------------------------------------------------------------

_DELEGATIONS: Final = "delegations"
_CERTIFICATES: Final = "certificates"
_KINDS: Final = (*BASE_ROLES, _DELEGATIONS, _CERTIFICATES)
_FOR_PEOPLE: Final = tuple(kind for kind in _KINDS if kind != TIMESTAMP)
_Dated: TypeAlias = tuple[str, str, str, int | None, datetime]
"""A value of ``--role``; what expires, where it is, its version if it has one, and when (aware, UTC)."""


@command("expiring")
@click.option("--within", type=Duration(), default="30d", show_default=True, help="How far ahead to look.")
@click.option(
    "--role",
    "roles",
    multiple=True,
    type=click.Choice(_KINDS),
    default=_FOR_PEOPLE,
    help="Only these (may be given several times); by default all but timestamps.",
)
@_PREFIX
async def expiring(session: Session, within: timedelta, roles: tuple[str, ...], prefix: str) -> int:
    """Tell what has expired or expires soon: current metadata, the certificates of root keys, and the daemon's own.

    The exit status is 0 if nothing does, and 1 if something does. Timestamps are left out unless they are asked for:
    they live for days, and a server renews them, and snapshots whose key it has, when somebody asks for them.
    """
    limit = session.now() + within
    some = False
    with session.out.table("What", "Where", "Version", "Expires", "") as add:
        async for kind, what, where, version, expires in _dated(session, prefix):
            if expires <= limit and kind in roles:
                some = True
                record = {"what": what, "where": where, "version": version, "expires": expires}
                add([what, where, version, expires, ago(expires, session.now())], record)
    return Status.FOUND if some else Status.OK


async def _dated(session: Session, prefix: str) -> AsyncIterator[_Dated]:
    """All that expires."""
    for key, path in certificate_files(session.config).items():
        for each in certificates.read(key, path):
            yield _CERTIFICATES, f"certificate {each.subject}", f"{key}: {path}", None, each.ends
    if isinstance(session.config, ServerConfig):
        inventory = await inventory_of(session)
        async for gun in guns(session, inventory, prefix, "Collections"):
            found = await inventory.visit(gun, summarise)
            for role, item in found.items.items():
                if item.expires:
                    yield (role if role in BASE_ROLES else _DELEGATIONS), role, gun, item.file.version, item.expires
            for subject, ends in found.certificates.items():
                yield _CERTIFICATES, f"root certificate {subject}", gun, None, ends


# -- fsck -------------------------------------------------------------------------------------------------------------


def _check(collection: StoredCollection) -> list[findings.Finding]:
    return findings.check(collection, collection.feed())


@command("fsck")
@_GUN
@_PREFIX
async def fsck_(session: Session, gun: str, prefix: str) -> int:
    """Check every collection: checksums, metadata, signatures, versions, what is missing or left over, the changefeed.

    For each finding there is what it means and what to do. Nothing is changed. The exit status is 1 if there are
    errors; notes alone leave it 0.
    """
    inventory = await inventory_of(session)
    checked = errors = notes = 0
    seen: dict[str, findings.Kind] = {}
    with session.out.table("GUN", "Finding", "Role", "Version", "Detail") as add:
        async for name in _chosen(session, inventory, gun, prefix, "Checking", remembered=True):
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
    session.out.total(f"{checked} collections checked: {errors} errors, {notes} notes")
    return Status.FOUND if errors else Status.OK


# -- gc ---------------------------------------------------------------------------------------------------------------

_BATCH: Final = 200
"""How many files one transaction removes."""


@command("gc")
@click.option(
    "--keep",
    required=True,
    type=click.IntRange(min=1),
    help="How many of the newest timestamps and snapshots stay, with all that they list.",
)
@_GUN
@_PREFIX
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--yes", is_flag=True, help="Do not ask.")
async def gc(session: Session, keep: int, gun: str, prefix: str, dry_run: bool, yes: bool) -> int:
    """Remove old versions that nothing refers to.

    Never removed: any root, the newest version of any role, what the current or a kept timestamp or snapshot lists.
    Safe while servers run and publishers publish. A collection whose current state is broken is left alone, and the
    exit status is then 1.
    """
    where = gun or (f"all collections that begin with {prefix}" if prefix else "all collections")
    if not dry_run and not session.confirm(f"Remove old versions of {where}, but for the newest {keep}?", yes=yes):
        return Status.REFUSED
    inventory = await inventory_of(session)
    choose = partial(collectable, keep=keep)
    total = total_size = broken = 0
    with session.out.table("GUN", "Removed" if not dry_run else "Would remove", "Size", "Problem") as add:
        async for name in _chosen(session, inventory, gun, prefix, "Collecting"):
            problem, count, freed = "", 0, 0
            try:
                found = await inventory.visit(name, choose)
                count, freed = len(found), sum(file.size for file in found)
                if found and not dry_run:
                    count = freed = 0
                    while removed := await inventory.remove(name, choose, _BATCH):
                        count, freed = count + len(removed), freed + sum(file.size for file in removed)
            except (NotFound, InvalidMetadata, InvalidRow) as error:
                problem = str(error)
            broken += bool(problem)
            total, total_size = total + count, total_size + freed
            if count or problem:
                record = {"gun": name, "files": count, "bytes": freed, "removed": not dry_run, "problem": problem}
                add([name, count, size(freed), problem or None], record)
    said = "would be removed" if dry_run else "removed"
    session.out.total(f"{total} files {said} ({size(total_size)}); {broken} collections left alone because of problems")
    return Status.FOUND if broken else Status.OK
