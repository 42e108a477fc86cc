"""Ask whether a hole is known in what we depend on: ``make audit``.

Two sets are looked up: what is in the images and in the Debian package (``*/*.lock``), and the oldest releases that
``pyproject.toml`` allows. pip-audit asks PyPI's advisories; what those cannot say, it asks OSV. The exit status is 0 if
all was looked up and nothing is known, 1 if a hole is known, 2 if something could not be looked up: silence is no
answer.

With ``--floors``, only the oldest releases are printed, as constraints for pip: ``make test-oldest``.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SERVICES = ("pypi", "osv")
PINNED = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^ ;\\]+)", re.MULTILINE)
FLOOR = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?>=([^ ;,]+)")


@dataclass
class Verdict:
    """``holes`` are lines for people; ``unknown`` the packages that no service could say anything about."""

    holes: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @property
    def status(self) -> int:
        """The exit status."""
        return 1 if self.holes else 2 if self.unknown else 0


def pins(text: str) -> list[str]:
    """What a lock pins, as ``name==version``."""
    return [f"{name}=={version}" for name, version in PINNED.findall(text)]


def floors(pyproject: dict[str, Any]) -> list[str]:
    """The oldest releases that we say we work with, as ``name==version``: of the program and of its extras."""
    project = pyproject["project"]
    extras = [each for name, extra in project["optional-dependencies"].items() if name in RUNTIME for each in extra]
    found = (FLOOR.match(requirement) for requirement in (*project["dependencies"], *extras))
    return sorted({f"{match[1]}=={match[2]}" for match in found if match is not None})


RUNTIME = frozenset({"mysql", "pymysql", "postgres", "bugsnag", "manhole", "pkcs11", "awskms"})
"""The extras that a daemon runs with; the others are for people who work on it."""


def judge(wanted: Sequence[str], report: dict[str, Any] | None) -> Verdict:
    """What pip-audit's ``report`` says about the packages that are ``wanted``; None if there is none."""
    told = {each["name"].lower(): each for each in (report or {}).get("dependencies", ())}
    verdict = Verdict()
    for pin in wanted:
        found = told.get(pin.partition("==")[0].lower())
        if found is None or "vulns" not in found:
            verdict.unknown.append(pin)
            continue
        for hole in found["vulns"]:
            fixed = ", ".join(hole.get("fix_versions", ())) or "no release yet"
            verdict.holes.append(f"{pin}: {hole['id']}, mended in {fixed}")
    return verdict


def ask(wanted: Iterable[str], service: str) -> dict[str, Any] | None:
    """pip-audit's report on these packages, None if the service cannot be reached."""
    with tempfile.TemporaryDirectory() as folder:
        listed, answer = Path(folder) / "wanted.txt", Path(folder) / "report.json"
        listed.write_text("\n".join(wanted) + "\n", encoding="utf-8")
        command = ["-m", "pip_audit", "--vulnerability-service", service, "--no-deps", "--disable-pip"]
        options = ["--progress-spinner=off", "--format=json", f"--output={answer}", f"--requirement={listed}"]
        subprocess.run([sys.executable, *command, *options], capture_output=True, check=False)
        return json.loads(answer.read_text("utf-8")) if answer.is_file() else None


def audit(wanted: Sequence[str]) -> Verdict:
    """Ask one service after the other, each about what those before it could not say."""
    verdict = Verdict(unknown=list(wanted))
    for service in SERVICES:
        if verdict.unknown:
            said = judge(verdict.unknown, ask(verdict.unknown, service))
            verdict = Verdict(verdict.holes + said.holes, said.unknown)
    return verdict


def main() -> int:
    """Look up both sets and say what was found."""
    oldest = floors(tomllib.loads(Path("pyproject.toml").read_text("utf-8")))
    if sys.argv[1:] == ["--floors"]:
        print("\n".join(oldest))
        return 0
    sets = {str(lock): pins(lock.read_text("utf-8")) for lock in sorted(Path().glob("*/*.lock"))}
    sets["oldest releases in pyproject.toml"] = oldest
    statuses = []
    for name, wanted in sets.items():
        verdict = audit(wanted)
        statuses.append(verdict.status)
        known = len(wanted) - len(verdict.unknown)
        print(f"{name}: {known} of {len(wanted)} packages looked up, {len(verdict.holes)} known holes")
        for hole in verdict.holes:
            print(f"    {hole}")
        if verdict.unknown:
            print(f"    not looked up, neither at {' nor at '.join(SERVICES)}: {', '.join(verdict.unknown)}")
    if 2 in statuses:  # noqa: PLR2004 - Verdict.status
        print("Some packages could not be looked up: run this where the advisories of PyPI or OSV can be reached.")
    return 1 if 1 in statuses else max(statuses)


if __name__ == "__main__":
    sys.exit(main())
