"""The Helm chart and the manifests in deploy/: equal, valid by the schemas of Kubernetes, restricted, consistent.

That the pods run: `tests.docker.test_kubernetes`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import notary
from etc import manifests
from notary.config import ServerConfig, SignerConfig, load_config
from tests.test_layout import ROOT

Object = dict[str, Any]

OLDEST = "1.30"
"""The first release with pauses as preStop, and what the chart asks for."""
FOREIGN = {"cert-manager.io/v1", "monitoring.coreos.com/v1"}
"""Kinds of other operators, which Kubernetes has no schemas of."""
EVERYTHING = {
    "certManager": {"enabled": True, "serverIssuer": {"name": "public", "kind": "ClusterIssuer"}},
    "monitoring": {"enabled": True, "labels": {"release": "prometheus"}},
    "server": {
        "autoscaling": {"enabled": True},
        "moreSecrets": ["token-authority"],
        "config": {"lifetimes": {"timestamp": 3600}, "logging": {"level": "debug"}},
        "service": {"type": "LoadBalancer", "annotations": {"example.com/name": "yes"}},
    },
    "signer": {"aliases": ["passphrase_2", "passphrase_1"], "moreSecrets": ["kek"]},
    "env": [{"name": "SSL_CERT_FILE", "value": "/run/notary/database/ca.crt"}],
    "image": {"registry": "registry.example.com/notary/", "tag": "1.2.3", "pullSecrets": [{"name": "registry"}]},
    "database": "postgres",
}
"""Values that turn everything on, and give all lists members."""


def documents(text: str) -> list[Object]:
    return [each for each in yaml.safe_load_all(text) if each]


@pytest.fixture(scope="module")
def plain() -> list[Object]:
    """What is in the files of deploy/kubernetes/, those in ``optional/`` too."""
    return [each for path in sorted(manifests.MANIFESTS.rglob("*.yaml")) for each in documents(path.read_text())]


@pytest.fixture(scope="module")
def full() -> list[Object]:
    """The chart with everything turned on, for a release of another name."""
    texts = manifests.rendered(EVERYTHING, release="trust", namespace="signing")
    return [each for text in texts.values() for each in documents(text)]


@pytest.fixture(scope="module", params=["plain", "full"])
def objects(request: pytest.FixtureRequest) -> list[Object]:
    found: list[Object] = request.getfixturevalue(request.param)
    return found


def of_kind(objects: list[Object], kind: str) -> dict[str, Object]:
    return {each["metadata"]["name"]: each for each in objects if each["kind"] == kind}


def one(objects: list[Object], kind: str, end: str) -> Object:
    (found,) = [each for name, each in of_kind(objects, kind).items() if name.endswith(end)]
    return found


def templates(objects: list[Object]) -> Iterator[Object]:
    """The pods that the objects make."""
    for each in objects:
        if each["kind"] in ("Deployment", "Job"):
            yield each["spec"]["template"]


def test_the_manifests_are_what_the_chart_renders() -> None:
    wanted = manifests.manifests()
    assert {path: path.read_text() for path in wanted} == wanted, "run `make manifests`"
    found = {path for path in manifests.MANIFESTS.rglob("*.yaml") if path.name != "namespace.yaml"}
    assert found == set(wanted)


def test_what_is_off_is_not_rendered() -> None:
    assert set(manifests.rendered()) & set(manifests.OPTIONAL) == set()
    without = {"networkPolicy": {"enabled": False}, "migrations": {"enabled": False}}
    assert set(manifests.rendered(without)) == {"config.yaml", "server.yaml", "signer.yaml"}


def test_the_chart_is_of_this_version_and_has_the_alerts(full: list[Object]) -> None:
    chart = yaml.safe_load((manifests.CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == notary.__version__
    assert chart["kubeVersion"] == f">={OLDEST}.0-0"
    (rules,) = of_kind(full, "PrometheusRule").values()
    assert rules["spec"] == yaml.safe_load((ROOT / "etc/prometheus/notary.rules.yml").read_text())


def versions() -> list[str]:
    """The oldest and the newest release that the chart is held against."""
    newest: str = kubernetes_validate.latest_version()
    return [OLDEST, newest]


@pytest.mark.parametrize("version", versions())
def test_every_object_is_valid(objects: list[Object], version: str) -> None:
    tried = 0
    for each in objects:
        if each["apiVersion"] not in FOREIGN:
            assert kubernetes_validate.validate(each, version, strict=True)
            tried += 1
    assert tried >= 14


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda pod: pod["containers"][0].update(volumemounts=[]), id="unknown member"),
        pytest.param(lambda pod: pod.update(terminationGracePeriodSeconds="30s"), id="not a number"),
        pytest.param(lambda pod: pod["containers"][0].pop("name"), id="missing member"),
    ],
)
def test_a_fault_would_be_found(plain: list[Object], spoil: Any) -> None:
    broken = deepcopy(one(plain, "Deployment", "-server"))
    spoil(broken["spec"]["template"]["spec"])
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, versions()[-1], strict=True)


def test_pods_are_restricted(objects: list[Object]) -> None:
    """The profile ``restricted`` of Pod Security, and a root file system that nothing writes to."""
    pods = list(templates(objects))
    assert len(pods) == 4
    for pod in pods:
        spec = pod["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & set(spec)
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["fsGroup"] == 10001
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert {kind for volume in spec["volumes"] for kind in volume} == {"name", "configMap", "secret"}
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
    namespace = yaml.safe_load((manifests.MANIFESTS / "namespace.yaml").read_text())
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def covers(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return selector.items() <= labels.items()


def test_selectors_find_their_pods_and_no_others(objects: list[Object]) -> None:
    pods = {pod["metadata"]["labels"]["app.kubernetes.io/component"]: pod for pod in templates(objects)}
    assert set(pods) == {"server", "signer", "migrate"}
    selectors = [
        *((name, each["spec"]["selector"]) for name, each in of_kind(objects, "Service").items()),
        *(
            (name, each["spec"]["selector"]["matchLabels"])
            for kind in ("Deployment", "PodDisruptionBudget")
            for name, each in of_kind(objects, kind).items()
        ),
        *(
            (name, each["spec"]["podSelector"]["matchLabels"])
            for name, each in of_kind(objects, "NetworkPolicy").items()
        ),
    ]
    assert len(selectors) == 9
    for name, selector in selectors:
        found = [component for component, pod in pods.items() if covers(selector, pod["metadata"]["labels"])]
        assert found == [name.rpartition("-")[2]]


def test_only_servers_reach_signers(objects: list[Object]) -> None:
    policy = one(objects, "NetworkPolicy", "-signer")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    grpc, debug = policy["ingress"]
    server = one(objects, "Deployment", "-server")["spec"]["template"]["metadata"]["labels"]
    assert grpc["ports"] == [{"protocol": "TCP", "port": "grpc"}]
    assert [set(peer) for peer in grpc["from"]] == [{"podSelector"}]
    for pod in templates(objects):
        labels = pod["metadata"]["labels"]
        assert covers(grpc["from"][0]["podSelector"]["matchLabels"], labels) is (labels == server)
    assert debug == {
        "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
        "ports": [{"protocol": "TCP", "port": "debug"}],
    }
    assert one(objects, "NetworkPolicy", "-migrate")["spec"]["ingress"] == []


def container_of(objects: list[Object], daemon: str) -> tuple[Object, Object]:
    """The pod's specification and its container."""
    spec = one(objects, "Deployment", f"-{daemon}")["spec"]["template"]["spec"]
    return spec, spec["containers"][0]


