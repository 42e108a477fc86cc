"""What all tests of the core share."""

from __future__ import annotations

import pytest

from notary.tuf import public


@pytest.fixture(scope="session", autouse=True)
def nothing_is_remembered() -> None:
    """Begin without loaded keys: ``make mutate`` runs the tests of a change in a fork of a process that has run all."""
    public._remembered.cache_clear()
