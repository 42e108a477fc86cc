"""The Docker registry's bearer tokens: who may do what.

Rules of this module: checking a token is pure (text and the time in; a subject out, or Unauthorized) and bounded in
work, and nothing that a caller sends makes it raise anything but Unauthorized. No part of a token gets into an error,
but for the subject of one that was accepted. A key that the token itself brings is used only when the bundle vouches
for it. (docs/protocol.md, section 8; RFC 6750, RFC 7515, RFC 7519)
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwcrypto.common import JWException  # type: ignore[import-untyped]
from jwcrypto.jwk import JWK  # type: ignore[import-untyped]
from jwcrypto.jws import JWS  # type: ignore[import-untyped]
from OpenSSL import crypto

from notary import certs
from notary.config import Auth
from notary.errors import ConfigError, InvalidCertificate, InvalidMetadata, MalformedJSON, NotaryError, Unauthorized
from notary.server.auth import Access, Authentication
from notary.server.sources import Source
from notary.tuf.canonical import Members, parse
from notary.tuf.public import rsa_is_costly

ALGORITHMS: Final = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)
"""Signature algorithms of tokens: asymmetric ones only, since a public key must never do as a shared secret."""

LEEWAY: Final = timedelta(seconds=60)
"""How far the clock of a token's issuer may be off."""

MAX_TOKEN_CHARACTERS: Final = 64 * 1024
"""Characters of the longest token that is looked at."""

MAX_STRUCTURE: Final = 5_000
"""Commas, braces and brackets that a token's header or claims may hold: 500 rights need no more. They are read on the
reactor's thread, before it is known who made the token."""

MAX_CHAIN_CERTIFICATES: Final = 8
"""Certificates of the longest chain that a token may bring."""

_BUNDLE: Final = "auth.options.rootcertbundle"
_CURVES: Final = frozenset({"secp256r1", "secp384r1", "secp521r1"})
_WEAK_HASHES: Final = frozenset({"md5", "sha1"})
_COMPACT: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_HOST: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_HEADER: Final = frozenset({"kid", "x5c", "jwk"})
_EXTENSIONS: Final = frozenset({"crit", "b64"})
_CLAIMS: Final = frozenset({"iss", "sub", "aud", "exp", "nbf", "access"})
_RIGHTS: Final = frozenset({"type", "name", "actions"})
_JWK_MEMBERS: Final = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}
_ESCAPES: Final = {
    character: f"\\{letter}" for character, letter in zip('"\\\a\b\f\n\r\t\v', '"\\abfnrtv', strict=True)
}


class _TokenError(NotaryError):
    """A token is not accepted; the message says why and repeats nothing of it."""


@dataclass(frozen=True, slots=True)
class _Trusted:
    """A key of the bundle, and when (from, to; aware) the certificates are valid in which it stands."""

    key: JWK
    times: list[tuple[datetime, datetime]] = field(default_factory=list)

    def at(self, now: datetime) -> JWK:
        """The key. Raises _TokenError unless one of its certificates is valid now: exactly as in a chain, no leeway."""
        if not any(begins <= now <= ends for begins, ends in self.times):
            raise _TokenError("the certificate of its key has expired, or is not valid yet")
        return self.key


