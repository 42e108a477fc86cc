"""Profiles, read back: as protobuf, and by ``go tool pprof``."""

from __future__ import annotations

import gzip
import os
import subprocess
from pathlib import Path

from notary.proto import profile_pb2

COMMAND_SECONDS = 60.0


class Read:
    """A profile as pprof's own format says it: ``stacks`` are lists of function names, innermost first."""

    def __init__(self, data: bytes) -> None:
        self.raw = raw = profile_pb2.Profile.FromString(gzip.decompress(data))
        text = raw.string_table
        assert text[0] == ""
        assert len(set(text)) == len(text)
        self.kinds = [(text[each.type], text[each.unit]) for each in raw.sample_type]
        functions = {each.id: text[each.name] for each in raw.function}
        self.files = {text[each.name]: text[each.filename] for each in raw.function}
        locations = {each.id: [functions[line.function_id] for line in each.line] for each in raw.location}
        assert 0 not in functions
        assert 0 not in locations
        self.lines = {functions[line.function_id]: line.line for each in raw.location for line in each.line}
        self.samples = [
            ([name for location in sample.location_id for name in locations[location]], list(sample.value))
            for sample in raw.sample
        ]
        self.comments = [text[each] for each in raw.comment]

    @property
    def functions(self) -> set[str]:
        return set(self.files)

    def stacks(self, function: str) -> list[list[str]]:
        """The stacks that hold a function whose name ends like this."""
        return [stack for stack, _ in self.samples if any(name.endswith(function) for name in stack)]


def go_tool_pprof(directory: Path, source: str | bytes, *flags: str) -> str:
    """What ``go tool pprof -top`` prints of a profile, or of what it fetches from a URL; AssertionError if it fails."""
    if isinstance(source, bytes):
        path = directory / "profile.pb.gz"
        path.write_bytes(source)
        source = str(path)
    environment = {**os.environ, "PPROF_TMPDIR": str(directory), "HOME": str(directory), "GOFLAGS": ""}
    done = subprocess.run(
        ("go", "tool", "pprof", "-top", "-nodecount=500", "-nodefraction=0", *flags, source),
        capture_output=True,
        env=environment,
        cwd=directory,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()
