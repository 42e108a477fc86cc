"""The manhole: a Python prompt inside the running daemon, over SSH, for operators that hold an authorized key.

Rules of this module: it listens on 127.0.0.1 and nowhere else, and not at all unless it is configured; only public keys
let anybody in, under any user name, and the log names the owner of the key. An operator that is in can do and read all
that the daemon can. A file that cannot be used, or that others may write to, is a ConfigError. It needs Twisted's
Conch.
"""

from __future__ import annotations

import importlib
import stat
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, cast

from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from twisted.application.service import Service
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger

from notary.errors import ConfigError
from notary.work.reactor import Reactor

LOOPBACK: Final = "127.0.0.1"

_CONCH: Final = ("checkers", "manhole", "manhole_ssh", "ssh.keys", "ssh.transport")


class Manhole(Service):
    """Serves ``names`` (what the prompt knows) on a port of loopback.

    Building it reads the files; raises ConfigError. Starting fails with CannotListenError.
    """

    def __init__(
        self,
        reactor: Reactor,
        port: int,
        authorized_keys_file: Path,
        host_key_file: Path | None,
        names: Mapping[str, object],
    ) -> None:
        self._log = Logger(namespace="notary.observe.manhole")
        self._reactor = reactor
        self.port = port
        self._sessions: set[Any] = set()
        self._factory = self._make_factory(authorized_keys_file, host_key_file, names)
        self._listening: IListeningPort | None = None

    def startService(self) -> None:
        """Listen."""
        super().startService()
        self._listening = self._reactor.listenTCP(self.port, self._factory, interface=LOOPBACK)
        self.port = cast("IPv4Address", self._listening.getHost()).port
        self._log.warn(
            "A manhole is open on {host}:{port}: who has a key to it has all that this process has; host key "
            "{fingerprint}",
            host=LOOPBACK,
            port=self.port,
            fingerprint=self.fingerprint,
        )

    def stopService(self) -> Deferred[None]:
        """Stop listening, and end the sessions."""
        super().stopService()
        for session in list(self._sessions):
            session.transport.abortConnection()
        listening, self._listening = self._listening, None
        return succeed(None) if listening is None else maybeDeferred(cast("Any", listening.stopListening))

    def _make_factory(self, authorized: Path, host_key: Path | None, names: Mapping[str, object]) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # Conch imports modules that Python is to lose
                conch = {name: importlib.import_module(f"twisted.conch.{name}") for name in _CONCH}
        except ImportError as error:
            raise ConfigError(
                f"manhole.port: given, but a Python module is missing ({error.name}); install notary-service[manhole], "
                f"or remove the section"
            ) from error
        keys: Any = conch["ssh.keys"]
        portal: Any = importlib.import_module("twisted.cred.portal")
        host = _host_key(keys, host_key)
        self.fingerprint = host.fingerprint(keys.FingerprintFormats.SHA256_BASE64)
        realm = conch["manhole_ssh"].TerminalRealm()
        realm.sessionFactory = _terminal_type(conch["manhole_ssh"])
        realm.chainedProtocolFactory.protocolFactory = lambda _: conch["manhole"].ColoredManhole(dict(names))
        checker = _checker(conch["checkers"], _authorized_keys(keys, authorized), self._log.warn)
        factory = conch["manhole_ssh"].ConchFactory(portal.Portal(realm, [checker]))
        factory.publicKeys = {host.sshType(): host.public()}
        factory.privateKeys = {host.sshType(): host}
        factory.protocol = _session_type(conch["ssh.transport"], self._sessions)
        factory.noisy = False
        return factory


def _terminal_type(manhole_ssh: Any) -> type:
    """A terminal whose client may say that nothing more will be typed, which Conch does not expect."""

    class Terminal(manhole_ssh.TerminalSession):  # type: ignore[misc]
        def eofReceived(self) -> None:
            """What was typed is still carried out; the session ends when the client ends it, or with control-D."""

    return Terminal


def _session_type(transport: Any, sessions: set[Any]) -> type:
    """A server's side of SSH that is among ``sessions`` while it is connected."""

    class Session(transport.SSHServerTransport):  # type: ignore[misc]
        def connectionMade(self) -> None:
            sessions.add(self)
            super().connectionMade()

        def connectionLost(self, reason: Any) -> None:
            sessions.discard(self)
            super().connectionLost(reason)

    return Session


def _read(name: str, path: Path, *, mask: int, who: str) -> bytes:
    try:
        mode = path.stat().st_mode
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f'{name}: "{path}" cannot be read ({error.strerror}); expected a file') from None
    if mode & mask:
        bad = stat.filemode(mode)
        raise ConfigError(f'{name}: "{path}" has the mode {bad}; expected that nobody else may {who} it (chmod go-rwx)')
    return data


def _authorized_keys(keys: Any, path: Path) -> list[Any]:
    name = "manhole.authorized_keys_file"
    found = []
    for line in _read(name, path, mask=stat.S_IWGRP | stat.S_IWOTH, who="write to").splitlines():
        if not line.strip() or line.lstrip().startswith(b"#"):
            continue
        try:
            found.append(keys.Key.fromString(line.strip()))
        except Exception:  # noqa: BLE001 - Conch raises any error of its parsers
            raise ConfigError(
                f'{name}: "{path}" has a line that is no public key; expected lines like "ssh-ed25519 AAAA… name"'
            ) from None
    if not found:
        raise ConfigError(f'{name}: "{path}" has no key; expected one a line')
    return found


def _host_key(keys: Any, path: Path | None) -> Any:
    if path is None:
        made = ed25519.Ed25519PrivateKey.generate()
        data = made.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        return keys.Key.fromString(data)
    name = "manhole.host_key_file"
    data = _read(name, path, mask=stat.S_IRWXG | stat.S_IRWXO, who="read")
    try:
        key = keys.Key.fromString(data)
    except Exception:  # noqa: BLE001 - Conch raises any error of its parsers
        key = None
    if key is None or key.isPublic():
        raise ConfigError(
            f'{name}: "{path}" holds no usable private key; expected one as ssh-keygen writes it, without a passphrase'
        )
    return key


def _checker(checkers: Any, authorized: list[Any], say: Callable[..., None]) -> Any:
    """What lets the holders of these keys in, and says who came."""

    class Authorized:
        def getAuthorizedKeys(self, _user: bytes) -> list[Any]:
            return authorized

    class Checker(checkers.SSHPublicKeyChecker):  # type: ignore[misc]
        def requestAvatarId(self, credentials: Any) -> Any:
            def came(user: Any) -> Any:
                if credentials.signature is not None:
                    say("manhole: {user} logged in", user=user)
                return user

            def refused(failure: Any) -> Any:
                if failure.check(UnauthorizedLogin) is not None and credentials.signature is not None:
                    say("manhole: {user} was refused", user=credentials.username)
                return failure

            return super().requestAvatarId(credentials).addCallbacks(came, refused)

    return Checker(Authorized())
