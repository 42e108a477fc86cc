"""Fuzzes one target after the other, each in a process of its own: ``make fuzz``, or ``python -m tests.fuzz``.

``FUZZ_SECONDS`` is how long each is fuzzed (30), ``FUZZ`` names those that are (all), separated by blanks. What was
found is in ``build/fuzz/NAME/faults``; the exit status is 1 if there is anything. Inputs that reached new code are kept
beside that, for the next run to start from.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from tests.fuzz.targets import TARGETS, Target

FOLDER = Path("build/fuzz")


def fuzz(target: Target, seconds: int) -> tuple[int, list[str]]:
    """Fuzz ``target``; how many inputs it was fed, and what was found."""
    folder = FOLDER / target.name
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log"
    began = time.time()
    with log.open("wb") as output:
        command = [sys.executable, "-m", "tests.fuzz.child", target.name, str(folder), str(seconds)]
        status = subprocess.run(command, stdout=output, stderr=output, check=False).returncode
    text = log.read_text("utf-8", "replace")
    found = re.findall(r"^FAULT (.*)$", text, re.MULTILINE)
    found += [str(each) for each in sorted((folder / "faults").glob("*-*")) if _is_artifact(each, began)]
    if status != 0 and not found:
        found = [f"ended with status {status}; see {log}"]
    done = re.search(r"^Done (\d+) runs", text, re.MULTILINE)
    counts = [int(count) for count in re.findall(r"^#(\d+)\t", text, re.MULTILINE)]
    return int(done[1]) if done else max(counts, default=0), found


def _is_artifact(path: Path, began: float) -> bool:
    """Whether libFuzzer itself wrote this file since ``began``: an input that took too long, or too much."""
    return not path.name.startswith("fault-") and path.stat().st_mtime >= began


def main() -> int:
    """Fuzz what the environment asks for."""
    seconds = int(os.environ.get("FUZZ_SECONDS") or 30)
    names = os.environ.get("FUZZ", "").split() or [target.name for target in TARGETS]
    known = {target.name: target for target in TARGETS}
    if unknown := set(names) - set(known):
        sys.exit(f"FUZZ: no target {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    total, faults = 0, 0
    for name in names:
        count, found = fuzz(known[name], seconds)
        total, faults = total + count, faults + len(found)
        print(f"{name:14} {count:10,} inputs, {len(found)} faults", flush=True)
        for each in found:
            print(f"    {each}", flush=True)
    print(f"{'all':14} {total:10,} inputs, {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
