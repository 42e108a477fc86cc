"""The site: `make docs` builds it with Sphinx from the Markdown pages of this directory.

docs/index.md is the one list of pages. Its headings and the links below them become the navigation; a page that it does
not name yet is found under "More", a decision under the last heading, so that no page is ever lost.
"""

import re
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

project = "notary-service"
copyright = "The notary-service developers"  # noqa: A001 - the name that Sphinx reads
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["diagrams"]
myst_heading_anchors = 4
highlight_language = "text"  # of a block that names no language; a test demands one of each
html_theme = "furo"
release = version_of(project)
html_title = f"{project} {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["copy.js", "tables.js"]
html_copy_source = False
html_show_sphinx = False
html_extra_path = ["openapi.yaml"]
suppress_warnings = ["misc.highlighting_failure"]  # psql's \\connect among SQL


def navigation(index: str) -> str:
    """The toctrees of the site, as MyST has them, from the headings and links of docs/index.md."""
    left = {str(path.relative_to(HERE))[:-3] for path in HERE.rglob("*.md")} - {"index"}
    sections: dict[str, list[str]] = {}
    caption = ""
    for heading, page in re.findall(r"^## (.+)$|\]\(([\w/.-]+)\.md\)", index, re.MULTILINE):
        if heading:
            caption = heading
            sections[caption] = []
        elif caption and page in left:
            left.remove(page)
            sections[caption].append(page)
    sections[caption] += sorted(page for page in left if page.startswith("adr/"))
    sections["More"] = sorted(page for page in left if not page.startswith("adr/"))
    return "".join(
        "\n```{toctree}\n:hidden:\n:caption: " + "\n".join([caption, "", *pages, "```", ""])
        for caption, pages in sections.items()
        if pages
    )


def on_source_read(_app: Any, name: str, source: list[str]) -> None:
    """Give the first page its navigation; on a forge its tables do that."""
    if name == root_doc:
        source[0] += navigation(source[0])
    outside = re.escape("../" * (name.count("/") + 1))  # a link on a forge only
    source[0] = re.sub(rf"\[([^]]+)\]\({outside}[^)]+\)", r"\1", source[0])


def setup(app: Any) -> None:
    """Be an extension of Sphinx."""
    app.connect("source-read", on_source_read)
