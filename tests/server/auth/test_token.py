"""Bearer tokens: who is let through, and what the challenge says to others. The time is far from today's, so that
nothing can read a clock of its own.
"""

from __future__ import annotations

import base64
import json
import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_der_public_key
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL._util import lib as openssl

from notary.certs import Certificate
from notary.errors import ConfigError, Unauthorized
from notary.server.auth import AccessController
from notary.server.auth import token as token_auth
from notary.server.auth.none import NoAuth
from notary.server.auth.token import (
    LEEWAY,
    MAX_CHAIN_CERTIFICATES,
    MAX_STRUCTURE,
    MAX_TOKEN_CHARACTERS,
    TokenAuth,
    load_bundle,
)
from tests.support.certs import as_read
from tests.support.oddrsa import EXPONENT_32, OddKey
from tests.support.tokens import (
    ACCEPTED,
    CASES,
    GUN,
    ISSUER,
    NO_TOKEN,
    REALM,
    SERVICE,
    Case,
    World,
    encode,
    fingerprint,
    public_jwk,
    self_signed,
    token,
    x5c,
)

NOW = datetime(2031, 5, 17, 12, 0, 0, tzinfo=UTC)
PULL = (("repository", GUN, "pull"),)
HOST = "notary.example.com:4443"


@pytest.fixture(scope="module")
def world() -> World:
    return World(NOW)


@pytest.fixture(scope="module")
def bundle(world) -> tuple[Certificate, ...]:
    return as_read(*(holder.certificate for holder in world.trusted))


@pytest.fixture(scope="module")
def access(bundle) -> TokenAuth:
    return TokenAuth(REALM, SERVICE, ISSUER, bundle)


@pytest.fixture(autouse=True)
def openssl_is_left_without_errors():
    """An error that stays in OpenSSL's queue would end the next TLS connection that is read."""
    yield
    assert openssl.ERR_peek_error() == 0


def authorize(controller: AccessController, authorization: str | None, asked=PULL, host=HOST, now=NOW) -> str:
    return controller.authorize(authorization, host, asked, now)


def refused(controller: AccessController, authorization: str | None, asked=PULL, host=HOST, now=NOW) -> Unauthorized:
    with pytest.raises(Unauthorized) as caught:
        authorize(controller, authorization, asked, host, now)
    return caught.value


def assert_clean(error: Unauthorized, authorization: str | None) -> None:
    """No piece of the token of any length that would matter is in what the error says."""
    shown = f"{error} {error!r} {error.challenge}"
    for part in re.split(r"[ .]", authorization or ""):
        assert len(part) < 12 or part[:12] not in shown
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None


# -- the table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_verdict(world, access, case: Case):
    authorization = case.authorization(world)
    if case.verdict == ACCEPTED:
        assert authorize(access, authorization) in {"alice", ""}
        return
    error = refused(access, authorization)
    expected = f'Bearer realm="{REALM}",service="{SERVICE}",scope="repository:{GUN}:pull"'
    if case.verdict != NO_TOKEN:
        expected += f',error="{case.verdict}"'
    assert error.challenge == expected
    assert error.access == PULL
    assert_clean(error, authorization)


def test_every_case_has_its_own_name():
    assert len({case.name for case in CASES}) == len(CASES)


def test_the_subject_is_told(world, access):
    assert authorize(access, world.good(sub="bob")) == "bob"
    assert authorize(access, world.good(sub=None)) == ""


@pytest.mark.parametrize("controller", [pytest.param(NoAuth(), id="no authentication")])
def test_without_authentication_everybody_may_do_everything(controller: AccessController):
    assert authorize(controller, None, (("repository", GUN, "*"), ("registry", "catalog", "*"))) == ""
    assert authorize(controller, "Bearer garbage", ()) == ""


# -- time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claim", "edge", "inside"),
    [
        pytest.param("exp", -LEEWAY, timedelta(microseconds=1), id="exp"),
        pytest.param("nbf", LEEWAY, -timedelta(microseconds=1), id="nbf"),
    ],
)
def test_leeway_ends_exactly_at_a_minute(world, access, claim, edge, inside):
    authorization = world.good(**{claim: world.seconds(int(edge.total_seconds()))})
    assert authorize(access, authorization) == "alice"
    assert 'error="invalid_token"' in refused(access, authorization, now=NOW + inside).challenge


