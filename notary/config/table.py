"""The table of keys, and the one reader of all of them.

Rules of this module:

- It knows no key: the table is the dataclasses that it is given. A field made with ``key`` is a key, a field whose type
  is a dataclass is a section, any other field is not configured.
- As in the reference (docs/protocol.md, section 6): letter case in key names does not matter; a value that is null or
  ``""`` counts as absent, also in the environment; a variable overrides the file; a section cannot be overridden.
- A key whose condition does not hold is ignored, whatever its value.
- A bad value raises ConfigError: one line with the key or the variable, the value and what was expected. The values of
  secrets are never shown.
- Where a secret has a key, a file may hold its value: the key with ``_file`` behind it names the file.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_type_hints

from notary.config import secrets
from notary.config.values import FILE, Kind, Secret
from notary.errors import ConfigError

T = TypeVar("T")


class Key(NamedTuple):
    """What the table knows of one key besides its path, its default and its field's type.

    Args:
        kind: The type of its values.
        doc: One or two sentences for the reference documentation.
        required: It must be given (if ``when`` holds).
        when: (path of another key, values of it): without one of these values this key is ignored.
        needs: Paths of keys that must be given where this one is.
        secret: Its value is never shown.
    """

    kind: Kind
    doc: str
    required: bool = False
    when: tuple[str, tuple[str, ...]] | None = None
    needs: tuple[str, ...] = ()
    secret: bool = False


def key(
    kind: Kind,
    doc: str,
    *,
    default: Any = MISSING,
    required: bool = False,
    when: tuple[str, tuple[str, ...]] | None = None,
    needs: tuple[str, ...] = (),
    secret: bool = False,
) -> Any:
    """Make a dataclass field that is a key; one without a default is required."""
    row = Key(kind, doc, required or default is MISSING, when, needs, secret)
    return field(default=default, metadata={"key": row})


def keys(config: type, prefix: str = "") -> Iterator[tuple[str, Key, Any]]:
    """List the keys of a configuration as (path, key, default); the default is ``dataclasses.MISSING`` if none."""
    types = get_type_hints(config)
    for item in dataclasses.fields(config):
        if "key" in item.metadata:
            yield prefix + item.name, item.metadata["key"], item.default
        elif dataclasses.is_dataclass(types[item.name]):
            yield from keys(types[item.name], f"{prefix}{item.name}.")


def differences(one: Any, other: Any) -> tuple[str, ...]:
    """Return the paths of the keys whose values are not the same in two configurations of one kind."""
    return tuple(path for path, _, _ in keys(type(one)) if _value(one, path) != _value(other, path))


def _value(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config


class _Given(NamedTuple):
    """A value that was given, and what to call it in a message: its path or its variable.

    If it is ``in_file``, the value is the path of the file that holds it.
    """

    name: str
    value: Any
    in_file: bool = False


def variable_part(path: str) -> str:
    """Write a path, or an alias, as the part of a variable's name after the prefix."""
    return path.upper().replace(".", "_")


def parse(text: str) -> dict[str, Any]:
    """Parse the file; the names of all members become lower-case. Raises ConfigError."""
    if text.startswith("\ufeff"):
        raise ConfigError("configuration file: line 1, column 1: begins with a byte order mark; expected plain UTF-8")

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name.lower() in found:
                raise ConfigError(f"configuration file: {shown(name)} is given twice; expected each key once")
            found[name.lower()] = value
        return found

    def constant(name: str) -> None:
        raise ConfigError(f"configuration file: {name} is not JSON; expected a number")

    def integer(digits: str) -> int | float:
        # Python refuses to convert thousands of digits; as a float they fail later, where the key is known.
        return int(digits) if len(digits) < 20 else float(digits)  # noqa: PLR2004

    try:
        tree = json.loads(text, object_pairs_hook=members, parse_constant=constant, parse_int=integer)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ConfigError(f"configuration file: {where}: {error.msg}; expected JSON") from None
    except RecursionError:
        raise ConfigError("configuration file: nested too deep; expected the keys of the reference") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"configuration file: {shown(tree)} is not an object; expected {{...}}")
    return tree


def shown(value: Any) -> str:
    """Write a value for a message: one line, not too long."""
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "..."  # noqa: PLR2004


def _bad(given: _Given, key: Key) -> ConfigError:
    value = "the value (not shown)" if key.secret else shown(given.value)
    return ConfigError(f"{given.name}: {value} cannot be used; expected {key.kind.expected}")


