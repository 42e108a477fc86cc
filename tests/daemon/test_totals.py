"""The metrics of several workers as those of one."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from notary.daemon.workers.totals import Totals
from notary.observe.metrics import DaemonMetrics

TEXT = """\
# ACROSS d_health_check min
# ACROSS d_certificate_days min
# ACROSS process_start_time_seconds min
# ACROSS d_build_info max
# HELP reads_total Reads
# TYPE reads_total counter
reads_total{{code="200"}} {ok}
reads_total{{code="404"}} {missing}
# HELP seconds Time
# TYPE seconds histogram
seconds_bucket{{le="0.1"}} {ok}
seconds_bucket{{le="+Inf"}} {all}
seconds_sum {sum}
seconds_count {all}
# HELP connections Open
# TYPE connections gauge
connections {connections}
# HELP d_health_check 1 or 0
# TYPE d_health_check gauge
d_health_check{{check="DB"}} {health}
# HELP d_certificate_days Days
# TYPE d_certificate_days gauge
d_certificate_days{{key="a"}} {days}
# HELP process_start_time_seconds Start
# TYPE process_start_time_seconds gauge
process_start_time_seconds {start}
# HELP d_build_info What runs
# TYPE d_build_info gauge
d_build_info{{version="1"}} 1
"""


def text(**changes: float) -> bytes:
    usual = {"ok": 1, "missing": 0, "sum": 0.5, "connections": 1, "health": 1, "days": 9, "start": 100}
    values = usual | changes
    return TEXT.format(**values, all=values["ok"] + values["missing"]).encode()


def read(data: bytes) -> dict[str, float]:
    """Values by name and the values of labels."""
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(data.decode())
        for sample in family.samples
    }


def test_one_is_what_it_is() -> None:
    assert read(Totals().of([text()])) == read(text())


def test_none_is_nothing() -> None:
    assert Totals().of([]) == b""


def test_sums_and_what_is_no_sum() -> None:
    one = text(ok=5, missing=2, sum=1.5, connections=3, days=9, start=100)
    other = text(ok=7, missing=0, sum=0.5, connections=4, health=0, days=8, start=90)
    assert read(Totals().of([one, other])) == {
        "reads_total 200": 12,
        "reads_total 404": 2,
        "seconds_bucket 0.1": 12,
        "seconds_bucket +Inf": 14,
        "seconds_sum": 2,
        "seconds_count": 14,
        "connections": 7,
        "d_health_check DB": 0,
        "d_certificate_days a": 8,
        "process_start_time_seconds": 90,
        "d_build_info 1": 1,
    }


def test_what_only_grows_stays_when_a_worker_has_ended() -> None:
    totals = Totals()
    totals.retire(text(ok=5, missing=1, connections=3))
    totals.retire(b"")
    totals.retire(text(ok=1, missing=0, connections=3))
    found = read(totals.of([text(ok=10, connections=1)]))
    assert (found["reads_total 200"], found["reads_total 404"]) == (16, 1)
    assert found["seconds_count"] == 17
    assert found["connections"] == 1
    assert read(totals.of([text(ok=10, connections=1)])) == found


def test_a_label_that_only_one_has_seen() -> None:
    one = b'# TYPE a counter\na_total{x="1"} 1\n'
    other = b'# TYPE a counter\na_total{x="2"} 2\n# TYPE b counter\nb_total 3\n'
    assert read(Totals().of([one, other])) == {"a_total 1": 1, "a_total 2": 2, "b_total": 3}


def test_real_figures() -> None:
    figures = DaemonMetrics("notary_server_", "1")
    figures.observe_storage("current", 0.2, ok=False)
    figures.gauge("connections", "Open", lambda: {(): 2})
    mine = figures.render_for_totals()
    found = read(Totals().of([mine, mine]))
    assert found["notary_server_storage_failures_total current"] == 2
    assert found["notary_server_storage_duration_seconds_count current"] == 2
    assert found["notary_server_connections"] == 4
    assert found["process_max_fds"] == read(mine)["process_max_fds"]
