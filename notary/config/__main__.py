"""Writes docs/configuration.md: ``python -m notary.config > docs/configuration.md``.

Rules of this module: the text of each key is in the table; the texts here hold for all keys.
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

Each daemon reads one JSON file, named by `-config=FILE`. Keys are those of Notary 0.7.0; the sections `limits`,
`manhole` and `storage.keys`, the keys `server.drain_timeout`, `server.workers`, `server.read_only`,
`server.mirror_status_file` (of the server) and `server.client_names` (of the signer) are ours. Dots in the tables below
mean nesting: `server.http_addr` is the member `http_addr` of the object `server`.

- Letter case in key names does not matter. `null` and `""` count as absent. Numbers may be written as strings.
- Paths of files are relative to the directory of the configuration file.
- An environment variable overrides its key. Its name is the prefix, then the path in capitals with `_` between names:
  `NOTARY_SERVER_LOGGING_LEVEL=debug`. An empty variable counts as absent. A variable that names a whole section is an
  error.
- A file may hold a secret: `storage.db_url_file` (or its variable) in place of `storage.db_url`, and so on. A trailing
  newline is ignored.
- A bad value ends start-up with exit status 1, and with one line that names the key or the variable, the value and what
  was expected. The values of secrets are never shown.
- Unknown keys and variables are ignored with a warning that names the most similar known one. So are values of the
  sections `logging`, `reporting` and `caching` that are no objects, such as `"reporting": {"bugsnag": "yes"}` of Notary
  0.1.
- In Kubernetes, a service that is called notary-server or notary-signer puts variables such as
  `NOTARY_SERVER_PORT=tcp://…` into every container. They are ignored, also as passphrases, with one warning;
  `enableServiceLinks: false` in the pod's specification leaves them out.
- JSON has no comments, and no comma after the last member. The error names the file, the line and the column.
- SIGHUP reads the file again, and the files of certificates and keys that it names ([reload](operations.md#reload)).
  A new `logging.level` takes effect too. For all other changes, a warning says that a restart is needed.
"""

_PASSPHRASES = """\

## Passphrases of the signer

Private keys are encrypted in the database, by passphrases or by a [key-encrypting key](keys.md). Every variable
`NOTARY_SIGNER_<ALIAS>` that names no key of the table above holds the passphrase of an alias; the alias is in capitals,
with `_` in place of `.`. The passphrase of `storage.default_alias` encrypts new keys, and must be given if keys are in
a database and `storage.keys.wrap` is not given. The other passphrases only decrypt old keys.

To keep a passphrase out of the environment, put it into a file (a credential of systemd, a secret of Docker), and the
path of this file into `NOTARY_SIGNER_<ALIAS>_FILE`. SIGHUP reads these files again; a new alias needs a restart
([how to change a passphrase](notary-admin.md#keys-reencrypt)). A passphrase may be any
bytes but NUL; they need not be UTF-8.
"""


def _condition(key: Key, default: object) -> str:
    """Return the cell of the column "Default": a value, or the condition under which the key is required."""
    condition = ""
    if key.when is not None:
        path, values = key.when
        texts = (each if isinstance(each, str) else json.dumps(each) for each in values)
        condition = f"if `{path}` is {' or '.join(f'`{text}`' for text in texts)}"
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
    """Return the text of docs/configuration.md."""
    return (
        f"{_INTRODUCTION}\n## notary-server\n{_tables(ServerConfig, SERVER_PREFIX)}"
        f"\n## notary-signer\n{_tables(SignerConfig, SIGNER_PREFIX)}{_PASSPHRASES}"
    )


if __name__ == "__main__":
    sys.stdout.write(reference())