class Reader:
    """Reads one configuration by its table.

    Args:
        config: ServerConfig or SignerConfig.
        text: The configuration file.
        environ: The environment; only variables that begin with ``prefix`` matter.
        prefix: Of the variables, with its final underscore.
        directory: Where relative paths begin.
    """

    def __init__(self, config: type, text: str, environ: Mapping[str, str], prefix: str, directory: Path) -> None:
        self._table = {path: (key, default) for path, key, default in keys(config)}
        self._names = {path: (path, False) for path in self._table}
        self._names |= {path + secrets.SUFFIX: (path, True) for path, (key, _) in self._table.items() if key.secret}
        self._sections = {path[:dot] for path in self._table for dot in range(len(path)) if path[dot] == "."}
        self._prefix = prefix
        self._directory = directory
        self._given: dict[str, _Given] = {}
        self.warnings: list[str] = []
        self.other_variables: dict[str, str] = {}
        self._read_file(parse(text), "")
        self._read_environment({name: value for name, value in environ.items() if name.startswith(prefix) and value})
        self._values: dict[str, Any] = {}

    def _read_file(self, tree: dict[str, Any], parent: str) -> None:
        for name, value in tree.items():
            path = parent + name
            if path in self._names:
                if value not in (None, ""):
                    self._give(self._given, path, path, value)
            elif path not in self._sections:
                near = self.nearest(path, [*self._names, *self._sections])
                self.warnings.append(f"{shown(path)[1:-1]}: unknown key, ignored; the nearest known key is {near}")
            elif isinstance(value, dict):
                self._read_file(value, path + ".")
            elif value not in (None, ""):
                inner = [key for known, (key, _) in self._table.items() if known.startswith(path + ".")]
                text = "the value (not shown)" if any(key.secret for key in inner) else shown(value)
                raise ConfigError(f"{path}: {text} is not an object; expected {{...}} with the keys of {path}")

    def _read_environment(self, variables: Mapping[str, str]) -> None:
        paths = {self._prefix + variable_part(path): path for path in self._names}
        given: dict[str, _Given] = {}
        sections = {self._prefix + variable_part(path): path for path in self._sections}
        for name, value in sorted(variables.items()):
            if name in paths:
                self._give(given, paths[name], name, value)
            elif name in sections:
                inner = self.nearest(name, [each for each in paths if each.startswith(name + "_")])
                raise ConfigError(
                    f"{name}: names the section {sections[name]}, which no variable can replace; "
                    f"expected a variable for each key, such as {inner}"
                )
            else:
                self.other_variables[name] = value
        self._given |= given

    def _give(self, given: dict[str, _Given], path: str, name: str, value: Any) -> None:
        """Note a value, by the path of its key or of the file that holds it; ``name`` is for messages."""
        key, in_file = self._names[path]
        if key in given:
            raise ConfigError(
                f"{given[key].name}, {name}: both are given; expected the secret, or the file that holds it"
            )
        given[key] = _Given(name, value, in_file)

    def warn_of_variables(self, consequence: str, beginnings: tuple[str, ...] = ("",)) -> None:
        """Warn of the variables that name no key and begin, after the prefix, with one of ``beginnings``."""
        known = [self._prefix + variable_part(path) for path in self._names]
        self.warnings += [
            f"{name}: names no known key, {consequence}; the nearest known variable is {self.nearest(name, known)}"
            for name in self.other_variables
            if name.removeprefix(self._prefix).startswith(beginnings)
        ]

    def stand_in(self, path: str, variable: str) -> None:
        """Let a variable give the value of a key that nothing else gives."""
        if path not in self._given and self.other_variables.get(variable):
            self._given[path] = _Given(variable, self.other_variables[variable])

    @staticmethod
    def nearest(name: str, known: list[str]) -> str:
        """Return the known name that looks most like this one."""
        return max(sorted(known), key=lambda each: difflib.SequenceMatcher(None, name, each).ratio())

    def read(self, config: type[T], **others: Any) -> T:
        """Convert every value and build the configuration. Raises ConfigError."""
        for path, (key, default) in self._table.items():
            self._values[path] = self._value(path, key, default)
        for path, (key, _) in self._table.items():
            for needed in key.needs:
                if self._values[path] and not self._values[needed]:
                    raise ConfigError(
                        f"{needed}: missing; expected {self._table[needed][0].kind.expected}, "
                        f"because {self._given[path].name} is given"
                    )
        built: T = self._build(config, "", **others)
        return built

    def _value(self, path: str, key: Key, default: Any) -> Any:
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
            raise _bad(given, key) from None
        if key.kind.file:
            return self._directory / value
        return Secret(value) if key.secret else value

    def _build(self, config: type, prefix: str, **others: Any) -> Any:
        types = get_type_hints(config)
        values = dict(others)
        for item in dataclasses.fields(config):
            if "key" in item.metadata:
                values[item.name] = self._values[prefix + item.name]
            elif dataclasses.is_dataclass(types[item.name]):
                values[item.name] = self._build(types[item.name], f"{prefix}{item.name}.")
        return config(**values)
