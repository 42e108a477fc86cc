"""Hides mysqlclient from the service in each process that has this directory in PYTHONPATH, so that PyMySQL is used.

Rules of this module: Python imports it at its start. The tests themselves go on to use mysqlclient.
"""

from __future__ import annotations

import sys

sys.modules["notary.storage.sql.backends.mysql.mysqlclient"] = None  # type: ignore[assignment]
