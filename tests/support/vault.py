"""A server that answers as Vault's and OpenBao's published API says, as far as a key-encrypting key needs it.

Rules of this module: it refuses what the documentation says that they refuse, by the statuses that it names: a token
that is missing, has ended or may not use a path; an encryption with a key that is not there; a ciphertext of another
key, other associated data or a version that is not allowed; a login whose secret is wrong, or used up. Time passes
when a test says so. It is no copy of either program, and proves nothing about them.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from weakref import WeakSet

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.support.peers import mint_certificates

DENIED = "1 error occurred:\n\t* permission denied\n\n"
RIGHTS = frozenset({"read transit/keys/notary", "update transit/encrypt/notary", "update transit/decrypt/notary"})
"""What docs/keys.md has the policy of a signer allow."""

REWRAPS = frozenset({"read transit/keys/notary", "update transit/rewrap/notary"})
"""What docs/keys.md has the policy of a rotation allow."""

_LOCKOUT = 5
"""Wrong secrets until a role is locked out."""


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, *errors: str) -> None:
        super().__init__(status)
        self.status = status
        self.errors = errors


@dataclass
class Key:
    """A key of Transit, with its versions."""

    type: str = "aes256-gcm96"
    exportable: bool = False
    derived: bool = False
    allow_plaintext_backup: bool = False
    min_decryption_version: int = 1
    versions: list[bytes] = field(default_factory=lambda: [os.urandom(32)])


@dataclass
class Token:
    """What a token may do, and until when."""

    rights: frozenset[str] = RIGHTS | REWRAPS
    ends: float = float("inf")
    ttl: int = 0
    renewable: bool = False
    last: float = float("inf")  # the time that no renewal goes beyond


class Server(ThreadingHTTPServer):
    """An HTTP server that knows its connections, and is silent about those that end."""

    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.connections: WeakSet[socket.socket] = WeakSet()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing."""


