"""The checks of one stored collection, with the meaning and the remedy of each kind of finding.

Rules of this module: pure. Besides the files that clients currently get, one file is in memory at a time. :data:`KINDS`
is the one table of findings. Expired metadata is no finding: ``expiring`` lists it.

Versions may have gaps: publishers skip versions, and ``gc`` removes some. Only the versions of root must be complete,
from the first one (1 or 2) on, because a client follows them one at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

from notary.errors import InvalidGun, InvalidMetadata, InvalidRole, NotaryError
from notary.storage.operators import FeedEntry, Undated
from notary.tuf.collection import Collection, File, Index, newest, parse
from notary.tuf.model import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, Gun, RoleKeys, RoleName, Root, Targets, stored_envelope
from notary.tuf.root_certificates import check_delegation_certificate
from notary.tuf.signatures import require_signatures, require_succession, stored_root


class Kind(NamedTuple):
    """A kind of finding: an ``error`` harms clients or publishers, and everything else is a note."""

    error: bool
    meaning: str
    remedy: str


_BACKUP = "restore the row from a backup"

KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        "name": Kind(True, "no client can ask for a collection or role of this name", "delete it"),
        "unreadable": Kind(True, "a row holds values of the wrong type", "correct or delete the row"),
        "checksum": Kind(
            True,
            "the recorded checksum does not match the content: one of the two was changed after the file was written; "
            "clients reject it",
            f"{_BACKUP}; if the file is current, publishing the role again also helps",
        ),
        "no-checksum": Kind(
            False,
            "no checksum was recorded (Notary before 0.4): the file is served only while it is the newest",
            "nothing, or write the SHA-256 of data into the column sha256",
        ),
        "no-time": Kind(
            False,
            "a row lacks the time at which it was written, or holds one that is none, such as MySQL's date of zeros; "
            "clients are told the year 1",
            "nothing, or `fsck --mend-times`",
        ),
        "malformed": Kind(
            True, "the content is not the metadata of its role", f"{_BACKUP}, or publish that role again"
        ),
        "version": Kind(
            True, "the signed version differs from the stored version number", f"{_BACKUP}, or publish that role again"
        ),
        "root-gap": Kind(
            True,
            "a version of root is missing: clients with an older version cannot update",
            "restore the missing version from a backup, or from another installation with `repos export`",
        ),
        "root-chain": Kind(
            True,
            "a root lacks the signatures of its own keys, or of the previous root's keys: clients reject it",
            "restore root from a backup; if root was never valid, delete the collection and publish it again",
        ),
        "signature": Kind(
            True,
            "a current file lacks the signatures that root or its parent role requires: clients reject it",
            "its publisher must sign and publish the role again; any publish renews the server's timestamp",
        ),
        "missing": Kind(
            True,
            "a file that clients must fetch is missing",
            f"{_BACKUP}, or publish that role again",
        ),
        "unlisted": Kind(
            False,
            "the snapshot does not list the newest version of a role: clients get the listed version",
            "nothing, unless its publisher misses that version: the next publish replaces both",
        ),
        "orphan": Kind(
            False,
            "the snapshot does not list this role: a removed delegation",
            "nothing; `gc` removes all versions but the last",
        ),
        "undelegated": Kind(
            False,
            "the snapshot lists a role to which no role delegates: clients ignore it",
            "nothing; its publisher can remove the delegation for good",
        ),
        "feed-ahead": Kind(
            True,
            "the changefeed names a timestamp that is missing: rows of a publish were lost",
            "restore the collection from a backup, or publish it again",
        ),
        "feed-missing": Kind(
            False,
            "the changefeed does not name the current timestamp: clients of the feed do not know it",
            "nothing; the feed will name the next publish",
        ),
    }
)
"""The kinds of findings by their names."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem of a collection: ``kind`` is a name in KINDS; ``version`` is 0 if no single version is concerned."""

    kind: str
    role: str
    version: int
    detail: str

    @property
    def error(self) -> bool:
        """Whether clients or publishers are harmed."""
        return KINDS[self.kind].error


def check(collection: Collection, feed: Sequence[FeedEntry] | None = None) -> list[Finding]:
    """Return all findings of a collection, in the order of the checks.

    ``feed`` has the collection's entries in the changefeed; None if there is no changefeed, as in an exported file.
    """
    return [*([] if feed is None else _check_feed(collection, feed)), *_Check(collection).run()]


