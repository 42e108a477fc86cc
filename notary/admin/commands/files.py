"""``files`` lists and installs what belongs beside the programs: units, manual pages, completion, rules, samples.

Rules of this module: a wheel has these files in ``notary/files/``, in the folders in which they belong below a prefix
such as ``/usr/local``; ``etc/stamp.py`` puts them there. Nothing outside the named directory is touched, and nothing is
removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
from twisted.internet.threads import deferToThread

from notary.admin.command import Status, command
from notary.admin.output import OutputFailed, counted
from notary.admin.session import Session
from notary.errors import ConfigError
from notary.work.files import replace_file

FOLDER: Final = Path(__file__).parents[2] / "files"
_MODE: Final = 0o644


@command("files", needs_config=False)
@click.option("--list", "only_list", is_flag=True, help="List the files, which is also done without any option.")
@click.option(
    "--install",
    "prefix",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write the files below this directory, such as /usr/local, in the folders that the list shows.",
)
async def files(session: Session, *, only_list: bool, prefix: Path | None) -> int:
    """List or install the files beside the programs.

    These are units of systemd, manual pages, completion of shells, the description of the API, the dashboard of
    Grafana, rules for Prometheus and sample configurations. An installed file that differs is replaced.
    """
    if only_list and prefix is not None:
        raise ConfigError("--list, --install: both are given; expected one of them")
    names = _names(FOLDER)
    if not names:
        session.out.say(
            "this installation has none of these files: only a wheel of a release has them; a clone of the repository "
            "has them in etc/ and docs/, and makes the manual pages by `make man`"
        )
        return Status.MISSING
    if prefix is None:
        with session.out.table("File") as add:
            for name in names:
                add([name], {"file": name})
        return Status.OK
    done = await deferToThread(lambda: [(name, _install(FOLDER / name, prefix / name)) for name in names])
    with session.out.table("File", "Result") as add:
        for name, result in done:
            add([name, result], {"file": name, "result": result})
    changed = sum(result == "written" for _, result in done)
    session.out.summary(f"{counted(changed, 'file')} written, {len(done) - changed} up to date, below {prefix}")
    return Status.OK


def _names(folder: Path) -> Sequence[str]:
    """The names of all files in a folder and below, relative to the folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _install(source: Path, target: Path) -> str:
    """Copy a file in one step; return what was done. Raises OutputFailed."""
    data = source.read_bytes()
    try:
        if target.is_file() and target.read_bytes() == data:
            return "up to date"
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, data, _MODE)
    except OSError as error:
        raise OutputFailed(f"{target}: cannot be written: {error.strerror}") from None
    return "written"
