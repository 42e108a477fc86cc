"""The types of values: tables of accepted values, and of bad values with their messages."""

from __future__ import annotations

import json
from typing import Any

import pytest

from notary.config import Address
from notary.errors import ConfigError
from tests.support.configurations import assert_one_line, read_server, server, value_of


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        pytest.param("server.http_addr", "[::1]:4443", Address("::1", 4443), id="IPv6"),
        pytest.param("server.http_addr", "[::]:0", Address("::", 0), id="any port"),
        pytest.param("server.http_addr", "localhost:65535", Address("localhost", 65535), id="host name"),
        pytest.param("server.http_addr", "0.0.0.0:80", Address("0.0.0.0", 80), id="IPv4"),
        pytest.param("logging.level", "WARN", "warning", id="level warn"),
        pytest.param("logging.level", "Warning", "warning", id="level warning"),
        pytest.param("logging.level", "trace", "debug", id="level trace"),
        pytest.param("logging.level", "panic", "panic", id="level panic"),
        pytest.param("logging.level", "", "error", id="level empty"),
        pytest.param("logging.level", None, "error", id="level null"),
        pytest.param("caching.max_age.current_metadata", "10", 10, id="max_age string"),
        pytest.param("caching.max_age.current_metadata", 10.0, 10, id="max_age float"),
        pytest.param("limits.idle_timeout", "1.5", 1.5, id="seconds string"),
        pytest.param("debug", "T", Address("localhost", 8080), id="boolean string"),
        pytest.param("debug", "False", None, id="boolean false"),
        pytest.param("debug", "localhost:8081", Address("localhost", 8081), id="debug on localhost"),
        pytest.param("debug", "127.0.0.2:0", Address("127.0.0.2", 0), id="debug on another loopback address"),
        pytest.param("debug", "[::1]:8080", Address("::1", 8080), id="debug on IPv6"),
        pytest.param("debug", {}, Address("localhost", 8080), id="debug object"),
        pytest.param("debug", {"address": "localhost:1"}, Address("localhost", 1), id="debug object with an address"),
        pytest.param(
            "debug", {"address": ":8080", "unsafe_any_interface": True}, Address("", 8080), id="debug for everybody"
        ),
        pytest.param("repositories.gun_prefixes", [], (), id="no prefixes"),
        pytest.param("repositories.gun_prefixes", "a/ b/c/", ("a/", "b/c/"), id="prefixes in one string"),
        pytest.param("auth.type", "", "", id="no authentication"),
        pytest.param("reporting.bugsnag.api_key", 5, "5", id="number for a string"),
    ],
)
def test_accepted_values(path: str, value: Any, expected: Any) -> None:
    loaded = read_server(server(path, value))
    assert value_of(loaded, path) == expected
    assert loaded.warnings == ()


@pytest.mark.parametrize(
    ("address", "text"),
    [
        pytest.param(Address("", 4443), ":4443", id="every interface"),
        pytest.param(Address("::1", 4443), "[::1]:4443", id="IPv6"),
        pytest.param(Address("localhost", 1), "localhost:1", id="name"),
    ],
)
def test_addresses_print_as_they_are_written(address: Address, text: str) -> None:
    assert str(address) == text


BAD_VALUES = [
    *(
        pytest.param(
            "server.http_addr", value, [json.dumps(value), "port number between 0 and 65535"], id=f"addr {value}"
        )
        for value in (
            *("4443", ":", "localhost", "localhost:https", ":65536", "::1:4443", "[::1]", "[127.0.0.1]:1", "[]:1"),
            *("*:4443", "1.2.3:4443", "256.1.1.1:4443", " :4443", ":4443\n", "-x:1", "http://localhost:4443", ":-1"),
            *(4443, [":4443"], {"port": 4443}, True),
        )
    ),
    pytest.param("server.tls_cert_file", 5, ["5", "the path of a file"], id="path number"),
    pytest.param("server.tls_cert_file", "a\0b", ["\\u0000", "the path of a file"], id="path with NUL"),
    pytest.param("trust_service.type", "Local", ['"Local"', '"local" or "remote"'], id="trust type"),
    pytest.param("trust_service.type", {}, ["{}", '"local" or "remote"'], id="trust type object"),
    pytest.param(
        "storage.backend", "rethinkdb", ['"rethinkdb"', '"mysql", "postgres", "sqlite3", "memory"'], id="rethink"
    ),
    pytest.param("storage.backend", ["memory"], ['["memory"]', '"sqlite3"'], id="backend list"),
    pytest.param("auth.type", "basic", ['"basic"', '"token"'], id="auth type"),
    pytest.param("logging.level", "loud", ['"loud"', "debug, info, warning, error, fatal, panic"], id="level"),
    pytest.param("logging.level", 2, ["2", "debug, info"], id="level number"),
    pytest.param("reporting.bugsnag.endpoint", [], ["[]", "a string"], id="string"),
    *(
        pytest.param("caching.max_age.current_metadata", value, ["0 and 31536000"], id=f"max_age {str(value)[:9]}")
        for value in (-1, 31536001, "-1", "many", "1.5", 1.5, True, [], "٣", int("9" * 999), 1e300)
    ),
    pytest.param(
        "caching.max_age.consistent_metadata", 31536001, ["31536001", "0 and 31536000"], id="max_age consistent"
    ),
    *(
        pytest.param(
            "repositories.gun_prefixes", value, [json.dumps(value)[:90], '"docker.io/"'], id=f"prefixes {value}"
        )
        for value in (
            *(
                ["docker.io"],
                ["/docker.io/"],
                ["docker.io//"],
                ["../a/"],
                ["a/../b/"],
                ["a/./b/"],
                [" a/"],
                [""],
                ["/"],
            ),
            *(["./"], ["a/", 5], {"a": 1}, 5, "a"),
        )
    ),
    pytest.param("limits.upload_bytes", 0, ["0", "at least 1"], id="upload size"),
    pytest.param("limits.body_rate", 0, ["0", "at least 1"], id="body rate"),
    pytest.param("limits.peer_bodies_bytes", 0, ["0", "at least 1"], id="share of a client"),
    pytest.param("limits.upload_bytes", "100MB", ['"100MB"', "at least 1"], id="upload unit"),
    *(
        pytest.param("limits.idle_timeout", value, ["a number of seconds above 0"], id=f"seconds {value}")
        for value in (0, -1, "nan", "inf", "soon", True, [], 1e300)
    ),
    *(
        pytest.param("debug", value, ["debug", "true, false", "unsafe_any_interface"], id=f"debug {value}")
        for value in (
            1,
            "yes",
            ":8080",
            "0.0.0.0:8080",
            "db7.internal:8080",
            {"address": "192.0.2.1:8080"},
            {"address": ":8080", "unsafe_any_interface": False},
            {"address": ":8080", "unsafe_any_interface": "please"},
            {"address": 8080},
            {"port": 8080},
        )
    ),
]


@pytest.mark.parametrize(("path", "value", "parts"), BAD_VALUES)
def test_bad_values(path: str, value: Any, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        read_server(server(path, value))
    assert_one_line(str(caught.value), path, parts)
