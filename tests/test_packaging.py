"""What we depend on: what is imported is declared, what is declared is imported, and the locks of the images agree."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from notary import __version__

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
RUNTIME = ("mysql", "pymysql", "postgres", "bugsnag", "manhole", "pkcs11", "awskms")
"""The extras that a daemon runs with."""
IMAGE = ("mysql", "postgres")
"""Those that the images are built with."""

NOT_IMPORTED = {
    "bugsnag": "imported by name, only where it is configured",
}
"""Declared, though no module names it, and why."""


@cache
def declared(*extras: str) -> frozenset[str]:
    listed = [*PROJECT["dependencies"], *(each for extra in extras for each in EXTRAS[extra])]
    return frozenset(canonicalize_name(Requirement(each).name) for each in listed)


@cache
def imported() -> dict[str, str]:
    """The distributions that modules of ours import, each with one module that does."""
    found: dict[str, str] = {}
    providers = packages_distributions()
    for folder in ("notary", "twisted"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    names = [node.module or ""]
                else:
                    continue
                for top in {name.partition(".")[0] for name in names}:
                    if top in sys.stdlib_module_names or top == "notary":
                        continue
                    assert top in providers, f"{path.name} imports {top}, which nothing provides"
                    ours = providers[top]
                    # Several distributions share a name such as google or zope: the full name says which is meant.
                    full = next((name for name in names if name.partition(".")[0] == top), top)
                    found.setdefault(_distribution(full, ours), str(path.relative_to(ROOT)))
    return found


def _distribution(module: str, candidates: list[str]) -> str:
    named = {canonicalize_name(each) for each in candidates}
    if len(named) == 1:
        return named.pop()
    shared = {"google.protobuf": "protobuf", "zope.interface": "zope-interface"}
    (found,) = (name for start, name in shared.items() if module.startswith(start))
    return found


def test_what_is_imported_is_declared() -> None:
    missing = {name: where for name, where in imported().items() if name not in declared(*RUNTIME)}
    assert missing == {}, "declare it in pyproject.toml: what brings it today may not tomorrow"


def test_what_is_declared_is_imported() -> None:
    assert declared(*RUNTIME) - set(imported()) == set(NOT_IMPORTED), "what nothing needs is removed, or has its reason"


def test_the_program_imports_nothing_that_only_an_extra_brings() -> None:
    """Unless it is asked for: a module of drivers, or of what is configured."""
    optional = declared(*RUNTIME) - declared()
    outside = {name: where for name, where in imported().items() if name in optional}
    allowed = re.compile(r"backends|manhole|bugsnag|envelope/(token|awskms)")
    assert all(allowed.search(where) for where in outside.values()), outside


@pytest.mark.parametrize(
    "requirement", [*PROJECT["dependencies"], *(each for extra in EXTRAS.values() for each in extra)]
)
def test_every_dependency_has_a_lower_bound_and_no_upper_one(requirement: str) -> None:
    """So that this can be installed beside other things, and nobody gets what has known holes."""
    assert [each.operator for each in Requirement(requirement).specifier] == [">="]


def test_dev_asks_for_no_less_than_the_program() -> None:
    bounds = {Requirement(each).name: Requirement(each).specifier for each in PROJECT["dependencies"]}
    for extra in RUNTIME:
        bounds |= {Requirement(each).name: Requirement(each).specifier for each in EXTRAS[extra]}
    for each in map(Requirement, EXTRAS["dev"]):
        assert bounds.get(each.name, each.specifier) == each.specifier, each.name


def test_all_is_all_that_a_daemon_may_use() -> None:
    """But for PyMySQL, which would only be used if mysqlclient were not there."""
    assert sorted(EXTRAS["all"]) == sorted(each for extra in RUNTIME if extra != "pymysql" for each in EXTRAS[extra])


# -- the locks of the images ------------------------------------------------------------------------------------------

PIN = re.compile(r"^([a-z0-9-]+)==(\S+)(?: ; .*?)?((?: \\\n +--hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE)


LOCKS = ROOT / "docker"
PACKAGE = "../debian/requirements.lock"
"""The lock of the Debian package."""


def pins(name: str) -> dict[str, Version]:
    """What a lock pins; each line of it is a comment, a pin or a hash of one."""
    text = (LOCKS / name).read_text("utf-8")
    found = {match[1]: Version(match[2]) for match in PIN.finditer(text)}
    left = [line for line in PIN.sub("", text).splitlines() if line and not line.lstrip().startswith("#")]
    assert left == [], "a pin without a hash is no lock"
    return found


@pytest.mark.parametrize("name", ["requirements.lock", "libpq.lock", "build.lock", "sbom.lock", PACKAGE])
def test_a_lock_pins_by_hash_and_names_no_index(name: str) -> None:
    assert pins(name)
    assert "http" not in (LOCKS / name).read_text("utf-8")


def test_the_lock_holds_all_that_the_images_need_and_is_up_to_date() -> None:
    locked = pins("requirements.lock")
    for each in map(Requirement, [*PROJECT["dependencies"], *(one for extra in IMAGE for one in EXTRAS[extra])]):
        name = canonicalize_name(each.name)
        assert name in locked, f"{name}: run `make lock`"
        assert locked[name] in each.specifier, f"{name}: run `make lock`"


def test_what_is_compiled_for_the_images_is_of_the_same_release() -> None:
    locked, of_images = pins("libpq.lock"), pins("requirements.lock")
    assert locked["psycopg-c"] == locked["psycopg"], "run `make lock`"
    assert {name: each for name, each in locked.items() if name != "psycopg-c"}.items() <= of_images.items()


def test_the_debian_package_has_what_the_images_have_and_all_extras() -> None:
    locked, of_images = pins(PACKAGE), pins("requirements.lock")
    assert {name: locked[name] for name in of_images} == of_images, "run `make lock`"
    for each in map(Requirement, EXTRAS["all"]):
        assert locked[canonicalize_name(each.name)] in each.specifier, f"{each.name}: run `make lock`"


def test_the_build_lock_holds_what_builds_the_program() -> None:
    locked = pins("build.lock")
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["build-system"]["requires"]
    for each in map(Requirement, [*wanted, "setuptools"]):  # with which mysqlclient is built
        assert locked[canonicalize_name(each.name)] in each.specifier


def test_the_lock_holds_nothing_that_nobody_asked_for() -> None:
    """Each line "via" leads to a package of the lock, or to pyproject.toml."""
    text = (ROOT / "docker/requirements.lock").read_text("utf-8")
    via = set(re.findall(r"^    #(?: via)? {1,3}([a-z0-9-]+)(?: \(pyproject\.toml\))?$", text, re.MULTILINE)) - {"via"}
    assert via - set(pins("requirements.lock")) == {"notary-service"}


def test_the_image_installs_nothing_but_by_the_locks() -> None:
    dockerfile = (ROOT / "docker/Dockerfile").read_text("utf-8")
    for command in re.findall(r"pip (?:--python \S+ )?(?:install|wheel) [^&]*", dockerfile):
        assert "--require-hashes" in command or "--no-deps" in command, command
        assert "--no-build-isolation" in command or "--no-index" in command or "build.lock" in command, command


def test_all_images_have_one_base_by_its_digest() -> None:
    texts = [(ROOT / "docker" / name).read_text() for name in ("Dockerfile", "peers.Dockerfile")]
    bases = {base for text in texts for base in re.findall(r"^ARG BASE=(.*)$", text, re.MULTILINE)}
    assert len(bases) == 1
    name = r"docker\.io/library/debian:bookworm-slim@sha256:[0-9a-f]{64}"
    assert re.fullmatch(rf"\$\{{NOTARY_BASE:-{name}\}}", bases.pop())


def test_the_images_say_which_version_they_are() -> None:
    dockerfile = (ROOT / "docker/Dockerfile").read_text()
    assert f"org.opencontainers.image.version={__version__} " in dockerfile
    assert f"org.opencontainers.image.licenses={PROJECT['license']} " in dockerfile


def test_what_is_installed_here_is_what_pyproject_allows() -> None:
    for each in map(Requirement, PROJECT["dependencies"]):
        assert Version(version(each.name)) in each.specifier


# -- make audit -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def audit():
    spec = importlib.util.spec_from_file_location("audit", ROOT / "etc/audit.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_audit_asks_about_all_that_is_locked_and_about_the_oldest_that_is_allowed(audit) -> None:
    text = (ROOT / "docker/requirements.lock").read_text("utf-8")
    assert audit.pins(text) == [f"{name}=={pinned}" for name, pinned in pins("requirements.lock").items()]
    asked = audit.floors({"project": PROJECT})
    assert {each.partition("==")[0] for each in asked} == declared(*RUNTIME)


@pytest.mark.parametrize(
    ("report", "holes", "unknown", "status"),
    [
        pytest.param({"dependencies": [{"name": "A", "vulns": []}]}, 0, [], 0, id="nothing known"),
        pytest.param(
            {"dependencies": [{"name": "a", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}]}, 1, [], 1, id="a hole"
        ),
        pytest.param({"dependencies": [{"name": "a", "skip_reason": "?"}]}, 0, ["a==1"], 2, id="skipped"),
        pytest.param({"dependencies": []}, 0, ["a==1"], 2, id="not told"),
        pytest.param(None, 0, ["a==1"], 2, id="unreachable"),
    ],
)
def test_silence_is_no_answer(audit, report, holes: int, unknown: list[str], status: int) -> None:
    verdict = audit.judge(["a==1"], report)
    assert (len(verdict.holes), verdict.unknown, verdict.status) == (holes, unknown, status)


def test_a_build_is_stamped_with_its_commit_in_an_image_too() -> None:
    """`-version` of an installed wheel names the commit. The hook runs wherever the program is built."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]
    hook = build["hooks"]["custom"]["path"]
    assert (ROOT / hook).exists()
    assert f"COPY {hook} " in (ROOT / "docker/Dockerfile").read_text()
    assert f"!{hook}" in (ROOT / ".dockerignore").read_text().splitlines()
    included = build["targets"]["sdist"]["include"]
    assert any(f"/{hook}".startswith(folder) for folder in included)
