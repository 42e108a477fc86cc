"""docs/notary-admin.md names every command, option, finding and exit status."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from notary.admin import findings
from notary.admin.cli import cli
from notary.admin.command import Status

PAGE = (Path(__file__).parent.parent.parent / "docs/notary-admin.md").read_text()
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def commands(group: click.Group, before: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, each in group.commands.items():
        if isinstance(each, click.Group):
            yield from commands(each, f"{before}{name} ")
        else:
            yield before + name, each


COMMANDS = dict(commands(cli))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_section_with_its_options(name):
    options = {option for parameter in COMMANDS[name].params for option in parameter.opts if option.startswith("--")}
    everywhere = {"--config", "--daemon", "--json", "--yes", "--dry-run"}
    assert everywhere <= set(re.findall(r"--[a-z-]+", PAGE.partition("\n## ")[0]))
    assert sorted(options - everywhere - set(re.findall(r"--[a-z-]+", SECTIONS[name]))) == []
    assert COMMANDS[name].help


def test_every_finding():
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| (error|note) \|", SECTIONS["fsck"], re.MULTILINE))
    assert rows == {name: "error" if kind.error else "note" for name, kind in findings.KINDS.items()}


def test_every_exit_status():
    cells = re.findall(r"^\| ([\d, ]+) \|", PAGE.partition("\n## ")[0], re.MULTILINE)
    assert {int(number) for cell in cells for number in cell.split(", ")} == set(map(int, Status))
