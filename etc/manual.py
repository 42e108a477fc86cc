"""Write the manual pages of section 8: ``python etc/manual.py DIRECTORY``.

Rules of this module: what the programs know of themselves comes from them (flags from their option tables, commands
from click's tree, signals from docs/operations.md); only what they cannot know is written here. Text goes through
:func:`escaped`, and no other way, into a page.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import click

from notary import __version__
from notary.admin.cli import cli
from notary.admin.command import Status
from notary.daemon import options
from notary.server.tap import Options as ServerOptions
from notary.signer.tap import Options as SignerOptions

ROOT: Final = Path(__file__).resolve().parents[1]

STATUSES: Final = {
    Status.OK: "Done.",
    Status.FOUND: "Done, with findings that need attention: something expires or is broken.",
    Status.USAGE: "The command line or the configuration is not valid.",
    Status.STORAGE: "The database cannot be reached, or failed.",
    Status.MISSING: "The named collection or key does not exist.",
    Status.REFUSED: "Refused: the action is not allowed, or was not confirmed.",
    Status.PEER: "The other Notary, or the signer, cannot be reached, or does not give what the command needs.",
    Status.FAULT: "A bug in the program; please report its output.",
    Status.OUTPUT: "The output cannot be written, as on a full disk.",
    Status.INTERRUPTED: "Interrupted, as by Ctrl-C.",
    Status.PIPE: "The output pipe was closed.",
}

OVERRIDE: Final = "Overrides a key of the configuration: its path in capitals with _ between names, as in {}."
CONFIGURATION: Final = (
    "Its configuration is a JSON file; docs/configuration.md of the distribution lists every key. "
    "A value that cannot be used ends the start with one line that names it."
)
DASHES: Final = "Each takes one dash or two, and its value after = or as the next argument."

Definitions = Iterable[tuple[str, str]]


def escaped(text: str) -> str:
    """Text that roff prints as it is."""
    text = " ".join(text.split()).replace("\\", r"\e").replace("-", r"\-")
    return r"\&" + text if text.startswith((".", "'")) else text


def definitions(items: Definitions) -> Iterator[str]:
    """A list of terms, each with what it means."""
    for term, meaning in items:
        yield from (".TP", f".B {escaped(term)}", escaped(meaning))


def paragraphs(text: str) -> Iterator[str]:
    """Paragraphs that an empty line divides."""
    for number, paragraph in enumerate(re.split(r"\n\s*\n", text.strip())):
        yield from ([".PP"] if number else [])
        yield escaped(paragraph)


def page(name: str, what: str, sections: Iterable[tuple[str, Iterable[str]]]) -> str:
    """A page of section 8, from the heading and the lines of each of its sections."""
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
    date = time.strftime("%Y-%m-%d", time.gmtime(seconds))
    lines = [f'.TH {name.upper()} 8 "{date}" "notary-service {__version__}" "Notary"']
    lines += [".SH NAME", rf"{name.replace('-', chr(92) + '-')} \- {escaped(what)}"]
    for heading, body in sections:
        lines += [f".SH {heading}", *body]
    return "\n".join(lines) + "\n"


def signals() -> Definitions:
    """The table of signals in docs/operations.md."""
    text = (ROOT / "docs/operations.md").read_text("utf-8")
    table = text.partition("## Signals\n")[2].partition("\n#")[0]
    rows = re.findall(r"^\| (SIG[^|]+?) \| ([^|]+?) \|$", table.replace("`", ""), re.MULTILINE)
    return [(term, f"{meaning[0].upper()}{meaning[1:]}.") for term, meaning in rows]


def flags_of(options: type[options.Options]) -> Definitions:
    """The flags of a daemon."""
    values = {"config": "FILE", "logf": "json|logfmt"}
    found = {f"-{name}={values.get(str(name), 'VALUE')}": meaning for name, _, _, meaning in options.optParameters}
    found |= {f"-{name}": meaning for name, _, meaning in options.optFlags}
    found |= {"-version": "Print the version and exit.", "-help": "Print the flags and exit."}
    return sorted((flag, str(meaning)) for flag, meaning in found.items())


def daemon_page(options: type[options.Options], what: str, description: str, environment: Definitions) -> str:
    """The page of a daemon."""
    name = options.program
    file = f"/etc/notary/{name.removeprefix('notary-')}-config.json"
    examples = {
        f"{name} -config={file} -logf=logfmt": "Serve in the foreground.",
        f"twistd -n --pidfile= {name} --config FILE": "The same under twistd(1).",
    }
    others = {"notary-server", "notary-signer", "notary-admin"} - {name}
    status = (
        "1 if it cannot start; the last line of the log says why. Otherwise it ends by the signal that ended it, or "
        "with 0 after -bootstrap."
    )
    sections: list[tuple[str, Iterable[str]]] = [
        ("SYNOPSIS", [f".B {escaped(name)}", escaped("-config=FILE [-logf=json|logfmt] [-debug] [-bootstrap]")]),
        ("DESCRIPTION", paragraphs(f"{description}\n\n{CONFIGURATION}")),
        ("OPTIONS", [escaped(DASHES), *definitions(flags_of(options))]),
        ("ENVIRONMENT", definitions(environment)),
        ("SIGNALS", definitions(signals())),
        ("EXIT STATUS", [escaped(status)]),
        ("EXAMPLES", definitions(examples.items())),
        ("SEE ALSO", [escaped(", ".join(f"{each}(8)" for each in sorted(others)) + ", twistd(1)")]),
    ]
    return page(name, what, sections)


def commands(command: click.Command, context: click.Context) -> Iterator[tuple[str, click.Command, click.Context]]:
    """Every command below this one, as it is typed after the program's name."""
    if not isinstance(command, click.Group):
        yield context.command_path.partition(" ")[2], command, context
        return
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        if below is not None and not below.hidden:
            yield from commands(below, click.Context(below, info_name=name, parent=context))