def test_the_zone_of_now_does_not_matter(world, access):
    elsewhere = NOW.astimezone(timezone(timedelta(hours=-11)))
    brief = world.root.issue("brief", world.ec.key, NOW, start=-timedelta(hours=1), end=timedelta(hours=1))
    assert authorize(access, world.good(exp=world.seconds(-59)), now=elsewhere) == "alice"
    assert authorize(access, world.chained(brief), now=elsewhere) == "alice"


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(timedelta(days=-2, seconds=-1), id="before the certificate"),
        pytest.param(timedelta(days=2, seconds=1), id="after the certificate"),
    ],
)
@pytest.mark.parametrize("way", ["x5c", "kid", "jwk"])
def test_certificates_are_checked_at_now(world, access, moment, way):
    """Without leeway, whichever way the token names its key."""
    inside = moment - timedelta(seconds=2) if moment > timedelta() else moment + timedelta(seconds=2)
    holder = world.under_root if way == "x5c" else world.ec
    header = {
        "x5c": {"x5c": x5c(holder.certificate)},
        "kid": {"kid": fingerprint(holder.key)},
        "jwk": {"jwk": public_jwk(holder.key)},
    }[way]
    claims = world.claims(exp=world.seconds(10**7), nbf=0)
    authorization = f"Bearer {token({'alg': 'ES256'} | header, claims, holder.key)}"
    assert authorize(access, authorization, now=NOW + inside) == "alice"
    message = "does not lead" if way == "x5c" else "the certificate of its key has expired, or is not valid yet"
    assert message in str(refused(access, authorization, now=NOW + moment))


# -- rights -----------------------------------------------------------------------------------------------------------


def grants(*rights: tuple[str, str, str]) -> list[dict[str, object]]:
    return [{"type": kind, "name": name, "actions": [action]} for kind, name, action in rights]


CATALOG = ("registry", "catalog", "*")


@pytest.mark.parametrize(
    ("asked", "given", "enough"),
    [
        pytest.param((), (), True, id="nothing asked"),
        pytest.param((("repository", GUN, "push"), *PULL), PULL, False, id="half of it"),
        pytest.param((("repository", GUN, "push"), *PULL), (*PULL, ("repository", GUN, "push")), True, id="both"),
        pytest.param((("repository", GUN, "*"),), PULL, False, id="star asked"),
        pytest.param((("repository", GUN, "*"),), (("repository", GUN, "*"),), True, id="star asked and given"),
        pytest.param((CATALOG,), (CATALOG,), True, id="catalogue"),
        pytest.param((CATALOG,), (("registry", "catalog", "pull"),), False, id="catalogue, only pull"),
        pytest.param((CATALOG,), (("repository", "catalog", "*"),), False, id="a collection named catalog"),
        pytest.param((*PULL, ("repository", "other", "pull")), PULL, False, id="second resource missing"),
    ],
)
def test_every_right_that_is_asked_must_be_given(world, access, asked, given, enough):
    authorization = world.good(access=grants(*given))
    if enough:
        assert authorize(access, authorization, asked) == "alice"
    else:
        assert refused(access, authorization, asked).challenge.endswith(',error="insufficient_scope"')


