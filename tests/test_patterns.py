"""Every regular expression of the package is linear: twice as long an input is twice the work, also the worst one.

The test finds them by itself. A pattern that it cannot find out, or a method whose pattern it cannot tell, fails.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest

import notary
from notary.server.api import ROUTES
from notary.storage.sql.backends.postgres import dsn
from tests.support.backtracking import Tree

ROOT = Path(notary.__file__).parent
GENERATED = ROOT / "proto"
DIRECT = {"match", "fullmatch", "search", "sub", "subn", "split", "findall", "finditer"}
TELLING = DIRECT - {"split"}  # text can be split too
WORST_GROWTH = 2.3  # a linear pattern doubles its steps, a quadratic one comes close to 4

NAMELESS: dict[tuple[str, str], Any] = {
    ("notary.server.routes", "route.pattern"): lambda: [route.pattern for route in ROUTES],
    ("notary.storage.sql.backends.postgres.dsn", "rule.pattern"): lambda: [
        rule.pattern for rule in dsn._POSTGRES.values()
    ],
    ("notary.storage.sql.backends.postgres.dsn", "_QUOTED if quoted else _BARE"): lambda: [dsn._QUOTED, dsn._BARE],
}
"""Patterns that have no name where they are used: the module, the expression that stands for them, and all of them."""

COMPILED_ELSEWHERE = {("notary.server.routes", "self.path")}
"""Where the patterns of a table are compiled from an argument."""


class Use(NamedTuple):
    """A pattern, and a method that the code calls with it."""

    where: str
    pattern: re.Pattern[Any]
    method: str

    def __str__(self) -> str:
        return f"{self.where} {self.method} {self.pattern.pattern!r}"


def _flags(call: ast.Call, place: int, names: dict[str, Any]) -> int:
    given = [each.value for each in call.keywords if each.arg == "flags"] + list(call.args[place : place + 1])
    return eval(ast.unparse(given[0]), names) if given else 0


class Module:
    def __init__(self, file: Path) -> None:
        self.name = ".".join(("notary", *file.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        self.tree = ast.parse(file.read_text())
        self.names = {**vars(importlib.import_module(self.name))} if "re." in file.read_text() else {}

    def uses(self) -> Iterator[Use]:
        named = self._named()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom):
                assert node.module not in {"re", "regex"}, f"{self.name} imports from re: the test knows re.… only"
            if isinstance(node, ast.Import):
                assert all(each.name != "regex" and (each.name != "re" or not each.asname) for each in node.names)
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            where, method, owner = f"{self.name}:{node.lineno}", node.func.attr, ast.unparse(node.func.value)
            if owner == "re" and method in DIRECT:
                flags = _flags(node, {"sub": 4, "subn": 4, "split": 3}.get(method, 2), self.names)
                for pattern in self._direct(ast.unparse(node.args[0])):
                    yield Use(where, re.compile(pattern, flags), method)
            elif owner == "re" and method == "compile":
                chained = self._chained(node)
                text = ast.unparse(node.args[0])
                known = chained or text in named.values() or self._tabled(text)
                assert known, f"{where}: which methods of it are called?"
                for each in chained:
                    yield Use(where, re.compile(eval(text, self.names), _flags(node, 1, self.names)), each)
            elif (self.name, owner) in NAMELESS and method in DIRECT:
                for pattern in NAMELESS[self.name, owner]():
                    yield Use(where, pattern, method)
            elif method in TELLING and not owner.startswith("re.compile("):
                assert owner in named, f"{where}: which pattern is {owner}?"
                yield Use(where, self.names[owner], method)
            elif owner in named:
                yield Use(where, self.names[owner], method)

    def _named(self) -> dict[str, str]:
        """Names of the module that are patterns, and the expressions that these come from."""
        found = {}
        for node in self.tree.body:
            value = getattr(node, "value", None)
            if isinstance(value, ast.Call) and ast.unparse(value.func) == "re.compile":
                (target,) = node.targets if isinstance(node, ast.Assign) else [node.target]
                found[target.id] = ast.unparse(value.args[0])
        return found

    def _direct(self, expression: str) -> list[Any]:
        if (self.name, expression) in NAMELESS:
            return NAMELESS[self.name, expression]()
        return [eval(expression, self.names)]

    def _chained(self, compiled: ast.Call) -> list[str]:
        return [node.attr for node in ast.walk(self.tree) if isinstance(node, ast.Attribute) and node.value is compiled]

    def _tabled(self, expression: str) -> bool:
        """Whether this is the pattern of a row of a table."""
        if (self.name, expression) in COMPILED_ELSEWHERE:
            return True
        rows = [row for (name, _), table in NAMELESS.items() if name == self.name for row in table()]
        return any(getattr(row, "pattern", row) == eval(expression, self.names) for row in rows)


@lru_cache(1)
def uses() -> tuple[Use, ...]:
    files = [file for file in sorted(ROOT.rglob("*.py")) if GENERATED not in file.parents]
    return tuple(use for file in files for use in Module(file).uses())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "use" in metafunc.fixturenames:
        metafunc.parametrize("use", uses(), ids=str)


def test_there_are_as_many_as_somebody_who_searches_finds() -> None:
    assert len(uses()) > 60
    for name in (
        "notary.net.http.fast",
        "notary.net.http.multipart",
        "notary.storage.sql.db_url",
        "notary.config.values",
    ):
        assert any(use.where.startswith(name) for use in uses())


def test_twice_the_input_is_twice_the_work(use: Use) -> None:
    tree = Tree(use.pattern)
    for shape in tree.worst(use.method):
        assert tree.growth(use.method, shape) < WORST_GROWTH, f"{shape} makes {use} worse than linear"


# -- the matcher itself -----------------------------------------------------------------------------------------------


def spans(pattern: re.Pattern[Any], method: str, text: str) -> list[tuple[int, int]]:
    """What ``re`` finds."""
    given = text.encode("latin-1") if isinstance(pattern.pattern, bytes) else text
    if method in ("match", "fullmatch", "search"):
        found = getattr(pattern, method)(given)
        return [] if found is None else [found.span()]
    return [found.span() for found in pattern.finditer(given)]


def agree(pattern: re.Pattern[Any], method: str, seed: int, count: int) -> None:
    rng, tree = Random(seed), Tree(pattern)
    alphabet = tree.alphabet
    matched = 0
    for number in range(count):
        parts = [tree.sample(rng, more=number % 5), *rng.choices(alphabet, k=rng.randrange(3))]
        rng.shuffle(parts)
        text = "".join(parts)
        if number % 4 == 0 and text:
            place = rng.randrange(len(text))
            text = text[:place] + rng.choice(["", *alphabet]) + text[place + 1 :]
        ours = [span for span, _ in tree.found(method, text) if span is not None]
        theirs = spans(pattern, method, text)
        if any(start == end for start, end in theirs):  # after an empty match, re tries the same place again
            ours, theirs = ours[:1], theirs[:1]
        assert ours == theirs, (pattern, text)
        matched += bool(ours)
    assert matched > count // 20


def test_the_matcher_agrees_with_re(use: Use) -> None:
    agree(use.pattern, use.method, 1, 60)


@pytest.mark.parametrize(
    "pattern",
    [
        *(r"(a|ab)(c|bcd)*d?", r"(?:a*)*b", r"(a+)\1", r"a{2,3}?b", r"(?>a+)ab?|a", r"(?:ab?)++c?", r"(?i:aB)+c"),
        *(r"\bab\b", r"(?=ab)a.|(?<!b)b", r"(?s).+$", r"(?m)^a$", r"[^\W_]+", r"(?:a|b){1,3}?c", r"a*?b", r"\Aa\Z"),
    ],
)
def test_the_matcher_agrees_with_re_on_all_that_there_is(pattern: str) -> None:
    for method in ("match", "fullmatch", "search", "findall"):
        tree = Tree(re.compile(pattern))
        rng = Random(2)
        for _ in range(300):
            text = "".join(rng.choices([*"abcdAB \n_", *tree.alphabet], k=rng.randrange(9)))
            theirs = spans(tree.pattern, method, text)
            ours = [span for span, _ in tree.found(method, text) if span is not None]
            if any(start == end for start, end in theirs):
                ours, theirs = ours[:1], theirs[:1]
            assert ours == theirs, (pattern, text)


@pytest.mark.parametrize(
    ("pattern", "method"),
    [
        (rb"(?:[!-9;-~]+:[ \t]*([!-~](?:[ -~\t]*[!-~])?)?[ \t]*\r\n)+\r\n", "fullmatch"),  # blanks in three places
        (r"(a+)+b", "match"),
        (r"(?:a|a)*b", "match"),
        (r"a+b", "search"),  # fails at each of its starts
        (r"(?:(\w+) == )?\?", "sub"),
        (r"(.*),(.*)x", "fullmatch"),
        (r"[a-c]*[b-d]*e", "match"),
        (r"\s*=\s*$", "search"),
        (r"(?:ab|a|b)*c", "fullmatch"),
        (r".*ab.*cd", "match"),
        (r"(?m)^\s*--.*\n", "sub"),
    ],
)
def test_patterns_that_are_known_to_be_slow_are_found(pattern: Any, method: str) -> None:
    tree = Tree(re.compile(pattern))
    assert max(tree.growth(method, shape) for shape in tree.worst(method)) > WORST_GROWTH


@pytest.mark.parametrize(
    ("pattern", "method"),
    [(r"[a-z]++b", "match"), (r"\b\w++ == \?", "sub"), (r"(?:\s*+;)*x", "fullmatch"), (r"a{0,9}b", "search")],
)
def test_patterns_that_are_known_to_be_linear_pass(pattern: Any, method: str) -> None:
    tree = Tree(re.compile(pattern))
    assert max(tree.growth(method, shape) for shape in tree.worst(method)) < WORST_GROWTH


# -- loops ------------------------------------------------------------------------------------------------------------


VIEWS = {("net/grpc/connection.py", "_push")}
"""Functions in which what is left is a memoryview, of which a slice is no copy."""


def _copies(loop: ast.AST, texts: set[str]) -> Iterator[tuple[int, str]]:
    """What a loop does that copies, at each turn, all that is there: its line, and what it is."""
    for node in ast.walk(loop):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            first = node.args[0]
            if node.func.attr in {"insert", "pop"} and isinstance(first, ast.Constant) and first.value == 0:
                yield node.lineno, f"{node.func.attr}(0) moves all others"
        if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add) and ast.unparse(node.target) in texts:
            yield node.lineno, "the text so far is copied: collect parts, and join them"
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript):
            whole, part = ast.unparse(node.targets[0]), node.value
            if ast.unparse(part.value) == whole and isinstance(part.slice, ast.Slice):
                yield node.lineno, "what is left is copied: keep a position"


def test_no_loop_copies_all_at_each_turn() -> None:
    found = []
    for file in sorted(ROOT.rglob("*.py")):
        for function in ast.walk(ast.parse(file.read_text())):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if (str(file.relative_to(ROOT)), function.name) in VIEWS:
                continue
            assigned = [node for node in ast.walk(function) if isinstance(node, ast.Assign)]
            texts = {
                ast.unparse(target)
                for node in assigned
                if isinstance(node.value, ast.Constant) and isinstance(node.value.value, bytes | str)
                for target in node.targets
            }
            for loop in ast.walk(function):
                if isinstance(loop, ast.For | ast.While | ast.AsyncFor):
                    found += [f"{file.relative_to(ROOT)}:{line}: {what}" for line, what in _copies(loop, texts)]
    assert not found
