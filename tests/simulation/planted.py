"""Bugs that are planted on purpose: ``make simulate-bugs`` shows that the simulation finds them.

Rules of this module: each bug is a patch in ``bugs/``. The text before the patch says what is wrong; a bug that the
simulation is known not to find says why, in a paragraph that begins with "Not found:". A patch is applied to a copy of
the program, at the one place where its old lines stand, wherever that is by now.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent / "bugs"

SEEDS = 500
"""How many seeds may be tried for a bug."""

FEW_SEEDS = 20
"""How many seeds are tried for a bug that the simulation is known not to find."""

SECONDS = 60.0
"""How long the seeds of one bug may take, in seconds of the processor: what else the machine does changes nothing."""


@dataclass(frozen=True)
class Bug:
    """A planted bug: ``hunks`` are the old lines and the new lines of ``file``."""

    name: str
    text: str
    file: str
    hunks: tuple[tuple[str, str], ...]

    @property
    def is_hidden(self) -> bool:
        """Whether the simulation is known not to find the bug."""
        return "Not found:" in self.text


def read(path: Path) -> Bug:
    """Read a patch of one file."""
    text, _, patch = path.read_text().partition("--- a/")
    file, _, rest = patch.partition("\n")
    hunks = []
    for hunk in re.split(r"^@@.*\n", rest, flags=re.MULTILINE)[1:]:
        lines = hunk.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] in " -")
        new = "".join(line[1:] for line in lines if line[0] in " +")
        hunks.append((old, new))
    return Bug(path.stem, text.strip(), file, tuple(hunks))


BUGS: Sequence[Bug] = [read(path) for path in sorted(FOLDER.glob("*.patch"))]


def patched(bug: Bug) -> str:
    """Return the file with the bug."""
    text = (ROOT / bug.file).read_text()
    for old, new in bug.hunks:
        if text.count(old) != 1:
            raise ValueError(f"{bug.name}: its lines are not in {bug.file} once: the code has changed, write it anew")
        text = text.replace(old, new)
    return text


def apply(bug: Bug, folder: Path) -> None:
    """Make a copy of the program with the bug in it, beside the tests."""
    text = patched(bug)
    shutil.copytree(ROOT / "notary", folder / "notary", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / bug.file).write_text(text)
    (folder / "tests").symlink_to(ROOT / "tests")


def environment() -> dict[str, str]:
    """Return the environment of a simulation, without the measurement of coverage."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COV")}


def hunt(bug: Bug, seeds: int | None = None) -> tuple[Bug, str, float]:
    """Simulate with a bug; return what was found, "" if nothing was, and the seconds that it took."""
    started = time.monotonic()
    if seeds is None:
        seeds = FEW_SEEDS if bug.is_hidden else SEEDS
    with TemporaryDirectory() as folder:
        apply(bug, Path(folder))
        command = [sys.executable, "-m", "tests.simulation", "--first", "1", "--seeds", str(seeds), "--jobs", "1"]
        command += ["--no-shrink", "--stop", "--seconds", str(SECONDS)]
        done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    found = re.search(r"^seed (.*)$", done.stdout, re.MULTILINE)
    if done.returncode and found is None:
        return bug, f"the simulation does not start: {done.stderr[-300:]}", seconds
    return bug, found[1] if found else "", seconds


def main(names: Sequence[str]) -> int:
    """Hunt all bugs, or those of some names; return 1 if more than a tenth of those that can be found were not.

    A name that no bug has is refused with 2.
    """
    bugs = [bug for bug in BUGS if not names or bug.name in names]
    if unknown := set(names) - {bug.name for bug in bugs}:
        print(f"no such bugs: {', '.join(sorted(unknown))}; the names are those of the files in {FOLDER}")
        return 2
    missed = []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for bug, found, seconds in pool.map(hunt, bugs):
            if not found and not bug.is_hidden:
                missed.append(bug.name)
            state = "found" if found else "hidden" if bug.is_hidden else "MISSED"
            print(f"{state:7} {bug.name} ({seconds:.0f} s): {found[:150]}", flush=True)
    count = sum(not bug.is_hidden for bug in bugs)
    print(f"{count - len(missed)} of {len(bugs)} bugs found; missed: {', '.join(missed) or 'none but the hidden ones'}")
    return len(missed) * 10 > count


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
