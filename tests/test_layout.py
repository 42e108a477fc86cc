"""The house keeps its rules: who imports what, what every file has, and that names and numbers agree across files."""

from __future__ import annotations

import ast
import importlib.metadata
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import notary
from notary.config import ServerConfig, SignerConfig
from notary.config.table import keys

ROOT = Path(__file__).parent.parent

BELOW = ("errors", "certs", "config", "tuf", "storage", "proto", "work", "net", "observe")

LAYERS: dict[str, set[str]] = {
    "notary": set(),
    "notary.errors": set(),
    "notary.proto": set(),
    "notary.certs": {"notary.errors"},
    "notary.tuf": {"notary.errors", "notary.certs"},
    "notary.config": {"notary.errors"},
    "notary.work": {"notary.errors"},
    "notary.net": {"notary.errors", "notary.certs", "notary.work"},
    "notary.storage": {"notary.errors", "notary.certs", "notary.config", "notary.tuf", "notary.work"},
    "notary.peer": {f"notary.{layer}" for layer in ("errors", "certs", "tuf", "work", "net")},
    "notary.envelope": {
        f"notary.{layer}" for layer in ("errors", "certs", "config", "tuf", "storage", "work", "net", "peer")
    },
    "notary.observe": {f"notary.{layer}" for layer in ("errors", "certs", "proto", "work", "net")},
    "notary.daemon": {f"notary.{layer}" for layer in ("errors", "certs", "proto", "work", "net", "observe")},
    "notary.server": {f"notary.{layer}" for layer in BELOW},
    "notary.signer": {f"notary.{layer}" for layer in (*BELOW, "peer", "envelope")},
    "notary.admin": {f"notary.{layer}" for layer in (*BELOW, "envelope", "peer") if layer != "observe"},
    "notary.server.tap": {"notary.server", "notary.daemon"},
    "notary.signer.start": {"notary.signer", "notary.daemon"},
    "notary.signer.tap": {"notary.signer", "notary.daemon"},
    "twisted.plugins": set(),
}
"""What each layer may import of ours, besides itself and the package ``notary`` (its version).

The most specific name counts. An entry (``tap``, ``start``) may import what its daemon may, and that daemon.
"""
for entry in ("server.tap", "signer.tap", "signer.start"):
    LAYERS[f"notary.{entry}"] |= LAYERS[f"notary.{entry.partition('.')[0]}"]

WITHOUT_TWISTED = {"notary", "notary.errors", "notary.certs", "notary.config", "notary.tuf"}


def layer_of(module: str) -> str:
    """The layer that a module of ours belongs to: the longest name in LAYERS that it is, or is inside of."""
    candidates = [
        layer for layer in LAYERS if layer != "notary" and (module == layer or module.startswith(layer + "."))
    ]
    if module == "notary":
        return "notary"
    if not candidates:
        pytest.fail(f"{module} is in no layer: say in LAYERS where it belongs")
    return max(candidates, key=len)


