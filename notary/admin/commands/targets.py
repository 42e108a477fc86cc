"""``repos targets`` lists what a collection vouches for, and how other tools sign the same.

Rules of this module: nothing is changed. :mod:`notary.admin.listing` decides what is listed.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Final

import click

from notary.admin import listing
from notary.admin.collections import inventory_of, visit_existing
from notary.admin.command import Status, command
from notary.admin.output import text_of
from notary.admin.session import Session
from notary.errors import NotFound
from notary.storage.operators import StoredCollection

_FORMATS: Final = ("table", "json", "csv", *listing.SIGNERS)
_COLUMNS: Final = ("Name", "Role", "SHA256", "Size")


@command("targets")
@click.argument("gun")
@click.option("--role", default="", help="Only what this role lists: targets, or a delegation.")
@click.option(
    "--format",
    "form",
    type=click.Choice(_FORMATS),
    default="table",
    show_default=True,
    help="cosign and notation: a shell script that signs each image by its digest.",
)
async def targets(session: Session, gun: str, role: str, form: str) -> int:
    """List the targets of a collection, verified as a client does: names, digests and sizes.

    Expired metadata is listed with a warning. A delegation that does not verify is left out, and the exit status is
    then 1.
    """
    inventory = await inventory_of(session)
    if form == "json":
        session.out.as_json = True

    def look(collection: StoredCollection) -> listing.Listing:
        return listing.verified(collection, session.now())

    found = await visit_existing(inventory, gun, look)
    if role and role not in found.roles and role not in found.left_out:
        raise NotFound(f"{gun} has no role {role} that lists targets; it has {', '.join(found.roles)}")
    chosen = [each for each in found.targets if role in {"", each.role}]
    left_out = {name: why for name, why in found.left_out.items() if role in {"", name}}
    _warn(session, found, left_out, chosen)
    if form in listing.SIGNERS:
        for line, each in listing.commands(form, gun, chosen):
            session.out.line(line, {**_record(gun, each), "command": line.partition("  #")[0]})
    elif form == "csv" and not session.out.as_json:
        _write_csv(session, [[column.lower() for column in _COLUMNS], *map(_cells, chosen)])
    else:
        with session.out.table(*_COLUMNS) as add:
            for each in chosen:
                add(_cells(each), _record(gun, each))
    return Status.FOUND if left_out else Status.OK


def _warn(
    session: Session, found: listing.Listing, left_out: Mapping[str, str], chosen: Sequence[listing.Listed]
) -> None:
    for name, expires in found.expired.items():
        session.out.say(f"{name} has expired on {text_of(expires)}: clients refuse it")
    for name, why in left_out.items():
        session.out.say(f"{name} is left out: {why}")
    for name in listing.ambiguous(chosen):
        session.out.say(f"{name!r} has different content in different roles: --role chooses one")


def _cells(target: listing.Listed) -> list[object]:
    return [target.name, target.role, target.hashes.get("sha256", ""), target.size]


def _record(gun: str, target: listing.Listed) -> dict[str, object]:
    return {"gun": gun, "name": target.name, "role": target.role, **target.hashes, "bytes": target.size}


def _write_csv(session: Session, rows: Sequence[Sequence[object]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    session.out.verbatim(text.getvalue())
