"""Whether a process lives, and whether it can serve: ``/livez`` and ``/readyz``.

Rules of this module: a process that answers at all is alive, even if a service behind it fails, so that nobody restarts
it for what a restart does not mend. It is ready when requests should be sent to it. The body says the rest, in JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from notary.net.http.call import Response

_JSON: Final = (("Content-Type", "application/json; charset=utf-8"), ("Cache-Control", "no-store"))

ALIVE: Final = Response(200, b'{"status": "alive"}', _JSON)
"""The answer of ``/livez``."""

Status = Literal["starting", "ok", "degraded", "failing", "stopping"]


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether requests should come (``ready``), and what to say of it; ``facts`` are further members of the body."""

    ready: bool
    status: Status
    facts: Mapping[str, object] = field(default_factory=dict)

    def response(self) -> Response:
        """The answer of ``/readyz``: 200, or 503."""
        return Response(200 if self.ready else 503, json.dumps({"status": self.status, **self.facts}).encode(), _JSON)


STARTING: Final = Readiness(ready=False, status="starting")
