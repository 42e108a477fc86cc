"""``keys`` lists the signer's private keys, encrypts them anew under another passphrase, and removes unused ones.

Rules of this module: a signer uses the same database at the same time, and its changes to a key are preserved. Keys are
read page by page in the order of the database, so that memory does not grow with their number. No secret is shown.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from typing import Final, TypeAlias

import click
from twisted.internet.defer import Deferred, succeed
from twisted.internet.threads import deferToThreadPool

from notary.admin.command import DRY_RUN_OPTION, YES_OPTION, Duration, Status, command
from notary.admin.output import counted
from notary.admin.session import Session
from notary.config import SIGNER_PREFIX, SignerConfig
from notary.config.table import variable_part
from notary.errors import ConfigError, SigningFailed, StorageFailed, UnsupportedAlgorithm
from notary.storage import StoredKey
from notary.storage.keywrap import rewrap
from notary.storage.open import open_key_inventory
from notary.storage.operators import KeyInventory, KeyRow

BATCH_KEYS: Final = 200
"""The number of keys in one read, and the most keys in one transaction."""

_MAX_ALIAS_CHARACTERS: Final = 50
"""The longest alias that fits into the tables of the reference."""

_SHORT_ID_DIGITS: Final = 12
"""The digits of a key id that tables show: enough to distinguish keys."""

_COLUMNS: Final = ("Key", "GUN", "Role", "Algorithm", "Alias", "Created", "Last used")

_MAX_FRUITLESS_PASSES: Final = 3
"""The command gives up after this many passes in which every key had changed meanwhile."""


_PREFIX: Final = click.option("--prefix", default="", help="Only keys of collections whose names begin with this.")


@click.group("keys")
def keys() -> None:
    """List the signer's keys, encrypt them under another passphrase, remove unused ones.

    FILE is the signer's configuration. As for the signer, NOTARY_SIGNER_* is read from the environment.
    """


async def _pages(session: Session, inventory: KeyInventory, what: str) -> AsyncIterator[Sequence[KeyRow]]:
    """Yield all keys in pages, under a progress bar with the label ``what``."""
    total = await inventory.count() if session.out.shows_progress else None
    with session.out.progress(what, total) as advance:
        after = 0
        while page := await inventory.page(after, BATCH_KEYS):
            yield page
            advance(len(page))
            after = page[-1].number


# -- list -------------------------------------------------------------------------------------------------------------


@command("list")
@_PREFIX
@click.option("--role", default="", help="Only keys of this role, such as timestamp.")
@click.option("--alias", default="", help="Only keys encrypted under the passphrase of this alias.")
@click.option("--pending", "only_pending", is_flag=True, help="Only keys that have never signed anything.")
async def list_(session: Session, prefix: str, role: str, alias: str, only_pending: bool) -> int:
    """List the keys, oldest first: collection and role, the alias of the passphrase, creation and use.

    A key is "pending" until its first signature; until then, requests for a key of the same collection, role and
    algorithm get the same key. Our signer records only the first signature. The exit status is 1 if a row cannot be
    read. Tables show the first digits of key ids and the dates; --json shows whole key ids and the time of day.
    """
    inventory = await session.open(session.signer(), open_key_inventory)

    def wanted(row: KeyRow) -> bool:
        key = row.key
        return key is None or (
            key.gun.startswith(prefix)
            and role in {"", key.role}
            and alias in {"", key.passphrase_alias}
            and not (only_pending and key.last_used)
        )

    status = Status.OK
    with session.out.table(*_COLUMNS) as add:
        async for page in _pages(session, inventory, "Keys"):
            for row in filter(wanted, page):
                add(*_listed(row))
                if row.key is None:
                    status = Status.FOUND
    return status


def _listed(row: KeyRow) -> tuple[Sequence[object], dict[str, object]]:
    """Return the cells and the record of a key."""
    key, short = row.key, row.key_id[:_SHORT_ID_DIGITS]
    if key is None:
        return [short, row.problem, *"-----"], {"key_id": row.key_id, "problem": row.problem}
    day = row.created.date() if row.created else None
    used = key.last_used.date() if key.last_used else "pending"
    record: dict[str, object] = {
        "key_id": row.key_id,
        "gun": key.gun,
        "role": key.role,
        "algorithm": key.algorithm,
        "alias": key.passphrase_alias,
        "created": row.created,
        "last_used": key.last_used,
        "pending": key.last_used is None,
    }
    cells: list[object] = [short, key.gun, key.role, key.algorithm, key.passphrase_alias, day, used]
    return cells, record


# -- reencrypt --------------------------------------------------------------------------------------------------------


@command("reencrypt")
@click.option("--to", "alias", required=True, help="The alias of the new passphrase for all keys.")
async def reencrypt(session: Session, alias: str) -> int:
    """Encrypt every key under the passphrase of another alias, while the signer serves.

    First give NOTARY_SIGNER_<ALIAS> to every signer, set storage.default_alias to this alias, and restart the signers:
    a signer can only use keys whose passphrase it was started with, and encrypts new keys under its default alias. Then
    run this command with the old passphrases and the new one in the environment. After exit status 0, only backups need
    the old passphrases.

    The command may be interrupted at any time; started again, it continues with the remaining keys. A key that cannot
    be decrypted is reported and left unchanged; the exit status is then 1.
    """
    config = session.signer()
    _require(config, alias)
    inventory = await session.open(config, open_key_inventory)
    failed: set[int] = set()
    wanted = done = fruitless = 0
    # The reactor's own threads end with the reactor, also after an interrupt.
    in_thread = partial(deferToThreadPool, session.reactor, session.reactor.getThreadPool())
    rewrapped = partial(_rewrapped, config, alias, in_thread)
    # Several passes are needed if signers create or replace keys meanwhile.
    while fruitless < _MAX_FRUITLESS_PASSES:
        wanted, replaced = await _pass(session, inventory, alias, rewrapped, failed)
        if not wanted:
            break
        done += replaced
        fruitless = 0 if replaced else fruitless + 1
    else:
        raise StorageFailed(
            f"{wanted} keys were changed by another process in each pass: find that process, then start this command "
            "again"
        )
    session.out.line(
        f"{counted(done, 'key')} encrypted under {alias}, {len(failed)} left unchanged",
        {"alias": alias, "reencrypted": done, "failed": len(failed)},
    )
    return Status.FOUND if failed else Status.OK


def _require(config: SignerConfig, alias: str) -> None:
    if len(alias) > _MAX_ALIAS_CHARACTERS:
        raise ConfigError(
            f"--to: expected an alias of at most {_MAX_ALIAS_CHARACTERS} characters, the limit of the database"
        )
    if config.passphrase(alias) is None:
        raise ConfigError(f"{SIGNER_PREFIX}{variable_part(alias)}: missing or empty; expected the new passphrase")


_Outcome: TypeAlias = StoredKey | str
"""A key under its new passphrase, or the reason why it stays under the old one."""


def _rewrapped(
    config: SignerConfig, alias: str, in_thread: Callable[..., Deferred[_Outcome]], row: KeyRow
) -> Deferred[_Outcome]:
    def work(key: StoredKey) -> _Outcome:
        try:
            return rewrap(key, alias, config.passphrase)
        except (SigningFailed, UnsupportedAlgorithm) as error:
            return str(error)

    return succeed(f"key {row.key_id}: {row.problem}") if row.key is None else in_thread(work, row.key)


async def _pass(
    session: Session,
    inventory: KeyInventory,
    alias: str,
    rewrapped: Callable[[KeyRow], Deferred[_Outcome]],
    failed: set[int],
) -> tuple[int, int]:
    """Go through all keys once. Returns how many keys needed a replacement, and how many were replaced.

    ``failed`` has the numbers of keys that cannot be replaced; this pass adds to it.
    """
    wanted = replaced = 0
    async for page in _pages(session, inventory, "Keys"):
        rows = [row for row in page if row.number not in failed and not (row.key and row.key.passphrase_alias == alias)]
        pairs = []
        for row, outcome in [(row, rewrapped(row)) for row in rows]:
            new = await outcome
            if isinstance(new, str):
                failed.add(row.number)
                session.out.say(new)
            else:
                pairs.append((row, new))
        wanted += len(pairs)
        replaced += await inventory.replace(pairs)
    return wanted, replaced


# -- prune ------------------------------------------------------------------------------------------------------------


@command("prune")
@click.option("--older-than", "age", type=Duration(), required=True, help="Only keys older than this, such as 30d.")
@_PREFIX
@DRY_RUN_OPTION
@YES_OPTION
async def prune(session: Session, age: timedelta, prefix: str, dry_run: bool, yes: bool) -> int:
    """Remove old keys that have never signed anything.

    A key is pending until its first signature. Keys stay pending after a publish that was never finished, or a rotation
    that was never published. If such a key is removed, the client that requested it must request another one to finish:
    by "notary key rotate", or by "notary init" for a collection that was never published. A key in a published root is
    not pending, because the server signs with it in the same publish. The exception is a root that was published
    elsewhere and then imported, so choose an age of a month or more.
    """
    inventory = await session.open(session.signer(), open_key_inventory)
    before = session.now() - age

    def old(row: KeyRow) -> bool:
        key = row.key
        return (
            key is not None
            and key.last_used is None
            and key.gun.startswith(prefix)
            and row.created is not None
            and row.created < before
        )

    count = 0
    with session.out.table(*_COLUMNS) if dry_run else nullcontext() as add:
        async for page in _pages(session, inventory, "Keys"):
            for row in filter(old, page):
                count += 1
                if add is not None:
                    add(*_listed(row))
    if dry_run or not count:
        session.out.summary(f"{counted(count, 'key')} would be removed" if dry_run else "there are no such keys")
        return Status.OK
    if not session.confirm(f"Remove {counted(count, 'key')} that have never signed, for good?", yes=yes):
        return Status.REFUSED
    removed = 0
    async for page in _pages(session, inventory, "Keys"):
        rows = [row for row in page if old(row)]
        removed += await inventory.remove_pending(rows) if rows else 0
    session.out.line(f"removed {counted(removed, 'key')}", {"removed": removed})
    return Status.OK


for each in (list_, reencrypt, prune):
    keys.add_command(each)
