"""``check-config`` reports whether a daemon would start with a configuration and its database.

Rules of this module: the checks call the functions that the daemons call where possible. Nothing is changed, no port is
opened, and no secret is shown. A configuration that cannot be read ends the command with an error; all other problems
are lines of the report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from twisted.internet.threads import deferToThreadPool

from notary.admin import certificate_dates
from notary.admin.certificate_dates import CertificateDates
from notary.admin.command import Status, command
from notary.admin.output import relative_time, text_of
from notary.admin.private_keys import PrivateKeys
from notary.admin.session import Session
from notary.config import ServerConfig, SignerConfig
from notary.config.files import SERVER_TLS, SIGNER_CLIENT_TLS, certificate_files, settings
from notary.envelope import INSIDE
from notary.envelope import KEYWRAP as DATAKEY
from notary.envelope.envelopes import under
from notary.errors import NotaryError
from notary.net.tls import contexts
from notary.net.tls.wording import Wording
from notary.storage import StoredKey
from notary.storage.keywrap import refused_aliases
from notary.storage.open import open_key_store, open_metadata_store
from notary.tuf.jwe import KEYWRAP


@command("check-config")
async def check_config(session: Session) -> int:
    """Check a configuration: its values, its certificates, its database.

    Prints the value of every key (secrets are not shown), then the result of every check. The exit status is 1 if the
    daemon would not start, or if its peers would not trust it.
    """
    config, out = session.config, session.out
    daemon = "server" if isinstance(config, ServerConfig) else "signer"
    with out.table("Key", "Value") as add:
        add(["(daemon)", daemon], {"key": "(daemon)", "value": daemon})
        for path, key, value in settings(config):
            text = _setting(value, secret=key.kind.secret)
            add([path, text], {"key": path, "value": text})
    checks = [*_files(session, config), *await _database(session, config)]
    sound = True
    with out.table("Check", "Result", "Detail") as add:
        for name, problem, detail in [*checks, *(("warning", None, each) for each in config.warnings)]:
            sound = sound and problem is None
            result = "ok" if problem is None else "PROBLEM"
            add([name, result, problem or detail], {"check": name, "ok": problem is None, "detail": problem or detail})
    return Status.OK if sound else Status.FOUND


_Check = tuple[str, str | None, str]
"""The name of the check; the problem, if there is one; the detail to print if there is none."""


def _setting(value: object, *, secret: bool) -> str:
    if value in (None, "", ()):
        return "-"
    if secret:
        return "(set, not shown)"
    return " ".join(map(str, value)) if isinstance(value, tuple) and not hasattr(value, "_fields") else text_of(value)


def _checked(name: str, work: Callable[[], object], detail: str) -> _Check:
    try:
        work()
    except NotaryError as error:
        return name, str(error), detail
    return name, None, detail


def _files(session: Session, config: ServerConfig | SignerConfig) -> Iterator[_Check]:
    """Check the pairs of certificate and key as the daemon loads them, then the dates of every certificate."""
    files = config.server
    if files.tls_cert_file is not None and files.tls_key_file is not None:
        pair = files.tls_cert_file, files.tls_key_file, files.client_ca_file
        yield _checked(
            "server TLS",
            lambda: contexts.server_context(*pair, wording=Wording(**SERVER_TLS)),
            "certificate, key and authorities match",
        )
    if isinstance(config, ServerConfig) and config.trust_service.type == "remote":
        trust = config.trust_service
        own = trust.tls_ca_file, trust.tls_client_cert, trust.tls_client_key
        yield _checked(
            "signer TLS",
            lambda: contexts.client_options(trust.hostname, *own, wording=Wording(**SIGNER_CLIENT_TLS)),
            "certificate and key match",
        )
    for key, path in certificate_files(config).items():
        try:
            found = certificate_dates.read(key, path)
        except NotaryError as error:
            yield key, str(error), ""
            continue
        for each in found:
            yield _dates(each, session)


def _dates(certificate: CertificateDates, session: Session) -> _Check:
    now = session.now()
    until = certificate.valid_until
    text = f"{certificate.subject}: valid to {text_of(until)} ({relative_time(until, now)})"
    if until <= now:
        return certificate.key, f"{text}: peers reject it; put a new certificate into {certificate.path}", text
    if certificate.valid_from > now:
        return certificate.key, f"{text}: not valid before {text_of(certificate.valid_from)}: peers reject it", text
    return certificate.key, None, text


async def _database(session: Session, config: ServerConfig | SignerConfig) -> list[_Check]:
    if not config.storage.kind.persistent:
        return [("database", None, "in memory: data is lost when the daemon ends")]
    good = ("database", None, f"{config.storage.backend} answers, and has the tables")
    try:
        if isinstance(config, ServerConfig):
            opened = await session.open(config, open_metadata_store, read_only=config.server.read_only)
            await opened.check()
            return [good]
        store = await session.open(config, open_key_store)
        await store.check()
        return [good, *await _keys(session, config, await store.sample())]
    except NotaryError as error:
        return [("database", str(error), "")]


async def _keys(session: Session, config: SignerConfig, stored: Iterable[StoredKey]) -> list[_Check]:
    """Open the key-encrypting keys; try them and the passphrases on a few stored keys, the newest and the oldest."""
    try:
        keys = PrivateKeys(config, session.reactor)
    except NotaryError as error:
        return [("key-encrypting keys", str(error), "")]
    session.at_end(keys.close)
    pool = session.reactor.getThreadPool()
    tried: list[_Check] = await deferToThreadPool(session.reactor, pool, lambda: list(_tried(keys, stored)))
    return tried


def _tried(keys: PrivateKeys, stored: Iterable[StoredKey]) -> Iterator[_Check]:
    try:
        keys.check()
    except NotaryError as error:
        yield "key-encrypting keys", str(error), ""
        return
    known = () if keys.envelopes is None else keys.envelopes.names
    for name in known:
        yield f"key-encrypting key {name}", None, "it can be used"
    if keys.insides is not None:
        yield f"token {keys.insides.first.name}", None, "it can be used"
    rows = [row for row in stored if row.keywrap_alg in (INSIDE, DATAKEY, KEYWRAP)]
    refused = refused_aliases(rows, keys.try_key, under)
    for keywrap, what in ((INSIDE, "keys in"), (DATAKEY, "keys under"), (KEYWRAP, "passphrase")):
        for name in sorted({under(row) for row in rows if row.keywrap_alg == keywrap}):
            yield f"{what} {name}", refused.get(name), "opens a stored key" if keywrap == KEYWRAP else "one opens"
