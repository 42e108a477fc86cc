"""Build the images, their bills of materials and their provenance: ``python etc/images.py [DIRECTORY]``.

The directory is ``build/images`` by default, and has two files for each image:

``<image>.cdx.json``
    the bill of materials, in CycloneDX: every package of Debian and of Python that is in the image.
``<image>.provenance.json``
    the provenance, a statement of in-toto with a predicate of SLSA: what the image was built from.

Rules of this module: it needs Docker, or the program that the variable ``ENGINE`` names, and no library. The files
are not signed.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
ENGINE: Final = os.environ.get("ENGINE", "docker")
IMAGES: Final = {"notary_server": "notary-server", "notary_signer": "notary-signer", "notary_admin": "notary-admin"}
"""The targets of docker/Dockerfile, by the names of the images."""

MATERIALS: Final = ("docker/Dockerfile", "docker/build.lock", "docker/libpq.lock", "docker/requirements.lock")
"""Files that say what else is fetched."""


def run(*command: str) -> str:
    """What a command prints, without the end of its last line."""
    # Podman's own format has no health checks.
    environment = {**os.environ, "BUILDAH_FORMAT": "docker"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()


def build(image: str, file: str, *options: str) -> None:
    """Build an image; the engine says on standard error what goes wrong."""
    run(ENGINE, "build", "--quiet", "--file", file, "--tag", image, *options, ".")


def about(image: str, template: str) -> str:
    """What the engine knows of an image."""
    return run(ENGINE, "image", "inspect", "--format", template, image)


def label(image: str, name: str) -> str:
    """A label of an image."""
    return about(image, f'{{{{index .Config.Labels "org.opencontainers.image.{name}"}}}}')


def write_bill(image: str, path: Path) -> None:
    """Write the bill of materials of an image."""
    arguments = {"IMAGE": image, "NAME": label(image, "title"), "VERSION": label(image, "version")}
    options = [option for name, value in arguments.items() for option in ("--build-arg", f"{name}={value}")]
    build(f"{image}_sbom", "docker/sbom.Dockerfile", *options)
    container = run(ENGINE, "create", f"{image}_sbom")
    try:
        run(ENGINE, "cp", f"{container}:/sbom.cdx.json", str(path))
    finally:
        run(ENGINE, "rm", container)


def provenance(image: str, commit: str, began: datetime, ended: datetime) -> dict[str, Any]:
    """The provenance of an image."""
    base = label(image, "base.name")
    name, _, digest = base.partition("@sha256:")
    materials: list[dict[str, Any]] = [
        {"uri": f"docker://{name}", "digest": {"sha256": digest or about(base, "{{.Id}}").removeprefix("sha256:")}},
        *(
            {"uri": path, "digest": {"sha256": hashlib.sha256((ROOT / path).read_bytes()).hexdigest()}}
            for path in MATERIALS
        ),
    ]
    if commit:
        materials.append({"uri": "git+file:.", "digest": {"gitCommit": commit}})
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": image, "digest": {"sha256": about(image, "{{.Id}}").removeprefix("sha256:")}}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:notary-service:make-images:1",
                "externalParameters": {"target": IMAGES[image], "base": base},
                "internalParameters": {"commit": commit},
                "resolvedDependencies": materials,
            },
            "runDetails": {
                "builder": {"id": "urn:notary-service:make-images", "version": {"engine": run(ENGINE, "--version")}},
                "metadata": {"startedOn": f"{began:%Y-%m-%dT%H:%M:%SZ}", "finishedOn": f"{ended:%Y-%m-%dT%H:%M:%SZ}"},
            },
        },
    }


def commit_of_tree() -> str:
    """The commit that the files are of, or "" if there are others than it has."""
    stamp = ROOT / "notary/commit.txt"  # in a source archive
    if stamp.exists():
        return stamp.read_text("ascii").strip()
    if not (ROOT / ".git").exists():
        return ""
    if run("git", "status", "--porcelain"):
        print("The working tree has changes: neither the images nor their provenance name a commit.")
        return ""
    return run("git", "rev-parse", "HEAD")


def main() -> None:
    """Build all, and name each image with its size."""
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build/images").resolve()
    directory.mkdir(parents=True, exist_ok=True)
    commit = commit_of_tree()
    base = os.environ.get("NOTARY_BASE", "")
    options = ["--build-arg", f"GIT_COMMIT={commit}", *(["--build-arg", f"BASE={base}"] if base else [])]
    for image, target in IMAGES.items():
        began = datetime.now(UTC)
        build(image, "docker/Dockerfile", "--target", target, *options)
        found = provenance(image, commit, began, datetime.now(UTC))
        (directory / f"{image}.provenance.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
        write_bill(image, directory / f"{image}.cdx.json")
        size = int(about(image, "{{.Size}}"))
        print(f"{image}: {about(image, '{{.Id}}')}, {size / 1_000_000:.0f} MB")


if __name__ == "__main__":
    main()
