"""What kind of database a database is, and what its settings promise: the records of a survey.

Rules of this module: pure. The questions are those of each backend (``survey`` in its Dialect), and need no right of
their own. A fact says what was found; a risk is a fact by which something acknowledged may be lost, or something stale
be served.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Ask: TypeAlias = Callable[[str], Sequence[Sequence[Any]]]
"""Runs a query; returns every row."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One finding: ``subject`` and ``value`` say what was found, ``promise`` in one sentence what follows from it."""

    subject: str
    value: str
    promise: str
    risk: bool = False


def risks(facts: Sequence[Fact]) -> str:
    """Return one line about the facts that are risks, "" if there are none."""
    found = [f"{fact.subject} is {fact.value} ({fact.promise})" for fact in facts if fact.risk]
    return "; ".join(found)


def setting(
    values: Mapping[str, str], name: str, promises: Mapping[str, str], *, risky: str, safe: str = ""
) -> Sequence[Fact]:
    """Return the fact about a setting, none if the server has no such setting.

    ``promises`` has a sentence for some values, which are no risk; for any other value it is ``risky``. With ``safe``,
    every other value is no risk, and the sentence is ``safe``.
    """
    value = values.get(name)
    if value is None:
        return []
    if value in promises:
        return [Fact(name, value, promises[value])]
    return [Fact(name, value, safe or risky, risk=not safe)]