def load(objects: list[Object], daemon: str) -> ServerConfig | SignerConfig:
    """The configuration as the daemon reads it in its pod, its files of secrets replaced by what they hold."""
    _, container = container_of(objects, daemon)
    held = {each["name"].removesuffix("_FILE"): f"content of {each['value']}" for each in container["env"]}
    variables = {name: value for name, value in held.items() if not name.endswith("_DB_URL")}
    text = one(objects, "ConfigMap", f"-{daemon}")["data"]["config.json"]
    url = {
        "mysql": "user:password@tcp(db:3306)/notary?parseTime=true",
        "postgres": "postgres://user:password@db:5432/notary",
    }[json.loads(text)["storage"]["backend"]]
    return load_config(text, {**variables, f"NOTARY_{daemon.upper()}_STORAGE_DB_URL": url}, Path("/etc/notary"))


@pytest.mark.parametrize("daemon", ["server", "signer"])
def test_the_configuration_fits_the_pod(objects: list[Object], daemon: str) -> None:
    config = load(objects, daemon)
    spec, container = container_of(objects, daemon)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    address = config.server.http_addr if isinstance(config, ServerConfig) else config.server.grpc_addr
    assert ports["https" if daemon == "server" else "grpc"] == address.port
    if isinstance(config, SignerConfig):
        assert config.debug is not None
        assert ports["debug"] == config.debug.port
    # Every file that the configuration and the variables name is in a volume that is mounted.
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert set(mounts.values()) == {volume["name"] for volume in spec["volumes"]}
    text = one(objects, "ConfigMap", f"-{daemon}")["data"]["config.json"]
    for named in [*re.findall(r'"(/run/[^"]+)"', text), *(each["value"] for each in container["env"])]:
        assert str(Path(named).parent) in mounts, named
    assert container["args"][0] == "-config=/etc/notary/config.json"


