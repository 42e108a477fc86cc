"""The reader of the table: files that are no configuration, sections, and warnings of unknown keys."""

from __future__ import annotations

import json
from typing import Any

import pytest

from notary.config import Address, load_server
from notary.errors import ConfigError
from tests.support.configurations import DIRECTORY, HIDDEN, assert_one_line, read_server, server


def test_letter_case_of_keys_does_not_matter() -> None:
    tree = {"SERVER": {"Http_Addr": ":1"}, "Trust_Service": {"TYPE": "local"}, "storage": {"backEnd": "memory"}}
    loaded = read_server(tree)
    assert loaded.server.http_addr == Address("", 1)
    assert loaded.warnings == ()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        pytest.param("", ["line 1, column 1"], id="empty"),
        pytest.param('{\n  "server": {},\n}', ["line 3, column 1"], id="trailing comma"),
        pytest.param('{"a": 1} x', ["line 1, column 10"], id="trailing data"),
        pytest.param("[]", ["[] is not an object"], id="list"),
        pytest.param("null", ["null is not an object"], id="null"),
        pytest.param('\ufeff{"a": 1}', ["line 1, column 1", "byte order mark"], id="byte order mark"),
        pytest.param('{"server": {"http_addr": ":1", "http_addr": ":2"}}', ['"http_addr" is given twice'], id="twice"),
        pytest.param('{"server": {}, "Server": {}}', ['"Server" is given twice'], id="twice but for case"),
        pytest.param('{"caching": NaN}', ["NaN"], id="NaN"),
        pytest.param('{"a":' * 100_000, ["nested too deep"], id="deep"),
    ],
)
def test_files_that_are_no_configuration(text: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_server(text, {}, DIRECTORY)
    assert_one_line(str(caught.value), "configuration file", parts)


@pytest.mark.parametrize("value", [5, "x", [], True], ids=str)
def test_a_section_must_be_an_object(value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        read_server(server(caching=value))
    assert_one_line(str(caught.value), "caching", [json.dumps(value), "is not an object"])


def test_a_section_with_secrets_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        read_server(server(storage=f"postgres://server:{HIDDEN}@db/notaryserver"))
    assert_one_line(str(caught.value), "storage", ["is not an object"])


def test_an_empty_section_counts_as_absent() -> None:
    assert read_server(server(caching="", auth=None)).warnings == ()


def test_long_values_are_cut_in_messages() -> None:
    with pytest.raises(ConfigError) as caught:
        read_server(server("logging.level", "x" * 10_000))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        pytest.param("server.http_adr", "server.http_addr", id="typo"),
        pytest.param("http_addr", "server.http_addr", id="section forgotten"),
        pytest.param("loging", "logging", id="section"),
        pytest.param("caching.max_age.current", "caching.max_age.current_metadata", id="inner"),
    ],
)
def test_unknown_keys_are_warned_about(path: str, nearest: str) -> None:
    loaded = read_server(server(path, 1))
    assert len(loaded.warnings) == 1
    assert loaded.warnings[0].startswith(f"{path}: unknown key, ignored")
    assert loaded.warnings[0].endswith(f" {nearest}")


def test_warnings_are_one_line() -> None:
    assert read_server(server("a\nb", 1)).warnings[0].isprintable()
