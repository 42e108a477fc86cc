"""A key-encrypting key in a file: what is taken, and what is refused."""

from __future__ import annotations

import pytest
from twisted.internet import reactor

from notary.config import KekUri, KeyEncryption
from notary.config.values import FILE_SCHEME
from notary.envelope.envelopes import Envelopes
from notary.envelope.file import FileKek, open_file
from notary.envelope.schemes import open_envelopes
from notary.errors import ConfigError, SigningFailed

ONE, OTHER = bytes(range(32)), bytes(range(1, 33))


def uri(path) -> KekUri:
    return KekUri(FILE_SCHEME, str(path))


def test_the_file_is_the_key(tmp_path):
    path = tmp_path / "kek"
    path.write_bytes(ONE)
    assert open_file(uri(path), "storage.keys.wrap", reactor).name == FileKek(ONE).name


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b"", "holds 0 bytes"),
        (ONE[:31], "holds 31 bytes"),
        (ONE + b"\n", "holds more bytes"),
        (b"\0" * 32, "holds one byte repeated, which is no key"),
    ],
)
def test_a_file_that_is_no_key(tmp_path, content, text):
    path = tmp_path / "kek"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        open_file(uri(path), "storage.keys.unwrap", reactor)
    message = str(caught.value)
    assert message.startswith(f"storage.keys.unwrap: file:{path} {text}; expected a file of 32 random bytes")
    assert message.isprintable()


def test_a_device_without_end_is_refused():
    with pytest.raises(ConfigError, match="holds more bytes"):
        open_file(uri("/dev/zero"), "storage.keys.wrap", reactor)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="Is a directory"):
        open_file(uri(tmp_path), "storage.keys.wrap", reactor)


def test_only_its_own_key_and_context_open_a_data_key():
    kek = FileKek(ONE)
    wrapped = kek.wrap(OTHER, b"context")
    assert kek.unwrap(wrapped, b"context") == OTHER
    assert kek.wrap(OTHER, b"context") != wrapped
    for one, bytes_, context in [
        (FileKek(OTHER), wrapped, b"context"),
        (kek, wrapped, b"another"),
        (kek, wrapped[:-1], b"context"),
        (kek, b"", b"context"),
        (kek, wrapped[:12], b"context"),
    ]:
        with pytest.raises(SigningFailed, match="does not open"):
            one.unwrap(bytes_, context)


def test_the_first_of_a_configuration_is_that_of_new_keys(tmp_path):
    paths = [tmp_path / "one", tmp_path / "other"]
    for path, content in zip(paths, (ONE, OTHER), strict=True):
        path.write_bytes(content)
    one, other = map(uri, paths)
    assert open_envelopes(KeyEncryption(), reactor) is None
    found = open_envelopes(KeyEncryption(wrap=other, unwrap=(one, other)), reactor)
    assert isinstance(found, Envelopes)
    assert list(found.names) == [FileKek(OTHER).name, FileKek(ONE).name]
    paths[0].unlink()
    with pytest.raises(ConfigError, match=r"storage\.keys\.unwrap: file:.*/one cannot be read"):
        open_envelopes(KeyEncryption(wrap=other, unwrap=(one,)), reactor)


def test_two_keys_of_one_name_are_refused_unless_they_are_one_key(tmp_path):
    for name in ("one", "copy"):
        (tmp_path / name).write_bytes(ONE)
    found = open_envelopes(KeyEncryption(wrap=uri(tmp_path / "one"), unwrap=(uri(tmp_path / "copy"),)), reactor)
    assert list(found.names) == [FileKek(ONE).name]
    one, other = (KekUri("vault", f"https://{host}/transit/notary?token-file=/t") for host in ("one", "other"))
    with pytest.raises(ConfigError, match=r"^storage\.keys\.unwrap: vault:https://other/.* is named vault-d1b"):
        open_envelopes(KeyEncryption(wrap=one, unwrap=(other,)), reactor)
