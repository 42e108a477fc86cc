"""Processes whose event loop is held, by what lets other threads run and by what does not, and what they say of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from notary.observe.watchdog import HELD_SECONDS
from tests.support.waiting import until

REPOSITORY = Path(__file__).parents[2]
PROGRAM = """
import re, sys, threading, time
from pathlib import Path
from twisted.internet import reactor
from twisted.logger import globalLogBeginner
from notary.observe.logs import LineObserver
from notary.observe.watchdog import Watchdog

globalLogBeginner.beginLoggingTo([LineObserver(sys.stderr)], redirectStandardIO=False)
said = Path(sys.argv[2])
watchdog = Watchdog(reactor, 0.2)

def hold_until_it_is_said():
    while "has been held" not in said.read_text():
        time.sleep(0.01)

def hold_with_a_regular_expression():
    re.match("(a+)+b", "a" * 64)

def look():
    if sys.argv[1] == "nothing" or "goes on, after" in said.read_text():
        end()
    else:
        reactor.callLater(0.01, look)

def end():
    watchdog.stop()
    watchdog.stop()
    print(json.dumps([thread.name for thread in threading.enumerate()]), file=sys.stderr)
    reactor.stop()

import json
reactor.callWhenRunning(watchdog.start)
hold = globals().get(sys.argv[1])
if hold:
    reactor.callWhenRunning(hold)
reactor.callWhenRunning(look)
reactor.run()
"""


@contextmanager
def running(command: Sequence[str], said: Path, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
    with said.open("ab") as log:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environ}
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=said.parent, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def lines(said: Path) -> list[Any]:
    """The lines of the log; ``faulthandler`` may have written others."""
    return [json.loads(line) for line in said.read_text().splitlines() if line.startswith(("{", "["))]


def test_a_held_loop_is_told_of_with_its_stack_and_so_is_its_end(tmp_path: Path) -> None:
    said = tmp_path / "said"
    with running([sys.executable, "-c", PROGRAM, "hold_until_it_is_said", str(said)], said) as process:
        assert process.wait(60) == 0
    *told, threads = [line for line in lines(said) if isinstance(line, list) or line["level"] == "error"]
    held, again = told
    assert held["msg"].startswith("the event loop has been held for 0.")
    assert " hold_until_it_is_said" in held["stack"]
    assert "reactor" in held["stack"] or "base.py" in held["stack"]
    assert again["msg"].startswith("the event loop goes on, after ")
    assert "watchdog" not in threads


def test_a_loop_that_turns_is_not_told_of_and_no_thread_stays(tmp_path: Path) -> None:
    said = tmp_path / "said"
    with running([sys.executable, "-c", PROGRAM, "nothing", str(said)], said) as process:
        assert process.wait(60) == 0
    assert "watchdog" not in lines(said)[-1]
    assert "held" not in said.read_text()


def test_a_call_that_keeps_the_interpreter_is_told_of_while_it_lasts(tmp_path: Path) -> None:
    said = tmp_path / "said"
    with running([sys.executable, "-c", PROGRAM, "hold_with_a_regular_expression", str(said)], said) as process:
        until(lambda: "in hold_with_a_regular_expression" in said.read_text(), "the stacks")
        assert process.poll() is None
    assert "Timeout (" in said.read_text()


@pytest.mark.parametrize("how", ["console", "twistd"])
def test_every_daemon_has_one(tmp_path: Path, how: str) -> None:
    said, config = tmp_path / "said", tmp_path / "toy.json"
    config.write_text('{"mode": "starts"}')
    command = [sys.executable, "-m", "tests.support.toy_tap"]
    if how == "twistd":
        plugins = tmp_path / "twisted" / "plugins"
        plugins.mkdir(parents=True)
        (plugins / "toy_plugin.py").write_text(
            "from twisted.application.service import ServiceMaker\n"
            'toy = ServiceMaker("Toy", "tests.support.toy_tap", "Does nothing", "toy")\n'
        )
        command = [str(Path(sys.executable).with_name("twistd")), "-n", "toy"]
    path = os.pathsep.join((str(tmp_path), str(REPOSITORY)))
    with running([*command, f"--config={config}"], said, PYTHONPATH=path) as process:
        until(lambda: "started" in said.read_text(), "it serves")
        process.send_signal(signal.SIGSTOP)
        time.sleep(HELD_SECONDS + 0.5)  # the time is what it is told for; a longer one changes nothing
        process.send_signal(signal.SIGCONT)
        until(lambda: "goes on, after" in said.read_text(), "it was held")
        process.terminate()
        assert process.wait(60) == -signal.SIGTERM
    (line,) = [json.loads(line) for line in said.read_text().splitlines() if "goes on, after" in line]
    assert (line["level"], line["seconds"] >= HELD_SECONDS) == ("error", True)
