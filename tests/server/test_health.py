"""The health of a server whose signers say more than the last check; by a fake clock."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from notary.errors import SigningFailed
from notary.server.health import DATABASE, SIGNER, Health
from notary.server.signing import SERVING


class Setup:
    """A running health service, its signers' states and the outcome of the signer's check."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.error = ""
        self.health = Health(
            {DATABASE: lambda: succeed(None), SIGNER: self.check},
            Clock(),
            lambda _name, _ok: None,
            signers=lambda: self.states,
        )
        self.health.startService()

    def check(self) -> Deferred[None]:
        return fail(SigningFailed(self.error)) if self.error else succeed(None)


@pytest.mark.parametrize(
    ("error", "states", "failure"),
    [
        pytest.param("", {}, None, id="no signers"),
        pytest.param("away", {}, "away", id="no signers and a failure"),
        pytest.param("", {"a": SERVING, "b": "b is away"}, None, id="one of two"),
        pytest.param("away", {"a": SERVING, "b": "b is away"}, None, id="one is back since the check"),
        pytest.param("", {"a": "a is away", "b": "b is away"}, "a is away; b is away", id="gone since the check"),
        pytest.param("away", {"a": "a is away"}, "away", id="both say so"),
    ],
)
def test_writes_follow_the_signers(error: str, states: dict[str, str], failure: str | None) -> None:
    setup = Setup()
    setup.health.stopService()
    setup.states, setup.error = states, error
    setup.health.startService()
    assert setup.health.failures().get(SIGNER) == failure
    readiness = setup.health.readiness()
    assert readiness.ready
    assert readiness.status == ("ok" if failure is None else "degraded")
    assert readiness.facts["writes"] is (failure is None)
    assert readiness.facts.get("signers", {}) == states
    setup.health.stopService()
