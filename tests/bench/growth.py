"""What a growing database costs: the same work with few and with many collections, versions and keys.

Rules of this module: the collections that are worked on are real, and the same at every size. The many others are
copies of their rows under other names, made inside the database: nobody reads them, they are there to be in the way.
The database does not wait for the disk here, so that what is seen is the work and not the device.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.figures import OURS, BenchError
from tests.bench.httpload import Crowd, Request, lua_of, wrk
from tests.bench.pairs import Pairs
from tests.bench.report import number
from tests.bench.suites import ROOT_CA, Pace
from tests.support.author import Author, server_key_from
from tests.support.sides import MULTIPART, form_of

REAL = 100
"""How many collections are worked on."""

MOST = 1.5
"""How many times as long work may take at the largest size as at the smallest."""

FSCK_RATE = 20
"""Collections a second that fsck shall check at least."""

_SETTLE_SECONDS = 60.0
_PAGE, _PAGE_OF_ONE = 100, 10  # records of a page of the changefeed
_ADMIN = str(Path(sys.executable).with_name("notary-admin"))


@dataclass(frozen=True)
class Curve:
    """One kind of work: milliseconds by size."""

    label: str
    of: str
    figures: Mapping[int, float]

    @property
    def growth(self) -> float:
        """The figure at the largest size, divided by that at the smallest."""
        return self.figures[max(self.figures)] / self.figures[min(self.figures)]


TITLE = "Growth"
TEXT = f"""\
Our server and signer on a MariaDB that is filled step by step; milliseconds an answer, and how many times as long it
takes at the largest size as at the smallest. {REAL} real collections are read (8 connections) and published to (one
after the other); the others are copies of rows that nobody reads. Pages of the changefeed have {_PAGE} records of all
collections, {_PAGE_OF_ONE} of one. The database does not wait for the disk, and each measurement begins when it has
written what was filled in; a figure is the median of three.

