"""OpenSSL behind pyOpenSSL: the calls that are made for each record, and everything that needs a private name.

Rules of this module: no other module names private parts of pyOpenSSL or cryptography, and an import of this module
fails, with the name that is missing, if one of the two libraries has changed. OpenSSL keeps one queue of errors for all
connections of a thread, and reads its own results from it; the queue is emptied before each call, so that no connection
is blamed for what another one or another library left there.

pyOpenSSL makes handshakes and explains errors. For each record that is read or written it would call five functions
more than this module does, a tenth of what a small answer costs (docs/adr/0015-tls-on-the-socket.md).
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from typing import Any, Final, Protocol

from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL

_LIB_NAMES: Final = (
    "BIO_new",
    "BIO_read",
    "BIO_s_mem",
    "BIO_write",
    "ERR_clear_error",
    "SSL_CB_ACCEPT_EXIT",
    "SSL_CB_ACCEPT_LOOP",
    "SSL_ERROR_WANT_READ",
    "SSL_ERROR_WANT_WRITE",
    "SSL_ERROR_ZERO_RETURN",
    "SSL_do_handshake",
    "SSL_get_error",
    "SSL_read",
    "SSL_set_bio",
    "SSL_set_fd",
    "SSL_set_info_callback",
    "SSL_write",
)
_FFI_NAMES: Final = ("callback", "new", "unpack")
_CONNECTION_NAMES: Final = ("_raise_ssl_error", "_ssl")


def require(library: str, what: str, owner: object, names: Iterable[str]) -> None:
    """Raise ImportError unless ``owner``, which is ``what`` in a ``library``, has all of the ``names``."""
    missing = [name for name in names if not hasattr(owner, name)]
    if missing:
        raise ImportError(
            f"{library} {importlib.metadata.version(library)} has no {', '.join(missing)} in {what}, which the TLS of "
            f"this server needs: install a version of {library} that the requirements of this package allow"
        )


require("cryptography", "its binding of OpenSSL", Binding, ("lib", "ffi"))
_lib: Final[Any] = Binding.lib
_ffi: Final[Any] = Binding.ffi
require("cryptography", "Binding.lib", _lib, _LIB_NAMES)
require("cryptography", "Binding.ffi", _ffi, _FFI_NAMES)
require("pyOpenSSL", "SSL.Connection", SSL.Connection(SSL.Context(SSL.TLS_METHOD)), _CONNECTION_NAMES)

RECORD_BYTES: Final = 1 << 14
"""The largest amount of data in a record of TLS (RFC 8446, section 5.1)."""

WANT_READ: Final[int] = _lib.SSL_ERROR_WANT_READ
WANT_WRITE: Final[int] = _lib.SSL_ERROR_WANT_WRITE
ZERO_RETURN: Final[int] = _lib.SSL_ERROR_ZERO_RETURN

_STEP: Final[int] = _lib.SSL_CB_ACCEPT_LOOP
_DONE: Final[int] = _lib.SSL_CB_ACCEPT_EXIT
_MEMORY: Final = _lib.BIO_s_mem()
_buffer: Final = _ffi.new("char[]", RECORD_BYTES)  # every record is read into it, on the reactor's thread

# Called for each record: a name of this module is found faster than one of the library.
_clear_errors: Final = _lib.ERR_clear_error
_read: Final = _lib.SSL_read
_write: Final = _lib.SSL_write
_unpack: Final = _ffi.unpack


class MessageListener(Protocol):
    """Counts the messages of one connection that carry no data."""

    @property
    def refuses_messages(self) -> bool:
        """True if no message may come. Its first step then counts, before OpenSSL reads the rest of the message."""

    def count_message(self) -> None:
        """Count one message."""


class Session:
    """OpenSSL's side of one connection to a server; ``tls`` is pyOpenSSL's object for the same connection.

    OpenSSL first gets records from ``give`` and leaves its answers for ``take``; from ``use_socket`` on it reads and
    writes the socket. After a call that did not succeed, ``error`` and ``explain`` say why; nothing else may be called
    between the two.
    """

    __slots__ = ("_answers", "_records", "_result", "_ssl", "tls")

    def __init__(self, tls: SSL.Connection) -> None:
        self.tls = tls
        self._ssl: Any = tls._ssl  # noqa: SLF001
        # The memory that OpenSSL reads and writes during the handshake, and owns. pyOpenSSL's functions for it cost 3 %
        # of a handshake.
        self._records, self._answers = _lib.BIO_new(_MEMORY), _lib.BIO_new(_MEMORY)
        _lib.SSL_set_bio(self._ssl, self._records, self._answers)
        self._result = 0  # of the last call that did not succeed

    def give(self, record: bytes) -> None:
        """Hand OpenSSL a record of the handshake."""
        _lib.BIO_write(self._records, record, len(record))

    def take(self) -> bytearray:
        """Return what OpenSSL has to send in the handshake."""
        answer = bytearray()
        while (count := _lib.BIO_read(self._answers, _buffer, RECORD_BYTES)) > 0:
            answer += _unpack(_buffer, count)
            if count < RECORD_BYTES:
                break
        return answer

    def do_handshake(self) -> bool:
        """Continue the handshake with the records that were given. Returns True once it is done."""
        _lib.ERR_clear_error()
        self._result = _lib.SSL_do_handshake(self._ssl)
        return self._result > 0

    def use_socket(self, descriptor: int) -> None:
        """Have OpenSSL read and write the socket itself from now on."""
        _lib.ERR_clear_error()
        _lib.SSL_set_fd(self._ssl, descriptor)

    def read(self) -> bytes:
        """Return the data of one record. Returns nothing if that did not succeed."""
        _clear_errors()
        count = _read(self._ssl, _buffer, RECORD_BYTES)
        if count > 0:
            data: bytes = _unpack(_buffer, count)
            return data
        self._result = count
        return b""

    def write(self, data: bytes) -> int:
        """Send at most a record of ``data``; return how many bytes, which is 0 or less if that did not succeed."""
        _clear_errors()
        count: int = _write(self._ssl, data, len(data))
        if count <= 0:
            self._result = count
        return count

    def shutdown(self) -> bool:
        """Send the close_notify alert. Returns True if the peer has sent its own. Raises SSL.Error."""
        _lib.ERR_clear_error()
        return self.tls.shutdown()

    def error(self) -> int:
        """Return OpenSSL's number (``WANT_READ`` and so on) for the last call, which did not succeed."""
        number: int = _lib.SSL_get_error(self._ssl, self._result)
        return number

    def explain(self) -> None:
        """Raise SSL.Error, or what pyOpenSSL has for it, for the last call, which did not succeed."""
        self.tls._raise_ssl_error(self._ssl, self._result)  # noqa: SLF001

    def listen(self, listener: MessageListener) -> None:
        """Tell ``listener`` of messages that carry no data, until ``forget``."""
        _listeners[self._ssl] = listener
        _lib.SSL_set_info_callback(self._ssl, _on_state)

    def stop(self) -> None:
        """Have OpenSSL read and write nothing more on this connection."""
        self.tls.set_shutdown(SSL.SENT_SHUTDOWN | SSL.RECEIVED_SHUTDOWN)

    def forget(self) -> None:
        """Tell the listener nothing more: the connection is over."""
        _listeners.pop(self._ssl, None)


