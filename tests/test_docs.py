"""The documentation as a site, its diagrams, the manual pages, and completion in a shell: built and used for real."""

from __future__ import annotations

import hashlib
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from etc import pictures
from etc.manual import STATUSES, pages
from notary.admin.command import Status
from notary.config import ServerConfig, SignerConfig, table
from notary.daemon.reload import LOOK_SECONDS
from notary.observe import expiry
from notary.observe.watchdog import HELD_SECONDS
from notary.server import health
from notary.server.auth.token import LEEWAY
from notary.server.signing.remote import SIGNER_SECONDS
from tests.support.watched import DASHBOARD
from tests.test_layout import LAYERS, ROOT

DOCS = ROOT / "docs"
BIN = Path(sys.executable).parent
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


# -- the site ---------------------------------------------------------------------------------------------------------


def build(source: Path, site: Path) -> tuple[int, str]:
    """Build the site as `make docs` does; the exit status and what was complained of."""
    options = re.findall(r"-m sphinx (.*) docs build/site", (ROOT / "Makefile").read_text())[0].split()
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, source, site],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


class Navigation(HTMLParser):
    """The pages that the navigation of a page of the site leads to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.pages: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "a" and given.get("class") == "reference internal" and "#" not in (target := str(given["href"])):
            self.pages.add(target)


def navigation_of(site: Path) -> set[str]:
    text = (site / "index.html").read_text()
    tree = text[text.index('class="sidebar-tree"') :]
    return Navigation(tree[: tree.index("</aside>")]).pages


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("site")
    status, output = build(DOCS, directory)
    assert (status, output) == (0, "")
    return directory


def test_the_navigation_leads_to_every_page(site: Path) -> None:
    assert navigation_of(site) == {page.removesuffix(".md") + ".html" for page in PAGES} - {"index.html"}


def test_the_site_has_the_pictures_and_the_description_of_the_api(site: Path) -> None:
    assert (site / "openapi.yaml").read_bytes() == (DOCS / "openapi.yaml").read_bytes()
    for picture in DOCS.glob("diagrams/*.svg"):
        assert (site / "_images" / picture.name).read_bytes() == picture.read_bytes()


def test_the_site_asks_nobody_else_for_anything(site: Path) -> None:
    loaded = re.compile(
        r"""<(?:script|img|iframe)[^>]+src="(?:https?:)?//|<link[^>]+rel="stylesheet"[^>]+href="(?:https?:)?//"""
    )
    assert [page.name for page in site.rglob("*.html") if loaded.search(page.read_text())] == []


