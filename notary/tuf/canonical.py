r"""Strict JSON in, canonical JSON out, and typed access to the members of what came in.

Rules of this module: pure. A document that :func:`parse` accepts means the same to every reader: it is UTF-8, no object
has a member twice, and no integer changes in a reader with 64-bit floats (such as the Go client's). :func:`dumps`
writes the bytes that signatures cover (docs/protocol.md, section 2). :class:`Members` reads an object as the Go client
fills a struct, but refuses everything that two readers could understand differently.
"""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final, NoReturn, TypeAlias

from notary.errors import InvalidMetadata, MalformedJSON

Json: TypeAlias = bool | int | float | str | list[Any] | dict[str, Any] | None
"""A JSON value. A whole number written as ``1e2`` or ``1.0`` is a subclass of ``int``: see :meth:`Members.integer`."""

MAX_DEPTH: Final = 100
"""How deeply objects and arrays may nest. Metadata itself needs seven levels; ``custom`` may hold any JSON below."""

MAX_INTEGER: Final = 2**53 - 1
"""Larger integers are not safe in JSON (RFC 7493, 2.2): the Go client reads them as 64-bit floats."""

MAX_CONTAINERS: Final = 300_000
"""How many objects and arrays a document may hold: more than 140,000 targets need, at two each (section 9)."""

MAX_COMMAS: Final = 500_000
"""How many commas a document may hold: more than 140,000 targets need, at three each (section 9)."""

MAX_DOCUMENTS: Final = 2
"""The files of one upload may together hold the structure of so many documents of the largest size (section 9)."""

_MAX_DIGITS: Final = len(str(MAX_INTEGER))
_SHOWN_CHARACTERS: Final = 64
_FRACTION = re.compile(r"\.[0-9]+(?:[]},]|$)")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_ESCAPE = re.compile(r'\\(?:(["\\])|u00([0-9a-f]{2})|([bfnrt]))')
_CONTROL = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


class _Whole(int):
    """A whole number that was written with a fraction or an exponent: no integer field accepts it."""

    __slots__ = ()


class StructureBudget:
    """The structure that several documents may hold together; :func:`parse` spends it before it reads a document.

    Structure is limited because it is expensive: one character of it takes up to a hundred bytes of memory.
    """

    __slots__ = ("_commas", "_containers")

    def __init__(self) -> None:
        self._containers = MAX_DOCUMENTS * MAX_CONTAINERS
        self._commas = MAX_DOCUMENTS * MAX_COMMAS

    def spend(self, containers: int, commas: int) -> None:
        """Subtract the structure of one more document. Raises MalformedJSON if the budget is exceeded."""
        self._containers -= containers
        self._commas -= commas
        if self._containers < 0 or self._commas < 0:
            raise MalformedJSON(
                f"too much structure: all files together may hold at most {MAX_DOCUMENTS * MAX_CONTAINERS} characters "
                f"'[' and '{{', and {MAX_DOCUMENTS * MAX_COMMAS} commas; publish them in several uploads"
            )


