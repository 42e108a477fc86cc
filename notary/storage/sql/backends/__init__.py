"""The databases: one module a backend, each with its :class:`notary.storage.sql.dialect.Dialect`, and the table of all.

Rules of this package: a row is data and small pure functions; no row knows the tables of a service, and nothing outside
asks which backend it talks to. A new backend is a module here, a row in :data:`DIALECTS`, a folder in ``schema/`` and a
row in ``tests/storage/conftest.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from notary.storage.sql.backends.mysql import MYSQL
from notary.storage.sql.backends.postgres import POSTGRES
from notary.storage.sql.backends.sqlite3 import SQLITE3
from notary.storage.sql.dialect import Dialect

DIALECTS: Mapping[str, Dialect] = MappingProxyType({dialect.name: dialect for dialect in (MYSQL, POSTGRES, SQLITE3)})
"""The backends by their name in ``storage.backend``."""