class Article(HTMLParser):
    """What a reader sees of a page of the site, without its navigation.

    Attributes:
        languages: What each block of code is coloured as.
        links: The text of each link.
        prose: All text outside of code.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.languages: list[str] = []
        self.links: list[str] = []
        self.prose = ""
        self._open = {"a": 0, "code": 0, "pre": 0}
        start = text.index("<article")
        self.feed(text[start : text.index("</article>")])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self._open:
            self._open[tag] += 1
        if tag == "a":
            self.links.append("")
        for each in (dict(attrs).get("class") or "").split():
            if each.startswith("highlight-"):
                self.languages.append(each.removeprefix("highlight-"))

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            self._open[tag] -= 1

    def handle_data(self, data: str) -> None:
        if self._open["a"]:
            self.links[-1] += data
        if not self._open["code"] and not self._open["pre"]:
            self.prose += data


@pytest.fixture(scope="module")
def articles(site: Path) -> dict[str, Article]:
    """Each page of the site, by the name of its source."""
    return {page: Article((site / page).with_suffix(".html").read_text()) for page in PAGES}


def test_every_block_of_code_names_its_language(articles: dict[str, Article]) -> None:
    known = {"console", "ini", "json", "nginx", "python", "sh", "sql", "text", "yaml"}
    found = {page: set(article.languages) for page, article in articles.items()}
    assert {page: more for page, languages in found.items() if (more := languages - known)} == {}
    assert set().union(*found.values()) == known
    assert sum(len(article.languages) for article in articles.values()) >= 90


def title(page: str) -> str:
    return TEXTS[page].splitlines()[0].removeprefix("# ").replace("`", "") if page in TEXTS else ""


def test_links_have_the_titles_of_pages_and_not_the_names_of_files(articles: dict[str, Article]) -> None:
    named = {(page, link) for page, article in articles.items() for link in article.links if link.endswith(".md")}
    assert named == set()


def test_the_index_says_what_this_is_and_names_each_page_by_its_title(articles: dict[str, Article]) -> None:
    start = TEXTS["index.md"].partition("\n## ")[0]
    assert all(f"`{name}`" in start for name in ("notary-server", "notary-signer", "notary-admin"))
    listed = dict(re.findall(r"^\| \[(.+?)\]\(([\w-]+\.md)\) \|", TEXTS["index.md"], re.MULTILINE))
    assert {page: text.replace("`", "") for text, page in listed.items()} == {
        page: title(page) for page in TEXTS if page not in ("index.md", "README.md")
    }
    assert set(listed.keys()) <= set(articles["index.md"].links) | {"`storage.db_url`"}


def test_every_page_has_the_style_by_which_tables_fit_and_the_button_to_copy(site: Path) -> None:
    """Measured in Chromium at 390, 800, 1,010 and 1,280 pixels. Here: the rules are there, and each page has them."""
    style = (DOCS / "static/site.css").read_text()
    assert (site / "_static/site.css").read_text() == style
    for words in ("overflow-wrap: anywhere", "max-width: 100%", "@media (max-width: 46em)"):
        assert words in style
    for name in ("_static/site.css", "_static/copy.js", "_static/tables.js"):
        assert [page for page in PAGES if name not in (site / page).with_suffix(".html").read_text()] == []


def test_no_row_of_a_table_is_shown_raw(articles: dict[str, Article]) -> None:
    """A blank line in a table ends it: what follows is a paragraph with bars."""
    assert {
        page for page, article in articles.items() if re.search(r"\|.*\||^\||\|$", article.prose, re.MULTILINE)
    } == set()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        pytest.param("[x](nowhere.md)", "nowhere.md", id="page"),
        pytest.param("[x](protocol.md#nothing)", "nothing", id="anchor"),
        pytest.param("![x](diagrams/nothing.svg)", "nothing.svg", id="picture"),
    ],
)
def test_a_broken_link_fails_the_build(tmp_path: Path, text: str, complaint: str) -> None:
    source = tmp_path / "docs"
    source.mkdir()
    for name in ("conf.py", "openapi.yaml"):
        shutil.copy(DOCS / name, source)
    shutil.copytree(DOCS / "static", source / "static")
    (source / "index.md").write_text(f"# Index\n\n## Part\n\n- [Protocol](protocol.md)\n\n{text}\n")
    (source / "protocol.md").write_text("# Protocol\n\n## Something\n")
    status, output = build(source, tmp_path / "site")
    assert status == 1
    assert complaint in output


def test_a_page_that_the_index_does_not_name_yet_is_in_the_navigation(tmp_path: Path) -> None:
    source = tmp_path / "docs"
    (source / "adr").mkdir(parents=True)
    for name in ("conf.py", "openapi.yaml"):
        shutil.copy(DOCS / name, source)
    shutil.copytree(DOCS / "static", source / "static")
    (source / "index.md").write_text("# Index\n\n## Part\n\n- [One](one.md)\n")
    for name in ("one", "late", "adr/0001"):
        (source / f"{name}.md").write_text(f"# {name}\n")
    assert build(source, tmp_path / "site") == (0, "")
    assert navigation_of(tmp_path / "site") == {"one.html", "late.html", "adr/0001.html"}


def test_the_index_has_the_decisions_in_order_by_their_own_titles() -> None:
    pages = sorted((DOCS / "adr").glob("*.md"))
    titles = [page.read_text().splitlines()[0].removeprefix("# ") for page in pages]
    listed = re.findall(r"^- \[(\d{4}: .+)\]\(adr/(.+)\)$", (DOCS / "index.md").read_text(), re.MULTILINE)
    assert listed == [(title, page.name) for title, page in zip(titles, pages, strict=True)]


def test_no_page_looks_a_process_up_by_its_command_line() -> None:
    """Such a search finds the shell, sudo and workers too: systemctl and pid files find the one."""
    sought = re.compile(r"\b(?:pgrep|pkill|killall)\b")
    texts = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")]
    assert [str(page) for page in texts if sought.search(page.read_text())] == []


# -- what several pages say -------------------------------------------------------------------------------------------

TEXTS = {page: (DOCS / page).read_text() for page in PAGES if "/" not in page} | {
    "README.md": (ROOT / "README.md").read_text()
}
NUMBERS = {"five": 5, "ten": 10, "twenty": 20, "thirty": 30, "sixty": 60}
SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}

FACTS = {
    "look at files": (LOOK_SECONDS, r"certificates and keys every (\w+) (second)s", 1),
    "read for metrics": (expiry.INTERVAL_SECONDS, r"expires, at most (a) (minute) old", 1),
    "checks": (health.INTERVAL_SECONDS, r"(?:its health|its signer|checks run) every (\w+) (second)s", 3),
    "signer": (
        SIGNER_SECONDS,
        r"(?:Publishing fails after|next check, and) (\w+)(?: (second)s| in which the signer)",
        2,
    ),
    "held loop": (HELD_SECONDS, r"(?:held for|holding the event loop \| after) (\w+) (second)s", 2),
    "leeway": (LEEWAY.total_seconds(), r"(\w+) (second)s of leeway", 2),
}
"""Seconds that the program has, what pages say of them (number and unit), and how many sentences that are at least."""


@pytest.mark.parametrize("fact", FACTS)
def test_pages_that_say_a_number_say_the_same(fact: str) -> None:
    seconds, said, least = FACTS[fact]
    found = [
        (page, (1 if number == "a" else NUMBERS.get(number) or int(number)) * SECONDS[unit or "second"])
        for page, text in TEXTS.items()
        for number, unit in re.findall(said, " ".join(text.split()))
    ]
    assert len(found) >= least
    assert [each for each in found if each[1] != seconds] == []


def test_defaults_of_keys_are_the_same_on_every_page() -> None:
    """After the name of a key: "(60 seconds)", "(400 MiB)", or the next cell of a table that begins with a number."""
    defaults: dict[str, set[object]] = {}
    for config in (ServerConfig, SignerConfig):
        for path, _, default in table.keys(config):
            defaults.setdefault(path, set()).add(default)
    said = r"`([a-z_]+\.[a-z_.]+)`(?: \((?:default:? )?| \| )([\d.,]+) ?(seconds|KiB|MiB|GiB)?[^.,\d]"
    units = {"": 1, "seconds": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    found = [
        (page, path, float(number.replace(",", "")) * units[unit])
        for page, text in TEXTS.items()
        for path, number, unit in re.findall(said, text)
        if path in defaults
    ]
    assert len(found) >= 5
    assert [each for each in found if each[2] not in defaults[each[1]]] == []


PLACES = {
    "when certificates are read": (
        r"[Rr]enewed (?:certificate|key|file)s? .*(?:restart|taken over)|renewing a|([Ff]ile|certificate)s are read",
        "operations.md#reload",
        "operations.md",
    ),
    "how a passphrase is changed": (
        r"[Cc]hange (?:to a new|the|a) passphrase|(?:give|change)[^.]*default_alias",
        "notary-admin.md#keys-reencrypt",
        "notary-admin.md",
    ),
}
"""What one page explains and all others link to: words by which a paragraph is known, the link, and that page."""


@pytest.mark.parametrize("place", PLACES)
def test_one_page_says_how_and_the_others_link_to_it(place: str) -> None:
    known, link, home = PLACES[place]
    assert link.partition("#")[2] in {heading.lower().replace(" ", "-") for heading in headings(TEXTS[home])}
    paragraphs = [
        (page, " ".join(each.split()))
        for page, text in TEXTS.items()
        if page != home
        for each in re.split(r"\n\n|\n(?=- |\d\. |\|)", text)
    ]
    concerned = [each for each in paragraphs if re.search(known, each[1])]
    assert len(concerned) >= 2
    assert [each for each in concerned if link not in each[1]] == []


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ (.+)$", text, re.MULTILINE)


def test_no_page_reads_the_tables_of_the_signer_by_hand() -> None:
    statements = re.compile(r"^(?!#).*\b(?:SELECT|UPDATE|DELETE|INSERT)\b.*\bprivate_keys\b", re.MULTILINE)
    blocks = {
        page: "".join(re.findall(r"^ *```.*?^ *```", text, re.MULTILINE | re.DOTALL)) for page, text in TEXTS.items()
    }
    assert [page for page, text in blocks.items() if statements.search(text) and "GRANT" not in text] == []


def test_the_table_of_tests_is_the_tree() -> None:
    named = set(
        re.findall(r"`tests/([\w./]+?)/?`", "\n".join(re.findall(r"^\|.*\|$", TEXTS["development.md"], re.MULTILINE)))
    )
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/*.py")}
    modules = {path.name for path in (ROOT / "tests").glob("test_*.py")}
    assert {each for each in named if "/" not in each} == folders | modules


def test_no_sample_counts_one_thing_in_the_plural() -> None:
    counted = re.compile(r"(?<![\d.,])1 (?:keys|files|collections|errors|notes|targets|problems)\b")
    assert [(page, found) for page, text in TEXTS.items() for found in counted.findall(text)] == []


# -- diagrams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", sorted(DOCS.glob("diagrams/*.dot")), ids=lambda path: path.stem)
def test_each_diagram_was_drawn_from_its_source_and_is_shown(source: Path) -> None:
    drawn = source.with_suffix(".svg").read_text().splitlines()[-1]
    assert drawn == f"<!-- {source.name} {hashlib.sha256(source.read_bytes()).hexdigest()} -->", "run `make diagrams`"
    assert any(f"](diagrams/{source.stem}.svg)" in page.read_text() for page in DOCS.glob("*.md"))


def drawn_layers() -> dict[str, set[str]]:
    """Each box of the diagram of layers, and all that a path of full arrows leads to from it."""
    text = (DOCS / "diagrams/layers.dot").read_text()
    arrows = re.findall(r'^ +"?([\w.]+)"? -> "?([\w.]+)"?(.*)$', text, re.MULTILINE)
    reached: dict[str, set[str]] = {}
    for one, other, _ in arrows:
        reached.setdefault(one, set())
        reached.setdefault(other, set())
    for one, other, style in arrows:
        if "dotted" not in style:
            reached[one].add(other)
    while True:
        more = {one: {far for near in others for far in reached[near]} - others for one, others in reached.items()}
        if not any(more.values()):
            return reached
        for one, others in more.items():
            reached[one] |= others


def test_the_diagram_of_layers_is_the_table_of_layers() -> None:
    def short(layer: str) -> str:
        return layer.removeprefix("twisted.").removeprefix("notary.")

    table = {short(layer): {short(each) for each in may} for layer, may in LAYERS.items() if layer != "notary"}
    assert drawn_layers() == table


def test_the_pure_part_of_the_diagram_is_what_never_imports_twisted() -> None:
    from tests.test_layout import WITHOUT_TWISTED

    text = (DOCS / "diagrams/layers.dot").read_text()
    inside = re.findall(r"\w+", re.findall(r"^ +(\w+(?:; \w+)*)$", text[: text.index("->")], re.MULTILINE)[-1])
    assert {f"notary.{each}" for each in inside} == WITHOUT_TWISTED - {"notary"}


# -- pictures of a run ------------------------------------------------------------------------------------------------


def words_in(picture: str) -> str:
    """The text of a picture, in one line."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", picture)).split())


