"""docs/monitoring.md and the Grafana dashboard name the metrics that the daemons have: all of them, and no other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import ClassVar

import pytest
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.task import Clock

from notary.net.grpc import Status
from notary.observe.expiry import Certificates
from notary.server.health import DATABASE_SECONDS, INTERVAL_SECONDS
from notary.server.metrics import ServerMetrics
from notary.server.signing.remote import SIGNER_SECONDS
from notary.signer.metrics import SignerMetrics
from notary.work.usage import PoolUsage
from tests.support.fleet import Fleet

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/monitoring.md").read_text()
DASHBOARD = json.loads((ROOT / "etc/grafana/notary.json").read_text())


class NoKeyring:
    hits, misses, cached, waiting = 3, 1, 2, 4
    creations: ClassVar = {"made": 5}


def families(metrics) -> dict[str, set[str]]:
    """The names that are shown, without those of samples of histograms, and the labels of each."""
    metrics.watch_pool(PoolUsage())
    # As in notary.daemon.workers.parent and notary.daemon.inspection.
    metrics.gauge("workers", "doc", lambda: {(): 2.0})
    metrics.counter("worker_starts", "doc", lambda: {(): 2.0})
    for name, labels in (
        ("connections", ()),
        ("certificate_days", ("key", "subject", "serial")),
    ):
        metrics.gauge(name, "doc", lambda labels=labels: {tuple("x" for _ in labels): 1.0}, labels)
    if isinstance(metrics, ServerMetrics):
        metrics.gauge("body_bytes", "doc", lambda: {(): 1.0})  # see server/tap.py
        metrics.counter("renewal_failures", "doc", lambda: {(): 1.0})
        metrics.gauge("metadata_expiry_seconds", "doc", lambda: {("timestamp",): 1.0}, ("role",))
        metrics.gauge("mirror_behind_seconds", "doc", lambda: {(): 1.0})
        metrics.gauge("mirror_due_collections", "doc", lambda: {(): 1.0})
    found = {}
    for family in text_string_to_metric_families(metrics.render()[1].decode()):
        if family.name.startswith("notary_"):
            name = family.name + {"counter": "_total"}.get(family.type, "")
            found[name] = {label for sample in family.samples for label in sample.labels} - {"le"}
    return found


def server() -> ServerMetrics:
    metrics = ServerMetrics(version="1")
    metrics.observe_request("GetRole", "GET", 200, 0.1, 1, 1)
    metrics.refused("UNKNOWN")
    metrics.uploaded("accepted", 1)
    metrics.observe_signing("sign", 0.1, ok=True)
    metrics.observe_storage("current", 0.1, ok=False)
    metrics.set_health("DB operational", ok=True)
    fleet = Fleet(1)
    fleet.service.check()
    fleet.service.show(metrics)
    metrics.gauge("uploads_waiting", "doc", lambda: {(): 1.0})  # see notary.server.tap
    return metrics


def signer() -> SignerMetrics:
    metrics = SignerMetrics(version="1")
    metrics.serving(["/proto.Signer/Sign"], NoKeyring())
    metrics.observe_call("/proto.Signer/Sign", Status.OK, 0.1, None)
    metrics.observe_call("/whatever/a/client/says", Status.UNIMPLEMENTED, 0.1, None)
    metrics.signed("ecdsa")
    metrics.observe_storage("get", 0.1, ok=True)
    metrics.set_health("store", ok=True)
    metrics.set_health("passphrase", ok=True)
    return metrics


EXPORTED = families(server()) | families(signer())


def documented() -> dict[str, set[str]]:
    rows = re.findall(r"^\| `(notary_[a-z_<>]+)` \| ([a-z, ]*)\|", PAGE, re.MULTILINE)
    found = {}
    for name, labels in rows:
        for daemon in ("server", "signer") if "<d>" in name else ("",):
            found[name.replace("<d>", daemon)] = {label.strip() for label in labels.split(",") if label.strip()}
    return found


def names_in(text: str) -> set[str]:
    """The metrics that expressions name."""
    found = set(re.findall(r"\bnotary_(?:server|signer)_[a-z_]+", text))
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in found}


def expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]


def test_the_page_has_every_metric_with_its_labels():
    assert documented() == EXPORTED


def test_the_page_says_how_long_the_health_pages_lag():
    page = " ".join(PAGE.split())
    assert f"every {INTERVAL_SECONDS:.0f} seconds, never because of a request" in page
    assert f"stays true for up to {INTERVAL_SECONDS + SIGNER_SECONDS:.0f} seconds" in page
    assert f"after {2 * DATABASE_SECONDS:.0f} seconds at most" in page


def test_the_alerts_name_metrics_that_exist():
    alerts = PAGE[PAGE.index("## Alerts") :]
    assert len(names_in(alerts)) >= 8
    assert names_in(alerts) <= set(EXPORTED)


def test_the_dashboard_names_metrics_that_exist():
    for expression in expressions():
        assert names_in(expression) or re.search(r"\b(process|python)_[a-z_]+", expression), expression
        assert names_in(expression) <= set(EXPORTED), expression


def test_the_dashboard_is_complete_and_well_formed():
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in DASHBOARD["panels"]:
        if panel["type"] != "row":
            assert panel["title"]
            assert panel["targets"]
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    wanted = {name for name in EXPORTED if not name.endswith(("_microseconds", "_build_info", "_request_size_bytes"))}
    assert wanted <= names_in(" ".join(expressions()))


@pytest.mark.parametrize("made", [server, signer])
def test_counters_are_those_of_the_page_of_variables(made):
    metrics = made()
    counters = metrics.counters()
    assert counters
    assert all(re.fullmatch(r"notary_[a-z_]+_total(\{.+\})?", name) for name in counters)
    assert counters[f"{metrics.prefix}unexpected_errors_total"] == 0
    metrics.unexpected()
    assert metrics.counters()[f"{metrics.prefix}unexpected_errors_total"] == 1


def test_methods_that_clients_invent_are_one():
    metrics = signer()
    metrics.observe_call("/another/one", Status.UNIMPLEMENTED, 0.1, None)
    assert metrics.counters()['notary_signer_grpc_requests_total{method="other",status="UNIMPLEMENTED"}'] == 2
    assert metrics.counters()['notary_signer_key_cache_total{result="hit"}'] == 3


def test_certificates_that_have_not_been_read_yet_show_nothing():
    assert Certificates({}, Clock(), lambda work: work()).days() == {}
