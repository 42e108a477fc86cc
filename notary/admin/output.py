"""The output of commands: tables, trees, progress bars on a terminal; tab-separated lines elsewhere; JSON for scripts.

Rules of this module: results go to standard output, all else to standard error. The memory for output does not grow
with the database: a table on a terminal is drawn every :data:`ROWS_PER_TABLE` rows. Text from the database is data,
never markup, and its control characters never reach a terminal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Final, TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text
from rich.tree import Tree

from notary.errors import NotaryError

ROWS_PER_TABLE: Final = 200
"""The most rows of one table on a terminal; more rows begin another table."""

_WHOLE_WORD_CHARACTERS: Final = 14
"""The longest word that is never broken in a table too wide for its terminal."""

Node = tuple[str, Sequence["Node"]]
"""A line of a tree, and the nodes below it."""


class OutputFailed(NotaryError):
    """The output cannot be written, for another reason than a closed pipe."""


class _Console(Console):
    """A console that tells its caller of a closed pipe. Rich's own exits the process, with status 1."""

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError."""
        raise BrokenPipeError


@contextmanager
def _writing() -> Iterator[None]:
    """Raise OutputFailed if the output cannot be written."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputFailed(f"standard output cannot be written: {error.strerror}") from None


class Output:
    """The output of one command to two text streams. With ``as_json``, every result is one line of JSON.

    Every method raises BrokenPipeError if nobody reads the stream any more, OutputFailed if it cannot be written.
    """

    def __init__(self, stdout: TextIO, stderr: TextIO, *, as_json: bool) -> None:
        self.as_json = as_json
        self._out = _Console(file=stdout, highlight=False, markup=False, soft_wrap=True)
        self._err = _Console(file=stderr, highlight=False, markup=False, soft_wrap=True)
        self._bar: Progress | None = None

    def say(self, message: str) -> None:
        """Write a line for people to standard error."""
        self._err.print(printable(message), style="")

    def flush(self) -> None:
        """Write what is left in the buffer of standard output."""
        with _writing():
            self._out.file.flush()

    def summary(self, message: str) -> None:
        """Write a closing line for people, with totals. With JSON there is none: cron would mail it."""
        if not self.as_json:
            self.flush()  # where both outputs go to one file, it comes after them
            self.say(message)

    def line(self, text: str, record: Mapping[str, object]) -> None:
        """Write one result: ``text`` for people, ``record`` for scripts."""
        if self.as_json:
            self._json(record)
        else:
            self._print(printable(text))

    def verbatim(self, text: str) -> None:
        """Write text for programs to standard output, as it is."""
        self._write(text)

    @contextmanager
    def table(
        self, *columns: str, heading: bool = True
    ) -> Iterator[Callable[[Sequence[object], Mapping[str, object]], None]]:
        """Open a table of results. The function it yields adds a row: cells for people, a record for scripts.

        Without ``heading`` the table goes on from the one before it, of the same columns, which only lines show.
        """
        waiting: list[Sequence[str]] = []
        plain = not self.as_json and not self._out.is_terminal
        if plain and heading:
            self._plain(columns)

        def add(cells: Sequence[object], record: Mapping[str, object]) -> None:
            if self.as_json:
                self._json(record)
                return
            row = [printable(text_of(cell)) for cell in cells]
            if plain:
                self._plain(row)
                return
            waiting.append(row)
            if len(waiting) == ROWS_PER_TABLE:
                self._draw(columns, waiting)
                waiting.clear()

        yield add
        if waiting:
            self._draw(columns, waiting)

    def tree(self, root: Node, record: Mapping[str, object]) -> None:
        """Write a tree of lines; if the output is not a terminal, each level is indented by two spaces."""
        if self.as_json:
            self._json(record)
        elif self._out.is_terminal:
            self._print(_rich_tree(root))
        else:
            for depth, text in _lines(root, 0):
                self._write("  " * depth + printable(text) + "\n")

    @property
    def shows_progress(self) -> bool:
        """Whether a progress bar is visible. Its total is worth counting only then."""
        return not self.as_json and self._err.is_terminal

    @contextmanager
    def progress(self, what: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """Show a progress bar if standard error is a terminal. The function it yields advances the bar."""
        if not self.shows_progress:
            yield lambda _more: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._err, transient=True) as bar:
            task = bar.add_task(what, total=total)
            self._bar = bar
            try:
                yield lambda more: bar.advance(task, more)
            finally:
                self._bar = None

    def _draw(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        # The first column stays whole as long as it fits; the other columns wrap, between words if possible.
        table = Table(Column(columns[0], no_wrap=True, overflow="fold"))
        for number, column in enumerate(columns[1:], start=1):
            words = [word for row in [columns, *rows] for word in row[number].split()]
            table.add_column(
                column, overflow="fold", min_width=min(_WHOLE_WORD_CHARACTERS, max(map(len, words), default=0))
            )
        for row in rows:
            table.add_row(*map(Text, row))
        if self._bar is not None:
            self._bar.stop()  # clears it from the screen
        self._print(table)
        if self._bar is not None:
            self._bar.start()

    def _json(self, record: Mapping[str, object]) -> None:
        self._write(json.dumps(record, default=text_of, ensure_ascii=True) + "\n")

    def _plain(self, cells: Sequence[str]) -> None:
        self._write("\t".join(cells) + "\n")

    def _write(self, text: str) -> None:
        with _writing():
            self._out.file.write(text)

    def _print(self, what: RenderableType) -> None:
        with _writing():
            self._out.print(what)


def printable(text: str) -> str:
    """Return ``text`` with all characters that could move a cursor or break a line as escapes."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def text_of(value: object) -> str:
    """Return a value as the text of a cell: a time in UTC to the second, None as ``-``."""
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%dT%H:%M:%SZ")
    return str(value)


def relative_time(when: datetime, now: datetime) -> str:
    """Return the distance of ``when`` from ``now`` in words, as of an expiry."""
    if when < now:
        return f"expired {_span(now - when)} ago"
    return f"in {_span(when - now)}"


def _span(length: timedelta) -> str:
    if length.days:
        return f"{length.days} d"
    hours, seconds = divmod(length.seconds, 3600)
    return f"{hours} h" if hours else f"{seconds // 60} min"


def counted(count: int, what: str) -> str:
    """Return a number of things for people: "1 file", "2 files"; ``what`` is the word for one."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def size_text(count: int) -> str:
    """Return a number of bytes as text for people."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:  # noqa: PLR2004 - what a KiB is
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def _rich_tree(root: Node) -> Tree:
    text, children = root
    tree = Tree(Text(printable(text)))
    for child in children:
        tree.children.append(_rich_tree(child))
    return tree


def _lines(node: Node, depth: int) -> Iterator[tuple[int, str]]:
    yield depth, node[0]
    for child in node[1]:
        yield from _lines(child, depth + 1)
