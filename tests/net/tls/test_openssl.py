"""The private names of pyOpenSSL and cryptography: one module has them, says which is missing, and keeps no errors."""

from __future__ import annotations

import ast
import re
from types import SimpleNamespace

import pytest
from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL

from notary.net.tls.openssl import WANT_READ, ClientConnection, Session, require
from tests.test_layout import OURS, name_of, read

BINDING = re.compile(r"cryptography\.hazmat\.bindings|_raise_ssl_error|_ssl\b")


def leave_an_error() -> None:
    """Have OpenSSL's queue hold an error that belongs to no connection."""
    Binding.lib.ERR_put_error(20, 0, 1, b"", 0)
    assert Binding.lib.ERR_peek_error() != 0


def test_one_module_names_what_is_private() -> None:
    trees = {name_of(path): ast.parse(read(path)) for path in OURS}
    found = {
        name
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and BINDING.fullmatch(node.attr))
        or (isinstance(node, ast.ImportFrom) and BINDING.match(node.module or ""))
        or (isinstance(node, ast.Import) and any(BINDING.match(alias.name) for alias in node.names))
    }
    assert found == {"notary/net/tls/openssl.py"}


def test_the_message_says_which_library_lacks_what() -> None:
    with pytest.raises(
        ImportError, match=r"^cryptography [\d.]+ has no SSL_b, SSL_c in Binding\.lib, which the TLS of"
    ):
        require("cryptography", "Binding.lib", SimpleNamespace(SSL_a=1), ["SSL_a", "SSL_b", "SSL_c"])


def test_what_is_there_is_not_missing() -> None:
    require("cryptography", "Binding.lib", SimpleNamespace(SSL_a=1), ["SSL_a"])


def test_errors_of_others_do_not_end_a_servers_handshake() -> None:
    tls = SSL.Connection(SSL.Context(SSL.TLS_SERVER_METHOD))
    tls.set_accept_state()
    session = Session(tls)
    leave_an_error()
    assert not session.do_handshake()
    assert session.error() == WANT_READ
    leave_an_error()
    assert session.take() == b""
    leave_an_error()
    assert session.read() == b""
    assert session.error() == WANT_READ


def test_errors_of_others_do_not_end_a_clients_handshake() -> None:
    tls = ClientConnection(SSL.Context(SSL.TLS_CLIENT_METHOD))
    tls.set_connect_state()
    leave_an_error()
    with pytest.raises(SSL.WantReadError):
        tls.do_handshake()
