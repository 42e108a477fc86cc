"""Where uploads are validated: which uploads wait, which are refused, and what is dropped."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred, fail, succeed

from notary.errors import ClientGone, NotFound, Overloaded
from notary.server.validators import Turns, Validators


class Work:
    """Work that is done when the test says so; ``begun`` has the names of what has begun, in order."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.begun: list[str] = []
        self.running: dict[str, Deferred] = {}
        self.gone: set[str] = set()

    def ask(self, client: str, name: str) -> Deferred:
        def start() -> Deferred:
            self.begun.append(name)
            self.running[name] = Deferred()
            return self.running[name]

        return self.turns.run(client, lambda: client in self.gone, start)

    def end(self) -> None:
        """End everything, in turn."""
        while self.running:
            name, done = self.running.popitem()
            done.callback(name)


def failed(deferred: Deferred, kind: type[Exception]) -> Exception:
    errors = []
    deferred.addErrback(errors.append)
    assert errors, "it has not failed"
    assert errors[0].check(kind), errors[0]
    return errors[0].value


def test_no_more_run_at_a_time_than_may_and_each_hears_its_result():
    work = Work(Turns(2))
    asked = [work.ask("a", str(number)) for number in range(5)]
    assert (work.begun, work.turns.waiting) == (["0", "1"], 3)
    work.running.pop("1").callback("the result of 1")
    assert (work.begun, work.turns.waiting) == (["0", "1", "2"], 2)
    work.end()
    results: list[object] = []
    for one in asked:
        one.addCallback(results.append)
    assert results == ["0", "the result of 1", "2", "3", "4"]
    assert work.turns.waiting == 0


def test_clients_take_turns_however_many_uploads_one_sends():
    work = Work(Turns(1))
    for number in range(20):
        work.ask("a", f"a{number}")
    for name in ("b0", "b1", "c0"):
        work.ask(name[0], name)
    work.end()
    assert work.begun[:7] == ["a0", "a1", "b0", "c0", "a2", "b1", "a3"]
    assert work.begun[7:] == [f"a{number}" for number in range(4, 20)]


def test_beyond_the_bound_whoever_has_most_waiting_is_refused():
    work = Work(Turns(1, room=4))
    first = [work.ask("a", f"a{number}") for number in range(5)]
    error = failed(work.ask("a", "a5"), Overloaded)
    assert "try again later" in str(error)
    assert error.retry_seconds > 0
    others = [work.ask("b", "b0"), work.ask("c", "c0")]
    for evicted in (first[4], first[3]):
        failed(evicted, Overloaded)
    failed(work.ask("b", "b1"), Overloaded)  # nobody has more than b would have
    assert work.turns.waiting == 4
    work.end()
    assert work.begun == ["a0", "a1", "b0", "c0", "a2"]
    assert all(one.result for one in others)


def test_what_nobody_waits_for_is_not_begun():
    work = Work(Turns(1))
    work.ask("a", "a0")
    dropped = [work.ask("b", "b0"), work.ask("b", "b1")]
    work.ask("c", "c0")
    work.gone.add("b")
    work.end()
    assert work.begun == ["a0", "c0"]
    for one in dropped:
        failed(one, ClientGone)


def test_those_who_are_gone_make_room():
    work = Work(Turns(1, room=2))
    work.ask("a", "a0")
    dropped = [work.ask("b", "b0"), work.ask("b", "b1")]
    work.gone.add("b")
    work.ask("c", "c0")
    for one in dropped:
        failed(one, ClientGone)
    assert work.turns.waiting == 1
    work.end()
    assert work.begun == ["a0", "c0"]


def test_work_that_fails_fails_alone():
    turns = Turns(1)

    def broken() -> Deferred:
        raise NotFound("at once")

    failed(turns.run("a", lambda: False, broken), NotFound)
    failed(turns.run("a", lambda: False, lambda: fail(NotFound("later"))), NotFound)
    assert turns.run("a", lambda: False, lambda: succeed(7)).result == 7


def test_closing_refuses_what_waits_and_what_comes():
    work = Work(Turns(1))
    running, waiting = work.ask("a", "a0"), work.ask("a", "a1")
    work.turns.close()
    failed(waiting, Overloaded)
    failed(work.ask("a", "a2"), Overloaded)
    work.end()
    assert (running.result, work.begun) == ("a0", ["a0"])


@pytest.mark.parametrize("place", ["in_thread", "in_process"])
def test_threads_and_processes_have_turns_of_their_own(place):
    busy: list[Deferred] = [Deferred()]
    validators = Validators(lambda _work: busy[0], Turns(1), lambda _work: busy[0], Turns(1))
    validator = validators.of("a", lambda: False)
    other = {"in_thread": "in_process", "in_process": "in_thread"}[place]
    getattr(validator, place)(len)
    getattr(validator, place)(len)
    assert validators.waiting == 1
    getattr(validator, other)(len)
    assert validators.waiting == 1
    busy[0].callback(None)
    assert validators.waiting == 0
    validators.close()
