"""What a publisher is told about an upload that is refused: the file, what is wrong with it, and what is expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from notary.errors import InvalidUpdate, UploadFault
from tests.support.author import Author, Key, Role, Signed, file_meta, make_key, make_root_key, setting
from tests.support.collection import GUN, Collection


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda a: a.roles.update(root=Role([make_root_key("else/where")])),
            r"^root: no root key is a valid certificate .*: common name 'else/where' is neither",
            id="common name",
        ),
        pytest.param(
            lambda a: a.roles.update(root=Role([])), r"^root: no root key is a valid .* \(no keys\)$", id="no root keys"
        ),
        pytest.param(
            lambda a: a.roles.update(root=Role([make_key(number=number) for number in range(1, 6)])),
            r"^root: no root key is a valid certificate [^(]*\(([0-9a-f]{64}: not a chain[^;]*; ){3}and 2 more\)$",
            id="many root keys",
        ),
        pytest.param(
            lambda a: a.versions.update(root=3),
            r"^root: version 3 cannot follow version 1; the next one is 2$",
            id="root version",
        ),
        pytest.param(
            lambda a: a.roles.update(targets=Role([make_key()], 2)),
            r"^targets: it has at most 1 valid signature\(s\) by the keys that root names for it; 2 needed$",
            id="threshold",
        ),
    ],
)
def test_messages_say_what_is_wrong_and_what_is_expected(change: Callable[[Author], None], message: str) -> None:
    collection = Collection()
    author = collection.author()
    change(author)
    with pytest.raises(InvalidUpdate, match=message):
        collection.validate(author.first())


def _by_the_previous_root_alone(author: Author) -> dict[str, bytes]:
    author.rotate("root", make_root_key(GUN))
    return author.publish("root") | {"root": author.root(signers=author.retired)}


def _sha1(author: Author, *roles: str) -> dict[str, bytes]:
    author.delegate("targets/a", make_root_key("x", "rsa", sha1=True))
    return author.publish(*roles)


def _false_id(author: Author) -> dict[str, bytes]:
    def edit(signed: Signed) -> None:
        (key,) = signed["delegations"]["keys"].values()
        signed["delegations"]["keys"] = {"false": key}
        signed["delegations"]["roles"][0]["keyids"] = ["false"]

    author.bump("targets", "snapshot")
    return author.covered({"targets": author.targets(edit=edit)})


def _unlisted(author: Author) -> dict[str, bytes]:
    files = author.publish("targets/a")
    listed = {role: data for role, data in author.stored.items() if role != "targets/a"}
    return files | {"snapshot": author.snapshot(listed)}


def _listing(author: Author, *path: str, to: Any) -> dict[str, bytes]:
    files = author.publish("targets/a")
    return files | {"snapshot": author.snapshot(author.stored, edit=setting("meta", *path, to=to))}


@pytest.mark.parametrize(
    ("upload", "fault", "message"),
    [
        pytest.param(
            lambda a: a.publish("root") | {"root": a.root(signers=[])},
            UploadFault.ROOT,
            "root: no signatures",
            id="root without signatures",
        ),
        pytest.param(
            _by_the_previous_root_alone,
            UploadFault.ROOT,
            r"root: it has 0 valid signature\(s\) by its own certificates; 1 needed",
            id="root by the previous one alone",
        ),
        pytest.param(
            lambda a: a.publish("targets/b"),
            UploadFault.TARGETS,
            "targets/b: targets does not delegate to it",
            id="no delegation",
        ),
        pytest.param(
            lambda a: a.publish("targets/a") | {"targets/a": a.targets("targets/a", signers=[make_key()])},
            UploadFault.TARGETS,
            r"targets/a: it has 0 valid signature\(s\) by the keys that targets names for it; 1 needed",
            id="delegation by another",
        ),
        pytest.param(
            lambda a: _sha1(a, "targets", "targets/a"),
            UploadFault.TARGETS,
            "targets/a: key [0-9a-f]{64}: the certificate is signed with SHA-1",
            id="certificate of a delegation",
        ),
        pytest.param(
            lambda a: _sha1(a, "targets"),
            UploadFault.TARGETS,
            "targets/a: key [0-9a-f]{64}: the certificate is signed with SHA-1",
            id="certificate of a stored delegation",
        ),
        pytest.param(
            _false_id,
            UploadFault.TARGETS,
            "targets: delegation targets/a: key id 'false' does not match the content of its key",
            id="false id of a delegation's key",
        ),
        pytest.param(
            lambda a: a.publish() | {"snapshot": a.snapshot(a.stored, signers=[make_key()])},
            UploadFault.SNAPSHOT,
            r"snapshot: it has 0 valid signature\(s\) by the keys that root names for it; 1 needed",
            id="snapshot by another",
        ),
        pytest.param(
            _unlisted,
            UploadFault.SNAPSHOT,
            "snapshot: it lists no hashes for targets/a",
            id="uploaded file that is not listed",
        ),
        pytest.param(
            lambda a: _listing(a, "targets/a", to=file_meta(b"other")),
            UploadFault.SNAPSHOT,
            "snapshot: its hashes for targets/a are not those of version 2, which is in this upload",
            id="other hashes of an uploaded file",
        ),
        pytest.param(
            lambda a: _listing(a, "root", to=file_meta(b"other")),
            UploadFault.SNAPSHOT,
            "snapshot: its hashes for root are not those of version 1, which is stored",
            id="other hashes of a stored file",
        ),
        pytest.param(
            lambda a: _listing(a, "targets/a", "length", to=5),
            UploadFault.SNAPSHOT,
            "snapshot: clients cannot fetch targets/a by what it lists: its SHA-256 and its length, [0-9]+, are needed",
            id="short length",
        ),
        pytest.param(
            lambda a: _listing(a, "targets/x", to=file_meta(b"other")),
            UploadFault.SNAPSHOT,
            "snapshot: its hashes for targets/x are neither those of a file in this upload nor those that were listed "
            "before; fetch the collection again, or upload targets/x too",
            id="file that is nowhere",
        ),
    ],
)
def test_messages_name_the_file_and_what_is_expected(
    upload: Callable[[Author], dict[str, bytes]], fault: UploadFault, message: str
) -> None:
    collection = Collection()
    author = collection.author("client")
    author.delegate("targets/a")
    collection.publish(author.first())
    with pytest.raises(InvalidUpdate, match=f"^{message}$") as caught:
        collection.validate(upload(author))
    assert caught.value.fault == fault


def test_a_first_upload_holds_targets() -> None:
    author = Collection().author()
    with pytest.raises(InvalidUpdate, match=r"^the first upload to a collection must hold targets$") as caught:
        Collection().validate({"root": author.root()})
    assert caught.value.fault == UploadFault.VALIDATION


def test_a_root_that_names_a_server_key_that_cannot_be_read() -> None:
    collection = Collection()
    author = collection.author()
    author.roles["snapshot"] = Role([Key("ecdsa-x509", b"no certificate")])
    message = "^snapshot: key [0-9a-f]{64} holds no certificate that can be read$"
    with pytest.raises(InvalidUpdate, match=message) as caught:
        collection.validate(author.first())
    assert caught.value.fault == UploadFault.VALIDATION
