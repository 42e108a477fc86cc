"""The flags of a daemon's command line, for ``twistd`` and for the console script (docs/protocol.md, section 7)."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

from twisted.python import usage

from notary.observe.logs import LineObserver

# -- flags ------------------------------------------------------------------------------------------------------------

_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})

_PIPE: Final = 141
"""The exit status of a program whose output nobody reads: what a shell shows for one that SIGPIPE ends."""


def git_commit(repository: Path) -> str:
    """Return the commit that a program was made from, shortened, or "unknown".

    ``repository`` is its folder: a Git working tree, or where a build that etc/stamp.py stamped was installed.
    """
    git = repository / ".git"
    try:
        head = (git / "HEAD").read_text("utf-8")
        branch = re.match(r"ref: (.*)", head)
        if branch is not None:
            loose = git / branch[1]
            head = loose.read_text("utf-8") if loose.exists() else _packed(git, branch[1])
    except OSError:
        stamp = repository / "notary" / "commit.txt"
        head = stamp.read_text("ascii") if stamp.exists() else ""
    return head[:8] or "unknown"


def _packed(git: Path, branch: str) -> str:
    lines = (git / "packed-refs").read_text("utf-8").splitlines()
    return next((line for line in lines if line.endswith(f" {branch}")), "")


class Options(usage.Options):
    """The flags of a daemon, for ``twistd`` and for the console script.

    As Go's flags, those of the reference, each takes one dash or two, and its value after "=" or as the next argument.
    A subclass says what the program is. A command line that cannot be understood ends the process with one line on
    standard error and status 1.
    """

    program: ClassVar[str]
    """The name of the program: "notary-server"."""

    version: ClassVar[str]
    """The version of the program."""

    commit: ClassVar[str] = git_commit(Path(__file__).resolve().parents[2])
    """The Git commit that it was built from."""

    log: LineObserver
    """Where the daemon logs, once ``make_daemon`` has been called."""

    optParameters: ClassVar = [
        ["config", None, "", "The configuration file, JSON; docs/configuration.md lists its keys."],
        ["logf", None, "json", "The format of the log: json or logfmt."],
    ]
    optFlags: ClassVar = [
        ["debug", None, "Serve profiles and variables on localhost:8080."],
        ["bootstrap", None, "Set up the storage backend, then exit."],
    ]

    def banner(self) -> str:
        """Return the first line of the log, which is also what ``-version`` prints after the program's name."""
        return f"Version: {self.version}, Git commit: {self.commit}"

    def opt_version(self) -> None:
        """Print the version and exit."""
        sys.stdout.write(f"{self.program} {self.banner()}\n")
        sys.exit(0)

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse the command line, by default that of the process."""
        try:
            try:
                super().parseOptions(_long_options(sys.argv[1:] if options is None else options))
            finally:
                sys.stdout.flush()
        except usage.UsageError as error:
            # twistd would print its own help, all of it, and lose the one line that matters.
            sys.exit(f"{self.program}: {error}; see {self.program} --help")
        except BrokenPipeError:  # nobody reads the version, or the help
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes it again
            sys.exit(_PIPE)

    def parseArgs(self, *arguments: str) -> None:
        """Refuse arguments that belong to no flag."""
        if arguments:
            raise usage.UsageError(f'"{arguments[0]}" belongs to no flag; expected -config=FILE')

    def postOptions(self) -> None:
        """Check the values of flags."""
        if self["logf"] not in ("json", "logfmt"):
            raise usage.UsageError(f'-logf: "{self["logf"]}" is not a format; expected json or logfmt')


_FLAGS = frozenset({"bootstrap", "debug", "help", "version"})
_PARAMETERS = frozenset({"config", "logf"})


def _long_options(arguments: Sequence[str]) -> list[str]:
    """Rewrite Go's flags for getopt: ``-config=x`` and ``-config x`` to two dashes, ``-debug=true`` to ``--debug``."""
    rest = list(arguments)
    result: list[str] = []
    while rest:
        match = re.fullmatch(r"--?([^-=][^=]*)(?:=(.*))?", rest[0], re.DOTALL)
        if match is None:
            break
        del rest[0]
        name, value = ("help" if match[1] == "h" else match[1]), match[2]
        if name in _FLAGS and value is not None:
            if value not in _TRUE | _FALSE:
                raise usage.UsageError(f'-{name}: "{value}" is not a boolean; expected true or false')
            result = [each for each in result if each != f"--{name}"]
            if value in _FALSE:
                continue
            value = None
        result.append(f"--{name}" if value is None else f"--{name}={value}")
        if name in _PARAMETERS and value is None:
            result += rest[:1]
            del rest[:1]
    return result + rest
