"""How a table is written, found from its beginning."""

from __future__ import annotations

from pathlib import Path

import pytest

from preference_data.sources.carriers.dialects import find_dialect
from preference_data.sources.carriers.files import Reading


@pytest.mark.parametrize("shift", range(20))
def test_a_row_that_the_sample_cuts_says_nothing(shift: int, tmp_path: Path):
    """A row has 19 characters: wherever the 65,536th stands in one, all three columns are known."""
    path = tmp_path / "rows.csv"
    header = '"prompt","answer",' + "n" * (shift + 1)
    path.write_text(f"{header}\n" + '"hi there","a",123\n' * 4000)
    found = find_dialect(path, Reading())
    assert found.header_quoted == (True, True, False)
    assert found.quoted == (True, True, False)


def test_a_row_of_other_length_says_nothing(tmp_path: Path):
    path = tmp_path / "rows.csv"
    path.write_text('prompt,answer,note\n"a","b",c\nalone\n"d","e",f\n')
    assert find_dialect(path, Reading()).quoted == (True, True, False)
