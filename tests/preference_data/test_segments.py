"""A large table in segments: the same files as in one piece, or a refusal to cut."""

from __future__ import annotations

import csv
import random
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preference_data import Columns, import_data
from preference_data.quarantine import DataError
from preference_data.sources import segments
from preference_data.sources.carriers.files import Reading
from preference_data.sources.carriers.rows import Row
from preference_data.sources.columns.label_tables import LabelTable
from preference_data.sources.columns.plain_pairs import NotPlain, PlainPairs

HEADER = ["prompt", "response_a", "response_b", "label", "annotator"]
FILES = ("judgements.jsonl", "quarantine.jsonl", "import.json")


@pytest.fixture
def in_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a few kilobytes are cut as those of gigabytes are."""
    monkeypatch.setattr(segments, "SMALLEST_FILE", 0)
    monkeypatch.setattr(segments, "SEGMENT", 3000)
    monkeypatch.setattr(segments.os, "sched_getaffinity", lambda pid: {0, 1})


def table(path: Path, count: int = 120) -> Path:
    """Rows with line ends of both kinds inside cells, quotes, blank lines, every fifth faulty."""
    draw = random.Random(3)
    rows = []
    for i in range(count):
        text = [f'say "{i}"\r\nor\n\n{draw.random()}', f"é {i},; x", f"no\r\n{i}"]
        label = draw.choice(["A", "b", "tie", "both bad"])
        if i % 5 == 4:
            text[1 + i % 2] = [" ", text[2 - i % 2], "ok"][i % 3]
            label = ["maybe", label, ""][i % 3]
        rows.append([*text, label, f"w{i % 7}"] if i % 11 else [*text, label])
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(HEADER)
        for row in rows:
            writer.writerow(row)
            if draw.random() < 0.2:
                stream.write(draw.choice(["\r\n", ",,,,\r\n", ",".join(HEADER) + "\r\n"]))
    return path


def imported(path: Path, output: Path, **options) -> list[bytes]:
    import_data("preferences", str(path), output, max_quarantined=1.0, **options)
    return [(output / name).read_bytes() for name in FILES]


@pytest.mark.parametrize("columns", [None, Columns(comment="annotator")])
def test_the_same_files_as_in_one_piece(tmp_path, monkeypatch, in_segments, columns):
    path = table(tmp_path / "labels.csv")
    cut = imported(path, tmp_path / "cut", columns=columns)
    shards = len(list((tmp_path / "cut").glob("*.parquet")))
    assert shards > 2
    assert {p.suffix for p in (tmp_path / "cut").iterdir()} == {".jsonl", ".json", ".parquet"}
    monkeypatch.setattr(segments, "SMALLEST_FILE", 1 << 30)
    assert imported(path, tmp_path / "whole", columns=columns) == cut
    assert len(list((tmp_path / "whole").glob("*.parquet"))) == 1


def test_an_open_quote_is_left_to_the_reader_of_the_whole(tmp_path, monkeypatch, in_segments):
    """A stray quote in a bare cell turns inside and outside round for everything after it."""
    path = table(tmp_path / "labels.csv")
    text = path.read_bytes()
    body = text[text.index(b"\n") + 1 :]
    path.write_bytes(text + b'p"q,x,y,A,w\r\n' + body)

    def outcome(folder: str) -> object:
        try:
            return imported(path, tmp_path / folder)
        except DataError as error:
            return str(error)

    cut = outcome("cut")
    monkeypatch.setattr(segments, "SMALLEST_FILE", 1 << 30)
    assert str(outcome("whole")).replace("/whole", "/cut") == str(cut)


def test_an_error_of_the_whole_file_is_said_by_the_segment_that_meets_it(tmp_path, in_segments):
    path = tmp_path / "labels.csv"
    path.write_text("prompt,response_a,response_b,label\n" + "p,x,y,A\n" * 900 + "p,x,y,1\n")
    with pytest.raises(DataError, match=r"row 901 \(line 902\): the label '1' has no agreed"):
        imported(path, tmp_path / "out")


pieces = st.lists(st.sampled_from(['"', "\n", "a", ",", "\r\n"]), max_size=40).map("".join)


@given(pieces, st.integers(0, 1))
def test_a_cut_is_behind_a_line_end_outside_quotes(text: str, quotes_before: int):
    """The last such place, found by looking at every one."""
    places = [
        i + 1
        for i, character in enumerate(text)
        if character == "\n" and (quotes_before + text[:i].count('"')) % 2 == 0
    ]
    found = segments._last_row_end(text.encode(), quotes_before)
    assert found == (places[-1] if places else 0)


def test_segments_cover_the_rest_of_the_file(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(segments, "SEGMENT", 16)
    text = b"head\n" + b'aa,"b\nb"\n' * 30 + b"last"
    (tmp_path / "t.csv").write_bytes(text)
    found = list(segments._segments(tmp_path / "t.csv", 5))
    assert [s.number for s in found] == list(range(len(found)))
    assert [s.start for s in found] == [5, *(s.end for s in found[:-1])]
    assert found[-1].end == len(text)
    assert all(text[s.end - 1 : s.end] == b"\n" for s in found[:-1])


cells = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(st.lists(st.tuples(cells, cells, cells, cells, cells), min_size=1, max_size=6))
def test_the_short_way_gives_the_record_s_own_line(rows):
    """Any text: where the short way answers at all, it is what the label table's record says."""
    header = [*HEADER, "comment"]
    lane, slow = PlainPairs(header, "dir/lä.csv"), LabelTable(Reading())

    def record(values: list[str]):
        return slow.judgement(Row("dir/lä.csv", 7, 9, dict(zip(header, values, strict=True))))

    for label in ("A", "tie"):
        values = ["p", "x", "y", label, "", ""]
        lane.learn(values, record(values))
    for number, (prompt, first, second, annotator, comment) in enumerate(rows):
        values = [prompt, first, second, ("A", "tie")[number % 2], annotator, comment]
        try:
            line, label, who = lane.line(values, 7, 9)
        except NotPlain:
            assert first == second or not all(c.strip() for c in values[:3])
            continue
        expected = record(values)
        assert orjson.loads(line) == orjson.loads(orjson.dumps(expected.to_json()))
        assert (label, who) == (expected.label, expected.annotator)


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ([*HEADER, "strength"], None),
        ([*HEADER, "duration"], None),
        (HEADER, Columns(criterion="annotator")),
        (HEADER, Columns(prompt="annotator", scale=("1", "2", "3"))),
    ],
)
def test_a_table_with_more_to_read_has_no_short_way(header, columns):
    with pytest.raises(ValueError, match="is not the header of a plain table"):
        PlainPairs(header, "x.csv", columns)


