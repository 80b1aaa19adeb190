"""Rows in are rows out and rows set aside, in every file, and what is out is what was written."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
from by_path import load_module
from hypothesis import given, settings
from hypothesis import strategies as st

from preference_data import DataError, import_data

COLUMNS = ["prompt", "response_a", "response_b", "label"]
DELIMITERS = {"CSV": ",", "semicolons": ";", "TSV": "\t"}
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]

# No half surrogates: no file can hold them, and JSON's escapes have a test of their own. No byte
# order mark, which opens a file, and no NUL, which hides what encoding a short file is in.
characters = st.characters(exclude_categories=["Cs"], exclude_characters="\ufeff\0")
special = st.sampled_from(
    ['"', '""', ",", ";", "\t", "\r\n", "\n", "\r", "\\", "\u2028", "😀", " "]
)
texts = st.lists(special | st.text(characters, max_size=5), max_size=6).map("".join)
labels = st.sampled_from(["A", "B", "tie", "A", "B", "C", ""])
rows = st.lists(st.tuples(texts, texts, texts, labels).map(list), min_size=1, max_size=10)


def usable(row: list[str]) -> bool:
    """By hand, from what a table of labels is: no blank cell, a known label, two answers."""
    label = row[3].strip()
    same = row[1] == row[2] and label != "tie"
    return all(cell.strip() for cell in row) and label in ("A", "B", "tie") and not same


def account(path: Path, written: list[list[str]], rows_in: int, **choices) -> None:
    """Imports the file, and compares all three files it leaves with the rows as written."""
    out = path.parent / "out"
    expected = [row for row in written if usable(row)]
    try:
        report = import_data(
            "preferences", str(path), out, format="table", max_quarantined=1.0, **choices
        )
    except DataError as error:
        reasons = re.findall(r"[(,] ?[a-z_]+ (\d+)", str(error).partition("; the first:")[0])
        assert not expected and str(error).startswith("No row of ")
        assert sum(map(int, reasons)) == rows_in
        return
    said = json.loads((out / "import.json").read_text(encoding="utf-8"))
    judgements = (out / "judgements.jsonl").read_bytes().decode().split("\n")
    rejects = (out / "quarantine.jsonl").read_bytes().decode().split("\n")
    assert judgements.pop() == rejects.pop() == ""
    assert said["rows_in"] == report.rows_in == rows_in == len(judgements) + len(rejects)
    assert (said["rows_out"], said["rows_quarantined"]) == (len(judgements), len(rejects))
    assert sum(said["by_reason"].values()) == len(rejects)
    assert [texts_of(json.loads(line)) for line in judgements] == [row[:3] for row in expected]
    numbers = [json.loads(line)["source_row"] for line in judgements]
    assert sorted(numbers + [json.loads(line)["row"] for line in rejects]) == [
        number + 1 for number in range(rows_in)
    ]


def texts_of(record: dict) -> list[str]:
    messages = [record["prompt"], *(response["messages"] for response in record["responses"])]
    return [message["content"] for [message] in messages]


def folder(tmp_path_factory: pytest.TempPathFactory, name: str, data: bytes) -> Path:
    path = tmp_path_factory.mktemp("rows") / name
    path.write_bytes(data)
    return path


@settings(deadline=None)  # the first import of all loads libraries
@given(
    rows,
    st.sampled_from(list(DELIMITERS)),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(ENCODINGS),
    st.lists(st.tuples(st.integers(0, 10), st.sampled_from(["", "ragged", "header"])), max_size=3),
)
def test_tables(tmp_path_factory, rows, kind, quoting, end, encoding, between):
    """Rows that are too short or repeat the header are set aside; blank lines are no rows."""
    stream = io.StringIO()
    if any(set("\r\n") & set(cell) - set(end) for row in rows for cell in row):
        quoting = csv.QUOTE_ALL  # Python 3.11 quotes no line end but its own by itself
    writer = csv.writer(stream, delimiter=DELIMITERS[kind], quoting=quoting, lineterminator=end)
    writer.writerow(COLUMNS)
    more = 0
    for number, row in enumerate(rows):
        for _, what in [item for item in between if item[0] == number]:
            if what == "ragged":
                writer.writerow(["only", "three", "cells"])
            elif what == "header":
                writer.writerow(COLUMNS)
            else:
                stream.write(end)
            more += what != ""
        writer.writerow(row)
    name = "labels.tsv" if kind == "TSV" else "labels.csv"
    path = folder(tmp_path_factory, name, stream.getvalue().encode(encoding))
    account(path, rows, len(rows) + more, delimiter=DELIMITERS[kind])


@settings(deadline=None)
@given(
    rows,
    st.sampled_from(["lines", "array", "array of lines", "indented", "objects"]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.booleans(),
    st.sampled_from(ENCODINGS),
    st.lists(st.sampled_from(["null", "[]", "7", '"x"']), max_size=3),
    st.sampled_from(["labels.json", "labels.jsonl"]),
)
def test_json(tmp_path_factory, rows, layout, end, ascii_only, encoding, others, name):
    """What is no object is set aside, wherever it stands; blank lines are no rows."""

    def dump(value: object, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=ascii_only, indent=indent)

    objects = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    values = [*objects, *(json.loads(other) for other in others)]
    text = {
        "lines": lambda: (end + end).join(dump(value) for value in values),
        "array": lambda: dump(values),
        "array of lines": lambda: f"[{end}{(',' + end).join(map(dump, values))}{end}]",
        "indented": lambda: dump(values, 2).replace("\n", end),
        "objects": lambda: end.join(dump(value, 1).replace("\n", end) for value in objects),
    }[layout]()
    rows_in = len(rows) if layout == "objects" else len(values)
    account(folder(tmp_path_factory, name, text.encode(encoding)), rows, rows_in)


# --- damaged files -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fuzzer() -> ModuleType:
    return load_module(Path(__file__).parents[1] / "benchmarks" / "fuzz_import.py")


def test_damaged_files_are_refused_in_a_sentence_or_accounted_for(fuzzer, tmp_path):
    outcomes, failures = fuzzer.fuzz(300, 0, tmp_path, tmp_path / "kept")
    assert failures == []
    # Both happen often, or the damage would prove nothing.
    assert outcomes["read"] > 90 and outcomes["refused"] > 60


def test_the_fuzzer_sees_what_it_looks_for(fuzzer, tmp_path, monkeypatch):
    """With a reader that loses every third row without a word."""

    def forgetful(files, reading):
        for number, row in enumerate(read_rows(files, reading), start=1):
            if number % 3:
                yield row

    read_rows = fuzzer.read_rows
    monkeypatch.setattr(fuzzer, "read_rows", forgetful)
    outcomes, failures = fuzzer.fuzz(30, 0, tmp_path, tmp_path / "kept")
    assert outcomes["failed"] == len(failures) > 5
    assert len(list((tmp_path / "kept").iterdir())) == len(failures)
