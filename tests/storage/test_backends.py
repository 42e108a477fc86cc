"""The table of databases and that of ``storage.backend`` name the same, and the contract suites run on each."""

from __future__ import annotations

import re

from notary.config.backends import BACKENDS, PERSISTENT
from notary.storage.sql.backends import DIALECTS
from tests.storage import conftest
from tests.test_layout import OURS, module_name, read


def test_every_backend_that_keeps_data_is_a_database():
    assert set(DIALECTS) == set(PERSISTENT)


def test_the_contract_suites_run_on_every_backend():
    assert {each.values[0][0] for each in conftest.BACKENDS} == set(BACKENDS)


def test_no_module_outside_asks_for_a_backend_by_name():
    """Only a backend's own folder and the table of configurations may hold its name as a value."""
    # "memory" is also a word that messages are formatted with.
    name = re.compile("(?<!format\\()[\"'](" + "|".join(BACKENDS) + ")[\"']")
    rooms = ("notary.config.backends", "notary.storage.sql.backends")
    found = [
        f"{module_name(path)}: {line.strip()}"
        for path in OURS
        if not module_name(path).startswith(rooms)
        for line in read(path).splitlines()
        if name.search(line)
    ]
    assert found == []
