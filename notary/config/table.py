"""The table of keys, and the one reader of all of them.

Rules of this module:

- Pure, but for the files of secrets (``secrets``).
- No key is named here: the table is the dataclasses that the reader is given. A field made with ``key`` is a key, a
  field whose type is a dataclass is a section, and any other field is not configured.
- As in the reference (docs/protocol.md, section 6): letter case in key names does not matter; a value that is null or
  ``""`` counts as absent, also in the environment; a variable overrides the file; a section cannot be overridden.
- A key whose condition does not hold is ignored, even if its value is bad.
- A bad value raises ConfigError: one line with the key or the variable, the value and what was expected. The values of
  secrets are never shown.
- A file may hold the value of a secret: the key with ``_file`` after it names the file.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, field
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, TypeVar, cast, get_type_hints, overload

from notary.config import secrets
from notary.config.secrets import FILE_SUFFIX
from notary.config.service_links import service_links
from notary.config.values import FILE, Kind
from notary.errors import ConfigError, InvalidFile

_C = TypeVar("_C")
_D = TypeVar("_D")
_T = TypeVar("_T")

_SHOWN_CHARACTERS: Final = 100
"""The longest value that a message shows whole."""

_INTEGER_DIGITS: Final = 19
"""The longest number that is read as an integer."""


class Key(NamedTuple):
    """The row of one key, without its path, its default and its field's type.

    Args:
        kind: The type of its values.
        doc: One or two sentences for the reference documentation.
        required: The key must be given (if ``when`` holds).
        when: (path of another key, values of that key): without one of these values, this key is ignored.
        needs: Paths of keys that must be given where this one is.
    """

    kind: Kind[object]
    doc: str
    required: bool = False
    when: tuple[str, tuple[object, ...]] | None = None
    needs: tuple[str, ...] = ()


@overload
def key(kind: Kind[_T], doc: str) -> _T: ...


@overload
def key(
    kind: Kind[_T],
    doc: str,
    *,
    default: _D,
    required: bool = False,
    when: tuple[str, tuple[object, ...]] | None = None,
    needs: tuple[str, ...] = (),
) -> _T | _D: ...


def key(
    kind: Kind[_T],
    doc: str,
    *,
    default: object = MISSING,
    required: bool = False,
    when: tuple[str, tuple[object, ...]] | None = None,
    needs: tuple[str, ...] = (),
) -> object:
    """Make a dataclass field that is a key; one without a default is required.

    As that of :func:`dataclasses.field`, the declared result is the type of the field's values.
    """
    row = Key(kind, doc, required or default is MISSING, when, needs)
    return field(default=default, metadata={"key": row})


def section(factory: Callable[[], _T]) -> _T:
    """Make a dataclass field that is a section without which nothing is less safe.

    A value that is no object is ignored there with a warning, as the reference does; elsewhere it is an error. The
    declared result is as for :func:`key`.
    """
    made: _T = field(default_factory=factory, metadata={"ignorable": True})
    return made


@functools.cache
def _types(config: type) -> Mapping[str, Any]:
    """Return the types of the fields of a configuration."""
    return get_type_hints(config)


def _ignorable(config: type, prefix: str = "") -> Iterator[str]:
    """Yield the paths of the sections that were made with :func:`section`."""
    types = _types(config)
    for item in dataclasses.fields(config):
        if item.metadata.get("ignorable"):
            yield prefix + item.name
        if dataclasses.is_dataclass(types[item.name]):
            yield from _ignorable(types[item.name], f"{prefix}{item.name}.")


def keys(config: type, prefix: str = "") -> Iterator[tuple[str, Key, object]]:
    """Yield the keys of a configuration as (path, key, default); without a default that is ``dataclasses.MISSING``."""
    types = _types(config)
    for item in dataclasses.fields(config):
        if "key" in item.metadata:
            yield prefix + item.name, item.metadata["key"], item.default
        elif dataclasses.is_dataclass(types[item.name]):
            yield from keys(types[item.name], f"{prefix}{item.name}.")


def value_at(config: object, path: str) -> object:
    """Return the value of the key with this path."""
    for name in path.split("."):
        config = getattr(config, name)
    return config


def differences(one: _C, other: _C) -> tuple[str, ...]:
    """Return the paths of the keys whose values differ between two configurations of one daemon."""
    return tuple(path for path, _, _ in keys(type(one)) if value_at(one, path) != value_at(other, path))


def variable_part(path: str) -> str:
    """Return a path, or an alias, as the part of a variable's name after the prefix."""
    return path.upper().replace(".", "_")


