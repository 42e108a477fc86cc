"""notary.work.threads: to be described."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred

from notary.errors import NotaryError


class _Refusal:
    """That work failed as it may: not an exception in flight, whose frames would hold what the work had in hand.

    Otherwise the body of a refused upload would stay until the garbage collection that comes by some day, because the
    frames and the Failure that the thread pool makes refer to each other.
    """

    def __init__(self, error: NotaryError) -> None:
        self.error = error
        inner: BaseException | None = error
        while inner is not None:
            inner.__traceback__ = None
            inner = inner.__cause__ or inner.__context__


T = TypeVar("T")


def attempt(once: list[Callable[[], T]]) -> T | _Refusal:
    try:
        return once.pop()()
    except NotaryError as error:
        return _Refusal(error)


def outcome(result: T | _Refusal) -> T:
    if isinstance(result, _Refusal):
        raise result.error
    return result


class InThread(Protocol):
    """Runs a function in a thread."""

    def __call__(self, work: Callable[[], Any], /) -> Deferred[Any]:
        """The Deferred fires on the reactor's thread."""
