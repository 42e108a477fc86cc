"""Logins from Docker's ``config.json``, from its credential helpers, and from a file of our own.

Rules of this module: passwords come from files and helpers, never from a command line, and are in no message. A helper
is a program ``docker-credential-<name>`` in ``PATH``: it reads the address of a server and writes a login as JSON.

Docker stores the login of a registry, not that of its Notary, so a login is looked up by the address of the Notary
server, then by the registry that a collection belongs to.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, cast

from twisted.internet.error import TimeoutError as TooLate
from twisted.internet.utils import getProcessOutputAndValue
from twisted.python.failure import Failure

from notary.errors import ConfigError, PeerFailed
from notary.peer.access import Login
from notary.work.reactor import Reactor

HELPER_SECONDS: Final = 30.0
"""The longest time that a credential helper may take."""
_DOCKER_HUB: Final = "https://index.docker.io/v1/"
_TOKEN_USER: Final = "<token>"
_HELPER_NAME = re.compile(r"[A-Za-z0-9._-]+")
_NO_LOGIN = re.compile(r"credentials not found", re.IGNORECASE)


class OneLogin:
    """The same login for every collection."""

    def __init__(self, login: Login) -> None:
        self._login = login

    async def find(self, server: str, gun: str) -> Login | None:  # noqa: ARG002 - see the port
        """See Credentials."""
        return self._login


def read_login(path: Path) -> OneLogin:
    """Read a file with one line ``name:password``. Raises ConfigError."""
    text = _text(path, "--credentials")
    name, colon, password = text.strip("\r\n").partition(":")
    if not colon or not name or "\n" in text.strip("\r\n"):
        raise ConfigError(f"--credentials: {str(path)!r} is not a file with one line name:password")
    return OneLogin(Login(name, password))


class DockerConfig:
    """The logins in a ``config.json`` of Docker, and of the credential helpers that it names. Raises ConfigError."""

    def __init__(self, path: Path, reactor: Reactor, environ: Mapping[str, str]) -> None:
        try:
            value = json.loads(_text(path, "--docker-config"))
        except ValueError:
            raise ConfigError(f"--docker-config: {str(path)!r} is not JSON") from None
        value = value if isinstance(value, dict) else {}
        self._path = path
        self._reactor = reactor
        self._environ = environ
        self._auths = _mapping(value.get("auths"))
        self._helpers = _mapping(value.get("credHelpers"))
        self._store = value.get("credsStore")
        self._found: dict[str, Login | None] = {}

    async def find(self, server: str, gun: str) -> Login | None:
        """See Credentials. Raises ConfigError and PeerFailed."""
        for key in dict.fromkeys(_keys(server, gun)):
            if key not in self._found:
                self._found[key] = await self._look(key)
            login = self._found[key]
            if login is not None:
                return login
        return None

    async def _look(self, key: str) -> Login | None:
        host = _host(key)
        helper = next((name for each, name in self._helpers.items() if _host(each) == host), None)
        if helper is not None:
            return await self._ask(helper, key)
        own = next((value for each, value in self._auths.items() if _host(each) == host), None)
        login = None if own is None else self._own(_mapping(own), host)
        if login is None and self._store:
            login = await self._ask(self._store, key)
        return login

    def _own(self, entry: Mapping[str, Any], host: str) -> Login | None:
        token = entry.get("identitytoken")
        if isinstance(token, str) and token:
            return Login(identity_token=token)
        auth = entry.get("auth")
        if not auth:
            return None
        try:
            name, colon, password = base64.b64decode(auth, validate=True).decode("utf-8").partition(":")
        except (binascii.Error, ValueError, TypeError):
            name, colon, password = "", "", ""
        if not colon:
            raise ConfigError(f"--docker-config: the entry of {host} in {str(self._path)!r} cannot be read")
        return Login(name, password.rstrip("\0"))

    async def _ask(self, helper: object, key: str) -> Login | None:
        if not isinstance(helper, str) or not _HELPER_NAME.fullmatch(helper):
            raise ConfigError(f"--docker-config: {str(self._path)!r} names a credential helper that cannot be one")
        program = f"docker-credential-{helper}"
        found = shutil.which(program, path=self._environ.get("PATH", os.defpath))
        if found is None:
            raise ConfigError(f"--docker-config: {program}, which {str(self._path)!r} names, is not in PATH")
        ran = getProcessOutputAndValue(
            found, ["get"], dict(self._environ), reactor=cast("Any", self._reactor), stdinBytes=key.encode()
        )
        ended = await ran.addTimeout(HELPER_SECONDS, cast("Any", self._reactor)).addErrback(_without_status)
        if ended is None:
            raise PeerFailed(f"{program} did not answer: it was ended by a signal, or took too long")
        out, _, status = ended
        if status:
            if _NO_LOGIN.search(out.decode("utf-8", "replace")):
                return None
            raise PeerFailed(f"{program} failed with status {status}; run it by hand to see why")
        try:
            value = json.loads(out)
            name, secret = value["Username"], value["Secret"]
        except (ValueError, KeyError, TypeError):
            name, secret = None, None
        if not isinstance(name, str) or not isinstance(secret, str):
            raise PeerFailed(f"{program} answers with something else than a login")
        return Login(identity_token=secret) if name == _TOKEN_USER else Login(name, secret)


def docker_config_file(environ: Mapping[str, str]) -> Path | None:
    """Return Docker's own ``config.json``, None if there is none."""
    folder = environ.get("DOCKER_CONFIG") or str(Path(environ.get("HOME", "/")) / ".docker")
    path = Path(folder) / "config.json"
    return path if path.is_file() else None


def _without_status(failure: Failure) -> None:
    """Return None for a process that has no exit status: Twisted fails with a tuple if a signal ended it."""
    if not isinstance(cast("object", failure.value), tuple):
        failure.trap(TooLate, TimeoutError)


def _keys(server: str, gun: str) -> Iterator[str]:
    """Yield the addresses under which a login may be stored."""
    yield f"https://{server}"
    registry, slash, _ = gun.partition("/")
    if slash and registry == "docker.io":
        yield _DOCKER_HUB
    elif slash and set(".:") & set(registry):
        yield registry


def _host(address: str) -> str:
    """Return ``host:port`` of an address, with or without a scheme and a path."""
    return address.partition("://")[2].partition("/")[0] if "://" in address else address.partition("/")[0]


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(path: Path, option: str) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"{option}: {str(path)!r} cannot be read ({error.strerror})") from None
    except ValueError:
        raise ConfigError(f"{option}: {str(path)!r} is not UTF-8") from None
