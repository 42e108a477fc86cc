"""``expiring`` lists what has expired or expires soon.

Rules of this module: nothing is changed. A collection that is broken is listed as far as it can be read.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Final, NamedTuple

import click

from notary.admin import certificate_dates
from notary.admin.collections import Summary, inventory_of, summaries
from notary.admin.command import PREFIX_OPTION, Duration, Status, command
from notary.admin.output import relative_time
from notary.admin.session import Session
from notary.admin.signer import SignerKeys
from notary.config import ServerConfig
from notary.config.files import certificate_files
from notary.tuf.model import BASE_ROLES, SNAPSHOT, TIMESTAMP

_DELEGATIONS: Final = "delegations"
_CERTIFICATES: Final = "certificates"
_FOREIGN_KEYS: Final = "foreign-keys"
_KINDS: Final = (*BASE_ROLES, _DELEGATIONS, _CERTIFICATES, _FOREIGN_KEYS)
_DEFAULT_KINDS: Final = tuple(kind for kind in _KINDS if kind not in (TIMESTAMP, _FOREIGN_KEYS))


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
    help="Only this kind (may be given several times); by default all but timestamps and foreign keys.",
)
@PREFIX_OPTION
async def expiring(session: Session, within: timedelta, roles: tuple[str, ...], prefix: str) -> int:
    """List what has expired or expires soon: current metadata, certificates of root keys, certificates of the daemon.

    The exit status is 0 if nothing expires, and 1 if something does. Timestamps are listed only with --role timestamp:
    they are valid for days, and a server renews them before they expire, as it does a snapshot whose key it has. With
    --role foreign-keys, the signer is asked which keys it holds, and every collection is listed whose timestamp it
    cannot renew: clients can read such a collection until its timestamp expires.
    """
    limit = session.now() + within
    some = False
    with session.out.table("What", "Where", "Version", "Expires", "") as add:
        async for each in _dated(session, prefix, roles):
            if each.kind == _FOREIGN_KEYS or (each.expires <= limit and each.kind in roles):
                some = True
                cells = {"what": each.what, "where": each.where, "version": each.version, "expires": each.expires}
                add([*cells.values(), relative_time(each.expires, session.now())], cells)
    return Status.FOUND if some else Status.OK


async def _dated(session: Session, prefix: str, roles: tuple[str, ...]) -> AsyncIterator[_Dated]:
    """Yield everything that has an expiry, and foreign keys if ``roles`` has them."""
    for key, path in certificate_files(session.config).items():
        for each in certificate_dates.read(key, path):
            yield _Dated(_CERTIFICATES, f"certificate {each.subject}", f"{key}: {path}", None, each.valid_until)
    if isinstance(session.config, ServerConfig):
        inventory = await inventory_of(session)
        signer = SignerKeys(session.config, session) if _FOREIGN_KEYS in roles else None
        async for gun, found in summaries(session, inventory, prefix, "Collections"):
            for role, item in found.items.items():
                if item.expires:
                    kind = role if role in BASE_ROLES else _DELEGATIONS
                    yield _Dated(kind, role, gun, item.file.version, item.expires)
            for subject, ends in found.certificate_ends.items():
                yield _Dated(_CERTIFICATES, f"root certificate {subject}", gun, None, ends)
            if signer is not None:
                for foreign in await _foreign_keys(found, signer):
                    yield foreign._replace(where=gun)


async def _foreign_keys(found: Summary, signer: SignerKeys) -> list[_Dated]:
    """Return the keys that stop the signer from renewing a timestamp: that of the timestamp, then of the snapshot.

    The key of a snapshot may be in the hands of the collection's owner, so by itself it is no finding.
    """
    foreign: list[_Dated] = []
    for role in (TIMESTAMP, SNAPSHOT):
        item = found.items.get(role)
        key_ids = found.key_ids(role)
        if item is None or item.expires is None or not key_ids:
            break
        if any([await signer.has(key_id) for key_id in key_ids]):
            if role == TIMESTAMP:
                break
            continue
        whose = "" if role == TIMESTAMP else " (the owner's, or the old server's)"
        what = f"{role}: key {key_ids[0][:12]} is not the signer's{whose}"
        foreign.append(_Dated(_FOREIGN_KEYS, what, "", item.file.version, item.expires))
    return foreign
