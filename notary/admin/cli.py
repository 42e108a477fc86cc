"""``notary-admin``: the one list of commands, and the way from a command line to an exit status.

Rules of this module: a new command is a module in ``commands/`` and a row in :data:`COMMANDS`. Commands run on a
reactor (:mod:`notary.admin.process`); stores are opened as the daemons open them.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from typing import Final, NoReturn

import click

from notary import __version__
from notary.admin.command import Invocation, Status
from notary.admin.commands.changes import changes
from notary.admin.commands.check_config import check_config
from notary.admin.commands.check_database import check_database
from notary.admin.commands.expiring import expiring
from notary.admin.commands.fetch import fetch
from notary.admin.commands.fsck import fsck
from notary.admin.commands.gc import gc
from notary.admin.commands.health import health
from notary.admin.commands.keys import keys
from notary.admin.commands.migrate import migrate
from notary.admin.commands.mirror import mirror
from notary.admin.commands.repos import repos
from notary.admin.process import drop_unwritten, run
from notary.work.reactor import installed_reactor


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="notary-admin")
def cli() -> None:
    """Check, list, move and clean up the stores of a Notary server and signer."""


COMMANDS: Final = (
    check_config,
    check_database,
    health,
    migrate,
    repos,
    fetch,
    mirror,
    keys,
    changes,
    expiring,
    fsck,
    gc,
)

for each in COMMANDS:
    cli.add_command(each)


def parse(arguments: Sequence[str] | None = None) -> Invocation | int:
    """Read a command line, by default that of the process.

    Returns the command to run, or an exit status if nothing remains to be done, as after ``--help``. Raises
    click.ClickException and click.Abort.
    """
    found: Invocation | int = cli.main(arguments, "notary-admin", standalone_mode=False)
    return found


def main() -> NoReturn:
    """Run the console script, but for the time before it is loaded (:mod:`notary.admin.start`)."""
    try:
        status = _status()
    except BrokenPipeError:
        status = Status.PIPE
    except OSError as error:
        with suppress(OSError):
            sys.stderr.write(f"notary-admin: standard output cannot be written: {error.strerror}\n")
        status = Status.OUTPUT
    drop_unwritten()
    sys.exit(status)


def _status() -> int:
    """Do what the command line says; return the exit status. Raises OSError if the answer cannot be written."""
    said = io.BytesIO()
    text = io.TextIOWrapper(said, "utf-8", write_through=True)
    try:
        with redirect_stdout(text):  # click itself exits with status 1 if nobody reads its help
            invocation = parse()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return Status.INTERRUPTED
    finally:
        click.echo(said.getvalue(), nl=False)
    return run(invocation, os.environ, installed_reactor()) if isinstance(invocation, Invocation) else invocation
