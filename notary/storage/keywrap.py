"""Stored keys and the passphrases that open them, for the signer and for the operator's tool.

Rules of this module: pure but for the randomness of wrapping. Errors name the key and the alias; they show neither the
passphrase nor anything private. Wrapping and unwrapping take milliseconds each: call them in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TypeAlias

from notary.errors import CustodyUnavailable, SigningFailed, UnsupportedAlgorithm
from notary.storage import StoredKey
from notary.tuf import jwe, private
from notary.tuf.canonical import quote
from notary.tuf.public import PublicKey

Passphrases: TypeAlias = Callable[[str], str | None]
"""Gives the passphrase of an alias, or None if there is none."""


def public_half(row: StoredKey) -> PublicKey:
    """The public half of a stored key. Raises SigningFailed if it does not match the row's key id."""
    key = PublicKey(row.algorithm, row.public)
    if key.key_id != row.key_id:
        raise SigningFailed(f"key {row.key_id} is damaged in the store: its public half belongs to another id")
    return key


def unwrap(row: StoredKey, passphrases: Passphrases) -> private.PrivateKey:
    """Open a stored key. Raises SigningFailed and UnsupportedAlgorithm.

    Among the first is KeyDoesNotOpen: a wrong passphrase, or damage.
    """
    public = public_half(row)
    passphrase = _passphrase(passphrases, row.key_id, row.passphrase_alias)
    try:
        plaintext = jwe.unwrap(row.private, passphrase)
    except SigningFailed as error:
        alias = quote(row.passphrase_alias)
        raise type(error)(f"key {row.key_id}, wrapped with passphrase alias {alias}: {error}") from None
    return private.decode(public.key_type, public.public, plaintext)


def alias_of(row: StoredKey) -> str:
    """The alias of the passphrase of a row."""
    return row.passphrase_alias


def refused_aliases(
    rows: Iterable[StoredKey], open_key: Callable[[StoredKey], object], under: Callable[[StoredKey], str] = alias_of
) -> Mapping[str, str]:
    """Return the aliases under which no key of ``rows`` opens, each with the reason.

    ``open_key`` opens a key. Raises SigningFailed. ``under`` says what a row is under. Raises CustodyUnavailable if
    ``open_key`` does, which says nothing of the keys.
    """
    opened: set[str] = set()
    reasons: dict[str, str] = {}
    for row in rows:
        try:
            open_key(row)
        except CustodyUnavailable:
            raise
        except (SigningFailed, UnsupportedAlgorithm) as error:
            reasons.setdefault(under(row), str(error))
        else:
            opened.add(under(row))
    return {alias: reason for alias, reason in reasons.items() if alias not in opened}


def wrap(key: private.PrivateKey, gun: str, role: str, alias: str, passphrases: Passphrases) -> StoredKey:
    """Return a new key in its stored form, pending. Raises SigningFailed if there is no passphrase of this alias."""
    public = key.public
    return StoredKey(
        key_id=public.key_id,
        algorithm=public.key_type,
        public=public.public,
        private=jwe.wrap(key.encode(), _passphrase(passphrases, public.key_id, alias)),
        gun=gun,
        role=role,
        passphrase_alias=alias,
        encryption_alg=jwe.ENCRYPTION,
        keywrap_alg=jwe.KEYWRAP,
    )


def rewrap(row: StoredKey, key: private.PrivateKey, alias: str, passphrases: Passphrases) -> StoredKey:
    """Return the row with its ``key`` wrapped under the passphrase of ``alias``. Raises as :func:`wrap` does."""
    again = wrap(key, row.gun, row.role, alias, passphrases)
    return replace(again, last_used=row.last_used)


def _passphrase(passphrases: Passphrases, key_id: str, alias: str) -> str:
    passphrase = passphrases(alias)
    if passphrase is None:
        raise SigningFailed(
            f"there is no passphrase of alias {quote(alias)}, which key {key_id} needs: "
            f"give it in the variable NOTARY_SIGNER_<ALIAS>"
        )
    return passphrase
