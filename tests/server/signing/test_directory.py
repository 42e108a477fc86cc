"""Where signers are: names with one, several and no addresses, names that change, and the resolver of the system."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from notary.config.values import Address
from notary.server.signing.directory import INTERVAL_SECONDS, MAX_ADDRESSES, Directory, places_of, resolver

NAME = Address("signers.example", 7899)


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        pytest.param([], [NAME], id="none"),
        pytest.param(["192.0.2.1"], [NAME], id="one"),
        pytest.param(["192.0.2.1", "192.0.2.1"], [NAME], id="one, twice"),
        pytest.param(["127.0.0.1", "::1"], [NAME], id="this machine"),
        pytest.param(
            ["192.0.2.10", "2001:db8::1", "192.0.2.9"],
            [Address("192.0.2.9", 7899), Address("192.0.2.10", 7899), Address("2001:db8::1", 7899)],
            id="several",
        ),
    ],
)
def test_the_places_of_a_name(hosts: list[str], expected: list[Address]) -> None:
    assert list(places_of(NAME, hosts)) == expected


def test_only_so_many_addresses_are_used() -> None:
    assert len(places_of(NAME, [f"192.0.2.{number}" for number in range(200)])) == MAX_ADDRESSES


class Names:
    """A resolver whose answers a test changes, and a directory that asks it."""

    def __init__(self, *names: Address) -> None:
        self.clock = Clock()
        self.hosts: dict[str, Sequence[str] | Exception] = {}
        self.asked: list[str] = []
        self.told: list[list[str]] = []
        self.directory = Directory(names, self.resolve, self.clock)

    def resolve(self, host: str) -> Deferred[Sequence[str]]:
        self.asked.append(host)
        answer = self.hosts.get(host, ())
        return fail(answer) if isinstance(answer, Exception) else succeed(answer)

    def begin(self) -> None:
        self.directory.begin(lambda places: self.told.append([str(place) for place in places]))


def test_changes_are_told_and_nothing_else() -> None:
    names = Names(NAME)
    names.begin()
    assert names.told == [["signers.example:7899"]]
    for hosts, told in (
        (["192.0.2.1", "192.0.2.2"], [["192.0.2.1:7899", "192.0.2.2:7899"]]),
        (["192.0.2.2", "192.0.2.1"], []),
        ([], []),  # what cannot be resolved stays where it was
        (["192.0.2.2", "192.0.2.3"], [["192.0.2.2:7899", "192.0.2.3:7899"]]),
        (["192.0.2.3"], [["signers.example:7899"]]),
    ):
        names.hosts["signers.example"] = hosts
        names.told.clear()
        names.clock.advance(INTERVAL_SECONDS)
        assert names.told == told
    names.directory.close()
    assert names.clock.getDelayedCalls() == []


def test_a_list_of_names_and_addresses() -> None:
    names = Names(Address("192.0.2.7", 1), Address("one.example", 2), Address("many.example", 3))
    names.hosts |= {"one.example": ["192.0.2.8"], "many.example": ["192.0.2.9", "192.0.2.7"]}
    names.begin()
    assert names.told[-1] == ["192.0.2.7:1", "one.example:2", "192.0.2.7:3", "192.0.2.9:3"]
    assert set(names.asked) == {"one.example", "many.example"}
    names.directory.close()


def test_a_resolver_that_breaks_is_asked_again() -> None:
    names = Names(NAME)
    names.hosts["signers.example"] = ZeroDivisionError("broken")
    with capturedLogs() as logs:
        names.begin()
    (line,) = [formatEvent(each) for each in logs]
    assert "signers.example cannot be resolved" in (line or "")
    names.hosts["signers.example"] = ["192.0.2.1", "192.0.2.2"]
    names.clock.advance(INTERVAL_SECONDS)
    assert names.told[-1] == ["192.0.2.1:7899", "192.0.2.2:7899"]
    names.directory.close()


def test_an_answer_after_the_end_is_nothing() -> None:
    names, answer = Names(NAME), Deferred[Sequence[str]]()
    names.directory = Directory([NAME], lambda _host: answer, names.clock)
    names.begin()
    names.directory.close()
    answer.callback(["192.0.2.1", "192.0.2.2"])
    assert len(names.told) == 1
    assert names.clock.getDelayedCalls() == []


@pytest_twisted.ensureDeferred
async def test_the_resolver_of_the_system() -> None:
    resolve = resolver(reactor)
    assert "127.0.0.1" in await resolve("localhost")
    assert list(await resolve("no-such-name.invalid")) == []