def test_the_pictures_are_of_the_session_and_of_panels_that_there_are() -> None:
    session, dashboard = ((DOCS / f"pictures/{name}.svg").read_text() for name in ("session", "dashboard"))
    for line in filter(None, (ROOT / "etc/session.sh").read_text().splitlines()):
        assert " ".join(line.split()) in words_in(session), "run `make pictures`"
    assert "README.md is what was signed" in words_in(session).rpartition("&& echo")[2]
    titles = {panel["title"] for panel in DASHBOARD["panels"]}
    assert set(pictures.PANELS) <= titles
    assert all(title in words_in(dashboard) for title in pictures.PANELS), "run `make pictures`"


@pytest.mark.parametrize("name", ["session", "dashboard"])
def test_a_picture_is_small_loads_nothing_and_is_shown(name: str) -> None:
    picture = DOCS / f"pictures/{name}.svg"
    text = picture.read_text()
    assert len(text) < 100_000
    assert re.findall(r"https?://[\w.]+|url\(|href", text.replace("https://localhost", "")) == ["http://www.w3.org"]
    assert f"](docs/pictures/{name}.svg)" in TEXTS["README.md"]
    assert [page for page, text in TEXTS.items() if f"](pictures/{name}.svg)" in text]


# -- manual pages -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def manual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, as `make man` writes them."""
    directory = tmp_path_factory.mktemp("man")
    subprocess.run([sys.executable, "etc/manual.py", directory], cwd=ROOT, check=True, timeout=60)
    return directory


