"""Variables of the environment: what they override, and which of them are refused or warned about."""

from __future__ import annotations

import pytest

from notary.config import Address
from notary.errors import ConfigError
from tests.support.configurations import (
    HIDDEN,
    MYSQL,
    REMOTE,
    assert_one_line,
    read_server,
    read_signer,
    server,
    signer,
)


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


def test_unknown_variables_are_warned_about() -> None:
    loaded = read_server(server(), NOTARY_SERVER_STORAGE_DBURL=HIDDEN)
    (warning,) = loaded.warnings
    assert warning.startswith("NOTARY_SERVER_STORAGE_DBURL: names no known key, ignored; ")
    assert warning.endswith(" NOTARY_SERVER_STORAGE_DB_URL")
    assert HIDDEN not in warning


def links(service: str) -> dict[str, str]:
    """The variables that Kubernetes makes for a service of two ports, in a cluster of IPv4 or of IPv6."""
    found = {}
    for name, address in ((service, "10.3.240.7"), (f"{service}_V6", "fd00:10:96::a3f")):
        shown = f"[{address}]" if ":" in address else address
        found |= {
            f"{name}_SERVICE_HOST": address,
            f"{name}_SERVICE_PORT": "4443",
            f"{name}_SERVICE_PORT_HTTPS": "4443",
            f"{name}_SERVICE_PORT_DNS_UDP": "53",
            f"{name}_PORT": f"tcp://{shown}:4443",
        }
        for port, protocol in ((4443, "tcp"), (53, "udp"), (7, "sctp")):
            start = f"{name}_PORT_{port}_{protocol.upper()}"
            found |= {
                start: f"{protocol}://{shown}:{port}",
                f"{start}_PROTO": protocol,
                f"{start}_PORT": str(port),
                f"{start}_ADDR": address,
            }
    return found


def test_variables_that_kubernetes_makes_for_a_service() -> None:
    made = links("NOTARY_SERVER") | links("NOTARY_SERVER_METRICS")
    (warning,) = read_server(server(), **made).warnings
    assert warning.startswith(f"{min(made)} and {len(made) - 1} more: set by Kubernetes")
    assert "enableServiceLinks: false" in warning
    (warning, *_) = read_server(server(), NOTARY_SERVER_PORT="tcp://10.0.0.1:4443").warnings
    assert warning.startswith("NOTARY_SERVER_PORT: set by Kubernetes")


def test_they_are_no_passphrases_of_the_signer() -> None:
    loaded = read_signer(signer(), **links("NOTARY_SIGNER"), NOTARY_SIGNER_SERVICE_PORTER=HIDDEN)
    assert dict(loaded.passphrases) == {"SERVICE_PORTER": HIDDEN}
    assert len(loaded.warnings) == 1


@pytest.mark.parametrize("alias", ["PORT", "MY_PORT", "SERVICE_HOST", "SERVICE_PORT", "PORT_7_TCP", "PORT_7_TCP_ADDR"])
def test_an_alias_with_such_a_name_has_its_passphrase(alias: str) -> None:
    loaded = read_signer(signer(), **{f"NOTARY_SIGNER_{alias}": HIDDEN})
    assert dict(loaded.passphrases) == {alias: HIDDEN}
    assert loaded.warnings == ()