# -- the challenge ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "scope"),
    [
        pytest.param((), "", id="nothing asked"),
        pytest.param(
            (("repository", GUN, "push"), ("repository", GUN, "pull")), f'scope="repository:{GUN}:push,pull"', id="two"
        ),
        pytest.param(
            (("repository", "a", "push"), ("registry", "catalog", "*"), ("repository", "a", "pull")),
            'scope="repository:a:push,pull registry:catalog:*"',
            id="two resources",
        ),
        pytest.param((*PULL, *PULL), f'scope="repository:{GUN}:pull"', id="asked twice"),
        pytest.param((("repository", 'a"b', "pull"),), r'scope="repository:a\"b:pull"', id="quote"),
        pytest.param((("repository", "a\\", "pull"),), r'scope="repository:a\\:pull"', id="backslash"),
        pytest.param((("repository", "a\r\nX: y", "pull"),), r'scope="repository:a\r\nX: y:pull"', id="line break"),
        pytest.param(
            (("repository", "a\x00\x1b\x7f", "pull"),), r'scope="repository:a\x00\x1b\x7f:pull"', id="control"
        ),
        pytest.param((("repository", "a\u2028", "pull"),), r'scope="repository:a\u2028:pull"', id="line separator"),
        pytest.param((("repository", "a\udcff", "pull"),), r'scope="repository:a\udcff:pull"', id="lone surrogate"),
        pytest.param((("repository", "a\U000e0001", "pull"),), r'scope="repository:a\U000e0001:pull"', id="tag"),
        pytest.param((("repository", "é", "pull"),), 'scope="repository:\xc3\xa9:pull"', id="UTF-8 on the wire"),
    ],
)
def test_scope(access, asked, scope):
    start = f'Bearer realm="{REALM}",service="{SERVICE}"'
    assert refused(access, None, asked).challenge == (f"{start},{scope}" if scope else start)


def test_realm_and_service_are_quoted_too(bundle):
    controller = TokenAuth('https://a/"b', "c\nd", ISSUER, bundle)
    assert refused(controller, None, ()).challenge == r'Bearer realm="https://a/\"b",service="c\nd"'


@pytest.mark.parametrize(
    ("host", "realm"),
    [
        pytest.param(HOST, f"https://{HOST}/auth/token", id="name and port"),
        pytest.param("notary_server", "https://notary_server/auth/token", id="name"),
        pytest.param("127.0.0.1:4443", "https://127.0.0.1:4443/auth/token", id="IPv4"),
        pytest.param("[2001:db8::1]:4443", "https://[2001:db8::1]:4443/auth/token", id="IPv6"),
        pytest.param("", REALM, id="none"),
        pytest.param("evil.example.com/?", REALM, id="path"),
        pytest.param("user@evil.example.com", REALM, id="user"),
        pytest.param('a",error="x', REALM, id="quote"),
        pytest.param("a\r\nSet-Cookie: x", REALM, id="line break"),
        pytest.param("a\n", REALM, id="line break at the end"),
        pytest.param("a:b", REALM, id="port that is no number"),
        pytest.param("a:123456", REALM, id="port of six digits"),
        pytest.param("é.example.com", REALM, id="not ASCII"),
    ],
)
def test_autoredirect_sends_clients_to_the_host_that_they_asked(bundle, host, realm):
    controller = TokenAuth(REALM, SERVICE, ISSUER, bundle, autoredirect=True)
    assert refused(controller, None, (), host).challenge == f'Bearer realm="{realm}",service="{SERVICE}"'


def test_without_autoredirect_the_host_does_not_matter(access):
    assert refused(access, None, (), HOST).challenge == f'Bearer realm="{REALM}",service="{SERVICE}"'


# -- work is bounded --------------------------------------------------------------------------------------------------


