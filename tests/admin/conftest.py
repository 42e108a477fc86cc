"""Runs commands as the console script does, in this process and on its reactor."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from notary.admin.cli import parse
from notary.admin.command import Invocation
from tests.storage.conftest import BACKENDS, key_place, prepared_databases
from tests.support.stored import Place

__all__ = ["key_place", "prepared_databases"]


@dataclass(frozen=True)
class Outcome:
    """``status`` is the exit status; ``out`` and ``err`` what was written."""

    status: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        """What ``--json`` wrote."""
        return [json.loads(line) for line in self.out.splitlines()]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


async def admin(
    *arguments: object, environ=None, answer: str | None = None, terminal: bool = False, on=reactor
) -> Outcome:
    """Run ``notary-admin`` with ``arguments``; ``answer`` is what a person at a terminal types."""
    stream = Terminal if terminal else io.StringIO
    stdin = io.StringIO() if answer is None else Terminal(answer)
    out, err = stream(), stream()
    try:
        invocation = parse([str(each) for each in arguments])
    except click.ClickException as error:
        return Outcome(error.exit_code, "", error.format_message())
    assert isinstance(invocation, Invocation)
    status = await invocation.run(on, environ or {}, stdin, out, err)
    return Outcome(status, out.getvalue(), err.getvalue())


def write_config(folder: Path, name: str, value: dict[str, Any]) -> Path:
    path = folder / name
    path.write_text(json.dumps(value))
    return path


@pytest.fixture
def server_config(tmp_path) -> Path:
    """The configuration of a server on a SQLite file ``server.db`` beside it, which is not made yet."""
    return write_config(
        tmp_path,
        "server.json",
        {
            "server": {"http_addr": ":0"},
            "trust_service": {"type": "local"},
            "storage": {"backend": "sqlite3", "db_url": "server.db"},
        },
    )


@pytest.fixture(params=[each for each in BACKENDS if each.id != "memory"])
def place(request) -> Place:
    """An empty server's database on each backend in turn."""
    backend, prepare = request.param
    made = Place(backend, prepare(request, "server")())
    pytest_twisted.blockon(Deferred.fromCoroutine(made.make()))
    return made
