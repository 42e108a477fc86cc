"""The reader of the table: files that are no configuration, sections, and warnings of unknown keys."""

from __future__ import annotations

import json
from typing import Any

import pytest

from notary.config import Address, load_server
from notary.errors import ConfigError, InvalidFile
from tests.support.configurations import DIRECTORY, HIDDEN, assert_one_line, read_server, server


def test_letter_case_of_keys_does_not_matter() -> None:
    tree = {"SERVER": {"Http_Addr": ":1"}, "Trust_Service": {"TYPE": "local"}, "storage": {"backEnd": "memory"}}
    loaded = read_server(tree)
    assert loaded.server.http_addr == Address("", 1)
    assert loaded.warnings == ()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        pytest.param("", ["line 1, column 1", "is empty"], id="empty"),
        pytest.param('{\n  "server": {\n', ["line 3, column 1", "the file ends before"], id="cut off"),
        pytest.param('{\n  "server": {},\n}', ["JSON has no comma before }"], id="trailing comma"),
        pytest.param('{"a": [1, ]}', ["JSON has no comma before ]"], id="trailing comma in a list"),
        pytest.param('// us\n{"a": 1}', ["line 1, column 1", "JSON has no comments"], id="comment"),
        pytest.param('{\n  # us\n  "a": 1}', ["line 2, column 3", "JSON has no comments"], id="comment of a shell"),
        pytest.param('{"a": 1, /* us */ "b": 2}', ["line 1, column 10", "JSON has no comments"], id="long comment"),
        pytest.param('{"a": 1 // us\n}', ["line 1, column 9", "JSON has no comments"], id="comment after a value"),
        pytest.param('{"a": // us\n1}', ["line 1, column 7", "JSON has no comments"], id="comment before a value"),
        pytest.param("{'a': 1}", ["line 1, column 2", "JSON has no single quotes"], id="single quotes"),
        pytest.param("{a: 1}", ["line 1, column 2", "a name in double quotes is missing"], id="no quotes"),
        pytest.param('{"a": yes}', ["line 1, column 7", "a value is missing here"], id="word"),
        pytest.param('{"a": 1\n "b": 2}', ["line 2, column 2", "a comma or a closing bracket"], id="no comma"),
        pytest.param('{"a" 1}', ["line 1, column 6", "a colon is missing"], id="no colon"),
        pytest.param('{"a": "b}', ["line 1, column 7", "no closing double quote"], id="string without end"),
        pytest.param('{"a": "b\n"}', ["line 1, column 9", "inside a string"], id="line end in a string"),
        pytest.param('{"a": "\\notary"}'.replace("n", "q", 1), ["a backslash itself is written twice"], id="escape"),
        pytest.param('{"a": 1} x', ["line 1, column 10", "the configuration ends before"], id="trailing data"),
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
    with pytest.raises(InvalidFile) as caught:
        load_server(text, {}, DIRECTORY)
    message = str(caught.value)
    assert "expected" in message
    assert message.isprintable()
    assert [part for part in parts if part not in message] == [], message


IGNORABLE = ["logging", "reporting", "reporting.bugsnag", "caching", "caching.max_age"]


@pytest.mark.parametrize("path", IGNORABLE)
@pytest.mark.parametrize("value", ["yes", True, 5, [1]], ids=str)
def test_a_section_of_an_old_form_is_ignored_as_by_the_reference(path: str, value: Any) -> None:
    """Notary 0.1 had ``"reporting": {"bugsnag": "yes"}``. The list is that of sections which 0.7.0 ignores silently."""
    loaded = read_server(server(path, value))
    shown = f"{path}: {value_of_secrets(path) or json.dumps(value)} is not an object, ignored; "
    assert [each for each in loaded.warnings if each.startswith(shown)] == list(loaded.warnings)
    assert len(loaded.warnings) == 1
    assert loaded.logging.level == "error"
    assert not loaded.reporting.bugsnag.api_key


def value_of_secrets(path: str) -> str:
    return "the value (not shown)" if path.startswith("reporting") else ""


@pytest.mark.parametrize("path", ["server", "trust_service", "auth", "auth.options", "repositories", "limits"])
@pytest.mark.parametrize("value", [5, "x", [], True], ids=str)
def test_a_section_must_be_an_object(path: str, value: Any) -> None:
    """Without these the service would not work, or would be open to more than its operator believes."""
    with pytest.raises(ConfigError) as caught:
        read_server(server(path, value))
    assert_one_line(str(caught.value), path, [json.dumps(value), "is not an object"])


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