def imports(source: str) -> Iterator[tuple[str, bool]]:
    """Every name that a module imports, as an absolute dotted path; and whether that happens at module level."""

    def walk(node: ast.AST, *, top: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.Import):
                yield from ((alias.name, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                yield from ((f"{'.' * child.level}{child.module or ''}.{alias.name}", top) for alias in child.names)
            else:
                yield from walk(child, top=top and not inside)

    return walk(ast.parse(source), top=True)


def is_ours(name: str) -> bool:
    return name == "notary" or name.startswith("notary.")


def violations(module: str, source: str) -> list[str]:
    """What this module imports against the rules of docs/architecture.md, one line each."""
    found = []
    own = layer_of(module)
    for name, top in imports(source):
        if name.startswith("."):
            found.append(f"{module} imports {name}: imports are absolute")
        elif is_ours(name) and name != "notary.__version__":
            imported = layer_of(name)
            if imported not in LAYERS[own] | {own, "notary"}:
                found.append(f"{module} imports {name}: {own} may not know {imported}")
        if own in WITHOUT_TWISTED and name.split(".")[0] == "twisted":
            found.append(f"{module} imports {name}: {own} never imports Twisted")
        if top and re.fullmatch(r"twisted\.internet\.reactor(\..*)?", name):
            found.append(f"{module} imports {name} at module level: the reactor is an argument")
    return found


def claims_to_be_pure(docstring: str) -> bool:
    """Whether a module says of itself that it is pure: in its first rule, possibly "but for" something."""
    return re.search(r"^Rules of this (module|package): pure\b", docstring, re.MULTILINE) is not None


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def python_files(*folders: str) -> list[Path]:
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted(path for path in files if not path.name.endswith(("_pb2.py", "_pb2_grpc.py")))


def text_files() -> list[Path]:
    """Everything that people write here; not what tools leave behind."""
    folders = ("notary", "twisted", "tests", "fixtures", "etc", "deploy", "docs", "docker", "debian", ".ci")
    inside = [path for folder in folders for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts]
    beside = [ROOT / "Makefile", ROOT / "pyproject.toml", *ROOT.glob("*.md")]
    return sorted(path for path in [*inside, *beside] if path.is_file() and path.suffix not in {".pyc", ".cache"})


OURS = python_files("notary", "twisted")
ALL = python_files("notary", "twisted", "tests", "fixtures")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_imports_follow_the_layers(path: Path) -> None:
    assert violations(module_name(path), read(path)) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        pytest.param("notary.errors", "import notary.config", id="errors-config"),
        pytest.param("notary.config", "from notary.tuf import model", id="config-tuf"),
        pytest.param("notary.tuf.public", "from notary.storage import Update", id="tuf-storage"),
        pytest.param("notary.tuf.public", "from notary import storage", id="tuf-storage-from-package"),
        pytest.param("notary.tuf.public", "from twisted.python import log", id="tuf-twisted"),
        pytest.param("notary.config", "import twisted", id="config-twisted"),
        pytest.param("notary.errors", "def f():\n    import twisted.web", id="errors-twisted-inside"),
        pytest.param("notary.net.http.site", "from notary.tuf.model import Gun", id="net-tuf"),
        pytest.param("notary.net.http.site", "import notary.config", id="net-config"),
        pytest.param("notary.storage.open", "import notary.net.http.site", id="storage-net"),
        pytest.param("notary.storage.open", "from notary.server import repository", id="storage-server"),
        pytest.param("notary.server.api", "from notary.signer.keyring import Keyring", id="server-signer"),
        pytest.param("notary.signer.rpc", "import notary.server.signing as s", id="signer-server"),
        pytest.param("notary.admin.cli", "from notary.server import repository", id="admin-server"),
        pytest.param("notary.admin.cli", "from notary.signer import keyring", id="admin-signer"),
        pytest.param("notary.server.api", "from notary.admin import output", id="server-admin"),
        pytest.param("notary.server.api", "from notary.server.tap import Options", id="server-own-tap"),
        pytest.param("notary.server.api", "from notary.server import tap", id="server-own-tap-from-package"),
        pytest.param("notary.server.tap", "import notary.signer.tap", id="tap-other-tap"),
        pytest.param("notary.server.api", "from . import auth", id="relative"),
        pytest.param("notary.server.api", "from ..errors import NotFound", id="relative-up"),
        pytest.param("notary.net.http.site", "from twisted.internet import reactor", id="reactor"),
        pytest.param("notary.net.http.site", "import twisted.internet.reactor as r", id="reactor-module"),
        pytest.param("notary.net.http.site", "from twisted.internet.reactor import callLater", id="reactor-method"),
        pytest.param(
            "notary.net.http.site", "class A:\n    from twisted.internet import reactor", id="reactor-in-class"
        ),
        pytest.param("notary.net.http.site", "if x:\n    from twisted.internet import reactor", id="reactor-in-if"),
        pytest.param("twisted.plugins.notary_plugins", "from notary.server import tap", id="plugin"),
    ],
)
def test_a_violation_is_caught(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        pytest.param("notary.server.tap", "from notary.storage.open import open_store", id="tap-storage"),
        pytest.param("notary.server.tap", "from notary.server import api\nimport notary.config", id="tap-server"),
        pytest.param("notary.server.tap", "def f():\n    from twisted.internet import reactor", id="reactor-inside"),
        pytest.param("notary.server.tap", "from notary import __version__, config", id="version"),
        pytest.param("notary.storage.open", "from notary.storage import Update", id="own-package"),
        pytest.param("notary.server.repository", "from notary.tuf import publish", id="server-tuf"),
        pytest.param(
            "notary.net.tls.contexts", "from notary.errors import ConfigError\nimport twisted", id="net-errors"
        ),
        pytest.param("notary.tuf.public", "import notaryservice.x, cryptography.x509", id="third-party"),
    ],
)
def test_what_is_allowed_is_not_caught(module: str, source: str) -> None:
    assert violations(module, source) == []


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_what_claims_to_be_pure_imports_no_twisted(path: Path) -> None:
    """Not even its types: a Deferred or an address of Twisted's in a signature is a tie to Twisted."""
    source = read(path)
    if claims_to_be_pure(ast.get_docstring(ast.parse(source)) or ""):
        assert [name for name, _ in imports(source) if name.split(".")[0] == "twisted"] == [], "mend the docstring"


