"""Domain errors, which know no protocol: each edge (HTTP, gRPC, command line) has one table that maps them.

Rules of this module: pure; imports nothing of ours; the text of an error is safe to show to a client and says what to
do next; it never holds a passphrase, a token, private bytes or signed content.
"""

from __future__ import annotations

from enum import StrEnum


class NotaryError(Exception):
    """Base of every error that this program raises on purpose; ``str(error)`` is the message."""


# -- requests ---------------------------------------------------------------------------------------------------------


class NotFound(NotaryError):
    """The metadata, key or collection does not exist, or the caller may not know that it exists."""


class MalformedUpload(NotaryError):
    """The body of an upload is not the multipart form that the protocol asks for."""


class TooDemanding(NotaryError):
    """A request needs more work or memory than one request may."""


class NoFilename(NotaryError):
    """A part of an upload names no role."""


class InvalidRole(NotaryError):
    """A name is not the name of a TUF role, or the role does not fit the operation."""


class MalformedJSON(NotaryError):
    """Bytes are not the strict JSON that metadata must be, or lack its outermost shape."""


class InvalidGun(NotaryError):
    """The server does not hold collections of this name."""


class InvalidParameters(NotaryError):
    """A query parameter is not what it must be."""


class ReadOnly(NotaryError):
    """The server only reads, and the request asks for something to be written."""


class Overloaded(NotaryError):
    """The queue of waiting work is full. ``retry_seconds`` says in how many seconds to try again."""

    def __init__(self, message: str, retry_seconds: float) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class ClientGone(NotaryError):
    """The client has closed the connection, so the work was not done. This error is logged, never sent."""


class Unauthorized(NotaryError):
    """The caller lacks a right.

    ``challenge`` is the value of ``WWW-Authenticate``; ``access`` the rights that were asked for, as triples
    (type, name, action).
    """

    def __init__(self, message: str, challenge: str, access: tuple[tuple[str, str, str], ...] = ()) -> None:
        super().__init__(message)
        self.challenge = challenge
        self.access = access


# -- metadata ---------------------------------------------------------------------------------------------------------


class UploadFault(StrEnum):
    """Which part of an upload breaks the rules; the values are what clients parse (docs/protocol.md, section 1)."""

    VALIDATION = "ErrValidation"
    HIERARCHY = "ErrBadHierarchy"
    ROOT = "ErrBadRoot"
    TARGETS = "ErrBadTargets"
    SNAPSHOT = "ErrBadSnapshot"


class InvalidUpdate(NotaryError):
    """An upload that parses but breaks a rule of TUF or of this service.

    ``missing`` names the absent role when ``fault`` is HIERARCHY, else it is "".
    """

    def __init__(self, fault: UploadFault, message: str, missing: str = "") -> None:
        super().__init__(message)
        self.fault = fault
        self.missing = missing

    def __reduce__(self) -> tuple[object, ...]:
        """Support pickling: this error is raised in a worker process."""
        return type(self), (self.fault, str(self), self.missing)


class InvalidMetadata(NotaryError):
    """One metadata file, by itself, is not valid: its structure, signatures, version or expiry."""


class NoUsableCertificate(InvalidMetadata):
    """No root key of a root has a certificate that may vouch for the collection, or one that can be read."""


class InvalidCertificate(NotaryError):
    """Bytes are not an X.509 certificate, or a part of the certificate cannot be read."""


# -- storage and signing ----------------------------------------------------------------------------------------------


class OldVersion(NotaryError):
    """A role's stored version is not below the one to be written: somebody else published first."""


class KeyNotFound(NotaryError):
    """The signing service does not hold a key of this id."""


class UnsupportedAlgorithm(NotaryError):
    """The signing service cannot make or use keys of this algorithm."""


class SigningFailed(NotaryError):
    """The signing service could not be reached or could not do its work."""


class KeyDoesNotOpen(SigningFailed):
    """A stored private key does not open: what encrypts it is wrong, or its bytes are damaged, which looks the same."""


class CustodyUnavailable(SigningFailed):
    """The machine that private keys need, such as a token, cannot be used now; a later attempt may succeed."""


class SigningUnavailable(SigningFailed):
    """The signing service cannot be reached, or makes no more keys for now; a later attempt may succeed.

    ``retry_seconds`` says in how many seconds.
    """

    def __init__(self, message: str, retry_seconds: float = 5.0) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class TooManyKeys(NotaryError):
    """A user or an address has requested more keys than it may in an hour.

    ``retry_seconds`` says in how many seconds to try again.
    """

    def __init__(self, message: str, retry_seconds: float) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class StorageFailed(NotaryError):
    """The store could not be reached or could not do its work."""


class StorageUnreachable(StorageFailed):
    """No database answers at the configured address, or it is not ready or too busy; a later attempt may succeed.

    The message names the place and the cause, never a password.
    """


class InvalidRow(StorageFailed):
    """A row of the database holds an invalid value."""


class InvalidArchive(NotaryError):
    """An exported collection cannot be written or imported: it is damaged, or does not follow the stored files."""


# -- another Notary ---------------------------------------------------------------------------------------------------


class PeerFailed(NotaryError):
    """Another Notary, or the token service that it names, did not give what was asked for."""


class PeerUnavailable(PeerFailed):
    """Another Notary cannot be reached, or cannot answer for now. ``retry_seconds`` is the delay that it asks for."""

    def __init__(self, message: str, retry_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class PeerDenied(PeerFailed):
    """Another Notary does not let this caller read."""


class Diverged(NotaryError):
    """The collection of another Notary does not continue the stored one: it is older, or has another history."""


# -- start-up ---------------------------------------------------------------------------------------------------------


class ConfigError(NotaryError):
    """A configuration value cannot be used. The message is one line: the key or variable, the value, what was expected.

    Values of secrets are never shown.
    """


class InvalidFile(ConfigError):
    """The text of a configuration file cannot be read. The message says where in the file, and not which file."""
