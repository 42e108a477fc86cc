"""AWS KMS as moto answers for it: a process of its own, over HTTPS."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import botocore.session
import pytest

from tests.support.peers import READY_SECONDS, free_port, is_open, mint_certificates

REGION = "eu-central-1"


class Kms:
    """The server, with a key in it. ``environment`` has credentials, which moto takes as they are."""

    def __init__(self, folder: Path) -> None:
        self.files = mint_certificates(folder / "tls")
        self._folder = folder
        (folder / "credentials").write_text("[default]\naws_access_key_id = AKIA0\naws_secret_access_key = s3cret\n")
        self.environment: Mapping[str, str] = {
            "AWS_SHARED_CREDENTIALS_FILE": str(folder / "credentials"),
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start(free_port())
        self.arn: str = self.client().create_key()["KeyMetadata"]["Arn"]
        return self

    def start(self, port: int) -> None:
        self.port = port
        code = "from moto.server import main; main()"
        files = ["-c", self.files.certificate, "-k", self.files.key]
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, "-H", "127.0.0.1", "-p", str(port), *files],
            env=os.environ | self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + READY_SECONDS
        while not is_open(port):
            assert self._process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)

    def stop(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def client(self) -> Any:
        """botocore's client, as an operator has it."""
        return botocore.session.Session().create_client(
            "kms",
            region_name=REGION,
            endpoint_url=f"https://localhost:{self.port}",
            verify=str(self.files.ca),
            aws_access_key_id="AKIA0",
            aws_secret_access_key="s3cret",
        )

    def seen_by(self, monkeypatch: pytest.MonkeyPatch) -> Self:
        """Give the credentials to clients in this process."""
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        return self

    def uri(self, arn: str = "", port: int = 0) -> str:
        """The URI of the key, or of another one."""
        return f"awskms:{arn or self.arn}?endpoint=https://localhost:{port or self.port}&ca-file={self.files.ca}"
