"""docs/openapi.yaml says what the server does: held against its tables, and by schemathesis against running servers."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from notary.server.api import ROUTES
from notary.server.faults import FAULTS, TOO_LARGE, UNKNOWN, UPDATING
from notary.server.routes import Route
from notary.tuf.publish import MAX_FILES
from tests.support.author import Author, server_key_from
from tests.support.peers import OUR_SERVER, Certificates, Daemon, daemon, mint_certificates
from tests.support.sides import MULTIPART, form_of

ROOT = Path(__file__).parents[2]
SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
GUN = "example.com/team/app"
EXAMPLES = 8
"""Random requests an operation; the requests that cover each limit of each parameter come on top."""
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
METHODS = {"get", "head", "post", "put", "delete", "patch", "options", "trace"}


def described() -> dict[str, Any]:
    """The description, as a value of its own."""
    return dict(yaml.safe_load((ROOT / "docs/openapi.yaml").read_text()))


def resolved(description: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    """What a reference leads to."""
    found = description
    for part in value["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return found


def operations() -> Iterator[tuple[str, str, dict[str, Any], list[dict[str, Any]]]]:
    """Path template, method, operation and parameters of all that is described."""
    description = described()
    for template, item in description["paths"].items():
        shared = item.get("parameters", [])
        for method in METHODS & set(item):
            parameters = [resolved(description, each) for each in [*shared, *item[method].get("parameters", [])]]
            yield template, method.upper(), item[method], parameters


ALL = list(operations())
IDS = [operation["operationId"] for _, _, operation, _ in ALL]


def examples_of(parameter: dict[str, Any]) -> list[str]:
    return [str(each["value"]) for each in parameter["examples"].values()]


def row_of(method: str, path: str) -> int:
    """The row of the route table, by place, that answers a request: the first one that fits."""
    of_gun = path.startswith(f"/v2/{GUN}/_trust/")
    rest = path.removeprefix(f"/v2/{GUN}/_trust/")
    method = "GET" if method == "HEAD" else method
    fits = (each.method == method and each.of_gun is of_gun and each.pattern.fullmatch(rest) for each in ROUTES)
    return next(place for place, fit in enumerate(fits) if fit)


def routes_of(template: str, method: str, parameters: list[dict[str, Any]]) -> set[int]:
    """The rows that answer the examples of an operation."""
    paths = [template]
    for parameter in parameters:
        if parameter["in"] == "path":
            name = f"{{{parameter['name']}}}"
            paths = [path.replace(name, value) for path in paths for value in examples_of(parameter)]
    return {row_of(method, path) for path in paths}


def rights(route: Route) -> list[dict[str, list[str]]]:
    """What ``security`` must say of a route."""
    if route.actions is None:
        return []
    return [{}, {"token": list(route.actions) if route.of_gun else ["registry:catalog:*"]}]


@pytest.mark.parametrize(("template", "method", "operation", "parameters"), ALL, ids=IDS)
def test_each_operation_is_one_row_of_the_route_table(
    template: str, method: str, operation: dict[str, Any], parameters: list[dict[str, Any]]
) -> None:
    (place,) = routes_of(template, method, parameters)
    route = ROUTES[place]
    assert operation["x-operation"] == route.operation
    assert operation["security"] == rights(route)
    assert set(re.findall(r"{(\w+)}", template)) == {each["name"] for each in parameters if each["in"] == "path"}


def test_each_row_of_the_route_table_is_described() -> None:
    of_method: dict[str, set[int]] = {}
    for template, method, _, parameters in ALL:
        of_method.setdefault(method, set()).update(routes_of(template, method, parameters))
    for place, route in enumerate(ROUTES):
        methods = {route.method, "HEAD"} if route.method == "GET" else {route.method}
        for method in methods:
            assert place in of_method[method], f"docs/openapi.yaml lacks {method} {route.path}: {route.operation}"


def test_the_codes_are_those_that_the_server_sends() -> None:
    errors = described()["components"]["schemas"]["Errors"]
    codes = {code: (each["status"], each["message"]) for code, each in errors["x-codes"].items()}
    sent = {fault.code: (fault.status, fault.message) for fault in (*FAULTS.values(), UNKNOWN, TOO_LARGE, UPDATING)}
    assert codes == sent
    assert errors["properties"]["errors"]["items"]["properties"]["code"]["enum"] == sorted(codes)
    table = re.findall(r"^\| ([A-Z_]+) \| (\d{3}) \| (.+) \|$", (ROOT / "docs/protocol.md").read_text(), re.MULTILINE)
    assert sent.items() <= {code: (int(status), message) for code, status, message in table}.items()


def test_every_answer_names_codes_that_exist_and_no_others() -> None:
    known = set(described()["components"]["schemas"]["Errors"]["x-codes"])
    text = (ROOT / "docs/openapi.yaml").read_text().partition("\n  responses:")[2].partition("\n  schemas:")[0]
    named = set(re.findall(r"\b[A-Z]+_?[A-Z]*_?[A-Z]+\b", " ".join(re.findall(r"(?:const|enum): (\S.*)", text))))
    assert named == known


def test_the_largest_number_of_files_is_the_servers() -> None:
    update = described()["paths"]["/v2/{gun}/_trust/tuf/"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert update["schema"]["properties"]["files"]["maxItems"] == MAX_FILES


# -- against a running server -----------------------------------------------------------------------------------------


def run_schemathesis(description: dict[str, Any], url: str, directory: Path, *more: str) -> tuple[int, str, list[Any]]:
    """Exit status, output and exchanges of a run; a directory may be used for one."""
    file, log = directory / "openapi.json", directory / "exchanges.har"
    file.write_text(json.dumps(description))
    options = [
        *("--url", url, "--checks", ",".join(CHECKS), "--max-examples", str(EXAMPLES), "--seed", "1"),
        *("--no-color", "--warnings", "off", "--max-redirects", "0", "--report", "har", "--report-har-path", log),
    ]
    done = subprocess.run(
        [SCHEMATHESIS, "run", file, *options, *more],
        cwd=directory, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    entries = json.loads(log.read_text())["log"]["entries"] if log.exists() else []
    return done.returncode, done.stdout + done.stderr, entries


def publish(server: Daemon) -> str:
    """Publish a collection with a delegation; the checksum of that one's file."""
    tuf = f"{server.url}/v2/{GUN}/_trust/tuf/"

    def send(path: str, data: bytes | None = None, content_type: str = "text/plain") -> bytes:
        with urllib.request.urlopen(urllib.request.Request(tuf + path, data, {"Content-Type": content_type})) as answer:
            return bytes(answer.read())

    held = {role: server_key_from(send(f"{role}.key")) for role in ("timestamp", "snapshot")}
    author = Author(GUN, timestamp=held["timestamp"], snapshot=held["snapshot"])
    author.delegate("targets/releases")
    assert send("", form_of(author.first()), MULTIPART) == b""
    return hashlib.sha256(author.stored["targets/releases"]).hexdigest()


