"""Who must have signed a root: its own certificates, and those of the root before it, or the bare keys in them."""

from __future__ import annotations

import json

import pytest

from notary.errors import InvalidMetadata, NoUsableCertificate
from notary.tuf.model import ROOT, Envelope, Gun, Root
from notary.tuf.signatures import require_signatures, require_succession, stored_root
from tests.support.author import Author, Key, canonical, make_certificate, make_private, make_root_key, sign
from tests.support.collection import GUN, NOW

ELSEWHERE = "elsewhere.com/*"


def author_of(*keys: Key, threshold: int = 1) -> Author:
    """The publisher of a root with these keys."""
    author = Author(GUN, now=NOW)
    author.rotate("root", *keys, threshold=threshold)
    author.retired.clear()
    return author


def check(previous: bytes, data: bytes) -> None:
    require_succession(Gun(GUN), Root.parse(Envelope.parse(previous)), Envelope.parse(data))


def refused(previous: bytes, data: bytes, count: int, what: str, needed: int = 1) -> None:
    counted = rf"it has (at most )?{count} valid signature\(s\)"
    message = rf"^root: {counted} by the {what} of the stored root \(version 1\); {needed} needed$"
    with pytest.raises(InvalidMetadata, match=message):
        check(previous, data)


@pytest.mark.parametrize(("name", "what"), [(GUN, "certificates"), (ELSEWHERE, "keys")])
def test_a_root_follows_the_one_whose_keys_have_signed_it(name: str, what: str) -> None:
    old, new = make_root_key(name), make_root_key(GUN, number=1)
    author = author_of(old)
    previous = author.root()
    author.bump("root")
    author.rotate("root", new)
    check(previous, author.root(signers=[new, old]))
    check(previous, author.root(signers=[old]))
    refused(previous, author.root(signers=[new]), 0, what)
    with pytest.raises(InvalidMetadata, match=r"^root: no signatures$"):
        check(previous, author.root(signers=[]))


@pytest.mark.parametrize(("name", "what"), [(GUN, "certificates"), (ELSEWHERE, "keys")])
def test_a_signature_under_the_id_of_a_key_is_not_one_by_the_key(name: str, what: str) -> None:
    old, new = make_root_key(name), make_root_key(GUN, number=1)
    author = author_of(old)
    previous = author.root()
    author.rotate("root", new)
    value = json.loads(author.root(signers=[new]))
    value["signatures"][0]["keyid"] = old.key_id
    refused(previous, canonical(value), 0, what)


def test_two_certificates_of_one_key_are_one_signer() -> None:
    private = make_private("ecdsa")
    keys = [Key("ecdsa-x509", make_certificate(private, name), private) for name in (ELSEWHERE, "other.com/*")]
    previous = author_of(*keys, threshold=2).root()
    refused(previous, author_of(*keys).root(), 1, "keys", needed=2)


def test_several_keys_without_a_usable_certificate_count_each() -> None:
    keys = [make_root_key(ELSEWHERE, number=number) for number in range(3)]
    author = author_of(*keys, threshold=2)
    previous = author.root()
    check(previous, author.root(signers=keys[1:]))
    refused(previous, author.root(signers=keys[1:2]), 1, "keys", needed=2)


def test_one_usable_certificate_is_enough_to_ignore_the_bare_keys() -> None:
    usable, odd = make_root_key(GUN), make_root_key(ELSEWHERE, number=1)
    author = author_of(usable, odd)
    previous = author.root()
    check(previous, author.root(signers=[usable]))
    refused(previous, author.root(signers=[odd]), 0, "certificates")


def test_a_stored_root_is_signed_by_its_own_certificates_however_old_they_are() -> None:
    key = make_root_key(GUN, ends=NOW.replace(year=2021))
    author = author_of(key)
    data = author.root()
    assert stored_root(Gun(GUN), data).version == 1
    by_another = author.root(signers=[make_root_key(GUN, number=1)])
    with pytest.raises(
        InvalidMetadata, match=r"^root: it has 0 valid signature\(s\) by its own certificates; 1 needed$"
    ):
        stored_root(Gun(GUN), by_another)
    with pytest.raises(InvalidMetadata, match=r"^root: no signatures$"):
        stored_root(Gun(GUN), author.root(signers=[]))
    with pytest.raises(NoUsableCertificate):
        stored_root(Gun("elsewhere.com/app"), data)
    with pytest.raises(InvalidMetadata, match=r"^the stored root is not metadata: "):
        stored_root(Gun(GUN), b"junk")


def test_the_work_of_verifying_is_spent_and_may_be_too_much() -> None:
    key = make_root_key(GUN)
    author = author_of(key)
    spent: list[int] = []
    stored_root(Gun(GUN), author.root(), spent.append)
    assert sum(spent) > 0

    def refuse(_cost: int) -> None:
        raise InvalidMetadata("too much work")

    root = stored_root(Gun(GUN), author.root())
    with pytest.raises(InvalidMetadata, match="too much work"):
        require_signatures(ROOT, root.envelope, root.roles[ROOT], "its keys", refuse)
    with pytest.raises(InvalidMetadata, match="too much work"):
        require_succession(Gun(GUN), root, root.envelope, refuse)


def test_a_key_that_cannot_be_read_does_not_stop_the_others() -> None:
    keys = [Key("ecdsa-x509", b"no certificate"), make_root_key(ELSEWHERE)]
    author = author_of(*keys)
    previous = author.root(signers=[])
    check(previous, author.root(signers=keys[1:]))


def test_other_signatures_do_not_count() -> None:
    key = make_root_key(ELSEWHERE)
    author = author_of(key)
    previous = author.root()
    value = json.loads(author.root())
    other = sign(value["signed"], [make_root_key(ELSEWHERE, number=2), key])
    check(previous, other)
