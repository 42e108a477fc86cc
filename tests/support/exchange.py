"""One upload to the Go server and to ours: what both must answer, and what must be true of the collection afterwards.

Rules of this module: it asks and compares; what to upload, and how, is in the tables of its callers. After an accepted
upload every role can be read and verifies; after a refused one the collection is what it was; after both the server
takes a publish.
"""

from __future__ import annotations

import pytest

from tests.support.sides import Answer, Case, Side, clone, make_collection

BAD_TARGETS = "400 INVALID_UPDATE ErrBadTargets"
MALFORMED_JSON = "400 MALFORMED_JSON"


async def check(case: Case, side: Side, expected: str, *, reserialises: bool) -> Answer:
    """Do what the case says on one side; see that the server says what is expected and is none the worse for it.

    ``reserialises``: the server promises hashes of its own form of the files (section 9, first row), so what it took
    cannot be verified.
    """
    collection = await make_collection(side, published=case.published, server_snapshot=case.server_snapshot)
    before = await collection.current()
    taken = dict(collection.author.stored)
    answer = await case.recipe(collection, clone(collection.author))
    assert answer.brief == expected, f"{side.name}: {answer}\n{side.daemon.output()[-2000:]}"
    if not collection.published:
        assert await collection.current() == {}, f"{side.name}: a refused upload made a collection"
    elif answer.status != 200 and collection.author.stored == taken:
        assert await collection.current() == before, f"{side.name}: a refused upload changed the collection"
    elif reserialises:
        with pytest.raises((AssertionError, UnicodeDecodeError, RecursionError)):
            await collection.verify()
    elif not case.incoherent:
        await collection.verify()
    after = await collection.publish()
    assert after.status == 200, f"{side.name}, publishing afterwards: {after}"
    return answer


async def exchange(case: Case, go: Side, ours: Side) -> None:
    """Do what the case says to both servers, and compare what they answer."""
    said = await check(case, go, case.reference, reserialises=case.reserialised)
    answer = await check(case, ours, case.expected, reserialises=False)
    for name in ("cache-control", "pragma", "www-authenticate", "last-modified"):
        assert name not in answer.headers, name
        assert name not in said.headers, name
    if answer.status == 200:
        assert answer.body == b"", answer
        return
    content_type = answer.headers["content-type"]
    assert content_type == "application/json; charset=utf-8", content_type
    (error,) = answer.errors
    assert {"code", "message"} <= set(error) <= {"code", "message", "detail"}, answer
    if said.brief == answer.brief:
        assert said.headers["content-type"] == content_type, said.headers["content-type"]
        assert error["message"] == said.errors[0]["message"], f"{said}\n{answer}"