def with_examples(checksum: str) -> dict[str, Any]:
    """The description, with examples of what the server really has, except for what deletes."""
    description = described()
    parameters = description["components"]["parameters"]
    assert parameters["Gun"]["examples"]["collection"]["value"] == GUN
    parameters["Role"]["examples"] = {"delegation": parameters["Role"]["examples"]["delegation"]}
    parameters["Checksum"]["examples"]["checksum"]["value"] = checksum
    parameters["IfNoneMatch"]["examples"] = {"other": {"value": '"0"'}, "any": {"value": "*"}}
    gone = parameters["Gun"] | {"examples": {"other": {"value": "example.com/gone"}}}
    description["paths"]["/v2/{gun}/_trust/tuf/"]["delete"]["parameters"] = [gone]
    return description


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, str]]:
    storage = {"backend": "sqlite3", "db_url": "notary.db"}
    with daemon("described", OUR_SERVER, tmp_path_factory.mktemp("openapi"), storage=storage) as running:
        yield running, publish(running)
        assert running.alive, running.output()


def test_the_server_is_as_described(server: tuple[Daemon, str], tmp_path: Path) -> None:
    running, checksum = server
    status, output, entries = run_schemathesis(
        with_examples(checksum), running.url, tmp_path, "--phases", "examples,coverage,fuzzing"
    )
    assert status == 0, f"{output}\n{running.output()}"
    assert "traceback" not in running.output()
    seen = {(each["request"]["method"], each["response"]["status"]) for each in entries}
    expected = {("GET", 200), ("GET", 304), ("GET", 400), ("GET", 404), ("HEAD", 200), ("HEAD", 304), ("HEAD", 404)}
    assert expected | {("POST", 200), ("POST", 400), ("DELETE", 200)} <= seen
    good = {each["request"]["url"].partition("?")[0] for each in entries if each["response"]["status"] == 200}
    gun = f"{running.url}/v2/{quote(GUN, safe='')}/_trust"
    role = "targets%2Freleases"
    for path in (
        f"{running.url}/v2/", f"{running.url}/v2/_trust/changefeed", f"{running.url}/metrics", f"{gun}/changefeed",
        f"{gun}/tuf/1.{role}.json", f"{gun}/tuf/{role}.json", f"{gun}/tuf/{role}.{checksum}.json",
        f"{gun}/tuf/timestamp.key", f"{running.url}/_notary_server/health",
    ):  # fmt: skip
        assert path in good, f"{path} was never asked for with success"


def test_a_server_that_asks_for_tokens_is_as_described(tmp_path: Path) -> None:
    bundle: Certificates = mint_certificates(tmp_path / "tls")
    options = {"realm": "https://auth.example/token", "service": "notary", "issuer": "auth.example"}
    auth = {"type": "token", "options": options | {"rootcertbundle": str(bundle.ca)}}
    with daemon("tokens", OUR_SERVER, tmp_path, extra={"auth": auth}) as running:
        status, output, entries = run_schemathesis(described(), running.url, tmp_path, "--phases", "examples")
        assert status == 0, f"{output}\n{running.output()}"
    assert {each["response"]["status"] for each in entries} == {401}


def test_a_wrong_description_is_noticed(server: tuple[Daemon, str], tmp_path: Path) -> None:
    running, checksum = server
    description = with_examples(checksum)
    description["components"]["schemas"]["Key"]["required"] = ["kind"]
    status, output, _ = run_schemathesis(
        description, running.url, tmp_path, "--phases", "examples", "--include-operation-id", "getKey"
    )
    assert status == 1
    assert "Response violates schema" in output