def options_of(command: click.Command, context: click.Context) -> Definitions:
    """The options of a command."""
    records = (each.get_help_record(context) for each in command.get_params(context))
    return [record for record in records if record is not None]


def admin_page() -> str:
    """The page of ``notary-admin``; options that all commands have stand in it once."""
    top = click.Context(cli, info_name="notary-admin", **cli.context_settings)
    found = list(commands(cli, top))
    of_each = {path: options_of(command, context) for path, command, context in found}
    shared = [each for each in next(iter(of_each.values())) if all(each in options for options in of_each.values())]
    body: list[str] = []
    for path, command, context in found:
        usage = " ".join(command.collect_usage_pieces(context))
        body += [f".SS {escaped(f'{path} {usage}')}", *paragraphs(command.help or "")]
        body += definitions(each for each in of_each[path] if each not in shared)
    environment = {
        "NOTARY_SERVER_..., NOTARY_SIGNER_...": "As for the daemon whose configuration file is named: run it with "
        "the daemon's environment, as the daemon's user.",
        "_NOTARY_ADMIN_COMPLETE": "bash_source, zsh_source or fish_source: print what makes that shell complete "
        "commands and options.",
    }
    sections: list[tuple[str, Iterable[str]]] = [
        (
            "SYNOPSIS",
            [
                ".B notary\\-admin",
                escaped("COMMAND --config FILE [--daemon server|signer] [--json] [OPTIONS] [ARGUMENTS]"),
            ],
        ),
        ("DESCRIPTION", paragraphs(f"{cli.help}\n\nResults go to standard output, all else to standard error.")),
        ("OPTIONS", definitions([*shared, *(each for each in options_of(cli, top) if each not in shared)])),
        ("COMMANDS", body),
        ("ENVIRONMENT", definitions(environment.items())),
        ("EXIT STATUS", definitions((str(int(status)), meaning) for status, meaning in STATUSES.items())),
        ("SEE ALSO", [escaped("notary-server(8), notary-signer(8)")]),
    ]
    return page("notary-admin", "check, list, move and clean up the stores of a Notary server and signer", sections)


def pages() -> dict[str, str]:
    """All pages, by file name."""
    return {
        "notary-server.8": daemon_page(
            ServerOptions,
            "keep and serve signed collections of Notary",
            "notary-server keeps TUF metadata, serves it over HTTPS and signs its timestamps, and its snapshots where "
            "publishers leave them to it, with keys that a notary-signer holds.",
            [("NOTARY_SERVER_PATH", OVERRIDE.format("NOTARY_SERVER_LOGGING_LEVEL=debug"))],
        ),
        "notary-signer.8": daemon_page(
            SignerOptions,
            "hold the private keys of a Notary server and sign with them",
            "notary-signer makes, keeps and uses the private keys of timestamps and snapshots. It keeps them wrapped "
            "by passphrases, which come from the environment, and serves gRPC over mutual TLS to notary-server.",
            [
                ("NOTARY_SIGNER_PATH", OVERRIDE.format("NOTARY_SIGNER_LOGGING_LEVEL=debug")),
                ("NOTARY_SIGNER_ALIAS", "The passphrase of an alias, for each alias under which a key is stored."),
                ("NOTARY_SIGNER_DEFAULT_ALIAS", "The alias of new keys, if storage.default_alias is not given."),
            ],
        ),
        "notary-admin.8": admin_page(),
    }


def main(directory: Path) -> None:
    """Write all pages into a directory, which is made if there is none."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (directory / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
