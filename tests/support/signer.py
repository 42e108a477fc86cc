"""Signers as processes, and grpcio as a client of theirs: independent of the package under test but for the messages.

Rules of this module: a client blocks, so tests that share a process with the signer call it in a thread. Certificates
are minted for the tests.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc

from notary.proto import health_pb2, signer_pb2
from tests.support.certs import Authority, Leaf
from tests.support.peers import OUR_TWISTD, Daemon, free_port

GO_SIGNER = ("/usr/bin/notary-signer",)
OUR_SIGNER = (str(Path(sys.executable).with_name("notary-signer")),)
OUR_TWISTD_SIGNER = (*OUR_TWISTD, "-n", "notary-signer")

CALL_SECONDS = 30.0
KEY_MANAGEMENT = "grpc.health.v1.Health.KeyManagement"
SIGNER = "grpc.health.v1.Health.Signer"

_METHODS = {
    "CreateKey": ("/proto.KeyManagement/CreateKey", signer_pb2.PublicKey),
    "DeleteKey": ("/proto.KeyManagement/DeleteKey", signer_pb2.Void),
    "GetKeyInfo": ("/proto.KeyManagement/GetKeyInfo", signer_pb2.GetKeyInfoResponse),
    "Sign": ("/proto.Signer/Sign", signer_pb2.Signature),
    "Check": ("/grpc.health.v1.Health/Check", health_pb2.HealthCheckResponse),
}


@dataclass(frozen=True)
class Pair:
    """The files of mutual TLS: the signer's certificate, a client's, and the authorities of both, root first."""

    folder: Path
    authority: Authority
    intermediate: Authority
    signer: Leaf
    client: Leaf

    @classmethod
    def mint(cls, folder: Path) -> Self:
        """Make them and write what the signer reads: its own files, and the client's chain as ``clients.crt``."""
        folder.mkdir(parents=True, exist_ok=True)
        root = Authority.root("signer test root")
        middle = root.intermediate("signer test intermediate")
        signer, client = middle.leaf("localhost", "notary-signer", "127.0.0.1"), middle.leaf("notary-server")
        pair = cls(folder, root, middle, signer, client)
        pair.signer.write(folder, "signer")
        pair.client.write(folder, "clients")
        return pair


def signer_config(pair: Pair, port: int, storage: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A configuration that both signers read; ``more`` adds to the section ``server`` or sets ``level``."""
    level = more.pop("level", "error")
    server = {
        "grpc_addr": f"127.0.0.1:{port}",
        "tls_cert_file": str(pair.folder / "signer.crt"),
        "tls_key_file": str(pair.folder / "signer.key"),
        "client_ca_file": str(pair.folder / "clients.crt"),
    }
    return {"server": server | more, "logging": {"level": level}, "storage": dict(storage)}


def signer_daemon(
    name: str,
    command: Sequence[str],
    pair: Pair,
    directory: Path,
    storage: Mapping[str, Any],
    *,
    environment: Mapping[str, str] | None = None,
    flags: str = "",
    **more: Any,
) -> Daemon:
    """A signer of ``command`` on a free port; it is not started yet."""
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    config = directory / f"{name}.json"
    config.write_text(json.dumps(signer_config(pair, port, storage, **more)))
    return Daemon(name, (*command, *shlex.split(flags), f"-config={config}"), port, directory, environment=environment)


class Client:
    """grpcio, as a client of one signer. Use as a context manager: it holds a connection.

    ``leaf`` is whose certificate it shows: by default that of the pair's client; None shows none.
    """

    def __init__(self, pair: Pair, port: int, leaf: Leaf | str | None = "client") -> None:
        shown = pair.client if isinstance(leaf, str) else leaf
        root = (pair.authority.write(pair.folder, "root")).read_bytes()
        if shown is None:
            credentials = grpc.ssl_channel_credentials(root)
        else:
            certificate, key = shown.write(pair.folder, "shown")
            credentials = grpc.ssl_channel_credentials(root, key.read_bytes(), certificate.read_bytes())
        self._channel = grpc.secure_channel(f"localhost:{port}", credentials)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def send(self, method: str, request: bytes, compression: grpc.Compression | None = None) -> Any:
        """Call a method with any bytes; raises grpc.RpcError."""
        path, answer = _METHODS[method]
        call = self._channel.unary_unary(path, response_deserializer=answer.FromString)
        return call(request, timeout=CALL_SECONDS, compression=compression)

    def watch(self, service: str) -> Any:
        """Return an iterator over the answers of a watch."""
        call = self._channel.unary_stream(
            "/grpc.health.v1.Health/Watch", response_deserializer=health_pb2.HealthCheckResponse.FromString
        )
        return call(health_pb2.HealthCheckRequest(service=service).SerializeToString(), timeout=CALL_SECONDS)

    def create(self, gun: str, role: str, algorithm: str) -> Any:
        request = signer_pb2.CreateKeyRequest(gun=gun, role=role, algorithm=algorithm)
        return self.send("CreateKey", request.SerializeToString())

    def info(self, key_id: str) -> Any:
        return self.send("GetKeyInfo", signer_pb2.KeyID(ID=key_id).SerializeToString())

    def delete(self, key_id: str) -> Any:
        return self.send("DeleteKey", signer_pb2.KeyID(ID=key_id).SerializeToString())

    def sign(self, key_id: str, content: bytes) -> Any:
        request = signer_pb2.SignatureRequest(keyID=signer_pb2.KeyID(ID=key_id), content=content)
        return self.send("Sign", request.SerializeToString())

    def health(self, service: str) -> int:
        status: int = self.send("Check", health_pb2.HealthCheckRequest(service=service).SerializeToString()).status
        return status
