"""Private names of other projects' objects: the table of docs/adr/0027-private-names.md is the whole list of them.

A name is private if it begins with an underscore. It is foreign if a module reads or sets it on an object that is not
its own, imports it, declares its type without a value, or shares it with a class of another project that it inherits
from.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cache

from tests.test_layout import ROOT, module_name, python_files, read

ADR = ROOT / "docs/adr/0027-private-names.md"

DOCUMENTED = {"_asdict", "_current_frames", "_exit", "_fields", "_replace"}
"""What Python's own documentation offers under a name with an underscore."""

_OWN = {"self", "cls"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__")) and name.strip("_") != ""


def given_a_value(tree: ast.AST) -> set[str]:
    """The names that classes and the module itself define: not those of which only the type is declared."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_own(node.value):
            found.add(node.attr)
        if isinstance(node, ast.ClassDef | ast.Module):
            for child in node.body:
                if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    found.add(child.name)
                elif isinstance(child, ast.Assign):
                    found |= {each.id for each in ast.walk(child) if isinstance(each, ast.Name)}
                elif isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
                    found.add(child.target.id)
    return found - set(declared_only(tree))


def declared_only(tree: ast.AST) -> Iterator[str]:
    """The private names of which a class only declares the type: its base in another project has the value."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and not any("dataclass" in ast.dump(each) for each in node.decorator_list):
            for child in node.body:
                if isinstance(child, ast.AnnAssign) and child.value is None and isinstance(child.target, ast.Name):
                    yield from filter(is_private, [child.target.id])


def _is_own(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in _OWN


def _is_super(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"


def named(tree: ast.AST, ours: set[str]) -> Iterator[str]:
    """The foreign private names that a module's text has, where ``ours`` are those of its classes and their bases."""
    yield from declared_only(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if not (_is_own(node.value) or _is_super(node.value)) or node.attr not in ours:
                yield node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1:
            name = node.args[1]
            if node.func.id in {"getattr", "setattr", "hasattr", "delattr"} and isinstance(name, ast.Constant):
                yield from filter(is_private, [str(name.value)])
        elif isinstance(node, ast.Import | ast.ImportFrom):
            inside = [part for alias in node.names for part in alias.name.split(".")]
            if isinstance(node, ast.ImportFrom):
                inside += (node.module or "").split(".")
            yield from filter(is_private, inside)


def shared(module: str, tree: ast.AST) -> Iterator[str]:
    """The private names that a class in ``module`` sets or replaces, and that a base of another project has too."""
    for each in classes_in(module):
        texts = [text for base in each.__mro__[1:] if not is_ours(base) and (text := source_of(base))]
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name == each.__name__:
                for name in filter(is_private, given_a_value(node)):
                    if any(re.search(rf"\b(self\.|def |^    ){name}\b", text, re.MULTILINE) for text in texts):
                        yield name


@cache
def source_of(base: type) -> str:
    """The text of a class that is written in Python, or nothing."""
    try:
        return inspect.getsource(base)
    except (OSError, TypeError):
        return ""


def classes_in(module: str) -> list[type]:
    found = vars(importlib.import_module(module)).values()
    return [each for each in found if inspect.isclass(each) and each.__module__ == module]


def is_ours(each: type) -> bool:
    return each.__module__.partition(".")[0] == "notary"


def foreign_names() -> dict[str, set[str]]:
    trees = {module_name(path): ast.parse(read(path)) for path in python_files("notary")}
    defined = {module: given_a_value(tree) for module, tree in trees.items()}
    found: dict[str, set[str]] = {}
    for module, tree in trees.items():
        ours = set(defined[module])
        common: set[str] = set()
        if not module.endswith("__main__"):
            bases = {base.__module__ for each in classes_in(module) for base in each.__mro__ if is_ours(base)}
            ours = ours.union(*(defined[base] for base in bases))
            common = set(shared(module, tree))
        if names := (set(named(tree, ours)) | common) - DOCUMENTED:
            found[module] = names
    return found


def listed() -> dict[str, set[str]]:
    """The table: in each row a module, then the names, each in backticks."""
    rows = re.findall(r"^\| `(notary/[\w/]+\.py)` \|([^|]+)\|", read(ADR), re.MULTILINE)
    table: dict[str, set[str]] = {}
    for path, names in rows:
        table.setdefault(module_name(ROOT / path), set()).update(re.findall(r"`(_\w+)`", names))
    return table


def test_private_names_of_others_are_those_of_the_table() -> None:
    found, table = foreign_names(), listed()
    more = {module: sorted(names - table.get(module, set())) for module, names in found.items()}
    less = {module: sorted(names - found.get(module, set())) for module, names in table.items()}
    assert {module: names for module, names in more.items() if names} == {}, f"use a public name, or add to {ADR.name}"
    assert {module: names for module, names in less.items() if names} == {}, f"no longer used: take out of {ADR.name}"


def test_the_ways_to_a_private_name_are_seen() -> None:
    source = """
import a._b
from c import _d
from _e import f
class G(H):
    _declared: int
    _ours = 1
    def i(self, other):
        self._set = other._j + self._k + self._set + self._ours + super()._l() + self._declared
        return getattr(other, "_m"), self.__dict__, _local
"""
    tree = ast.parse(source)
    assert set(named(tree, given_a_value(tree))) == {"_b", "_d", "_e", "_j", "_k", "_l", "_m", "_declared"}
