"""The server's configuration: its sections, their defaults, and the keys that depend on others."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from notary import config
from notary.config import Address, Secret
from notary.errors import ConfigError
from tests.support.configurations import HIDDEN, MYSQL, REMOTE, TOKEN, assert_one_line, put, read_server, server


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


LIMITS: dict[str, Any] = {each.name: value for value, each in enumerate(dataclasses.fields(config.Limits), 1)}


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
    ("value", "expected"),
    [
        pytest.param("7899", 7899, id="string"),
        pytest.param(7899, 7899, id="number"),
        pytest.param("+1", 1, id="sign"),
    ],
)
def test_ports_of_the_trust_service(value: Any, expected: int) -> None:
    assert read_server(server(trust_service={**REMOTE, "port": value})).trust_service.port == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(None, [("notarysigner", 7899)], id="none"),
        pytest.param(["one"], [("one", 7899)], id="host"),
        pytest.param(["one:1", "two"], [("one", 1), ("two", 7899)], id="host with a port"),
        pytest.param("one:1 two", [("one", 1), ("two", 7899)], id="one string"),
        pytest.param(["192.0.2.1:1", "192.0.2.2"], [("192.0.2.1", 1), ("192.0.2.2", 7899)], id="IPv4"),
        pytest.param(
            ["[2001:db8::1]:1", "[2001:db8::2]", "2001:db8::3"],
            [("2001:db8::1", 1), ("2001:db8::2", 7899), ("2001:db8::3", 7899)],
            id="IPv6",
        ),
        pytest.param(["one", "one:1"], [("one", 7899), ("one", 1)], id="two on one host"),
    ],
)
def test_where_the_signers_are(value: Any, expected: list[tuple[str, int]]) -> None:
    trust = {**REMOTE, "hostname": "notarysigner", "port": 7899, "addresses": value}
    assert list(read_server(server(trust_service=trust)).trust_service.signers) == expected


def test_a_local_trust_service_ignores_everything_else() -> None:
    tree = server(trust_service={"type": "local", "port": "many", "hostname": "?", "tls_client_cert": "only.crt"})
    assert read_server(tree).trust_service == config.TrustService(type="local")


def test_memory_ignores_the_url_and_no_authentication_its_options() -> None:
    tree = server(storage={"backend": "memory", "db_url": HIDDEN}, auth={"options": {"autoredirect": "perhaps"}})
    loaded = read_server(tree)
    assert loaded.storage.db_url == ""
    assert loaded.auth == config.Auth()


@pytest.mark.parametrize(
    "path", ["server.http_addr", "trust_service.type", "storage.backend"], ids=["address", "trust service", "storage"]
)
def test_required_keys(path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_server(server(path, None))
    assert_one_line(str(caught.value), path, ["missing"])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        pytest.param("trust_service.hostname", "a b", id="host name"),
        pytest.param("trust_service.hostname", "", id="no host name"),
        pytest.param("trust_service.port", "https", id="port name"),
        pytest.param("trust_service.port", 0, id="port 0"),
        pytest.param("trust_service.port", 65536, id="port 65536"),
        pytest.param("trust_service.addresses", 5, id="addresses: a number"),
        pytest.param("trust_service.addresses", [], id="addresses: none"),
        pytest.param("trust_service.addresses", [""], id="addresses: empty"),
        pytest.param("trust_service.addresses", [":7899"], id="addresses: no host"),
        pytest.param("trust_service.addresses", ["one:0"], id="addresses: port 0"),
        pytest.param("trust_service.addresses", ["one:x"], id="addresses: port name"),
        pytest.param("trust_service.addresses", ["one two"], id="addresses: two in one"),
        pytest.param("trust_service.addresses", ["one", "one"], id="addresses: one twice"),
        pytest.param("trust_service.addresses", ["[one]"], id="addresses: a name in brackets"),
        pytest.param("trust_service.addresses", ["[::1"], id="addresses: half a bracket"),
        pytest.param("trust_service.addresses", [{"host": "one"}], id="addresses: an object"),
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