def parse(text: str) -> dict[str, object]:
    """Parse a configuration file; the names of all members become lower-case. Raises InvalidFile."""
    if text.startswith("\ufeff"):
        raise InvalidFile("line 1, column 1: begins with a byte order mark; expected plain UTF-8")

    def members(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found: dict[str, object] = {}
        for name, value in pairs:
            if name.lower() in found:
                raise InvalidFile(f"{shown(name)} is given twice; expected each key once")
            found[name.lower()] = value
        return found

    def constant(name: str) -> None:
        raise InvalidFile(f"{name} is not JSON; expected a number")

    def integer(digits: str) -> int | float:
        # Python does not convert thousands of digits. As a float, they fail later, where the key is known.
        return int(digits) if len(digits) <= _INTEGER_DIGITS else float(digits)

    try:
        tree = json.loads(text, object_pairs_hook=members, parse_constant=constant, parse_int=integer)
    except json.JSONDecodeError as error:
        raise InvalidFile(f"line {error.lineno}, column {error.colno}: {_explained(error)}; expected JSON") from None
    except RecursionError:
        raise InvalidFile("nested too deep; expected the keys of docs/configuration.md") from None
    if not isinstance(tree, dict):
        raise InvalidFile(f"{shown(tree)} is not an object; expected {{...}}")
    return tree


_WORDS: Final = (
    ("Expecting property name", "a name in double quotes is missing here"),
    ("Expecting value", "a value is missing here, or is a word without double quotes"),
    ("Expecting ',' delimiter", "a comma or a closing bracket is missing before this"),
    ("Expecting ':' delimiter", "a colon is missing before this"),
    ("Extra data", "the configuration ends before this"),
    ("Unterminated string", "this string has no closing double quote"),
    ("Invalid control character", "a line ends, or a tab is, inside a string"),
    ("Invalid \\", "there is no such escape as this; a backslash itself is written twice"),
)
"""What the messages of Python's parser begin with, and what they mean for one who has written a file."""


def _explained(error: json.JSONDecodeError) -> str:
    """Return what is wrong at the place of an error, in words for one who has written the file."""
    rest, before = error.doc[error.pos :], error.doc[: error.pos].rstrip()
    if rest.startswith(("//", "/*", "#")):
        return "JSON has no comments"
    if not rest.strip() and "Unterminated" not in error.msg:
        return "the file ends before the configuration does, or is empty"
    after = rest[1:].lstrip()[:1] if rest.startswith(",") else rest[:1] if before.endswith(",") else ""
    if after in ("}", "]"):
        return f"JSON has no comma before {after}"
    if rest.startswith("'"):
        return "JSON has no single quotes"
    return next((words for start, words in _WORDS if error.msg.startswith(start)), error.msg)


def shown(value: object) -> str:
    """Return a value as text for a message: one line, cut if it is long."""
    text = json.dumps(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


class _Given(NamedTuple):
    """A value that was given. ``name`` is its path or its variable, for messages.

    If it is ``in_file``, the value is the path of the file that holds the secret.
    """

    name: str
    value: object
    in_file: bool = False


class Reader(Generic[_C]):
    """Reads one configuration by its table.

    ``unknown_variables`` are the variables that name no key.

    Args:
        config: The class of the configuration.
        text: The configuration file.
        environ: The environment; only variables that begin with ``prefix`` matter.
        prefix: The beginning of the variables' names, with its final underscore.
        directory: The directory that relative paths start from.
    """

    def __init__(self, config: type[_C], text: str, environ: Mapping[str, str], prefix: str, directory: Path) -> None:
        self._config = config
        self._table = {path: (key, default) for path, key, default in keys(config)}
        self._names = {path: (path, False) for path in self._table}
        self._names |= {path + FILE_SUFFIX: (path, True) for path, (key, _) in self._table.items() if key.kind.secret}
        self._ignorable = set(_ignorable(config))
        self._sections = {path[:dot] for path in self._table for dot in range(len(path)) if path[dot] == "."}
        self._prefix = prefix
        self._directory = directory
        self._given: dict[str, _Given] = {}
        self.warnings: list[str] = []
        self.unknown_variables: dict[str, str] = {}
        self._read_file(parse(text), "")
        self._read_environment({name: value for name, value in environ.items() if name.startswith(prefix) and value})
        self._leave_out_service_links()
        self._values: dict[str, object] = {}

    def _leave_out_service_links(self) -> None:
        """Forget the variables that Kubernetes made for a service whose name begins like our variables."""
        links = service_links(self.unknown_variables, self._prefix)
        for name in links:
            del self.unknown_variables[name]
        if links:
            others = f" and {len(links) - 1} more" if links[1:] else ""
            self.warnings.append(
                f"{links[0]}{others}: set by Kubernetes, for a service with such a name, and ignored; "
                "`enableServiceLinks: false` in the pod's specification leaves them out"
            )

    def _read_file(self, tree: dict[str, object], parent: str) -> None:
        for name, value in tree.items():
            path = parent + name
            if path in self._names:
                if value not in (None, ""):
                    self._give(self._given, path, path, value)
            elif path not in self._sections:
                near = self._nearest(path, [*self._names, *self._sections])
                self.warnings.append(f"{shown(path)[1:-1]}: unknown key, ignored; the nearest known key is {near}")
            elif isinstance(value, dict):
                self._read_file(value, path + ".")
            elif value not in (None, ""):
                inner = [key for known, (key, _) in self._table.items() if known.startswith(path + ".")]
                text = "the value (not shown)" if any(key.kind.secret for key in inner) else shown(value)
                if path in self._ignorable:
                    self.warnings.append(f"{path}: {text} is not an object, ignored; expected the keys of {path}")
                    continue
                raise ConfigError(f"{path}: {text} is not an object; expected {{...}} with the keys of {path}")

    def _read_environment(self, variables: Mapping[str, str]) -> None:
        paths = {self._prefix + variable_part(path): path for path in self._names}
        given: dict[str, _Given] = {}
        sections = {self._prefix + variable_part(path): path for path in self._sections}
        for name, value in sorted(variables.items()):
            if name in paths:
                self._give(given, paths[name], name, value)
            elif name in sections:
                inner = self._nearest(name, [each for each in paths if each.startswith(name + "_")])
                raise ConfigError(
                    f"{name}: names the section {sections[name]}, which no variable can replace; "
                    f"expected a variable for each key, such as {inner}"
                )
            else:
                self.unknown_variables[name] = value
        self._given |= given

    def _give(self, given: dict[str, _Given], path: str, name: str, value: object) -> None:
        """Record a value under the path of its key, or of the file that holds it; ``name`` is for messages."""
        key, in_file = self._names[path]
        if key in given:
            raise ConfigError(
                f"{given[key].name}, {name}: both are given; expected the secret, or the file that holds it"
            )
        given[key] = _Given(name, value, in_file)

    def warn_of_unknown_variables(self, consequence: str, beginnings: tuple[str, ...] = ("",)) -> None:
        """Warn of the unknown variables that begin, after the prefix, with one of ``beginnings``."""
        known = [self._prefix + variable_part(path) for path in self._names]
        self.warnings += [
            f"{name}: names no known key, {consequence}; the nearest known variable is {self._nearest(name, known)}"
            for name in self.unknown_variables
            if name.removeprefix(self._prefix).startswith(beginnings)
        ]

    def fall_back(self, path: str, variable: str) -> None:
        """Take the value of a key from this unknown variable if the key is not given."""
        if path not in self._given and self.unknown_variables.get(variable):
            self._given[path] = _Given(variable, self.unknown_variables[variable])

    @staticmethod
    def _nearest(name: str, known: list[str]) -> str:
        """Return the known name that is most similar to ``name``."""
        return max(sorted(known), key=lambda each: difflib.SequenceMatcher(None, name, each).ratio())

    def read(self, **others: object) -> _C:
        """Convert every value and build the configuration; ``others`` are fields without a key. Raises ConfigError."""
        for path, (key, default) in self._table.items():
            self._values[path] = self._value(path, key, default)
        for path, (key, _) in self._table.items():
            for needed in key.needs:
                if self._values[path] and not self._values[needed]:
                    raise ConfigError(
                        f"{needed}: missing; expected {self._table[needed][0].kind.expected}, "
                        f"because {self._given[path].name} is given"
                    )
        return self._build(self._config, "", **others)

    def _value(self, path: str, key: Key, default: object) -> object:
        if key.when is not None and self._values[key.when[0]] not in key.when[1]:
            return default
        given = self._given.get(path)
        if given is None:
            if key.required:
                because = "" if key.when is None else f", because {key.when[0]} is {shown(self._values[key.when[0]])}"
                raise ConfigError(f"{path}: missing; expected {key.kind.expected}{because}")
            return default
        try:
            text = (
                secrets.read(given.name, self._directory / FILE.convert(given.value)) if given.in_file else given.value
            )
            value = key.kind.convert(text)
        except (ValueError, TypeError, OverflowError):
            hidden = key.kind.secret or key.kind.hides(given.value)
            bad = "the value (not shown)" if hidden else shown(given.value)
            raise ConfigError(f"{given.name}: {bad} cannot be used; expected {key.kind.expected}") from None
        return self._directory / value if isinstance(value, Path) else value

    def _build(self, config: type[_T], prefix: str, **others: object) -> _T:
        make: Callable[..., _T] = config
        types = _types(cast("type", config))
        values = dict(others)
        for item in dataclasses.fields(config):  # type: ignore[arg-type]  # it is a dataclass
            if "key" in item.metadata:
                values[item.name] = self._values[prefix + item.name]
            elif dataclasses.is_dataclass(types[item.name]):
                values[item.name] = self._build(types[item.name], f"{prefix}{item.name}.")
        return make(**values)
