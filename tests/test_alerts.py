"""The alerts of etc/prometheus/notary.rules.yml, each by promtool: which figures fire it, when, and which do not."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.watched import ALERTS, ROOT, RULES

END_MINUTES = 120
"""Longer than any alert waits."""
DAY = 86400
SAMPLE = RULES.with_name("prometheus.yml")
AT = 'instance="a:1"'
"""The label that Prometheus adds to what it scrapes."""

Series = dict[str, str]


def gauge(name: str, value: float | str, labels: str = AT) -> Series:
    """A series that has one value all the time."""
    # promtool repeats no words such as Inf.
    values = f"{value}x{END_MINUTES}" if isinstance(value, float | int) else " ".join([value] * (END_MINUTES + 1))
    return {f"{name}{{{labels}}}": values}


def counter(name: str, step: float, labels: str = AT) -> Series:
    """A counter that grows by ``step`` each minute."""
    return {f"{name}{{{labels}}}": f"0+{step}x{END_MINUTES}"}


def once(name: str, labels: str = AT) -> Series:
    """A counter that grows by one in the last minute but one."""
    return {f"{name}{{{labels}}}": f"0x{END_MINUTES - 2} 1x2"}


def histogram(name: str, within: str, bounds: tuple[str, ...], labels: str = AT) -> Series:
    """A hundred calls a minute, each of which takes as long as the bucket ``within`` says."""
    return {
        f'{name}_bucket{{{labels},le="{bound}"}}': f"0+{100 if float(bound) >= float(within) else 0}x{END_MINUTES}"
        for bound in (*bounds, "+Inf")
    }


@dataclass(frozen=True)
class Case:
    """Series that fire an alert, with the labels and the summary that it then has; and series that do not."""

    alert: str
    fires: Series
    quiet: Series
    summary: str
    labels: dict[str, str]


def case(alert: str, fires: Series, quiet: Series, summary: str, **labels: str) -> Any:
    shown = {"instance": "a:1", **labels}
    return pytest.param(
        Case(alert, fires, quiet, summary, {k: v for k, v in shown.items() if v}),
        id=f"{alert}-{next(iter(fires)).partition('{')[0]}",
    )


def both(
    alert: str, metric: str, made: Any, fires: Any, quiet: Any, summary: str, more: str = "", **labels: str
) -> Any:
    """The same case of the server and of the signer. ``made`` builds a series of what ``fires`` and ``quiet`` are."""
    for daemon in ("server", "signer"):
        name = f"notary_{daemon}_{metric}"
        yield case(alert, made(name, fires, labels=AT + more), made(name, quiet, labels=AT + more), summary, **labels)


def quantiles(name: str, within: str, labels: str = AT) -> Series:
    return histogram(name, within, ("0.1", "0.25", "0.5", "1"), labels)


def signers(*up: int) -> Series:
    found: Series = {}
    for number, value in enumerate(up):
        found |= gauge("notary_server_signer_up", value, f'{AT},signer="s{number}:7899"')
    return found


READ = "notary_server_http_request_duration_seconds"
REQUESTS = "notary_server_http_requests_total"
EXPIRY = "notary_server_metadata_expiry_seconds"
TIMESTAMP, SNAPSHOT = (f'{AT},role="{role}"' for role in ("timestamp", "snapshot"))
HEALTH = "notary_{}_health_check"
REPEATS = "notary_server_signer_repeats_total"
CERTIFICATE = ',key="server.tls_cert_file",subject="CN=x",serial="1"'
OF_CERTIFICATE = {"key": "server.tls_cert_file", "subject": "CN=x", "serial": "1"}

CASES = [
    case(
        "NotaryDown",
        gauge("up", 0, f'{AT},job="notary-server"'),
        gauge("up", 1, f'{AT},job="notary-server"') | gauge("up", 0, f'{AT},job="node"'),
        "a:1 of notary-server cannot be scraped",
        job="notary-server",
    ),
    *(
        case(
            "NotaryDatabaseFails",
            gauge(HEALTH.format(daemon), 0, f'{AT},check="{check}"'),
            gauge(HEALTH.format(daemon), 1, f'{AT},check="{check}"')
            | gauge(HEALTH.format(daemon), 0, f'{AT},check="another"'),
            "a:1 cannot use its database: it can serve nothing",
            check=check,
        )
        for daemon, check in (("server", "DB operational"), ("signer", "store"))
    ),
    case(
        "NotaryCannotPublish",
        gauge("notary_server_health_check", 0, f'{AT},check="Trust operational"'),
        gauge("notary_server_health_check", 1, f'{AT},check="Trust operational"'),
        "No signer serves a:1: nobody can publish there",
        check="Trust operational",
    ),
    case(
        "NotaryDatabaseTakesNoWrites",
        gauge("notary_server_health_check", 0, f'{AT},check="DB takes writes"'),
        gauge("notary_server_health_check", 1, f'{AT},check="DB takes writes"'),
        "The database of a:1 takes no writes, as a standby or a full disk: nobody can publish",
        check="DB takes writes",
    ),
    case(
        "NotaryServerErrors",
        counter(REQUESTS, 95, f'{AT},code="200"') | counter(REQUESTS, 5, f'{AT},code="503"'),
        counter(REQUESTS, 999, f'{AT},code="200"')
        | counter(REQUESTS, 1, f'{AT},code="500"')
        | counter(REQUESTS, 500, f'{AT},code="404"'),
        "The servers answer 5% of requests with a status of 500 or above",
        instance="",
    ),
    case(  # of few requests, a single failure is a large part
        "NotaryServerErrors",
        counter(REQUESTS, 3, f'{AT},code="200"') | counter(REQUESTS, 1, f'{AT},code="500"'),
        counter(REQUESTS, 3, f'{AT},code="200"') | counter(REQUESTS, 0.5, f'{AT},code="500"'),
        "The servers answer 25% of requests with a status of 500 or above",
        instance="",
    ),
    *(
        case(
            "NotaryBug",
            once(f"notary_{daemon}_unexpected_errors_total"),
            gauge(f"notary_{daemon}_unexpected_errors_total", 7),
            "a:1 met a fault that nobody planned for; its log has an error_id",
        )
        for daemon in ("server", "signer")
    ),
    case(
        "NotarySignerDown",
        signers(1, 0, 1),
        signers(1, 1, 1),
        "The signer at s1:7899 does not serve; /readyz of a server says why",
        instance="",
        signer="s1:7899",
    ),
    case("NotaryLastSigner", signers(0, 1, 0), signers(1), "Of several signers, one still serves a:1"),
    case("NotaryLastSigner", signers(0, 1), signers(1, 1, 0), "Of several signers, one still serves a:1"),
    case(
        "NotarySignersDiffer",
        counter(REPEATS, 1, f'{AT},reason="not_found"'),
        gauge(REPEATS, 4, f'{AT},reason="not_found"') | counter(REPEATS, 1, f'{AT},reason="failed"'),
        "Signers of a:1 lack keys that others have: do all use one database?",
        reason="not_found",
    ),
    case(
        "NotaryTooManyRepeats",
        counter(REPEATS, 1, f'{AT},reason="refused"'),
        gauge(REPEATS, 4, f'{AT},reason="refused"') | counter(REPEATS, 1, f'{AT},reason="late"'),
        "a:1 has given up to repeat calls: so many of them fail at its signers",
        reason="refused",
    ),
    case(
        "NotaryPassphraseWrong",
        gauge("notary_signer_health_check", 0, f'{AT},check="passphrase"'),
        gauge("notary_signer_health_check", 1, f'{AT},check="passphrase"'),
        "The passphrase of a:1 does not open the stored keys",
        check="passphrase",
    ),
    case(
        "NotaryCustodyAway",
        gauge("notary_signer_health_check", 0, f'{AT},check="custody"'),
        gauge("notary_signer_health_check", 1, f'{AT},check="custody"')
        | gauge("notary_signer_health_check", 0, f'{AT},check="another"'),
        "a:1 cannot use what its keys are under: keys in its memory sign, others wait",
        check="custody",
    ),
    case(
        "NotaryKeysRefused",
        once("notary_server_key_requests_total", f'{AT},result="refused"'),
        gauge("notary_server_key_requests_total", 9, f'{AT},result="refused"')
        | counter("notary_server_key_requests_total", 9, f'{AT},result="asked"'),
        "a:1 refuses new keys to a user or address that has asked for too many",
        result="refused",
    ),
    *(
        case(
            "NotarySignerRefusesKeys",
            once("notary_signer_key_creations_total", f'{AT},result="{result}"'),
            gauge("notary_signer_key_creations_total", 9, f'{AT},result="{result}"')
            | counter("notary_signer_key_creations_total", 9, f'{AT},result="made"'),
            "The signer a:1 refuses to make new keys: too many are asked for",
        )
        for result in ("limited", "busy")
    ),
    *both(
        "NotaryCertificateExpires",
        "certificate_days",
        gauge,
        20.4,
        21,
        "The certificate of server.tls_cert_file at a:1 expires in 20 days",
        CERTIFICATE,
        **OF_CERTIFICATE,
    ),
    *(
        each
        for days in (2.9, -20_000)
        for each in both(
            "NotaryCertificateExpiresNow",
            "certificate_days",
            gauge,
            days,
            3,
            "The certificate of server.tls_cert_file at a:1 expires in less than three days, or cannot be read",
            CERTIFICATE,
            **OF_CERTIFICATE,
        )
    ),
    case(
        "NotaryTimestampsNotRenewed",
        gauge(EXPIRY, 3 * DAY - 60, TIMESTAMP),
        gauge(EXPIRY, 3 * DAY, TIMESTAMP) | gauge(EXPIRY, 0, SNAPSHOT),
        "A timestamp expires in 2d 23h 59m 0s and was not renewed",
        instance="",
    ),
    case(
        "NotarySnapshotExpires",
        gauge(EXPIRY, 14 * DAY - 60, SNAPSHOT),
        gauge(EXPIRY, 14 * DAY, SNAPSHOT) | gauge(EXPIRY, 0, TIMESTAMP),
        "A snapshot expires in 13d 23h 59m 0s; its publisher must sign a new one",
        instance="",
    ),
    case(
        "NotaryMetadataExpired",
        gauge(EXPIRY, 0, TIMESTAMP),
        gauge(EXPIRY, 1, TIMESTAMP) | gauge(EXPIRY, 1, SNAPSHOT),
        "A timestamp has expired: clients refuse its collection",
        instance="",
        role="timestamp",
    ),
    case(
        "NotaryRenewalFails",
        counter("notary_server_renewal_failures_total", 1),
        # Half an hour of failures, then all is well.
        {f"notary_server_renewal_failures_total{{{AT}}}": f"0+1x30 30x{END_MINUTES - 30}"},
        "a:1 has failed to renew metadata for an hour",
    ),
    case(
        "NotaryRootExpired",
        once("notary_server_expired_root_renewals_total"),
        gauge("notary_server_expired_root_renewals_total", 3),
        "A root has expired; its publisher must sign a new one. The log of a:1 names the collection",
    ),
    case(
        "NotarySlowReads",
        quantiles(READ, "+Inf", f'{AT},operation="GetRole"') | quantiles(READ, "0.1", f'{AT},operation="Other"'),
        quantiles(READ, "0.5", f'{AT},operation="GetRole"') | quantiles(READ, "+Inf", f'{AT},operation="Other"'),
        "One read in a hundred takes 1s or longer",
        instance="",
    ),
    *both(
        "NotaryEventLoopBlocked",
        "reactor_lag_seconds",
        quantiles,
        "+Inf",
        "0.25",
        "Something blocks the event loop of a:1 for 1s",
    ),
    *both(
        "NotaryDatabaseSlow",
        "storage_duration_seconds",
        quantiles,
        "+Inf",
        "0.25",
        "One call in a hundred of the database takes a:1 1s or longer",
    ),
    *both(
        "NotaryPoolTooSmall",
        "pool_wait_seconds_total",
        counter,
        61,
        60,
        "Calls at a:1 wait for connections to the database; raise storage.connections",
    ),
    *(
        case(
            "NotaryMirrorBehind",
            gauge("notary_server_mirror_behind_seconds", behind),
            gauge("notary_server_mirror_behind_seconds", 60),
            f"The mirror a:1 may be {shown} behind",
        )
        for behind, shown in ((90, "1m 30s"), ("Inf", "+Inf"))
    ),
    *(
        case(
            "NotaryMirrorIncomplete",
            gauge("notary_server_mirror_due_collections", 3),
            gauge("notary_server_mirror_due_collections", due),
            "The mirror a:1 cannot take over 3 collections",
        )
        for due in (0, "NaN")
    ),
    case(
        "NotaryMirrorStopped",
        gauge("notary_mirror_last_success_timestamp_seconds", END_MINUTES * 60 - 330),
        gauge("notary_mirror_last_success_timestamp_seconds", END_MINUTES * 60 - 300),
        "notary-admin mirror at a:1 has completed no round for 5m 30s",
    ),
]


def minutes(duration: str) -> int:
    """The duration that an alert waits, of which there are minutes and hours."""
    return int(duration[:-1]) * {"m": 1, "h": 60}[duration[-1]]


def scenes(wanted: Case) -> list[dict[str, Any]]:
    """What promtool is to try: that the alert fires, not before its time, and that it does not."""
    rule = ALERTS[wanted.alert]
    fired = {
        "exp_labels": wanted.labels | rule["labels"],
        "exp_annotations": {"summary": wanted.summary, "runbook": rule["annotations"]["runbook"]},
    }
    checks = [{"eval_time": f"{END_MINUTES}m", "alertname": wanted.alert, "exp_alerts": [fired]}]
    if "for" in rule:
        checks.append({"eval_time": f"{minutes(rule['for']) - 1}m", "alertname": wanted.alert, "exp_alerts": []})
    quiet = [
        {"eval_time": f"{minute}m", "alertname": wanted.alert, "exp_alerts": []}
        for minute in ((END_MINUTES,) if "timestamp_seconds" in str(wanted.quiet) else (5, 30, 60, END_MINUTES))
    ]
    return [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "alert_rule_test": alerts,
        }
        for series, alerts in ((wanted.fires, checks), (wanted.quiet, quiet))
    ]


def promtool(*arguments: str | Path) -> tuple[int, str]:
    done = subprocess.run(("promtool", *arguments), capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def tried(folder: Path, wanted: Case) -> tuple[int, str]:
    tests = folder / "tests.yml"
    document = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": scenes(wanted)}
    tests.write_text(yaml.safe_dump(document))
    return promtool("test", "rules", tests)


@pytest.mark.parametrize("wanted", CASES)
def test_an_alert_fires_when_it_must_and_not_otherwise(tmp_path: Path, wanted: Case) -> None:
    status, said = tried(tmp_path, wanted)
    assert status == 0, said


def test_every_alert_is_tried() -> None:
    assert {param.values[0].alert for param in CASES} == set(ALERTS)


@pytest.mark.parametrize(
    "swap",
    [
        pytest.param(lambda one: Case(one.alert, one.quiet, one.quiet, one.summary, one.labels), id="never fires"),
        pytest.param(lambda one: Case(one.alert, one.fires, one.fires, one.summary, one.labels), id="always fires"),
        pytest.param(lambda one: Case(one.alert, one.fires, one.quiet, "other", one.labels), id="says something else"),
    ],
)
def test_a_wrong_alert_would_be_found(tmp_path: Path, swap: Any) -> None:
    status, said = tried(tmp_path, swap(CASES[0].values[0]))
    assert status == 1, said
    assert "FAILED" in said


def test_prometheus_reads_the_rules_and_the_sample_configuration() -> None:
    status, said = promtool("check", "rules", RULES)
    assert (status, f"{len(ALERTS)} rules found" in said) == (0, True), said
    status, said = promtool("check", "config", "--syntax-only", SAMPLE)
    assert status == 0, said
    assert yaml.safe_load((SAMPLE).read_text())["rule_files"] == [RULES.name]


@pytest.mark.parametrize("rule", ALERTS.values(), ids=ALERTS)
def test_an_alert_says_how_bad_it_is_and_names_a_section_that_says_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"].keys() == {"summary", "runbook"}
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert (page, anchor) == ("docs/runbook.md", rule["alert"].lower())


def test_the_runbook_has_a_section_for_each_alert_and_no_other() -> None:
    text = (ROOT / "docs/runbook.md").read_text()
    sections = re.findall(r"^### (\w+)\n\n(Critical|Warning): ", text, re.MULTILINE)
    assert sorted(sections) == sorted((name, rule["labels"]["severity"].capitalize()) for name, rule in ALERTS.items())
    for section in text.split("\n### ")[1:]:
        assert all(f"*{word}*" in section for word in ("Look", "Do")) or "*do*: as for" in section, section[:40]
        assert "*Clients*" in section
    metrics = set(re.findall(r"`notary_(?:server|signer)(_\w+)", text))
    known = (ROOT / "docs/monitoring.md").read_text()
    assert {name for name in metrics if f"{name}`" not in known} == set()
