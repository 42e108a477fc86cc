"""Draw docs/pictures/ from a real run: a first session in a terminal, and panels of the dashboard: ``make pictures``.

Rules of this module: nothing is posed. The session is etc/session.sh, typed line by line into a shell beside what
``make up`` starts, and the picture has what the shell printed. The panels are those of etc/grafana/notary.json, drawn
here and not by Grafana, with what Prometheus answered to their expressions; only the window of their rates is shorter,
as the run is. Both pictures load nothing, and bring their own background for light and dark pages.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import signal
import ssl
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from html import escape
from pathlib import Path
from typing import Any, Final, NamedTuple

ROOT: Final = Path(__file__).parent.parent
PICTURES: Final = ROOT / "docs/pictures"
URL: Final = "https://localhost:4443"
CA: Final = ROOT / "fixtures/root-ca.crt"
PROMETHEUS: Final = "127.0.0.1:19090"
SIGNER_DEBUG: Final = "localhost:8081"

COLUMNS: Final = 100
"""Characters of a line of the terminal."""
LOAD_SECONDS: Final = 150.0
RATE_WINDOW: Final = "[15s]"
STEP_SECONDS: Final = 3
PANELS: Final = (
    "Health",
    "Requests",
    "Time to answer, 99 %",
    "Publishes",
    "Signer, as the server sees it, 99 %",
    "Signatures",
    "Database, 99 %",
    "Event loop lag, 99 %",
    "Memory",
)
"""The panels that are drawn, by their titles; of several with one title, the first."""

_COLOURS: Final = ("#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#fade2a")
_SANS: Final = "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
_MONO: Final = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


# -- the daemons, Prometheus and their clients ------------------------------------------------------------------------


@contextmanager
def running(*command: str, log: Path, environment: Mapping[str, str] | None = None) -> Iterator[None]:
    """Run a program in the background until the context ends."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def get(path: str) -> bytes:
    """What the server answers to a GET."""
    with urllib.request.urlopen(f"{URL}{path}", context=ssl.create_default_context(cafile=CA), timeout=10) as answer:
        body: bytes = answer.read()
    return body


def wait_ready() -> None:
    """Wait until the server can read and publish. Raises SystemExit if that takes a minute."""
    for _ in range(120):
        with suppress(OSError):
            if json.loads(get("/readyz"))["status"] == "ok":
                return
        time.sleep(0.5)
    raise SystemExit("error: the pair did not get ready; its log is var/pictures.log")