class Vault:
    """The server. Its state is plain: tests change it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.files = mint_certificates(folder / "tls")
        self.now = 0.0
        self.keys = {"transit/notary": Key()}
        self.tokens = {"root-of-the-test": Token()}
        self.secret_ids: dict[str, float] = {}  # how often each may be used
        self.role_id = "the-role-id"
        self.jwts: dict[str, str] = {}  # the role of each service account
        self.granted = Token(ttl=600, renewable=True)  # what a login gives
        self.wrong = Counter[str]()
        self.namespace = ""
        self.sealed = False
        self.answer: tuple[int, Mapping[str, str], bytes] | None = None  # to everything, if it is given
        self.hangs = threading.Event()
        self.requests: list[str] = []
        self._goes_on = threading.Event()
        self._lock = threading.Lock()
        self._server: Server | None = None

    # -- for tests ----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.listen()
        return self

    def listen(self, port: int = 0) -> None:
        server = Server(("127.0.0.1", port), self._handler())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.files.certificate, self.files.key)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = server.server_address[1]
        self._server = server
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        assert self._server is not None
        self._server.shutdown()
        for each in list(self._server.connections):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._server.server_close()

    def __exit__(self, *_: object) -> None:
        self._goes_on.set()
        self.stop()

    def uri(self, query: str | None = None, path: str = "transit/notary") -> str:
        """The URI of a key; without ``query``, with a token that is in a file."""
        if query is None:
            (self.folder / "token").write_text("root-of-the-test\n")
            query = f"token-file={self.folder}/token"
        return f"vault:https://localhost:{self.port}/{path}?{query}&ca-file={self.files.ca}"

    def with_secret_id(self, secret_id: str = "a-secret-id", uses: float = float("inf")) -> str:
        """The URI with a login by AppRole."""
        self.secret_ids[secret_id] = uses
        (self.folder / "secret-id").write_text(secret_id)
        return self.uri(f"role-id={self.role_id}&secret-id-file={self.folder}/secret-id")

    def with_service_account(self, jwt: str = "a.service.account") -> str:
        """The URI with a login by Kubernetes."""
        self.jwts[jwt] = "notary"
        (self.folder / "jwt").write_text(jwt)
        return self.uri(f"kubernetes-role=notary&jwt-file={self.folder}/jwt")

    def rotate(self, name: str = "transit/notary") -> None:
        self.keys[name].versions.append(os.urandom(32))

    def logins(self) -> int:
        return sum(request.endswith("/login") for request in self.requests)

    # -- the API ------------------------------------------------------------------------------------------------------

    def respond(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Any]:
        with self._lock:
            self.requests.append(f"{method} {path}")
            if self.sealed:
                return 503, {"errors": ["Vault is sealed"]}
            try:
                return 200, self._done(method, path, headers, body)
            except Refusal as refusal:
                return refusal.status, {"errors": list(refusal.errors)}

    def _done(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Any:
        if not path.startswith("/v1/"):
            raise Refusal(404)
        path = path.removeprefix("/v1/")
        message = self._message(method, body)
        if (headers.get("X-Vault-Namespace") or "") != self.namespace:
            raise Refusal(404, f'no handler for route "{path}". route entry not found.')
        if path.endswith("/login") and path.startswith("auth/"):
            return {"auth": self._login(path.split("/")[1], message)}
        token = self.tokens.get(headers.get("X-Vault-Token") or "")
        if token is None or token.ends <= self.now:
            raise Refusal(403, DENIED)
        if (method, path) == ("GET", "auth/token/lookup-self"):
            left = 0 if token.ends == float("inf") else int(token.ends - self.now)
            return {"data": {"ttl": left, "renewable": token.renewable, "id": "not shown here"}}
        if (method, path) == ("POST", "auth/token/renew-self"):
            return {"auth": self._renewed(token)}
        work, _, name = path.removeprefix("transit/").partition("/")
        if not path.startswith("transit/") or work not in ("keys", "encrypt", "decrypt", "rewrap"):
            raise Refusal(404, f'no handler for route "{path}". route entry not found.')
        if method != ("GET" if work == "keys" else "POST"):
            raise Refusal(405, "1 error occurred:\n\t* unsupported operation\n\n")
        if f"{'read' if work == 'keys' else 'update'} {path}" not in token.rights:
            raise Refusal(403, DENIED)
        key = self.keys.get(f"transit/{name}")
        if key is None:
            raise Refusal(404) if work == "keys" else Refusal(400, "encryption key not found")
        return {"data": getattr(self, f"_{work}")(key, message)}

    def _message(self, method: str, body: bytes) -> Mapping[str, Any]:
        if method == "GET":
            return {}
        try:
            message = json.loads(body)
            assert isinstance(message, dict)
        except (ValueError, AssertionError):
            raise Refusal(400, "failed to parse JSON input") from None
        return message

    def _login(self, mount: str, message: Mapping[str, Any]) -> Mapping[str, Any]:
        if mount == "approle":
            role, secret = message.get("role_id"), message.get("secret_id")
            if self.wrong[str(role)] >= _LOCKOUT:
                raise Refusal(403, DENIED)
            if role != self.role_id or self.secret_ids.get(str(secret), 0) < 1:
                self.wrong[str(role)] += 1
                raise Refusal(400, "invalid role or secret ID")
            self.secret_ids[str(secret)] -= 1
        elif mount == "kubernetes":
            if self.jwts.get(str(message.get("jwt"))) != message.get("role"):
                raise Refusal(403, DENIED)
        else:
            raise Refusal(403, DENIED)
        name, granted = f"hvs.{os.urandom(9).hex()}", self.granted
        ends = self.now + granted.ttl if granted.ttl else float("inf")
        self.tokens[name] = Token(granted.rights, ends, granted.ttl, granted.renewable, self.now + granted.last)
        return {"client_token": name, "lease_duration": granted.ttl, "renewable": granted.renewable}

    def _renewed(self, token: Token) -> Mapping[str, Any]:
        if not token.renewable:
            raise Refusal(400, "lease is not renewable")
        token.ends = min(self.now + token.ttl, token.last)
        return {"client_token": "", "lease_duration": int(token.ends - self.now), "renewable": True}

    def _keys(self, key: Key, _message: object) -> Mapping[str, Any]:
        shown = {name: value for name, value in vars(key).items() if name != "versions"}
        return {**shown, "latest_version": len(key.versions), "deletion_allowed": False}

    def _cipher(self, key: Key, version: int) -> AESGCM:
        if key.derived:
            raise Refusal(400, "missing 'context' for key derivation; the key was created using a derived key")
        if not 1 <= version <= len(key.versions):
            raise Refusal(400, "ciphertext version is newer than the key version")
        if version < key.min_decryption_version:
            raise Refusal(400, "ciphertext or signature version is disallowed by policy (too old)")
        return AESGCM(key.versions[version - 1])

    def _encrypt(self, key: Key, message: Mapping[str, Any]) -> Mapping[str, Any]:
        plain, bound = self._binary(message, "plaintext"), self._bound(message)
        return self._encrypted(key, plain, bound)

    def _encrypted(self, key: Key, plain: bytes, bound: bytes) -> Mapping[str, Any]:
        version, nonce = len(key.versions), os.urandom(12)
        sealed = nonce + self._cipher(key, version).encrypt(nonce, plain, bound)
        return {"ciphertext": f"vault:v{version}:{base64.b64encode(sealed).decode()}", "key_version": version}

    def _decrypt(self, key: Key, message: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"plaintext": base64.b64encode(self._decrypted(key, message, self._bound(message))).decode()}

    def _rewrap(self, key: Key, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """The published API names no associated data here: what was encrypted with some is refused."""
        return self._encrypted(key, self._decrypted(key, message, b""), b"")

    def _bound(self, message: Mapping[str, Any]) -> bytes:
        return self._binary(message, "associated_data") if "associated_data" in message else b""

    def _decrypted(self, key: Key, message: Mapping[str, Any], bound: bytes) -> bytes:
        prefix, version, text = (*str(message.get("ciphertext")).split(":", 2), "", "")[:3]
        if prefix != "vault" or not version.startswith("v") or not version[1:].isdigit():
            raise Refusal(400, "invalid ciphertext: no prefix")
        sealed = self._binary({"ciphertext": text}, "ciphertext")
        if len(sealed) < 28:
            raise Refusal(400, "invalid ciphertext length")
        try:
            return self._cipher(key, int(version[1:])).decrypt(sealed[:12], sealed[12:], bound)
        except InvalidTag:
            raise Refusal(400, "cipher: message authentication failed") from None

    def _binary(self, message: Mapping[str, Any], name: str) -> bytes:
        try:
            return base64.b64decode(message[name], validate=True)
        except (KeyError, TypeError):
            raise Refusal(400, f"missing {name}") from None
        except ValueError:
            raise Refusal(400, f"failed to base64-decode {name}") from None

    # -- HTTP ---------------------------------------------------------------------------------------------------------

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        vault = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 60

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if vault.hangs.is_set():
                    vault._goes_on.wait()
                if vault.answer is not None:
                    status, more, content = vault.answer
                else:
                    status, value = vault.respond(self.command, self.path, self.headers, body)
                    more, content = {"Content-Type": "application/json"}, json.dumps(value).encode()
                self.send_response(status)
                for name, text in more.items():
                    self.send_header(name, text)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_LIST = handle_any

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Handler
