"""Writes docs/configuration.md: ``python -m notary.config > docs/configuration.md``.

Rules of this module: what it says about a key is in the table; here is only what holds for all of them.
"""

from __future__ import annotations

import json
import sys

from notary.config import SERVER_PREFIX, SIGNER_PREFIX, ServerConfig, SignerConfig
from notary.config.secrets import FILE_SUFFIX
from notary.config.table import Key, keys

_INTRODUCTION = """\
# Configuration

<!-- Generated from notary/config by `python -m notary.config > docs/configuration.md`; do not edit. -->

Each daemon reads one JSON file, named by `-config=FILE`. Keys are those of Notary 0.7.0; the sections `limits` and
`manhole`, the keys `server.drain_timeout`, `server.workers` and (of the signer) `server.client_names` are ours. Dots in
the tables below stand for nesting: `server.http_addr` is the member `http_addr` of the object `server`.

- Letter case in key names does not matter. `null` and `""` count as absent. Numbers may be written as strings.
- Paths of files are relative to the directory of the configuration file.
- A variable of the environment overrides its key: the prefix, then the path in capitals with `_` between names, for
  example `NOTARY_SERVER_LOGGING_LEVEL=debug`. An empty variable counts as absent. A section as a whole cannot be
  overridden; a variable that names one is an error.
- A secret may be in a file: `storage.db_url_file` (or its variable) instead of `storage.db_url`, and so on. The line
  end behind it does not count.
- A value that cannot be used ends start-up with one line that names the key or the variable, the value and what was
  expected, and with exit status 1. The values of secrets are never shown.
- Unknown keys and variables are ignored with a warning that names the nearest known one.
- SIGHUP reads the file again. `logging.level` and the keys that name certificates and keys are taken over, and so is
  what is in those files; for others a warning says that a restart is needed.
"""

_PASSPHRASES = """\

## Passphrases of the signer

Private keys are encrypted in the database. Every variable `NOTARY_SIGNER_<ALIAS>` that names no key of the table above
is the passphrase of an alias, in capitals and with `_` for `.`; `storage.default_alias` says which one encrypts new
keys, the others still decrypt old ones. With a database, the passphrase of the default alias must be given.

`NOTARY_SIGNER_<ALIAS>_FILE` names a file that holds the passphrase instead, so that it need not be in the environment:
a credential of systemd, a secret of Docker. SIGHUP reads these files again.
"""


def _condition(key: Key, default: object) -> str:
    """Write the column "Default": a value, or when the key is required."""
    condition = "" if key.when is None else f"if `{key.when[0]}` is {' or '.join(f'`{each}`' for each in key.when[1])}"
    if key.required:
        return f"**required** {condition}".rstrip()
    shown = f"`{json.dumps(default)}`" if default not in (None, "", ()) else "none"
    return f"{shown}; only {condition}" if condition else shown


def _tables(config: type, prefix: str) -> str:
    rows = ["| Key | Value | Default | Meaning |", "|---|---|---|---|"]
    for path, key, default in keys(config):
        needs = "".join(f" Needs `{each}`." for each in key.needs)
        secret = f" A secret; `{path}{FILE_SUFFIX}` may name a file that holds it." if key.kind.secret else ""
        rows.append(f"| `{path}` | {key.kind.expected} | {_condition(key, default)} | {key.doc}{needs}{secret} |")
    return f"\nVariables begin with `{prefix}`.\n\n" + "\n".join(rows) + "\n"


def reference() -> str:
    """Write docs/configuration.md."""
    return (
        f"{_INTRODUCTION}\n## notary-server\n{_tables(ServerConfig, SERVER_PREFIX)}"
        f"\n## notary-signer\n{_tables(SignerConfig, SIGNER_PREFIX)}{_PASSPHRASES}"
    )


if __name__ == "__main__":
    sys.stdout.write(reference())
