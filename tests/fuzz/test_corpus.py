"""Every input of the corpus, among them each that once showed a fault, is met as it should be."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.targets import CORPUS, TARGETS, Target

CASES = [pytest.param(target, path, id=f"{target.name}-{path.name}") for target in TARGETS for path in target.inputs()]


@pytest.mark.parametrize(("target", "path"), CASES)
def test_an_input_is_met(target: Target, path: Path) -> None:
    target.run(path.read_bytes())


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_so_is_no_input_at_all(target: Target) -> None:
    target.run(b"")


def test_the_corpus_is_small_and_belongs_to_the_table() -> None:
    assert {path.name for path in CORPUS.iterdir()} == {target.name for target in TARGETS}
    sizes = [path.stat().st_size for target in TARGETS for path in target.inputs()]
    assert sum(sizes) < 500_000
    for target in TARGETS:
        assert all(path.stat().st_size <= target.most for path in target.inputs()), target.name