def test_a_claim_to_be_pure_is_read_in_its_sentence_only() -> None:
    assert claims_to_be_pure("Frames.\n\nRules of this module: pure; fed in pieces.")
    assert claims_to_be_pure("Keys.\n\nRules of this module: pure but for the randomness of new keys.")
    assert not claims_to_be_pure("Use cases.\n\nRules of this module: knows the ports and the pure core.")


def test_a_module_outside_the_layers_is_caught() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"notary\.helpers is in no layer"):
        violations("notary.helpers", "")


def test_certificates_are_read_in_one_place() -> None:
    """Only notary/certs.py reads certificates; beside it, OpenSSL handles them, and nothing asks it for their parts."""
    others = re.compile(
        r"cryptography(\.| import )x509|\b(to|from|as)_cryptography\b|service_identity\.(cryptography|pyopenssl)\b"
        r"|\.get_(subject|issuer|pubkey|serial_number|extension)\("
    )
    assert [name_of(path) for path in python_files("notary") if others.search(read(path))] == []


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_every_module_says_its_rules(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(read(path)))
    assert docstring, f"{name_of(path)} opens with no docstring"


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_no_file_is_too_long(path: Path) -> None:
    assert len(read(path).splitlines()) <= 700, f"{name_of(path)}: is it still one thing?"


def test_the_version_is_the_same_everywhere() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|(a|b|rc)\d+)?", notary.__version__)
    assert importlib.metadata.version("notary-service") == notary.__version__, "stale install: run `make test` again"
    changes = read(ROOT / "CHANGELOG.md")
    headings = re.findall(r"^## \[?([^]\s]+)", changes, re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert notary.__version__ in changes


def test_no_path_of_somebodys_machine() -> None:
    machine = re.compile(r"(?<![\w.:}\]*-])/(?:home|Users|root|work|workspace)/\w")
    assert machine.search("see " + "/home" + "/me/notes")
    found = [
        f"{name_of(path)}: {line.strip()}"
        for path in text_files()
        for line in path.read_text(errors="replace").splitlines()
        if machine.search(line)
    ]
    assert found == []


def anchors(markdown: str) -> set[str]:
    """The anchors that a forge makes of the headings of a page."""
    headings = re.findall(r"^#+ +(.+?)\s*$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_in_the_documentation_lead_somewhere() -> None:
    broken = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)\s]+)\)", read(page)):
            target, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:", link):
                continue
            path = page.parent / target if target else page
            if not path.exists() or (anchor and anchor not in anchors(read(path))):
                broken.append(f"{name_of(page)}: {link}")
    assert broken == []


def test_the_session_in_the_readme_is_the_one_that_make_up_prints() -> None:
    assert f"```sh\n{read(ROOT / 'etc/session.sh')}```\n" in read(ROOT / "README.md")


RIDDLES = re.compile(r"\b(whoever|whatever|whom|who comes)\b", re.IGNORECASE)
"""Words that leave a reader to find out who or what is meant: CONTRIBUTING.md has the rule."""


def riddles() -> list[str]:
    """The lines with such words."""
    inside = [path for folder in ("notary", "docs", "changelog.d") for path in (ROOT / folder).rglob("*")]
    found = []
    for path in sorted([*inside, *ROOT.glob("*.md")]):
        if path.suffix not in {".py", ".sql", ".proto", ".md", ".yaml", ".dot"} or path == ROOT / "CONTRIBUTING.md":
            continue
        for number, line in enumerate(read(path).splitlines(), start=1):
            if RIDDLES.search(line):
                found.append(f"{name_of(path)}:{number}: {line.strip()}")
    return found


