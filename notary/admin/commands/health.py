"""``health`` asks a running daemon on this machine for its health; the health checks of containers run this command.

Rules of this module: the request goes to the address in the configuration of the daemon, and only the certificate in
that configuration is trusted. So the certificate need not have the name of that address, and the check also works if
the daemon is behind a proxy.
"""

from __future__ import annotations

import http.client
import ssl
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

import click
from twisted.internet.threads import deferToThread

from notary import certs
from notary.admin.command import Status, command
from notary.admin.session import Session
from notary.config import ServerConfig, SignerConfig
from notary.config.files import SERVER_TLS
from notary.errors import ConfigError, InvalidCertificate
from notary.net.grpc import Channel, RpcError
from notary.net.tls import contexts
from notary.net.tls.wording import Wording
from notary.proto import health_pb2, paths

TIMEOUT_SECONDS: Final = 4.0
"""The longest time until the daemon answers."""

_HTTP_OK: Final = 200


class _Client(NamedTuple):
    """The files of the certificate that is presented to a daemon that asks for one, and of its key."""

    certificate: Path
    key: Path


_FILE: Final = click.Path(dir_okay=False, path_type=Path)


@command("health")
@click.option(
    "--tls-client-cert",
    "certificate",
    type=_FILE,
    help="The certificate to present to a daemon with client_ca_file; by default, the daemon's own.",
)
@click.option("--tls-client-key", "key", type=_FILE, help="The private key of --tls-client-cert.")
async def health(session: Session, certificate: Path | None, key: Path | None) -> int:
    """Ask the running daemon of this configuration, on this machine, whether it is healthy.

    The exit status is 0 if the daemon is healthy, and 1 if it is not or does not answer; a line says why. If the daemon
    has client_ca_file, the request presents the daemon's own certificate. If client_ca_file does not accept that one,
    as where it is the server's certificate alone, give the server's with --tls-client-cert and --tls-client-key.
    """
    config = session.config
    if (certificate is None) != (key is None):
        raise ConfigError("--tls-client-cert, --tls-client-key: one is given without the other; expected both")
    client = None if certificate is None or key is None else _Client(certificate, key)
    if isinstance(config, ServerConfig):
        problem = await deferToThread(_ask_server, config, client)
    else:
        problem = await _ask_signer(config, client, session)
    if problem and client is None and config.server.client_ca_file is not None:
        problem += (
            "; if the certificate that was presented is the reason, which is the daemon's own, give one that "
            "server.client_ca_file accepts with --tls-client-cert and --tls-client-key"
        )
    session.out.say(problem or "healthy")
    return Status.FOUND if problem else Status.OK


def _ask_server(config: ServerConfig, client: _Client | None) -> str:
    """Read the health page. Returns the problem, or "" if there is none."""
    address, files = config.server.http_addr, config.server
    host = address.host or "localhost"
    connection = http.client.HTTPConnection(host, address.port, timeout=TIMEOUT_SECONDS)
    if files.tls_cert_file is not None and files.tls_key_file is not None:
        context = ssl.create_default_context(cafile=str(files.tls_cert_file))
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
        # Python 3.13 and later add a check that no client of Notary makes: many an authority does not pass it.
        context.verify_flags &= ~ssl.VerifyFlags.VERIFY_X509_STRICT
        context.check_hostname = False
        _present(context, client or _Client(files.tls_cert_file, files.tls_key_file))
        connection = http.client.HTTPSConnection(host, address.port, timeout=TIMEOUT_SECONDS, context=context)
    with closing(connection):
        try:
            connection.request("GET", "/_notary_server/health")
            answer = connection.getresponse()
            body = answer.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            return f"the server at {address} does not answer: {error}"
    return "" if answer.status == _HTTP_OK else f"the server at {address} says {answer.status}: {body}"


def _present(context: ssl.SSLContext, client: _Client) -> None:
    """Let connections of this context present a certificate. Raises ConfigError if its files cannot be used."""
    try:
        context.load_cert_chain(client.certificate, client.key)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"{client.certificate}, {client.key}: not a certificate and its key ({error})") from None


async def _ask_signer(config: SignerConfig, client: _Client | None, session: Session) -> str:
    """Call the health service. Returns the problem, or "" if there is none."""
    address, files = config.server.grpc_addr, config.server
    if client is None:
        own = _Client(files.tls_cert_file, files.tls_key_file)
        shown = SERVER_TLS["cert_file"], SERVER_TLS["key_file"]
    else:
        own, shown = client, ("--tls-client-cert", "--tls-client-key")
    options = contexts.client_options(
        _name(files.tls_cert_file),
        files.tls_cert_file,
        own.certificate,
        own.key,
        wording=Wording(*shown, trusted=SERVER_TLS["cert_file"], client_cert=shown[0]),
    )
    channel = Channel.to(session.reactor, address.host or "localhost", address.port, options)
    session.at_end(channel.close)
    request = health_pb2.HealthCheckRequest()  # the signer as a whole; client_names does not restrict this call
    try:
        answer = await channel.call(paths.CHECK_HEALTH, request.SerializeToString(), TIMEOUT_SECONDS)
    except RpcError as error:
        return f"the signer at {address} does not answer: {error}"
    if health_pb2.HealthCheckResponse.FromString(answer).status != health_pb2.HealthCheckResponse.SERVING:
        return f"the signer at {address} says that it cannot work; its log says why"
    return ""


def _name(certificate: Path) -> str:
    """Return a name of the certificate in this file. Raises ConfigError."""
    try:
        data = certificate.read_bytes()
        names = certs.first_in_pem(data).dns_names
    except (OSError, InvalidCertificate) as error:
        raise ConfigError(f"server.tls_cert_file: no DNS name of this certificate can be read: {error}") from None
    if not names:
        raise ConfigError("server.tls_cert_file: this certificate has no DNS name; clients of the signer need one")
    return names[0]
