"""The server in small, around the pure core: what is stored of one collection, the server's keys, and publishing."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from notary.errors import InvalidMetadata, InvalidUpdate, MalformedJSON, OldVersion
from notary.tuf import draft, model, publish, validation
from notary.tuf.model import ROOT, SNAPSHOT, TIMESTAMP, Gun, RoleName, Signature
from notary.tuf.signatures import stored_root
from tests.support import newcomer
from tests.support.author import Author, Key, make_key

GUN = "example.com/team/app"
NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@dataclass(frozen=True)
class Held:
    version: int
    data: bytes


class Collection:
    """``current`` is what the store would give; ``keys`` are the server's, by canonical id."""

    def __init__(self, *, now: datetime = NOW) -> None:
        self.now = now
        self.snapshot_key = make_key("ed25519")
        self.timestamp_key = make_key("ed25519")
        self.keys = {key.key_id: key for key in (self.snapshot_key, self.timestamp_key)}
        self.current: dict[RoleName, Held] = {}
        self.written: set[tuple[str, bytes]] = set()
        self.verified_roots: set[bytes] = set()

    def author(self, snapshot: str = "server") -> Author:
        """A publisher of this collection; ``snapshot`` says who holds the snapshot key."""
        key = make_key() if snapshot == "client" else self.snapshot_key.public_part
        return Author(GUN, timestamp=self.timestamp_key.public_part, snapshot=key, now=self.now)

    def validate(self, files: Mapping[str, bytes] | Sequence[tuple[str, bytes]]) -> validation.Plan:
        pairs = files.items() if isinstance(files, Mapping) else files
        uploads = [model.Upload(RoleName(role), data) for role, data in pairs]
        wanted = publish.needed([upload.role for upload in uploads])
        current = {role: self.current[role] for role in wanted if role in self.current}
        plan = self._same(partial(validation.validate, Gun(GUN), current, uploads, self.now))
        if plan.verified_root is not None:
            stored_root(Gun(GUN), plan.verified_root)
            self.verified_roots.add(plan.verified_root)
        return plan

    def _same(self, validate: Callable[..., validation.Plan]) -> validation.Plan:
        """What ``validate`` says, whether or not it is told that the stored root was verified, if that is known."""
        known = ROOT in self.current and self.current[ROOT].data in self.verified_roots
        try:
            plan = validate(root_verified=False)
        except (InvalidUpdate, InvalidMetadata) as error:
            if known:
                with pytest.raises(type(error), match=f"^{re.escape(str(error))}$"):
                    validate(root_verified=True)
            raise
        if known:
            assert validate(root_verified=True) == plan
        return plan

    def publish(self, files: Mapping[str, bytes] | Sequence[tuple[str, bytes]]) -> dict[str, bytes]:
        """What a server does with an upload; the files that it wrote."""
        plan = self.validate(files)
        written = {update.role: Held(update.version, update.data) for update in plan.updates}
        snapshot = None
        if plan.snapshot is not None:
            snapshot = self.sign(plan.snapshot)
            written[SNAPSHOT] = Held(plan.snapshot.version, snapshot)
        timestamp = plan.timestamp(snapshot)
        written[TIMESTAMP] = Held(timestamp.version, self.sign(timestamp))
        for role, held in written.items():
            if role in self.current and self.current[role].version >= held.version:
                raise OldVersion(role)
        self.current.update(written)
        self.written |= {(str(role), held.data) for role, held in written.items()}
        return {str(role): held.data for role, held in written.items()}

    def outcome(self, files: Mapping[str, bytes] | Sequence[tuple[str, bytes]]) -> str:
        """The answer to an upload, in the words of ``tests.support.uploads``."""
        try:
            self.publish(files)
        except InvalidUpdate as error:
            return error.fault
        except MalformedJSON:
            return "MALFORMED_JSON"
        except OldVersion:
            return "VERSION"
        return "OK"

    def sign(self, draft: draft.Draft) -> bytes:
        return draft.assemble(
            signatures(draft, [self.keys[k.canonical_id] for k in draft.keys if k.canonical_id in self.keys])
        )

    def signed(self, role: str) -> dict[str, Any]:
        """The signed part of a stored file."""
        return dict(json.loads(self.current[RoleName(role)].data)["signed"])

    def check(self, now: datetime | None = None) -> dict[str, bytes]:
        """What a client that never saw this collection gets of it; AssertionError if it gives up.

        Nothing is taken to have expired unless ``now`` is given.
        """
        current = ((str(role), held.data) for role, held in self.current.items())
        return newcomer.read(newcomer.by_checksum([*self.written, *current]), self.current[TIMESTAMP].data, now)


def signatures(draft: draft.Draft, keys: Iterable[Key]) -> list[Signature]:
    made = [key.sign(draft.payload) for key in keys]
    return [Signature(one["keyid"], one["method"], base64.b64decode(one["sig"])) for one in made]
