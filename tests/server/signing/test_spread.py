"""Calls spread over several signers, repeated when one fails and hedged when one is late; in memory, by a fake clock.

Rules of this module: the signers are scripted, the channels and the gRPC are real. Each fleet is closed at the end of
its test, and then nothing may be left to be done.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.defer import CancelledError, Deferred

from notary.errors import KeyNotFound, SigningFailed, SigningUnavailable
from notary.net.grpc import RpcError, Status
from notary.proto import instance_pb2
from notary.server.metrics import ServerMetrics
from notary.server.signing.directory import INTERVAL_SECONDS
from notary.server.signing.remote import SIGNER_SECONDS
from notary.server.signing.spread import LATE_FACTOR, LATE_SECONDS, MAX_ATTEMPTS, MOST_REPEATS, REPEATS_SHARE
from notary.tuf.model import Gun, RoleName
from tests.support.fleet import Fleet
from tests.support.scripted import CHECK, CREATE, DESCRIBE, INFO, NOT_SERVING, SERVING, SIGN

CALLS = {
    CREATE: lambda fleet: fleet.service.create_key(Gun("example.com/app"), RoleName("snapshot")),
    INFO: lambda fleet: fleet.service.get_key(fleet.key.key_id),
    SIGN: lambda fleet: fleet.sign(),
}
each_call = pytest.mark.parametrize("method", CALLS, ids=lambda method: method.rpartition("/")[2])
REPEATED = sorted(
    set(Status) - {Status.OK, Status.NOT_FOUND, Status.RESOURCE_EXHAUSTED, Status.CANCELLED}, key=lambda each: each.name
)


@pytest.fixture
def make() -> Iterator[Any]:
    """Makes fleets that are connected."""
    made: list[Fleet] = []

    def fleet(*args: Any, **options: Any) -> Fleet:
        made.append(Fleet(*args, **options))
        made[-1].begin()
        return made[-1]

    yield fleet
    for each in made:
        each.close()


@pytest.fixture
def pair(make: Any) -> Fleet:
    """Two signers."""
    found: Fleet = make(2)
    return found


def asked(fleet: Fleet, method: str) -> list[int]:
    """How often each process was asked."""
    return [sum(path == method for path, _ in each.requests) for each in fleet.signers]


# -- spreading --------------------------------------------------------------------------------------------------------


def test_calls_one_after_the_other_are_spread(pair: Fleet) -> None:
    for _ in range(10):
        pair.result(pair.sign())
    assert pair.signed() == [5, 5]


def test_calls_at_the_same_time_are_spread(make: Any) -> None:
    fleet = make(3)
    calls = [fleet.sign() for _ in range(30)]
    for call in calls:
        fleet.result(call)
    assert fleet.signed() == [10, 10, 10]


def test_a_signer_that_is_slower_gets_fewer_calls(pair: Fleet) -> None:
    pair.signers[0].answers[SIGN] = None
    slow, *others = [pair.sign() for _ in range(2)]
    pair.let_pass()
    for _ in range(10):
        others.append(pair.sign())
        pair.let_pass()
    assert pair.signed() == [1, 11]
    for call in (slow, *others):
        pair.result(call, SIGNER_SECONDS)


# -- repeats ----------------------------------------------------------------------------------------------------------


@each_call
def test_a_signer_that_dies_over_a_call(pair: Fleet, method: str) -> None:
    """The other one answers, whichever of them the call went to."""
    for each in pair.signers:
        each.answers[method] = None
    call = CALLS[method](pair)
    pair.let_pass()
    ((victim, survivor),) = [
        (one, other) for one, other in (pair.signers, pair.signers[::-1]) if (method in dict(one.requests))
    ]
    del survivor.answers[method]
    victim.crash()
    pair.result(call)
    assert sum(asked(pair, method)) == 2
    assert pair.service.repeats["failed"] == 1


@each_call
def test_many_calls_that_a_signer_dies_over(pair: Fleet, method: str) -> None:
    pair.signers[0].answers[method] = None
    calls = [CALLS[method](pair) for _ in range(100)]
    pair.let_pass()
    pair.signers[0].crash()
    for call in calls:
        pair.result(call)
    assert sum(asked(pair, method)) <= 200


@each_call
@pytest.mark.parametrize("status", REPEATED)
def test_a_failure_is_repeated_at_the_other_one(pair: Fleet, method: str, status: Status) -> None:
    pair.signers[0].answers[method] = RpcError(status, "the reason")
    for _ in range(2):
        pair.result(CALLS[method](pair))
    assert pair.service.repeats["failed"] == 1
    assert asked(pair, method) == [1, 2]


@each_call
@pytest.mark.parametrize("answer", [b"\xff\xff\xff", b""], ids=["no message", "empty"])
def test_an_answer_that_makes_no_sense_is_repeated(pair: Fleet, method: str, answer: bytes) -> None:
    pair.signers[0].answers[method] = answer
    for _ in range(2):
        pair.result(CALLS[method](pair))
    assert asked(pair, method) == [1, 2]


@each_call
def test_too_much_to_do_is_not_repeated(pair: Fleet, method: str) -> None:
    for each in pair.signers:
        each.answers[method] = RpcError(Status.RESOURCE_EXHAUSTED, "too many")
    with pytest.raises(SigningFailed, match="RESOURCE_EXHAUSTED: too many"):
        pair.result(CALLS[method](pair))
    assert sum(asked(pair, method)) == 1
    assert pair.service.repeats.total() == 0


def test_too_many_keys_at_the_same_time_are_not_repeated(make: Any) -> None:
    fleet = make(1)
    fleet.signers[0].answers[CREATE] = None
    calls = [CALLS[CREATE](fleet) for _ in range(401)]
    with pytest.raises(SigningUnavailable, match="200 keys are being made already"):
        fleet.result(calls[-1])
    assert fleet.service.repeats["failed"] == 0
    for call in calls[:-1]:
        call.addErrback(lambda _: None)


def test_a_failure_at_all_of_them_is_told(make: Any) -> None:
    fleet = make(3)
    for number, each in enumerate(fleet.signers):
        each.answers[SIGN] = RpcError(Status.INTERNAL, f"reason {number}")
    with pytest.raises(SigningFailed, match=r"the signer at 192\.0\.2\..:7899: INTERNAL: reason ."):
        fleet.result(fleet.sign())
    assert fleet.signed() == [1, 1, 1]


def test_a_signer_that_failed_is_avoided_then_tried_again(pair: Fleet) -> None:
    pair.signers[0].answers[SIGN] = RpcError(Status.INTERNAL, "the reason")
    for _ in range(20):
        pair.result(pair.sign())
    assert pair.signed() == [1, 20]
    pair.let_pass(0.5)
    for _ in range(20):
        pair.result(pair.sign())
    assert pair.signed() == [2, 40]
    del pair.signers[0].answers[SIGN]
    pair.let_pass(1.0)
    for _ in range(20):
        pair.result(pair.sign())
    assert pair.signed() == [12, 50]


def test_a_call_is_sent_so_often_at_most(make: Any) -> None:
    fleet = make(8)
    for each in fleet.signers:
        each.answers[SIGN] = RpcError(Status.INTERNAL, "the reason")
    with pytest.raises(SigningFailed):
        fleet.result(fleet.sign())
    assert sum(fleet.signed()) == MAX_ATTEMPTS


def test_all_repeats_together_are_a_share_of_the_calls(pair: Fleet) -> None:
    for each in pair.signers:
        each.answers[SIGN] = RpcError(Status.INTERNAL, "the reason")
    calls = 2000
    for _ in range(calls):
        with pytest.raises(SigningFailed):
            pair.result(pair.sign())
    repeats = sum(pair.signed()) - calls
    assert MOST_REPEATS <= repeats <= MOST_REPEATS + REPEATS_SHARE * calls
    assert pair.service.repeats["failed"] == repeats
    assert pair.service.repeats["refused"] == calls - repeats


def test_one_signer_alone_is_asked_again_only_if_the_connection_was_lost(make: Any) -> None:
    fleet = make(1)
    (signer,) = fleet.signers
    signer.answers[SIGN] = RpcError(Status.INTERNAL, "the reason")
    with pytest.raises(SigningFailed, match="INTERNAL"):
        fleet.result(fleet.sign())
    assert fleet.signed() == [1]
    signer.answers[SIGN] = None
    call = fleet.sign()
    fleet.let_pass(0.1)
    signer.crash()
    fleet.let_pass(1.0)
    assert not call.called
    signer.up = True
    del signer.answers[SIGN]
    fleet.result(call, SIGNER_SECONDS - 1.2)


def test_one_signer_alone_that_does_not_come_back(make: Any) -> None:
    fleet = make(1)
    fleet.signers[0].answers[SIGN] = None
    call = fleet.sign()
    fleet.let_pass(0.1)
    fleet.signers[0].crash()
    with pytest.raises(SigningFailed, match=r"UNAVAILABLE: no connection to .*refused"):
        fleet.result(call, SIGNER_SECONDS)


def test_a_call_that_waits_goes_to_the_first_signer_that_comes_back(pair: Fleet) -> None:
    for each in pair.signers:
        each.crash()
    pair.let_pass(0.5)
    calls = [CALLS[method](pair) for method in CALLS]
    pair.let_pass(0.5)
    assert not any(call.called for call in calls)
    pair.signers[1].up = True
    pair.let_pass(2.0)
    for call in calls:
        pair.result(call)
    assert all(sent == [0, 1] for sent in (asked(pair, method) for method in CALLS))


# -- a key that is not there ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [INFO, SIGN])
def test_a_key_that_one_signer_does_not_see_yet(pair: Fleet, method: str) -> None:
    pair.signers[0].answers[method] = RpcError(Status.NOT_FOUND, "no such key")
    for _ in range(4):
        pair.result(CALLS[method](pair))
    assert pair.service.repeats == {"failed": 0, "late": 0, "not_found": 4, "refused": 0}
    assert asked(pair, method) == [4, 4]  # no signer is avoided for that


@pytest.mark.parametrize("method", [INFO, SIGN])
def test_a_key_that_two_signers_do_not_have(make: Any, method: str) -> None:
    fleet = make(3)
    fleet.keys.clear()
    with pytest.raises(KeyNotFound):
        fleet.result(CALLS[method](fleet))
    assert sum(asked(fleet, method)) == 2


def test_a_key_that_the_only_signer_does_not_have(make: Any) -> None:
    fleet = make(1)
    fleet.keys.clear()
    with pytest.raises(KeyNotFound):
        fleet.result(fleet.sign())
    assert fleet.signed() == [1]


def test_a_key_that_one_does_not_have_while_the_other_fails(pair: Fleet) -> None:
    pair.signers[0].answers[SIGN] = RpcError(Status.NOT_FOUND, "no such key")
    pair.signers[1].answers[SIGN] = RpcError(Status.INTERNAL, "the reason")
    for _ in range(2):
        with pytest.raises(KeyNotFound):
            pair.result(pair.sign())


# -- calls that are late ----------------------------------------------------------------------------------------------


def usual(fleet: Fleet, seconds: float, method: str = "sign") -> None:
    """Let calls have taken so long."""
    for _ in range(100):
        fleet.service.usual[method].observe(seconds)


def hung(fleet: Fleet, method: str) -> Deferred[Any]:
    """A call that went to a signer that does not answer; the other one answers."""
    for each in fleet.signers:
        each.answers[method] = None
    call = CALLS[method](fleet)
    fleet.let_pass()
    for each in fleet.signers:
        if method not in dict(each.requests):
            del each.answers[method]
    return call


@each_call
@pytest.mark.parametrize("seconds", [0.001, 0.02])
def test_a_late_call_is_sent_to_the_other_one(pair: Fleet, method: str, seconds: float) -> None:
    usual(pair, seconds, {CREATE: "create_key", INFO: "get_key", SIGN: "sign"}[method])
    late = max(LATE_SECONDS, LATE_FACTOR * seconds)
    call = hung(pair, method)
    pair.let_pass(late - 0.01)
    assert not call.called
    assert sum(asked(pair, method)) == 1
    pair.result(call, 0.02)
    assert sum(asked(pair, method)) == 2
    assert pair.service.repeats["late"] == 1


def test_a_late_call_is_sent_to_the_other_one_when_that_comes_back(pair: Fleet) -> None:
    usual(pair, 0.001)
    pair.signers[1].crash()
    pair.let_pass(0.5)
    pair.signers[0].answers[SIGN] = None
    call = pair.sign()
    pair.let_pass(1.0)
    assert pair.signed()[0] > 0
    before = pair.signed()[1]
    pair.signers[1].up = True
    pair.result(call, 2.0)
    assert pair.signed()[1] == before + 1
    assert pair.service.repeats["late"] == 1


def test_a_signer_that_hangs_is_avoided(pair: Fleet) -> None:
    usual(pair, 0.001)
    pair.signers[0].answers[SIGN] = None
    for _ in range(50):
        pair.result(pair.sign(), 0.1)
    assert pair.signed()[1] == 50
    assert pair.signed()[0] < 10
    del pair.signers[0].answers[SIGN]
    pair.let_pass(10.0)
    before = pair.signed()[0]
    for _ in range(20):
        pair.result(pair.sign())
    assert pair.signed()[0] == before + 10


def test_a_late_call_is_sent_once_more_only(make: Any) -> None:
    fleet = make(4)
    usual(fleet, 0.001)
    for each in fleet.signers:
        each.answers[SIGN] = None
    call = fleet.sign()
    with pytest.raises(SigningFailed, match="DEADLINE_EXCEEDED"):
        fleet.result(call, SIGNER_SECONDS + 0.1)
    assert sum(fleet.signed()) == 2


def test_the_first_answer_counts_also_that_of_the_late_one(pair: Fleet) -> None:
    usual(pair, 0.001)
    late = Deferred[bytes]()
    for each in pair.signers:
        each.answers[SIGN] = late
    call = pair.sign()
    pair.let_pass(LATE_SECONDS + 0.01)
    assert pair.signed() == [1, 1]
    late.callback(b"\x1a\x02ab")  # of the content of a signature
    assert pair.result(call)[1] == b"ab"


def test_a_late_call_whose_second_attempt_fails_still_waits(pair: Fleet) -> None:
    usual(pair, 0.001)
    call = hung(pair, SIGN)
    other = pair.signers[pair.signed().index(0)]
    other.answers[SIGN] = RpcError(Status.INTERNAL, "the reason")
    pair.let_pass(1.0)
    assert not call.called
    with pytest.raises(SigningFailed, match="DEADLINE_EXCEEDED"):
        pair.result(call, SIGNER_SECONDS)


def test_a_late_call_of_one_signer_alone_is_not_sent_again(make: Any) -> None:
    fleet = make(1)
    usual(fleet, 0.001)
    fleet.signers[0].answers[SIGN] = None
    call = fleet.sign()
    fleet.let_pass(2.0)
    assert fleet.signed() == [1]
    with pytest.raises(SigningFailed, match="DEADLINE_EXCEEDED"):
        fleet.result(call, SIGNER_SECONDS)


def test_a_caller_that_gives_up_ends_all_attempts(pair: Fleet) -> None:
    usual(pair, 0.001)
    for each in pair.signers:
        each.answers[SIGN] = None
    call = pair.sign()
    pair.let_pass(LATE_SECONDS + 0.01)
    call.cancel()
    with pytest.raises(CancelledError):
        pair.result(call)
    pair.let_pass(0.1)
    assert [link.calls for link in pair.service.links()] == [0, 0]


# -- names and addresses ----------------------------------------------------------------------------------------------


def test_a_signer_that_comes_and_one_that_goes(pair: Fleet) -> None:
    pair.signers[0].answers[SIGN] = pair.signers[1].answers[SIGN] = None
    calls = [pair.sign() for _ in range(2)]
    pair.let_pass()
    pair.add("192.0.2.3")
    pair.hosts[:] = ["192.0.2.2", "192.0.2.3"]
    usual(pair, 1.0)
    pair.let_pass(1.0)
    del pair.signers[1].answers[SIGN]
    pair.let_pass(INTERVAL_SECONDS)
    for call in calls:
        call.addErrback(lambda _: None)
    assert sorted(pair.service.states()) == ["192.0.2.2:7899", "192.0.2.3:7899"]
    for each in pair.signers:
        each.requests.clear()
        each.answers.pop(SIGN, None)
    for _ in range(10):
        pair.result(pair.sign())
    assert pair.signed() == [0, 5, 5]
    assert [link.channel.name for link in pair.service.links()] == ["192.0.2.2:7899", "192.0.2.3:7899"]


def test_a_call_on_a_signer_that_goes_is_answered(pair: Fleet) -> None:
    answer = Deferred[bytes]()
    usual(pair, 1.0)
    pair.signers[0].answers[SIGN] = pair.signers[1].answers[SIGN] = answer
    pair.add("192.0.2.3")
    pair.let_pass(INTERVAL_SECONDS - 2.0)
    pair.hosts[:] = ["192.0.2.3", "192.0.2.2"]
    call = pair.sign()
    pair.let_pass(3.0)
    answer.callback(b"\x1a\x02ab")
    assert pair.result(call)[1] == b"ab"


# -- several processes of one signer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", [[0, 1], [0, 0, 1], [1, 1, 1, 1, 0], [0] * 12 + [1]], ids=str)
def test_each_process_gets_one_connection(make: Any, turns: list[int]) -> None:
    fleet = Fleet(1, processes=2)
    fleet.addresses["192.0.2.1"].turns = turns
    fleet.begin()
    fleet.let_pass(20.0)
    assert sorted(link.instance for link in fleet.service.links()) == ["192.0.2.1#0", "192.0.2.1#1"]
    before = fleet.signed()
    for _ in range(10):
        fleet.result(fleet.sign())
    assert [now - then for now, then in zip(fleet.signed(), before, strict=True)] == [5, 5]
    fleet.close()


def test_a_process_that_starts_again_gets_a_connection(make: Any) -> None:
    fleet = make(1, processes=3)
    fleet.let_pass(5.0)
    instances = {link.instance for link in fleet.service.links()}
    assert len(instances) == 3
    fleet.signers[1].crash()
    fleet.let_pass(5.0)
    fleet.signers[1].up = True
    description = instance_pb2.InstanceDescription(id="another", processes=3)
    fleet.signers[1].answers[DESCRIBE] = description.SerializeToString()
    fleet.let_pass(30.0)
    assert {link.instance for link in fleet.service.links()} == {"192.0.2.1#0", "another", "192.0.2.1#2"}


def test_looking_for_a_process_that_gets_none_slows_down(make: Any) -> None:
    fleet = Fleet(1, processes=2)
    address = fleet.addresses["192.0.2.1"]
    address.turns = [0] * 10_000
    fleet.begin()
    fleet.let_pass(600.0, 0.1)
    assert address.connections < 60
    calls = [fleet.sign() for _ in range(10)]
    for call in calls:
        fleet.result(call)
    fleet.close()


@pytest.mark.parametrize(("count", "expected"), [(1, 2), (2, 2), (3, 3)])
def test_signers_that_say_nothing_of_processes(make: Any, count: int, expected: int) -> None:
    fleet = make(count, describes=False)
    assert len([link for link in fleet.service.links() if link.ready]) == expected


# -- health -----------------------------------------------------------------------------------------------------------


def test_the_check_passes_while_one_signer_serves(pair: Fleet) -> None:
    assert pair.service.states() == {"192.0.2.1:7899": "serving", "192.0.2.2:7899": "serving"}
    pair.signers[0].answers[CHECK] = NOT_SERVING
    assert pair.result(pair.service.check()) is None
    pair.let_pass(0.1)
    states = pair.service.states()
    assert states["192.0.2.2:7899"] == "serving"
    assert states["192.0.2.1:7899"] == "the signer at 192.0.2.1:7899 says that it cannot work; its log says why"
    for _ in range(10):
        pair.result(pair.sign())
    assert pair.signed() == [0, 10]
    pair.signers[1].answers[CHECK] = RpcError(Status.INTERNAL, "the reason")
    with pytest.raises(SigningFailed, match=r"192.0.2.1:7899 says .*; the signer at 192.0.2.2:7899: INTERNAL"):
        pair.result(pair.service.check())
    pair.signers[0].answers[CHECK] = SERVING
    assert pair.result(pair.service.check()) is None


def test_a_call_that_fails_has_the_signer_asked_at_once(pair: Fleet) -> None:
    pair.signers[0].answers |= {SIGN: RpcError(Status.INTERNAL, "the reason"), CHECK: NOT_SERVING}
    pair.result(pair.sign())
    pair.let_pass(0.1)
    assert "cannot work" in pair.service.states()["192.0.2.1:7899"]
    for _ in range(10):
        pair.result(pair.sign())
    assert asked(pair, SIGN)[0] == 1
    pair.signers[1].crash()  # now the first is the only one
    pair.signers[0].answers[CHECK] = SERVING
    del pair.signers[0].answers[SIGN]
    pair.let_pass(1.0)
    pair.result(pair.sign())
    pair.let_pass(0.1)
    assert pair.service.states()["192.0.2.1:7899"] == "serving"


def test_failing_calls_do_not_ask_the_signer_each_time(pair: Fleet) -> None:
    for each in pair.signers:
        each.answers[SIGN] = RpcError(Status.INTERNAL, "the reason")
        each.requests.clear()
    for _ in range(50):
        with pytest.raises(SigningFailed):
            pair.result(pair.sign())
    assert max(asked(pair, CHECK)) <= 2  # of the two services


def test_a_signer_that_hangs_does_not_delay_the_check(pair: Fleet) -> None:
    pair.signers[0].answers[CHECK] = None
    assert pair.result(pair.service.check()) is None
    pair.let_pass(SIGNER_SECONDS + 1)
    assert "DEADLINE_EXCEEDED" in pair.service.states()["192.0.2.1:7899"]


def test_a_check_that_is_given_up(pair: Fleet) -> None:
    for each in pair.signers:
        each.answers[CHECK] = None
    check = pair.service.check()
    pair.let_pass(0.1)
    check.cancel()
    with pytest.raises(CancelledError):
        pair.result(check)
    pair.let_pass(SIGNER_SECONDS + 1)


def test_a_signer_that_is_away_is_told_by_its_address(pair: Fleet) -> None:
    pair.signers[0].crash()
    pair.let_pass(1.0)
    assert "refused" in pair.service.states()["192.0.2.1:7899"]


def test_metrics_name_each_signer(pair: Fleet) -> None:
    pair.signers[0].answers[SIGN] = RpcError(Status.INTERNAL, "the reason")
    for _ in range(2):
        pair.result(pair.sign())
    metrics = ServerMetrics(version="1")
    pair.service.show(metrics)
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.render()[1].decode())
        for sample in family.samples
    }
    for address, ok, failed in (("192.0.2.1:7899", 0, 1), ("192.0.2.2:7899", 2, 0)):
        assert found["notary_server_signer_up", address] == 1
        assert found["notary_server_signer_connections", address] == 1
        assert found["notary_server_signer_calls_total", "ok", address] == ok
        assert found["notary_server_signer_calls_total", "failed", address] == failed
    assert found["notary_server_signer_repeats_total", "failed"] == 1


# -- the end ----------------------------------------------------------------------------------------------------------


def test_closing_ends_what_is_under_way(make: Any) -> None:
    fleet = Fleet(2)
    fleet.begin()
    for each in fleet.signers:
        each.answers |= dict.fromkeys(CALLS)
    calls = [CALLS[method](fleet) for method in CALLS]
    fleet.let_pass(0.1)
    assert not any(call.called for call in calls)
    fleet.close()
    for call in calls:
        with pytest.raises(SigningFailed):
            fleet.result(call)
    for ask in CALLS.values():
        with pytest.raises(SigningFailed):
            fleet.result(ask(fleet))


def test_closing_before_the_first_call() -> None:
    fleet = Fleet(2)
    fleet.close()
    with pytest.raises(SigningFailed):
        fleet.result(fleet.sign())
    assert not any(each.requests for each in fleet.signers)
