"""Why a TLS handshake failed, in words that say what an operator can do.

Rules of this module: no input or output. OpenSSL reports every refused certificate as "certificate verify failed";
only the verification callback learns the reason and the certificate, and notes both in a :class:`Cause`. Names from a
stranger's certificate are cut short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

from OpenSSL import SSL
from OpenSSL.crypto import FILETYPE_TEXT, X509, dump_certificate
from service_identity.exceptions import CertificateError
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.python.failure import Failure

from notary import certs
from notary.errors import InvalidCertificate
from notary.net.refusals import HandshakeFailed, RefusalKind, shorten
from notary.net.tls import peers
from notary.net.tls.wording import Wording

_UNREADABLE: Final = "a name that cannot be read"
_RECORDS: Final = frozenset(b"\x14\x15\x16\x17")  # the first byte of a TLS record (RFC 8446, section 5.1)


# The numbers are those of openssl/x509_vfy.h.
_EXPIRED: Final = 10
_NOT_YET_VALID: Final = 9
_UNKNOWN_ISSUER: Final = frozenset({2, 18, 19, 20, 21, 27})
_VERIFY_ERRORS: Final = {
    7: "its signature is wrong",
    22: "its chain is too long",
    23: "it has been revoked",
    24: "its issuer is not an authority",
    26: "it is not meant for this use (extendedKeyUsage)",
    66: "its key is too weak",
    67: "a key in its chain is too weak",
    68: "it is signed with a digest that is too weak",
}


def explain_verify_error(certificate: X509, number: int, depth: int, trusted: str) -> HandshakeFailed:
    """Return the meaning of OpenSSL's verification error ``number`` for a ``certificate`` that the peer showed.

    ``depth`` is 0 for the peer's own certificate and more for those of its issuers; ``trusted`` names the file
    of the trusted certificates.
    """
    subject, issuer = _names(certificate)
    place = "the peer's certificate" if depth == 0 else "a certificate in the peer's chain"
    whose = f"{place} ({subject}, issued by {issuer})"
    if number == _EXPIRED:
        ended = _time(certificate.get_notAfter)
        return HandshakeFailed(RefusalKind.EXPIRED, f"{whose} expired at {ended}; the peer needs a new one")
    if number == _NOT_YET_VALID:
        begins = _time(certificate.get_notBefore)
        return HandshakeFailed(RefusalKind.NOT_YET_VALID, f"{whose} is not valid before {begins}; compare the clocks")
    if number in _UNKNOWN_ISSUER:
        return HandshakeFailed(
            RefusalKind.UNKNOWN_ISSUER,
            f"{whose} leads to no certificate in {trusted}; add {issuer} there, or give the peer another one",
        )
    text = _VERIFY_ERRORS.get(number, f"OpenSSL's verification error {number}")
    return HandshakeFailed(RefusalKind.BAD_CERTIFICATE, f"{whose} is refused: {text}; the peer needs another one")


def explain_wrong_name(certificate: certs.Certificate, wanted: str, error: Exception) -> HandshakeFailed:
    """Return the error for a peer whose certificate is not that of the host ``wanted``."""
    if isinstance(error, CertificateError):
        text = f"carries no name that counts (subjectAltName: {error})"
    else:
        text = f"is for {_alternatives(certificate)}"
    return HandshakeFailed(
        RefusalKind.WRONG_NAME,
        f"the peer's certificate ({_shown(certificate.subject)}) {text} and not for {wanted}; "
        f"connect to a name that it carries, or give the peer another one",
    )


# By the text after "alert " in OpenSSL's message. "{ours}" is our own certificate.
_ALERTS: Final = {
    "unknown ca": (
        RefusalKind.OURS_REFUSED,
        "the peer does not trust the issuer of our certificate ({ours}); its trusted file must hold that issuer",
    ),
    "certificate expired": (RefusalKind.OURS_REFUSED, "the peer says that our certificate ({ours}) has expired"),
    "certificate revoked": (RefusalKind.OURS_REFUSED, "the peer says that our certificate ({ours}) was revoked"),
    "bad certificate": (
        RefusalKind.OURS_REFUSED,
        "the peer refused our certificate ({ours}): its name, issuer or dates do not suit it; its log says more",
    ),
    "certificate unknown": (
        RefusalKind.OURS_REFUSED,
        "the peer refused our certificate ({ours}): most often the peer wants another name; its log says more",
    ),
    "unsupported certificate": (
        RefusalKind.OURS_REFUSED,
        "the peer refused our certificate ({ours}): it is not for this use (extendedKeyUsage), or of a strange kind",
    ),
    # pyOpenSSL sends this alert for a certificate with a wrong name.
    "internal error": (
        RefusalKind.OURS_REFUSED,
        "the peer broke off: so does a Notary server that connects to a name which our certificate ({ours}) lacks",
    ),
    "certificate required": (
        RefusalKind.NO_CERTIFICATE,
        "the peer demands a certificate and was shown none; give it one ({client_cert})",
    ),
    "no application protocol": (RefusalKind.PROTOCOL, "the peer speaks other protocols (ALPN) than we do"),
    "protocol version": (
        RefusalKind.PROTOCOL,
        "the peer and we have no version of TLS in common; ours are 1.2 and 1.3",
    ),
    "handshake failure": (
        RefusalKind.PROTOCOL,
        "the peer refused the handshake: no cipher in common, or, with TLS 1.2, it demands a certificate",
    ),
}
_REASONS: Final = {
    "peer did not return a certificate": (
        RefusalKind.NO_CERTIFICATE,
        "the peer showed no certificate, which {trusted} demands (a server shows {client_cert})",
    ),
    "unsupported protocol": (
        RefusalKind.PROTOCOL,
        "the peer speaks no version of TLS that we do; ours are 1.2 and 1.3",
    ),
    "no shared cipher": (RefusalKind.PROTOCOL, "the peer and we have no cipher in common"),
}
_PLAINTEXT: Final = "the peer does not speak TLS ({said}); one side is configured without it, or the port is wrong"
_GONE: Final = "the peer closed the connection in the middle of the TLS handshake without saying why; its log may"


def _of_openssl(error: SSL.Error, ours: X509 | None, wording: Wording) -> HandshakeFailed:
    """Return the meaning of an OpenSSL error other than a refusal of the peer's certificate."""
    reasons = [entry[2] for entry in (error.args[0] if error.args else ()) if entry[2]]
    for reason in reasons:
        _, alert, text = reason.partition("alert ")
        kind, words = (_ALERTS if alert else _REASONS).get(text if alert else reason, (None, ""))
        if kind is not None:
            words = words.format(ours=_ours(ours), trusted=wording.trusted, client_cert=wording.client_cert)
            return HandshakeFailed(kind, f"{words} (TLS: {reason})")
    return HandshakeFailed(RefusalKind.OTHER, f"TLS: {'; '.join(reasons) or 'closed without a word'}")


