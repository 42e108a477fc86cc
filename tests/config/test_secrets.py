"""Secrets in files: for keys of both daemons, and for passphrases."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from notary.config import Secret, load_server, load_signer
from notary.config.secrets import MAX_FILE_BYTES
from notary.errors import ConfigError

HIDDEN = "hunter2"
URL = f"server:{HIDDEN}@tcp(mysql:3306)/notaryserver"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text(URL)
    (tmp_path / "newline").write_text(URL + "\n")
    (tmp_path / "crlf").write_text(URL + "\r\n")
    (tmp_path / "blank").write_text(f" {HIDDEN} \n")
    (tmp_path / "inside").write_text("a\nb\n")
    (tmp_path / "empty").write_text("")
    (tmp_path / "only-a-newline").write_text("\n")
    (tmp_path / "latin1").write_bytes(f"{HIDDEN}\xe9".encode("latin-1"))
    (tmp_path / "nul").write_text(f"{HIDDEN}\0")
    (tmp_path / "large").write_text(HIDDEN * MAX_FILE_BYTES)
    return tmp_path


def server(folder: Path, storage: dict[str, Any], **environ: str) -> Secret:
    tree = {"server": {"http_addr": ":0"}, "trust_service": {"type": "local"}, "storage": storage}
    return load_server(json.dumps(tree), environ, folder).storage.db_url


def signer(folder: Path, **environ: str) -> dict[str, Secret]:
    tree = {
        "server": {"grpc_addr": ":0", "tls_cert_file": "a", "tls_key_file": "b"},
        "storage": {"backend": "mysql", "db_url": URL, "default_alias": "key1"},
    }
    return dict(load_signer(json.dumps(tree), environ, folder).passphrases)


@pytest.mark.parametrize("name", ["secret", "newline", "crlf"])
def test_a_database_by_file(folder: Path, name: str) -> None:
    assert server(folder, {"backend": "mysql", "db_url_file": name}) == URL


def test_a_file_by_its_absolute_path_and_by_letter_case(folder: Path) -> None:
    assert server(folder, {"backend": "mysql", "DB_URL_FILE": str(folder / "secret")}) == URL


def test_what_comes_from_a_file_is_hidden(folder: Path) -> None:
    assert repr(server(folder, {"backend": "mysql", "db_url_file": "secret"})) == "<hidden>"


def test_a_relative_database_file_begins_where_the_configuration_is(folder: Path) -> None:
    (folder / "path").write_text("notary.sqlite3\n")
    assert server(folder, {"backend": "sqlite3", "db_url_file": "path"}) == str(folder / "notary.sqlite3")


@pytest.mark.parametrize(
    ("storage", "environ"),
    [
        pytest.param({"db_url": "other"}, {"NOTARY_SERVER_STORAGE_DB_URL_FILE": "secret"}, id="file over key"),
        pytest.param({"db_url_file": "empty"}, {"NOTARY_SERVER_STORAGE_DB_URL": URL}, id="value over file"),
        pytest.param({"db_url_file": "empty"}, {"NOTARY_SERVER_STORAGE_DB_URL_FILE": "secret"}, id="file over file"),
        pytest.param({"db_url_file": "secret"}, {"NOTARY_SERVER_STORAGE_DB_URL_FILE": ""}, id="empty variable"),
        pytest.param({"db_url_file": "", "db_url": URL}, {}, id="empty key"),
    ],
)
def test_the_environment_overrides_the_configuration(
    folder: Path, storage: dict[str, Any], environ: dict[str, str]
) -> None:
    assert server(folder, {"backend": "mysql", **storage}, **environ) == URL


def test_a_key_that_is_ignored_reads_no_file(folder: Path) -> None:
    assert server(folder, {"backend": "memory", "db_url_file": "missing"}) == ""


FILES = [
    pytest.param("missing", "No such file", id="missing"),
    pytest.param(".", "Is a directory", id="directory"),
    pytest.param("secret/below", "Not a directory", id="below a file"),
    pytest.param("empty", "empty", id="empty"),
    pytest.param("only-a-newline", "empty", id="only a newline"),
    pytest.param("latin1", "UTF-8", id="not UTF-8"),
    pytest.param("nul", "NUL", id="NUL"),
    pytest.param("large", "too large", id="too large"),
    pytest.param("/dev/zero", "too large", id="a device without end"),
]


@pytest.mark.parametrize(("name", "why"), FILES)
def test_a_file_that_cannot_be_used(folder: Path, name: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        server(folder, {"backend": "mysql", "db_url_file": name})
    assert str(caught.value).startswith("storage.db_url_file: ")
    assert HIDDEN not in str(caught.value)


def test_a_secret_in_place_of_its_path_is_not_shown(folder: Path) -> None:
    for value in (URL, URL + "\0", {"password": HIDDEN}, HIDDEN * 10_000):
        with pytest.raises(ConfigError) as caught:
            server(folder, {"backend": "mysql", "db_url_file": value})
        assert HIDDEN not in str(caught.value)


@pytest.mark.parametrize(
    ("storage", "environ", "names"),
    [
        pytest.param(
            {"db_url": URL, "db_url_file": "secret"}, {}, ("storage.db_url", "storage.db_url_file"), id="file"
        ),
        pytest.param(
            {},
            {"NOTARY_SERVER_STORAGE_DB_URL": URL, "NOTARY_SERVER_STORAGE_DB_URL_FILE": "secret"},
            ("NOTARY_SERVER_STORAGE_DB_URL", "NOTARY_SERVER_STORAGE_DB_URL_FILE"),
            id="environment",
        ),
    ],
)
def test_both_are_refused(
    folder: Path, storage: dict[str, Any], environ: dict[str, str], names: tuple[str, str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        server(folder, {"backend": "mysql", **storage}, **environ)
    assert all(name in str(caught.value) for name in names)
    assert HIDDEN not in str(caught.value)


def test_neither_is_missing(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"storage\.db_url: missing"):
        server(folder, {"backend": "mysql"})


# -- passphrases ------------------------------------------------------------------------------------------------------


def test_passphrases_from_files_and_from_the_environment(folder: Path) -> None:
    (folder / "key1").write_text(HIDDEN + "\n")
    found = signer(folder, NOTARY_SIGNER_KEY1_FILE="key1", NOTARY_SIGNER_OLD="older")
    assert found == {"KEY1": HIDDEN, "OLD": "older"}


def test_only_the_line_end_is_left_out(folder: Path) -> None:
    found = signer(folder, NOTARY_SIGNER_KEY1_FILE="blank", NOTARY_SIGNER_LINES_FILE=str(folder / "inside"))
    assert found == {"KEY1": f" {HIDDEN} ", "LINES": "a\nb"}


def test_an_alias_in_lower_case_finds_its_file(folder: Path) -> None:
    text = json.dumps(
        {
            "server": {"grpc_addr": ":0", "tls_cert_file": "a", "tls_key_file": "b"},
            "storage": {"backend": "mysql", "db_url_file": "secret", "default_alias": "new.alias"},
        }
    )
    loaded = load_signer(text, {"NOTARY_SIGNER_NEW_ALIAS_FILE": "newline"}, folder)
    assert loaded.passphrase("new.alias") == URL
    assert loaded.storage.db_url == URL
    assert loaded.warnings == ()


def test_a_passphrase_is_the_same_bytes_from_a_file_and_from_the_environment(folder: Path) -> None:
    content = (folder / "latin1").read_bytes()
    found = signer(folder, NOTARY_SIGNER_KEY1_FILE="latin1", NOTARY_SIGNER_OLD=os.fsdecode(content))
    assert found["KEY1"] == found["OLD"]
    assert found["OLD"].encode("utf-8", "surrogateescape") == content


@pytest.mark.parametrize(("name", "why"), [each for each in FILES if each.id != "not UTF-8"])
def test_a_passphrase_file_that_cannot_be_used(folder: Path, name: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        signer(folder, NOTARY_SIGNER_KEY1=HIDDEN, NOTARY_SIGNER_OLD_FILE=name)
    assert str(caught.value).startswith("NOTARY_SIGNER_OLD_FILE: ")
    assert HIDDEN not in str(caught.value)


def test_a_passphrase_twice_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="NOTARY_SIGNER_KEY1, NOTARY_SIGNER_KEY1_FILE: both") as caught:
        signer(folder, NOTARY_SIGNER_KEY1=HIDDEN, NOTARY_SIGNER_KEY1_FILE="secret")
    assert HIDDEN not in str(caught.value)


def test_no_passphrase_says_that_a_file_would_do(folder: Path) -> None:
    with pytest.raises(ConfigError, match="NOTARY_SIGNER_KEY1_FILE"):
        signer(folder)


@pytest.mark.parametrize(
    ("passphrase", "weak"),
    [
        ("x" * 64, True),
        ("0123456789abcde", True),
        ("0123456789abcdef", False),
        ("\u00e9\u00e8" * 4, False),  # 16 bytes
        ("\u00e9\u00e8" * 3, True),
        ("a", True),
        ("correct-horse-battery-staple", False),
        ("", False),  # there is none
    ],
)
def test_a_weak_passphrase_is_warned_about_and_not_shown(folder: Path, passphrase: str, weak: bool) -> None:
    storage = {"backend": "memory"}
    tree = {"server": {"grpc_addr": ":0", "tls_cert_file": "a", "tls_key_file": "b"}, "storage": storage}
    warnings = load_signer(json.dumps(tree), {"NOTARY_SIGNER_B": passphrase}, folder).warnings
    lines = [line for line in warnings if line.startswith("NOTARY_SIGNER_B:")]
    assert [("weak" in line, "openssl rand" in line) for line in lines] == ([(True, True)] if weak else [])
    if len(passphrase) > 1:
        assert passphrase not in str(warnings)
