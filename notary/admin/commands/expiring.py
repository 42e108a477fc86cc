"""``expiring`` lists what has expired or expires soon.

Rules of this module: nothing is changed. A collection that is broken is listed as far as it can be read.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Final, TypeAlias

import click

from notary.admin import certificate_dates
from notary.admin.collections import guns, inventory_of, summarise
from notary.admin.command import PREFIX_OPTION, Duration, Status, command
from notary.admin.output import relative_time
from notary.admin.session import Session
from notary.config import ServerConfig
from notary.config.files import certificate_files
from notary.tuf.model import BASE_ROLES, TIMESTAMP

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
@PREFIX_OPTION
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
                add([what, where, version, expires, relative_time(expires, session.now())], record)
    return Status.FOUND if some else Status.OK


async def _dated(session: Session, prefix: str) -> AsyncIterator[_Dated]:
    """All that expires."""
    for key, path in certificate_files(session.config).items():
        for each in certificate_dates.read(key, path):
            yield _CERTIFICATES, f"certificate {each.subject}", f"{key}: {path}", None, each.valid_until
    if isinstance(session.config, ServerConfig):
        inventory = await inventory_of(session)
        async for gun in guns(session, inventory, prefix, "Collections"):
            found = await inventory.visit(gun, summarise)
            for role, item in found.items.items():
                if item.expires:
                    yield (role if role in BASE_ROLES else _DELEGATIONS), role, gun, item.file.version, item.expires
            for subject, ends in found.certificates.items():
                yield _CERTIFICATES, f"root certificate {subject}", gun, None, ends
