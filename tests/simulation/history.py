"""What the two databases of a cluster held at each moment, and the invariants that hold after each commit.

Rules of this module: it reads the databases by connections of its own, never through the program. A method that finds
a broken invariant raises Violation.
"""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from tests.simulation import metadata
from tests.simulation.cluster import Cluster
from tests.simulation.scheduler import Host, Violation

SERVER_SIGNED = ("timestamp", "snapshot")


@dataclass(frozen=True)
class State:
    """What one collection held from ``since`` on: the version and checksum of each role that its timestamp leads to.

    ``files`` is empty while there is no such collection. ``expires`` is the first expiry of timestamp and snapshot.
    """

    since: float
    files: dict[str, tuple[int, str]]
    expires: datetime | None = None


@dataclass
class Gun:
    """One collection, and what became of it."""

    states: list[State] = field(default_factory=lambda: [State(0.0, {})])
    rows: dict[tuple[str, int], str] = field(default_factory=dict)
    """The checksums of the stored files by role and version."""
    data: dict[str, bytes] = field(default_factory=dict)
    """Everything that was ever stored, by checksum."""
    stored_at: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    """When each file was written, by role and checksum."""
    removed_at: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    deletions: int = 0

    def between(self, began: float, ended: float) -> list[State]:
        """Return the states that a reader may see who asked at ``began`` and was answered at ``ended``."""
        states = [state for state in self.states if began < state.since <= ended]
        return [[state for state in self.states if state.since <= began][-1], *states]

    @property
    def now(self) -> State:
        return self.states[-1]


def _sort(rows: Iterable[Any]) -> list[Any]:
    return sorted(rows, key=lambda row: row[0])


