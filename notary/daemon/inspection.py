"""What lets an operator look into a running daemon, put together once for both daemons.

Rules of this module: wiring only. It opens before all else, so that a daemon that waits for its database can be looked
at, and closes last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

from notary.daemon.workers.worker import Worker
from notary.net.http.call import Response
from notary.net.listen import naming
from notary.observe.debug import DebugServer, Page
from notary.observe.expiry import Certificates
from notary.observe.lag import Lag
from notary.observe.manhole import Manhole
from notary.observe.metrics import DaemonMetrics
from notary.observe.readiness import ALIVE
from notary.work.lifecycle import Assembly
from notary.work.reactor import Reactor


class Address(Protocol):
    """Where to listen."""

    @property
    def host(self) -> str:
        """A name or an IP address."""

    @property
    def port(self) -> int:
        """A port; 0 means any free one."""


class ManholeSection(Protocol):
    """The section ``manhole`` of a configuration; ``port`` is 0 if there is none."""

    @property
    def port(self) -> int:
        """Port on 127.0.0.1; 0 disables the manhole."""

    @property
    def authorized_keys_file(self) -> Path | None:
        """Public keys of the operators that may log in."""

    @property
    def host_key_file(self) -> Path | None:
        """SSH host key; None generates one at each start."""


def make_manhole(reactor: Reactor, section: ManholeSection, service: object) -> Manhole | None:
    """The manhole that a configuration asks for; its prompt knows ``service`` and ``reactor``. Raises ConfigError."""
    if not section.port or section.authorized_keys_file is None:
        return None
    names = {"service": service, "reactor": reactor}
    return Manhole(reactor, section.port, section.authorized_keys_file, section.host_key_file, names)


async def open_inspection(
    assembly: Assembly,
    figures: DaemonMetrics,
    debug: Address | None,
    manhole: Manhole | None,
    certificates: Mapping[str, Path | None],
    ready: Page,
    worker: Worker | None = None,
) -> None:
    """Measure what both daemons measure, and open the debug server and the manhole if there are to be any.

    ``certificates`` are the files of certificates by the keys that configure them; ``ready`` answers ``/readyz``. A
    ``worker`` opens no port: its parent asks for the pages. Fails with CannotListenError.
    """
    await assembly.run(Lag(assembly.reactor, figures.lag.observe))
    expiries = Certificates(certificates, assembly.reactor, assembly.in_thread)
    await assembly.run(expiries)
    figures.gauge(
        "certificate_days",
        "Days until a certificate in use expires; negative if it has",
        expiries.days,
        ("key", "subject", "serial"),
        across_workers="min",
    )
    server = None
    if debug is not None:
        pages: Mapping[str, Page] = {"/metrics": metrics_page(figures), "/livez": lambda: ALIVE, "/readyz": ready}
        host = debug.host if worker is None else None
        server = DebugServer(assembly.reactor, host, debug.port, pages, figures.counters)
        with naming("debug"):
            await assembly.run(server)
    if worker is not None:
        worker.answer_parent(figures, ready, server)
        assembly.at_end(partial(worker.send_final_metrics, figures))
    if manhole is not None:
        with naming("manhole.port"):
            await assembly.run(manhole)


def metrics_page(figures: DaemonMetrics) -> Callable[[], Response]:
    """Return the page that answers ``/metrics``."""

    def page() -> Response:
        content_type, body = figures.render()
        return Response(200, body, (("Content-Type", content_type),))

    return page