def test_tokens_up_to_the_limit_are_read_and_longer_ones_are_not(world, access):
    spare = MAX_TOKEN_CHARACTERS - len(world.good(pad="").removeprefix("Bearer "))
    authorization = world.good(pad="x" * (spare * 3 // 4 - 2))
    assert MAX_TOKEN_CHARACTERS - 8 <= len(authorization) - len("Bearer ") <= MAX_TOKEN_CHARACTERS
    assert authorize(access, authorization) == "alice"
    longer = world.good(pad="x" * (spare * 3 // 4 + 8))
    assert str(refused(access, longer)) == "the token is not accepted: it is too long"
    assert "too long" in str(refused(access, "Bearer " + "." * 10_000_000))


@pytest.mark.parametrize("filler", ["null", "{}"])
def test_a_token_holds_a_bounded_number_of_things_and_none_is_looked_at_before_its_signature(
    world, access, monkeypatch, filler
):
    looked_at = []
    real = token_auth.Members

    def members(value, known, where, **options):
        looked_at.append(where)
        return real(value, known, where, **options)

    monkeypatch.setattr(token_auth, "Members", members)

    def signed(count, key):
        claims = json.dumps(world.claims() | {"access": []})
        filled = claims.replace('"access": []', f'"access": [{",".join([filler] * count)}]')
        return "Bearer " + token({"alg": "ES256", "kid": fingerprint(world.ec.key)}, filled.encode(), key)

    half = MAX_STRUCTURE // 2 - 20
    for key, said, grants in (
        (world.foreign.key, "signature is wrong", 0),
        (world.ec.key, "does not give the rights", half),
    ):
        looked_at.clear()
        assert said in str(refused(access, signed(half, key)))
        assert looked_at.count("its access") == grants
    looked_at.clear()
    assert "its body holds too much" in str(refused(access, signed(MAX_STRUCTURE + 1, world.ec.key)))
    assert len(looked_at) <= 1


def test_chains_up_to_the_limit_are_followed_and_longer_ones_are_not(world, access):
    more = [world.foreign.certificate] * (MAX_CHAIN_CERTIFICATES - 1)
    assert authorize(access, world.headed(world.under_root, x5c=x5c(world.under_root.certificate, *more))) == "alice"
    longer = x5c(world.under_root.certificate, *more, world.foreign.certificate)
    assert "too long" in str(refused(access, world.headed(world.under_root, x5c=longer)))


# -- the bundle -------------------------------------------------------------------------------------------------------


def test_ed25519_of_the_bundle_signs_tokens(world):
    signer = self_signed("ed25519", ed25519.Ed25519PrivateKey.generate(), NOW)
    controller = TokenAuth(REALM, SERVICE, ISSUER, as_read(signer.certificate))
    assert authorize(controller, world.headed(signer, "EdDSA", kid=fingerprint(signer.key))) == "alice"
    assert authorize(controller, world.headed(signer, "EdDSA", jwk=public_jwk(signer.key))) == "alice"
    refused(controller, world.headed(signer, "Ed25519", kid=fingerprint(signer.key)))  # known to the library, not to us


def test_a_certificate_may_be_in_the_bundle_twice(world):
    controller = TokenAuth(REALM, SERVICE, ISSUER, as_read(world.root.certificate) * 2)
    assert authorize(controller, world.chained(world.leaf, world.middle)) == "alice"


def test_private_parts_of_a_jwk_do_not_matter(world, access):
    jwk = public_jwk(world.ec.key, d=encode(b"\x01" * 32), use="enc", key_ops=["encrypt"])
    assert authorize(access, world.headed(world.ec, jwk=jwk)) == "alice"


def test_a_bundle_is_loaded_in_its_order_without_what_is_not_a_certificate(world, tmp_path: Path):
    path = tmp_path / "bundle.pem"
    key = world.ec.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(b"text before\n" + key + world.bundle + key)
    assert load_bundle(path) == as_read(*(holder.certificate for holder in world.trusted))


DAMAGED = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "cannot be read (No such file or directory)", id="missing"),
        pytest.param(b"", "holds no certificate", id="empty"),
        pytest.param(b"\xff\x00 text", "holds no certificate", id="binary"),
        pytest.param(
            b"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n", "holds no certificate", id="only a key"
        ),
        pytest.param(DAMAGED, "holds a damaged certificate", id="damaged"),
        pytest.param(DAMAGED[:30], "holds a damaged certificate", id="truncated"),
    ],
)
def test_a_bundle_that_cannot_be_used_is_a_configuration_error(tmp_path: Path, content, message):
    path = tmp_path / "bundle.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_bundle(path)
    assert str(caught.value) == (f'auth.options.rootcertbundle: "{path}" {message}; expected certificates as PEM')


def test_one_damaged_certificate_among_good_ones_is_a_configuration_error(world, tmp_path: Path):
    path = tmp_path / "bundle.pem"
    path.write_bytes(world.bundle + DAMAGED)
    with pytest.raises(ConfigError, match="damaged"):
        load_bundle(path)


def test_a_folder_is_no_bundle(tmp_path: Path):
    with pytest.raises(ConfigError, match=re.escape(f'auth.options.rootcertbundle: "{tmp_path}" cannot be read')):
        load_bundle(tmp_path)


class OddPrivate:
    """As much of a private key as it takes to get a certificate from somebody else."""

    def __init__(self, odd: OddKey) -> None:
        self._odd = odd

    def public_key(self):
        return load_der_public_key(self._odd.public)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: ec.generate_private_key(ec.SECP256K1()), id="secp256k1"),
        pytest.param(lambda: ec.generate_private_key(ec.SECP224R1()), id="P-224"),
        pytest.param(lambda: dsa.generate_private_key(1024), id="DSA"),
        pytest.param(ed448.Ed448PrivateKey.generate, id="Ed448"),
        pytest.param(lambda: OddPrivate(OddKey(primes=9)), id="RSA-9216"),
        pytest.param(lambda: OddPrivate(OddKey(exponent=EXPONENT_32)), id="RSA-exponent-of-32-bits"),
    ],
)
def test_keys_that_sign_no_tokens_are_refused_in_bundle_and_token(world, access, tmp_path: Path, make):
    leaf = world.root.issue("other key", make(), NOW)
    path = tmp_path / "bundle.pem"
    path.write_bytes(world.bundle + leaf.certificate.public_bytes(Encoding.PEM))
    with pytest.raises(ConfigError, match=r'holds a certificate, "CN=other key", whose key signs no tokens'):
        load_bundle(path)
    authorization = world.headed(world.ec, x5c=x5c(leaf.certificate))
    assert "not a certificate of a usable key" in str(refused(access, authorization))


