"""``keys`` lists the signer's private keys, opens or encrypts all of them, removes unused ones, and measures.

Rules of this module: a signer uses the same database at the same time, and its changes to a key are preserved. Keys are
read page by page in the order of the database, so that memory does not grow with their number. No secret is shown.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from typing import Any, Final, TypeAlias

import click
from twisted.internet.defer import Deferred, DeferredSemaphore, succeed
from twisted.internet.threads import deferToThreadPool

from notary.admin.command import DRY_RUN_OPTION, YES_OPTION, Duration, Status, command
from notary.admin.output import counted
from notary.admin.private_keys import PrivateKeys, Target, UnderKek, UnderPassphrase
from notary.admin.rates import Rate, rate_of
from notary.admin.session import Session
from notary.envelope.envelopes import under
from notary.envelope.inside import Inside
from notary.errors import (
    ConfigError,
    CustodyUnavailable,
    KeyDoesNotOpen,
    SigningFailed,
    StorageFailed,
    UnsupportedAlgorithm,
)
from notary.storage import StoredKey
from notary.storage.open import open_key_inventory
from notary.storage.operators import KeyInventory, KeyRow
from notary.tuf import private
from notary.tuf.canonical import quote

BATCH_KEYS: Final = 200
"""The number of keys in one read, and the most keys in one transaction."""

_DATA_KEY_BYTES: Final = 32

_SHORT_ID_DIGITS: Final = 12
"""The digits of a key id that tables show: enough to distinguish keys."""

_COLUMNS: Final = ("Key", "GUN", "Role", "Algorithm", "Alias", "Created", "Last used")

_MAX_FRUITLESS_PASSES: Final = 3
"""The command gives up after this many passes in which every key had changed meanwhile."""


_PREFIX: Final = click.option("--prefix", default="", help="Only keys of collections whose names begin with this.")


@click.group("keys")
def keys() -> None:
    """List the signer's keys, try them, encrypt them under something else, remove unused ones; measure.

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
@click.option("--alias", default="", help="Only keys under this passphrase or key-encrypting key.")
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
            and alias in {"", key.passphrase_alias, under(key)}
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
@click.option("--to", "alias", default="", help="Under the passphrase of this alias, as a Go signer reads them.")
@click.option("--to-kek", is_flag=True, help="Under the key-encrypting key that storage.keys.wrap names.")
async def reencrypt(session: Session, alias: str, to_kek: bool) -> int:
    """Encrypt every key under another passphrase or key-encrypting key, while the signer serves.

    First give the new one to every signer beside the old ones, and restart the signers: a signer can only use keys that
    its configuration opens, and encrypts new keys under storage.keys.wrap or, without that key, under the passphrase of
    storage.default_alias. Then run this command with the same configuration and environment. After exit status 0, only
    backups need the old ones.

    The command may be interrupted at any time; started again, it continues with the remaining keys. A key that cannot
    be decrypted is reported and left unchanged; the exit status is then 1. For a new version of a key in Transit no key
    is decrypted.
    """
    if bool(alias) == to_kek:
        raise ConfigError("--to, --to-kek: expected one of the two, and not both")
    config = session.signer()
    keys = PrivateKeys(config, session.reactor)
    session.at_end(keys.close)
    target: Target = UnderKek(keys, config) if to_kek else UnderPassphrase(keys, config, alias)
    inventory = await session.open(config, open_key_inventory)
    failed: set[int] = set()
    wanted = done = fruitless = 0
    in_thread = _in_thread(session)
    await in_thread(target.prepare)
    moved = partial(_moved, target, in_thread)
    # Several passes are needed if signers create or replace keys meanwhile.
    while fruitless < _MAX_FRUITLESS_PASSES:
        wanted, replaced = await _pass(session, inventory, target, moved, failed)
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
        f"{counted(done, 'key')} encrypted under {target.name}, {len(failed)} left unchanged",
        {"alias": target.name, "reencrypted": done, "failed": len(failed)},
    )
    return Status.FOUND if failed else Status.OK


_Outcome: TypeAlias = StoredKey | str | CustodyUnavailable
"""A key under its new passphrase or key-encrypting key; or why it stays under the old one; or why no key can move."""