class TokenAuth:
    """Accepts the tokens of one issuer that are meant for this service.

    ``realm`` is where clients get them, ``service`` the audience that they must have. ``certificates`` (see
    :func:`load_bundle`) are trusted as they are, each a key that signs tokens or an authority of such keys, from the
    beginning of its validity to the end. With
    ``autoredirect`` clients are sent to ``https://<the host they asked>/auth/token`` instead of ``realm``.
    """

    def __init__(
        self,
        realm: str,
        service: str,
        issuer: str,
        certificates: Sequence[x509.Certificate],
        autoredirect: bool = False,
    ) -> None:
        self._realm = realm
        self._service = service
        self._issuer = issuer
        self._autoredirect = autoredirect
        self.trust(certificates)

    def trust(self, certificates: Sequence[x509.Certificate]) -> None:
        """Trust these certificates, and no other, from now on."""
        self._anchors = [crypto.X509.from_cryptography(certificate) for certificate in certificates]
        self._by_fingerprint: dict[str, _Trusted] = {}
        self._by_members: dict[tuple[str, ...], _Trusted] = {}
        for certificate in certificates:
            name, key = _fingerprint(certificate), _key_of(certificate)
            # A certificate that was renewed for the same key stands beside its old one for a while.
            trusted = self._by_fingerprint.setdefault(name, _Trusted(key))
            trusted.times.append((certificate.not_valid_before_utc, certificate.not_valid_after_utc))
            self._by_members[_members(key.export_public(as_dict=True))] = trusted

    def authorize(self, authorization: str | None, host: str, access: Sequence[Access], now: datetime) -> str:
        """Check the bearer token of a request: see AccessController.

        The challenge says ``invalid_token`` when the token is not accepted at all, ``insufficient_scope`` when it
        lacks a right, and neither when there is none (RFC 6750, 3.1).
        """
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token or " " in token:
            raise self._unauthorized("a bearer token is needed: get one from the realm", "", host, access)
        try:
            subject, rights = self._check(token, now)
        except (_TokenError, InvalidMetadata) as error:
            raise self._unauthorized(f"the token is not accepted: {error}", "invalid_token", host, access) from None
        if not all((kind, name, action) in rights or (kind, name, "*") in rights for kind, name, action in access):
            raise self._unauthorized("the token does not give the rights", "insufficient_scope", host, access)
        return subject

    # -- the token ----------------------------------------------------------------------------------------------------

    def _check(self, token: str, now: datetime) -> tuple[str, frozenset[Access]]:
        """The subject of ``token`` and the rights that it gives. Raises _TokenError or InvalidMetadata."""
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise _TokenError("it is too long")
        if _COMPACT.fullmatch(token) is None:
            raise _TokenError("it is not a signed token in the compact form")
        header_part, claims_part, _ = token.split(".")
        raw_header = _object(header_part, "header")
        if not _EXTENSIONS.isdisjoint(raw_header):
            # They change what the rest means, and the reference knows none (RFC 7515, 4.1.11; RFC 7797).
            raise _TokenError("it needs an extension that is not supported")
        header = Members(raw_header, _HEADER, "its header")
        raw_claims = _object(claims_part, "body")
        claims = Members(raw_claims, _CLAIMS, "its claims")
        # What costs little is looked at first; the order is otherwise of no matter, all must hold.
        if claims.text("iss") != self._issuer:
            raise _TokenError("it is of another issuer")
        audience = raw_claims.get("aud")
        if self._service not in ((audience,) if isinstance(audience, str) else claims.texts("aud")):
            raise _TokenError("it is meant for another service")
        seconds, leeway = now.timestamp(), LEEWAY.total_seconds()
        if seconds > claims.integer("exp") + leeway:
            raise _TokenError("it has expired")
        if seconds < claims.integer("nbf") - leeway:
            raise _TokenError("it is not valid yet")
        # Nothing that takes long is done for a token before its signature is known to be good.
        _verify(token, self._signing_key(header, now))
        return claims.text("sub"), _rights(claims.sequence("access"))

    def _signing_key(self, header: Members, now: datetime) -> JWK:
        """The key that the header names, in the reference's order of preference, if it is to be trusted."""
        if chain := header.texts("x5c"):
            return self._leaf_key(chain, now)
        if jwk := header.mapping("jwk"):
            # The key is found among ours or in the certificate by its text, which is unique (RFC 7638): what the token
            # brings is never made into a key, so nothing in it (a private part, a use) can matter.
            wanted = _members(jwk)
            if chain := Members(jwk, frozenset({"x5c"}), "its jwk").texts("x5c"):
                key = self._leaf_key(chain, now)
                if _members(key.export_public(as_dict=True)) != wanted:
                    raise _TokenError("its jwk is not the key of its certificate")
                return key
            if wanted not in self._by_members:
                raise _TokenError("its jwk is not trusted")
            return self._by_members[wanted].at(now)
        key_id = header.text("kid")
        if key_id not in self._by_fingerprint:
            raise _TokenError("it names no key that is trusted")
        return self._by_fingerprint[key_id].at(now)

    def _leaf_key(self, chain: Sequence[str], now: datetime) -> JWK:
        """The key of the first certificate of ``chain``, once the rest leads from it to one of ours.

        The rules are those of the reference (Go's x509, any extended key usage): every certificate, ours as well, must
        be inside its time, every issuer must be an authority, and only signatures over SHA-1 and MD5 are too weak.
        """
        if len(chain) > MAX_CHAIN_CERTIFICATES:
            raise _TokenError("its chain of certificates is too long")
        try:
            certificates = [_certificate(encoded) for encoded in chain]
            key = _key_of(certificates[0])
            with certs.reading():
                leaf, *others = (crypto.X509.from_cryptography(certificate) for certificate in certificates)
        except InvalidCertificate:
            raise _TokenError("its chain holds something that is not a certificate of a usable key") from None
        store = crypto.X509Store()
        store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
        store.set_time(now.astimezone(UTC))
        for anchor in self._anchors:
            store.add_cert(anchor)
        try:
            verified = crypto.X509StoreContext(store, leaf, others).get_verified_chain()
            # OpenSSL leaves this check to its caller. The last certificate is trusted with any signature.
            weak = any(_is_weakly_signed(found.to_cryptography()) for found in verified[:-1])
        except (crypto.X509StoreContextError, InvalidCertificate):
            raise _TokenError("its chain of certificates does not lead to one that is trusted") from None
        finally:
            _clear_openssl_errors()
        if weak:
            raise _TokenError("its chain of certificates uses a broken hash")
        return key

    # -- the challenge ------------------------------------------------------------------------------------------------

    def _unauthorized(self, message: str, error: str, host: str, access: Sequence[Access]) -> Unauthorized:
        """The error with a challenge that tells the client where to ask for which rights (RFC 6750, section 3)."""
        realm = self._realm
        if self._autoredirect and _HOST.fullmatch(host):
            realm = f"https://{host}/auth/token"
        parameters = [f"realm={_quote(realm)}", f"service={_quote(self._service)}"]
        if access:
            parameters.append(f"scope={_quote(_scope(access))}")
        if error:
            parameters.append(f'error="{error}"')
        return Unauthorized(message, "Bearer " + ",".join(parameters), tuple(access))


