"""``notary-admin``: the one list of commands, and the way from a command line to an exit status.

Rules of this module: a new command is a module in ``commands/`` and a row in :data:`COMMANDS`. :func:`main` starts the
reactor, on which all commands run; stores are opened as the daemons open them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

import click
from twisted.internet.defer import Deferred
from twisted.internet.task import react

from notary import __version__
from notary.admin.command import Invocation, Status
from notary.admin.commands.check_config import check_config
from notary.admin.commands.expiring import expiring
from notary.admin.commands.fsck import fsck
from notary.admin.commands.gc import gc
from notary.admin.commands.health import health
from notary.admin.commands.keys import keys
from notary.admin.commands.migrate import migrate
from notary.admin.commands.repos import repos
from notary.work.reactor import Reactor, use_monotonic_time


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="notary-admin")
def cli() -> None:
    """Check, list, move and clean up the stores of a Notary server and signer."""


COMMANDS: Final = (check_config, health, migrate, repos, keys, expiring, fsck, gc)

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
    """Run the console script."""
    try:
        invocation = parse()
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(Status.INTERRUPTED)
    if not isinstance(invocation, Invocation):
        sys.exit(invocation)
    statuses: list[int] = []

    def body(reactor: Reactor) -> Deferred[None]:
        use_monotonic_time(reactor)
        running = Deferred.fromCoroutine(invocation.run(reactor, os.environ, sys.stdin, sys.stdout, sys.stderr))
        ended: Deferred[None] = Deferred()

        def interrupt() -> Deferred[None] | None:
            if ended.called:
                return None
            running.cancel()
            return ended  # The reactor stops once the stores are closed.

        def end(status: int) -> None:
            statuses.append(status)
            ended.callback(None)

        reactor.addSystemEventTrigger("before", "shutdown", interrupt)
        return running.addCallback(end)

    try:
        react(body)
    except SystemExit:  # react always exits, with a status of its own
        status = statuses[0] if statuses else Status.INTERRUPTED
        if status == Status.PIPE:
            # The interpreter flushes the buffer at exit, and would report that the pipe is closed.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(status)
