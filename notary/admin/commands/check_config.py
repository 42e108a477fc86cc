"""``check-config`` tells whether a daemon would start with a configuration, and on its database.

Rules of this module: it uses what the daemons use wherever it can, changes nothing, opens no port, and shows no secret.
A configuration that cannot even be read is the error of the command, all other problems are lines of its report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from notary.admin import certificates
from notary.admin.command import Status, command
from notary.admin.output import ago, show
from notary.admin.session import Session
from notary.config import ServerConfig, SignerConfig
from notary.config.files import SERVER_TLS, SIGNER_CLIENT_TLS, certificate_files, settings
from notary.errors import NotaryError
from notary.net.tls import contexts
from notary.net.tls.wording import Wording
from notary.storage.open import open_key_store, open_metadata_store


@command("check-config")
async def check_config(session: Session) -> int:
    """Check a configuration: its values, its certificates, its database.

    Says what the daemon would work with (secrets are not shown), then what is not in order. The exit status is 1 if
    something would keep the daemon from starting or its peers from trusting it.
    """
    config, out = session.config, session.out
    daemon = "server" if isinstance(config, ServerConfig) else "signer"
    with out.table("Key", "Value") as add:
        add(["(daemon)", daemon], {"key": "(daemon)", "value": daemon})
        for path, key, value in settings(config):
            text = _setting(value, secret=key.secret)
            add([path, text], {"key": path, "value": text})
    checks = [*_files(session, config), await _database(session, config)]
    sound = True
    with out.table("Check", "Result", "Detail") as add:
        for name, problem, detail in [*checks, *(("warning", None, each) for each in config.warnings)]:
            sound = sound and problem is None
            result = "ok" if problem is None else "PROBLEM"
            add([name, result, problem or detail], {"check": name, "ok": problem is None, "detail": problem or detail})
    return Status.OK if sound else Status.FOUND


_Check = tuple[str, str | None, str]
"""What was checked, what is wrong with it if anything is, and what there is to say if nothing is."""


def _setting(value: object, *, secret: bool) -> str:
    if value in (None, "", ()):
        return "-"
    if secret:
        return "(set, not shown)"
    return " ".join(map(str, value)) if isinstance(value, tuple) and not hasattr(value, "_fields") else show(value)


def _checked(name: str, work: Callable[[], object], detail: str) -> _Check:
    try:
        work()
    except NotaryError as error:
        return name, str(error), detail
    return name, None, detail


def _files(session: Session, config: ServerConfig | SignerConfig) -> Iterator[_Check]:
    """The pairs of certificate and key, as the daemon loads them; then every certificate's dates."""
    files = config.server
    if files.tls_cert_file is not None and files.tls_key_file is not None:
        pair = files.tls_cert_file, files.tls_key_file, files.client_ca_file
        yield _checked(
            "server TLS",
            lambda: contexts.server_context(*pair, wording=Wording(**SERVER_TLS)),
            "certificate, key and authorities fit",
        )
    if isinstance(config, ServerConfig) and config.trust_service.type == "remote":
        trust = config.trust_service
        own = trust.tls_ca_file, trust.tls_client_cert, trust.tls_client_key
        yield _checked(
            "signer TLS",
            lambda: contexts.client_options(trust.hostname, *own, wording=Wording(**SIGNER_CLIENT_TLS)),
            "certificate and key fit",
        )
    for key, path in certificate_files(config).items():
        try:
            found = certificates.read(key, path)
        except NotaryError as error:
            yield key, str(error), ""
            continue
        for each in found:
            yield _dates(each, session)


def _dates(certificate: certificates.Certificate, session: Session) -> _Check:
    now = session.now()
    text = f"{certificate.subject}: valid to {show(certificate.ends)} ({ago(certificate.ends, now)})"
    if certificate.ends <= now:
        return certificate.key, f"{text}: peers refuse it; put a new one into {certificate.path}", text
    if certificate.begins > now:
        return certificate.key, f"{text}: not valid before {show(certificate.begins)}: peers refuse it", text
    return certificate.key, None, text


async def _database(session: Session, config: ServerConfig | SignerConfig) -> _Check:
    if not config.storage.kind.persistent:
        return "database", None, "in memory: it ends with the daemon"
    opener: Any = open_metadata_store if isinstance(config, ServerConfig) else open_key_store
    try:
        store = await session.open(config, opener)
        await store.check()
    except NotaryError as error:
        return "database", str(error), ""
    return "database", None, f"{config.storage.backend} answers, and has the tables"
