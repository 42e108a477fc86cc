"""URIs of keys in tokens: what is understood, and what is refused."""

from __future__ import annotations

import pytest

from notary.config import pkcs11
from notary.errors import ConfigError
from tests.support.configurations import SIGNER_STORAGE, read_signer, signer

PATHS = "?module-path=/usr/lib/m.so&pin-source=file:/run/pin"


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (f"token=a;object=b{PATHS}", ("a", "", "b", b"")),
        (f"object=b;token=a{PATHS}", ("a", "", "b", b"")),
        (
            f"token=My%20token;serial=00ff;object=b;id=%01%FF;type=secret-key{PATHS}",
            ("My token", "00ff", "b", b"\x01\xff"),
        ),
        (f"serial=1;id=%2B{PATHS}", ("", "1", "", b"+")),
    ],
)
def test_uris(place, expected):
    key = pkcs11.parse(place)
    assert (key.token, key.serial, key.object, key.id) == expected
    assert (key.module_path, key.pin_path) == ("/usr/lib/m.so", "/run/pin")


@pytest.mark.parametrize("source", ["/run/pin", "file:/run/pin", "file:///run/pin", "%2Frun%2Fpin"])
def test_files_of_pins(source):
    assert pkcs11.parse(f"token=a;object=b?module-path=/m.so&pin-source={source}").pin_path == "/run/pin"


def test_a_token_that_keeps_keys_inside():
    key = pkcs11.parse(f"token=a{PATHS}&keep=inside")
    assert (key.inside, key.object, key.name) == (True, "", "inside-a2d398922901")  # stored rows name it
    assert not pkcs11.parse(f"token=a;object=b{PATHS}").inside


BAD = [
    f"token=a;object=b{PATHS}&keep=inside",
    f"token=a{PATHS}&keep=outside",
    "token=a?module-path=/m.so&keep=inside",
    f"object=b{PATHS}&keep=inside",
    "",
    "token=a;object=b",
    f"token=a{PATHS}",
    f"object=b{PATHS}",
    f"token=a;object={PATHS}",
    f"token=a;token=a;object=b{PATHS}",
    f"token=a;object=b;type=private{PATHS}",
    f"token=a;object=b;slot-id=1{PATHS}",
    f"token=a;object=b%0A{PATHS}",
    f"token=a;object=%zz{PATHS}",
    f"token=a;object=%FF{PATHS}",
    "token=a;object=b?module-path=/m.so",
    "token=a;object=b?pin-source=/p",
    "token=a;object=b?module-path=m.so&pin-source=/p",
    "token=a;object=b?module-path=/m.so&pin-source=p",
    "token=a;object=b?module-path=/m.so&pin-source=file://host/p",
    f"token=a;object=b{PATHS}&pin-value=1234",
    f"token=a;object=b{PATHS}&x-other=1",
    f"token={'a' * 3000};object=b{PATHS}",
]


@pytest.mark.parametrize("place", BAD)
def test_what_is_refused(place):
    with pytest.raises(ValueError, match=r"."):
        pkcs11.parse(place)
    with pytest.raises(ConfigError) as caught:
        read_signer(signer(storage={**SIGNER_STORAGE, "keys": {"wrap": f"pkcs11:{place}"}}))
    assert str(caught.value).startswith("storage.keys.wrap: ")
    assert pkcs11.EXPECTED in str(caught.value)


def test_a_pin_in_a_bad_uri_is_not_shown():
    bad = "pkcs11:token=a;object=b?module-path=/m.so&pin-value=4711"
    for keys in ({"wrap": bad}, {"unwrap": [bad]}, {"unwrap": bad.upper()}):
        with pytest.raises(ConfigError) as caught:
            read_signer(signer(storage={**SIGNER_STORAGE, "default_alias": "a", "keys": keys}), NOTARY_SIGNER_A="p")
        assert "4711" not in str(caught.value)
        assert "the value (not shown) cannot be used" in str(caught.value)


def test_the_name_is_of_the_place_and_not_of_the_paths():
    one = pkcs11.parse(f"token=a;object=b{PATHS}")
    assert one.name == "pkcs11-1e150340af37"  # stored rows name it: it must stay as it is
    assert pkcs11.parse("object=b;token=a?module-path=/other.so&pin-source=/other").name == one.name
    for other in (f"token=a;object=c{PATHS}", f"serial=a;object=b{PATHS}", f"token=a;object=b;id=b{PATHS}"):
        assert pkcs11.parse(other).name != one.name
    assert str(one) == "token 'a', object 'b'"
