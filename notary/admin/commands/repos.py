"""``repos`` lists, shows, deletes, exports and imports collections.

Rules of this module: a command asks before it deletes, unless ``--yes`` is given. No file and no stored version is
overwritten.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shutil import copyfileobj
from tempfile import TemporaryFile
from typing import BinaryIO, cast

import click

from notary.admin import archive, findings
from notary.admin.collections import (
    Item,
    Summary,
    inventory_of,
    leaf_of,
    read_metadata,
    summaries,
    summarise,
    visit_existing,
)
from notary.admin.command import DRY_RUN_OPTION, PREFIX_OPTION, YES_OPTION, Status, command
from notary.admin.output import Node, counted, relative_time, size_text, text_of
from notary.admin.session import Session
from notary.config import ServerConfig
from notary.errors import ConfigError, InvalidArchive, InvalidGun, NotaryError, NotFound
from notary.storage.open import open_key_inventory, open_key_store, open_metadata_store
from notary.storage.operators import StoredCollection
from notary.tuf.collection import Collection, newest
from notary.tuf.model import BASE_ROLES, ROOT, TIMESTAMP, Gun, Root, Targets
from notary.tuf.public import PublicKey, RoleKeys

_GUN = click.argument("gun")


@click.group("repos")
def repos() -> None:
    """List, show, delete, export and import collections."""


# -- list -------------------------------------------------------------------------------------------------------------


@command("list")
@PREFIX_OPTION
async def list_(session: Session, prefix: str) -> int:
    """List all collections: the current version and expiry of each role, the number and size of stored files."""
    inventory = await inventory_of(session)
    columns = ("GUN", *(role.capitalize() for role in BASE_ROLES), "Delegations", "Files", "Size", "Problem")
    with session.out.table(*columns) as add:
        async for gun, found in summaries(session, inventory, prefix, "Collections"):
            delegations = sum(role not in BASE_ROLES for role in found.items)
            cells = [_cell(found.items.get(role)) for role in BASE_ROLES]
            roles = {role: _record(item) for role, item in found.items.items()}
            add(
                [gun, *cells, delegations, found.stored_files, size_text(found.stored_bytes), found.problem or "-"],
                {"gun": gun, "roles": roles, **_totals(found)},
            )
    return Status.OK


def _cell(item: Item | None) -> str:
    if item is None:
        return "-"
    return (
        f"v{item.file.version} until {item.expires:%Y-%m-%d}" if item.expires else f"v{item.file.version}, unreadable"
    )


def _record(item: Item) -> dict[str, object]:
    file = item.file
    return {"version": file.version, "expires": item.expires, "bytes": file.size, "sha256": file.sha256}


def _totals(summary: Summary) -> dict[str, object]:
    return {"files": summary.stored_files, "bytes": summary.stored_bytes, "problem": summary.problem}


# -- show -------------------------------------------------------------------------------------------------------------


@command("show")
@_GUN
async def show(session: Session, gun: str) -> int:
    """Show one collection as a tree: its roles with their keys, thresholds, delegations and expiries."""
    inventory = await inventory_of(session)

    def look(collection: StoredCollection) -> tuple[Node, dict[str, object]]:
        return _Tree(collection, session).build()

    session.out.tree(*await visit_existing(inventory, gun, look))
    return Status.OK


class _Tree:
    """Builds the tree of one collection, for people and as a record."""

    def __init__(self, collection: Collection, session: Session) -> None:
        self._collection = collection
        self._now = session.now()
        self._found = summarise(collection)
        self._roles: dict[str, object] = {}
        self._signers: dict[str, RoleKeys] = {}

    def build(self) -> tuple[Node, dict[str, object]]:
        found = self._found
        order = sorted(found.items, key=lambda role: (role != ROOT, role.count("/"), role))
        # Root and parents come first: their metadata has the keys of the other roles.
        children: dict[str, list[Node]] = {}
        lines = {role: self._role(role) for role in order}
        for role in reversed(order):
            text, below = lines[role]
            node = (text, [*below, *reversed(children.get(role, []))])
            children.setdefault(role.rpartition("/")[0], []).append(node)
        top: list[Node] = list(reversed(children.get("", [])))
        stray = [node for parent, nodes in children.items() if parent and parent not in lines for node in nodes]
        if found.problem:
            top.append((f"PROBLEM: {found.problem}; see fsck", ()))
        text = f"{self._collection.gun}: {counted(found.stored_files, 'file')}, {size_text(found.stored_bytes)}"
        return (text, [*top, *stray]), {"gun": self._collection.gun, **_totals(found), "roles": self._roles}

    def _role(self, role: str) -> tuple[str, Sequence[Node]]:
        item = self._found.items[role]
        record = self._roles[role] = _record(item)
        if item.expires is None:
            record["problem"] = item.problem
            return f"{role} version {item.file.version}: {item.problem}", ()
        metadata = read_metadata(self._collection, item.file)
        expiry = f"expires {text_of(item.expires)} ({relative_time(item.expires, self._now)})"
        text = f"{role} version {item.file.version}, {expiry}"
        if isinstance(metadata, Root):
            self._signers.update(metadata.roles.items())
        if isinstance(metadata, Targets):
            self._signers.update((name, delegation.role) for name, delegation in metadata.delegations.items())
            record["targets"] = len(metadata.targets)
            text += f", {counted(len(metadata.targets), 'target')}"
        below: list[Node] = []
        signers = self._signers.get(role)
        if signers is not None:
            record["threshold"] = signers.threshold
            record["keys"] = [{"id": key_id, "type": key.key_type} for key_id, key in signers.keys.items()]
            keys = [(_key(key_id, key), ()) for key_id, key in signers.keys.items()]
            below.append((f"signed by {signers.threshold} of {counted(len(keys), 'key')}", keys))
        if isinstance(metadata, Targets):
            record["delegations"] = {
                name: {"threshold": one.role.threshold, "keys": list(one.role.keys), "paths": list(one.paths)}
                for name, one in metadata.delegations.items()
            }
            below += [
                (f"delegates {', '.join(map(repr, one.paths)) or 'nothing'} to {name}{self._unpublished(name)}", ())
                for name, one in metadata.delegations.items()
            ]
        return text, below

    def _unpublished(self, role: str) -> str:
        return "" if role in self._found.items else ", which is not published yet"


def _key(key_id: str, key: PublicKey) -> str:
    leaf = leaf_of(key) if key.key_type.endswith("-x509") else None
    return f"{key_id} {key.key_type}" + (f" ({leaf.subject}, valid to {leaf.valid_until:%Y-%m-%d})" if leaf else "")


# -- delete -----------------------------------------------------------------------------------------------------------


@command("delete")
@_GUN
@click.option("--keys", "and_keys", is_flag=True, help="Also delete the signer's keys of the collection.")
@click.option(
    "--signer-config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The configuration file of the signer, for --keys.",
)
@DRY_RUN_OPTION
@YES_OPTION
async def delete(
    session: Session, gun: str, and_keys: bool, signer_config: Path | None, dry_run: bool, yes: bool
) -> int:
    """Delete a collection: every version of every role.

    With --keys, the signer's keys of the collection are deleted too. This cannot be undone: without these keys, a
    restored backup of the metadata cannot be renewed.
    """
    if and_keys != (signer_config is not None):
        raise ConfigError("--keys, --signer-config: one is missing; expected both or neither")
    inventory = await inventory_of(session)
    count, total = await inventory.visit(gun, lambda found: (len(found.files), sum(one.size for one in found.files)))
    key_ids: Sequence[str] = ()
    if signer_config is not None:
        signer = session.signer(signer_config)
        key_ids = await (await session.open(signer, open_key_inventory)).key_ids(gun)
    if not count and not key_ids:
        raise NotFound(f"there is no collection {gun}{', and no key of this collection' if and_keys else ''}")
    what = f"{gun}: {counted(count, 'file')}, {size_text(total)}" + (
        f", {counted(len(key_ids), 'key')}" if and_keys else ""
    )
    record = {"gun": gun, "files": count, "bytes": total, "keys": list(key_ids)}
    if dry_run:
        session.out.line(f"would delete {what}", {**record, "deleted": False})
        return Status.OK
    if not session.confirm(f"Delete {what}?", yes=yes):
        return Status.REFUSED
    store = await session.open(session.server(), open_metadata_store)
    await store.delete(cast("Gun", gun))  # a stored name may be one that no upload could have
    if signer_config is not None:
        keys = await session.open(session.signer(signer_config), open_key_store)
        for key_id in key_ids:
            await keys.delete(key_id)
    session.out.line(f"deleted {what}", {**record, "deleted": True})
    return Status.OK


# -- export, import ---------------------------------------------------------------------------------------------------

_FILE = click.argument("file", type=click.Path(dir_okay=False, path_type=Path))


@command("export")
@_GUN
@_FILE
async def export(session: Session, gun: str, file: Path) -> int:
    """Write a collection with its history to FILE, which must not exist yet.

    FILE contains no private keys, neither the publisher's nor the signer's. A collection in which fsck finds errors is
    not written, because it could not be imported.
    """
    inventory = await inventory_of(session)

    def write(collection: StoredCollection) -> int:
        _require_valid(collection)
        stream.seek(0)
        stream.truncate()
        return archive.write(collection, stream)

    with _new_file(file) as stream:
        count = await visit_existing(inventory, gun, write)
    session.out.line(f"{gun}: {counted(count, 'file')}", {"gun": gun, "files": count, "path": str(file)})
    return Status.OK


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """Create a file, and remove it again if the block fails. Raises InvalidArchive if the file exists."""
    try:
        stream = path.open("xb")
    except OSError as error:
        raise InvalidArchive(f"{str(path)!r} cannot be created ({error.strerror})") from None
    try:
        with stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        path.unlink()
        raise


def _require_valid(collection: Collection) -> None:
    faults = [each for each in findings.check(collection) if each.error]
    if faults:
        first = faults[0]
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        where = f"{first.role} version {first.version}" if first.version else first.role
        raise InvalidArchive(
            f"{collection.gun}: {findings.KINDS[first.kind].meaning} ({first.kind}: {where}: {first.detail}){more}"
        )


@command("import")
@_FILE
@DRY_RUN_OPTION
async def import_(session: Session, file: Path, dry_run: bool) -> int:
    """Verify a collection that export wrote, and store it.

    All roots from the first version on must be signed, and every current file must be signed to its threshold. Expired
    files are allowed. If the collection exists, FILE must continue it, and only newer files are stored.
    """
    config = session.server()
    with _opened(file) as found:
        return await _import(session, config, found, dry_run=dry_run)


async def _import(session: Session, config: ServerConfig, found: archive.Archive, *, dry_run: bool) -> int:
    _require_valid(found)
    prefixes = config.repositories.gun_prefixes
    if prefixes and not found.gun.startswith(prefixes):
        raise InvalidGun(f"{found.gun}: the server holds only GUNs that begin with {' or '.join(prefixes)}")
    inventory = await inventory_of(session)
    stored = await inventory.visit(found.gun, lambda collection: list(collection.files))
    new = archive.continuation(found.files, stored)
    record = {"gun": str(found.gun), "files": len(found.files), "new": len(new), "imported": not dry_run}
    if new and not dry_run:
        after = newest(stored).get(TIMESTAMP)
        await inventory.add(found, new, None if after is None else after.sha256)
    said = "would store" if dry_run else "stored"
    session.out.line(f"{found.gun}: {said} {len(new)} of {counted(len(found.files), 'file')}", record)
    return Status.OK


@contextmanager
def _opened(path: Path) -> Iterator[archive.Archive]:
    """Open an exported collection. What comes through a pipe is kept on the disk meanwhile."""
    with ExitStack() as ends:
        try:
            stream: BinaryIO = ends.enter_context(path.open("rb"))
            if not stream.seekable():
                pipe, stream = stream, cast("BinaryIO", ends.enter_context(TemporaryFile()))
                copyfileobj(pipe, stream)
                stream.seek(0)
            found = archive.read(stream)
        except OSError as error:
            raise InvalidArchive(f"{str(path)!r} cannot be read ({error.strerror})") from None
        except NotaryError as error:
            raise InvalidArchive(f"{str(path)!r}: {error}") from None
        yield found


for each in (list_, show, delete, export, import_):
    repos.add_command(each)
