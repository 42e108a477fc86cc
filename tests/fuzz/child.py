"""Fuzzes one target in this process, by atheris: ``python -m tests.fuzz.child NAME FOLDER SECONDS``.

Rules of this module: the only one that knows atheris, which instruments what it imports of ours. A fault does not end
the run: each kind of fault, told by the place that raised it, is kept once, as a file in ``FOLDER/faults``.
"""

from __future__ import annotations

import gc
import hashlib
import sys
import traceback
from pathlib import Path
from types import TracebackType

import atheris

with atheris.instrument_imports(include=["notary", "multipart"]):
    from tests.fuzz.targets import TARGETS, Target

INPUT_SECONDS = 20
"""Seconds after which one input counts as one that holds the reactor, and ends the run."""

MEMORY_MIB = 2048
COLLECT_EVERY = 1000
"""Inputs between two collections of garbage: a Deferred that failed unheard says so when it is collected."""


class Run:
    """One run of a target; ``faults`` is where faults are kept."""

    def __init__(self, target: Target, faults: Path) -> None:
        self._target = target
        self._faults = faults
        self._known: set[str] = set()
        self._count = 0

    def __call__(self, data: bytes) -> None:
        """Feed one input."""
        self._count += 1
        try:
            self._target.run(data)
            if self._count % COLLECT_EVERY == 0:
                gc.collect()
        except Exception as error:  # noqa: BLE001 - any exception is what is looked for
            self._keep(data, error)

    def _keep(self, data: bytes, error: Exception) -> None:
        place = f"{type(error).__name__} {_place(error.__traceback__)}"
        if error.__cause__ is not None:
            place += f" from {type(error.__cause__).__name__} {_place(error.__cause__.__traceback__)}"
        if place in self._known:
            return
        self._known.add(place)
        path = self._faults / f"fault-{hashlib.sha256(data).hexdigest()[:12]}"
        path.write_bytes(data)
        path.with_suffix(".txt").write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        print(f"FAULT {path}: {place}: {str(error)[:200]}", flush=True)


def _place(trace: TracebackType | None) -> str:
    """The innermost line of ours."""
    frames = [each for each in traceback.extract_tb(trace) if "/notary/" in each.filename or "/tests/" in each.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"


def _escaped(word: bytes) -> str:
    """A word as libFuzzer's dictionaries have it."""
    return "".join(f"\\x{byte:02x}" for byte in word)


def main() -> None:
    """Run until the time is over; libFuzzer ends the process."""
    name, place, seconds = sys.argv[1:]
    (target,) = (each for each in TARGETS if each.name == name)
    folder = Path(place)
    for made in ("corpus", "faults"):
        (folder / made).mkdir(parents=True, exist_ok=True)
    words = folder / "words"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words), encoding="ascii")
    options = {
        "max_total_time": seconds,
        "max_len": target.most,
        "timeout": INPUT_SECONDS,
        "rss_limit_mb": MEMORY_MIB,
        "artifact_prefix": f"{folder}/faults/",
        **({"dict": words} if target.words else {}),
    }
    arguments = [f"-{option}={value}" for option, value in options.items()]
    atheris.Setup([sys.argv[0], *arguments, f"{folder}/corpus", str(target.corpus)], Run(target, folder / "faults"))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
