"""Runs one command of ``notary-admin`` many times, each time in a child of this process and with another end.

``python -m tests.support.ended REQUEST``, where REQUEST is JSON: the ``arguments`` of the command ("{pid}" is
replaced), ``grace_seconds``, and ``cases``. A case has a ``stage`` and a ``signal`` that comes then, or ``lines``:
how many lines of standard output are read until its reader goes away (0: before the command starts), or "none" if
nobody reads it. Writes one JSON object a case: ``reached`` says whether the stage was reached, ``status`` is the exit
status or the negative number of the signal that ended the child, ``err`` its standard error, and ``wrote`` whether
there was any output.
"""

from __future__ import annotations

import fcntl
import functools
import json
import operator
import os
import sys
import tempfile
from importlib import import_module

from notary.admin import cli, process, start

assert cli  # loaded once, for all children

STAGES = {
    "command line": ["notary.admin.cli:parse"],
    "configuration": ["notary.admin.session:load_file"],
    "store": ["notary.storage.sql.database:Database.__init__"],
    "work": ["notary.storage.sql.database:Database._work"],
    "results": ["notary.admin.output:Output._write", "notary.admin.output:Output._print"],
    "message": ["notary.admin.output:Output.say"],
    "close": ["notary.storage.sql.database:Database.close"],
    "flush": ["notary.admin.output:Output.flush"],
    "end": ["notary.admin.process:_Running._end"],
    "exit": ["notary.admin.cli:drop_unwritten"],
}
"""The functions before which the signal comes, at the first call of any of them."""


def arm(stage: str, number: int, reached: int) -> None:
    """Let this process send itself a signal at a stage; a byte goes to the pipe ``reached`` then."""
    waiting = [stage]

    def wrap(function):
        @functools.wraps(function)
        def wrapped(*args, **kwargs):
            if waiting:
                waiting.clear()
                os.write(reached, b"!")
                os.kill(os.getpid(), number)
            return function(*args, **kwargs)

        return wrapped

    for place in STAGES[stage]:
        module, _, path = place.partition(":")
        *owners, name = path.split(".")
        owner = functools.reduce(getattr, owners, import_module(module))
        setattr(owner, name, wrap(operator.attrgetter(name)(owner)))


def full_pipe() -> int:
    """The end of a pipe to which nothing more can be written, and which nobody reads."""
    _, end = os.pipe()
    os.set_blocking(end, False)
    size = fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, 4096)
    assert os.write(end, b"x" * size) == size
    os.set_blocking(end, True)
    return end


def child(request: dict, case: dict, reached: int, out: int, err: int) -> None:
    """Be ``notary-admin``; does not return."""
    os.dup2(full_pipe() if case.get("lines") == "none" else out, 1)
    os.dup2(err, 2)
    process.GRACE_SECONDS = request["grace_seconds"]
    if "stage" in case:
        arm(case["stage"], case["signal"], reached)
    sys.argv = ["notary-admin", *[each.replace("{pid}", str(os.getpid())) for each in request["arguments"]]]
    try:
        start.main()
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(end.code)
    os._exit(99)


def run(request: dict, case: dict) -> dict:
    """Run one case."""
    reached, told = os.pipe()
    reader, out = os.pipe()
    lines = case.get("lines")
    if lines == 0:
        os.close(reader)
    with tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            if lines != 0:
                os.close(reader)
            child(request, case, told, out, err.fileno())
        os.close(told)
        os.close(out)
        wrote = False
        if lines != 0:
            with os.fdopen(reader, "rb") as stream:
                wrote = bool([stream.readline() for _ in range(lines)] if isinstance(lines, int) else stream.read())
        _, status = os.waitpid(pid, 0)
        err.seek(0)
        answer = {"status": os.waitstatus_to_exitcode(status), "wrote": wrote, "err": err.read().decode()}
    with os.fdopen(reached, "rb") as stream:
        return {**answer, "reached": bool(stream.read())}


def main() -> None:
    request = json.loads(sys.argv[1])
    for case in request["cases"]:
        sys.stdout.write(json.dumps(run(request, case)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
