"""Drafts: what the server makes itself, and how signatures get into it."""

from __future__ import annotations

import dataclasses
import json

import pytest

from notary.errors import InvalidUpdate, SigningFailed, UploadFault
from notary.tuf import draft
from notary.tuf.model import SNAPSHOT, RoleName
from notary.tuf.public import PublicKey
from tests.support.author import (
    Role,
    Signed,
    canonical,
    flip_bit,
    make_key,
    make_root_key,
)
from tests.support.collection import Collection, signatures

A = RoleName("targets/a")


@pytest.fixture
def drafted() -> tuple[Collection, draft.Draft]:
    collection = Collection()
    plan = collection.validate(collection.author().first())
    assert plan.snapshot is not None
    return collection, plan.snapshot


def test_an_assembled_file_is_in_the_form_of_the_go_server(drafted: tuple[Collection, draft.Draft]) -> None:
    collection, draft = drafted
    data = draft.assemble(signatures(draft, [collection.snapshot_key]))
    value = json.loads(data)
    assert (
        data == b'{"signed":' + canonical(value["signed"]) + b',"signatures":' + canonical(value["signatures"]) + b"}"
    )
    assert list(value["signatures"][0]) == ["keyid", "method", "sig"]


def test_only_signatures_by_the_keys_of_the_role_get_into_the_file(drafted: tuple[Collection, draft.Draft]) -> None:
    collection, draft = drafted
    (good,) = signatures(draft, [collection.snapshot_key])
    (stranger,) = signatures(draft, [make_key()])
    assert draft.assemble([good, stranger, good]) == draft.assemble([stranger, good]) == draft.assemble([good])
    for missing in ([], [stranger]):
        with pytest.raises(InvalidUpdate, match="0 of the 1 snapshot key"):
            draft.assemble(missing)


def test_a_signature_that_does_not_verify_is_a_fault_of_the_signing_service(
    drafted: tuple[Collection, draft.Draft],
) -> None:
    collection, draft = drafted
    (good,) = signatures(draft, [collection.snapshot_key])
    bad = dataclasses.replace(good, sig=flip_bit(good.sig, 7))
    for some in ([bad], [bad, good], [good, bad]):
        with pytest.raises(SigningFailed, match=f"snapshot by key {good.key_id} does not verify"):
            draft.assemble(some)


def test_a_threshold_counts_keys_not_signatures() -> None:
    collection = Collection()
    author = collection.author()
    second = make_key("rsa")
    author.roles["timestamp"] = Role([collection.timestamp_key, second], 2)
    draft = collection.validate(author.first()).timestamp(b"a snapshot")
    once, other = signatures(draft, [collection.timestamp_key, second])
    with pytest.raises(InvalidUpdate, match="1 of the 2 timestamp key") as caught:
        draft.assemble([once, once])
    assert (caught.value.fault, caught.value.missing) == (UploadFault.ROOT, "")
    assert len(json.loads(draft.assemble([once, other]))["signatures"]) == 2


def test_keys_in_certificates_sign_under_the_id_that_root_gives_them() -> None:
    collection = Collection()
    author = collection.author()
    key = make_root_key("anything")
    author.roles["snapshot"] = Role([key.public_part])
    collection.keys[key.bare.key_id] = key
    collection.publish(author.first())
    assert json.loads(collection.current[SNAPSHOT].data)["signatures"][0]["keyid"] == key.key_id


@pytest.mark.parametrize(("role", "fault"), [("snapshot", UploadFault.HIERARCHY), ("timestamp", UploadFault.ROOT)])
def test_a_server_key_under_a_wrong_id_is_no_key(role: str, fault: UploadFault) -> None:
    collection = Collection()
    author = collection.author()
    (key,) = author.roles[role].keys

    def edit(signed: Signed) -> None:
        signed["keys"]["ab" * 32] = signed["keys"].pop(key.key_id)
        signed["roles"][role]["keyids"] = ["ab" * 32]

    with pytest.raises(InvalidUpdate, match="names these: none") as caught:
        collection.publish({"root": author.root(edit=edit), "targets": author.targets()})
    assert caught.value.fault == fault


def test_of_many_keys_that_could_have_signed_the_first_are_named() -> None:
    keys = tuple(PublicKey("ed25519", bytes([number]) * 32) for number in range(200))
    unsigned = draft.Draft(SNAPSHOT, 1, b"{}", keys, 1)
    with pytest.raises(InvalidUpdate) as caught:
        unsigned.assemble([])
    assert f"names these: {keys[0].key_id}, {keys[1].key_id}, {keys[2].key_id}, and 197 more)" in str(caught.value)
    assert keys[3].key_id not in str(caught.value)
