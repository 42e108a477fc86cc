"""What something holds and what it costs, in units that are the same on every machine."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Collection
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, Final

_SHARED: Final = (type, ModuleType, FunctionType, BuiltinFunctionType)


def held(root: object, *, without: Collection[object] = ()) -> int:
    """The bytes of all objects that can be reached from ``root``, but for code and what only ``without`` leads to."""
    seen = {id(each) for each in without}
    waiting = [root]
    total = 0
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, _SHARED):
            continue
        seen.add(id(one))
        total += sys.getsizeof(one)
        waiting += gc.get_referents(one)
    return total


def calls(function: Callable[[], object]) -> int:
    """How many functions, Python's and C's, are called in ``function``."""
    count = 0

    def profile(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count
