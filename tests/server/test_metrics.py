"""What the server counts, read back with Prometheus' own parser."""

from __future__ import annotations

import platform

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from notary.server.metrics import ACCEPTED, SECONDS, SIZES, ServerMetrics


class Page:
    """The rendered text, as families by name and samples by name and labels."""

    def __init__(self, metrics: ServerMetrics) -> None:
        self.content_type, self.text = metrics.render()
        self.families = {family.name: family for family in text_string_to_metric_families(self.text.decode())}
        samples = [sample for family in self.families.values() for sample in family.samples]
        self.samples = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
        assert len(self.samples) == len(samples), "a sample is given twice"

    def value(self, name: str, **labels: str) -> float | None:
        return self.samples.get((name, frozenset(labels.items())))

    def buckets(self, name: str, **labels: str) -> dict[str, float]:
        wanted = frozenset(labels.items())
        return {
            dict(found)["le"]: value
            for (sample, found), value in self.samples.items()
            if sample == f"{name}_bucket" and wanted <= found
        }


@pytest.fixture
def metrics() -> ServerMetrics:
    return ServerMetrics(version="1.2.3")


def test_the_content_type_is_the_one_that_the_reference_sends(metrics):
    assert Page(metrics).content_type == "text/plain; version=0.0.4; charset=utf-8"


def test_every_sample_of_a_new_server_belongs_to_a_family_with_help(metrics):
    page = Page(metrics)
    assert all(family.documentation for family in page.families.values())
    assert page.value("notary_server_expired_root_renewals_total") == 0
    assert page.value("notary_server_metadata_refreshed_total", role="timestamp") == 0
    assert page.value("notary_server_metadata_refreshed_total", role="snapshot") == 0
    assert page.value("notary_server_uploads_total", outcome="accepted") == 0


def test_the_build_is_named(metrics):
    assert Page(metrics).value("notary_server_build_info", version="1.2.3", python=platform.python_version()) == 1


@pytest.mark.parametrize(
    "name",
    [
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
        "process_open_fds",
        "process_max_fds",
        "process_virtual_memory_bytes",
        "process_start_time_seconds",
    ],
)
def test_process_figures_have_the_reference_s_names(metrics, name):
    value = Page(metrics).value(name)
    assert value is not None
    assert value > 0


def test_figures_of_the_interpreter_are_there(metrics):
    page = Page(metrics)
    assert page.value("python_gc_collections_total", generation="0") is not None
    assert "python_info" in page.families


def test_requests_are_counted_with_the_reference_s_name_and_labels(metrics):
    metrics.observe_request("GetRole", "GET", 200, 0.001, 0, 700)
    metrics.observe_request("GetRole", "GET", 200, 0.001, 0, 700)
    metrics.observe_request("GetRole", "GET", 404, 0.001, 0, 90)
    metrics.observe_request("UpdateTUF", "POST", 400, 0.1, 3000, 200)
    page = Page(metrics)
    assert page.families["notary_server_http_requests"].type == "counter"
    name = "notary_server_http_requests_total"
    assert page.value(name, operation="GetRole", method="get", code="200") == 2
    assert page.value(name, operation="GetRole", method="get", code="404") == 1
    assert page.value(name, operation="UpdateTUF", method="post", code="400") == 1
    assert sum(value for (sample, _), value in page.samples.items() if sample == name) == 4


def test_methods_that_clients_invent_share_one_series(metrics):
    for number in range(50):
        metrics.observe_request("NotFound", f"METHOD{number}", 404, 0.001, 0, 90)
    page = Page(metrics)
    assert page.value("notary_server_http_requests_total", operation="NotFound", method="other", code="404") == 50
    assert len([sample for sample, _ in page.samples if sample == "notary_server_http_requests_total"]) == 1


def test_durations_are_a_histogram_in_seconds_and_a_summary_in_the_reference_s_microseconds(metrics):
    for seconds in (0.0004, 0.0005, 0.002, 60.0):
        metrics.observe_request("GetRole", "GET", 200, seconds, 0, 10)
    page = Page(metrics)
    name = "notary_server_http_request_duration_seconds"
    buckets = page.buckets(name, operation="GetRole")
    assert list(buckets) == [*map(str, SECONDS), "+Inf"]
    assert buckets["0.0005"] == 2, "a bound belongs to the bucket below it"
    assert buckets["0.001"] == 2
    assert buckets["0.0025"] == 3
    assert buckets["10.0"] == 3
    assert buckets["+Inf"] == 4
    assert page.value(f"{name}_count", operation="GetRole") == 4
    assert page.value(f"{name}_sum", operation="GetRole") == pytest.approx(60.0029)
    old = "notary_server_http_request_duration_microseconds"
    assert page.families[old].type == "summary"
    assert page.value(f"{old}_count", operation="GetRole") == 4
    assert page.value(f"{old}_sum", operation="GetRole") == pytest.approx(60_002_900)