def shown(page: Path) -> str:
    """A page as a reader sees it, in one line."""
    done = subprocess.run(
        ["mandoc", "-Tutf8", "-Owidth=200", page], capture_output=True, text=True, check=True, timeout=30
    )
    return " ".join(re.sub(r".\x08", "", done.stdout).split())


@pytest.mark.parametrize("name", sorted(pages()))
def test_a_manual_page_has_no_fault(manual: Path, name: str) -> None:
    done = subprocess.run(
        ["mandoc", "-Tlint", "-Wwarning", manual / name], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)


@pytest.mark.parametrize("name", ["notary-server", "notary-signer"])
def test_the_page_of_a_daemon_has_its_flags_and_signals(manual: Path, name: str) -> None:
    text = shown(manual / f"{name}.8")
    printed = subprocess.run([BIN / name, "-help"], capture_output=True, text=True, check=True, timeout=30).stdout
    flags = set(re.findall(r"--(\w+)", printed))
    assert {"config", "debug", "bootstrap"} <= flags
    assert sorted(flag for flag in flags if f" -{flag}" not in text) == []
    for signal in ("SIGTERM", "SIGUSR1", "SIGUSR2"):
        assert signal in text


def test_the_page_of_notary_admin_has_every_command_with_its_help(manual: Path) -> None:
    text = shown(manual / "notary-admin.8")
    printed = subprocess.run([BIN / "notary-admin", "--help"], capture_output=True, text=True, check=True, timeout=30)
    names = re.findall(r"^  ([a-z-]+)  ", printed.stdout.partition("Commands:")[2], re.MULTILINE)
    assert "repos" in names
    for name in names:
        assert re.search(rf" {name} ", text), name
    for words in (
        "repos delete [OPTIONS] GUN",
        "--signer-config FILE",
        "restored backup of the metadata cannot be renewed",
    ):
        assert words in text
    assert text.count("--json Write lines of JSON") == 1, "what all commands have in common stands there once"


