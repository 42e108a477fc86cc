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

import jsonschema
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
    "certManager": {
        "enabled": True,
        "serverNames": ["notary.example.com"],
        "serverIssuer": {"name": "public", "kind": "ClusterIssuer"},
    },
    "migrations": {"podAnnotations": {"sidecar.istio.io/inject": "false"}},
    "monitoring": {
        "enabled": True,
        "labels": {"release": "prometheus"},
        "serverTLS": {"serverName": "notary.example.com"},
    },
    "server": {
        "digest": f"sha256:{64 * 'a'}",
        "autoscaling": {"enabled": True},
        "moreSecrets": ["token-authority"],
        "config": {
            "lifetimes": {"timestamp": 3600},
            "logging": {"level": "debug"},
            "server": {"drain_timeout": 40},
        },
        "env": [{"name": "SSL_CERT_DIR", "value": "/run/notary/more/token-authority/certificates"}],
        "service": {
            "type": "LoadBalancer",
            "annotations": {"example.com/name": "yes"},
            "spec": {"externalTrafficPolicy": "Local"},
        },
        "terminationGracePeriodSeconds": 60,
        "serviceAccountName": "servers",
        "podLabels": {"example.com/team": "trust"},
        "podAnnotations": {"example.com/reviewed": "yes"},
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "affinity": {
            "nodeAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {"weight": 1, "preference": {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}}
                ]
            }
        },
        "tolerations": [{"key": "dedicated", "operator": "Exists"}],
        "priorityClassName": "high",
    },
    "signer": {
        "aliases": ["passphrase_2", "passphrase_1"],
        "moreSecrets": ["kek"],
        "moreVolumes": [{"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}],
        "moreVolumeMounts": [{"name": "token", "mountPath": "/run/notary/token", "readOnly": True}],
    },
    "env": [{"name": "SSL_CERT_FILE", "value": "/run/notary/database/ca.crt"}],
    "image": {"registry": "registry.example.com/notary", "tag": "1.2.3", "pullSecrets": [{"name": "registry"}]},
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
    texts = manifests.rendered(EVERYTHING, release="trust", namespace="signing", manager="Helm")
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
    assert {(each["metadata"]["labels"]["helm.sh/chart"]) for each in full} == {f"notary-{notary.__version__}"}
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
        assert {kind for volume in spec["volumes"] for kind in volume} <= {"name", "configMap", "secret", "projected"}
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
    assert (server.lifetimes.timestamp, server.trust_service.hostname) == (3600, "trust-notary-signer")
    assert signer.storage.default_alias == "passphrase_2"
    images = {container["image"] for pod in templates(full) for container in pod["spec"]["containers"]}
    registry = "registry.example.com/notary"
    assert images == {f"{registry}/notary-server@sha256:{64 * 'a'}", f"{registry}/notary-signer:1.2.3"}
    for pod in templates(full):
        assert pod["spec"]["imagePullSecrets"] == [{"name": "registry"}]
        assert {"name": "SSL_CERT_FILE", "value": "/run/notary/database/ca.crt"} in pod["spec"]["containers"][0]["env"]
    assert "replicas" not in one(full, "Deployment", "-server")["spec"]
    assert one(full, "Service", "-server")["spec"]["type"] == "LoadBalancer"
    assert one(full, "Service", "-server")["spec"]["externalTrafficPolicy"] == "Local"
    public = one(full, "Certificate", "trust-notary-server")["spec"]
    assert (public["issuerRef"]["name"], public["dnsNames"]) == ("public", ["notary.example.com"])
    assert one(full, "ServiceMonitor", "-server")["spec"]["endpoints"][0]["tlsConfig"] == {
        "serverName": "notary.example.com"
    }
    given: Object = EVERYTHING["server"]  # type: ignore[assignment]
    pod = one(full, "Deployment", "-server")["spec"]["template"]
    for name in ("nodeSelector", "affinity", "tolerations", "priorityClassName", "serviceAccountName"):
        assert pod["spec"][name] == given[name]
        assert name not in one(full, "Deployment", "-signer")["spec"]["template"]["spec"]
    assert covers(given["podLabels"], pod["metadata"]["labels"])
    assert covers(given["podAnnotations"], pod["metadata"]["annotations"])
    assert given["env"][0] in pod["spec"]["containers"][0]["env"]
    assert given["env"][0] not in one(full, "Deployment", "-signer")["spec"]["template"]["spec"]["containers"][0]["env"]
    # A Job runs on the nodes of its daemon, but not in its name: it has no business with the keys of a cloud.
    job = one(full, "Job", "-server")["spec"]["template"]
    assert job["spec"]["nodeSelector"] == given["nodeSelector"]
    assert "serviceAccountName" not in job["spec"]
    assert job["metadata"]["annotations"] == {"sidecar.istio.io/inject": "false"}
    assert one(full, "ServiceMonitor", "-signer")["metadata"]["labels"]["release"] == "prometheus"


def test_a_change_of_the_configuration_starts_new_pods() -> None:
    def sums(values: Mapping[str, Any]) -> list[str]:
        texts = manifests.rendered(values)
        return re.findall(r"checksum/config: (\w+)", texts["server.yaml"] + texts["signer.yaml"])

    before, after = sums({}), sums({"signer": {"config": {"logging": {"level": "error"}}}})
    assert before[0] == after[0]
    assert before[1] != after[1]


SCHEMA: Object = json.loads((manifests.CHART / "values.schema.json").read_text())
VALUES: Object = yaml.safe_load((manifests.CHART / "values.yaml").read_text())


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["default", "everything"])
def test_values_fit_the_schema(values: Mapping[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(manifests.overlaid(VALUES, values), SCHEMA)


def test_the_schema_knows_the_values_and_no_others() -> None:
    def compared(schema: Object, values: Object, place: str) -> None:
        if "properties" in schema:
            assert schema["additionalProperties"] is False, place
            # Helm itself puts "global" into the values of a chart that another chart has.
            assert set(schema["properties"]) - {"global"} == set(values), place
            for name, below in values.items():
                compared(schema["properties"][name], below, f"{place}.{name}")

    compared(SCHEMA, VALUES, "")


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({"server": {"replica": 3}}, id="a key that there is not"),
        pytest.param({"image": {"tag": 1.2}}, id="a tag that YAML took for a number"),
        pytest.param({"signer": {"aliases": ["a-b"]}}, id="an alias that no variable can have"),
        pytest.param({"database": "sqlite3"}, id="a database of one process"),
        pytest.param({"server": {"digest": "latest"}}, id="no digest"),
        pytest.param({"fullnameOverride": 49 * "a"}, id="a long name"),
    ],
)
def test_values_that_cannot_work_are_refused(values: Mapping[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifests.overlaid(VALUES, values), SCHEMA)


def test_signers_need_a_passphrase_or_what_keys_are_under() -> None:
    with pytest.raises(SystemExit, match=r"storage\.keys\.wrap"):
        manifests.rendered({"signer": {"aliases": []}})
    wrap = "vault:https://vault.example.com:8200/transit/notary?kubernetes-role=signer&jwt-file=/run/notary/token/token"
    values = {"signer": {"aliases": [], "config": {"storage": {"keys": {"wrap": wrap}}}}}
    objects = [each for text in manifests.rendered(values).values() for each in documents(text)]
    config = load(objects, "signer")
    assert isinstance(config, SignerConfig)
    assert (config.storage.default_alias, bool(config.storage.keys.wrap)) == ("", True)
    assert "passphrase" not in json.dumps(one(objects, "Deployment", "-signer"))
    assert "passphrase" not in manifests.rendered(values, suffix=".txt")["NOTES.txt"]


def test_a_public_authority_is_asked_for_names_that_were_given() -> None:
    with pytest.raises(SystemExit, match=r"certManager\.serverNames"):
        manifests.rendered({"certManager": {"enabled": True, "serverIssuer": {"name": "public"}}})


@pytest.mark.parametrize(
    ("release", "values", "name"),
    [
        pytest.param("notary", {}, "notary", id="called like the chart"),
        pytest.param("team-notary", {}, "team-notary", id="has the chart's name in it"),
        pytest.param("trust", {}, "trust-notary", id="another name"),
        pytest.param("trust", {"fullnameOverride": "signing"}, "signing", id="override"),
        pytest.param(f"{47 * 'a'}-b", {}, 47 * "a", id="long"),
    ],
)
def test_names_begin_as_with_other_charts(release: str, values: Mapping[str, Any], name: str) -> None:
    texts = manifests.rendered(values, release=release)
    (service,) = of_kind(documents(texts["signer.yaml"]), "Service")
    assert service == f"{name}-signer"
    # The longest name is that of a Job, and of a label then.
    assert max(len(each) for text in texts.values() for each in re.findall(r"^  name: (.*)", text, re.MULTILINE)) <= 63


@pytest.mark.parametrize(
    ("values", "said"),
    [
        pytest.param({}, "at https://notary-server.notary.svc:4443", id="inside"),
        pytest.param({"server": {"service": {"type": "LoadBalancer"}}}, "address of the load balancer", id="balancer"),
        pytest.param({"signer": {"aliases": ["new", "old"]}}, "notary-signer-passphrases (new, old)", id="aliases"),
        pytest.param({"certManager": {"enabled": True}}, "which cert-manager makes", id="cert-manager"),
        pytest.param({"signer": {"replicas": 1}}, "WARNING: one daemon has one replica", id="one"),
        pytest.param({"networkPolicy": {"enabled": False}}, "WARNING: networkPolicy", id="open"),
        pytest.param({"migrations": {"enabled": False}}, "WARNING: migrations", id="by hand"),
    ],
)
def test_the_notes_say_what_is_next(values: Mapping[str, Any], said: str) -> None:
    notes = manifests.rendered(values, suffix=".txt")["NOTES.txt"]
    assert said in notes
    assert ("WARNING" in notes) is said.startswith("WARNING")
