"""Certificates that Go and OpenSSL read, on both sides of TLS: files are loaded, and handshakes succeed as with others.

Rules of this module: both sides are ours, with no socket between them; ``tests/interop`` asks Go's programs.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from OpenSSL import SSL, crypto
from twisted.logger import capturedLogs, formatEvent

from notary.errors import ConfigError
from notary.net.tls import peers
from notary.net.tls.contexts import GRPC, client_options, server_options
from notary.net.tls.verdicts import Cause, explain_verify_error
from notary.net.tls.wording import PLAIN
from tests.support import oddcerts
from tests.support.author import make_private
from tests.support.oddcerts import BEYOND_OPENSSL, ODD, REFUSED, Form, authority, make, write

READ_BY_OPENSSL = {name: form for name, form in REFUSED.items() if "PrintableString" in name or "IA5String" in name}
"""What Go refuses, but the peer of a Notary need not be Go."""
FORMS = {name: form for name, form in (ODD | READ_BY_OPENSSL).items() if name not in BEYOND_OPENSSL}


@dataclass(frozen=True)
class Files:
    """An authority, and a leaf of it that is both server and client."""

    ca: Path
    certificate: Path
    key: Path


def files_of(form: Form, folder: Path) -> Files:
    root, leaf = make_private(), make_private()
    above = authority(form)
    ca, _ = write(folder, "ca", root, make(above, "an authority", root))
    certificate, key = write(
        folder, "leaf", leaf, make(form, "notary-server", leaf, issuer=(above, "an authority", root))
    )
    return Files(ca, certificate, key)


@pytest.fixture(params=FORMS)
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    return files_of(FORMS[request.param], tmp_path)


def shake_hands(files: Files, host: str) -> tuple[Cause, Cause, SSL.Connection]:
    """Make a handshake; return why each side refused it, if it did, and the server's side."""
    theirs, ours = Cause(PLAIN), Cause(PLAIN)
    accepting = server_options(files.certificate, files.key, files.ca, GRPC).connection(ours)
    calling = client_options(host, files.ca, files.certificate, files.key)
    client = calling.clientConnectionForTLS(SimpleNamespace(cause=theirs))  # type: ignore[arg-type]
    client.set_connect_state()
    for _ in range(6):
        for here, there in ((client, accepting), (accepting, client)):
            try:
                here.do_handshake()
            except SSL.WantReadError:
                pass
            except SSL.Error:
                return theirs, ours, accepting
            with suppress(SSL.WantReadError):
                there.bio_write(here.bio_read(1 << 16))
    return theirs, ours, accepting


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_both_sides_accept_it(files: Files, host: str) -> None:
    theirs, ours, accepting = shake_hands(files, host)
    assert (theirs.verdict, ours.verdict) == (None, None)
    shown = accepting.get_peer_certificate()
    assert shown is not None
    assert "notarysigner" in peers.read(shown).dns_names


def test_the_name_still_counts(files: Files) -> None:
    theirs, _, _ = shake_hands(files, "elsewhere.example.org")
    assert "not for elsewhere.example.org" in str(theirs.verdict)


def test_nothing_is_said_of_files_that_are_in_order(files: Files) -> None:
    with capturedLogs() as logs:
        server_options(files.certificate, files.key, files.ca)
    assert [formatEvent(event) for event in logs] == []


@pytest.mark.parametrize(
    ("begins", "ends", "said"),
    [
        pytest.param(b"400101000000+0100", b"491231000000Z", "error 13", id="not yet"),
        pytest.param(b"200101000000Z", b"210101000000+0100", "error 14", id="no longer"),
    ],
)
def test_a_time_that_openssl_does_not_read_is_still_checked(
    tmp_path: Path, begins: bytes, ends: bytes, said: str
) -> None:
    form = Form(begins=oddcerts.der(oddcerts.UTC, begins), ends=oddcerts.der(oddcerts.UTC, ends))
    theirs, _, _ = shake_hands(files_of(form, tmp_path), "localhost")
    assert said in str(theirs.verdict)


@pytest.mark.parametrize("form", REFUSED.values(), ids=REFUSED)
def test_verdicts_have_words_for_everything_that_openssl_reads(form: Form) -> None:
    try:
        shown = crypto.load_certificate(crypto.FILETYPE_ASN1, make(form, "notary-server", make_private()))
    except crypto.Error:
        return
    for number in (9, 10, 13, 18, 1000):
        assert "notary-server" in str(explain_verify_error(shown, number, 0, "the file"))


def test_a_certificate_that_only_openssl_reads_is_used_and_not_watched(tmp_path: Path) -> None:
    private = make_private()
    certificate, key = write(tmp_path, "leaf", private, make(REFUSED["version 4"], "localhost", private))
    with capturedLogs() as logs:
        server_options(certificate, key)
    assert ["of an unknown version" in formatEvent(event) for event in logs] == [True]


@pytest.mark.parametrize("name", sorted(BEYOND_OPENSSL))
def test_a_file_that_openssl_does_not_read_is_refused(tmp_path: Path, name: str) -> None:
    files = files_of(ODD[name], tmp_path)
    with pytest.raises(ConfigError, match=r"malformed certificate \(OpenSSL: .+\)"):
        server_options(files.certificate, files.key)
    with pytest.raises(ConfigError, match=r"malformed certificate \(OpenSSL: .+\)"):
        client_options("localhost", files.ca)