@pytest.mark.parametrize("daemon", ["server", "signer"])
def test_probes_ask_ports_that_there_are_and_a_stop_has_its_time(objects: list[Object], daemon: str) -> None:
    config = load(objects, daemon)
    spec, container = container_of(objects, daemon)
    ports = {port["name"] for port in container["ports"]}
    for probe, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        asked = container[probe]["httpGet"]
        assert (asked["path"], asked["port"] in ports) == (path, True)
        assert asked.get("scheme", "HTTP") == ("HTTPS" if daemon == "server" else "HTTP")
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pause + config.server.drain_timeout + 5 <= spec["terminationGracePeriodSeconds"]


def test_names_in_certificates_are_those_that_daemons_ask_for(objects: list[Object]) -> None:
    server, signer = load(objects, "server"), load(objects, "signer")
    assert isinstance(server, ServerConfig)
    assert isinstance(signer, SignerConfig)
    certificates = of_kind(objects, "Certificate")
    names = {each["spec"]["secretName"]: each["spec"].get("dnsNames", []) for each in certificates.values()}
    (hostname,) = names["notary-signer-tls"]
    assert hostname == server.trust_service.hostname
    assert hostname in of_kind(objects, "Service")
    assert tuple(names["notary-server-client"]) == signer.server.client_names
    assert (
        one(objects, "ServiceMonitor", "-server")["spec"]["endpoints"][0]["tlsConfig"]["serverName"]
        in (names["notary-server-tls"])
    )
    mounted = {
        volume["secret"]["secretName"]
        for daemon in ("server", "signer")
        for volume in container_of(objects, daemon)[0]["volumes"]
        if "secret" in volume
    }
    assert set(names) - mounted == {next(name for name in names if name.endswith("-authority"))}
    issuers = of_kind(objects, "Issuer")
    used = {each["spec"]["issuerRef"]["name"] for each in certificates.values()}
    assert used - set(issuers) <= {"public"}


def test_only_the_jobs_may_change_tables_and_only_signers_have_passphrases(objects: list[Object]) -> None:
    def secrets_of(pod: Object) -> set[str]:
        return {volume["secret"]["secretName"] for volume in pod["spec"]["volumes"] if "secret" in volume}

    by_component: dict[str, set[str]] = {}
    for pod in templates(objects):
        component = pod["metadata"]["labels"]["app.kubernetes.io/component"]
        by_component.setdefault(component, set()).update(secrets_of(pod))
    assert by_component["migrate"] == {"notary-server-migration", "notary-signer-migration"}
    assert not by_component["migrate"] & (by_component["server"] | by_component["signer"])
    assert "notary-signer-passphrases" in by_component["signer"] - by_component["server"]
    assert not [each for each in objects if each["kind"] == "Secret"]


def test_values_reach_what_they_are_for(full: list[Object]) -> None:
    server, signer = load(full, "server"), load(full, "signer")
    assert isinstance(server, ServerConfig)
    assert isinstance(signer, SignerConfig)
    assert (server.lifetimes.timestamp, server.trust_service.hostname) == (3600, "trust-signer")
    assert signer.storage.default_alias == "passphrase_2"
    images = {container["image"] for pod in templates(full) for container in pod["spec"]["containers"]}
    assert images == {f"registry.example.com/notary/notary-{daemon}:1.2.3" for daemon in ("server", "signer")}
    for pod in templates(full):
        assert pod["spec"]["imagePullSecrets"] == [{"name": "registry"}]
        assert {"name": "SSL_CERT_FILE", "value": "/run/notary/database/ca.crt"} in pod["spec"]["containers"][0]["env"]
    assert "replicas" not in one(full, "Deployment", "-server")["spec"]
    assert one(full, "Service", "-server")["spec"]["type"] == "LoadBalancer"
    assert one(full, "Certificate", "trust-server")["spec"]["issuerRef"]["name"] == "public"
    assert one(full, "ServiceMonitor", "-signer")["metadata"]["labels"]["release"] == "prometheus"


def test_a_change_of_the_configuration_starts_new_pods() -> None:
    def sums(values: Mapping[str, Any]) -> list[str]:
        texts = manifests.rendered(values)
        return re.findall(r"checksum/config: (\w+)", texts["server.yaml"] + texts["signer.yaml"])

    before, after = sums({}), sums({"signer": {"config": {"logging": {"level": "error"}}}})
    assert before[0] == after[0]
    assert before[1] != after[1]