class History:
    """The history of a cluster. ``failed`` is told each broken invariant."""

    def __init__(self, cluster: Cluster, failed: Callable[[Violation], None]) -> None:
        self.cluster = cluster
        self.failed = failed
        self.world = cluster.world
        self.guns: dict[str, Gun] = {}
        self.feed: list[tuple[int, str, int, str, str, float]] = []
        self.collecting = False
        """True while a commit of the operator is looked at, who removes old versions."""
        self.collected_at: list[tuple[str, float]] = []
        """Of which collection old versions were removed, and when."""
        self.commits = 0
        self.keys: dict[str, tuple[str, str, str | None]] = {}
        """The keys of the signer by id: collection, role, and when it was first used."""
        self._ids: dict[int, tuple[str, str, int, str]] = {}
        self._feed_id = 0
        self._server = cluster.server_store.file.take()
        self._signer = cluster.signer_store.file.take()
        cluster.on_signed = self._signed
        cluster.key_row = self._key_row
        cluster.server_store.on_commit = partial(self._committed, self._server_committed)
        cluster.signer_store.on_commit = partial(self._committed, self._signer_committed)

    def close(self) -> None:
        self.cluster.server_store.file.give_back(self._server)
        self.cluster.signer_store.file.give_back(self._signer)

    def gun(self, name: str) -> Gun:
        found = self.guns.get(name)
        if found is None:
            found = self.guns[name] = Gun()
        return found

    def _committed(self, look: Callable[[], None], host: Host) -> None:
        """Look at what a commit of a host has changed. The program must not get an error of this method."""
        self.commits += 1
        self.world.tell(f"commit of {host.name}")
        self.collecting = host.name == "admin"
        try:
            look()
        except Violation as violation:
            self.failed(violation)
        except Exception:  # noqa: BLE001
            self.failed(Violation(traceback.format_exc()))
        self.collecting = False

    # -- the server's database ----------------------------------------------------------------------------------------

    def _server_committed(self) -> None:
        now = self.world.now
        ids = {row[0] for row in self._server.execute("SELECT id FROM tuf_files")}
        removed = _sort((number, *self._ids[number]) for number in self._ids.keys() - ids)
        last = max(self._ids, default=0)
        added = self._server.execute(
            "SELECT id, gun, role, version, sha256, data FROM tuf_files WHERE id > ? ORDER BY id", (last,)
        ).fetchall()
        records = self._server.execute(
            "SELECT id, gun, version, sha256, category FROM changefeed WHERE id > ? ORDER BY id", (self._feed_id,)
        ).fetchall()
        for number, name, role, version, sha256 in removed:
            del self._ids[number]
            gun = self.gun(name)
            gun.rows.pop((role, version))
            gun.removed_at.setdefault((role, sha256), []).append(now)
        for number, name, role, version, sha256, data in added:
            gun = self.gun(name)
            newest = max((each for each_role, each in gun.rows if each_role == role), default=0)
            if version <= newest:
                raise Violation(f"{name}: version {version} of {role} was stored after {newest}")
            self._ids[number] = name, role, version, sha256
            gun.rows[role, version] = sha256
            gun.data[sha256] = bytes(data)
            gun.stored_at.setdefault((role, sha256), []).append(now)
        self._check_records(records, added, removed)
        for name in dict.fromkeys([row[1] for row in (*removed, *added)]):
            self._look_at(name, {row[2] for row in added if row[1] == name})

    def check_all(self) -> None:
        """The databases hold what their commits have made, and no other byte."""
        files = self._server.execute("SELECT id, gun, role, version, sha256, data FROM tuf_files").fetchall()
        if {row[0]: row[1:5] for row in files} != self._ids:
            raise Violation("the stored files are not those that were committed")
        for _, name, role, version, sha256, data in files:
            if bytes(data) != self.gun(name).data[sha256]:
                raise Violation(f"{name}: the bytes of version {version} of {role} have changed")
        records = self._server.execute("SELECT id, gun, version, sha256, category FROM changefeed ORDER BY id")
        if [(row[0], row[1], row[2], row[3] or "", row[4]) for row in records] != [row[:5] for row in self.feed]:
            raise Violation("the changefeed is not the one that was committed")

    def _check_records(self, records: list[Any], added: list[Any], removed: list[Any]) -> None:
        """The feed has one record for each new timestamp and for each deletion, with no number left out."""
        expected = [
            (name, version, sha256, "update") for _, name, role, version, sha256, _ in added if role == "timestamp"
        ]
        gone = list(dict.fromkeys(row[1] for row in removed))
        if self.collecting:
            self.collected_at += [(name, self.world.now) for name in gone]
        else:
            expected += [(name, 0, "", "deletion") for name in gone]
            left = [name for name in gone if self.gun(name).rows and not any(row[1] == name for row in added)]
            if left:
                raise Violation(f"files of {left} are gone, and others are there")
        found = [(name, version, sha256 or "", category) for _, name, version, sha256, category in records]
        if sorted(found) != sorted(expected):
            raise Violation(f"the changefeed has {found} for a commit that makes {expected}")
        for number, name, version, sha256, category in records:
            if number <= self._feed_id:
                raise Violation(f"record {number} of the changefeed comes after {self._feed_id}")
            self._feed_id = number
            self.feed.append((number, name, version, sha256 or "", category, self.world.now))
            if category == "deletion":
                self.gun(name).deletions += 1

    def _look_at(self, name: str, changed: set[str]) -> None:
        """Note the new state of a collection; all roles of it fit together and are signed."""
        gun = self.gun(name)
        before = gun.now
        if not gun.rows:
            gun.states.append(State(self.world.now, {}))
            return
        timestamp_version = max((version for role, version in gun.rows if role == "timestamp"), default=0)
        if not timestamp_version:
            raise Violation(f"{name} has files and no timestamp")
        files = {"timestamp": (timestamp_version, gun.rows["timestamp", timestamp_version])}
        timestamp = metadata.parsed(gun.data[files["timestamp"][1]])
        files["snapshot"] = self._listed(name, timestamp, "snapshot")
        snapshot = metadata.parsed(gun.data[files["snapshot"][1]])
        for role in snapshot["meta"]:
            files[role] = self._listed(name, snapshot, role)
        for role in ("root", "targets"):
            if role not in files:
                raise Violation(f"{name}: the snapshot lists no {role}")
        newest = {role: max(v for r, v in gun.rows if r == role) for role in {role for role, _ in gun.rows}}
        for role, (version, _) in files.items():
            if newest[role] != version:
                raise Violation(f"{name}: {role} {newest[role]} is stored, and {version} is listed")
        roots = [version for role, version in gun.rows if role == "root"]
        if sorted(roots) != list(range(1, len(roots) + 1)):
            raise Violation(f"{name}: the chain of roots has only {sorted(roots)}")
        if self.collecting:
            self._check_listed(name)
        expires = min(metadata.expiry(each) for each in (timestamp, snapshot))
        gun.states.append(State(self.world.now, files, expires))
        if changed:
            self._check_signatures(name, before, files, changed)

    def _listed(self, name: str, lister: dict[str, Any], role: str) -> tuple[int, str]:
        sha256 = metadata.listed(lister, role)
        found = [
            version for (each, version), checksum in self.gun(name).rows.items() if each == role and checksum == sha256
        ]
        if not found or sha256 is None:
            raise Violation(f"{name}: the {lister['_type']} lists a {role} that is not stored: {sha256}")
        return found[-1], sha256

    def _check_listed(self, name: str) -> None:
        """After a removal of old versions, all that a stored timestamp or snapshot lists is stored."""
        gun = self.gun(name)
        stored = {(role, sha256) for (role, _), sha256 in gun.rows.items()}
        for (role, version), sha256 in gun.rows.items():
            if role in SERVER_SIGNED:
                listed = metadata.parsed(gun.data[sha256])
                for each in listed["meta"]:
                    if (each, metadata.listed(listed, each)) not in stored:
                        raise Violation(f"{name}: {role} {version} is kept, and the {each} that it lists is removed")

    def _check_signatures(self, name: str, before: State, files: dict[str, tuple[int, str]], changed: set[str]) -> None:
        gun = self.gun(name)
        data = {role: gun.data[sha256] for role, (_, sha256) in files.items()}
        root = metadata.parsed(data["root"])
        now = self.world.utc_now()
        for role in changed:
            signed = metadata.signers_of(data[role], root["keys"])
            if not set(signed) & set(root["roles"][role]["keyids"]):
                raise Violation(f"{name}: {role} {files[role][0]} is not signed by a key of root {files['root'][0]}")
            leaped = self.world.leaped_at > self.world.now - 30  # after it was signed, perhaps
            if role in SERVER_SIGNED and not leaped and metadata.expiry(metadata.parsed(data[role])) <= now:
                raise Violation(f"{name}: {role} {files[role][0]} had expired when it was stored")
            for key_id in signed:
                if role in SERVER_SIGNED and key_id != metadata.SNAPSHOT_KEY.key_id:
                    self.check_recorded(key_id)
        if "root" in changed and "root" in before.files:
            version, sha256 = before.files["root"]
            earlier = metadata.parsed(gun.data[sha256])
            if files["root"][0] != version + 1:
                raise Violation(f"{name}: root {files['root'][0]} follows root {version}")
            if not set(metadata.signers_of(data["root"], earlier["keys"])) & set(earlier["roles"]["root"]["keyids"]):
                raise Violation(f"{name}: root {files['root'][0]} is not signed by the keys of root {version}")
        if "targets" in changed and "targets" in before.files and not gun.deletions:
            lost = metadata.parsed(gun.data[before.files["targets"][1]])["targets"].keys() - (
                metadata.parsed(data["targets"])["targets"].keys()
            )
            if lost:
                raise Violation(f"{name}: targets {files['targets'][0]} lost what was published before: {sorted(lost)}")

    # -- the signer's database ----------------------------------------------------------------------------------------

    def _signer_committed(self) -> None:
        """No key is lost or unused again, and at most one is pending for each purpose."""
        rows = self._signer.execute(
            "SELECT key_id, gun, role, algorithm, last_used FROM private_keys WHERE deleted_at IS NULL ORDER BY key_id"
        ).fetchall()
        keys = {row[0]: (row[1], row[2], row[4]) for row in rows}
        if len(keys) != len(rows):
            raise Violation("a key is stored twice")
        lost = self.keys.keys() - keys.keys()
        if lost:
            raise Violation(f"keys are lost: {sorted(lost)}")
        pending: dict[tuple[str, str], str] = {}
        for key_id, (gun, role, used) in keys.items():
            before = self.keys.get(key_id)
            if before is not None and before[2] is not None and used != before[2]:
                raise Violation(f"key {key_id} was used at {before[2]}, and now is recorded as used at {used}")
            if used is None:
                if (gun, role) in pending:
                    raise Violation(f"two keys are pending for {gun} {role}")
                pending[gun, role] = key_id
        self.keys = keys

    def _key_row(self, key_id: str) -> tuple[str, str, str | None] | None:
        return self.keys.get(key_id)

    def _signed(self, key_id: str) -> None:
        try:
            self.check_recorded(key_id)
        except Violation as violation:
            self.failed(violation)

    def check_recorded(self, key_id: str) -> None:
        """A key that has signed is recorded as used."""
        row = self._key_row(key_id)
        if row is None:
            raise Violation(f"key {key_id} has signed and is not stored")
        if row[2] is None:
            raise Violation(f"key {key_id} has signed and is not recorded as used")

    # -- what readers may see -----------------------------------------------------------------------------------------

    def collected_between(self, name: str, began: float, ended: float) -> bool:
        return any(name == each and began <= at <= ended for each, at in self.collected_at)

    def check_read(self, name: str, role: str, status: int, sha256: str, began: float, ended: float) -> None:
        """A reader of a current file sees a state that was current at some moment of the request."""
        states = self.gun(name).between(began, ended)
        if status == 404:
            if all(role in state.files for state in states) and not self.collected_between(name, began, ended):
                raise Violation(f"{name}: {role} was not found between {began:.3f} and {ended:.3f}")
        elif status == 200:
            allowed = {state.files[role][1] for state in states if role in state.files}
            if sha256 not in allowed:
                known = [state.files.get(role) for state in self.gun(name).states]
                raise Violation(
                    f"{name}: a reader between {began:.3f} and {ended:.3f} saw {role} {sha256[:8]}, not one of "
                    f"{sorted(each[:8] for each in allowed)}; it is number "
                    f"{[place for place, each in enumerate(known) if each and each[1] == sha256]} of {len(known)}"
                )

    def check_file(self, name: str, role: str, sha256: str, status: int, began: float, ended: float) -> None:
        """A file that was stored all the time of a request for it is found."""
        gun = self.gun(name)
        stored = [at for at in gun.stored_at.get((role, sha256), []) if at <= began]
        removed = [at for at in gun.removed_at.get((role, sha256), []) if at <= ended]
        if status == 404 and stored and len(stored) > len(removed):
            raise Violation(f"{name}: {role} {sha256} was not found between {began:.3f} and {ended:.3f}")
        ever = [at for at in gun.stored_at.get((role, sha256), []) if at <= ended]
        gone = [at for at in gun.removed_at.get((role, sha256), []) if at <= began]
        if status == 200 and len(ever) <= len(gone):
            raise Violation(f"{name}: {role} {sha256} was read after it was removed")

    def check_published(self, name: str, files: dict[str, str], began: float, ended: float) -> None:
        """What was acknowledged was stored during the request."""
        gun = self.gun(name)
        for role, sha256 in files.items():
            if not any(began <= at <= ended for at in gun.stored_at.get((role, sha256), [])):
                raise Violation(f"{name}: {role} {sha256} was acknowledged at {ended:.3f} and not stored")

    def was_stored(self, name: str, files: Mapping[str, bytes], began: float, ended: float) -> bool:
        """Return whether the targets, or the root, of an upload were stored during the request."""
        gun = self.gun(name)
        role = "targets" if "targets" in files else "root"
        sha256 = hashlib.sha256(files[role]).hexdigest()
        return any(began <= at <= ended for at in gun.stored_at.get((role, sha256), []))

    def has_changed(self, name: str, roles: Iterable[str], began: float, ended: float) -> bool:
        """Return whether a collection, or the current file of a role, became another one at some moment."""
        states = self.gun(name).between(began, ended)
        return any(len({state.files.get(role) for state in states}) > 1 for role in roles)

    def key_of(self, name: str, role: str, state: State) -> str | None:
        """Return the id of the key that the root of a state names for a role."""
        if "root" not in state.files:
            return None
        root = metadata.parsed(self.gun(name).data[state.files["root"][1]])
        found: str = root["roles"][role]["keyids"][0]
        return found

    def check_page(
        self, name: str | None, after: int, limit: int, body: bytes, began: float, ended: float
    ) -> list[dict[str, Any]]:
        """A page of the feed goes on where the last one ended, and has all that was there when it was asked for."""
        records: list[dict[str, Any]] = json.loads(body)["records"]
        rows = [row for row in self.feed if row[0] > after and (name is None or row[1] == name)]
        expected = [row for row in rows if row[5] <= began][:limit]
        found = [(int(each["ID"]), each["GUN"], each["Version"], each["SHA256"], each["Category"]) for each in records]
        possible = [row[:5] for row in rows if row[5] <= ended][:limit]
        if found != possible[: len(found)] or len(found) < len(expected):
            raise Violation(f"the feed after {after} has {found}, not {[row[:5] for row in expected]}, {possible}")
        return records
