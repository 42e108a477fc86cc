"""Pods on a Docker engine: containers with exactly the settings that a manifest of Kubernetes gives them.

Rules of this module: what a manifest says is done, or refused (AssertionError), and never left out in silence. The
files of ConfigMaps and Secrets lie as the kubelet lays them: owned by root and the group of the pod, behind symbolic
links that one rename moves to a new version. An engine has no pause before a stop, so :meth:`Pod.stop` makes it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.docker.engine import Engine

Object = dict[str, Any]
Files = Mapping[str, Mapping[str, str]]
"""The files of each ConfigMap or Secret, by its name."""

PATIENCE_SECONDS = 120.0
_POD = {
    "automountServiceAccountToken",
    "containers",
    "enableServiceLinks",
    "restartPolicy",
    "securityContext",
    "terminationGracePeriodSeconds",
    "topologySpreadConstraints",  # one engine is one node
    "volumes",
}
_CONTAINER = {
    *("args", "command", "env", "image", "imagePullPolicy", "lifecycle", "livenessProbe", "name", "ports"),
    *("readinessProbe", "resources", "securityContext", "startupProbe", "volumeMounts"),
}


def lay(folder: Path, files: Mapping[str, str], group: int, mode: int) -> None:
    """Lay files into the folder of a volume, or new versions of them, as the kubelet does."""
    folder.mkdir(parents=True, exist_ok=True)
    version = folder / f"..{secrets.token_hex(4)}"
    version.mkdir()
    for name, content in files.items():
        path = version / name
        path.write_text(content)
        path.chmod(mode)
        os.chown(path, 0, group)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    (folder / "..new").symlink_to(version.name)
    before = (folder / "..data").resolve() if (folder / "..data").is_symlink() else None
    (folder / "..new").rename(folder / "..data")
    if before is not None:
        shutil.rmtree(before)


class Pod:
    """The one container of a pod: ``template`` is the pod's, ``hosts`` are the names of Services that lead to it.

    ``publish`` is a port of this machine's loopback that leads to a port of the container.
    """

    def __init__(
        self,
        engine: Engine,
        network: str,
        folder: Path,
        template: Object,
        files: Files,
        *,
        hosts: tuple[str, ...] = (),
        publish: tuple[int, str] | None = None,
    ) -> None:
        self.engine = engine
        self.folder = folder
        self.spec: Object = template["spec"]
        (self.container,) = self.spec["containers"]
        assert set(self.spec) <= _POD
        assert set(self.container) <= _CONTAINER
        self.ports = {port["name"]: port["containerPort"] for port in self.container.get("ports", [])}
        options = [f"--network={network}", *(f"--network-alias={host}" for host in hosts)]
        if publish is not None:
            options.append(f"--publish=127.0.0.1:{publish[0]}:{self.ports[publish[1]]}")
        command, *more = self.container["command"]
        self.id = engine.docker(
            *("run", "--detach", f"--entrypoint={command}", "--no-healthcheck"),
            *options,
            *self._security(),
            *self._volumes(files),
            *(f"--env={each['name']}={each['value']}" for each in self.container["env"]),
            f"--memory={self.container['resources']['limits']['memory'].removesuffix('i')}",
            self.container["image"],
            *more,
            *self.container["args"],
        ).strip()

    def _security(self) -> list[str]:
        pod, container = self.spec["securityContext"], self.container["securityContext"]
        assert set(pod) == {"runAsNonRoot", "runAsUser", "runAsGroup", "fsGroup", "seccompProfile"}
        assert set(container) == {"allowPrivilegeEscalation", "readOnlyRootFilesystem", "capabilities"}
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}  # which is the engine's own default too
        assert container["allowPrivilegeEscalation"] is False
        assert container["readOnlyRootFilesystem"] is True
        assert container["capabilities"] == {"drop": ["ALL"]}
        return [
            f"--user={pod['runAsUser']}:{pod['runAsGroup']}",
            f"--group-add={pod['fsGroup']}",
            *("--security-opt=no-new-privileges:true", "--read-only", "--cap-drop=ALL"),
        ]

    def _volumes(self, files: Files) -> list[str]:
        found = []
        volumes = {volume["name"]: volume for volume in self.spec["volumes"]}
        for mount in self.container["volumeMounts"]:
            assert set(mount) == {"name", "mountPath", "readOnly"}
            self.lay(mount["name"], files, volumes)
            found.append(f"--volume={self.folder / mount['name']}:{mount['mountPath']}:ro")
        return found

    def lay(self, volume: str, files: Files, volumes: Mapping[str, Object] | None = None) -> None:
        """Lay the files of a volume, or new versions of them."""
        source = (volumes or {each["name"]: each for each in self.spec["volumes"]})[volume]
        known = source.get("secret") or source["configMap"]
        name = known.get("secretName") or known["name"]
        lay(self.folder / volume, files[name], self.spec["securityContext"]["fsGroup"], known.get("defaultMode", 0o644))

    @property
    def address(self) -> str:
        """The address of the container."""
        (network,) = self.engine.inspect(self.id)["NetworkSettings"]["Networks"].values()  # type: ignore[index]
        return str(network["IPAddress"])

    @property
    def log(self) -> str:
        """All that the container has printed so far."""
        return self.engine.docker("logs", self.id)

    def get(self, path: str, port: str, scheme: str = "HTTP") -> tuple[int, str]:
        """What a GET is answered with, status and body; 0 if it is not. Like the kubelet, no certificate is checked."""
        url = f"{scheme.lower()}://{self.address}:{self.ports[port]}{path}"
        trust = ssl._create_unverified_context()
        try:
            with urllib.request.urlopen(url, context=trust if scheme == "HTTPS" else None, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def probe(self, name: str) -> bool:
        """Whether a probe of the container passes now."""
        asked = self.container[name]["httpGet"]
        status, _ = self.get(asked["path"], asked["port"], asked.get("scheme", "HTTP"))
        return 200 <= status < 400

    def wait_ready(self) -> None:
        """Wait until the probe of readiness passes; AssertionError with the log if that does not happen."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.probe("readinessProbe"):
            assert time.monotonic() < deadline, self.log
            time.sleep(0.2)

    def wait_done(self) -> int:
        """The status with which the container ends by itself."""
        return int(self.engine.docker("wait", self.id))

    def stop(self) -> int:
        """Stop the container as a deleted pod is stopped; return its status."""
        (pause,) = self.container["lifecycle"]["preStop"].values()
        time.sleep(pause["seconds"])
        grace = self.spec["terminationGracePeriodSeconds"] - pause["seconds"]
        self.engine.docker("stop", f"--time={grace}", self.id)
        return self.wait_done()

    def remove(self) -> None:
        """Let nothing of the container be left."""
        self.engine.docker("rm", "--force", "--volumes", self.id, check=False)
