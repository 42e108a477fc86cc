"""URIs of keys in Transit: what is understood, and what is refused."""

from __future__ import annotations

import pytest

from notary.config import vault
from notary.errors import ConfigError
from tests.support.configurations import SIGNER_STORAGE, read_signer, signer

HOST = "https://vault.example.com:8200"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("token-file=/t", ("token", "/t", "", "token")),
        ("role-id=r-1&secret-id-file=/s", ("approle", "/s", "r-1", "approle")),
        ("role-id=r&secret-id-file=/s&auth-mount=a/b", ("approle", "/s", "r", "a/b")),
        ("kubernetes-role=n&jwt-file=/j", ("kubernetes", "/j", "n", "kubernetes")),
        ("kubernetes-role=n", ("kubernetes", vault.SERVICE_TOKEN, "n", "kubernetes")),
    ],
)
def test_logins(query, expected):
    key = vault.parse(f"{HOST}/transit/notary?{query}")
    assert (key.login, key.secret_path, key.role, key.auth_mount) == expected
    assert (key.url, key.mount, key.key, key.namespace, key.ca_path) == (HOST, "transit", "notary", "", "")


def test_places():
    key = vault.parse("https://[::1]:8200/team/transit/a.key?token-file=/t&namespace=/one/two/&ca-file=/ca")
    assert (key.url, key.mount, key.key, key.namespace, key.ca_path) == (
        "https://[::1]:8200",
        "team/transit",
        "a.key",
        "one/two",
        "/ca",
    )
    assert str(key) == "team/transit/a.key at https://[::1]:8200"


def test_the_name_is_of_the_place_and_not_of_the_address():
    one = vault.parse(f"{HOST}/transit/notary?token-file=/t")
    assert one.name == "vault-d1bbc0e4d9eb"  # stored rows name it: it must stay as it is
    assert vault.parse("https://other/transit/notary?kubernetes-role=n").name == one.name
    for other in (
        "/transit/other?token-file=/t",
        "/other/notary?token-file=/t",
        "/transit/notary?token-file=/t&namespace=n",
    ):
        assert vault.parse(HOST + other).name != one.name


BAD = [
    "",
    "http://vault:8200/transit/notary?token-file=/t",
    "//vault/transit/notary?token-file=/t",
    f"{HOST}/transit/notary",
    f"{HOST}/notary?token-file=/t",
    f"{HOST}/?token-file=/t",
    f"{HOST}/transit/../notary?token-file=/t",
    f"{HOST}/transit//notary?token-file=/t",
    f"{HOST}/transit/n%2Fotary?token-file=/t",
    f"{HOST}/transit/notary?token-file=t",
    f"{HOST}/transit/notary?token-file=/t&token-file=/t",
    f"{HOST}/transit/notary?token-file=/t&role-id=r",
    f"{HOST}/transit/notary?role-id=r",
    f"{HOST}/transit/notary?secret-id-file=/s",
    f"{HOST}/transit/notary?token=hvs.1",
    f"{HOST}/transit/notary?role-id=r&secret-id=s",
    f"{HOST}/transit/notary?token-file=/t&other=1",
    f"{HOST}/transit/notary?token-file=/t&ca-file=ca",
    f"{HOST}/transit/notary?token-file=/t&auth-mount=a/../b",
    f"{HOST}/transit/notary?token-file=/t&namespace=a%0Ab",
    f"{HOST}/transit/notary?token-file=/t#f",
    "https://user:password@vault:8200/transit/notary?token-file=/t",
    "https://vault:x/transit/notary?token-file=/t",
    "https://vault:99999/transit/notary?token-file=/t",
    "https://va ult/transit/notary?token-file=/t",
    "https://[::1/transit/notary?token-file=/t",
    f"{HOST}/transit/{'n' * 3000}?token-file=/t",
]


@pytest.mark.parametrize("place", BAD)
def test_what_is_refused(place):
    with pytest.raises(ValueError, match=r"."):
        vault.parse(place)
    with pytest.raises(ConfigError) as caught:
        read_signer(signer(storage={**SIGNER_STORAGE, "keys": {"wrap": f"vault:{place}"}}))
    assert str(caught.value).startswith("storage.keys.wrap: ")
    assert vault.EXPECTED in str(caught.value)


@pytest.mark.parametrize(
    "place",
    [
        f"{HOST}/transit/notary?token=4711",
        f"{HOST}/transit/notary?role-id=r&secret-id=4711",
        "https://user:4711@vault/transit/notary?token-file=/t",
    ],
)
def test_a_secret_in_a_bad_uri_is_not_shown(place):
    with pytest.raises(ConfigError) as caught:
        read_signer(signer(storage={**SIGNER_STORAGE, "keys": {"wrap": f"vault:{place}"}}))
    assert "4711" not in str(caught.value)