def test_no_sentence_is_a_riddle() -> None:
    assert RIDDLES.search("Whoever reads this finds out")
    assert riddles() == [], "name the subject: an operator, a client, every error"


def test_sections_that_the_code_refers_to_exist() -> None:
    headings = re.findall(r"^## (\d+)\. ", read(ROOT / "docs/protocol.md"), re.MULTILINE)
    assert headings == [str(number) for number in range(1, 10)]
    reference = re.compile(r"docs/protocol\.md,?\s+sections?\s+(\d+)")
    found = {number for path in ALL for number in reference.findall(read(path))}
    assert found
    assert found <= set(headings)


def test_no_import_leads_in_a_circle() -> None:
    """Imports for types alone count too: a circle is a circle to a reader."""
    modules = {module_name(path): path for path in OURS}
    leads_to: dict[str, set[str]] = {}
    for module, path in modules.items():
        leads_to[module] = set()
        for name, _ in imports(read(path)):
            owner = name
            while owner not in modules and "." in owner:
                owner = owner.rpartition(".")[0]
            if owner in modules and owner not in {module, "notary"}:
                leads_to[module].add(owner)

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        waiting = [start]
        while waiting:
            for each in leads_to[waiting.pop()] - found:
                found.add(each)
                waiting.append(each)
        return found

    assert [module for module in modules if module in reached(module)] == []


PROTOCOLS = ("http", "grpc", "tls")
"""Packages inside ``notary.net`` that do not import each other, but for ``ACROSS``."""

ACROSS = {("notary.net.grpc.client", "notary.net.tls.handshake")}


def crossings(module: str, source: str) -> list[str]:
    """The imports of a module in one package of PROTOCOLS that lead to another one, except those in ACROSS."""
    parts = module.split(".")
    if parts[:2] != ["notary", "net"] or len(parts) <= 2 or parts[2] not in PROTOCOLS:
        return []
    others = tuple(f"notary.net.{each}" for each in PROTOCOLS if each != parts[2])
    return [
        f"{module} imports {name}"
        for name, _ in imports(source)
        if any(f"{name}.".startswith(f"{other}.") for other in others)
        and not any(module == source_module and name.startswith(f"{target}.") for source_module, target in ACROSS)
    ]


@pytest.mark.parametrize("path", python_files("notary/net"), ids=name_of)
def test_protocols_do_not_import_each_other(path: Path) -> None:
    assert crossings(module_name(path), read(path)) == []


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        pytest.param("notary.net.grpc.server", "from notary.net.tls.verdicts import Cause", 1, id="grpc-tls"),
        pytest.param("notary.net.grpc.server", "from notary.net import tls", 1, id="grpc-tls-from-package"),
        pytest.param("notary.net.grpc.server", "from notary.net.tls.handshake import Handshake", 1, id="other-module"),
        pytest.param("notary.net.grpc.client", "from notary.net.tls.handshake import Handshake", 0, id="allowed"),
        pytest.param("notary.net.grpc.client", "import notary.net.tls.contexts", 1, id="client-contexts"),
        pytest.param("notary.net.http.site", "import notary.net.grpc", 1, id="http-grpc"),
        pytest.param("notary.net.tls.transport", "from notary.net.tcp import PlainServer", 0, id="beside"),
        pytest.param("notary.net.listen", "from notary.net.tls.peers import is_address", 0, id="outside"),
    ],
)
def test_an_import_across_protocols_is_caught(module: str, source: str, found: int) -> None:
    assert len(crossings(module, source)) == found


def test_net_names_no_key_of_a_configuration() -> None:
    """What net says of settings is in the words that its callers give it (notary.net.tls.wording)."""
    known = {path for config in (ServerConfig, SignerConfig) for path, _, _ in keys(config) if "." in path}
    named = re.compile("|".join(rf"\b{re.escape(path)}\b" for path in sorted(known)))
    assert named.search("trust_service.tls_client_cert")
    found = [
        f"{name_of(path)}: {key}"
        for path in python_files("notary/net")
        for node in ast.walk(ast.parse(read(path)))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for key in named.findall(node.value)
    ]
    assert found == []
