"""When the certificates that a daemon uses expire.

Rules of this module: files are read in a thread, every ``INTERVAL_SECONDS``, so that a certificate that was replaced is
seen without a restart. A file that cannot be read is shown as expired: something is about to go wrong. Whether a file
can be used for TLS is decided in :mod:`notary.net.tls`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from notary import certs
from notary.errors import InvalidCertificate
from notary.work.threads import InThread

INTERVAL_SECONDS: Final = 60.0
"""Seconds between two readings of the files."""

_DAY_SECONDS: Final = 86400.0

Expiries = Mapping[tuple[str, str, str], float]
"""When each certificate expires, in seconds since 1970, by configuration key, subject and serial number (in hex)."""


def certificates_in_use(files: Mapping[str, Path | None]) -> Expiries:
    """Read the certificates in files, which are named by the key that configures them; None is no file.

    Blocks. A file without a readable certificate counts as one that expired in 1970, without a subject.
    """
    found: dict[tuple[str, str, str], float] = {}
    for key, path in files.items():
        if path is None:
            continue
        try:
            data = path.read_bytes()
            with certs.reading():
                for each in certs.all_in_pem(data):
                    found[key, _subject(each), f"{each.serial_number:x}"] = each.not_valid_after_utc.timestamp()
        except (OSError, InvalidCertificate):
            found[key, "", ""] = 0.0
    return found


def _subject(certificate: x509.Certificate) -> str:
    with suppress(InvalidCertificate), certs.reading():
        for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME):
            return str(name.value)
    return certs.subject_of(certificate)


class Certificates(Service):
    """Knows when the certificates in ``files`` expire, while it is started; ``in_thread`` runs what blocks."""

    def __init__(self, files: Mapping[str, Path | None], clock: IReactorTime, in_thread: InThread) -> None:
        self._files = dict(files)
        self._in_thread = in_thread
        self._expiries: Expiries = {}
        self._loop = LoopingCall(self._read)
        self._loop.clock = clock
        self._log = Logger(namespace="notary.observe.expiry")

    def startService(self) -> None:
        """Read the files now, and again and again."""
        super().startService()
        self._loop.start(INTERVAL_SECONDS)

    def stopService(self) -> None:
        """Read no more."""
        super().stopService()
        self._loop.stop()

    def days(self) -> Mapping[tuple[str, ...], float]:
        """Days until each certificate expires, negative if it has; by key, subject and serial number."""
        now = time.time()
        return {names: (expiry - now) / _DAY_SECONDS for names, expiry in self._expiries.items()}

    async def _refresh(self) -> None:
        try:
            self._expiries = await self._in_thread(lambda: certificates_in_use(self._files))
        except Exception:  # noqa: BLE001 - a figure that fails must not stop the loop
            self._log.failure("the expiry of certificates could not be read")

    def _read(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._refresh())
