"""The rules for Prometheus and the dashboard: what they ask for, and what a page of metrics has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[2]
RULES = ROOT / "etc/prometheus/notary.rules.yml"
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
}
DASHBOARD = json.loads((ROOT / "etc/grafana/notary.json").read_text())


def expressions() -> list[str]:
    """The expressions of all panels of the dashboard."""
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]


def names_in(text: str) -> set[str]:
    """The metrics that expressions name."""
    found = set(re.findall(r"\bnotary_(?:server|signer|mirror)_[a-z_]+", text))
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in found}


def wanted_of(daemon: str, *, mirror: bool) -> set[str]:
    """The metrics of a daemon that alerts and panels name: of a mirror only, or all others."""
    named = names_in(" ".join([*expressions(), *(rule["expr"] for rule in ALERTS.values())]))
    return {name for name in named if name.startswith(f"notary_{daemon}_") and ("_mirror_" in name) is mirror}


def checks_of(daemon: str) -> set[str]:
    """The health checks of a daemon that alerts name."""
    pattern = re.compile(rf'notary_{daemon}_health_check\{{check="([^"]+)"\}}')
    return {check for rule in ALERTS.values() for check in pattern.findall(rule["expr"])}


def families_in(page: str) -> dict[str, set[str]]:
    """Our metrics in a page, without the names of samples of histograms, and the labels of each."""
    found = {}
    for family in text_string_to_metric_families(page):
        if family.name.startswith("notary_"):
            name = family.name + {"counter": "_total"}.get(family.type, "")
            found[name] = {label for sample in family.samples for label in sample.labels} - {"le"}
    return found
