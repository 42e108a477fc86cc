"""How much work an upload makes: what is estimated before it is judged, and what is spent while it is."""

from __future__ import annotations

import base64
import json

import pytest

from notary.errors import Fault, InvalidUpdate
from notary.tuf import publish, work
from notary.tuf.model import SNAPSHOT, Gun, RoleName
from tests.support.author import Author, Key, canonical, make_key, make_private, public_bytes
from tests.support.collection import GUN, Collection


def bogus(data: bytes, key: Key, count: int, size: int = 64, first: list | None = None) -> bytes:
    """``data`` with ``first`` and ``count`` different signatures by ``key`` that are none."""
    signed = json.loads(data)["signed"]
    signatures = list(first or [])
    for number in range(count):
        sig = b"\1" + number.to_bytes(2, "big") + b"\1" * (size - 3)
        signatures.append({"keyid": key.key_id, "method": key.method, "sig": base64.b64encode(sig).decode()})
    return b'{"signed":' + canonical(signed) + b',"signatures":' + canonical(signatures) + b"}"


class Held:
    def __init__(self, data: bytes) -> None:
        self.version, self.data = 1, data


def estimated(files, current=(), *, sound=False) -> int:
    held = {RoleName(role): Held(data) for role, data in dict(current).items()}
    return publish.work_in(held, publish.read(files.items()), sound=sound)


def author() -> Author:
    return Author(GUN, timestamp=make_key("ed25519"), snapshot=make_key("ed25519"))


@pytest.mark.parametrize("role", ["root", "targets", "snapshot"])
def test_an_ordinary_upload_is_little_work_and_each_signature_counts(role):
    files = author().first()
    ordinary = estimated(files)
    assert ordinary < publish.LITTLE_MICROSECONDS
    more = dict(files, **{role: bogus(files[role], make_key(), 30)})
    assert estimated(more) - ordinary > 30 * 64


def test_dearer_keys_make_more_work_of_as_many_bytes():
    files = author().first()
    key = make_key()
    p256 = estimated({"targets": bogus(files["targets"], key, 30, 64)})
    p384 = estimated({"targets": bogus(files["targets"], key, 20, 96)})
    assert p384 > 3 * p256
    assert p384 > publish.LITTLE_MICROSECONDS


def test_what_is_stored_counts_as_far_as_it_is_read():
    files = author().first()
    upload = {"targets": files["targets"]}
    stored = {"root": files["root"], "snapshot": files["snapshot"]}
    large = {"root": files["root"], "snapshot": files["snapshot"] + b" " * 100_000}
    assert estimated(upload) < estimated(upload, stored, sound=True) < estimated(upload, stored)
    assert estimated(upload, stored) < publish.LITTLE_MICROSECONDS < estimated(upload, large)
    assert estimated(upload, {**stored, "timestamp": b" " * 100_000}) == estimated(upload, stored)
    disguised = files["root"].replace(b'"sig"', b'"\\u0073ig"')
    assert estimated(upload, {"root": disguised}) >= estimated(upload, {"root": files["root"]})


def delegating(count: int, key: Key) -> Author:
    made = author()
    for number in range(count):
        made.delegate(f"targets/a{number}", key, make_key())
    return made


def validated(files) -> publish.Plan:
    return publish.judge(Gun(GUN), {}, list(files.items()), NOW)


def test_one_budget_serves_all_files_of_an_upload(monkeypatch):
    costs = []
    real = work.Budget.spend

    def spend(self, microseconds):
        costs.append(microseconds)
        real(self, microseconds)

    monkeypatch.setattr(work.Budget, "spend", spend)
    good, bad = make_key(), Key("ecdsa", public_bytes(P384), P384)
    made = author()
    for number in range(40):
        made.delegate(f"targets/a{number}", bad, good)
    files = made.first()
    heavy = {
        role: bogus(data, bad, 90, 96, [good.sign(canonical(json.loads(data)["signed"]))][:0]) if "/" in role else data
        for role, data in files.items()
    }
    with pytest.raises(InvalidUpdate, match="take too long to verify: remove") as refused:
        validated(heavy)
    assert refused.value.fault is Fault.VALIDATION
