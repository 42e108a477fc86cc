"""Files that are signed well and hold odd things: what is taken, a new client can read; the rest is a typed error."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.author import Signed, make_key
from tests.support.collection import Collection


def _places(value: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """The path of every member and entry of a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for name, one in inside for place in ((*path, name), *_places(one, (*path, name)))]


_ODD = st.sampled_from([None, True, -1, 0, 1, 2, 2**31, 2**53 - 1, 1.5, [], [None], {}, {"": None}]) | st.sampled_from(
    ["", "root", "targets/a", "targets/a/b", "2099-01-01T00:00:00Z", "AAAA", "é"]
)


@given(data=st.data(), snapshot=st.sampled_from(["server", "client"]))
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_metadata_with_odd_members_is_taken_or_refused_and_readable_afterwards(
    data: st.DataObject, snapshot: str
) -> None:
    """Each file is signed well: what is odd is what somebody meant. All that is taken can be read by a new client."""
    collection = Collection()
    author = collection.author(snapshot)
    author.delegate("targets/a", make_key(), make_key())
    author.delegate("targets/a/b")
    collection.publish(author.first())

    def edit(signed: Signed) -> None:
        for _ in range(data.draw(st.integers(1, 3))):
            *path, last = data.draw(st.sampled_from(_places(signed)))
            parent: Any = signed
            for name in path:
                parent = parent[name]
            parent[last] = copy.deepcopy(data.draw(_ODD))

    role = data.draw(st.sampled_from(["root", "targets", "targets/a", "targets/a/b", "snapshot"]))
    others = data.draw(st.sets(st.sampled_from(["root", "targets", "targets/a", "targets/a/b"])))
    files = author.publish(*{role, *others} - {"snapshot"})
    if role == "root":
        files[role] = author.root(edit=edit)
    elif role == "snapshot":
        keys = author.roles["snapshot"].keys if snapshot == "client" else [collection.snapshot_key]
        files[role] = author.snapshot(author.stored, edit=edit, signers=keys)
    else:
        files[role] = author.targets(role, edit=edit)
    if role != "snapshot" and author.holds_snapshot:
        files["snapshot"] = author.snapshot({**author.stored, **files})
    if collection.outcome(files) == "OK":
        collection.check()
