"""The signer's configuration and its passphrases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from notary import config
from notary.config import Address, KekUri
from notary.errors import ConfigError
from tests.support.configurations import HIDDEN, SIGNER_STORAGE, assert_one_line, read_signer, signer


def test_signer_in_memory() -> None:
    loaded = read_signer(signer())
    assert loaded.server == config.SignerServer(
        grpc_addr=Address("", 7899),
        tls_cert_file=Path("/etc/notary/signer.crt"),
        tls_key_file=Path("/etc/notary/signer.key"),
    )
    assert loaded.storage == config.SignerStorage(backend="memory")
    assert dict(loaded.passphrases) == {}
    assert loaded.warnings == ()


def test_signer_passphrases() -> None:
    tree = signer(storage={**SIGNER_STORAGE, "default_alias": "passwordalias.2"}, logging={"level": "info"})
    loaded = read_signer(
        tree,
        NOTARY_SIGNER_PASSWORDALIAS1="old-horse-old-battery",
        NOTARY_SIGNER_PASSWORDALIAS_2=HIDDEN,
        NOTARY_SIGNER_LOGGING_LEVEL="debug",
        NOTARY_SERVER_OTHER="other",
    )
    assert loaded.passphrase("PasswordAlias1") == "old-horse-old-battery"
    assert loaded.passphrase("passwordalias.2") == HIDDEN
    assert loaded.passphrase("passwordalias3") is None
    assert len(loaded.passphrases) == 2
    assert loaded.logging.level == "debug"
    assert loaded.warnings == ()


@pytest.mark.parametrize(
    ("key", "expected"),
    [pytest.param({}, "b", id="stands in"), pytest.param({"default_alias": "a"}, "a", id="the key has precedence")],
)
def test_default_alias_by_its_own_variable(key: dict[str, str], expected: str) -> None:
    loaded = read_signer(
        signer(storage={**SIGNER_STORAGE, **key}),
        NOTARY_SIGNER_DEFAULT_ALIAS="b",
        NOTARY_SIGNER_A="x",
        NOTARY_SIGNER_B="y",
    )
    assert loaded.storage.default_alias == expected
    assert set(loaded.passphrases) == {"A", "B"}


@pytest.mark.parametrize(
    ("path", "value", "environ", "name"),
    [
        pytest.param("server.grpc_addr", None, {}, "server.grpc_addr", id="no address"),
        pytest.param("server.tls_cert_file", None, {}, "server.tls_cert_file", id="no certificate"),
        pytest.param("server.tls_key_file", "", {}, "server.tls_key_file", id="no key"),
        pytest.param("storage", SIGNER_STORAGE, {}, "storage.default_alias", id="no alias"),
        pytest.param("storage", {**SIGNER_STORAGE, "default_alias": "a"}, {}, "NOTARY_SIGNER_A", id="no passphrase"),
        pytest.param(
            "storage",
            {**SIGNER_STORAGE, "default_alias": "a"},
            {"NOTARY_SIGNER_A": ""},
            "NOTARY_SIGNER_A",
            id="empty passphrase",
        ),
        pytest.param("debug", None, {"NOTARY_SIGNER_SERVER": HIDDEN}, "NOTARY_SIGNER_SERVER", id="section"),
    ],
)
def test_bad_signer_configurations(path: str, value: Any, environ: dict[str, str], name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_signer(signer(path, value), **environ)
    assert_one_line(str(caught.value), name, [])


def test_a_passphrase_that_looks_like_a_key_is_warned_about() -> None:
    loaded = read_signer(signer(), NOTARY_SIGNER_LOGGING_LEVLE=HIDDEN)
    assert [warning.split(":")[0] for warning in loaded.warnings] == ["NOTARY_SIGNER_LOGGING_LEVLE"]
    assert HIDDEN not in loaded.warnings[0]
    assert loaded.passphrase("logging_levle") == HIDDEN


# -- key-encrypting keys ----------------------------------------------------------------------------------------------


def test_a_kek_needs_no_passphrase_and_may_have_one() -> None:
    storage = {**SIGNER_STORAGE, "keys": {"wrap": "file:kek", "unwrap": ["file:/old", "file:kek"]}}
    loaded = read_signer(signer(storage=storage))
    assert loaded.storage.keys.wrap == KekUri("file", "/etc/notary/kek")
    assert list(map(str, loaded.storage.keys.uris)) == ["file:/etc/notary/kek", "file:/old"]
    assert loaded.storage.default_alias == ""
    loaded = read_signer(signer(storage={**storage, "default_alias": "a"}), NOTARY_SIGNER_A=HIDDEN)
    assert loaded.passphrase("a") == HIDDEN
    assert read_signer(signer()).storage.keys.uris == ()


def test_a_kek_by_the_environment() -> None:
    loaded = read_signer(
        signer(storage=SIGNER_STORAGE),
        NOTARY_SIGNER_STORAGE_KEYS_WRAP="file:///run/credentials/kek",
        NOTARY_SIGNER_STORAGE_KEYS_UNWRAP="file:one file:/two",
    )
    assert [str(uri) for uri in loaded.storage.keys.uris] == [
        "file:/run/credentials/kek",
        "file:/etc/notary/one",
        "file:/two",
    ]
    assert dict(loaded.passphrases) == {}


@pytest.mark.parametrize(
    "value",
    [
        "kek",
        "/kek",
        "file:",
        "file://host/kek",
        "file://",
        "File:kek",
        "vault:x",
        "file:a\0b",
        "file:a\nb",
        1,
        ["file:a"],
    ],
)
def test_bad_uris_of_keks(value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        read_signer(signer(storage={**SIGNER_STORAGE, "keys": {"wrap": value}}))
    assert_one_line(str(caught.value), "storage.keys.wrap", ['"file:PATH"'])


@pytest.mark.parametrize("value", [["kek"], {"a": 1}, 5, "file:a,file:b x"])
def test_bad_lists_of_keks(value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        read_signer(signer(storage={**SIGNER_STORAGE, "keys": {"wrap": "file:a", "unwrap": value}}))
    assert_one_line(str(caught.value), "storage.keys.unwrap", [])


def test_older_keks_without_a_new_one() -> None:
    """So stored keys go back under a passphrase, and new keys are under it."""
    keys = {"unwrap": ["file:a", "file:b", "file:a"]}
    loaded = read_signer(signer(storage={**SIGNER_STORAGE, "default_alias": "a", "keys": keys}), NOTARY_SIGNER_A="p")
    assert loaded.storage.keys.wrap is None
    assert [str(uri) for uri in loaded.storage.keys.uris] == ["file:/etc/notary/a", "file:/etc/notary/b"]
    with pytest.raises(ConfigError, match=r"storage\.default_alias"):
        read_signer(signer(storage={**SIGNER_STORAGE, "keys": keys}))


def test_neither_a_passphrase_nor_a_kek() -> None:
    with pytest.raises(ConfigError) as caught:
        read_signer(signer(storage=SIGNER_STORAGE))
    assert_one_line(str(caught.value), "storage.default_alias", ['storage.backend is "mysql"', "storage.keys.wrap"])
