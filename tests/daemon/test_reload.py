"""What is read from files again: all of it or nothing, when told to and when files change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from notary.daemon.reload import LOOK_SECONDS, Part, Reloader, part, restart_lines
from notary.errors import ConfigError


class Texts:
    """Parts that are the texts of files; ``used`` is what each of them is now. A text that begins with "bad" fails."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.used: dict[str, str] = {}
        self.clock = Clock()
        self.loads = 0

    def write(self, name: str, text: str) -> Path:
        """Replace a file, so that it is another one even if its size and the clock's tick are the same."""
        path = self.folder / name
        new = self.folder / "new"
        new.write_text(text)
        new.replace(path)
        return path

    def part(self, name: str, file: str = "") -> Part:
        path = self.folder / (file or name)

        def load() -> str:
            self.loads += 1
            if not path.exists() or path.read_text().startswith("bad"):
                raise ConfigError(f"{name}: cannot be used")
            return path.read_text()

        return part((name,), (path, None), load, lambda text: self.used.update({name: text}))

    def in_thread(self, work: Callable[[], Any]) -> Deferred[Any]:
        return maybeDeferred(work)


@pytest.fixture
def texts(tmp_path: Path) -> Texts:
    made = Texts(tmp_path)
    for name in ("one", "two"):
        made.write(name, "old")
    return made


@pytest.fixture
def reloader(texts: Texts) -> Iterator[Reloader]:
    made = Reloader([texts.part("one"), texts.part("two")], texts.in_thread, texts.clock)
    made.startService()
    yield made
    made.stopService()
    assert texts.clock.getDelayedCalls() == []


def look(texts: Texts, times: int = 1) -> None:
    for _ in range(times):
        texts.clock.advance(LOOK_SECONDS)


def test_nothing_is_read_while_nothing_changes(texts: Texts, reloader: Reloader) -> None:
    look(texts, 5)
    assert (texts.loads, texts.used) == (0, {})


def test_a_change_is_taken_when_it_has_settled(texts: Texts, reloader: Reloader) -> None:
    look(texts)
    texts.write("one", "newer")
    look(texts)
    assert texts.used == {}, "the other file of a pair may be on its way"
    texts.write("two", "newer")
    look(texts)
    assert texts.used == {}
    with capturedLogs() as logs:
        look(texts)
    assert texts.used == {"one": "newer", "two": "newer"}
    assert [(event["log_level"].name, event["files"]) for event in logs] == [
        ("info", f"{texts.folder / 'one'}, {texts.folder / 'two'}")
    ]
    look(texts, 5)
    assert texts.loads == 2


@pytest.mark.parametrize("bad", ["bad", None], ids=["content", "gone"])
def test_a_bad_change_is_told_once_and_changes_nothing(texts: Texts, reloader: Reloader, bad: str | None) -> None:
    look(texts)
    texts.write("one", "newer")
    if bad is None:
        (texts.folder / "two").unlink()
    else:
        texts.write("two", bad)
    with capturedLogs() as logs:
        look(texts, 5)
    assert texts.used == {}, "not even the good one"
    (event,) = logs
    assert (event["log_level"].name, event["error"]) == ("error", "two: cannot be used")
    texts.write("two", "right")
    look(texts, 2)
    assert texts.used == {"one": "newer", "two": "right"}


@pytest_twisted.ensureDeferred
async def test_told_to_reload_it_reads_other_files_and_then_watches_those(texts: Texts, reloader: Reloader) -> None:
    look(texts)
    texts.write("elsewhere", "new")
    await reloader.reload([texts.part("one", "elsewhere"), texts.part("two")])
    assert texts.used == {"one": "new", "two": "old"}
    look(texts, 3)
    assert texts.loads == 2, "what was just read is not read again"
    texts.write("one", "nobody looks")
    texts.write("elsewhere", "newest")
    look(texts, 2)
    assert texts.used == {"one": "newest", "two": "old"}


@pytest_twisted.ensureDeferred
async def test_told_to_reload_what_is_bad_it_keeps_all_and_is_not_told_twice(texts: Texts, reloader: Reloader) -> None:
    look(texts)
    texts.write("one", "newer")
    texts.write("two", "bad")
    with pytest.raises(ConfigError, match="two: cannot be used"):
        await reloader.reload([texts.part("one"), texts.part("two")])
    with capturedLogs() as logs:
        look(texts, 3)
    assert (texts.used, logs) == ({}, [])
    texts.write("two", "right")
    look(texts, 2)
    assert texts.used == {"one": "newer", "two": "right"}


def test_a_key_that_no_part_takes_needs_a_restart(texts: Texts) -> None:
    (line,) = restart_lines(["one", "logging.level", "storage.backend"], [texts.part("one")])
    assert line.startswith("storage.backend has changed, which needs a restart")
