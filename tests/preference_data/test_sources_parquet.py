"""Parquet as rows: the values that JSON would have, a row group at a time."""

from __future__ import annotations

import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from preference_data import DataError, import_data, read_judgements
from preference_data.quarantine import Rejected
from preference_data.sources.carriers import read_rows
from preference_data.sources.carriers.files import Reading
from preference_data.sources.carriers.rows import Row

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def write(table: object, **options) -> str:
    pq.write_table(table, "rows.parquet", **options)
    return "rows.parquet"


def read(path: str) -> list[Row | Rejected]:
    return list(read_rows([Path(path)], Reading()))


def error(path: str) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    return str(caught.value)


def test_values_are_those_of_json(here):
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    columns = {
        "text": pa.array(["NA", "line\r\nline 😀"]),
        "number": pa.array([1.5, float("nan")]),
        "whole": pa.array([7, None]),
        "flag": pa.array([True, False]),
        "turns": pa.array([[{"role": "user", "content": "p"}], []]),
        "kind": pa.array(["x", "y"]).dictionary_encode(),
        "when": pa.array([moment, None], pa.timestamp("ns", "UTC")),
        "day": pa.array([date(2026, 1, 2), None]),
        "price": pa.array([Decimal("1.50"), None]),
        "bytes": pa.array(["é".encode(), b"\xff\x00"]),
        "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
    }
    first, second = read(write(pa.table(columns)))
    assert first.values == {
        "text": "NA", "number": 1.5, "whole": 7, "flag": True,
        "turns": [{"role": "user", "content": "p"}], "kind": "x",
        "when": "2026-01-02T03:04:05+00:00", "day": "2026-01-02", "price": "1.50",
        "bytes": "é", "map": [["k", 1]],
    }  # fmt: skip
    assert (second.values["text"], second.values["number"]) == ("line\r\nline 😀", None)
    assert (second.values["turns"], second.values["bytes"]) == ([], "/wA=")
    assert [(row.row, row.line) for row in (first, second)] == [(1, 1), (2, 2)]


def test_rows_of_many_row_groups_come_in_order(here):
    numbers = list(range(5000))
    items = read(write(pa.table({"n": numbers}), row_group_size=700))
    assert [item.values["n"] for item in items] == numbers
    assert [item.row for item in items] == [n + 1 for n in numbers]


def test_a_value_that_python_cannot_hold_costs_its_row_only(here):
    far = pa.array([0, 400_000_000_000_000, 1], pa.int64()).cast(pa.timestamp("s"))
    good, reject, after = read(write(pa.table({"n": [1, 2, 3], "when": far})))
    assert (good.values["n"], after.values["n"]) == (1, 3)
    assert (reject.row, reject.reason) == (2, "parquet_value")
    assert reject.detail.startswith("row 2 has a value that cannot be read: ")


def test_text_that_is_not_utf_8_costs_its_row_only(here):
    bad = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    assert [item.values["t"] if isinstance(item, Row) else item.reason for item in read(
        write(pa.table({"t": bad}))
    )] == ["a", "parquet_value", "c"]  # fmt: skip


def test_files_that_are_refused(here):
    path = write(pa.table({"a": ["x" * 100] * 50}))
    whole = Path(path).read_bytes()
    Path(path).write_bytes(whole[:-20])
    assert error(path).startswith("rows.parquet is not a whole Parquet file (")
    Path("rows.csv").write_bytes(whole)
    assert error("rows.csv") == "rows.csv is a Parquet file. Let its name end in .parquet."
    assert error(write(pa.table({"a": pa.array([], pa.string())}))) == "rows.parquet holds no rows."
    twice = pa.table([pa.array([1]), pa.array([2])], names=["a", "a"])
    assert error(write(twice)) == 'rows.parquet has two columns "a". Rename one of the two.'


def test_without_pyarrow(here, monkeypatch):
    path = write(pa.table({"a": [1]}))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert error(path) == "rows.parquet is Parquet. Install pyarrow to read it."


def test_a_table_of_labels_is_imported_and_found_in_a_folder(here):
    table = {"prompt": ["p", "q"], "response_a": ["x", "x"], "response_b": ["y", "y"]}
    (here / "data").mkdir()
    pq.write_table(pa.table({**table, "label": ["A", "B"]}), "data/labels.parquet")
    report = import_data("preferences", "data", here / "out")
    assert (report.files, report.rows_in) == (["data/labels.parquet"], 2)
    assert [j.ranks for j in read_judgements(here / "out")] == [(1, 2), (2, 1)]