def typed(script: str, folder: Path) -> list[tuple[str, str]]:
    """Each line of a script, and what a shell prints when it is typed there.

    ``folder`` is the shell's, with links to what the script reads; so the client has no keys of earlier sessions.
    """
    for name in ("fixtures", "README.md"):
        (folder / name).symlink_to(ROOT / name)
    shell = subprocess.Popen(
        ("bash", "--norc"),
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert shell.stdin is not None
    assert shell.stdout is not None
    found = []
    for line in filter(None, script.splitlines()):
        shell.stdin.write(f"{line}\necho '<end>'\n")
        shell.stdin.flush()
        found.append((line, "".join(itertools.takewhile(lambda said: said != "<end>\n", shell.stdout))))
    shell.stdin.close()
    shell.wait()
    return found


def load(folder: Path) -> None:
    """Publish and read for a while, sometimes more and sometimes less."""
    passphrases = {f"NOTARY_{role}_PASSPHRASE": "correct-horse" for role in ("ROOT", "TARGETS", "SNAPSHOT")}
    gun = f"example.com/team/app-{time.time_ns()}"

    def notary(*arguments: str) -> None:
        subprocess.run(
            ("notary", "-s", URL, "--tlscacert", str(CA), "-d", str(folder), *arguments),
            env={**os.environ, **passphrases},
            stdout=subprocess.DEVNULL,
            check=True,
        )

    notary("init", gun, "-p")
    notary("key", "rotate", gun, "snapshot", "-r")
    ended = threading.Event()
    begun = time.monotonic()

    def publish() -> None:
        for number in itertools.count():
            notary("add", gun, f"v{number % 7}", "README.md", "-p")
            if ended.wait(0.2 + abs(math.sin((time.monotonic() - begun) / 17))):
                return

    def read() -> None:
        while not ended.wait(0.02 + 0.05 * math.sin((time.monotonic() - begun) / 11) ** 2):
            role = ("timestamp", "snapshot", "targets", "root")[time.time_ns() // 1000 % 4]
            get(f"/v2/{gun}/_trust/tuf/{role}.json")

    threads = [threading.Thread(target=target) for target in (publish, read, read)]
    for thread in threads:
        thread.start()
    ended.wait(LOAD_SECONDS)
    ended.set()
    for thread in threads:
        thread.join()


def prometheus_configuration(ca: Path, server: str, signer: str, rules: Path) -> str:
    """Return the sample of etc/prometheus/, for daemons at these addresses, and fifteen times as often."""
    text = (ROOT / "etc/prometheus/prometheus.yml").read_text()
    for old, new in (
        ("scrape_interval: 15s", "scrape_interval: 1s"),
        ("evaluation_interval: 15s", "evaluation_interval: 1s"),
        ("/etc/notary/root-ca.crt", str(ca)),
        ("notary-server:4443", server),
        ("localhost:8081", signer),
        ("- notary.rules.yml", f"- {rules}"),
    ):
        assert old in text, old
        text = text.replace(old, new)
    return text


# -- the session ------------------------------------------------------------------------------------------------------


def terminal(session: Sequence[tuple[str, str]]) -> str:
    """An SVG of a session: commands after a prompt, and under each what it printed."""
    shown: list[tuple[str, str]] = []
    for command, output in session:
        first, *more = textwrap.wrap(command, COLUMNS - 4, subsequent_indent="    ", break_on_hyphens=False)
        shown += [("$ ", first), *(("  ", line) for line in more)]
        for line in output.splitlines():
            shown += [("", part) for part in textwrap.wrap(line, COLUMNS, drop_whitespace=False) or [""]]
    drawn = []
    for number, (prompt, line) in enumerate(shown):
        text = escape(line)
        if prompt:
            text = f'<tspan fill="#73bf69">{prompt}</tspan><tspan fill="#fff">{text}</tspan>'
        drawn.append(f'<text x="18" y="{56 + 18 * number}" xml:space="preserve">{text}</text>')
    lights = "".join(
        f'<circle cx="{22 + 18 * number}" cy="20" r="6" fill="{colour}"/>'
        for number, colour in enumerate(("#f2495c", "#f2cc0c", "#73bf69"))
    )
    body = f'{lights}<g font-family="{_MONO}" font-size="13" fill="#b8bfc9">{"".join(drawn)}</g>'
    return svg("A first signing session", 36 + round(7.83 * COLUMNS), 56 + 18 * len(shown), body)


# -- the dashboard ----------------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """One series of a panel: its name in the legend, and its points, seconds and value."""

    name: str
    points: list[tuple[float, float]]


def asked(expression: str, begin: float, end: float) -> list[dict[str, Any]]:
    """What Prometheus answers to an expression over a time."""
    expression = re.sub(r"\[\d+m\]", RATE_WINDOW, expression)
    query = urllib.parse.urlencode({"query": expression, "start": begin, "end": end, "step": STEP_SECONDS})
    with urllib.request.urlopen(f"http://{PROMETHEUS}/api/v1/query_range?{query}", timeout=30) as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return found


def lines_of(panel: Mapping[str, Any], begin: float, end: float) -> list[Line]:
    """The series of a panel of the dashboard, with the names that its legend has."""
    found = []
    for target in panel["targets"]:
        for series in asked(target["expr"], begin, end):
            labels = series["metric"]
            name = re.sub(r"\{\{(\w+)\}\}", lambda known: labels.get(known[1], ""), target["legendFormat"])  # noqa: B023
            points = [(when, float(value)) for when, value in series["values"] if math.isfinite(float(value))]
            if points:
                found.append(Line(name.strip(), points))
    return found


def amount(value: float, unit: str) -> str:
    """A value as an axis shows it."""
    if unit == "s":
        return f"{value * 1000:.3g} ms"
    if unit == "bytes":
        return f"{value / 1e6:.3g} MB"
    return f"{value:.3g}{' /s' if unit == 'reqps' else ''}"


def tick(least: float) -> float:
    """The smallest round number that is not below ``least``."""
    power = 10.0 ** math.floor(math.log10(least or 1))
    return next(round_one * power for round_one in (1, 2, 2.5, 5, 10) if round_one * power >= least)


def panel_drawn(title: str, unit: str, lines: Sequence[Line], begin: float, end: float) -> str:
    """A panel of 340 times 230 pixels: title, axes, lines and legend."""
    left, top, right, bottom = 62, 36, 326, 160
    step = tick(max([value for line in lines for _, value in line.points], default=1.0) / 4)
    most = 4 * step
    seconds = end - begin
    parts = [
        '<rect width="340" height="230" rx="3" fill="#181b1f" stroke="#2c3038"/>',
        f'<text x="12" y="22" font-size="13" fill="#e6e8ee" font-weight="600">{escape(title)}</text>',
    ]
    for part in range(5):
        y = bottom - part / 4 * (bottom - top)
        parts.append(f'<path d="M{left} {y:.1f}H{right}" stroke="#2c3038"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{amount(part * step, unit)}</text>')
    for minute in range(math.ceil(seconds / 60)):
        x = left + minute * 60 / seconds * (right - left)
        parts.append(f'<text x="{x:.0f}" y="{bottom + 15}" text-anchor="middle">{minute} min</text>')
    x, y = 12.0, 194
    for line, colour in zip(lines, itertools.cycle(_COLOURS), strict=False):
        path = "L".join(
            f"{left + (when - begin) / seconds * (right - left):.0f} {bottom - value / most * (bottom - top):.1f}"
            for when, value in line.points
        )
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        length = 22 + 5.6 * len(line.name)
        if x > 12 and x + length > 334:  # noqa: PLR2004 - the margins of the panel
            x, y = 12.0, y + 15
        parts.append(f'<path d="M{x:.0f} {y - 4}h10" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{x + 14:.0f}" y="{y}">{escape(line.name)}</text>')
        x += length
    return "".join(parts)


def dashboard(begin: float, end: float) -> str:
    """An SVG of :data:`PANELS`, three in a row."""
    known: dict[str, Mapping[str, Any]] = {}
    for panel in json.loads((ROOT / "etc/grafana/notary.json").read_text())["panels"]:
        known.setdefault(panel["title"], panel)
    parts = []
    for number, title in enumerate(PANELS):
        unit = known[title]["fieldConfig"]["defaults"]["unit"]
        drawn = panel_drawn(title, unit, lines_of(known[title], begin, end), begin, end)
        parts.append(f'<g transform="translate({10 + number % 3 * 350} {10 + number // 3 * 240})">{drawn}</g>')
    body = f'<g font-family="{_SANS}" font-size="10" fill="#9aa1ad">{"".join(parts)}</g>'
    return svg("Panels of the dashboard", 1060, 10 + 240 * math.ceil(len(PANELS) / 3), body)


def svg(title: str, width: int, height: int, body: str) -> str:
    """A picture on a dark ground of its own."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">\n'
        f'<title>{title}</title><rect width="{width}" height="{height}" rx="8" fill="#111217"/>\n'
        + body.replace("</text>", "</text>\n")
        + "</svg>\n"
    )


def main() -> None:
    """Run the pair, a session, Prometheus and a load; write both pictures."""
    PICTURES.mkdir(exist_ok=True)
    (ROOT / "var").mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as name,
        running("etc/up.sh", log=ROOT / "var/pictures.log", environment={"NOTARY_SIGNER_DEBUG": SIGNER_DEBUG}),
    ):
        folder = Path(name)
        wait_ready()
        session = typed((ROOT / "etc/session.sh").read_text(), folder)
        (PICTURES / "session.svg").write_text(terminal(session))
        rules = ROOT / "etc/prometheus/notary.rules.yml"
        configuration = prometheus_configuration(CA, URL.removeprefix("https://"), SIGNER_DEBUG, rules)
        (folder / "prometheus.yml").write_text(configuration)
        command = (
            *("prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"),
            f"--web.listen-address={PROMETHEUS}",
        )
        with running(*command, log=ROOT / "var/prometheus.log"):
            begin = time.time()
            load(folder / "client")
            (PICTURES / "dashboard.svg").write_text(dashboard(begin + 20, time.time()))
    sys.stderr.write(f"drawn: {', '.join(path.name for path in sorted(PICTURES.glob('*.svg')))}\n")


if __name__ == "__main__":
    main()