def _in_thread(session: Session) -> Callable[..., Deferred[Any]]:
    """Return what runs a function in a thread of the reactor's own, which end with it, also after an interrupt.

    Some of these threads stay free: what waits for a server in the others needs one to look its name up, or to read
    the file of a login.
    """
    pool = session.reactor.getThreadPool()
    return partial(DeferredSemaphore(pool.max // 2).run, deferToThreadPool, session.reactor, pool)


def _moved(target: Target, in_thread: Callable[..., Deferred[_Outcome]], row: KeyRow) -> Deferred[_Outcome]:
    def work(key: StoredKey) -> _Outcome:
        try:
            return target.move(key)
        except CustodyUnavailable as error:
            return error
        except (SigningFailed, UnsupportedAlgorithm) as error:
            return str(error)

    return succeed(f"key {row.key_id}: {row.problem}") if row.key is None else in_thread(work, row.key)


async def _pass(
    session: Session,
    inventory: KeyInventory,
    target: Target,
    moved: Callable[[KeyRow], Deferred[_Outcome]],
    failed: set[int],
) -> tuple[int, int]:
    """Go through all keys once. Returns how many keys needed a replacement, and how many were replaced.

    ``failed`` has the numbers of keys that cannot be replaced; this pass adds to it.
    """
    wanted = replaced = 0
    async for page in _pages(session, inventory, "Keys"):
        rows = [row for row in page if row.number not in failed and not (row.key and target.has(row.key))]
        pairs = []
        for row, outcome in [(row, moved(row)) for row in rows]:
            new = await outcome
            if isinstance(new, CustodyUnavailable):
                raise new
            if isinstance(new, str):
                failed.add(row.number)
                session.out.say(new)
            else:
                pairs.append((row, new))
        wanted += len(pairs)
        replaced += await inventory.replace(pairs)
    return wanted, replaced


# -- verify -----------------------------------------------------------------------------------------------------------


class _Tried:
    """Keys that were tried: ``good`` has what some key is under and opens, ``wrong`` the aliases that open not all."""

    def __init__(self, keys: PrivateKeys) -> None:
        self._keys = keys
        self.good: set[str] = set()
        self.wrong: set[str] = set()

    def problem(self, row: KeyRow) -> str | CustodyUnavailable | None:
        """Return why a key does not open, None if it does; or why no key can be tried."""
        if row.key is None:
            return row.problem
        try:
            self._keys.try_key(row.key)
        except CustodyUnavailable as error:
            return error
        except (SigningFailed, UnsupportedAlgorithm) as error:
            if isinstance(error, KeyDoesNotOpen):
                self.wrong.add(under(row.key))
            return str(error)
        self.good.add(under(row.key))
        return None


@command("verify")
@_PREFIX
async def verify(session: Session, prefix: str) -> int:
    """Open every key, and name those that do not open: why, and what can be done.

    Keys are opened as the signer opens them, by the passphrases and the key-encrypting keys of the configuration and
    the environment. Nothing is changed and nothing is signed. The exit status is 1 if a key does not open.
    """
    config = session.signer()
    keys = PrivateKeys(config, session.reactor)
    session.at_end(keys.close)
    inventory = await session.open(config, open_key_inventory)
    in_thread = _in_thread(session)
    count = broken = 0
    tried = _Tried(keys)
    with session.out.table("Key", "GUN", "Role", "Under", "Problem") as add:
        async for page in _pages(session, inventory, "Keys"):
            rows = [row for row in page if row.key is None or row.key.gun.startswith(prefix)]
            count += len(rows)
            for row, outcome in [(row, in_thread(tried.problem, row)) for row in rows]:
                problem = await outcome
                if isinstance(problem, CustodyUnavailable):
                    raise problem
                if problem is not None:
                    broken += 1
                    add(*_does_not_open(row, problem))
    for alias in sorted(tried.wrong):
        session.out.say(_advice(alias, some_open=alias in tried.good))
    if broken:
        session.out.say(
            "A key that stays broken: restore its row from a backup, or have the publisher rotate the key "
            "(notary key rotate GUN timestamp -r)."
        )
    session.out.line(
        f"{counted(count, 'key')} checked, {broken} do not open", {"checked": count, "do_not_open": broken}
    )
    return Status.FOUND if broken else Status.OK


def _does_not_open(row: KeyRow, problem: str) -> tuple[Sequence[object], dict[str, object]]:
    """Return the cells and the record of a key that does not open."""
    key, short = row.key, row.key_id[:_SHORT_ID_DIGITS]
    if key is None:
        return [short, "-", "-", "-", problem], {"key_id": row.key_id, "problem": problem}
    record: dict[str, object] = {
        "key_id": row.key_id,
        "gun": key.gun,
        "role": key.role,
        "under": under(key),
        "problem": problem,
    }
    return [short, key.gun, key.role, under(key), problem], record


def _advice(alias: str, *, some_open: bool) -> str:
    """Say what can be done about keys that do not open under the passphrase of ``alias``, though it was given."""
    harbor = "Harbor 2.2.0 to 2.2.2 and 2.3.0 wrote keys that nothing else opens, in a form of their own of PBES2"
    if not some_open:
        return (
            f"Under passphrase {quote(alias)} no key opens: the passphrase is probably wrong. Find the one that the "
            f"keys were made with. Another possibility: {harbor}."
        )
    return (
        f"Under passphrase {quote(alias)} other keys open, so these are damaged, or were wrapped with an earlier "
        f"passphrase of this alias. Another possibility: {harbor}."
    )


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


# -- bench ------------------------------------------------------------------------------------------------------------

_BENCH_ALGORITHM: Final = "ecdsa"
"""The algorithm that servers ask for unless they are told otherwise."""

_AT_ONCE: Final = 8
"""In how many threads work is measured that a signer does for several clients."""


_Work: TypeAlias = tuple[str, int, Callable[[], object]]
"""What a signer does with keys: its name, in how many threads it is measured, and the work itself."""


def _works_inside(token: Inside, made: list[StoredKey]) -> Iterator[_Work]:
    """Yield the works of a token that keeps keys inside; ``made`` gets the keys that are made there."""

    def make() -> None:
        made.append(token.make("bench", "timestamp", _BENCH_ALGORITHM)[1])

    make()
    row = made[0]
    key = token.open(row)
    yield "make a key", 1, make
    yield "make a key", _AT_ONCE, make
    yield "open a key", 1, lambda: token.open(row)
    yield "sign", 1, lambda: key.sign(b"a message")
    yield "sign", _AT_ONCE, lambda: key.sign(b"a message")


def _forgotten(token: Inside, made: list[StoredKey]) -> None:
    for row in made:
        token.forget(row)


def _works(keys: PrivateKeys) -> Iterator[_Work]:
    """Yield the works of keys that are open in memory."""
    if keys.envelopes is not None:
        kek, data_key = keys.envelopes.first, secrets.token_bytes(_DATA_KEY_BYTES)
        wrapped = kek.wrap(data_key, b"bench")
        yield "encrypt a data key", 1, lambda: kek.wrap(data_key, b"bench")
        yield "decrypt a data key", 1, lambda: kek.unwrap(wrapped, b"bench")

    def make() -> StoredKey:
        return keys.seal(private.generate(_BENCH_ALGORITHM), "bench", "timestamp")

    row = make()
    yield "make a key", 1, make
    yield "make a key", _AT_ONCE, make
    yield "open a key", 1, lambda: keys.open(row)
    key = keys.open(row)
    yield "sign", 1, lambda: key.sign(b"a message")


@command("bench")
@click.option("--seconds", type=click.FloatRange(0.1, 60), default=3.0, help="The time for each measurement.")
async def bench(session: Session, seconds: float) -> int:
    """Measure how fast ecdsa keys are made, opened, and sign, under what the configuration encrypts new keys under.

    With a token or a server, this measures that token or server. Nothing is stored, and the database is not asked: a
    signer also stores each key that it makes. Keys that are made in a token are destroyed at the end. Measure beside no
    other load.
    """
    config = session.signer()
    keys = PrivateKeys(config, session.reactor)
    session.at_end(keys.close)
    in_thread = _in_thread(session)
    token = None if keys.insides is None or not config.storage.keys.makes_inside else keys.insides.first
    made: list[StoredKey] = []
    try:
        works = await in_thread(lambda: list(_works(keys) if token is None else _works_inside(token, made)))
        await _measured(session, works, seconds)
    finally:
        if token is not None:
            await in_thread(_forgotten, token, made)
    return Status.OK


async def _measured(session: Session, works: Sequence[_Work], seconds: float) -> None:
    in_thread = _in_thread(session)
    with session.out.table("Work", "Threads", "Per second", "Median (ms)", "Worst (ms)") as add:
        for name, threads, work in works:
            rate: Rate = await in_thread(rate_of, work, threads, seconds, session.reactor.seconds)
            record: dict[str, object] = {
                "work": name,
                "threads": threads,
                "per_second": round(rate.per_second, 1),
                "median_ms": round(1000 * rate.median_seconds, 3),
                "worst_ms": round(1000 * rate.worst_seconds, 3),
            }
            add(list(record.values()), record)


for each in (list_, reencrypt, verify, prune, bench):
    keys.add_command(each)
