"""The driver for MySQL and MariaDB: mysqlclient if it can be loaded, else PyMySQL.

Rules of this module: nothing else chooses. Both have the same names, arguments, values and numbers of errors, and pass
the same tests; mysqlclient takes less processor time (docs/adr/0049-two-drivers.md).
"""

from __future__ import annotations

try:
    from notary.storage.sql.backends.mysql.mysqlclient import Error, apilevel, connect, threadsafety
except ImportError as no_mysqlclient:
    try:
        from notary.storage.sql.backends.mysql.pymysql import Error, apilevel, connect, threadsafety
    except ImportError as no_pymysql:
        raise ImportError(f"{no_mysqlclient}; {no_pymysql}") from no_mysqlclient

__all__ = ["Error", "apilevel", "connect", "threadsafety"]
