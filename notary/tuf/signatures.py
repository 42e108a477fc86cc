"""Whether a file is signed as a role demands, and a root by its own certificates and by those of the root before it.

Rules of this module: pure. Expiry is checked elsewhere. Each function takes ``spend``, which is told what a signature
costs before that signature is verified, and may raise to end the check (:class:`notary.tuf.cost.VerifyingBudget`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from notary.errors import InvalidMetadata, NoUsableCertificate
from notary.tuf import public
from notary.tuf.model import ROOT, Envelope, Gun, RoleKeys, RoleName, Root, Signature, stored_envelope
from notary.tuf.public import PublicKey
from notary.tuf.root_certificates import certified_keys


def require_signatures(
    role: RoleName,
    envelope: public.Signed,
    signers: RoleKeys,
    who: str,
    spend: Callable[[int], None] = lambda _cost: None,
) -> None:
    """Require that ``envelope`` is signed to the threshold of ``signers``. Raises InvalidMetadata.

    ``who`` is the name of the signers in messages.
    """
    try:
        result = public.meets_threshold(envelope, signers, spend)
    except InvalidMetadata as error:
        raise InvalidMetadata(f"{role}: {error}") from error
    if not result.ok:
        count = f"at most {result.signers + result.untried}" if result.untried else result.signers
        raise InvalidMetadata(f"{role}: it has {count} valid signature(s) by {who}; {signers.threshold} needed")


def stored_root(gun: Gun, data: bytes, spend: Callable[[int], None] = lambda _cost: None) -> Root:
    """Return the root in a stored file, verified with the root's own certificates.

    Neither the expiry of the root nor that of its certificates counts: both were checked when the root was uploaded,
    and a collection whose root has expired must be able to publish the next one.

    Raises NoUsableCertificate if no certificate may vouch for the root, and InvalidMetadata for any other fault.
    """
    root = Root.parse(stored_envelope(ROOT, data))
    require_signatures(ROOT, root.envelope, certified_keys(root, gun, None), "its own certificates", spend)
    return root


def require_succession(
    gun: Gun, previous: Root, envelope: Envelope, spend: Callable[[int], None] = lambda _cost: None
) -> None:
    """Require that the root in ``envelope`` is signed by the certificates of ``previous``. Raises InvalidMetadata.

    If none of those certificates may vouch for a root, another server has accepted what this one does not. Then the
    public keys in them count: only the holders of these keys can replace the root.
    """
    signed: public.Signed = envelope
    try:
        trusted, what = certified_keys(previous, gun, None), "certificates"
    except NoUsableCertificate:
        (signed, trusted), what = _by_bare_keys(envelope, previous.roles[ROOT]), "keys"
    require_signatures(ROOT, signed, trusted, f"the {what} of the stored root (version {previous.version})", spend)


@dataclass(frozen=True, slots=True)
class _Signed:
    signatures: Sequence[Signature]
    payload: bytes


def _by_bare_keys(envelope: Envelope, role: RoleKeys) -> tuple[_Signed, RoleKeys]:
    """Return the same signatures, and the same keys, by the ids of the keys without their certificates."""
    bare: dict[str, PublicKey] = {}
    for key_id, key in role.keys.items():
        with suppress(InvalidMetadata):
            if key.key_id == key_id:
                bare[key_id] = key.without_certificate()
    signatures = tuple(
        Signature(bare[each.key_id].key_id, each.method, each.sig)
        for each in envelope.signatures
        if each.key_id in bare
    )
    keys = RoleKeys({key.key_id: key for key in bare.values()}, role.threshold)
    return _Signed(signatures or envelope.signatures, envelope.payload), keys
