"""Build the source archive and the wheel: ``python etc/dist.py [DIRECTORY]``, by default ``dist/``.

Rules of this module: two builds of one commit are equal in every byte. All times are that of the commit, or what
``SOURCE_DATE_EPOCH`` says. The wheel is built from the source archive, so that the archive is known to hold all that
is needed.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from click.shell_completion import BashComplete, FishComplete, ZshComplete

from notary.admin.cli import cli

ROOT: Final = Path(__file__).resolve().parents[1]
COMPLETION: Final = {
    "notary-admin": BashComplete,
    "_notary-admin": ZshComplete,
    "notary-admin.fish": FishComplete,
}
"""The scripts of completion, by the names that the shells look for."""


def completion() -> dict[str, str]:
    """The scripts of completion, by the names of their files."""
    found = {}
    for name, shell in COMPLETION.items():
        script = shell(cli, {}, "notary-admin", "_NOTARY_ADMIN_COMPLETE")
        found[name] = script.source_template % script.source_vars()
    return found


def seconds() -> str:
    """The time of the build, in seconds since 1970."""
    known = os.environ.get("SOURCE_DATE_EPOCH")
    if known:
        return known
    git = ("git", "-C", str(ROOT), "log", "-1", "--format=%ct")
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()


def made(directory: Path) -> list[Path]:
    """The archives and wheels in a directory, in which Debian packages may lie beside them."""
    return sorted((*directory.glob("notary_service-*.whl"), *directory.glob("notary_service-*.tar.gz")))


def main() -> None:
    """Build, check by twine, and print the hash of each file."""
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist").resolve()
    os.environ["SOURCE_DATE_EPOCH"] = seconds()
    for path in made(directory):
        path.unlink()
    folder = ROOT / "build/completion"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in completion().items():
        (folder / name).write_text(text, "utf-8")
    subprocess.run((sys.executable, ROOT / "etc/manual.py", ROOT / "build/man"), check=True)
    build = (sys.executable, "-m", "build", "--no-isolation", "--outdir", str(directory), str(ROOT))
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    built = made(directory)
    subprocess.run((sys.executable, "-m", "twine", "check", "--strict", *map(str, built)), check=True)
    for path in built:
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}")


if __name__ == "__main__":
    main()
