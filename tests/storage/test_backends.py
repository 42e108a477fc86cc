"""The table of databases and that of ``storage.backend`` name the same, and the contract suites run on each."""

from __future__ import annotations

import ast

from notary.config.backends import BACKENDS, PERSISTENT
from notary.storage.sql.backends import DIALECTS
from tests.storage import conftest
from tests.test_layout import OURS, module_name, read


def test_every_backend_that_keeps_data_is_a_database():
    assert set(DIALECTS) == set(PERSISTENT)


def test_the_contract_suites_run_on_every_backend():
    assert {each.values[0][0] for each in conftest.BACKENDS} == set(BACKENDS)


def test_no_module_outside_asks_for_a_backend_by_name():
    """Only a backend's own folder and the table of configurations may compare with its name, or look it up."""
    rooms = ("notary.config.backends", "notary.storage.sql.backends")
    found = [
        f"{module_name(path)}: {ast.unparse(node)}"
        for path in OURS
        if not module_name(path).startswith(rooms)
        for node in ast.walk(ast.parse(read(path)))
        if isinstance(node, ast.Compare | ast.Subscript | ast.Dict | ast.MatchValue)
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and part.value in BACKENDS
    ]
    assert found == []
