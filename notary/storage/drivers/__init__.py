"""DB-API modules of databases whose own needs a little more: imported by name, when a store is opened.

Rules of this package: one module a driver, which exports what ``adbapi`` and the pool ask of a DB-API module. Nobody
imports it who does not use that database.
"""