def test_the_page_of_notary_admin_knows_all_exit_statuses() -> None:
    assert list(STATUSES) == list(Status)


# -- completion -------------------------------------------------------------------------------------------------------


@pytest.fixture
def shell() -> Iterator[int]:
    """A terminal with an interactive bash on it that has done what docs/man-pages.md says; its file descriptor."""
    (line,) = re.findall(r"^(eval .*bash_source.*)$", (DOCS / "man-pages.md").read_text(), re.MULTILINE)
    environment = {
        "PATH": f"{BIN}:/usr/bin:/bin",
        "TERM": "dumb",
        "HOME": "/nonexistent",
        "PS1": "next> ",
        "LC_ALL": "C",
    }
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.execve("/bin/bash", ["bash", "--norc", "--noprofile", "-i"], environment)
    try:
        os.write(terminal, f"{line}; echo rea''dy\n".encode())
        read_until(terminal, "ready\r\nnext> ")
        yield terminal
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(terminal)


def read_until(terminal: int, wanted: str) -> str:
    """What the terminal shows, up to what is waited for."""
    shown_so_far, deadline = "", time.monotonic() + 30
    while wanted not in shown_so_far:
        ready, _, _ = select.select([terminal], [], [], max(0, deadline - time.monotonic()))
        assert ready, f"no {wanted!r} in {shown_so_far!r}"
        shown_so_far += os.read(terminal, 4096).decode()
    return shown_so_far


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        pytest.param("notary-admin rep", "notary-admin repos ", id="command"),
        pytest.param("notary-admin repos sh", "notary-admin repos show ", id="command-of-group"),
        pytest.param("notary-admin fsck --conf", "notary-admin fsck --config ", id="option"),
        pytest.param("notary-admin expiring --role sn", "notary-admin expiring --role snapshot ", id="choice"),
        pytest.param("notary-admin fsck --config pyproj", "notary-admin fsck --config pyproject.toml ", id="file"),
    ],
)
def test_bash_completes(shell: int, typed: str, completed: str) -> None:
    os.write(shell, f"{typed}\t".encode())
    read_until(shell, completed)
