"""A running Prometheus with our rules and sample configuration: it scrapes both daemons, alerts, and is quiet again.

Rules of this module: the rules are those of etc/prometheus/ but for their patience, which is seconds in place of
minutes. ``tests.test_alerts`` tries each of them with promtool, as it is.
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from etc.pictures import prometheus_configuration
from tests.support.peers import OUR_SERVER, Daemon, daemon, free_port, mint_certificates, remote_signer
from tests.support.signer import OUR_SIGNER, Pair, signer_daemon
from tests.support.waiting import until
from tests.support.watched import ALERTS, RULES, expressions

SIGNER_STORAGE = {"backend": "sqlite3", "db_url": "keys.db", "default_alias": "alias_one"}
ALWAYS = {"NotaryCertificateExpiresNow"}
"""The certificates of tests are good for a day."""


class Prometheus(Daemon):
    """A Prometheus as a process, and questions to it."""

    def ask(self, path: str, **query: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            found = json.load(answer)
        assert found["status"] == "success", found
        return found["data"]

    def ready(self) -> bool:
        """Whether it answers questions: its port is open before that."""
        try:
            self.ask("alerts")
        except urllib.error.HTTPError as error:
            error.close()
            return False
        return True

    def up(self) -> set[str]:
        """The jobs whose daemons were scraped last without an error."""
        return {each["labels"]["job"] for each in self.ask("targets")["activeTargets"] if each["health"] == "up"}

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]

    def firing(self) -> set[str]:
        return {each["labels"]["alertname"] for each in self.ask("alerts")["alerts"] if each["state"] == "firing"}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, Daemon]]:
    """A Prometheus that watches a server and its signer; and that signer."""
    folder = tmp_path_factory.mktemp("prometheus")
    pair = Pair.mint(folder / "signer-tls")
    ca, client = pair.authority.write(pair.folder, "root"), pair.client.write(pair.folder, "client")
    tls = mint_certificates(folder / "server-tls")
    debug = f"localhost:{free_port()}"
    environment = {"NOTARY_SIGNER_ALIAS_ONE": "correct-horse-battery-staple", "NOTARY_SIGNER_DEBUG": debug}
    signer = signer_daemon("signer", OUR_SIGNER, pair, folder, SIGNER_STORAGE, environment=environment)
    storage = {"backend": "sqlite3", "db_url": "notary.db"}
    server = daemon(
        "server", OUR_SERVER, folder, tls=tls, storage=storage, extra=remote_signer(signer.port, ca, client)
    )

    rules, config, port = folder / "rules.yml", folder / "prometheus.yml", free_port()
    rules.write_text(re.sub(r"(\bfor: \d+)[mh]\b", r"\1s", RULES.read_text()))
    config.write_text(prometheus_configuration(tls.ca, f"localhost:{server.port}", debug, rules))
    options = (
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    )
    with signer, server, Prometheus("prometheus", ("prometheus", *options), port, folder) as prometheus:
        until(prometheus.ready, "Prometheus answers")
        until(lambda: prometheus.up() == {"notary-server", "notary-signer"}, "both daemons are scraped")
        yield prometheus, signer


def test_an_alert_fires_when_the_signer_is_gone_and_ends_when_it_is_back(watched: tuple[Prometheus, Daemon]) -> None:
    prometheus, signer = watched
    until(lambda: prometheus.firing() == ALWAYS, "nothing is wrong")
    signer.stop()
    expected = ALWAYS | {"NotaryDown", "NotaryCannotPublish", "NotarySignerDown"}
    until(lambda: prometheus.firing() == expected, f"{sorted(expected)} fire")
    signer.start()
    until(lambda: prometheus.firing() == ALWAYS, "all is well again")


def test_prometheus_evaluates_every_rule(watched: tuple[Prometheus, Daemon]) -> None:
    prometheus, _ = watched
    until(lambda: {rule["health"] for rule in prometheus.rules()} == {"ok"}, "every rule was evaluated")
    assert {rule["name"] for rule in prometheus.rules()} == set(ALERTS)


def test_prometheus_understands_every_panel_of_the_dashboard(watched: tuple[Prometheus, Daemon]) -> None:
    prometheus, _ = watched
    for expression in expressions():
        prometheus.ask("query", query=expression)
