"""What the platforms around the project read: workflows, the site at Read the Docs, the citation, pre-commit."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from notary import __version__
from tests.test_layout import ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()


def check(schema: str, path: Path) -> tuple[int, str]:
    """Hold a file against a schema that check-jsonschema brings."""
    command = (sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(path))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def loaded(path: Path) -> dict[str, Any]:
    # YAML 1.1, which this library reads, takes the word "on" for True.
    found: dict[str, Any] = {
        ("on" if key is True else key): value for key, value in yaml.safe_load(path.read_text()).items()
    }
    return found


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        *(
            pytest.param(schema, path, id=f"{path.stem}-{schema}")
            for path in WORKFLOWS
            for schema in ("vendor.github-workflows", "custom.github-workflows-require-timeout")
        ),
        pytest.param("vendor.dependabot", ROOT / ".github/dependabot.yml", id="dependabot"),
        pytest.param("vendor.readthedocs", ROOT / ".readthedocs.yaml", id="readthedocs"),
        pytest.param("vendor.citation-file-format", ROOT / "CITATION.cff", id="citation"),
    ],
)
def test_a_file_is_valid(schema: str, path: Path) -> None:
    status, said = check(schema, path)
    assert status == 0, said


def test_a_fault_would_be_found(tmp_path: Path) -> None:
    broken = tmp_path / "tests.yml"
    broken.write_text(WORKFLOWS[-1].read_text().replace("runs-on:", "run-on:"))
    assert check("vendor.github-workflows", broken)[0] == 1


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_only_read_unless_a_job_says_why(path: Path) -> None:
    workflow = loaded(path)
    assert workflow["permissions"] == {"contents": "read"}
    writes = {name: job["permissions"] for name, job in workflow["jobs"].items() if "permissions" in job}
    allowed = {
        "image": {"contents": "read", "packages": "write"},
        "publish": {"id-token": "write"},
        "scorecard": {"contents": "read", "security-events": "write"},
    }
    assert all(allowed[name] == found for name, found in writes.items())
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            # What a stranger may choose, such as the name of a branch, is never pasted into a command.
            assert "${{" not in step.get("run", ""), step
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_an_action_is_pinned_to_a_commit_and_says_which_release_that_is(path: Path) -> None:
    for used in re.findall(r"\buses: (.*)", path.read_text()):
        assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", used), used


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_targets_and_files_that_exist(path: Path) -> None:
    text = path.read_text()
    for target in re.findall(r"\bmake (\w[\w-]*)", text):
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target
    for name in re.findall(r"\b(?:etc|docker)/[\w./-]+", text):
        assert (ROOT / name).is_file(), name


def test_every_python_that_the_metadata_names_is_tested() -> None:
    matrix = loaded(ROOT / ".github/workflows/tests.yml")["jobs"]["tests"]["strategy"]["matrix"]["python"]
    named = [each.rpartition(" ")[2] for each in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d", each)]
    assert matrix == named
    pattern = re.search(
        r"^ +((?:3\.\d+ \| )+3\.\d+)\) ;;$", (ROOT / "etc/require-packages.sh").read_text(), re.MULTILINE
    )
    assert pattern is not None
    assert pattern[1].split(" | ") == matrix


def test_the_citation_is_of_this_project_and_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["title"], citation["version"]) == (PROJECT["name"], __version__)
    assert (citation["license"], citation["abstract"]) == (PROJECT["license"], PROJECT["description"])
    assert citation["authors"] == PROJECT["authors"]


def test_pre_commit_runs_what_make_lint_runs() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local"
    entries = [hook["entry"].replace(".venv/bin", "$(BIN)").replace(" --force-exclude", "") for hook in local["hooks"]]
    lint = MAKEFILE.partition("\nlint:")[2].partition("\n\n")[0]
    assert entries == re.findall(r"^\t(.+)$", lint, re.MULTILINE)


def test_bytecode_is_kept_where_the_environment_forbids_it() -> None:
    command = ("make", "--silent", "--eval=shown: ; @env", "shown")
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "\nPYTHON=" in done.stdout
    assert "PYTHONDONTWRITEBYTECODE" not in done.stdout


def test_the_site_is_built_as_make_docs_builds_it() -> None:
    config = yaml.safe_load((ROOT / ".readthedocs.yaml").read_text())
    assert "-W" in MAKEFILE.partition("-m sphinx ")[2].split()
    assert config["sphinx"]["fail_on_warning"] is True
    assert (ROOT / config["sphinx"]["configuration"]).is_file()
    assert config["python"]["install"] == [{"method": "pip", "path": ".", "extra_requirements": ["dev"]}]