def build(auth: Auth) -> Authentication:
    """Build the controller from the section ``auth``. Raises ConfigError if its bundle is missing or cannot be used."""
    options = auth.options
    if options.rootcertbundle is None:
        raise ConfigError(f"{_BUNDLE}: missing; expected a file of certificates")
    bundle = load_bundle(options.rootcertbundle)
    controller = TokenAuth(options.realm, options.service, options.issuer, bundle, options.autoredirect)

    def sources(auth: Auth) -> Sequence[Source]:
        path = auth.options.rootcertbundle
        return () if path is None else (Source((_BUNDLE,), (path,), partial(load_bundle, path), controller.trust),)

    return Authentication(controller, sources)


def load_bundle(path: Path) -> tuple[x509.Certificate, ...]:
    """The certificates of a PEM file, of which there must be one at least.

    Raises ConfigError naming the file, also when a certificate's key could sign no token.
    """
    expected = "expected certificates as PEM"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f'{_BUNDLE}: "{path}" cannot be read ({error.strerror}); {expected}') from None
    if b"-----BEGIN CERTIFICATE-----" not in data:
        raise ConfigError(f'{_BUNDLE}: "{path}" holds no certificate; {expected}')
    try:
        certificates = certs.all_in_pem(data)
        with certs.reading():
            for certificate in certificates:
                crypto.X509.from_cryptography(certificate)
    except InvalidCertificate:
        raise ConfigError(f'{_BUNDLE}: "{path}" holds a damaged certificate; {expected}') from None
    for certificate in certificates:
        try:
            _key_of(certificate)
        except InvalidCertificate:
            raise ConfigError(
                f'{_BUNDLE}: "{path}" holds a certificate, "{certs.subject_of(certificate)}", whose key signs no'
                " tokens; expected RSA (up to 8,192 bits, exponent below 2^31), Ed25519, or ECDSA"
                " on P-256, P-384 or P-521"
            ) from None
    return certificates


def _object(part: str, name: str) -> dict[str, Any]:
    """One base64url part of a token as the JSON object that it must be."""
    try:
        data = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
        if sum([data.count(one) for one in (b",", b"{", b"[")]) > MAX_STRUCTURE:
            raise _TokenError(f"its {name} holds too much")
        value = parse(data)
    except (ValueError, MalformedJSON):  # the message of neither is repeated: it may hold a piece of the token
        raise _TokenError(f"its {name} cannot be read") from None
    if base64.urlsafe_b64encode(data).rstrip(b"=") != part.encode("ascii"):
        # The library checks the signature over what it encodes afresh: that must be what was sent.
        raise _TokenError(f"its {name} is encoded in a way of its own")
    if not isinstance(value, dict):
        raise _TokenError(f"its {name} is not an object")
    return value


