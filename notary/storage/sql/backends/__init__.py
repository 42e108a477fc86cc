"""The databases: one folder for each backend, and the table of all backends.

Rules of this package: a folder holds all knowledge of one database: its
:class:`~notary.storage.sql.dialect.Dialect`, the reader of its ``db_url``, its driver and its schema. A row is data and
small pure functions. No row knows the tables of a service, and no module outside asks for a backend by name.
A new backend is a folder here, a row in :data:`DIALECTS`, a row in :data:`notary.config.backends.BACKENDS` and a row in
``tests/storage/conftest.py``.
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
