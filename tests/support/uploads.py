"""What an upload is, what a server may say to one, and tables of cases: for the core, the API and the Go server.

The cases are in ``upload_files`` (what a file holds) and in ``upload_histories`` (what a collection goes through). A
case is a generator over an :class:`~tests.support.author.Author`: it yields uploads (role to bytes, or pairs where a
role comes twice). All but the last must be accepted; the last gets ``expected``.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tests.support.author import Author, Key, canonical

Upload = Mapping[str, bytes] | Sequence[tuple[str, bytes]]
Steps = Callable[[Author], Iterator[Upload]]

OK = "OK"
VERSION = "VERSION"
MALFORMED_JSON = "MALFORMED_JSON"
VALIDATION = "ErrValidation"
HIERARCHY = "ErrBadHierarchy"
ROOT = "ErrBadRoot"
TARGETS = "ErrBadTargets"
SNAPSHOT = "ErrBadSnapshot"
SAME = "the same"


@dataclass(frozen=True)
class Case:
    """``expected`` is OK, an error code, or the class of an INVALID_UPDATE.

    ``snapshot`` says who holds the snapshot key. ``reference`` is what the Go server (memory backend, local signer)
    says where it differs on purpose (docs/protocol.md, section 9): "" is an INVALID_UPDATE without a class, None a
    dropped connection.
    """

    name: str
    expected: str
    steps: Steps
    snapshot: Literal["server", "client"]
    reference: str | None

    def __str__(self) -> str:
        return self.name


class Table(list[Case]):
    """Cases in the order of their definition."""

    def case(
        self,
        name: str,
        expected: str,
        *,
        snapshot: Literal["server", "client"] = "server",
        reference: str | None = SAME,
    ) -> Callable[[Steps], Steps]:
        """Put a case into the table."""

        def add(steps: Steps) -> Steps:
            self.append(Case(name, expected, steps, snapshot, expected if reference is SAME else reference))
            return steps

        return add


def bogus(data: bytes, key: Key, count: int, size: int = 64, last: Sequence[dict] = ()) -> bytes:
    """``data`` with ``count`` different signatures by ``key`` that are none, and then ``last``."""
    signed = json.loads(data)["signed"]
    signatures = []
    for number in range(count):
        sig = b"\1" + number.to_bytes(2, "big") + b"\1" * (size - 3)
        signatures.append({"keyid": key.key_id, "method": key.method, "sig": base64.b64encode(sig).decode()})
    return b'{"signed":' + canonical(signed) + b',"signatures":' + canonical([*signatures, *last]) + b"}"
