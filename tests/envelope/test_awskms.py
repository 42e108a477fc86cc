"""A key-encrypting key in AWS KMS: that it works, and what goes wrong, against moto's server and one of our own."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager

import pytest

from notary.config import KekUri, awskms
from notary.envelope import MAX_NAME_CHARACTERS
from notary.envelope.awskms import KmsKek, open_kms
from notary.errors import ConfigError, CustodyUnavailable, SigningFailed
from tests.support.clocks import Time
from tests.support.kms import Kms
from tests.support.peers import free_port, mint_certificates
from tests.support.vault import Vault

DATA, CONTEXT = b"d" * 32, b"context"
PAUSE = 100.0  # longer than any


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Kms(tmp_path_factory.mktemp("kms")) as running:
        yield running


@pytest.fixture
def kms(server, monkeypatch):
    return server.seen_by(monkeypatch)


@contextmanager
def kek_of(uri: str, clock=None, timeout=20.0):
    kek = KmsKek(awskms.parse(uri.removeprefix("awskms:")), clock or Time(), timeout)
    try:
        yield kek
    finally:
        kek.close()


def away(kek, text: str) -> None:
    """Asked to do something, it is away, and says why."""
    with pytest.raises(CustodyUnavailable) as caught:
        kek.wrap(DATA, CONTEXT)
    assert text in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert str(caught.value).startswith(f"the key-encrypting key {kek._key} cannot be used now: ")


def test_another_process_opens_what_one_has_wrapped(kms):
    with kek_of(kms.uri()) as one, kek_of(kms.uri()) as other:
        one.check()
        wrapped = one.wrap(DATA, CONTEXT)
        assert DATA not in wrapped
        assert other.unwrap(wrapped, CONTEXT) == DATA
        assert one.is_newest(wrapped)
        for bad, context in (
            (wrapped, b"another"),
            (wrapped[:-1], CONTEXT),
            (wrapped[:-1] + bytes([wrapped[-1] ^ 1]), CONTEXT),
            (b"", CONTEXT),
            (b"x", CONTEXT),
        ):
            with pytest.raises(SigningFailed, match="the stored bytes are damaged") as caught:
                other.unwrap(bad, context)
            assert not isinstance(caught.value, CustodyUnavailable)


def test_its_name_is_of_the_account_and_the_key():
    arn = "arn:aws:kms:eu-central-1:111122223333:key/mrk-1234abcd"
    with kek_of(f"awskms:{arn}") as kek:
        assert kek.name == "awskms-079eeb352f6c"  # stored rows name it: it must stay as it is
        assert len(kek.name) <= MAX_NAME_CHARACTERS
        assert repr(kek) == f"<KmsKek {kek.name}>"
    assert awskms.parse(arn.replace("eu-central-1", "us-east-1") + "?profile=p").name == kek.name
    assert awskms.parse(arn.replace("1111", "2222")).name != kek.name


def test_a_key_that_is_not_there(kms):
    with kek_of(kms.uri(re.sub("key/.*", "key/none", kms.arn))) as kek:
        away(kek, "there is no such key in this region and account")


def test_a_server_that_stops_and_comes_back(kms):
    clock = Time()
    with kek_of(kms.uri(), clock) as kek:
        kek.wrap(DATA, CONTEXT)
        kms.stop()
        away(kek, "KMS cannot be reached")
        away(kek, "KMS cannot be reached")  # at once: the pause lasts
        kms.start(kms.port)
        clock.now += PAUSE
        away(kek, "there is no such key")  # moto forgets
        kms.arn = kms.client().create_key()["KeyMetadata"]["Arn"]


def test_no_credentials(kms, monkeypatch):
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    with kek_of(kms.uri()) as kek:
        away(kek, "there are no credentials")


def test_no_such_profile(kms):
    with kek_of(kms.uri() + "&profile=none") as kek:
        away(kek, "there is no such profile")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("AccessDeniedException", "allow kms:Encrypt and kms:Decrypt"),
        ("DisabledException", "the key is disabled"),
        ("KMSInvalidStateException", "the key is not in use"),
        ("ExpiredTokenException", "the credentials have expired"),
        ("UnrecognizedClientException", "the credentials are not those of this account"),
        ("ThrottlingException", "KMS limits requests"),
        ("SomethingNewException", "KMS says 'SomethingNewException'"),
    ],
)
def test_what_kms_refuses(kms, tmp_path, code, text):
    """By a server that says only this."""
    with Vault(tmp_path / "server") as server:
        server.answer = 400, {"Content-Type": "application/x-amz-json-1.1"}, json.dumps({"__type": code}).encode()
        uri = f"awskms:{kms.arn}?endpoint=https://localhost:{server.port}&ca-file={server.files.ca}"
        with kek_of(uri) as kek:
            away(kek, text)


def test_a_server_that_hangs_is_given_up(kms, tmp_path):
    with Vault(tmp_path / "server") as server:
        server.hangs.set()
        uri = f"awskms:{kms.arn}?endpoint=https://localhost:{server.port}&ca-file={server.files.ca}"
        with kek_of(uri, timeout=0.3) as kek:
            away(kek, "KMS does not answer")


def test_a_certificate_that_is_not_trusted(kms, tmp_path):
    other = mint_certificates(tmp_path / "other").ca
    with kek_of(re.sub("ca-file=.*", f"ca-file={other}", kms.uri())) as kek:
        away(kek, "the certificate of KMS is not trusted")


def test_nothing_listens(kms):
    with kek_of(kms.uri(port=free_port())) as kek:
        away(kek, "KMS cannot be reached")


def test_a_ca_file_that_is_not_there_is_an_error_of_the_configuration(tmp_path):
    place = f"arn:aws:kms:eu-central-1:111122223333:key/1?ca-file={tmp_path}/none"
    with pytest.raises(ConfigError, match=r"^storage\.keys\.wrap: ca-file"):
        open_kms(KekUri("awskms", place), "storage.keys.wrap", None)


def test_nothing_is_asked_after_the_end(kms):
    with kek_of(kms.uri()) as kek:
        kek.check()
        kek.close()
        away(kek, "this process is stopping")
