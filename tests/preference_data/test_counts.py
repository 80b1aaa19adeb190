"""Counts in words: one of a noun, and several."""

from __future__ import annotations

import pytest

from preference_data.counts import counted, verb


@pytest.mark.parametrize(
    ("n", "words"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (1200, "1,200 rows")]
)
def test_a_count_has_its_noun(n: int, words: str):
    assert counted(n, "row") == words


def test_a_count_written_in_another_way_decides_all_the_same():
    assert counted(1.0, "row", "1") == "1 row"
    assert counted(1500.0, "row", "1.5 k") == "1.5 k rows"


def test_what_is_said_of_one_and_of_several():
    assert [verb(n, "is", "are") for n in (0, 1, 2)] == ["are", "is", "are"]