def _ours(certificate: X509 | None) -> str:
    if certificate is None:
        return "none"
    subject, issuer = _names(certificate)
    try:
        hosts = _alternatives(peers.read(certificate))
    except InvalidCertificate:
        hosts = _UNREADABLE
    return f"{subject}, for {hosts}, issued by {issuer}"


# Certificates are strangers' bytes. OpenSSL reads some that our own reader refuses. A log line must raise no error.


def _alternatives(certificate: certs.Certificate) -> str:
    try:
        return shorten(certificate.alternatives_text()) or "no name"
    except InvalidCertificate:
        return _UNREADABLE


def _names(certificate: X509) -> tuple[str, str]:
    """Return the names of the subject and the issuer of a certificate, printed by OpenSSL if we cannot read them."""
    try:
        known = peers.read(certificate)
    except InvalidCertificate:
        return _printed(certificate, b"Subject"), _printed(certificate, b"Issuer")
    return _shown(known.subject), _shown(known.issuer)


def _shown(name: certs.Name) -> str:
    return shorten(str(name)) or "no name"


def _printed(certificate: X509, field: bytes) -> str:
    """Return a field as OpenSSL prints it, with all but text escaped."""
    try:
        lines = dump_certificate(FILETYPE_TEXT, certificate).splitlines()
        found = next(line for line in lines if line.lstrip().startswith(field + b":"))
        return shorten(found.partition(b":")[2].strip().decode("ascii", "backslashreplace"))
    except Exception:  # noqa: BLE001 - see above
        return _UNREADABLE


def _time(read: Callable[[], bytes | None]) -> str:
    """Return a time of ASN.1 as text."""
    try:
        return datetime.strptime((read() or b"").decode(), "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).isoformat()
    except Exception:  # noqa: BLE001 - see above
        return "a time that cannot be read"


def is_tls(first: int) -> bool:
    """Return True if a TLS record can begin with this byte."""
    return first in _RECORDS


class Cause:
    """Collects the reasons why one handshake fails; ``wording`` names the settings of our side."""

    def __init__(self, wording: Wording) -> None:
        self.wording = wording
        self.verdict: HandshakeFailed | None = None
        """The refusal of the peer's certificate, if there is one."""
        self.first = b""
        """The first byte that the peer sent."""
        self.offered: Sequence[bytes] = ()
        """The protocols that the client offers (ALPN); none if the client knows nothing of ALPN."""

    def explain(self, error: BaseException | None, ours: X509 | None) -> HandshakeFailed | None:
        """Return why TLS ended, where ``ours`` is our certificate; None if the peer just closed the connection."""
        if self.verdict is not None:
            return self.verdict
        if self.first and not is_tls(self.first[0]):
            said = f"its first byte is {self.first[0]:#04x}"
            return HandshakeFailed(RefusalKind.PLAINTEXT, _PLAINTEXT.format(said=said))
        if (
            not isinstance(error, SSL.Error)
            or isinstance(error, SSL.SysCallError)
            or not (error.args and error.args[0])
        ):
            return None
        return _of_openssl(error, ours, self.wording)

    def ended(self, reason: Failure) -> HandshakeFailed | None:
        """Return why a connection ended during its handshake; None if the peer had sent nothing."""
        error = reason.value
        if isinstance(error, HandshakeFailed):
            return error
        if self.first and isinstance(error, (ConnectionDone, ConnectionLost)):
            return self.explain(None, None) or HandshakeFailed(RefusalKind.GONE, _GONE)
        return None