def _rights(grants: Iterable[Any]) -> frozenset[Access]:
    """Return the rights that the claim ``access`` grants, one for each action."""
    rights: set[Access] = set()
    for grant in grants:
        members = Members(grant, _RIGHTS, "its access")
        kind, name = members.text("type"), members.text("name")
        rights.update((kind, name, action) for action in members.texts("actions"))
    return frozenset(rights)


def _verify(token: str, key: JWK) -> None:
    """Check the signature over ``token`` with ``key``. Raises _TokenError."""
    jws = JWS()
    jws.allowed_algs = list(ALGORITHMS)
    try:
        jws.deserialize(token)
        jws.verify(key)
    except JWException:  # its text holds pieces of the token
        raise _TokenError("its signature is wrong, or of an algorithm that is not supported") from None


def _certificate(encoded: str) -> x509.Certificate:
    """A certificate in base64. Raises InvalidCertificate. Line breaks are skipped, as the reference does."""
    with certs.reading():
        return certs.from_der(base64.b64decode(encoded.replace("\r", "").replace("\n", ""), validate=True))


def _key_of(certificate: x509.Certificate) -> JWK:
    """The public key of ``certificate``. Raises InvalidCertificate if it can sign no token."""
    with certs.reading():
        key = certificate.public_key()
        if (
            isinstance(key, Ed25519PublicKey)
            or (isinstance(key, RSAPublicKey) and not rsa_is_costly(key))
            or (isinstance(key, EllipticCurvePublicKey) and key.curve.name in _CURVES)
        ):
            return JWK.from_pyca(key)
    raise InvalidCertificate("no algorithm of tokens uses a key of this type")


def _is_weakly_signed(certificate: x509.Certificate) -> bool:
    """Whether the signature on ``certificate`` is over a broken hash. Raises InvalidCertificate."""
    with certs.reading():
        algorithm = certificate.signature_hash_algorithm  # None where the hash is part of the scheme, as in Ed25519
    return algorithm is not None and algorithm.name in _WEAK_HASHES


def _clear_openssl_errors() -> None:
    """Empty OpenSSL's queue of errors.

    Checking a chain leaves errors in the thread's queue, where OpenSSL would find them at the next read of any TLS
    connection and end it. pyOpenSSL empties the queue only when it raises, so it is made to.
    """
    with contextlib.suppress(crypto.Error):
        crypto.load_certificate(crypto.FILETYPE_ASN1, b"")


def _fingerprint(certificate: x509.Certificate) -> str:
    """The libtrust name of a key: 240 bits of the SHA-256 of its DER form, in base32, in groups of four."""
    der = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    text = base64.b32encode(hashlib.sha256(der).digest()[:30]).decode("ascii")
    return ":".join(text[start : start + 4] for start in range(0, len(text), 4))


def _members(jwk: dict[str, Any]) -> tuple[str, ...]:
    """Return the members that identify a JWK's key. Raises InvalidMetadata or _TokenError if it is no public key."""
    reader = Members(jwk, frozenset({"kty"}), "its jwk")
    kind = reader.text("kty")
    if kind not in _JWK_MEMBERS:
        raise _TokenError("its jwk is no key of a supported type")
    return (kind, *(reader.text(name) for name in _JWK_MEMBERS[kind]))


def _scope(access: Iterable[Access]) -> str:
    """``type:name:action,action`` of every resource, in the order in which they are asked for."""
    wanted: dict[tuple[str, str], list[str]] = {}
    for kind, name, action in access:
        actions = wanted.setdefault((kind, name), [])
        if action not in actions:
            actions.append(action)
    return " ".join(f"{kind}:{name}:{','.join(actions)}" for (kind, name), actions in wanted.items())


def _quote(text: str) -> str:
    """``text`` as a quoted string that ends where it should and is one line, as the reference (Go's %q) writes it.

    As in every header, a character of the result is a byte on the wire; text beyond ASCII goes out as UTF-8.
    """
    quoted = "".join(map(_escape, text))
    return f'"{quoted}"'


def _escape(character: str) -> str:
    code = ord(character)
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isprintable():
        return character.encode("utf-8").decode("latin-1")
    if code < 0x80:  # noqa: PLR2004 - ASCII
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"  # noqa: PLR2004 - the basic plane
