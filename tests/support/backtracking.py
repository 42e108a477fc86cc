"""A backtracking matcher that counts its steps, and the worst inputs of a regular expression, made from its own tree.

The standard library tells nobody how much work a match was, so the tests walk the tree that its own parser makes
(``re._parser``; it has no public name, and no other parser reads exactly Python's syntax). The matcher tries what
``re`` tries, in the same order, one step for each try; a test compares its results with those of ``re``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from random import Random
from re import _constants as names  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

MOST_STEPS = 100_000
_PUMPS, _SAMPLES = 40, 12
_REPEATS = {names.MAX_REPEAT, names.MIN_REPEAT, names.POSSESSIVE_REPEAT}
_GROUPS = {names.SUBPATTERN, names.ATOMIC_GROUP, names.ASSERT, names.ASSERT_NOT, names.BRANCH}
_DEEP = 50_000  # calls: a step inside a group is a call inside a call


class TooMuchError(Exception):
    """The match was given up after MOST_STEPS."""


Node = tuple[Any, Any]
Then = Callable[[int], bool]


@lru_cache(None)
def _category(name: Any, char: str, ascii_only: bool) -> bool:
    text = {"DIGIT": r"\d", "SPACE": r"\s", "WORD": r"\w"}[str(name).rpartition("_")[2]]
    found = re.fullmatch(text, char, re.ASCII if ascii_only else 0) is not None
    return found != ("_NOT_" in str(name))


def _in_set(members: Sequence[Node], char: str, ascii_only: bool) -> bool:
    negated = False
    found = False
    for op, value in members:
        if op is names.NEGATE:
            negated = True
        elif op is names.LITERAL:
            found = found or ord(char) == value
        elif op is names.RANGE:
            found = found or value[0] <= ord(char) <= value[1]
        else:
            found = found or _category(value, char, ascii_only)
    return found != negated


def accepts(node: Node, char: str, flags: int) -> bool:
    """Whether a node that stands for one character stands for this one."""
    op, value = node
    same = {char, char.lower(), char.upper()} if flags & re.IGNORECASE else {char}
    ascii_only = bool(flags & re.ASCII)
    if op is names.ANY:
        return bool(flags & re.DOTALL) or char != "\n"
    if op is names.LITERAL:
        return any(ord(each) == value for each in same if len(each) == 1)
    if op is names.NOT_LITERAL:
        return all(ord(each) != value for each in same if len(each) == 1)
    return any(_in_set(value, each, ascii_only) for each in same if len(each) == 1)


def is_one(node: Node) -> bool:
    return node[0] in (names.ANY, names.LITERAL, names.NOT_LITERAL, names.IN)


class Tree:
    """A pattern, parsed."""

    def __init__(self, pattern: re.Pattern[Any]) -> None:
        self.pattern = pattern
        self.binary = isinstance(pattern.pattern, bytes)
        parsed = parser.parse(pattern.pattern, pattern.flags & ~re.UNICODE)
        self.nodes: Sequence[Node] = parsed.data
        self._texts: dict[int, str] = {}  # what the groups of a sample are
        self.flags: int = parsed.state.flags | (re.ASCII if self.binary else 0)

    # -- matching -----------------------------------------------------------------------------------------------------

    def match(self, text: str, start: int = 0, *, whole: bool = False) -> tuple[int | None, int]:
        """Where a match at ``start`` ends, or None, and the number of steps. Raises TooMuchError."""
        run = _Run(text)
        ends: list[int] = []

        def done(place: int) -> bool:
            if whole and place != len(text):
                return False
            ends.append(place)
            return True

        before = sys.getrecursionlimit()
        sys.setrecursionlimit(_DEEP)
        try:
            run.sequence(self.nodes, 0, self.flags, start, done)
        finally:
            sys.setrecursionlimit(before)
        return (ends[0] if ends else None), run.steps

    def steps(self, method: str, text: str) -> int:
        """The steps of a call of a pattern's method. Raises TooMuchError."""
        return sum(steps for _, steps in self.found(method, text))

    def found(self, method: str, text: str) -> Iterator[tuple[tuple[int, int] | None, int]]:
        """The spans that a method finds, one after the other, and how many steps each try was."""
        if method in ("match", "fullmatch"):
            end, steps = self.match(text, whole=method == "fullmatch")
            yield (None if end is None else (0, end)), steps
            return
        place = spent = 0
        while place <= len(text):
            end, steps = self.match(text, place)
            spent += steps
            if spent > MOST_STEPS:
                raise TooMuchError
            yield (None if end is None else (place, end)), steps
            if end is not None and method == "search":
                return
            place = end if end is not None and end > place else place + 1

    # -- inputs -------------------------------------------------------------------------------------------------------

    @cached_property
    def alphabet(self) -> list[str]:
        """One character of each kind that the pattern tells apart."""
        ones = list(_ones(self.nodes, self.flags))
        chars = [chr(code) for code in (*range(33, 127), *range(33), *range(127, 256))]
        chars += [] if self.binary else ["\u0130", "\u2028", "\ud800", "\U0001f600"]
        kinds: dict[tuple[bool, ...], str] = {}
        for char in chars:
            kinds.setdefault(tuple(accepts(one, char, flags) for one, flags in ones), char)
        return list(kinds.values())

    def sample(self, rng: Random, nodes: Sequence[Node] | None = None, more: int = 2) -> str:
        """A text that the nodes match, for the most part: what follows is not looked at."""
        return "".join(self._sample(rng, node, more) for node in (self.nodes if nodes is None else nodes))

    def _sample(self, rng: Random, node: Node, more: int) -> str:
        op, value = node
        if is_one(node):
            return rng.choice(self.alphabet_of(node) or [""])
        if op in _REPEATS:
            least, most, inner = value
            count = rng.randint(least, min(most, least + more))
            return "".join(self.sample(rng, inner.data, more) for _ in range(count))
        if op is names.BRANCH:
            return self.sample(rng, rng.choice(value[1]).data, more)
        if op is names.SUBPATTERN:
            self._texts[value[0]] = self.sample(rng, value[3].data, more)
            return self._texts[value[0]]
        if op is names.GROUPREF:
            return self._texts.get(value, "")
        return self.sample(rng, value.data, more) if op is names.ATOMIC_GROUP else ""

    def alphabet_of(self, node: Node) -> list[str]:
        """The characters of ``alphabet`` that a node accepts."""
        return [char for char in self.alphabet if accepts(node, char, self.flags)]

    def shapes(self) -> Iterator[Shape]:
        """Inputs that make the pattern work: each of its repeats pumped, and something that does not match behind."""
        rng = Random(self.pattern.pattern if not self.binary else self.pattern.pattern.decode("latin-1"))
        alphabet = self.alphabet
        seen: set[tuple[str, str, str]] = set()
        for before, (_, (_, _, inner)), behind in _repeats_of(self.nodes, (), ()):
            pumps = [*alphabet, *(self.sample(rng, inner.data) for _ in range(_SAMPLES))]
            pumps += [self.sample(rng, behind[:count]) for count in range(1, len(behind) + 1)]
            pumps += [a + b for a, b in zip(pumps, reversed(pumps), strict=True)]
            heads = {"", self.sample(rng, before, 0), self.sample(rng, before, 1)}
            refused = [char for char in alphabet if not (is_one(inner[0]) and accepts(inner[0], char, self.flags))]
            tails = {"", *refused[:3], *alphabet[-2:], self.sample(rng, behind, 0) + alphabet[-1]}
            for pump in [pump for pump in dict.fromkeys(pumps) if pump][:_PUMPS]:
                for head in sorted(heads):
                    for tail in sorted(tails):
                        if (head, pump, tail) not in seen:
                            seen.add((head, pump, tail))
                            yield Shape(head, pump, tail)

    def worst(self, method: str, few: int = 10) -> list[Shape]:
        """Of ``shapes``, those that are the most work for a character."""
        work: list[tuple[float, int, Shape]] = []
        for number, shape in enumerate(self.shapes()):
            text = shape.text(max(2, 24 // len(shape.pump)))
            try:
                work.append((self.steps(method, text) / len(text), -number, shape))
            except TooMuchError:
                return [shape]
        return [shape for _, _, shape in sorted(work, key=lambda each: each[:2], reverse=True)[:few]]

    def growth(self, method: str, shape: Shape, size: int = 120) -> float:
        """By how much the steps grow if the pumped part is twice as long: 2 is linear, 4 is quadratic."""
        count = max(8, size // len(shape.pump))
        try:
            return self.steps(method, shape.text(2 * count)) / self.steps(method, shape.text(count))
        except TooMuchError:
            return float("inf")


@dataclass(frozen=True)
class Shape:
    """A text with a part that can be made longer."""

    head: str
    pump: str
    tail: str

    def text(self, count: int) -> str:
        return self.head + self.pump * count + self.tail


def _ones(nodes: Sequence[Node], flags: int) -> Iterator[tuple[Node, int]]:
    for node in nodes:
        op, value = node
        if is_one(node):
            yield node, flags
        for inner in _inner(op, value):
            yield from _ones(inner, flags)


def _inner(op: Any, value: Any) -> list[Sequence[Node]]:
    """The sequences of nodes inside a node."""
    if op in _REPEATS:
        return [value[2].data]
    if op is names.BRANCH:
        return [each.data for each in value[1]]
    if op is names.SUBPATTERN:
        return [value[3].data]
    if op is names.ATOMIC_GROUP:
        return [value.data]
    return [value[1].data] if op in (names.ASSERT, names.ASSERT_NOT) else []


def _repeats_of(
    nodes: Sequence[Node], before: tuple[Node, ...], behind: tuple[Node, ...]
) -> Iterator[tuple[tuple[Node, ...], Node, tuple[Node, ...]]]:
    """Every repeat, with what stands before it and what behind."""
    for place, node in enumerate(nodes):
        op, value = node
        here, rest = (*before, *nodes[:place]), (*nodes[place + 1 :], *behind)
        if op in _REPEATS and value[1] > 1:
            yield here, node, rest
        for inner in _inner(op, value):
            yield from _repeats_of(inner, here, rest)


@dataclass
class _Run:
    text: str
    steps: int = 0
    groups: dict[int, tuple[int, int]] = field(default_factory=dict)

    def step(self) -> None:
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise TooMuchError

    def sequence(self, nodes: Sequence[Node], index: int, flags: int, place: int, then: Then) -> bool:
        while index < len(nodes) and is_one(nodes[index]):
            self.step()
            if place >= len(self.text) or not accepts(nodes[index], self.text[place], flags):
                return False
            index, place = index + 1, place + 1
        if index == len(nodes):
            return then(place)
        return self.node(nodes[index], flags, place, lambda end: self.sequence(nodes, index + 1, flags, end, then))

    def node(self, node: Node, flags: int, place: int, then: Then) -> bool:
        self.step()
        op, value = node
        if op in _REPEATS:
            return self.repeat(op, *value, flags, place, then)
        if op is names.BRANCH:
            for each in value[1]:  # noqa: SIM110 - any() would be a call in C, which is bad to nest deeply
                if self.sequence(each.data, 0, flags, place, then):
                    return True
            return False
        if op is names.SUBPATTERN:
            group, on, off, inner = value
            before = self.groups.get(group)

            def close(end: int) -> bool:
                kept = self.groups.get(group)
                if group is not None:
                    self.groups[group] = (place, end)
                if then(end):
                    return True
                self.set(group, kept)
                return False

            if self.sequence(inner.data, 0, (flags | on) & ~off, place, close):
                return True
            self.set(group, before)
            return False
        if op is names.ATOMIC_GROUP:
            end = self.once(value.data, flags, place)
            return end is not None and then(end)
        if op in (names.ASSERT, names.ASSERT_NOT):
            return self.look(op is names.ASSERT, *value, flags, place) and then(place)
        if op is names.GROUPREF:
            span = self.groups.get(value)
            if span is None:
                return False
            part = self.text[slice(*span)]
            self.steps += len(part)
            return self.text.startswith(part, place) and then(place + len(part))
        assert op is names.AT, f"the matcher does not know {op}"
        return self.at(value, flags, place) and then(place)

    def set(self, group: int | None, span: tuple[int, int] | None) -> None:
        if group is not None:
            self.groups.pop(group, None)
            if span is not None:
                self.groups[group] = span

    def once(self, nodes: Sequence[Node], flags: int, place: int) -> int | None:
        """Where the first way to match ends; no other is tried later."""
        ends: list[int] = []

        def keep(end: int) -> bool:
            ends.append(end)
            return True

        self.sequence(nodes, 0, flags, place, keep)
        return ends[0] if ends else None

    def look(self, wanted: bool, direction: int, inner: Any, flags: int, place: int) -> bool:
        if direction < 0:
            least, most = inner.getwidth()
            assert least == most
            place -= least
        return (place >= 0 and self.once(inner.data, flags, place) is not None) == wanted

    def at(self, where: Any, flags: int, place: int) -> bool:
        text, size = self.text, len(self.text)
        if where in (names.AT_BEGINNING_STRING, names.AT_BEGINNING):
            lines = where is names.AT_BEGINNING and flags & re.MULTILINE
            return place == 0 or bool(lines and text[place - 1] == "\n")
        if where is names.AT_END_STRING:
            return place == size
        if where is names.AT_END:
            last = place == size or (place == size - 1 and text[place] == "\n")
            return last or bool(flags & re.MULTILINE and text[place] == "\n")
        word = names.CATEGORY_WORD
        ascii_only = bool(flags & re.ASCII)
        sides = [0 <= each < size and _category(word, text[each], ascii_only) for each in (place - 1, place)]
        return (sides[0] != sides[1]) == (where is names.AT_BOUNDARY)

    def repeat(self, op: Any, least: int, most: int, inner: Any, flags: int, place: int, then: Then) -> bool:
        if len(inner) == 1 and is_one(inner[0]) and op is not names.MIN_REPEAT:
            end = place
            while end - place < most and end < len(self.text) and accepts(inner[0], self.text[end], flags):
                self.step()
                end += 1
            if end - place < least:
                return False
            if op is names.POSSESSIVE_REPEAT:
                return then(end)
            while end >= place + least:
                self.step()
                if then(end):
                    return True
                end -= 1
            return False
        if op is names.POSSESSIVE_REPEAT:
            count = 0
            while count < most:
                end = self.once(inner.data, flags, place)
                if end is None or (end == place and count >= least):
                    break
                count, place = count + 1, end
            return count >= least and then(place)
        return self.again(op is names.MAX_REPEAT, least, most, inner.data, flags, place, then)

    def again(self, greedy: bool, least: int, most: int, inner: Any, flags: int, place: int, then: Then) -> bool:
        self.step()

        def once_more(end: int) -> bool:
            if end == place and least <= 0:
                return False
            return self.again(greedy, least - 1, most - 1, inner, flags, end, then)

        if least > 0:
            return self.sequence(inner, 0, flags, place, once_more)
        if not greedy and then(place):
            return True
        if most > 0 and self.sequence(inner, 0, flags, place, once_more):
            return True
        return greedy and then(place)
