"""Write deploy/kubernetes/ from the Helm chart in deploy/helm/notary: ``make manifests``.

Rules of this module: the chart is the one source. Its templates are rendered by Go's text/template, as Helm renders
them (etc/chart.go), for a release ``notary`` in a namespace ``notary``. What every installation needs is in
deploy/kubernetes/; what needs another operator or a decision is in its folder ``optional/``.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parent.parent
CHART: Final = ROOT / "deploy/helm/notary"
MANIFESTS: Final = ROOT / "deploy/kubernetes"
RULES: Final = ROOT / "etc/prometheus/notary.rules.yml"

OPTIONAL: Final[Mapping[str, Mapping[str, Any]]] = {
    "autoscaling.yaml": {"server": {"autoscaling": {"enabled": True}}},
    "certificates.yaml": {"certManager": {"enabled": True}},
    "monitoring.yaml": {"monitoring": {"enabled": True}},
}
"""Templates that render to nothing by default, and the values with which they are the files in ``optional/``."""


def overlaid(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Values with others over them, as ``helm --values`` lays them."""
    found = dict(values)
    for name, value in more.items():
        below = isinstance(value, Mapping) and isinstance(found.get(name), Mapping)
        found[name] = overlaid(found[name], value) if below else value
    return found


def rendered(
    values: Mapping[str, Any] | None = None,
    *,
    release: str = "notary",
    namespace: str = "notary",
    manager: str = "",
    suffix: str = ".yaml",
) -> dict[str, str]:
    """What each template of that suffix renders to, those that render to nothing left out.

    ``manager`` is "Helm" where Helm manages the objects: their labels say so then.
    """
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    given = {
        "Values": overlaid(yaml.safe_load((CHART / "values.yaml").read_text()), values or {}),
        "Release": {"Name": release, "Namespace": namespace, "Service": manager},
        "Chart": {"Name": chart["name"], "Version": chart["version"], "AppVersion": chart["appVersion"]},
    }
    done = subprocess.run(
        ("go", "run", str(ROOT / "etc/chart.go"), str(CHART)),
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"error: the chart does not render: {done.stderr}")
    found: dict[str, str] = json.loads(done.stdout)
    return {name: f"{text.strip()}\n" for name, text in found.items() if name.endswith(suffix) and text.strip()}


def manifests() -> dict[Path, str]:
    """The files below deploy/kubernetes/ that come from the chart, by their paths, and what they hold."""
    every = overlaid(overlaid(OPTIONAL["autoscaling.yaml"], OPTIONAL["certificates.yaml"]), OPTIONAL["monitoring.yaml"])
    found = {MANIFESTS / name: text for name, text in rendered().items()}
    found |= {MANIFESTS / "optional" / name: text for name, text in rendered(every).items() if name in OPTIONAL}
    return found


def main() -> None:
    """Write the copy of the rules in the chart, and the manifests."""
    (CHART / RULES.name).write_text(RULES.read_text())
    for path, text in manifests().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