_listeners: Final[dict[Any, MessageListener]] = {}
"""By OpenSSL's object, the only thing that a callback learns. (pyOpenSSL would make a function for each connection.)"""


@_ffi.callback("void (*)(const SSL *, int, int)")  # type: ignore[untyped-decorator]
def _on_state(ssl: Any, where: int, _: int) -> None:
    """Count a message that carries no data. OpenSSL calls this at each step of a message and at its end."""
    listener = _listeners.get(ssl)
    if listener is not None and (where == _DONE or (where == _STEP and listener.refuses_messages)):
        listener.count_message()


class ClientConnection(SSL.Connection):
    """The client's side of a connection, for Twisted's TLS, with an empty queue of errors before each call."""

    def send(self, buf: Any, flags: int = 0) -> int:
        """Encrypt."""
        _lib.ERR_clear_error()
        return super().send(buf, flags)

    def recv(self, bufsiz: int, flags: int | None = None) -> bytes:
        """Decrypt."""
        _lib.ERR_clear_error()
        return super().recv(bufsiz, flags)

    def do_handshake(self) -> None:
        """Continue the handshake."""
        _lib.ERR_clear_error()
        super().do_handshake()

    def shutdown(self) -> bool:
        """Send the close_notify alert."""
        _lib.ERR_clear_error()
        return super().shutdown()