class _Check:
    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._newest = newest(collection.files)
        self._targets: dict[str, Targets] = {}
        self._intact: set[File] = set()

    def run(self) -> Iterator[Finding]:
        if not self._newest:
            return
        try:
            gun = Gun(self._collection.gun)
        except InvalidGun as error:
            yield Finding("name", "", 0, str(error))
            return
        for file in self._collection.files:
            found = list(self._check_file(file))
            if not any(KINDS[each.kind].error for each in found):
                self._intact.add(file)
            yield from found
        yield from self._check_roots(gun)
        yield from self._check_current()

    # -- each file by itself

    def _check_file(self, file: File) -> Iterator[Finding]:
        data = self._collection.data(file)
        if file.sha256 is None:
            yield self._finding("no-checksum", file, f"{file.size} bytes")
        else:
            actual = hashlib.sha256(data).hexdigest()
            if actual != file.sha256:
                yield self._finding("checksum", file, f"recorded {file.sha256}, actual {actual}")
        try:
            version = parse(file.role, data).version
        except InvalidRole as error:
            yield self._finding("name", file, str(error))
            return
        except InvalidMetadata as error:
            yield self._finding("malformed", file, str(error))
            return
        if version != file.version:
            yield self._finding("version", file, f"signed as version {version}")

    # -- the roots, from the first version on

    def _check_roots(self, gun: Gun) -> Iterator[Finding]:
        previous: Root | None = None
        expected = {1, 2}
        for file in self._collection.files:
            if file.role != ROOT:
                continue
            if file.version not in expected:
                yield self._finding("root-gap", file, f"version {max(expected) if previous else 1} should come before")
                previous = None
            expected = {file.version + 1}
            if file not in self._intact:
                previous = None
                continue
            data = self._collection.data(file)
            try:
                root = stored_root(gun, data)
                if previous is not None:
                    require_succession(gun, previous, root.envelope)
            except InvalidMetadata as error:
                yield self._finding("root-chain", file, str(error))
                previous = None
            else:
                previous = root

    # -- what clients get

    def _check_current(self) -> Iterator[Finding]:
        for name in (ROOT, TARGETS, SNAPSHOT, TIMESTAMP):
            if name not in self._newest:
                yield Finding("missing", name, 0, "the collection has no version of it")
        timestamp = self._newest.get(TIMESTAMP)
        if timestamp is None:
            return
        index = Index(self._collection)
        files, absent = {str(TIMESTAMP): timestamp}, dict[str, str]()
        for lister in (TIMESTAMP, SNAPSHOT):
            if files.get(lister) not in self._intact:
                return
            there, absent = index.listed(files[lister])
            for role, sha256 in absent.items():
                detail = f"{lister} version {files[lister].version} lists checksum {sha256}"
                yield Finding("missing", role, 0, detail)
            files = {**there, **files}
        yield from self._check_lists(files, absent)
        yield from self._check_signatures(files)

    def _check_lists(self, files: Mapping[str, File], absent: Mapping[str, str]) -> Iterator[Finding]:
        for role, file in self._newest.items():
            if role not in files and role not in absent:
                yield self._finding("orphan", file, "newest version")
            elif role in files and files[role] != file:
                yield self._finding("unlisted", file, f"listed is version {files[role].version}")

    def _check_signatures(self, files: Mapping[str, File]) -> Iterator[Finding]:
        file = files.get(ROOT)
        if file is None or file not in self._intact:
            return
        root = Root.parse(stored_envelope(ROOT, self._collection.data(file)))
        for name in (TIMESTAMP, SNAPSHOT):
            yield from self._check_signature(files[name], root.roles[name], "the keys that root names for it")
        roles = sorted((role for role in files if role.startswith(TARGETS)), key=lambda role: (role.count("/"), role))
        for role in roles:
            name, file = RoleName(role), files[role]
            parent = name.parent
            if parent is None:
                signers, named_by = root.roles[TARGETS], "root"
            elif parent in files and parent not in self._targets:
                continue  # the parent has a finding already
            elif parent not in self._targets or name not in self._targets[parent].delegations:
                yield self._finding("undelegated", file, f"{parent} does not delegate to it")
                continue
            else:
                signers, named_by = self._targets[parent].delegations[name].role, parent
            if file in self._intact:
                yield from self._check_signature(file, signers, f"the keys that {named_by} names for it")
                self._targets[role] = Targets.parse(stored_envelope(name, self._collection.data(file)), name)

    def _check_signature(self, file: File, signers: RoleKeys, who: str) -> Iterator[Finding]:
        name = RoleName(file.role)
        try:
            if name.is_delegation:
                for key in signers.keys.values():
                    check_delegation_certificate(name, key)
            require_signatures(name, stored_envelope(name, self._collection.data(file)), signers, who)
        except InvalidMetadata as error:
            yield self._finding("signature", file, str(error))

    @staticmethod
    def _finding(kind: str, file: File, detail: str) -> Finding:
        return Finding(kind, file.role, file.version, detail)


def _check_feed(collection: Collection, feed: Sequence[FeedEntry]) -> Iterator[Finding]:
    """Compare the changefeed with the stored timestamps."""
    stored = {file.version: file.sha256 for file in collection.files if file.role == TIMESTAMP}
    latest = max(stored, default=0)
    for entry in feed:
        # gc may have removed timestamps older than the newest one.
        lost = entry.version > latest
        known = stored.get(entry.version)
        if lost or (known and entry.sha256 and entry.sha256 != known):
            yield Finding("feed-ahead", TIMESTAMP, entry.version, f"checksum {entry.sha256 or 'unknown'}")
    if latest and latest not in {entry.version for entry in feed}:
        yield Finding("feed-missing", TIMESTAMP, latest, "current")


def undated(rows: Sequence[Undated]) -> list[Finding]:
    """Return the findings of rows without a time."""
    return [Finding("no-time", role or TIMESTAMP, version, f"a row of {table}") for table, role, version in rows]


def unreadable(error: NotaryError) -> Finding:
    """Return the finding of a collection whose rows the database cannot return."""
    return Finding("unreadable", "", 0, str(error))
