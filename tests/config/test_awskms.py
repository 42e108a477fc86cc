"""URIs of keys in AWS KMS: what is understood, and what is refused."""

from __future__ import annotations

import pytest

from notary.config import awskms
from notary.errors import ConfigError
from tests.support.configurations import SIGNER_STORAGE, read_signer, signer

ARN = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"


def test_uris():
    key = awskms.parse(ARN)
    assert (key.arn, key.region, key.endpoint, key.ca_path, key.profile) == (ARN, "eu-central-1", "", "", "")
    key = awskms.parse(f"{ARN}?endpoint=https://kms.example.com&ca-file=/ca&profile=notary")
    assert (key.endpoint, key.ca_path, key.profile) == ("https://kms.example.com", "/ca", "notary")
    assert awskms.parse(ARN.replace("aws:", "aws-us-gov:")).region == "eu-central-1"
    assert str(key) == ARN


BAD = [
    "",
    "alias/notary",
    "arn:aws:kms:eu-central-1:111122223333:alias/notary",
    "arn:aws:s3:eu-central-1:111122223333:key/1",
    "arn:aws:kms:eu-central-1:1111:key/1",
    f"{ARN}?profile",
    f"{ARN}?endpoint=http://kms.example.com",
    f"{ARN}?endpoint=https://user@kms.example.com",
    f"{ARN}?ca-file=ca",
    f"{ARN}?profile=a&profile=b",
    f"{ARN}?profile=a%0Ab",
    f"{ARN}?secret-access-key=s",
    f"{ARN}/{'n' * 3000}",
]


@pytest.mark.parametrize("place", BAD)
def test_what_is_refused(place):
    with pytest.raises(ValueError, match=r"."):
        awskms.parse(place)
    with pytest.raises(ConfigError) as caught:
        read_signer(signer(storage={**SIGNER_STORAGE, "keys": {"wrap": f"awskms:{place}"}}))
    assert str(caught.value).startswith("storage.keys.wrap: ")
    assert awskms.EXPECTED in str(caught.value)
