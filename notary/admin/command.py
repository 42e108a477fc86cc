"""The decorator of commands, the options that commands share, and the table from errors to exit statuses.

Rules of this module: a command is a coroutine function of a :class:`Session` and its own options, and returns an exit
status. :data:`STATUSES` is the one table from domain errors to statuses. Reading a command line opens nothing and runs
nothing: the result is an :class:`Invocation`, which runs on the reactor that it is given.
"""

from __future__ import annotations

import functools
import re
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import Concatenate, Final, ParamSpec, TextIO

import click
from twisted.internet.defer import CancelledError

from notary.admin.output import Output, OutputFailed
from notary.admin.session import Session
from notary.config.load import DAEMONS
from notary.errors import ConfigError, KeyNotFound, NotaryError, NotFound, StorageFailed
from notary.work.reactor import Reactor

_P = ParamSpec("_P")


class Status(IntEnum):
    """The exit statuses of ``notary-admin``."""

    OK = 0
    FOUND = 1
    """The command did its work and has findings: something expires or is broken."""
    USAGE = 2
    """The command line or a configuration is not valid."""
    STORAGE = 3
    """The database cannot be reached, or failed."""
    MISSING = 4
    """The named collection or key does not exist."""
    REFUSED = 5
    """The action is not allowed, or the operator did not confirm it."""
    FAULT = 70
    """A bug in the program."""
    OUTPUT = 74
    """The output cannot be written, as on a full disk."""
    INTERRUPTED = 130
    """The command was interrupted, as by Ctrl-C."""
    PIPE = 141
    """The output pipe was closed."""


STATUSES: Final[Mapping[type[NotaryError], Status]] = MappingProxyType(
    {
        ConfigError: Status.USAGE,
        StorageFailed: Status.STORAGE,
        OutputFailed: Status.OUTPUT,
        NotFound: Status.MISSING,
        KeyNotFound: Status.MISSING,
        NotaryError: Status.REFUSED,
    }
)
"""The status of each domain error; an error without a row has that of its nearest base class."""


@dataclass(frozen=True, slots=True)
class Invocation:
    """A command with its options, ready to run. ``daemon`` is that of :class:`Session`."""

    config: Path
    daemon: str | None
    as_json: bool
    body: Callable[[Session], Awaitable[int]]

    async def run(
        self, reactor: Reactor, environ: Mapping[str, str], stdin: TextIO, stdout: TextIO, stderr: TextIO
    ) -> int:
        """Run the command and return its exit status. A domain error becomes one line on ``stderr``."""
        try:
            return await self._run(reactor, environ, stdin, stdout, stderr)
        except BrokenPipeError:  # also while an error was written
            return Status.PIPE

    async def _run(
        self, reactor: Reactor, environ: Mapping[str, str], stdin: TextIO, stdout: TextIO, stderr: TextIO
    ) -> int:
        """Do what :meth:`run` does. Raises BrokenPipeError if an output pipe was closed."""
        out = Output(stdout, stderr, as_json=self.as_json)
        try:
            session = Session(self.config, environ, reactor, out, stdin, self.daemon)
            try:
                status = await self.body(session)
            finally:
                await session.close()
            out.flush()
        except NotaryError as error:
            out.say(f"notary-admin: {error}")
            return next(STATUSES[base] for base in type(error).__mro__ if base in STATUSES)
        except CancelledError:
            return Status.INTERRUPTED
        except BrokenPipeError:
            raise
        except Exception:  # noqa: BLE001 - the edge of the program
            stderr.write(traceback.format_exc())
            return Status.FAULT
        return status


def command(name: str) -> Callable[[Callable[Concatenate[Session, _P], Awaitable[int]]], click.Command]:
    """Make a command of a coroutine function, whose docstring is the help; its own options are decorators below."""

    def decorate(body: Callable[Concatenate[Session, _P], Awaitable[int]]) -> click.Command:
        @functools.wraps(body)
        def parsed(config: Path, daemon: str | None, as_json: bool, *args: _P.args, **kwargs: _P.kwargs) -> Invocation:
            return Invocation(config, daemon, as_json, lambda session: body(session, *args, **kwargs))

        for option in (
            click.option(
                "--daemon",
                type=click.Choice(DAEMONS),
                help="Whose configuration this is, if the file does not show it.",
            ),
            click.option("--json", "as_json", is_flag=True, help="Write lines of JSON, for scripts."),
            click.option(
                "--config",
                required=True,
                envvar="NOTARY_CONFIG",
                show_envvar=True,
                type=click.Path(dir_okay=False, path_type=Path),
                help="The configuration file of a daemon, server or signer.",
            ),
        ):
            parsed = option(parsed)
        return click.command(name)(parsed)

    return decorate


GUN_OPTION: Final = click.option("--gun", default="", help="Only this collection.")
PREFIX_OPTION: Final = click.option("--prefix", default="", help="Only collections whose names begin with this.")
DRY_RUN_OPTION: Final = click.option("--dry-run", is_flag=True, help="Change nothing; only report what would be done.")
YES_OPTION: Final = click.option("--yes", is_flag=True, help="Do not ask for confirmation.")

_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Duration(click.ParamType[timedelta]):
    """The type of options with a number and a unit: 90m, 12h, 30d, 4w."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Return the value as a length of time; fail on anything else."""
        if isinstance(value, timedelta):
            return value
        found = re.fullmatch(r"([0-9]{1,6})([mhdw])", str(value))
        if found is None:
            self.fail(f"{value!r} is not a length of time; expected a number and m, h, d or w, such as 30d", param, ctx)
        return timedelta(**{_UNITS[found[2]]: int(found[1])})
