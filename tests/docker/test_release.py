"""What ``make images`` and ``make base`` write: bills of materials, provenance, and the base by its digest."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from etc.images import IMAGES, MATERIALS
from notary import __version__
from tests.docker.engine import TREE, Engine

DISTRIBUTIONS = """\
from importlib.metadata import distributions
print(*(f"{each.name}=={each.version}" for each in distributions()), sep="\\n")
"""


def purls(bill: dict[str, Any], kind: str) -> set[str]:
    """Names and versions of all components of one kind, without what else a package URL says."""
    found = [each["purl"] for each in bill["components"] if each.get("purl", "").startswith(f"pkg:{kind}/")]
    # Debian's sources are named beside the packages that are made of them.
    found = [each for each in found if "arch=source" not in each]
    pairs = (unquote(re.sub(r"[?#].*", "", each)).rpartition("/")[2].partition("@") for each in found)
    return {f"{normal(name) if kind == 'pypi' else name}@{version}" for name, _, version in pairs}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_a_bill_and_a_provenance_of_each_image(engine: Engine, images: dict[str, str], tmp_path: Path) -> None:
    clone, directory = tmp_path / "clone", tmp_path / "images"
    subprocess.run(("git", "clone", "--quiet", str(TREE), str(clone)), check=True)
    engine.run(sys.executable, str(clone / "etc/images.py"), str(directory))
    commit = subprocess.run(
        ("git", "-C", str(clone), "rev-parse", "HEAD"), capture_output=True, text=True, check=True
    ).stdout.strip()
    assert len(list(directory.iterdir())) == 2 * len(IMAGES)
    for image, target in IMAGES.items():
        about = engine.inspect(image)
        run = ("run", "--rm", "--network=none", "--entrypoint")
        packages = engine.docker(*run, "dpkg-query", image, "-W", "-f=${Package}@${Version}\\n").split()
        python = engine.docker(*run, "python3", image, "-c", DISTRIBUTIONS).split()

        bill = json.loads((directory / f"{image}.cdx.json").read_text())
        assert bill["bomFormat"] == "CycloneDX"
        assert (bill["metadata"]["component"]["name"], bill["metadata"]["component"]["version"]) == (
            target,
            __version__,
        )
        assert purls(bill, "deb") == set(packages)
        pairs = (each.partition("==") for each in python)
        installed = {f"{normal(name)}@{version}" for name, _, version in pairs}
        assert purls(bill, "pypi") | {f"notary-service@{__version__}"} == installed
        (ours,) = (each for each in bill["components"] if each["name"] == "notary-service")
        assert ours["version"] == __version__

        provenance = json.loads((directory / f"{image}.provenance.json").read_text())
        assert provenance["subject"] == [
            {"name": image, "digest": {"sha256": str(about["Id"]).removeprefix("sha256:")}},
        ]
        definition = provenance["predicate"]["buildDefinition"]
        assert definition["externalParameters"] == {"target": target, "base": engine.base}
        materials = {each["uri"]: each["digest"] for each in definition["resolvedDependencies"]}
        for path in MATERIALS:
            assert materials.pop(path) == {"sha256": hashlib.sha256((clone / path).read_bytes()).hexdigest()}
        assert materials.pop("git+file:.") == {"gitCommit": commit}
        assert len(materials) == 1  # the base
        assert commit[:8] in engine.docker("run", "--rm", "--network=none", "notary_server", "-version")


def test_the_base_is_renewed_and_then_used_by_its_digest(engine: Engine, registry: str, tmp_path: Path) -> None:
    name = f"{registry}/debian:bookworm-slim"
    engine.docker("tag", engine.base, name)
    engine.docker("push", name)
    engine.docker("rmi", name)
    shutil.copytree(TREE / "docker", tmp_path / "docker")
    (tmp_path / "etc").mkdir()
    shutil.copy(TREE / "etc/base.sh", tmp_path / "etc")
    said = engine.run(str(tmp_path / "etc/base.sh"), name).stdout
    lines = [
        re.findall(r"^ARG BASE=.*$", (tmp_path / "docker" / file).read_text(), re.MULTILINE)
        for file in ("Dockerfile", "peers.Dockerfile")
    ]
    assert lines[0] == lines[1]
    pinned = re.fullmatch(r"ARG BASE=\$\{NOTARY_BASE:-(.*)\}", lines[0][0])
    assert pinned is not None
    assert re.fullmatch(rf"{re.escape(name)}@sha256:[0-9a-f]{{64}}", pinned[1])
    assert f"replaced by {pinned[1]}" in said
    assert "still the newest" in engine.run(str(tmp_path / "etc/base.sh")).stdout

    engine.docker("rmi", name)
    file = str(tmp_path / "docker/Dockerfile")
    engine.docker("build", "--quiet", "--file", file, "--target", "runtime", "--tag", "notary_runtime", str(tmp_path))
    assert engine.has(pinned[1])
    engine.docker("rmi", "notary_runtime", pinned[1])

    # A name that leads nowhere changes nothing.
    missing = engine.run(str(tmp_path / "etc/base.sh"), f"{registry}/missing:1", check=False)
    assert missing.returncode == 1
    assert lines[0][0] in (tmp_path / "docker/Dockerfile").read_text()