![What work takes as the database grows](diagrams/growth.svg)
"""


def tables(lines: Sequence[Curve], fsck: Mapping[str, float]) -> str:
    """Lines as Markdown, a table for each thing that grows, and what fsck did."""
    found = []
    for of in dict.fromkeys(line.of for line in lines):
        some = [line for line in lines if line.of == of]
        sizes = sorted(some[0].figures)
        head = ["", *[f"{size:,} {of}" for size in sizes], "growth", "goal", "met"]
        rows = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(sizes) + 1) + "---|---|"]
        for line in some:
            cells = [line.label, *[number(line.figures[size]) for size in sizes], f"{line.growth:.2f}"]
            goal = [f"at most {MOST}", "yes" if line.growth <= MOST else "**no**"]
            rows.append(f"| {' | '.join([*cells, *goal])} |")
        found.append("\n".join(rows) + "\n")
    met = "met" if fsck["rate"] >= FSCK_RATE else "**not met**"
    found.append(
        f"`notary-admin fsck` checked {number(fsck['rate'])} collections a second (goal: at least {FSCK_RATE}, {met}) "
        f"in {number(fsck['peak'])} MB of memory, start and end of the program included.\n"
    )
    return "\n".join(found)


@dataclass(frozen=True)
class Sizes:
    """How far it goes, how long each measurement takes, and of how many the median counts."""

    collections: Sequence[int]
    versions: Sequence[int]
    keys: Sequence[int]
    seconds: float
    requests: int
    rounds: int


FULL = Sizes((REAL, 10_000, 200_000), (10, 10_000), (REAL, 100_000, 1_000_000), seconds=3, requests=200, rounds=3)
QUICK = Sizes((REAL, 2_000), (10, 500), (REAL, 5_000), seconds=1, requests=100, rounds=1)


class Growth(Pairs):
    """Our server and signer on a MariaDB that is filled step by step."""

    names = (OURS,)
    fast = True

    def __init__(self, folder: Path, sizes: Sizes, say: Callable[[str], None]) -> None:
        super().__init__(folder, Pace(seconds=sizes.seconds, rest=0, uploads=0))
        self._sizes = sizes
        self._say = say
        self._authors: list[Author] = []

    def fill(self, side: str, server: object) -> None:
        """Nothing: the collections come later."""

    def run(self) -> tuple[list[Curve], dict[str, float]]:
        """All lines, and what fsck does: ``rate`` (collections a second) and ``peak`` (MB)."""
        self._publish_first()
        lines = self._lines("collections", self._sizes.collections, self._add_collections, self._works(self._authors))
        fsck = self._fsck()
        one = self._authors[1]
        lines += self._lines("versions of it", self._sizes.versions, self._add_versions, self._works([one]))
        lines += self._lines("keys", self._sizes.keys, self._add_keys, {"key creation": self._create_keys})
        return lines, fsck

    def _lines(
        self,
        of: str,
        sizes: Sequence[int],
        grow: Callable[[int], None],
        works: Mapping[str, Callable[[], Mapping[str, float]]],
    ) -> list[Curve]:
        found: dict[tuple[str, str], dict[int, float]] = {}
        for size in sizes:
            self._say(f"growth: {size:,} {of}")
            grow(size)
            self._settle()
            for name, work in works.items():
                self._say(f"growth: {size:,} {of}: {name}")
                work()  # what is slow only once
                rounds = [work() for _ in range(self._sizes.rounds)]
                for quantile in ("p50", "p99"):
                    figure = statistics.median([figures[quantile] for figures in rounds])
                    found.setdefault((name, quantile), {})[size] = figure
        return [Curve(f"{name}, {quantile}", of, figures) for (name, quantile), figures in found.items()]

    # -- filling ------------------------------------------------------------------------------------------------------

    def _publish_first(self) -> None:
        guns = [f"example.com/real/{number:03}" for number in range(REAL)]
        with self._crowd(8) as crowd:
            keys, _ = crowd.send([Request("GET", f"{_path(gun)}timestamp.key") for gun in guns])
            self._authors = [Author(gun, timestamp=server_key_from(key)) for gun, key in zip(guns, keys, strict=True)]
            for author in self._authors:
                author.add("v1", b"content")
            crowd.send([_upload(author.gun, author.first()) for author in self._authors])
        self._publish_again(self._authors[:1], 2 * _PAGE_OF_ONE)

    def _add_collections(self, size: int) -> None:
        """Copies of the first collection: before, between and behind the real ones, by their names."""
        have = self._count("SELECT COUNT(DISTINCT gun) FROM tuf_files")
        if size <= have:
            return
        copies = f"seq_{have + 1}_to_{size}"
        name = "CONCAT('example.com/', ELT(1 + seq % 3, 'a', 'real', 'z'), '/copy/', seq)"
        gun = self._authors[0].gun
        for table, columns in (
            ("tuf_files", "created_at, updated_at, role, version, sha256, data"),
            ("changefeed", "created_at, version, sha256, category"),
        ):
            self._mariadb.execute(
                self._places[OURS].metadata,
                f"INSERT INTO {table} (gun, {columns}) SELECT {name}, {columns} "
                f"FROM {copies}, {table} WHERE gun = '{gun}' AND version = 1",
            )

    def _add_versions(self, size: int) -> None:
        """Publish one collection over and over: its timestamp counts them."""
        author = self._authors[1]
        have = self._count(f"SELECT MAX(version) FROM tuf_files WHERE gun = '{author.gun}' AND role = 'timestamp'")
        if size > have:
            self._publish_again([author], size - have)

    def _add_keys(self, size: int) -> None:
        have = self._count("SELECT COUNT(*) FROM private_keys", self._places[OURS].keys)
        if size <= have:
            return
        self._mariadb.execute(
            self._places[OURS].keys,
            "INSERT INTO private_keys (created_at, updated_at, key_id, encryption_alg, keywrap_alg, algorithm, "
            "passphrase_alias, public, private, gun, role, last_used) SELECT NOW(), NOW(), SHA2(seq, 256), 'A256GCM', "
            "'PBES2-HS256+A128KW', 'ecdsa', 'bench', 'public', 'private', CONCAT('example.com/copy/', seq), "
            f"'timestamp', NOW() FROM seq_{have + 1}_to_{size}",
        )

    def _settle(self) -> None:
        """Wait until the database has written what was filled in: that is its work, and over some day."""
        self._mariadb.execute("", "SET GLOBAL innodb_max_dirty_pages_pct = 0")
        deadline = time.monotonic() + _SETTLE_SECONDS
        dirty = "SHOW GLOBAL STATUS LIKE 'Innodb_buffer_pool_pages_dirty'"
        while int(self._mariadb.execute("", dirty)[0][1]) > 0 and time.monotonic() < deadline:
            time.sleep(0.2)
        self._mariadb.execute("", "SET GLOBAL innodb_max_dirty_pages_pct = DEFAULT")

    def _count(self, sql: str, database: str = "") -> int:
        ((count,),) = self._mariadb.execute(database or self._places[OURS].metadata, sql)
        return int(count)

    # -- working ------------------------------------------------------------------------------------------------------

    def _works(self, authors: Sequence[Author]) -> Mapping[str, Callable[[], Mapping[str, float]]]:
        paths = [_path(author.gun) for author in authors]
        return {
            "current read": lambda: self._wrk([f"{path}timestamp.json" for path in paths]),
            "publish": lambda: self._publish_again(authors),
            "changefeed of all": lambda: self._wrk([f"/v2/_trust/changefeed?records={_PAGE}&change_id=50"]),
            "changefeed of one": lambda: self._wrk([f"{paths[0][:-4]}changefeed?records={_PAGE_OF_ONE}"]),
        }

    def _wrk(self, paths: Sequence[str]) -> Mapping[str, float]:
        script = self._folder / "growth.lua"
        script.write_text(lua_of(paths))
        return wrk(self._url(self.sides[OURS]) + paths[0], 8, self._sizes.seconds, script=script)

    def _publish_again(self, authors: Sequence[Author], count: int = 0) -> Mapping[str, float]:
        uploads = []
        for turn in range(count or self._sizes.requests):
            author = authors[turn % len(authors)]
            author.add("v1", str(turn).encode())
            uploads.append(_upload(author.gun, author.publish("targets")))
        with self._crowd(1) as crowd:
            return crowd.send(uploads)[1]

    def _create_keys(self) -> Mapping[str, float]:
        numbers = [next(self._numbers) for _ in range(self._sizes.requests)]
        with self._crowd(1) as crowd:
            return crowd.send([Request("GET", f"{_path(f'example.com/new/{n}')}timestamp.key") for n in numbers])[1]

    def _crowd(self, in_flight: int) -> contextlib.closing[Crowd]:
        return contextlib.closing(Crowd(in_flight, self.sides[OURS].processes["server"].port, ROOT_CA))

    def _fsck(self) -> dict[str, float]:
        """Check the real collections."""
        self._say("growth: fsck")
        config = self._folder / f"{OURS}-server.json"
        begun = time.perf_counter()
        process = subprocess.Popen(
            [_ADMIN, "fsck", "--config", str(config), "--json", "--prefix", "example.com/real/0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        output, errors = process.stdout.read(), process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        took = time.perf_counter() - begun
        if process.returncode:
            raise BenchError(f"fsck found something, or failed:\n{(output + errors).decode()[-2000:]}")
        return {"rate": REAL / took, "peak": usage.ru_maxrss * 1024 / 1e6}


def _path(gun: str) -> str:
    return f"/v2/{gun}/_trust/tuf/"


def _upload(gun: str, files: Mapping[str, bytes]) -> Request:
    return Request("POST", _path(gun), form_of(files), MULTIPART)
