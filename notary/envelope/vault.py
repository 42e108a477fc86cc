"""A key-encrypting key in Transit, the engine of HashiCorp Vault and of OpenBao that encrypts for others.

Rules of this module:

- All requests are made on the reactor's thread, one after the other; a method waits for the outcome in its own thread.
  The file of the secret is read in a thread.
- A login is kept until half of its lease is over. Then it is renewed or, if it cannot be, made anew, with the file of
  the secret read again. A login that is refused in the middle is made anew once.
- A secret that was refused is not given again for ``REFUSED_SECONDS``, unless its file has other content: servers lock
  out a role after a few wrong secrets. After any other failure, requests are refused at once until a pause is over.
- A key that can be taken out of the server is refused. No key is made: each login reads the key before it uses it.
- What is encrypted is the context, behind its length, and the data key. The context is not sent as associated data,
  because the server's ``rewrap`` takes none.
- A redirect is not followed, since it would lead the token to another server.
- No secret, no token and no data key is in an error or a ``repr``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Callable, Coroutine, Mapping
from concurrent import futures
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar, cast
from urllib.parse import quote as percent

from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from notary import __version__
from notary.config import KekUri
from notary.config import vault as uris
from notary.config.vault import TransitKey
from notary.envelope.pauses import Pauses
from notary.errors import ConfigError, CustodyUnavailable, NotaryError, PeerUnavailable, SigningFailed
from notary.net.tls.wording import Wording
from notary.peer.http import Answer, Http, Trust
from notary.tuf.canonical import quote
from notary.work.reactor import Reactor

T = TypeVar("T")

TIMEOUT_SECONDS: Final = 10.0
"""How long the server may take to begin one answer, and for all answers of one request, with its login, twice that."""

REFUSED_SECONDS: Final = 300.0
"""Seconds until a secret that was refused is tried again: three times in the quarter of an hour that Vault counts."""

MAX_SECRET_BYTES: Final = 1 << 16

_ANSWER_BYTES: Final = 1 << 20
_PROBE_BYTES: Final = 32
_TYPES: Final = frozenset({"aes128-gcm96", "aes256-gcm96", "chacha20-poly1305", "xchacha20-poly1305"})
"""The types of keys that encrypt and authenticate."""
_LENGTH_BYTES: Final = 2
_VERSION: Final = re.compile(rb"vault:v([1-9][0-9]{0,8}):[A-Za-z0-9+/=]+")
_WORDING: Final = Wording(trusted="ca-file")
_OK, _BAD, _DENIED, _NOT_FOUND, _LIMITED, _SEALED = 200, 400, 403, 404, 429, 503


class _Away(Exception):
    """The server cannot be used now; the text says why."""


class _Denied(_Away):
    """The server does not accept the token, or the token may not do what was asked."""


@dataclass(frozen=True, slots=True)
class _Login:
    """A token of the server, and until when it is used as it is (in seconds of the clock)."""

    token: str = field(repr=False)
    until: float
    renewable: bool


class VaultKek:
    """See :class:`notary.envelope.KeyEncryptingKey`.

    Args:
        key: Where the key is.
        reactor: Makes the requests; it runs, in another thread than those that call the methods.
        seconds: A monotonic clock.
        timeout_seconds: How long the server may take to begin an answer.
    """

    def __init__(
        self,
        key: TransitKey,
        reactor: Reactor,
        seconds: Callable[[], float] | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self.name = key.name
        self._key = key
        self._reactor = reactor
        self._seconds = seconds or reactor.seconds
        self._timeout_seconds = timeout_seconds
        trust = Trust(Path(key.ca_path) if key.ca_path else None)
        self._http = Http(reactor, key.url, trust, connections=1, timeout=timeout_seconds, wording=_WORDING)
        self._turn = DeferredLock()
        self._running: set[Deferred[Any]] = set()
        self._closed = False
        self._login: _Login | None = None
        self._newest = 0  # the version of the key, once it is known
        self._pauses = Pauses(self._seconds)
        self._salt = secrets.token_bytes(16)
        self._refused = b"", -math.inf  # a secret, as a hash, and until when it is not tried again

    def __repr__(self) -> str:
        return f"<VaultKek {self.name}>"

    # -- the port -----------------------------------------------------------------------------------------------------

    def wrap(self, data_key: bytes, context: bytes) -> bytes:
        """See the port."""
        return self._wait_for(lambda: self._encrypt(data_key, context))

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """See the port."""
        return self._wait_for(lambda: self._decrypt(wrapped, context))

    def find_newest(self) -> None:
        """See the port."""
        self._wait_for(self._read_key)

    def is_newest(self, wrapped: bytes) -> bool:
        """See the port: the text of what was encrypted begins with the version of the key."""
        found = _VERSION.fullmatch(wrapped)
        return found is not None and int(found[1]) >= self._newest

    def rewrap(self, wrapped: bytes, context: bytes) -> bytes:
        """See the port: the data key stays in the server, which judges no context."""
        del context
        return self._wait_for(lambda: self._rewrap(wrapped))

    def check(self) -> None:
        """See the port."""
        self._wait_for(self._probe)

    def close(self) -> None:
        """End what is under way. Any thread may call."""
        self._closed = True
        self._reactor.callFromThread(self._end)

    # -- between the threads ------------------------------------------------------------------------------------------

    def _wait_for(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do ``work`` on the reactor's thread, and wait for it in this one."""
        if self._closed:
            raise self._away("this process is stopping")
        outcome: futures.Future[T] = futures.Future()

        def begin() -> None:
            running = Deferred.fromCoroutine(self._in_turn(work))
            self._running.add(running)
            running.addTimeout(2 * self._timeout_seconds, cast("Any", self._reactor))
            running.addBoth(end, running)

        def end(result: Any, running: Deferred[Any]) -> None:
            self._running.discard(running)
            if isinstance(result, Failure):
                outcome.set_exception(result.value)
            else:
                outcome.set_result(result)

        self._reactor.callFromThread(begin)
        try:
            return outcome.result(3 * self._timeout_seconds)
        except futures.TimeoutError:  # the reactor has stopped, or is held up
            raise self._away("this process does not get to ask the server") from None

    def _end(self) -> None:
        for each in list(self._running):
            each.cancel()
        Deferred.fromCoroutine(self._http.close()).addErrback(lambda _: None)

    async def _in_turn(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        try:
            await self._turn.acquire()
        except CancelledError:
            raise self._away("other requests wait for the server") from None
        try:
            paused = self._pauses.reason()
            if paused is not None:
                raise self._away(paused)
            done = await work()
        except (_Away, CancelledError) as error:
            late = "this process is stopping" if self._closed else f"no answer in {2 * self._timeout_seconds:g} seconds"
            why = str(error) or late
            self._pauses.failed(why)
            raise self._away(why) from None
        finally:
            self._turn.release()
        self._pauses.worked()
        return done

    def _away(self, why: str) -> CustodyUnavailable:
        return CustodyUnavailable(f"the key-encrypting key {self._key} cannot be used now: {why}")

    # -- the key ------------------------------------------------------------------------------------------------------

    async def _encrypt(self, data: bytes, context: bytes) -> bytes:
        return self._ciphertext(await self._ask("encrypt", {"plaintext": _base64(_header(context) + data)}))

    async def _decrypt(self, wrapped: bytes, context: bytes) -> bytes:
        try:
            opened = _bytes(await self._ask("decrypt", {"ciphertext": wrapped.decode("ascii", "replace")}))
        except _Refused as refused:
            await self._probe()
            raise _does_not_open(refused) from None
        header = _header(context)
        if not opened.startswith(header):
            raise SigningFailed("its data key does not open: the stored bytes are damaged, it is that of other rows")
        return opened[len(header) :]

    async def _rewrap(self, wrapped: bytes) -> bytes:
        try:
            return self._ciphertext(await self._ask("rewrap", {"ciphertext": wrapped.decode("ascii", "replace")}))
        except _Refused as refused:
            await self._read_key()
            raise _does_not_open(refused) from None

    async def _read_key(self) -> None:
        await self._judge_key(await self._logged_in())

    def _ciphertext(self, answer: Mapping[str, Any]) -> bytes:
        wrapped = str(answer.get("ciphertext")).encode("utf-8", "replace")
        version = _VERSION.fullmatch(wrapped)
        if version is None:
            raise _Away("its answer has no ciphertext of Transit")
        self._newest = max(self._newest, int(version[1]))
        return wrapped

    async def _probe(self) -> None:
        """Encrypt and decrypt something."""
        probe = os.urandom(_PROBE_BYTES)
        wrapped = await self._encrypt(probe, b"probe")
        try:
            opened = _bytes(await self._ask("decrypt", {"ciphertext": wrapped.decode("ascii")}))
        except _Refused as refused:
            raise _Away(f"it does not decrypt what it has encrypted: it says {refused}") from None
        if opened != _header(b"probe") + probe:
            raise _Away("it does not decrypt what it has encrypted")

    async def _ask(self, work: str, message: Mapping[str, str]) -> Mapping[str, Any]:
        """Let the key encrypt, decrypt or rewrap. Raises _Away, and _Refused if a message cannot be decrypted."""
        path = f"{self._key.mount}/{work}/{self._key.key}"
        kept = self._login is not None
        try:
            answer = await self._request("POST", path, message, await self._logged_in())
        except _Denied:
            self._login = None
            if not kept:
                raise
            answer = await self._request("POST", path, message, await self._logged_in())
        if answer.status == _BAD and work != "encrypt":
            raise _Refused(_errors(answer))
        return _data(answer, "data")

    # -- the login ----------------------------------------------------------------------------------------------------

    async def _logged_in(self) -> str:
        """Return a token. Raises _Away."""
        login = self._login
        if login is not None and self._seconds() >= login.until:
            self._login = None
            login = await self._renewed(login)
        if login is None:
            login = await self._log_in()
            await self._judge_key(login.token)
        self._login = login
        return login.token

    async def _renewed(self, login: _Login) -> _Login | None:
        """Return the same token with a longer lease, or None if it cannot have one."""
        if not login.renewable:
            return None
        answer = await self._request("POST", "auth/token/renew-self", {}, login.token, judge=False)
        if answer.status in (_BAD, _DENIED):
            return None
        return self._login_of(_data(_judged(answer, "auth/token/renew-self"), "auth"), login.token)

    async def _log_in(self) -> _Login:
        secret = await deferToThreadPool(self._reactor, self._reactor.getThreadPool(), self._secret)
        digest = hashlib.sha256(self._salt + secret.encode()).digest()
        if digest == self._refused[0] and self._seconds() < self._refused[1]:
            raise _Away(
                f"the server has refused the content of {self._key.secret_path}, which is tried again "
                f"{REFUSED_SECONDS:g} seconds later, or when the file changes"
            )
        key, path = self._key, f"auth/{self._key.auth_mount}/login"
        if key.login == "token":
            answer = await self._request("GET", "auth/token/lookup-self", None, secret, judge=False)
        elif key.login == "approle":
            answer = await self._request("POST", path, {"role_id": key.role, "secret_id": secret}, judge=False)
        else:
            answer = await self._request("POST", path, {"role": key.role, "jwt": secret}, judge=False)
        if answer.status in (_BAD, _DENIED):
            self._refused = digest, self._seconds() + REFUSED_SECONDS
            raise _Away(
                f"the server refuses the {key.login} login with the content of {key.secret_path}: correct the file, "
                "or the role at the server"
            )
        if key.login == "token":
            found = _data(_judged(answer, "auth/token/lookup-self"), "data")
            return self._login_of({**found, "lease_duration": found.get("ttl")}, secret)
        found = _data(_judged(answer, path), "auth")
        token = found.get("client_token")
        if not isinstance(token, str) or not token.isprintable() or not token.isascii() or not token:
            raise _Away("its answer to the login has no token")
        return self._login_of(found, token)

    def _login_of(self, found: Mapping[str, Any], token: str) -> _Login:
        lease = found.get("lease_duration")
        if isinstance(lease, bool) or not isinstance(lease, int) or lease < 0:
            raise _Away("its answer to the login has no lease")
        half = max(1.0, lease / 2) if lease else math.inf  # 0 is a token without an end
        return _Login(token, self._seconds() + half, found.get("renewable") is True)

    def _secret(self) -> str:
        path = self._key.secret_path
        try:
            with Path(path).open("rb") as file:
                content = file.read(MAX_SECRET_BYTES + 1)
            secret = content.decode("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not ASCII"
            raise _Away(f"{path} cannot be read ({why})") from None
        if not secret or len(content) > MAX_SECRET_BYTES or not secret.isprintable():
            raise _Away(f"{path} is empty, too large, or has more than one line")
        return secret

    async def _judge_key(self, token: str) -> None:
        """Read what the server says of the key, and its newest version. Raises _Away if it is not there, or no good."""
        path = f"{self._key.mount}/keys/{self._key.key}"
        found = _data(await self._request("GET", path, None, token), "data")
        if found.get("exportable") is not False or found.get("allow_plaintext_backup") is not False:
            raise _Away(
                "the key can be taken out of the server: make one that is not exportable and has no plain backup"
            )
        if found.get("type") not in _TYPES:
            raise _Away(f"the key is of a type that is not used here; expected one of {', '.join(sorted(_TYPES))}")
        if found.get("derived") is not False:
            raise _Away("the key derives other keys (derived=true): make one that does not")
        newest = found.get("latest_version")
        if isinstance(newest, bool) or not isinstance(newest, int) or newest < 1:
            raise _Away("what it says of the key has no version")
        self._newest = max(self._newest, newest)

    # -- HTTP ---------------------------------------------------------------------------------------------------------

    async def _request(
        self, method: str, path: str, message: Mapping[str, str] | None, token: str = "", *, judge: bool = True
    ) -> Answer:
        """Make one request. Raises _Away; if ``judge`` is false, only if there is no answer."""
        headers = {"User-Agent": f"notary-signer/{__version__}", "X-Vault-Request": "true"}
        if token:
            headers["X-Vault-Token"] = token
        if self._key.namespace:
            headers["X-Vault-Namespace"] = self._key.namespace
        body = None if message is None else json.dumps(message).encode()
        if body is not None:
            headers["Content-Type"] = "application/json"
        url = f"{self._key.url}/v1/{percent(path)}"
        ask = partial(self._http.request, method, url, _ANSWER_BYTES, headers=headers, form=body, follow=False)
        begun = self._seconds()
        try:
            try:
                answer = await ask()
            except PeerUnavailable:
                if self._seconds() - begun >= self._timeout_seconds / 2:
                    raise
                answer = await ask()  # the server had closed an idle connection; each request may be made twice
        except NotaryError as error:
            raise _Away(str(error)) from None
        return _judged(answer, path) if judge else answer


class _Refused(Exception):
    """The server cannot decrypt what it was given; the text is what it says."""


def _does_not_open(refused: _Refused) -> SigningFailed:
    return SigningFailed(
        "its data key does not open: the stored bytes are damaged, or the key is another one, or does not allow this "
        f"version any more (min_decryption_version); the server says {refused}"
    )


def _header(context: bytes) -> bytes:
    """What is encrypted in front of a data key."""
    return len(context).to_bytes(_LENGTH_BYTES, "big") + context


def _judged(answer: Answer, path: str) -> Answer:
    """Return an answer that says something of the request. Raises _Away for one that does not."""
    status = answer.status
    if status in (_OK, _BAD):
        return answer
    if status == _DENIED:
        raise _Denied(f"the server denies {path}: the token has ended, or its policies do not allow this path")
    if status == _NOT_FOUND:
        raise _Away(f"there is no {path} at the server: the mount or the key is another one, or not there")
    if status == _SEALED:
        raise _Away(f"the server is sealed, or in maintenance: it says {_errors(answer)}")
    if status == _LIMITED:
        raise _Away("the server limits requests, or is a standby: see its quotas, or name its active node")
    if 300 <= status < 400:  # noqa: PLR2004 - what a redirect is
        raise _Away(
            f"the server redirects to {quote(answer.header('location'))}, which is not followed: name that server, or "
            "let standby nodes forward requests"
        )
    raise _Away(f"the server answers with status {status}: it says {_errors(answer)}")


def _data(answer: Answer, name: str) -> Mapping[str, Any]:
    """Return the object ``name`` of an answer. Raises _Away."""
    if answer.status != _OK:
        raise _Away(f"the server refuses the request: it says {_errors(answer)}")
    try:
        found = json.loads(answer.body)[name]
    except (ValueError, TypeError, LookupError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _Away("it does not answer as Vault does: is another server at this address?")
    return found


def _errors(answer: Answer) -> str:
    """What the server says, in a form for messages."""
    try:
        return quote("; ".join(map(str, json.loads(answer.body)["errors"]))) or "nothing"
    except (ValueError, TypeError, LookupError, RecursionError):
        return "nothing that Vault would say"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(answer: Mapping[str, Any]) -> bytes:
    try:
        return base64.b64decode(answer["plaintext"], validate=True)
    except (ValueError, TypeError, LookupError):
        raise _Away("its answer has no plaintext") from None


def open_transit(uri: KekUri, key: str, reactor: Reactor) -> VaultKek:
    """Return the key of ``uri``, which is not asked for yet. ``key`` is for messages. Raises ConfigError."""
    try:
        return VaultKek(uris.parse(uri.place), reactor)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None
