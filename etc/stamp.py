"""Stamps a build with the Git commit that it was made from: the build hook of hatchling, named in pyproject.toml.

The commit is the content of ``notary/commit.txt`` in the wheel and in the source archive. It is that of the working
tree or, where there is none, the variable ``GIT_COMMIT``, or that of the source archive. Without any, no file is added.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NAME = "notary/commit.txt"


def commit_of(root: Path) -> str:
    """Return the commit of a source tree, or "" if it is not known."""
    known = root / NAME
    found = ""
    if os.environ.get("GIT_COMMIT"):
        found = os.environ["GIT_COMMIT"]
    elif (root / ".git").exists():
        git = shutil.which("git") or "git"
        asked = [git, "-C", str(root), "rev-parse", "HEAD"]
        with suppress(OSError):  # there is no git
            found = subprocess.run(asked, capture_output=True, text=True, check=False).stdout  # noqa: S603 - constant
    else:
        found = known.read_text("ascii") if known.exists() else ""
    return found.strip() if re.fullmatch(r"[0-9a-f]{8,64}", found.strip()) else ""


class Stamp(BuildHookInterface[Any]):
    """The hook."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the file to a build; an editable installation reads the working tree."""
        commit = commit_of(Path(self.root))
        if version == "editable" or not commit:
            return
        file = Path(self.directory) / "commit.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(commit + "\n")
        build_data["force_include"][str(file)] = NAME

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove what was made for the build."""
        (Path(self.directory) / "commit.txt").unlink(missing_ok=True)
