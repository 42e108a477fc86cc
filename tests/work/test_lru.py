"""A bounded table keeps what was used last, by number and by weight."""

from __future__ import annotations

from notary.work.lru import Lru


def test_entries_are_bounded_in_number_and_in_weight() -> None:
    table: Lru[int, str] = Lru(3, len, 40)
    for number in range(10):
        table.put(number, "x")
    assert [table.get(number) for number in range(6, 10)] == [None, "x", "x", "x"]
    table.put(10, "x" * 11)
    assert table.get(10) is None
    table.put(7, "x" * 10)
    assert [len(table.get(number) or "") for number in (7, 8, 9)] == [10, 1, 1]
    for number in range(20, 26):
        table.put(number, "x" * 10)
    assert sum(len(table.get(number) or "") for number in range(30)) == 30
    plain: Lru[int, bool] = Lru(2)
    for number in range(5):
        plain.put(number, True)
    assert [plain.get(number) for number in range(5)] == [None, None, None, True, True]


def test_an_entry_that_is_used_outlives_those_that_are_not() -> None:
    table: Lru[str, int] = Lru(2)
    table.put("a", 1)
    table.put("b", 2)
    assert table.get("a") == 1
    table.put("c", 3)
    assert ("a" in table, "b" in table, "c" in table, len(table)) == (True, False, True, 2)


def test_to_look_for_an_entry_is_no_use_of_it() -> None:
    table: Lru[str, int] = Lru(2)
    table.put("a", 1)
    table.put("b", 2)
    assert "a" in table
    table.put("c", 3)
    assert "a" not in table


def test_an_entry_that_is_dropped_gives_back_its_weight() -> None:
    table: Lru[str, str] = Lru(10, len, 8)
    for name in "abcd":
        table.put(name, "xx")
    assert (table.pop("a"), table.pop("a")) == ("xx", None)
    table.put("e", "xx")
    assert [name in table for name in "abcde"] == [False, True, True, True, True]