def test_a_mapping_of_names_and_labels_leaves_a_table_plain():
    columns = Columns(prompt="q", responses=("x", "y"), label="z", labels={"1": "first"})
    lane = PlainPairs(["z", "y", "x", "q", "unread"], "t.csv", columns)
    table = LabelTable(Reading(columns))
    cells = ["1", "no", "yes", "why", "?"]
    row = Row("t.csv", 1, 2, dict(zip(["z", "y", "x", "q", "unread"], cells, strict=True)))
    judgement = table.judgement(row)
    lane.learn(cells, judgement)
    line, label, annotator = lane.line(cells, 1, 2)
    assert orjson.loads(line) == orjson.loads(orjson.dumps(judgement.to_json()))
    assert (label, annotator) == ("first", None)
    assert [r.text for r in judgement.responses] == ["yes", "no"]


def test_a_script_without_a_main_guard_is_served_in_one_piece(tmp_path):
    """Other processes cannot import such a script; the import must not end with theirs."""
    path = table(tmp_path / "labels.csv")
    (tmp_path / "script.py").write_text(
        "from preference_data import import_data\n"
        "from preference_data.sources import segments\n"
        "segments.SMALLEST_FILE, segments.SEGMENT = 0, 3000\n"
        "segments._cores = lambda: 2\n"
        f"report = import_data('preferences', {str(path)!r}, __import__('pathlib').Path("
        f"{str(tmp_path / 'out')!r}), max_quarantined=1.0)\n"
        "print(report.rows_in)\n"
    )
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    report = imported(path, tmp_path / "whole")[2]
    assert int(done.stdout) == orjson.loads(report)["rows_in"]
    assert {p.suffix for p in (tmp_path / "out").iterdir()} == {".jsonl", ".json", ".parquet"}
