"""The page for a person who opens the server in a browser: what this is, and where to read on.

Rules of this module: pure. The page names no collection, asks for nothing from elsewhere, and runs no script. Programs
never get the page: a client gets it only if the client says that it takes HTML.
"""

from __future__ import annotations

from html import escape
from typing import Final

from notary import __version__
from notary.net.http.site import Response

_HTML: Final = "text/html"

_LINKS: Final = (
    ("/_notary_server/health", "what fails, as the health checks of the reference say it; <code>{}</code> is good"),
    ("/readyz", "whether this server takes requests, and whether it can publish"),
    ("/livez", "whether this process runs"),
    ("/metrics", "figures for Prometheus"),
)

_HEADERS: Final = (
    ("Content-Type", "text/html; charset=utf-8"),
    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    ("X-Content-Type-Options", "nosniff"),
    ("Cache-Control", "no-store"),
)

_STYLE: Final = (
    ":root{color-scheme:light dark}body{font:1rem/1.5 system-ui,sans-serif;max-width:44rem;margin:2rem auto;"
    "padding:0 1rem}dt{margin-top:.5rem}"
)


def wants_html(accept: str) -> bool:
    """Return whether an Accept field names HTML itself, as browsers do. ``*/*`` does not count: programs send it."""
    for each in accept.split(","):
        kind, *parameters = (part.strip().lower() for part in each.split(";"))
        if kind == _HTML:
            return not any(part.startswith("q=") and not part[2:].strip("0.") for part in parameters)
    return False


def _page(version: str) -> bytes:
    links = "".join(f'<dt><a href="{path}">{path}</a></dt><dd>{meaning}</dd>' for path, meaning in _LINKS)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Notary server</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>Notary server</h1>"
        f"<p>This is a server of the Notary v1 protocol, notary-service {escape(version)}. The server keeps signed "
        f"lists of what collections hold (The Update Framework), for clients such as Docker with content trust. "
        f"People seldom need a browser here: <code>notary -s ADDRESS list GUN</code> shows what a collection holds.</p>"
        f"<h2>State</h2><dl>{links}</dl>"
        f"<h2>Documentation</h2>"
        f"<p>For operators: the folder <code>docs</code> of the source, and <code>man notary-server</code>. For "
        f'publishers: the client\'s own, at <a href="https://github.com/notaryproject/notary" rel="noreferrer">'
        f"github.com/notaryproject/notary</a>.</p>"
        f"</body></html>\n"
    ).encode()


PAGE: Final = Response(200, _page(__version__), _HEADERS)
"""The page, which is the same for everyone."""
