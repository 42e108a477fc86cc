"""URIs of keys of Transit, the engine of HashiCorp Vault and of OpenBao that encrypts for others.

Rules of this module: pure. A URI that is not understood whole is refused, and so is a secret in it, because URIs stand
in configurations and logs: secrets are in the files that it names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from notary.config.places import MAX_CHARACTERS, attributes, name_of

SCHEME: Final = "vault"
"""The scheme of a key-encrypting key in Transit."""

EXPECTED: Final = "vault:https://HOST:PORT/MOUNT/KEY?token-file=/PATH"
"""The form of such a URI with a token; docs/keys.md has those of the other ways to log in."""

SERVICE_TOKEN: Final = "/var/run/secrets/kubernetes.io/serviceaccount/token"
"""The file in which Kubernetes gives a pod the token of its service account."""

_NETLOC: Final = re.compile(r"(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_SEGMENT: Final = re.compile(r"[A-Za-z0-9_.-]+")
_LOGINS: Final = {
    frozenset({"token-file"}): "token",
    frozenset({"role-id", "secret-id-file"}): "approle",
    frozenset({"kubernetes-role"}): "kubernetes",
    frozenset({"kubernetes-role", "jwt-file"}): "kubernetes",
}
_PATHS: Final = frozenset({"token-file", "secret-id-file", "jwt-file", "ca-file"})
_OTHERS: Final = frozenset({"ca-file", "namespace", "auth-mount"})


@dataclass(frozen=True, slots=True)
class TransitKey:
    """Where a key is, and how to log in there.

    ``login`` is "token", "approle" or "kubernetes"; ``secret_path`` is the file of the token, of the secret id or of
    the token of a service account; ``role`` is the id or the name of the role.
    """

    url: str
    mount: str
    key: str
    login: str
    secret_path: str
    role: str = ""
    auth_mount: str = ""
    namespace: str = ""
    ca_path: str = ""

    @property
    def name(self) -> str:
        """A name of the place: it changes with the namespace, the mount and the key, not with the address."""
        return name_of(SCHEME, f"{self.namespace}\0{self.mount}\0{self.key}")

    def __str__(self) -> str:
        return f"{self.mount}/{self.key} at {self.url}"


def parse(place: str) -> TransitKey:
    """Read what follows the scheme in a URI. Raises ValueError."""
    if len(place) > MAX_CHARACTERS:
        raise ValueError("too long")
    parts = urlsplit(place)
    if parts.scheme != "https" or not _NETLOC.fullmatch(parts.netloc) or not parts.hostname or parts.port == 0:
        raise ValueError("no https://HOST:PORT")
    if parts.fragment:
        raise ValueError("a fragment")
    *mount, key = parts.path.strip("/").split("/")
    if not mount or not all(_is_segment(each) for each in (*mount, key)):
        raise ValueError("no mount, no key, or a character that neither has")
    found = attributes(parts.query)
    given = frozenset(found) - _OTHERS
    if given not in _LOGINS:
        raise ValueError("an attribute that is unknown, or no way to log in")
    if not all(found[name].startswith("/") for name in _PATHS & found.keys()):
        raise ValueError("a path that is not absolute")
    login = _LOGINS[given]
    auth_mount = found.get("auth-mount", login)
    namespace = found.get("namespace", "").strip("/")
    if not all(_is_segment(each) for text in (auth_mount, namespace) for each in text.split("/") if text):
        raise ValueError("a character that no mount and no namespace has")
    return TransitKey(
        url=f"https://{parts.netloc}",
        mount="/".join(mount),
        key=key,
        login=login,
        secret_path=found.get("token-file") or found.get("secret-id-file") or found.get("jwt-file") or SERVICE_TOKEN,
        role=found.get("role-id") or found.get("kubernetes-role") or "",
        auth_mount=auth_mount,
        namespace=namespace,
        ca_path=found.get("ca-file", ""),
    )


def _is_segment(text: str) -> bool:
    return _SEGMENT.fullmatch(text) is not None and text.strip(".") != ""
