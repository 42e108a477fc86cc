"""A session of a token behind a PKCS#11 module, which a process of its own has loaded; a key-encrypting key by it.

Rules of this module:

- The process (:mod:`notary.envelope.token`) is started when the key is first needed, and again after it has ended. It
  is killed if it does not answer within ``TIMEOUT_SECONDS``: a module that hangs holds up one thread for that long.
- A request that meets an old process which fails is sent once more, to a new one: the session was lost. If the new
  process fails too, requests are refused at once until a pause is over; pauses grow.
- A session may not see what another one has made: SoftHSM sometimes shows no key that was written while it read the
  token. A key that is missing is looked for once more, by a new process, if this one is older than ``FRESH_SECONDS``.
- A PIN that was refused is not given to the token again. The file of the PIN is read at each start of the process, so
  that another content is tried.
- The PIN goes through a pipe; it is in no argument, no environment, no error and no ``repr``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import secrets
import select
import subprocess
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Final

from notary.config import KekUri
from notary.config import pkcs11 as uris
from notary.config.pkcs11 import TokenKey
from notary.envelope import OneVersion
from notary.envelope.pauses import Pauses
from notary.envelope.token import DAMAGED, MISSING, PIN
from notary.errors import ConfigError, CustodyUnavailable, SigningFailed
from notary.work.processes import python_command, python_environment

TIMEOUT_SECONDS: Final = 10.0
"""How long the process may take to log in, and for one request."""

FRESH_SECONDS: Final = 1.0
"""How long what a session sees of a token counts as new."""

MAX_PIN_BYTES: Final = 1024

_CODE: Final = "from notary.envelope.token import main; main()"
_READ_BYTES: Final = 1 << 16
_GRACE_SECONDS: Final = 1.0


class _Away(Exception):
    """The process, the module or the token failed; the text says how."""


class _Hung(_Away):
    """The process did not answer in time: it is not tried a second time at once, since a thread waits meanwhile."""


class _Helper:
    """The process of one module. Its methods raise _Away."""

    def __init__(self, key: TokenKey, pin: str, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._held = b""
        own = {name: value for name, value in os.environ.items() if not name.startswith("NOTARY_")}
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter
            python_command(_CODE),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a module may print what it is given
            env=own | python_environment(),
            start_new_session=True,  # a Ctrl-C is for the signer
            bufsize=0,
        )
        self._place = {
            "module": key.module_path,
            "token": key.token,
            "serial": key.serial,
            "object": key.object,
            "id": key.id.hex(),
            "inside": "yes" if key.inside else "",
            "pin": pin,
        }

    def log_in(self) -> Mapping[str, str]:
        """Let the process load the module and log in; return its answer. Call it first, and once."""
        return self._answer(self._place)

    def ask(self, work: str, data: bytes, context: bytes) -> Mapping[str, str]:
        """Send a request, and return the answer."""
        return self._answer({"do": work, "data": data.hex(), "context": context.hex()})

    def _answer(self, message: Mapping[str, str]) -> Mapping[str, str]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None  # noqa: S101, PT018 - they are pipes
        deadline = monotonic() + self._timeout_seconds
        try:
            stdin.write(json.dumps(message).encode() + b"\n")  # less than a pipe takes at once
        except OSError:
            raise _Away("the process of the module has ended") from None
        answers = select.poll()  # select() takes no descriptor above 1023
        answers.register(stdout, select.POLLIN)
        while b"\n" not in self._held:
            if not answers.poll(1000 * max(0.0, deadline - monotonic())):
                raise _Hung(f"the module did not answer within {self._timeout_seconds:g} s")
            data = os.read(stdout.fileno(), _READ_BYTES)
            if not data:
                raise _Away("the module has crashed")
            self._held += data
        line, _, self._held = self._held.partition(b"\n")
        found: Mapping[str, str] = json.loads(line)
        return found

    def kill(self) -> None:
        """End the process, also one that hangs; a thread that waits for its answer gets _Away. Any thread may call."""
        self._process.kill()

    def end(self) -> None:
        """End the process, and release what it has here."""
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        with suppress(subprocess.TimeoutExpired):  # the kernel may hold a process in a call of a driver
            self._process.wait(_GRACE_SECONDS)


class Logins:
    """What sessions of one token share: they log in one after the other, and none gives a PIN that was refused."""

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self._salt = secrets.token_bytes(16)
        self._refused = b""  # a PIN, as a hash

    def is_refused(self, pin: str) -> bool:
        """Whether the token has refused this PIN."""
        return self._hashed(pin) == self._refused

    def refuse(self, pin: str) -> None:
        """Note that the token has refused this PIN."""
        self._refused = self._hashed(pin)

    def _hashed(self, pin: str) -> bytes:
        return hashlib.sha256(self._salt + pin.encode()).digest()


class Session:
    """A session of a token, in a process of its own. Its methods block; several threads may call.

    Args:
        key: Where the token is, and the key in it.
        seconds: A monotonic clock.
        timeout_seconds: How long the process may take for one request.
        logins: What this session shares with others of the same token.
    """

    def __init__(
        self,
        key: TokenKey,
        seconds: Callable[[], float] = monotonic,
        timeout_seconds: float = TIMEOUT_SECONDS,
        logins: Logins | None = None,
    ) -> None:
        self.name = key.name
        self._key = key
        self._logins = logins or Logins()
        self._timeout_seconds = timeout_seconds
        self._lock = threading.Lock()  # one request at a time: there are few
        self._helper: _Helper | None = None
        self._begun = 0.0
        self._seconds = seconds
        self._pauses = Pauses(seconds)
        self._closed = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def check(self) -> None:
        """Find out whether the token can be used. Raises CustodyUnavailable."""
        self.ask("check", b"", b"")

    def close(self) -> None:
        """End the process, also while a thread waits for its answer."""
        self._closed = True
        helper = self._helper
        if helper is not None:
            helper.kill()
        with self._lock:
            self._drop()

    def ask(self, work: str, data: bytes, context: bytes) -> bytes:
        """Let the token work. Raises CustodyUnavailable; SigningFailed if the token says that ``data`` is no good."""
        with self._lock:
            if self._closed:
                raise self._away("this process is stopping")
            paused = self._pauses.reason()
            if paused is not None:
                raise self._away(paused)
            old = self._helper is not None
            try:
                try:
                    answer = self._tried(work, data, context)
                except _Away as error:
                    if isinstance(error, _Hung) or not old:
                        raise
                    answer = self._tried(work, data, context)
                if answer.get("failed") == MISSING and self._seconds() - self._begun >= FRESH_SECONDS:
                    self._drop()
                    answer = self._tried(work, data, context)
            except _Away as error:
                self._pauses.failed(str(error))
                raise self._away(str(error)) from None
            self._pauses.worked()
        if "failed" in answer:
            raise SigningFailed(answer["text"])
        return bytes.fromhex(answer["ok"])

    def _tried(self, work: str, data: bytes, context: bytes) -> Mapping[str, str]:
        """Send a request to the process, which is started if there is none. Raises _Away."""
        try:
            helper = self._helper or self._started()
            answer = helper.ask(work, data, context)
        except _Away:
            self._drop()
            raise
        if answer.get("failed") in (None, DAMAGED, MISSING):
            return answer
        self._drop()
        raise _Away(answer["text"])

    def _started(self) -> _Helper:
        pin = self._pin()
        with self._logins.turn:
            if self._logins.is_refused(pin):
                raise _Away("the token refuses the PIN, which is not tried again: correct the file of pin-source")
            if self._closed:
                raise _Away("this process is stopping")
            self._begun = self._seconds()
            self._helper = helper = _Helper(self._key, pin, self._timeout_seconds)
            login = helper.log_in()
            if login.get("failed") == PIN:
                self._logins.refuse(pin)
        if "failed" in login:
            raise _Away(login["text"])
        return helper

    def _pin(self) -> str:
        try:
            with Path(self._key.pin_path).open("rb") as file:
                content = file.read(MAX_PIN_BYTES + 1)
            pin = content.decode("utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not UTF-8"
            raise _Away(f"the file of its PIN cannot be read ({why})") from None
        if not pin or len(content) > MAX_PIN_BYTES:
            raise _Away("the file of its PIN is empty or too large")
        return pin

    def _drop(self) -> None:
        if self._helper is not None:
            self._helper.end()
            self._helper = None

    def _away(self, why: str) -> CustodyUnavailable:
        what = "the keys" if self._key.inside else "the key-encrypting key"
        return CustodyUnavailable(f"{what} in {self._key} cannot be used now: {why}")


class Pkcs11Kek(OneVersion, Session):
    """See :class:`notary.envelope.KeyEncryptingKey`: the key of a session."""

    def wrap(self, data_key: bytes, context: bytes) -> bytes:
        """See the port."""
        return self.ask("wrap", data_key, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """See the port."""
        return self.ask("unwrap", wrapped, context)


def require_binding(key: str) -> None:
    """Raise ConfigError unless the binding of PKCS#11 is installed. ``key`` is for messages."""
    if importlib.util.find_spec("pkcs11") is None:
        raise ConfigError(
            f"{key}: a key in a token needs python-pkcs11; expected notary-service[pkcs11] to be installed"
        )


def open_token(uri: KekUri, key: str, _reactor: object) -> Pkcs11Kek:
    """Return the key of ``uri``, which is not asked for yet. ``key`` is for messages. Raises ConfigError."""
    require_binding(key)
    return Pkcs11Kek(uris.parse(uri.place), timeout_seconds=TIMEOUT_SECONDS)
