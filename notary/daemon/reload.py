"""What a daemon reads from files and may read again while it runs: certificates, keys, trusted authorities.

Rules of this module: files are read in a thread. Either all parts are replaced or none is: a certificate that does not
fit its key, or a file that is only half there, changes nothing. Connections that are open go on with what they began
with. Files that change by themselves are noticed by looking every ``LOOK_SECONDS``; a change is taken when two looks in
a row see the same, because the files of a pair are replaced one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from notary.errors import NotaryError
from notary.work.threads import InThread

LOOK_SECONDS: Final = 5.0
"""How often files are looked at."""

_log = Logger()

_Stat: TypeAlias = tuple[int, int, int, int] | None


class Part(NamedTuple):
    """One thing that is made from files.

    Args:
        keys: The keys of the configuration that name the files.
        files: The files.
        load: Reads them, in a thread; raises ConfigError.
        use: Takes what ``load`` returned, on the reactor's thread; cannot fail.
    """

    keys: tuple[str, ...]
    files: tuple[Path, ...]
    load: Callable[[], Any]
    use: Callable[[Any], None]


def part(
    keys: tuple[str, ...], files: Iterable[Path | None], load: Callable[[], Any], use: Callable[[Any], None]
) -> Part:
    """Return a part that is made from those of ``files`` that are given."""
    return Part(keys, tuple(path for path in files if path is not None), load, use)


def restart_lines(changed: Iterable[str], parts: Iterable[Part]) -> list[str]:
    """Return a line for each key that changed and cannot be taken over by one of ``parts``, or by the log."""
    taken = {key for each in parts for key in each.keys} | {"logging.level"}
    return [
        f"{key} has changed, which needs a restart; until then the old value holds"
        for key in changed
        if key not in taken
    ]


class Reloader(Service):
    """Loads ``parts`` again when it is told to, and by itself, while it is started, when their files have changed."""

    def __init__(self, parts: Sequence[Part], in_thread: InThread, clock: IReactorTime) -> None:
        self._parts = parts
        self._in_thread = in_thread
        self._lock = DeferredLock()
        self._seen: Mapping[Path, _Stat] | None = None  # the files as they were when they were read
        self._last: Mapping[Path, _Stat] | None = None  # the files at the last look
        self._loop = LoopingCall(lambda: Deferred.fromCoroutine(self._look()))
        self._loop.clock = clock

    def startService(self) -> None:
        """Begin to look at the files."""
        super().startService()
        self._loop.start(LOOK_SECONDS)

    def stopService(self) -> None:
        """Look no more."""
        super().stopService()
        if self._loop.running:
            self._loop.stop()

    async def reload(self, parts: Sequence[Part]) -> None:
        """Load ``parts``, which may have other files than before, and use all of them.

        Raises NotaryError; then what was read before stays, and the files that are looked at.
        """
        await self._lock.acquire()
        try:
            await self._replace(parts)
        finally:
            self._lock.release()

    async def _replace(self, parts: Sequence[Part]) -> None:
        found = await self._in_thread(partial(_looks, _files(parts)))
        # The files that are there now have been tried, with success or without.
        self._seen = {path: found.get(path, None) for path in _files(self._parts)}
        values = await self._in_thread(lambda: [part.load() for part in parts])
        for part, value in zip(parts, values, strict=True):
            part.use(value)
        self._parts = parts
        self._seen = found

    async def _look(self) -> None:
        await self._lock.acquire()
        try:
            found = await self._in_thread(partial(_looks, _files(self._parts)))
            last, self._last = self._last, found
            if self._seen is None:
                self._seen = found
            if not self.running or found == self._seen or found != last:
                return
            changed = ", ".join(str(path) for path in found if found[path] != self._seen.get(path))
            try:
                await self._replace(self._parts)
            except NotaryError as error:
                _log.error(
                    "{files} changed and cannot be used: {error}; what was read before stays in use",
                    files=changed,
                    error=str(error),
                )
            else:
                _log.info("{files} changed and is used from now on", files=changed)
        finally:
            self._lock.release()


def _files(parts: Iterable[Part]) -> list[Path]:
    return [path for part in parts for path in part.files]


def _looks(paths: Iterable[Path]) -> Mapping[Path, _Stat]:
    return {path: _stat(path) for path in paths}


def _stat(path: Path) -> _Stat:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_dev, found.st_size