# -- any header -------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(authorization=st.text() | st.text().map("Bearer {}".format) | st.binary().map(lambda raw: raw.decode("latin-1")))
def test_no_text_is_let_through_or_breaks_anything(access, authorization):
    refused(access, authorization)


@given(
    header=st.fixed_dictionaries({}, optional=dict.fromkeys(("alg", "kid", "x5c", "jwk", "typ"), JSON)),
    claims=st.fixed_dictionaries({}, optional=dict.fromkeys(("iss", "aud", "exp", "nbf", "access", "sub"), JSON)),
)
def test_no_json_is_let_through_or_breaks_anything(world, access, header, claims):
    key = {"kid": fingerprint(world.ec.key)}
    for some_header in (header, {"alg": "ES256", **key}):
        for some_claims in (claims, world.claims(access=[]) | claims):
            parts = (encode(json.dumps(part).encode()) for part in (some_header, some_claims))
            refused(access, f"Bearer {'.'.join(parts)}.AAAA")


@given(
    header=st.fixed_dictionaries(
        {},
        optional={
            "x5c": JSON,
            "jwk": JSON
            | st.dictionaries(
                st.sampled_from(["kty", "crv", "x", "y", "n", "e", "x5c"]),
                JSON | st.sampled_from(["EC", "RSA", "OKP", "P-256"]),
            ),
        },
    )
)
def test_no_signed_json_breaks_anything(world, access, header):
    """The keys that a header brings, with all else in order, so that they are looked at."""
    refused(access, world.headed(world.ec, **header))


@given(raw=st.binary(max_size=64), chain=st.lists(st.binary(max_size=64), max_size=3))
def test_no_bytes_as_certificates_break_anything(world, access, raw, chain):
    texts = [base64.b64encode(item).decode() for item in (raw, *chain)]
    refused(access, world.headed(world.ec, x5c=texts))


@given(data=st.data())
def test_a_token_with_one_other_character_is_another_token(world, access, data):
    authorization = world.by_kid(world.rsa, "RS256")
    end = authorization.rindex(".")
    position = data.draw(st.integers(len("Bearer "), end))
    character = data.draw(st.characters(codec="ascii").filter(lambda found: found != authorization[position]))
    changed = authorization[:position] + character + authorization[position + 1 :]
    refused(access, changed)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@given(data=st.data())
def test_a_damaged_certificate_breaks_nothing(world, access, data):
    der = bytearray(world.under_root.certificate.public_bytes(Encoding.DER))
    position = data.draw(st.integers(0, len(der) - 1))
    der[position] ^= 1 << data.draw(st.integers(0, 7))
    refused(access, world.headed(world.under_root, x5c=[base64.b64encode(bytes(der)).decode()]))
