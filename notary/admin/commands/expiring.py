"""``expiring`` lists what has expired or expires soon.

Rules of this module: nothing is changed. A collection that is broken is listed as far as it can be read.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Final, NamedTuple

import click

from notary.admin import certificate_dates
from notary.admin.collections import inventory_of, summaries
from notary.admin.command import PREFIX_OPTION, Duration, Status, command
from notary.admin.output import relative_time
from notary.admin.session import Session
from notary.config import ServerConfig
from notary.config.files import certificate_files
from notary.tuf.model import BASE_ROLES, TIMESTAMP

_DELEGATIONS: Final = "delegations"
_CERTIFICATES: Final = "certificates"
_KINDS: Final = (*BASE_ROLES, _DELEGATIONS, _CERTIFICATES)
_DEFAULT_KINDS: Final = tuple(kind for kind in _KINDS if kind != TIMESTAMP)


class _Dated(NamedTuple):
    """A thing that expires. ``kind`` is a value of ``--role``; ``expires`` is aware, UTC."""

    kind: str
    what: str
    where: str
    version: int | None
    expires: datetime


@command("expiring")
@click.option("--within", type=Duration(), default="30d", show_default=True, help="List what expires within this time.")
@click.option(
    "--role",
    "roles",
    multiple=True,
    type=click.Choice(_KINDS),
    default=_DEFAULT_KINDS,
    help="Only this kind (may be given several times); by default all but timestamps.",
)
@PREFIX_OPTION
async def expiring(session: Session, within: timedelta, roles: tuple[str, ...], prefix: str) -> int:
    """List what has expired or expires soon: current metadata, certificates of root keys, certificates of the daemon.

    The exit status is 0 if nothing expires, and 1 if something does. Timestamps are listed only with --role timestamp:
    they are valid for days, and a server renews them before they expire, as it does a snapshot whose key it has.
    """
    limit = session.now() + within
    some = False
    with session.out.table("What", "Where", "Version", "Expires", "") as add:
        async for each in _dated(session, prefix):
            if each.expires <= limit and each.kind in roles:
                some = True
                cells = {"what": each.what, "where": each.where, "version": each.version, "expires": each.expires}
                add([*cells.values(), relative_time(each.expires, session.now())], cells)
    return Status.FOUND if some else Status.OK


async def _dated(session: Session, prefix: str) -> AsyncIterator[_Dated]:
    """Yield everything that has an expiry."""
    for key, path in certificate_files(session.config).items():
        for each in certificate_dates.read(key, path):
            yield _Dated(_CERTIFICATES, f"certificate {each.subject}", f"{key}: {path}", None, each.valid_until)
    if isinstance(session.config, ServerConfig):
        inventory = await inventory_of(session)
        async for gun, found in summaries(session, inventory, prefix, "Collections"):
            for role, item in found.items.items():
                if item.expires:
                    kind = role if role in BASE_ROLES else _DELEGATIONS
                    yield _Dated(kind, role, gun, item.file.version, item.expires)
            for subject, ends in found.certificate_ends.items():
                yield _Dated(_CERTIFICATES, f"root certificate {subject}", gun, None, ends)
