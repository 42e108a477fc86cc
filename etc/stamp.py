"""The build hook of hatchling, named in pyproject.toml: what a wheel has that the tree has elsewhere, or not at all.

A wheel has in ``notary/files/`` what belongs beside the programs (:data:`FILES`), in the folders in which
``notary-admin files --install`` puts it below a prefix. What is missing is left out: images are built without these
files, and only ``make dist`` writes manual pages and completion into ``build/``, which a source archive keeps.

A build is stamped with the Git commit that it was made from, as the content of ``notary/commit.txt`` in the wheel and
in the source archive. It is that of the working tree or, where there is none, the variable ``GIT_COMMIT``, or that of
the source archive. Without any, no such file is added.
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

FILES = {
    "build/completion/_notary-admin": "share/zsh/site-functions/",
    "build/completion/notary-admin": "share/bash-completion/completions/",
    "build/completion/notary-admin.fish": "share/fish/vendor_completions.d/",
    "build/man/*.8": "share/man/man8/",
    "docs/openapi.yaml": "share/notary/",
    "etc/config/*.json": "share/notary/config/",
    "etc/config/one-machine/*.json": "share/notary/config/one-machine/",
    "etc/grafana/*.json": "share/notary/grafana/",
    "etc/prometheus/*.yml": "share/notary/prometheus/",
    "etc/systemd/*.service": "lib/systemd/system/",
    "etc/systemd/*.socket": "lib/systemd/system/",
    "etc/systemd/notary-server.service.d/*": "share/notary/systemd/notary-server.service.d/",
    "etc/systemd/notary-signer.service.d/*": "share/notary/systemd/notary-signer.service.d/",
    "etc/systemd/notary.sysusers": "lib/sysusers.d/notary.conf",
}
"""Files of the tree, and where below ``notary/files/`` a wheel has them: a folder, or a name that ends in no slash."""

PROGRAMS = {"etc/new-pair.sh": "notary-new-pair"}
"""Scripts of the tree that an installation has beside the programs, and their names there."""


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


def files_of(root: Path) -> dict[str, str]:
    """Return the files of :data:`FILES` that a tree has, with their places in a wheel."""
    return {
        str(path): f"notary/files/{place}{path.name if place.endswith('/') else ''}"
        for pattern, place in FILES.items()
        for path in sorted(root.glob(pattern))
        if path.is_file()
    }


class Stamp(BuildHookInterface[Any]):
    """The hook."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files to a build; an editable installation reads the working tree."""
        if version == "editable":
            return
        root = Path(self.root)
        if self.target_name == "wheel":
            build_data["force_include"].update(files_of(root))
            build_data["shared_scripts"].update(
                {file: name for file, name in PROGRAMS.items() if (root / file).exists()}
            )
        else:  # Git ignores build/, and so does hatchling
            made = (path for path in files_of(root) if Path(path).is_relative_to(root / "build"))
            build_data["force_include"].update({path: str(Path(path).relative_to(root)) for path in made})
        commit = commit_of(root)
        if commit:
            file = Path(self.directory) / "commit.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(commit + "\n")
            build_data["force_include"][str(file)] = NAME

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove what was made for the build."""
        (Path(self.directory) / "commit.txt").unlink(missing_ok=True)