def test_sizes_are_those_of_the_bodies(metrics):
    metrics.observe_request("UpdateTUF", "POST", 200, 0.1, 3000, 0)
    metrics.observe_request("UpdateTUF", "POST", 400, 0.1, 50, 300)
    page = Page(metrics)
    assert page.value("notary_server_http_request_size_bytes_sum", operation="UpdateTUF") == 3050
    assert page.value("notary_server_http_request_size_bytes_count", operation="UpdateTUF") == 2
    name = "notary_server_http_response_size_bytes"
    buckets = page.buckets(name, operation="UpdateTUF")
    assert list(buckets) == [*map(str, SIZES), "+Inf"]
    assert buckets["256.0"] == 1
    assert buckets["1024.0"] == 2
    assert page.value(f"{name}_sum", operation="UpdateTUF") == 300


def test_operations_do_not_mix(metrics):
    metrics.observe_request("GetRole", "GET", 200, 0.001, 0, 10)
    metrics.observe_request("GetKey", "GET", 200, 0.001, 0, 10)
    page = Page(metrics)
    for operation in ("GetRole", "GetKey"):
        assert page.value("notary_server_http_request_duration_seconds_count", operation=operation) == 1


def test_uploads_are_counted_by_outcome_and_size(metrics):
    metrics.uploaded(ACCEPTED, 3000)
    metrics.uploaded("INVALID_UPDATE", 2000)
    metrics.uploaded("INVALID_UPDATE", 200_000_000)
    page = Page(metrics)
    assert page.value("notary_server_uploads_total", outcome="accepted") == 1
    assert page.value("notary_server_uploads_total", outcome="INVALID_UPDATE") == 2
    buckets = page.buckets("notary_server_upload_size_bytes")
    assert buckets["1024.0"] == 0
    assert buckets["4096.0"] == 2
    assert buckets["16777216.0"] == 2
    assert buckets["+Inf"] == 3
    assert page.value("notary_server_upload_size_bytes_sum") == 200_005_000


def test_expiries_are_counted(metrics):
    metrics.refreshed("timestamp")
    metrics.refreshed("timestamp")
    metrics.refreshed("snapshot")
    metrics.expired_root()
    page = Page(metrics)
    assert page.value("notary_server_metadata_refreshed_total", role="timestamp") == 2
    assert page.value("notary_server_metadata_refreshed_total", role="snapshot") == 1
    assert page.value("notary_server_expired_root_renewals_total") == 1


def test_signing_is_timed_and_its_failures_are_counted(metrics):
    metrics.observe_signing("sign", 0.002, ok=True)
    metrics.observe_signing("sign", 3.0, ok=False)
    metrics.observe_signing("create_key", 0.001, ok=True)
    page = Page(metrics)
    assert page.value("notary_server_signing_duration_seconds_count", operation="sign") == 2
    assert page.value("notary_server_signing_duration_seconds_sum", operation="sign") == pytest.approx(3.002)
    assert page.value("notary_server_signing_failures_total", operation="sign") == 1
    assert page.value("notary_server_signing_failures_total", operation="create_key") == 0


def test_health_shows_the_last_result_of_each_check(metrics):
    metrics.set_health("DB operational", True)
    metrics.set_health("Trust operational", False)
    assert Page(metrics).value("notary_server_health_check", check="DB operational") == 1
    assert Page(metrics).value("notary_server_health_check", check="Trust operational") == 0
    metrics.set_health("DB operational", False)
    assert Page(metrics).value("notary_server_health_check", check="DB operational") == 0


def test_label_values_cannot_break_the_text(metrics):
    name = 'quote " backslash \\ line\nbreak'
    metrics.set_health(name, True)
    assert Page(metrics).value("notary_server_health_check", check=name) == 1


def test_two_servers_in_one_process_share_nothing():
    one, other = ServerMetrics(version="1"), ServerMetrics(version="2")
    one.observe_request("GetRole", "GET", 200, 0.001, 0, 10)
    assert "notary_server_http_requests_total{" not in other.render()[1].decode()
    assert REGISTRY.get_sample_value("notary_server_build_info", {"version": "1"}) is None
    assert not [family for family in REGISTRY.collect() if family.name.startswith("notary")]


def test_counters_never_go_down_between_two_readings(metrics):
    metrics.observe_request("GetRole", "GET", 200, 0.001, 0, 10)
    first = Page(metrics)
    metrics.observe_request("GetRole", "GET", 200, 0.001, 0, 10)
    second = Page(metrics)
    labels = {"operation": "GetRole", "method": "get", "code": "200"}
    assert first.value("notary_server_http_requests_total", **labels) == 1
    assert second.value("notary_server_http_requests_total", **labels) == 2
