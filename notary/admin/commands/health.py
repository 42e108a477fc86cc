"""``health`` asks a running daemon on this machine how it is: what the health checks of containers run.

Rules of this module: the question goes to the address that the configuration tells the daemon to listen on, and the
daemon is known by the very certificate that the configuration gives it. No other authority is asked, so the check needs
no name that fits and works while the daemon is behind whatever proxy.
"""

from __future__ import annotations

import http.client
import ssl
from contextlib import closing
from pathlib import Path
from typing import Final

from cryptography import x509
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

SECONDS: Final = 4.0
"""How long the daemon may take to answer."""

_OK: Final = 200


@command("health")
async def health(session: Session) -> int:
    """Ask the running daemon of this configuration, on this machine, whether it can work.

    The exit status is 0 if it can, and 1 if it cannot or does not answer; a line says why. A signer is asked with its
    own certificate, which its client_ca_file must therefore accept.
    """
    config = session.config
    if isinstance(config, ServerConfig):
        trouble = await deferToThread(_ask_server, config)
    else:
        trouble = await _ask_signer(config, session)
    session.out.say(trouble or "healthy")
    return Status.FOUND if trouble else Status.OK


def _ask_server(config: ServerConfig) -> str:
    """Read the health page; "" or what is wrong."""
    address, files = config.server.http_addr, config.server
    host = address.host or "localhost"
    connection = http.client.HTTPConnection(host, address.port, timeout=SECONDS)
    if files.tls_cert_file is not None and files.tls_key_file is not None:
        context = ssl.create_default_context(cafile=str(files.tls_cert_file))
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
        context.check_hostname = False
        context.load_cert_chain(files.tls_cert_file, files.tls_key_file)
        connection = http.client.HTTPSConnection(host, address.port, timeout=SECONDS, context=context)
    with closing(connection):
        try:
            connection.request("GET", "/_notary_server/health")
            answer = connection.getresponse()
            body = answer.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            return f"the server at {address} does not answer: {error}"
    return "" if answer.status == _OK else f"the server at {address} says {answer.status}: {body}"


async def _ask_signer(config: SignerConfig, session: Session) -> str:
    """Call the health service; "" or what is wrong."""
    address, files = config.server.grpc_addr, config.server
    own = SERVER_TLS["cert_file"]
    options = contexts.client_options(
        _name(files.tls_cert_file),
        files.tls_cert_file,
        files.tls_cert_file,
        files.tls_key_file,
        wording=Wording(own, SERVER_TLS["key_file"], trusted=own, client_cert=own),
    )
    channel = Channel.to(session.reactor, address.host or "localhost", address.port, options)
    session.at_end(channel.close)
    request = health_pb2.HealthCheckRequest()  # of the signer as a whole, for which client_names does not count
    try:
        answer = await channel.call(paths.CHECK_HEALTH, request.SerializeToString(), SECONDS)
    except RpcError as error:
        return f"the signer at {address} does not answer: {error}"
    if health_pb2.HealthCheckResponse.FromString(answer).status != health_pb2.HealthCheckResponse.SERVING:
        return f"the signer at {address} says that it cannot work; its log says why"
    return ""


def _name(certificate: Path) -> str:
    """A name that the certificate in this file carries. Raises ConfigError."""
    try:
        data = certificate.read_bytes()
        with certs.reading():
            leaf = certs.first_in_pem(data)
            names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            return names.get_values_for_type(x509.DNSName)[0]
    except (OSError, InvalidCertificate) as error:
        raise ConfigError(f"server.tls_cert_file: no name of this certificate can be read: {error}") from None
