"""Who may read: the bearer tokens of registries, Basic, and anonymous callers.

Rules of this module: a token or a password is sent to the server that asked for it, over HTTPS or loopback, and is in
no message. Tokens are kept until shortly before they expire.

A server answers 401 with a challenge. For Basic, the login goes along with the next requests. For Bearer, the challenge
names a token service, which gives a token for the login, or for nobody if there is no login. The server chooses the
token service, so a login is given only to a server that an operator trusts with it, as with Docker.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final, Protocol
from urllib.parse import urlencode

from notary.errors import PeerDenied, PeerFailed, PeerUnavailable
from notary.peer.http import Http, origin
from notary.work.lru import Lru

MAX_TOKEN_BYTES: Final = 1 << 20
DEFAULT_TOKEN_SECONDS: Final = 60
"""The life of a token whose service does not say how long it lives."""
_MARGIN: Final = 0.9
"""The share of its life after which a token is renewed."""
_REMEMBERED: Final = 10_000
_CLIENT: Final = "notary-admin"
_OK: Final = 200
_UNAUTHORIZED: Final = 401
_FORBIDDEN: Final = 403

_TOKEN = re.compile(r"[\x21-\x7e]+")
_PART = re.compile(r'[\s,]*+([A-Za-z0-9_.~+-]++)(?:\s*+=\s*+(?:"((?:[^"\\]|\\.)*+)"|([^\s,"]*+)))?+')
"""A scheme, or a parameter with its value in quotes or without."""


@dataclass(frozen=True, slots=True)
class Login:
    """A name and a password, or the ``identity_token`` of an OAuth 2 service in place of both."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of ``Authorization``."""
        pair = f"{self.username}:{self.password}".encode()
        return f"Basic {base64.b64encode(pair).decode('ascii')}"


class Credentials(Protocol):
    """Where logins come from."""

    async def find(self, server: str, gun: str) -> Login | None:
        """Return the login for a collection (``gun``, "" for none) at a server (``host:port`` or ``host``)."""
        ...


class Anonymous:
    """No logins at all."""

    async def find(self, server: str, gun: str) -> Login | None:  # noqa: ARG002 - see the port
        """See the port."""
        return None


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to authenticate: the scheme in lower case, and its parameters."""

    scheme: str
    parameters: Mapping[str, str]


def challenges(fields: Iterable[str]) -> list[Challenge]:
    """Read the values of ``WWW-Authenticate``. What cannot be read is left out."""
    found: list[tuple[str, dict[str, str]]] = []
    for value in fields:
        at = 0
        while at < len(value) and (part := _PART.match(value, at)):
            name, quoted, plain = part.groups()
            if quoted is None and plain is None:
                found.append((name.lower(), {}))
            elif found:
                text = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain
                found[-1][1].setdefault(name.lower(), text)
            at = part.end()
    return [Challenge(scheme, parameters) for scheme, parameters in found]


@dataclass(frozen=True, slots=True)
class _Permit:
    """A value of ``Authorization``, good until ``until`` (seconds of the clock)."""

    header: str = field(repr=False)
    until: float


class Access:
    """The permits of one run at one server, by what they are for: a collection, or "" for the list of all."""

    def __init__(self, http: Http, url: str, credentials: Credentials, seconds: Callable[[], float]) -> None:
        self._http = http
        self._origin = origin(url)
        self._credentials = credentials
        self._seconds = seconds
        self._permits: Lru[str, _Permit] = Lru(_REMEMBERED)
        self._basic: set[str] = set()

    def headers(self, gun: str) -> dict[str, str]:
        """Return the fields to send along with a request."""
        permit = self._permits.get(gun)
        if permit is None or self._seconds() >= permit.until:
            return {}
        return {"Authorization": permit.header}

    async def answer(self, gun: str, fields: Iterable[str]) -> None:
        """Answer a challenge, so that :meth:`headers` has a new permit.

        Raises PeerDenied if that is not possible, and the errors of :meth:`notary.peer.http.Http.request`.
        """
        offered = {challenge.scheme: challenge for challenge in reversed(challenges(fields))}
        scheme, host, port = self._origin
        usual = port == (443 if scheme == "https" else 80)
        login = await self._credentials.find(host if usual else f"{host}:{port}", gun)
        if "bearer" in offered:
            self._permits.put(gun, await self._token(offered["bearer"].parameters, login))
        elif "basic" in offered and login is not None and not login.identity_token:
            self._require_private(self._origin, "the server")
            self._permits.put(gun, _Permit(login.basic, float("inf")))
        elif "basic" in offered:
            raise PeerDenied("the server wants a name and a password: give them by --credentials or --docker-config")
        else:
            raise PeerDenied("the server wants a login of a kind that is not known here (neither Bearer nor Basic)")

    async def _token(self, parameters: Mapping[str, str], login: Login | None) -> _Permit:
        realm = parameters.get("realm", "")
        place = origin(realm)
        if self._origin[0] == "https" and place[0] != "https":
            raise PeerFailed(f"the server names a token service without HTTPS ({realm[:200]!r})")
        asked = [(name, parameters[name]) for name in ("service",) if parameters.get(name)]
        scopes = parameters.get("scope", "").split()
        if login is not None:
            self._require_private(place, "the token service")
        if login is not None and login.identity_token:
            form = {
                **dict(asked),
                "grant_type": "refresh_token",
                "refresh_token": login.identity_token,
                "client_id": _CLIENT,
                "scope": " ".join(scopes),
            }
            answer = await self._http.request("POST", realm, MAX_TOKEN_BYTES, form=form)
        else:
            asked += [("scope", scope) for scope in scopes]
            headers = {}
            if login is not None:
                asked.append(("account", login.username))
                headers["Authorization"] = login.basic
            url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(asked)}" if asked else realm
            answer = await self._http.request("GET", url, MAX_TOKEN_BYTES, headers=headers)
        if answer.status in (_UNAUTHORIZED, _FORBIDDEN):
            who = "this login" if login is not None else "callers without a login"
            raise PeerDenied(f"the token service {place[1]} gives no token to {who} ({answer.status})")
        if answer.status != _OK:
            raise unavailable_or_failed(f"the token service {place[1]}", answer.status, answer.header("retry-after"))
        return self._permit(answer.body, place[1])

    def _permit(self, body: bytes, host: str) -> _Permit:
        try:
            value = json.loads(body)
            token = value.get("token") or value.get("access_token")
            seconds = float(value.get("expires_in") or DEFAULT_TOKEN_SECONDS)
        except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
            token, seconds = None, 0.0
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise PeerFailed(f"the token service {host} answers with something else than a token")
        return _Permit(f"Bearer {token}", self._seconds() + _MARGIN * seconds)

    def _require_private(self, place: tuple[str, str, int], what: str) -> None:
        scheme, host, _ = place
        if scheme != "https" and not _is_loopback(host):
            raise PeerDenied(f"{what} {host} has no HTTPS: no login is sent there")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


_UNAVAILABLE: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


def unavailable_or_failed(who: str, status: int, retry_after: str) -> PeerFailed:
    """Return the error for a status other than success: whether asking again may help."""
    if status in _UNAVAILABLE:
        seconds = float(retry_after) if re.fullmatch(r"[0-9]{1,9}", retry_after.strip()) else 0.0
        return PeerUnavailable(f"{who} answers with status {status}", seconds)
    return PeerFailed(f"{who} answers with status {status}")