def parse(data: bytes, budget: StructureBudget | None = None) -> Json:
    """Read one JSON value and subtract its structure from ``budget``.

    Refused, with MalformedJSON: anything but UTF-8 (a byte order mark included), members given twice, NaN and
    infinities, integers beyond MAX_INTEGER, lone surrogates, raw control characters, nesting beyond MAX_DEPTH, more
    structure than MAX_CONTAINERS and MAX_COMMAS or than the budget has left, and anything after the value.
    """
    containers = _limit_structure(data, budget)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise MalformedJSON(f"not UTF-8 at byte {error.start}") from None
    if text.startswith("\ufeff"):
        raise MalformedJSON("starts with a byte order mark: write UTF-8 without one")
    try:
        value: Json = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise MalformedJSON(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise MalformedJSON(f"nested more than {MAX_DEPTH} deep") from None
    if containers > MAX_DEPTH:  # most documents have fewer than that in all
        for depth, _ in enumerate(_levels([value])):
            if depth > MAX_DEPTH:
                raise MalformedJSON(f"nested more than {MAX_DEPTH} deep")
    # Half a surrogate pair can only come from an escape; most documents have no such escape, and are not searched.
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise MalformedJSON("a string holds half a surrogate pair") from None
    return value


def dumps(value: Json) -> bytes:
    r"""Write canonical JSON: no spaces, members in the order of their code points, only ``\`` and ``"`` escaped.

    Whole floats are written as integers, as the Go client does. Raises InvalidMetadata for values without a canonical
    form: other floats, and strings with half a surrogate pair.
    """
    text = _encode(value)
    if _may_hold_floats(text) and any(
        isinstance(item, float) for level in _levels([value]) for container in level for item in _items(container)
    ):
        text = _encode(_FLOATLESS.decode(text))
    if "\\" in text:
        text = _ESCAPE.sub(_unescape, text)
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidMetadata("a string holds half a surrogate pair") from None


def quote(name: str) -> str:
    """Return a name from the input in a form for messages: printable ASCII, and never long."""
    return ascii(name if len(name) <= _SHOWN_CHARACTERS else name[:_SHOWN_CHARACTERS] + "...")


class Members:
    """The members of one object of known shape.

    ``value`` is the object, ``known`` holds the names of its members, and ``where`` is its name in messages. An absent
    member, and ``null``, are read as the zero value of their type, as in the Go client, which may write ``null`` for an
    empty list; a ``null`` object has no members. Unknown members are ignored, because they may be an extension and are
    signed, unless the object is ``closed``. A name that differs from a known one only in case is refused, because the
    Go client would take it for the known one. Every method raises InvalidMetadata.
    """

    __slots__ = ("_members", "_where")

    def __init__(self, value: Json, known: frozenset[str], where: str, *, closed: bool = False) -> None:
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise InvalidMetadata(f"{where}: expected an object")
        if not value.keys() <= known:
            for name in value.keys() - known:
                if closed:
                    raise InvalidMetadata(f"{where}: unknown member {quote(name)}")
                if name.casefold() in known:
                    raise InvalidMetadata(f"{where}: {quote(name)} must be written {quote(name.casefold())}")
        self._members = value
        self._where = where

    def text(self, name: str, default: str = "") -> str:
        """A string, or ``default``."""
        value = self._members.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self._wrong(name, "a string")
        return value

    def integer(self, name: str) -> int:
        """An integer written as digits alone, or 0. The Go client reads neither ``true`` nor ``1e2`` as an integer."""
        value = self._members.get(name)
        if value is None:
            return 0
        if type(value) is not int:
            raise self._wrong(name, "an integer")
        return value

    def flag(self, name: str) -> bool:
        """A truth value, or False."""
        value = self._members.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def binary(self, name: str) -> bytes:
        """The bytes of a string in standard base64, or b"". Line breaks are skipped, as the Go client does."""
        value = self.text(name).replace("\r", "").replace("\n", "")
        try:
            # Some versions of Python ignore needless padding.
            if len(value) % 4 == 0 and not value.endswith("==="):
                return base64.b64decode(value, validate=True)
        except ValueError:
            pass
        raise self._wrong(name, "standard base64")

    def mapping(self, name: str) -> dict[str, Any]:
        """An object with names of the writer's choice, or {}."""
        value = self._members.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self._wrong(name, "an object")
        return value

    def sequence(self, name: str) -> list[Any]:
        """A list, or []."""
        value = self._members.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self._wrong(name, "a list")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings, or ()."""
        values = self.sequence(name)
        if not all(isinstance(value, str) for value in values):
            raise self._wrong(name, "a list of strings")
        return tuple(values)

    def _wrong(self, name: str, expected: str) -> InvalidMetadata:
        # The name of a digest is chosen by the writer of the file.
        shown = name if name.isascii() and name.isidentifier() and len(name) <= _SHOWN_CHARACTERS else quote(name)
        return InvalidMetadata(f"{self._where}: {shown} must be {expected}")


def _limit_structure(data: bytes, budget: StructureBudget | None) -> int:
    # Decoding a document, and sorting its members to encode it, holds the interpreter for a time that grows with the
    # document's structure, and a byte of structure takes up to a hundred bytes of memory. Characters inside strings are
    # counted too, because distinguishing them would cost as much as the limit saves.
    containers = data.count(b"[") + data.count(b"{")
    if containers > MAX_CONTAINERS:
        raise MalformedJSON(f"too much structure: at most {MAX_CONTAINERS} characters may be '[' or '{{'")
    commas = data.count(b",")
    if commas > MAX_COMMAS:
        raise MalformedJSON(f"too much structure: at most {MAX_COMMAS} characters may be ','")
    if budget is not None:
        budget.spend(containers, commas)
    return containers


def _encode(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), check_circular=False)


def _may_hold_floats(text: str) -> bool:
    """Whether an encoded value holds text in the form of a Python float, possibly inside a string."""
    return any(part in text for part in ("e+", "e-", "NaN", "Infinity")) or _FRACTION.search(text) is not None


def _unescape(found: re.Match[str]) -> str:
    """Return the canonical form of an escape of ``json.dumps``: control characters are written unescaped."""
    kept, code, letter = found.groups()
    if kept:
        return found.group()
    return chr(int(code, 16)) if code else _CONTROL[letter]


def _items(container: list[Any] | dict[str, Any]) -> Any:
    return container.values() if isinstance(container, dict) else container


def _levels(outermost: list[Any]) -> Iterator[list[list[Any] | dict[str, Any]]]:
    """The containers in ``outermost``, itself first, one level of nesting at a time, without recursion."""
    level: list[list[Any] | dict[str, Any]] = [outermost]
    while level:
        yield level
        level = [item for container in level for item in _items(container) if isinstance(item, (list, dict))]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = max(counts, key=counts.__getitem__)
        raise MalformedJSON(f"member {quote(twice)} is given twice in one object")
    return members


def _integer(digits: str) -> int:
    # The length is checked first: Python refuses to convert thousands of digits, with an error of its own.
    if len(digits) > _MAX_DIGITS + 1 or abs(value := int(digits)) > MAX_INTEGER:
        raise MalformedJSON("an integer is too large: JSON readers agree on 53 bits only")
    return value


def _number(digits: str) -> float:
    value = float(digits)
    if abs(value) > MAX_INTEGER:
        raise MalformedJSON("a number is too large: JSON readers agree on 53 bits only")
    return _Whole(value) if value.is_integer() else value


def _whole(digits: str) -> int:
    value = float(digits)
    if not value.is_integer():
        raise InvalidMetadata("canonical JSON holds no fractions: write a string or an integer")
    return int(value)


def _constant(name: str) -> NoReturn:
    raise MalformedJSON(f"{name} is not JSON")


def _no_constant(name: str) -> NoReturn:
    raise InvalidMetadata(f"{name} has no canonical form")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_integer, parse_float=_number, parse_constant=_constant
)
_FLOATLESS = json.JSONDecoder(parse_float=_whole, parse_constant=_no_constant)
