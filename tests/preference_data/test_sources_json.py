"""JSON as rows: lines, arrays and objects over many lines, whatever the file is called."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preference_data.quarantine import DataError, Quarantine, Rejected
from preference_data.sources.carriers import json_arrays, read_rows
from preference_data.sources.carriers.files import Reading, find_files
from preference_data.sources.carriers.rows import Row


def write(text: str | bytes, name: str = "rows.json") -> str:
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return name


def read(path: str, reading: Reading | None = None) -> list[Row | Rejected]:
    return list(read_rows([Path(path)], reading or Reading()))


def seen(items: list[Row | Rejected]) -> list[tuple]:
    """(row, line, values) of each row, (row, line, reason) of each reject."""
    return [
        (item.row, item.line, item.values if isinstance(item, Row) else item.reason)
        for item in items
    ]


def error(path: str) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    return str(caught.value)


A, B = {"a": 1}, {"b": "x\ny"}


# --- which layout --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.ndjson", "rows.data", "rows"])
@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ('[{"a": 1}, {"b": "x\\ny"}]', (1, 1)),
        ('[{"a": 1},\n{"b": "x\\ny"}]\n', (1, 2)),
        ('\n[\n  {\n    "a": 1\n  },\n  {\n    "b": "x\\ny"\n  }\n]', (3, 6)),
        ('[\r\n{"a": 1}\r\n,\r\n{"b": "x\\ny"}\r\n]', (2, 4)),
        ('[\r{"a": 1},\r{"b": "x\\ny"}\r]', (2, 3)),
        ('{"a": 1}\n\n{"b": "x\\ny"}\n', (1, 3)),
        ('{\n  "a": 1\n}\n{\n  "b": "x\\ny"\n}', (1, 4)),
    ],
    ids=["compact", "a line each", "indented", "CRLF", "CR", "lines", "objects"],
)  # fmt: skip
def test_each_object_is_a_row_with_the_line_where_it_begins(here, name, text, lines):
    assert seen(read(write(text, name))) == [(1, lines[0], A), (2, lines[1], B)]


def test_arrays_that_were_joined(here):
    assert seen(read(write('[{"a": 1}]\n[{"b": "x\\ny"}]\n'))) == [(1, 1, A), (2, 2, B)]


def test_lines_that_are_lists_are_no_rows_where_the_name_says_lines(here):
    assert seen(read(write('[1]\n{"a": 1}\n', "rows.jsonl"))) == [
        (1, 1, "json_not_object"), (2, 2, A),
    ]  # fmt: skip


def test_a_single_object_is_one_row(here):
    assert seen(read(write(json.dumps(A)))) == [(1, 1, A)]
    assert seen(read(write(json.dumps({"rows": [A, B]}, indent=2)))) == [(1, 1, {"rows": [A, B]})]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_encodings_and_compression(here, encoding):
    rows = [{"a": "où 日本 😀"}]
    data = json.dumps(rows, ensure_ascii=False, indent=1).encode(encoding)
    assert seen(read(write(data))) == [(1, 2, rows[0])]
    assert seen(read(write(gzip.compress(data), "rows.json.gz"))) == [(1, 2, rows[0])]


def test_a_byte_order_mark_between_files_that_were_joined(here):
    assert seen(read(write('{"a": 1}\n\ufeff{"a": 1}\n', "rows.jsonl"))) == [(1, 1, A), (2, 2, A)]
    assert seen(read(write('\ufeff[{"a": 1}]\n\ufeff[{"a": 1}]'))) == [(1, 1, A), (2, 2, A)]


@pytest.mark.parametrize("text", ["[]", "[\n]\n", "[ , ]"])
def test_an_array_without_rows(here, text):
    assert error(write(text)) == "rows.json holds no rows."


@pytest.mark.parametrize("text", ["", "\n \n", "\ufeff\n"])
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_an_empty_file(here, name, text):
    assert error(write(text, name)) == f"{name} is empty."


def test_of_a_folder_json_is_read_only_where_there_is_nothing_better(here):
    for name in ("b.json", "a.json", ".hidden.json", "readme.txt"):
        write("[]", name)
    assert [file.name for file in find_files(".")] == ["a.json", "b.json"]
    write("", "c.parquet")
    write("", "d.jsonl.gz")
    assert [file.name for file in find_files(".")] == ["c.parquet", "d.jsonl.gz"]


@pytest.mark.parametrize(
    ("opening", "sentence"),
    [
        (b"PK\x03\x04", "a zip archive or an Excel workbook. Unpack it, or save the sheet as CSV."),
        (b"\x28\xb5\x2f\xfd", "compressed with zstd. Unpack it, or compress it with gzip."),
    ],
)
def test_what_is_no_text_is_named(here, opening, sentence):
    assert error(write(opening + bytes(20), "rows.csv")) == f"rows.csv is {sentence}"


# --- broken JSON ---------------------------------------------------------------------------------


def test_elements_that_are_no_objects(here):
    items = read(write('[1, "x", null, [{"a": 1}], {"a": 1}, 12]'))
    assert [(item.row, getattr(item, "raw", None)) for item in items] == [
        (1, "1"), (2, '"x"'), (3, "null"), (4, '[{"a": 1}]'), (5, None), (6, "12"),
    ]  # fmt: skip
    assert items[3].detail == "row 4 (line 1) is JSON, but not an object."
    assert {item.reason for item in items if isinstance(item, Rejected)} == {"json_not_object"}


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ('{"a": }', "Expecting value on line 3"),
        ('{"a": "x}', "Invalid control character at on line 3"),
        ('{"a": 1', "Expecting property name enclosed in double quotes on line 4"),
        ('{"a": 1}}', "Expecting ',' on line 3"),
        ('{"a": "\\x"}', "Invalid \\escape on line 3"),
        ('{"a": tru}', "Expecting value on line 3"),
    ],
)
@pytest.mark.parametrize("indent", ["", "  "])
def test_a_broken_element_costs_itself_only(here, broken, why, indent):
    lines = ['{"a": 1}', broken, '{"a": 1}']
    path = write("[\n" + ",\n".join(indent + line for line in lines) + "\n]\n")
    before, reject, after = read(path)
    assert (before.values, after.values) == (A, A)
    assert (after.row, after.line) == (3, 4)
    assert (reject.row, reject.line, reject.reason) == (2, 3, "json_invalid")
    assert reject.detail == f"row 2 (line 3) is not JSON: {why}."
    assert reject.raw.startswith(broken)


def test_inner_objects_of_a_broken_element_are_no_rows(here):
    rows = [{"turns": [{"a": 1}, {"a": 2}], "b": 1}] * 3
    text = json.dumps(rows, indent=2)
    second = text.index('"turns"', 60)
    text = text[:second] + "oops" + text[second:]
    assert seen(read(write(text))) == [
        (1, 2, rows[0]), (2, 13, "json_invalid"), (3, 24, rows[0]),
    ]  # fmt: skip


def test_a_comma_that_is_missing_costs_nothing(here):
    assert seen(read(write('[{"a": 1}\n{"a": 1}]'))) == [(1, 1, A), (2, 2, A)]


@pytest.mark.parametrize("cut", [1, 2, 5, 15, 16, 17])
def test_an_array_that_was_cut_off(here, cut):
    """The last 15 characters are the third element and the closing bracket."""
    text = '[{"a": 1}, {"a": 1},\n {"a": "xyz12"}]'
    reading = Reading()
    items = read(write(text[:-cut]), reading)
    assert [item.values for item in items[:2]] == [A, A]
    details = [item.detail for item in items if isinstance(item, Rejected)]
    inside = 1 < cut < 15
    assert details == ["row 3 (line 2) is not JSON: the file ends inside it."] * inside
    assert reading.notes == [
        "rows.json ends before its JSON array is closed; its end may be missing."
    ]


def test_where_nothing_tells_the_rest_apart_the_file_is_refused(here):
    assert error(write('[{"a": 1}, {"a" 1}, {"a": 1}]')) == (
        "The JSON of rows.json breaks in row 2 (line 1): Expecting ':' delimiter on line 1. "
        "Mend it there; where the next row begins cannot be told."
    )


def test_a_broken_last_element_is_set_aside(here):
    assert seen(read(write('[{"a": 1}, {"a" 1}]\n'))) == [(1, 1, A), (2, 1, "json_invalid")]


def test_a_broken_element_as_long_as_the_limit(here, monkeypatch):
    monkeypatch.setattr(json_arrays, "BROKEN_LIMIT", 1000)
    monkeypatch.setattr(json_arrays, "_CHUNK", 100)
    text = '[{"a" 1' + " " * 3000 + '},\n{"a": 1}]'
    assert error(write(text)).startswith("The JSON of rows.json breaks in row 1 (line 1): ")
    monkeypatch.setattr(json_arrays, "BROKEN_LIMIT", 10_000)
    assert seen(read(write(text))) == [(1, 1, "json_invalid"), (2, 2, A)]


# --- what a decoder keeps to itself --------------------------------------------------------------


def each_layout(row: str) -> list[tuple[str, str]]:
    """The row after a good one, as JSON lines and as an array: (name, text)."""
    return [("rows.jsonl", f'{{"a": 1}}\n{row}\n'), ("rows.json", f'[{{"a": 1}},\n{row}]\n')]


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ('{"label": "A", "label": "B"}', "json_repeated_key",
         "row 2 (line 2) has the key 'label' twice, so that one value would be lost."),
        ('{"x": [{"y": 1, "y": 1}]}', "json_repeated_key",
         "row 2 (line 2) has the key 'y' twice, so that one value would be lost."),
        ('{"a": "\\ud83d"}', "invalid_record",
         "row 2 (line 2): a holds half of a surrogate pair, which no file can hold."),
        ('{"ok": "\\ud83d\\ude00", "b": [{"c": "\\uDE00"}]}', "invalid_record",
         "row 2 (line 2): b holds half of a surrogate pair, which no file can hold."),
        ('{"\\ud83d": 1}', "invalid_record",
         "row 2 (line 2): '\\ud83d' holds half of a surrogate pair, which no file can hold."),
        ('{"a": ' + "[" * 100 + "]" * 100 + "}", "json_invalid",
         "row 2 (line 2) is not JSON: it is nested deeper than 100 levels."),
        ('{"a":' * 20_000 + "1" + "}" * 20_000, "json_invalid",
         "row 2 (line 2) is not JSON: it is nested deeper than 100 levels."),
    ],
    ids=["repeated", "repeated inside", "surrogate", "second half", "in a key", "deep", "deepest"],
)  # fmt: skip
def test_rows_that_are_refused(here, layout, row, reason, detail):
    name, text = each_layout(row)[layout]
    good, reject = read(write(text, name))
    assert good.values == A
    assert (reject.row, reject.line, reject.reason, reject.detail) == (2, 2, reason, detail)
    quarantine = Quarantine()
    quarantine.add(reject)
    json.dumps(reject.raw)


@pytest.mark.parametrize("layout", [0, 1])
def test_deep_but_not_too_deep(here, layout):
    row = '{"a": ' + "[" * 99 + "]" * 99 + ', "b": "' + "[" * 200 + '"}'
    name, text = each_layout(row)[layout]
    assert [type(item) for item in read(write(text, name))] == [Row, Row]


@pytest.mark.parametrize("layout", [0, 1])
def test_numbers_that_are_no_json(here, layout):
    name, text = each_layout('{"a": NaN, "b": -Infinity, "c": 1e999, "d": [NaN]}')[layout]
    reading = Reading()
    row = read(write(text, name), reading)[1]
    assert row.values == {"a": None, "b": float("-inf"), "c": float("inf"), "d": [None]}
    assert reading.notes == [f"{name} has NaN, which is no JSON; it was read as null."]


@pytest.mark.parametrize("layout", [0, 1])
def test_a_number_of_more_digits_than_python_converts(here, layout):
    name, text = each_layout('{"a": ' + "9" * 5000 + "}")[layout]
    good, reject = read(write(text, name))
    assert (good.values, reject.reason, reject.line) == (A, "json_invalid", 2)


# --- damaged text, windows, memory ---------------------------------------------------------------


def test_bytes_that_are_not_utf_8_cost_their_row_only(here):
    rows = [json.dumps({"a": "déjà vu", "n": n}, ensure_ascii=False).encode() for n in range(3)]
    rows[1] = rows[1].replace("é".encode(), b"\xc3")
    reading = Reading()
    items = read(write(b"\n".join(rows), "rows.jsonl"), reading)
    assert seen(items) == [
        (1, 1, {"a": "déjà vu", "n": 0}), (2, 2, "bad_bytes"), (3, 3, {"a": "déjà vu", "n": 2}),
    ]  # fmt: skip
    assert items[1].detail == "row 2 (line 2): a holds bytes that are not UTF-8."
    assert reading.notes == [
        "rows.jsonl is UTF-8 but for 1 byte; rows that hold such bytes were set aside."
    ]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.lists(st.dictionaries(st.text(), values, max_size=3), min_size=1, max_size=5),
    st.sampled_from([None, 0, 2, "\t"]),
    st.booleans(),
    st.sampled_from([1, 2, 3, 7, 64, 1 << 16]),
)
def test_any_array_is_read_as_it_was_written_whatever_the_window(
    tmp_path_factory, rows, indent, ascii_only, chunk
):
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
    path = tmp_path_factory.mktemp("json") / "rows.json"
    path.write_bytes(text.encode())
    before = json_arrays._CHUNK
    json_arrays._CHUNK = chunk
    try:
        items = read(str(path))
    finally:
        json_arrays._CHUNK = before
    assert [item.values for item in items] == rows
    # Where the writer put each element on a line of its own, that is the line which is said.
    opened = [n for n, line in enumerate(text.split("\n"), start=1) if line.startswith("  {")]
    assert indent != 2 or [item.line for item in items] == opened


@pytest.mark.parametrize("layout", ["array", "one line", "lines"])
def test_memory_stays_flat(here, layout):
    """30 MB of rows of 3 KB: what is held is a window, not the file."""
    row = json.dumps({"a": "x" * 3000})
    opening, between, closing = {
        "array": ("[\n", ",\n", "\n]"), "one line": ("[", ", ", "]"), "lines": ("", "\n", ""),
    }[layout]  # fmt: skip
    with open("rows.json", "w") as stream:
        stream.write(opening + row)
        for _ in range(9_999):
            stream.write(between + row)
        stream.write(closing)
    assert os.path.getsize("rows.json") > 30_000_000
    tracemalloc.start()
    try:
        count = sum(isinstance(item, Row) for item in read_rows([Path("rows.json")], Reading()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 10_000
    assert peak < 6_000_000


DATA = os.environ.get("ALIGN_TEST_DATA")


@pytest.mark.skipif(DATA is None, reason="ALIGN_TEST_DATA is not set")
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("pandalm/testset-v1.json", 999),
        ("fine-grained-rlhf/dev_feedback.json.gz", 500),
        ("oasst/en-validation.jsonl.gz", 2022),
        ("self-instruct/seed_tasks.jsonl", 175),
    ],
)
def test_real_files(name, rows):
    path = Path(DATA or "") / name
    items = list(read_rows([path], Reading()))
    assert len(items) == rows
    with (gzip.open if name.endswith(".gz") else open)(path, "rt", encoding="utf-8") as stream:
        text = stream.read()
    whole = json.loads(text if text.startswith("[") else f"[{','.join(text.splitlines())}]")
    assert [item.values for item in items] == whole
