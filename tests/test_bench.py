"""The bench's pure parts: medians and ratios, what wrk and /proc say, the frames of its gRPC load, its page.

Nothing here is timed.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from xml.etree import ElementTree as ET

import pytest
from hpack import Decoder

from tests.bench.__main__ import SUITES
from tests.bench.__main__ import _measure as measured
from tests.bench.figures import (
    GO,
    OURS,
    WORKERS,
    BenchError,
    Row,
    Samples,
    at_least,
    at_most,
    missed,
    order_of,
    quantile,
    under,
)
from tests.bench.growth import Curve, tables
from tests.bench.grpcload import Generator, frame
from tests.bench.httpload import lua_of, parse_wrk
from tests.bench.plot import plot, plot_growth
from tests.bench.processes import Side, cpu, memory, parse_cpu, parse_memory
from tests.bench.report import machine, number, page, table, versions, with_sections

# -- figures ----------------------------------------------------------------------------------------------------------


def samples_of(go: list[float], ours: list[float], key: str = "rate") -> Samples:
    samples = Samples()
    for side, values in ((GO, go), (OURS, ours)):
        for value in values:
            samples.add(side, {key: value})
    return samples


@pytest.mark.parametrize(
    ("go", "ours", "ratio"),
    [
        pytest.param([100.0], [50.0], 0.5, id="one round"),
        pytest.param([100.0, 1.0, 90.0], [270.0, 180.0, 9000.0], 3.0, id="outliers do not count"),
        pytest.param([100.0, 200.0], [300.0, 300.0], 2.0, id="even number of rounds"),
        pytest.param([0.0, 0.0, 0.0], [1.0, 1.0, 1.0], None, id="nothing to divide by"),
    ],
)
def test_a_ratio_is_that_of_the_medians(go: list[float], ours: list[float], ratio: float | None) -> None:
    assert samples_of(go, ours).ratio("rate") == ratio


def test_a_row_that_nothing_measures_is_an_error() -> None:
    with pytest.raises(BenchError, match="'latency' of go"):
        samples_of([1.0], [1.0]).median("latency", GO)


@pytest.mark.parametrize(
    ("share", "value"),
    [(0.0, 1), (0.01, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (0.99, 4), (1.0, 4)],
)
def test_a_quantile_is_one_of_the_values(share: float, value: int) -> None:
    assert quantile([4, 2, 1, 3], share) == value


@pytest.mark.parametrize(
    ("goal", "go", "ours", "is_met"),
    [
        pytest.param(at_least(0.5), 100, 50, True, id="at least, just"),
        pytest.param(at_least(0.5), 100, 49.9, False, id="at least, not"),
        pytest.param(at_most(0.25), 400, 100, True, id="at most, just"),
        pytest.param(at_most(0.25), 400, 100.1, False, id="at most, not"),
        pytest.param(under(90, "MB"), 1, 89.9, True, id="under, just"),
        pytest.param(under(90, "MB"), 1000, 90, False, id="under, not"),
    ],
)
def test_goals(goal, go: float, ours: float, is_met: bool) -> None:
    row = Row("rate", "signs", "1/s", goal)
    assert (missed([row], samples_of([go], [ours])) == []) is is_met


def test_a_row_without_a_goal_misses_none() -> None:
    assert missed([Row("rate", "signs", "1/s")], samples_of([1], [0])) == []


def test_who_comes_first_changes() -> None:
    assert [order_of(number)[0] for number in range(4)] == [GO, OURS, GO, OURS]
    sides = (GO, OURS, WORKERS)
    assert [order_of(number, sides)[0] for number in range(4)] == [GO, OURS, WORKERS, GO]
    assert sorted(order_of(1, sides)) == sorted(sides)


def test_a_goal_may_be_met_with_workers_only() -> None:
    samples = samples_of([100], [50])
    row = Row("rate", "signs", "1/s", at_least(1))
    assert (samples.met(row), missed([row], samples)) == ("", [row])
    samples.add(WORKERS, {"rate": 120})
    assert (samples.met(row), missed([row], samples)) == (WORKERS, [])


@pytest.mark.parametrize(
    ("goal", "go", "ours", "gain"),
    [
        pytest.param(at_least(3), 100, 250, 2.5, id="more is better"),
        pytest.param(at_most(0.25), 400, 50, 8.0, id="less is better"),
        pytest.param(under(90, "MB"), 30, 60, None, id="not of the ratio"),
        pytest.param(None, 30, 60, None, id="no goal"),
        pytest.param(at_most(1), 0, 60, None, id="nothing to divide by"),
        pytest.param(at_most(1), 60, 0, None, id="nothing to divide"),
    ],
)
def test_a_gain_is_above_one_where_ours_is_better(goal, go: float, ours: float, gain: float | None) -> None:
    assert samples_of([go], [ours]).gain(Row("rate", "signs", "1/s", goal), OURS) == gain


@pytest.mark.parametrize("goal", [at_least(3), at_least(0.8), at_most(0.25), at_most(1)], ids=lambda goal: goal.text)
def test_a_gain_that_is_the_goals_meets_it_and_less_does_not(goal) -> None:
    row = Row("rate", "signs", "1/s", goal)
    for share, met in ((1.001, True), (0.999, False)):
        gain = goal.gain * share
        samples = samples_of([100], [100 / gain if goal.less else 100 * gain])
        assert samples.gain(row, OURS) == pytest.approx(gain)
        assert bool(samples.met(row)) is met


# -- processes --------------------------------------------------------------------------------------------------------


def test_cpu_is_user_and_system_time() -> None:
    stat = (
        "42 (a (strange) name) S 1 42 42 0 -1 4194304 900 0 0 0 250 50 7 9 20 0 1 0 100 1000 200 18446744073709551615"
    )
    assert parse_cpu(stat, ticks=100) == 3.0


def test_memory_is_in_megabytes() -> None:
    status = "Name:\tx\nVmHWM:\t   20000 kB\nVmRSS:\t   10000 kB\nRssAnon:\t 1 kB\n"
    assert parse_memory(status, "VmRSS") == 10.24
    assert parse_memory(status, "VmHWM") == 20.48
    with pytest.raises(BenchError, match="VmRSS"):
        parse_memory("Name:\tx\nState:\tZ (zombie)\n", "VmRSS")


def test_this_process_can_be_read() -> None:
    import os

    assert cpu(os.getpid()) > 0
    assert memory(os.getpid(), "VmHWM") >= memory(os.getpid(), "VmRSS") * 0.9 > 1


class Printed:
    """A process, this one, that has printed something."""

    alive = True

    def __init__(self, name: str, text: str) -> None:
        import os

        self.name, self.pid, self.text = name, os.getpid(), text

    def output(self) -> str:
        return self.text


def test_a_measurement_has_the_cpu_of_each_process_for_a_request() -> None:
    side = Side(GO, {"server": Printed("go-server", ""), "signer": Printed("go-signer", "")})
    found = side.measure("read", lambda: {"requests": 1e9, "rate": 7.0})
    assert sorted(found) == ["read rate", "read server cpu", "read signer cpu"]
    assert found["read rate"] == 7.0
    assert 0 <= found["read server cpu"] < 1e-3


def test_a_load_that_fails_shows_what_the_processes_printed() -> None:
    def load() -> dict[str, float]:
        raise BenchError("404 of all things")

    side = Side(OURS, {"server": Printed("our-server", "first cause"), "signer": Printed("our-signer", "second cause")})
    with pytest.raises(BenchError) as caught:
        side.measure("read", load)
    assert str(caught.value) == (
        "ours, read: 404 of all things\n-- our-server --\nfirst cause\n-- our-signer --\nsecond cause"
    )


def test_a_process_that_dies_under_load_is_an_error() -> None:
    server = Printed("go-server", "concurrent map writes")

    def load() -> dict[str, float]:
        server.alive = False
        return {"requests": 1.0}

    with pytest.raises(BenchError, match=r"go-server died under load:\nconcurrent map writes"):
        Side(GO, {"server": server}).measure("read", load)


class Mortal:
    """A side whose server dies at its first work."""

    alive = True
    revived = 0

    def __init__(self, name: str) -> None:
        self.name = name

    def revive(self) -> bool:
        self.revived += not self.alive
        return self.revived > 0

    def work(self) -> dict[str, float]:
        if not self.revived:
            self.alive = False
            raise BenchError(f"{self.name}, read: it died")
        return {"rate": 1.0}


@dataclass
class OneWork:
    """A suite of one work."""

    sides: dict[str, Mortal]
    title = "one"

    def works(self):
        return {"read": lambda side: side.work()}


def test_gos_server_may_die_and_is_measured_again(capsys) -> None:
    samples, go = Samples(), Mortal(GO)
    assert measured(OneWork({GO: go}), 2, samples) == 1
    assert (go.revived, samples.of("rate", GO)) == (1, [1.0, 1.0])
    assert "go, read: it died" not in capsys.readouterr().out


def test_ours_may_not_die() -> None:
    with pytest.raises(BenchError, match="ours, read: it died"):
        measured(OneWork({OURS: Mortal(OURS)}), 1, Samples())


# -- wrk --------------------------------------------------------------------------------------------------------------

WRK = """\
Running 5s test @ https://localhost:4443/x
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.94ms    1.01ms  14.33ms   75.55%
    Req/Sec    16.52k     1.20k   18.20k    70.00%
  Latency Distribution
     50%    {p50}
     75%    2.36ms
     90%    3.16ms
     99%    {p99}
  82175 requests in 5.00s, 64.10MB read
{more}Requests/sec:  16434.32
Transfer/sec:     12.82MB
"""


@pytest.mark.parametrize(
    ("p50", "p99", "expected"),
    [
        pytest.param("874.00us", "5.34ms", (0.874, 5.34), id="microseconds"),
        pytest.param("1.75ms", "1.20s ", (1.75, 1200.0), id="seconds, with the blank that wrk puts behind them"),
    ],
)
def test_what_wrk_says(p50: str, p99: str, expected: tuple[float, float]) -> None:
    found = parse_wrk(WRK.format(p50=p50, p99=p99, more=""))
    assert (found["p50"], found["p99"]) == pytest.approx(expected)
    assert (found["requests"], found["rate"]) == (82175.0, 16434.32)


def test_failures_can_be_counted() -> None:
    more = "  Socket errors: connect 1, read 20, write 300, timeout 4000\n  Non-2xx or 3xx responses: 3896\n"
    assert parse_wrk(WRK.format(p50="1ms", p99="2ms", more=more), forgiving=True)["failed"] == 8217 / 82175


def test_a_script_asks_for_each_path() -> None:
    script = lua_of(["/one", "/two"])
    assert '"/one",\n  "/two"\n' in script


@pytest.mark.parametrize(
    "output",
    [
        pytest.param(WRK.format(p50="1ms", p99="2ms", more="  Non-2xx or 3xx responses: 3\n"), id="errors"),
        pytest.param(
            WRK.format(p50="1ms", p99="2ms", more="  Socket errors: connect 0, read 9, write 0, timeout 0\n"),
            id="broken connections",
        ),
        pytest.param(WRK.format(p50="1ms", p99="2ms", more="").replace("82175", "0"), id="no requests"),
        pytest.param("unable to connect to localhost:4443 Connection refused\n", id="no server"),
        pytest.param("", id="nothing"),
    ],
)
def test_what_wrk_says_when_it_fails(output: str) -> None:
    with pytest.raises(BenchError, match="wrk found no figures"):
        parse_wrk(output)


# -- the gRPC load ----------------------------------------------------------------------------------------------------

PATH = "/proto.Signer/Sign"


class Line:
    """A connection: what is sent goes to ``sent``; each ``recv`` gives the next of ``answers``."""

    def __init__(self, *answers: bytes) -> None:
        self.sent: list[bytes] = []
        self.answers = list(answers)

    def sendall(self, data: bytes) -> None:
        self.sent.append(data)

    def recv(self, _size: int) -> bytes:
        return self.answers.pop(0) if self.answers else b""


def frames(data: bytes) -> list[tuple[int, int, int, bytes]]:
    found = []
    while data:
        length = int.from_bytes(data[:3], "big")
        found.append((data[3], data[4], int.from_bytes(data[5:9], "big"), data[9 : 9 + length]))
        data = data[9 + length :]
    return found


def answer(stream: int, message: bytes = b"signature") -> bytes:
    body = b"\0" + struct.pack(">I", len(message)) + message
    return frame(1, 4, stream, b"\x88") + frame(0, 0, stream, body) + frame(1, 5, stream, b"\x88")


def run(*answers: bytes, in_flight: int = 2) -> tuple[Generator, Line]:
    """Run a generator whose time is over at once: each call in flight, and no other, is made."""
    line = Line(*answers)
    generator = Generator(line, PATH, [b"one", b"two"])
    generator.run(in_flight, 0)
    return generator, line


def test_requests_are_whole_calls_in_turn() -> None:
    _, line = run(answer(1) + answer(3) + answer(5), in_flight=3)
    decoder = Decoder()
    sent = frames(line.sent[0])
    heads = [dict(decoder.decode(payload, raw=True)) for kind, _, _, payload in sent if kind == 1]
    assert [head[b":path"] for head in heads] == [PATH.encode()] * 3
    assert heads[0] == heads[1] == heads[2]
    assert [(kind, flags, stream) for kind, flags, stream, _ in sent] == [
        (kind, flags, stream) for stream in (1, 3, 5) for kind, flags in ((1, 4), (0, 1))
    ]
    bodies = [payload for kind, _, _, payload in sent if kind == 0]
    assert bodies == [b"\0\0\0\0\3one", b"\0\0\0\0\3two", b"\0\0\0\0\3one"]


@pytest.mark.parametrize("piece", [1, 2, 9, 10, 1000])
def test_answers_are_counted_however_they_arrive(piece: int) -> None:
    data = answer(3) + answer(1)
    generator, _ = run(*(data[n : n + piece] for n in range(0, len(data), piece)))
    assert len(generator.latencies) == 2


def test_a_reset_behind_an_answer_means_nothing() -> None:
    generator, _ = run(answer(1) + frame(3, 0, 1, b"\0\0\0\0") + answer(3))
    assert len(generator.latencies) == 2


def test_settings_and_pings_are_acknowledged() -> None:
    asked = frame(4, 0, 0, b"\0\3\0\0\0\x64") + frame(6, 0, 0, b"01234567")
    acknowledged = frame(4, 1, 0) + frame(6, 1, 0, b"01234567")
    _, line = run(asked + acknowledged, answer(1) + answer(3))
    assert line.sent[1:] == [acknowledged]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(frame(1, 5, 1, b"\x88"), "without a message", id="only trailers"),
        pytest.param(frame(1, 4, 1) + frame(0, 0, 1, b"\0" * 5) + frame(1, 5, 1), "without a message", id="empty"),
        pytest.param(frame(3, 0, 1, b"\0\0\0\x08"), "gave up", id="reset"),
        pytest.param(frame(7, 0, 0, b"\0" * 8 + b"bye"), "bye", id="goaway"),
        pytest.param(b"", "closed", id="closed"),
    ],
)
def test_an_answer_that_is_none_ends_the_measurement(data: bytes, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        run(data)


# -- the page ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.05713, "0.0571"),
        (0.3, "0.300"),
        (9.996, "10.0"),
        (21.04, "21.0"),
        (416.6, "417"),
        (12_817, "12,800"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_a_table() -> None:
    samples = samples_of([12000.0, 12800.0, 13000.0], [6000.0, 6400.0, 6500.0])
    samples.add(GO, {"start": 13})
    samples.add(OURS, {"start": 300})
    rows = (Row("rate", "16 in flight", "signs/s", at_least(0.6)), Row("start", "start", "ms", under(1000, "ms")))
    assert table(rows, samples).splitlines()[2:] == [
        "| 16 in flight | signs/s | 12,800 (12,000–13,000) | 6,400 (6,000–6,500) | 0.50 | at least 0.6 | **no** |",  # noqa: RUF001
        "| start | ms | 13.0 (13.0–13.0) | 300 (300–300) | 23.08 | under 1000 ms | yes |",  # noqa: RUF001
    ]


def test_a_table_with_workers_has_their_figures_where_there_are_any() -> None:
    samples = samples_of([100.0], [50.0])
    samples.add(WORKERS, {"rate": 120.0})
    samples.add(GO, {"start": 13})
    samples.add(OURS, {"start": 300})
    lines = table((Row("rate", "rate", "1/s", at_least(1)), Row("start", "start", "ms")), samples).splitlines()
    assert lines[0].count("÷ Go") == 2
    assert lines[2].endswith("| 120 (120–120) | 1.20 | at least 1 | with 2 workers |")  # noqa: RUF001
    assert lines[3].endswith("| 23.08 |  |  |  |  |")
    assert {line.count("|") for line in lines} == {10}


def test_the_page_says_how_it_was_made() -> None:
    sections = [("Sign", "Over gRPC.", table((Row("rate", "16 in flight", "signs/s"),), samples_of([2.0], [1.0])))]
    facts = {"machine": {"cores": "2"}, "versions": {"wrk": "4.1"}}
    text = page(sections, rounds=5, seconds=2.5, **facts)
    for part in (
        "# Benchmarks\n",
        "median of 5 rounds of 2.5 s",
        "](diagrams/benchmarks.svg)\n\n## Sign\n\nOver gRPC.\n\n|  | unit |",
        "| 0.50 |",
        "- cores: 2\n",
        "4.1",
    ):
        assert part in text


def test_a_suite_by_itself_writes_its_sections_alone() -> None:
    sections = [(name, f"About {name}.", f"| {name} |\n") for name in ("Sign", "Sign (more)", "Reads")]
    facts = {"machine": {"cores": "2"}, "versions": {"wrk": "4.1"}}
    whole = page(sections, rounds=5, seconds=2.5, **facts)
    assert with_sections(whole, sections) == whole
    again = with_sections(whole, [("Sign", "About Sign.", "| faster |\n")])
    assert again == whole.replace("| Sign |", "| faster |")
    one, more = page(sections[:2], rounds=5, seconds=2.5, **facts), sections[2:]
    assert with_sections(one, more) == whole


# -- the picture ------------------------------------------------------------------------------------------------------

SVG = "{http://www.w3.org/2000/svg}"


def picture_of(samples: Samples, *rows: Row) -> ET.Element:
    return ET.fromstring(plot([("Sign", rows)], samples))


def test_the_picture_has_the_rows_whose_goal_is_a_ratio() -> None:
    samples = samples_of([100], [250])
    samples.add(GO, {"p99": 400, "start": 13})
    samples.add(OURS, {"p99": 100, "start": 300})
    samples.add(WORKERS, {"p99": 50})
    found = picture_of(
        samples,
        Row("rate", "16 & more", "signs/s", at_least(3)),
        Row("p99", "p99", "ms", at_most(0.25)),
        Row("start", "start", "ms", under(1000, "ms")),
        Row("nothing", "not measured", "ms"),
    )
    assert [mark.findtext(f"{SVG}title") for mark in found.iter(f"{SVG}g")] == [
        "16 & more: ours, 2.50",
        "p99: ours, 4.00",
        "p99: ours, 2 workers, 8.00",
    ]
    texts = {text.text for text in found.iter(f"{SVG}text")}
    assert {"Sign", "16 & more", "p99", "Go"} <= texts
    assert not texts & {"start", "not measured"}


@pytest.mark.parametrize(
    ("ours", "order"),
    [
        pytest.param(50, "mark Go goal", id="worse than Go"),
        pytest.param(200, "Go mark goal", id="better than Go, worse than the goal"),
        pytest.param(400, "Go goal mark", id="better than the goal"),
    ],
)
def test_what_is_better_is_further_right(ours: float, order: str) -> None:
    found = picture_of(samples_of([100], [ours]), Row("rate", "16", "signs/s", at_least(3)))
    (mark,) = (float(circle.get("cx", "")) for circle in found.iter(f"{SVG}circle"))
    (go,) = (float(text.get("x", "")) for text in found.iter(f"{SVG}text") if text.text == "Go")
    goal = float(list(found.iter(f"{SVG}path"))[-1].get("d", "")[1:].split()[0])
    assert " ".join(sorted(("mark", "Go", "goal"), key={"mark": mark, "Go": go, "goal": goal}.get)) == order
    assert all(0 < place < float(found.get("width", "")) for place in (mark, go, goal))


@pytest.mark.parametrize("ours", [1e-6, 1e9], ids=["far below", "far above"])
def test_what_is_beyond_the_axis_is_drawn_at_its_end(ours: float) -> None:
    found = picture_of(samples_of([1], [ours]), Row("rate", "16", "signs/s", at_least(3)))
    assert all(0 < float(circle.get("cx", "")) < float(found.get("width", "")) for circle in found.iter(f"{SVG}circle"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        pytest.param(Row("rate", "16", "signs/s"), "nothing to draw", id="no goal"),
        pytest.param(Row("other", "16", "signs/s", at_least(3)), "no ratio of '16'", id="not measured"),
    ],
)
def test_a_picture_lacks_nothing(row: Row, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        picture_of(samples_of([1], [1]), row)


# -- this machine -----------------------------------------------------------------------------------------------------


def test_the_machine_is_described_and_not_named() -> None:
    import platform

    described = machine(0.25) | versions()
    assert described["load before the bench"] == "0.25"
    assert int(described["cores"]) > 0
    assert ".".join(map(str, sys.version_info[:3])) in described["Python"]
    assert described["OpenSSL"].startswith("OpenSSL ")
    assert all(described.values())
    assert platform.node() not in described.values()


def test_rows_of_all_suites_are_told_apart() -> None:
    keys = [row.key for suite in SUITES for row in suite.rows]
    assert len(keys) == len(set(keys))
    labels = [(suite, row.label) for suite in SUITES for row in suite.rows]
    assert len(labels) == len(set(labels))


# -- growth -----------------------------------------------------------------------------------------------------------

LINES = [
    Curve("current read, p99", "collections", {100: 2.0, 200_000: 3.0}),
    Curve("publish, p99", "collections", {100: 6.0, 200_000: 9.6}),
    Curve("key creation, p99", "keys", {100: 5.0, 1_000_000: 5.0}),
]


def test_tables_of_growth() -> None:
    text = tables(LINES, {"rate": 30.0, "peak": 87.0})
    assert "|  | 100 collections | 200,000 collections | growth | goal | met |" in text
    assert "| current read, p99 | 2.00 | 3.00 | 1.50 | at most 1.5 | yes |" in text
    assert "| publish, p99 | 6.00 | 9.60 | 1.60 | at most 1.5 | **no** |" in text
    assert "| key creation, p99 | 5.00 | 5.00 | 1.00 | at most 1.5 | yes |" in text
    assert "30.0 collections a second (goal: at least 20, met) in 87.0 MB" in text
    assert "**not met**" in tables(LINES, {"rate": 19.9, "peak": 87.0})


def test_a_picture_of_growth() -> None:
    root = ET.fromstring(plot_growth([(line.label, line.figures) for line in LINES]))
    texts = ["".join(each.itertext()) for each in root.iter("{http://www.w3.org/2000/svg}text")]
    for label in ("0 x", "1 x", "2 x", "100", "1,000,000", *(line.label for line in LINES)):
        assert label in texts
