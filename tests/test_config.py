"""The configuration: tables of what is accepted and of what is refused with which line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from notary import config
from notary.config import Address, Secret, load_server, load_signer
from notary.config.__main__ import reference
from notary.errors import ConfigError

DIRECTORY = "/etc/notary"
HIDDEN = "hunter2-hunter3-hunter4"


def server(path: str = "", value: Any = None, **sections: Any) -> dict[str, Any]:
    """A server configuration that is accepted, with other sections or one other value."""
    tree: dict[str, Any] = {
        "server": {"http_addr": ":4443"},
        "trust_service": {"type": "local"},
        "storage": {"backend": "memory"},
        **sections,
    }
    return put(tree, path, value)


def signer(path: str = "", value: Any = None, **sections: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "server": {"grpc_addr": ":7899", "tls_cert_file": "signer.crt", "tls_key_file": "signer.key"},
        "storage": {"backend": "memory"},
        **sections,
    }
    return put(tree, path, value)


def put(tree: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *parents, name = path.split(".")
    inner = tree
    for parent in parents:
        inner = inner.setdefault(parent, {})
    if name:
        inner[name] = value
    return tree


REMOTE = {"type": "remote", "hostname": "notarysigner", "port": "7899", "key_algorithm": "ecdsa"}
TOKEN = {
    "type": "token",
    "options": {"realm": "https://auth/token", "service": "notary", "issuer": "auth", "rootcertbundle": "auth.crt"},
}
MYSQL = {"backend": "mysql", "db_url": f"server:{HIDDEN}@tcp(mysql:3306)/notaryserver?parseTime=True"}
LIMITS: dict[str, Any] = {each.name: value for value, each in enumerate(dataclasses.fields(config.Limits), 1)}


def read_server(tree: Any, **environ: str) -> config.ServerConfig:
    return load_server(json.dumps(tree), environ, DIRECTORY)


def read_signer(tree: Any, **environ: str) -> config.SignerConfig:
    return load_signer(json.dumps(tree), environ, DIRECTORY)


def value_of(loaded: object, path: str) -> Any:
    for name in path.split("."):
        loaded = getattr(loaded, name)
    return loaded


# -- what is accepted -------------------------------------------------------------------------------------------------


def test_defaults() -> None:
    loaded = read_server(server())
    assert loaded.server == config.Server(http_addr=Address("", 4443))
    assert (loaded.server.tls_cert_file, loaded.server.tls_key_file, loaded.server.client_ca_file) == (None,) * 3
    assert loaded.trust_service == config.TrustService(type="local")
    assert loaded.storage == config.Storage(backend="memory")
    assert (loaded.auth.type, loaded.auth.options) == ("", config.TokenOptions())
    assert loaded.logging.level == "error"
    assert loaded.reporting.bugsnag.api_key == ""
    assert (loaded.caching.max_age.current_metadata, loaded.caching.max_age.consistent_metadata) == (300, 2592000)
    assert loaded.repositories.gun_prefixes == ()
    assert loaded.limits.upload_bytes == 100 * 1024 * 1024
    assert loaded.debug is None
    assert loaded.manhole == config.Manhole()
    assert loaded.warnings == ()


def test_every_key_of_the_server() -> None:
    loaded = read_server(
        {
            "server": {
                "http_addr": "127.0.0.1:4443",
                "tls_cert_file": "./server.crt",
                "tls_key_file": "keys/server.key",
                "client_ca_file": "/absolute/ca.crt",
            },
            "trust_service": {
                **REMOTE,
                "tls_ca_file": "root-ca.crt",
                "tls_client_cert": "client.crt",
                "tls_client_key": "../client.key",
            },
            "storage": MYSQL,
            "auth": {"type": "token", "options": {**TOKEN["options"], "autoredirect": True}},  # type: ignore[dict-item]
            "logging": {"level": "info"},
            "reporting": {"bugsnag": {"api_key": HIDDEN, "release_stage": "production", "endpoint": "https://bugs"}},
            "caching": {"max_age": {"current_metadata": 0, "consistent_metadata": 31536000}},
            "repositories": {"gun_prefixes": ["docker.io/", "my-own-registry.com/team/"]},
            "limits": LIMITS,
            "debug": True,
        }
    )
    assert loaded == config.ServerConfig(
        server=config.Server(
            http_addr=Address("127.0.0.1", 4443),
            tls_cert_file=Path("/etc/notary/server.crt"),
            tls_key_file=Path("/etc/notary/keys/server.key"),
            client_ca_file=Path("/absolute/ca.crt"),
        ),
        trust_service=config.TrustService(
            type="remote",
            hostname="notarysigner",
            port=7899,
            key_algorithm="ecdsa",
            tls_ca_file=Path("/etc/notary/root-ca.crt"),
            tls_client_cert=Path("/etc/notary/client.crt"),
            tls_client_key=Path("/etc/notary/../client.key"),
        ),
        storage=config.Storage(backend="mysql", db_url=Secret(MYSQL["db_url"])),
        auth=config.Auth(
            type="token",
            options=config.TokenOptions(
                realm="https://auth/token",
                service="notary",
                issuer="auth",
                rootcertbundle=Path("/etc/notary/auth.crt"),
                autoredirect=True,
            ),
        ),
        logging=config.Logging(level="info"),
        reporting=config.Reporting(
            bugsnag=config.Bugsnag(api_key=Secret(HIDDEN), release_stage="production", endpoint="https://bugs")
        ),
        caching=config.Caching(max_age=config.MaxAge(current_metadata=0, consistent_metadata=31536000)),
        repositories=config.Repositories(gun_prefixes=("docker.io/", "my-own-registry.com/team/")),
        limits=config.Limits(**LIMITS),
        debug=Address("localhost", 8080),
    )


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
    ("value", "expected"),
    [
        pytest.param("7899", 7899, id="string"),
        pytest.param(7899, 7899, id="number"),
        pytest.param("+1", 1, id="sign"),
    ],
)
def test_ports_of_the_trust_service(value: Any, expected: int) -> None:
    assert read_server(server(trust_service={**REMOTE, "port": value})).trust_service.port == expected


def test_a_local_trust_service_ignores_everything_else() -> None:
    tree = server(trust_service={"type": "local", "port": "many", "hostname": "?", "tls_client_cert": "only.crt"})
    assert read_server(tree).trust_service == config.TrustService(type="local")


def test_memory_ignores_the_url_and_no_authentication_its_options() -> None:
    tree = server(storage={"backend": "memory", "db_url": HIDDEN}, auth={"options": {"autoredirect": "perhaps"}})
    loaded = read_server(tree)
    assert loaded.storage.db_url == ""
    assert loaded.auth == config.Auth()


def test_letter_case_of_keys_does_not_matter() -> None:
    tree = {"SERVER": {"Http_Addr": ":1"}, "Trust_Service": {"TYPE": "local"}, "storage": {"backEnd": "memory"}}
    loaded = read_server(tree)
    assert loaded.server.http_addr == Address("", 1)
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


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        pytest.param("var/notary.db", "/etc/notary/var/notary.db", id="relative"),
        pytest.param("/srv/notary.db", "/srv/notary.db", id="absolute"),
        pytest.param(":memory:", ":memory:", id="in memory"),
        pytest.param("file:notary.db?mode=rwc", "file:notary.db?mode=rwc", id="URI"),
    ],
)
def test_paths_of_sqlite_files(url: str, expected: str) -> None:
    storage = {"backend": "sqlite3", "db_url": url}
    assert read_server(server(storage=storage)).storage.db_url == expected
    stored = read_signer(signer(storage={**storage, "default_alias": "a"}), NOTARY_SIGNER_A="p").storage
    assert stored.db_url == expected


# -- the environment --------------------------------------------------------------------------------------------------


def test_variables_override_the_file() -> None:
    loaded = read_server(
        server(trust_service=REMOTE, logging={"level": "error"}, storage=MYSQL),
        NOTARY_SERVER_TRUST_SERVICE_TYPE="local",
        NOTARY_SERVER_STORAGE_BACKEND="memory",
        NOTARY_SERVER_LOGGING_LEVEL="debug",
        NOTARY_SERVER_CACHING_MAX_AGE_CURRENT_METADATA="7",
        NOTARY_SERVER_REPOSITORIES_GUN_PREFIXES="docker.io/ quay.io/",
        NOTARY_SERVER_DEBUG="true",
        NOTARY_SERVER_SERVER_HTTP_ADDR="127.0.0.1:1",
        NOTARY_SIGNER_LOGGING_LEVEL="unused",
        PATH="/bin",
    )
    assert loaded.trust_service.type == "local"
    assert loaded.storage.backend == "memory"
    assert loaded.logging.level == "debug"
    assert loaded.caching.max_age.current_metadata == 7
    assert loaded.repositories.gun_prefixes == ("docker.io/", "quay.io/")
    assert loaded.debug == Address("localhost", 8080)
    assert loaded.server.http_addr == Address("127.0.0.1", 1)
    assert loaded.warnings == ()


def test_a_variable_is_enough() -> None:
    loaded = read_server(
        {"server": {"http_addr": ":1"}},
        NOTARY_SERVER_TRUST_SERVICE_TYPE="local",
        NOTARY_SERVER_STORAGE_BACKEND="postgres",
        NOTARY_SERVER_STORAGE_DB_URL="postgres://server@db/notaryserver",
    )
    assert loaded.storage.db_url == "postgres://server@db/notaryserver"


def test_empty_variables_count_as_absent() -> None:
    loaded = read_server(
        server(logging={"level": "info"}),
        NOTARY_SERVER_LOGGING_LEVEL="",
        NOTARY_SERVER_STORAGE="",
        NOTARY_SERVER_UNKNOWN="",
    )
    assert loaded.logging.level == "info"
    assert loaded.warnings == ()


@pytest.mark.parametrize(
    ("name", "value", "parts"),
    [
        pytest.param(
            "NOTARY_SERVER_STORAGE", "{}", ["names the section storage", "NOTARY_SERVER_STORAGE_"], id="a section"
        ),
        pytest.param(
            "NOTARY_SERVER_CACHING_MAX_AGE",
            "5",
            ["names the section caching.max_age", "NOTARY_SERVER_CACHING_MAX_AGE_C"],
            id="an inner section",
        ),
        pytest.param(
            "NOTARY_SERVER_CACHING_MAX_AGE_CURRENT_METADATA", "many", ['"many"', "0 and 31536000"], id="not a number"
        ),
        pytest.param("NOTARY_SERVER_DEBUG", "perhaps", ['"perhaps"', "true, false"], id="not a boolean"),
        pytest.param("NOTARY_SERVER_SERVER_HTTP_ADDR", "4443", ['"4443"', '":port"'], id="not an address"),
        pytest.param("NOTARY_SERVER_LOGGING_LEVEL", "loud\nINFO", ['"loud\\nINFO"', "debug, info"], id="two lines"),
    ],
)
def test_bad_variables(name: str, value: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        read_server(server(), **{name: value})
    assert_one_line(str(caught.value), name, parts)


# -- what is refused --------------------------------------------------------------------------------------------------


def assert_one_line(message: str, name: str, parts: list[str]) -> None:
    assert message.startswith(f"{name}: ")
    assert "expected" in message
    assert message.isprintable()
    assert HIDDEN not in message
    for part in parts:
        assert part in message


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


@pytest.mark.parametrize(
    ("path", "value"),
    [
        pytest.param("trust_service.hostname", "a b", id="host name"),
        pytest.param("trust_service.hostname", "", id="no host name"),
        pytest.param("trust_service.port", "https", id="port name"),
        pytest.param("trust_service.port", 0, id="port 0"),
        pytest.param("trust_service.port", 65536, id="port 65536"),
        pytest.param("trust_service.key_algorithm", "dsa", id="algorithm"),
        pytest.param("trust_service.key_algorithm", None, id="no algorithm"),
        pytest.param("auth.options.realm", "", id="no realm"),
        pytest.param("auth.options.issuer", None, id="no issuer"),
        pytest.param("auth.options.service", {}, id="service"),
        pytest.param("auth.options.rootcertbundle", "", id="no bundle"),
        pytest.param("auth.options.autoredirect", "maybe", id="autoredirect"),
        pytest.param("storage.db_url", "", id="no url"),
        pytest.param("storage.db_url", [HIDDEN], id="secret url"),
        pytest.param("reporting.bugsnag.api_key", {"key": HIDDEN}, id="secret API key"),
    ],
)
def test_bad_values_of_keys_that_others_turn_on(path: str, value: Any) -> None:
    tree = json.loads(json.dumps(server(trust_service=REMOTE, auth=TOKEN, storage=MYSQL)))
    with pytest.raises(ConfigError) as caught:
        read_server(put(tree, path, value))
    assert_one_line(str(caught.value), path, [])


@pytest.mark.parametrize(
    "path", ["server.http_addr", "trust_service.type", "storage.backend"], ids=["address", "trust service", "storage"]
)
def test_required_keys(path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_server(server(path, None))
    assert_one_line(str(caught.value), path, ["missing"])


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        pytest.param("server.tls_cert_file", "server.tls_key_file", id="certificate"),
        pytest.param("server.tls_key_file", "server.tls_cert_file", id="key"),
        pytest.param("server.client_ca_file", "server.tls_cert_file", id="clients without TLS"),
        pytest.param("trust_service.tls_client_cert", "trust_service.tls_client_key", id="client certificate"),
        pytest.param("trust_service.tls_client_key", "trust_service.tls_client_cert", id="client key"),
        pytest.param("reporting.bugsnag.release_stage", "reporting.bugsnag.api_key", id="stage"),
        pytest.param("reporting.bugsnag.endpoint", "reporting.bugsnag.api_key", id="endpoint"),
    ],
)
def test_keys_that_need_each_other(given: str, missing: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_server(server(given, "x", trust_service=dict(REMOTE)))
    assert_one_line(str(caught.value), missing, ["missing", f"because {given} is given"])


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


# -- warnings ---------------------------------------------------------------------------------------------------------


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


def test_unknown_variables_are_warned_about() -> None:
    loaded = read_server(server(), NOTARY_SERVER_STORAGE_DBURL=HIDDEN)
    (warning,) = loaded.warnings
    assert warning.startswith("NOTARY_SERVER_STORAGE_DBURL: names no known key, ignored; ")
    assert warning.endswith(" NOTARY_SERVER_STORAGE_DB_URL")
    assert HIDDEN not in warning


# -- the signer -------------------------------------------------------------------------------------------------------


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


SIGNER_STORAGE = {"backend": "mysql", "db_url": f"signer:{HIDDEN}@tcp(mysql:3306)/notarysigner"}


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


# -- the whole --------------------------------------------------------------------------------------------------------


def test_repr_hides_secrets() -> None:
    tree = server(storage=MYSQL, reporting={"bugsnag": {"api_key": HIDDEN}})
    assert HIDDEN not in repr(read_server(tree))
    loaded = read_signer(signer(storage={**SIGNER_STORAGE, "default_alias": "a"}), NOTARY_SIGNER_A=HIDDEN)
    assert HIDDEN not in repr(loaded)


def test_configurations_are_frozen() -> None:
    loaded = read_server(server())
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.server.http_addr = Address("", 1)  # type: ignore[misc]
    with pytest.raises(TypeError):
        read_signer(signer(), NOTARY_SIGNER_A="x").passphrases["B"] = Secret("y")  # type: ignore[index]


def test_the_reference_documentation_is_current() -> None:
    page = Path(config.__file__).parents[2] / "docs" / "configuration.md"
    assert page.read_text("utf-8") == reference(), "run: python -m notary.config > docs/configuration.md"


# -- the connections of a store ----------------------------------------------------------------------------------------


def test_connections_and_time_outs_of_a_database():
    tree = server(storage={**MYSQL, "connections": 40, "connect_timeout": 2, "query_timeout": "1.5"})
    storage = read_server(tree, NOTARY_SERVER_STORAGE_CONNECTIONS="50").storage
    assert (storage.connections, storage.connect_timeout, storage.query_timeout) == (50, 2.0, 1.5)


def test_they_are_the_same_for_the_signer_and_have_defaults():
    tree = signer(storage={**SIGNER_STORAGE, "default_alias": "a", "connections": 3})
    storage = read_signer(tree, NOTARY_SIGNER_A=HIDDEN).storage
    assert (storage.connections, storage.connect_timeout, storage.query_timeout) == (3, 5.0, 10.0)


def test_an_sqlite_file_has_no_such_settings():
    tree = server(storage={"backend": "sqlite3", "db_url": "f", "connections": "many", "query_timeout": -1})
    assert read_server(tree).storage.connections == 10


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param("connections", 0, id="none"),
        pytest.param("connections", 10_001, id="too-many"),
        pytest.param("connections", "ten", id="words"),
        pytest.param("connect_timeout", 0, id="no-time"),
        pytest.param("query_timeout", -1, id="negative"),
        pytest.param("query_timeout", "soon", id="no-number"),
    ],
)
def test_settings_of_connections_that_cannot_be_used(key, value):
    with pytest.raises(ConfigError) as caught:
        read_server(server(storage={**MYSQL, key: value}))
    assert_one_line(str(caught.value), f"storage.{key}", ["expected", "number"])
