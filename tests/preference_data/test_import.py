"""The import: every row accounted for, files whole or absent, errors that say what to do."""

from __future__ import annotations

import errno
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preference_data import (
    FORMATS,
    Columns,
    DataError,
    import_data,
    read_demonstrations,
    read_judgements,
    read_preferences,
    read_prompts,
    read_text,
    sniff,
)
from preference_data.sources import importing, store

HEADER = "prompt,response_a,response_b,label,annotator\n"
GOOD = "p{},x,y,A,w1\n"


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def good(count: int) -> str:
    return "".join(GOOD.format(number) for number in range(count))


def test_the_report_counts_what_the_files_hold(here):
    text = HEADER + good(20) + "q,x,y,tie,w2\nr,x,y,maybe,w2\n"
    Path("labels.csv").write_text(text)
    report = import_data("preferences", "labels.csv", here / "out")
    expected = {
        "schema_version": 1,
        "kind": "preferences",
        "format": "table",
        "source": "labels.csv",
        "files": ["labels.csv"],
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "limit": None,
        "rows_in": 22,
        "rows_out": 21,
        "rows_quarantined": 1,
        "records": 21,
        "by_reason": {"label_unknown": 1},
        "by_label": {"first": 20, "tie": 1},
        "by_k": {"2": 21},
        "by_annotator": {"w1": 20, "w2": 1},
        "notes": [],
    }
    assert report.to_json() == expected
    assert json.loads((here / "out/import.json").read_text()) == expected
    assert lines(here / "out/quarantine.jsonl") == [
        {
            "row": 22,
            "line": 23,
            "reason": "label_unknown",
            "detail": "row 22 (line 23): the label 'maybe' is not one of "
            "A, B, tie, both_bad, both_good, unsure; columns.labels can say what it means.",
            "raw": {
                "prompt": "r", "response_a": "x", "response_b": "y", "label": "maybe",
                "annotator": "w2",
            },
            "file": "labels.csv",
            "expected": False,
        }
    ]  # fmt: skip
    assert sorted(path.name for path in (here / "out").iterdir()) == [
        "import.json", "judgements-00000.parquet", "judgements.jsonl", "quarantine.jsonl",
    ]  # fmt: skip
    kept = list(read_judgements(here / "out"))
    assert kept == list(read_judgements(here / "out" / "judgements.jsonl"))
    assert kept[-1].outcome == "tie" and kept[-1].annotator == "w2"


def test_read_preferences_gives_the_same_records(here):
    Path("labels.csv").write_text(HEADER + good(5))
    import_data("preferences", "labels.csv", here)
    assert read_preferences("labels.csv") == list(read_judgements(here))


def test_too_many_rejects_stop_the_import_and_leave_the_reasons(here):
    Path("labels.csv").write_text(HEADER + good(8) + "p,x,x,A,w\np,x,y,C,w\n")
    with pytest.raises(DataError) as caught:
        import_data("preferences", "labels.csv", here / "out")
    assert str(caught.value) == (
        "2 of 10 rows of labels.csv cannot be used, more than the 5.00% that max_quarantined "
        "allows (identical_responses 1, label_unknown 1); the first: row 9 (line 10): two "
        f"identical answers are ranked one above the other. See {here}/out/quarantine.jsonl."
    )
    assert [path.name for path in (here / "out").iterdir()] == ["quarantine.jsonl"]
    assert len(lines(here / "out/quarantine.jsonl")) == 2
    report = import_data("preferences", "labels.csv", here / "out", max_quarantined=0.2)
    assert report.rows_out == 8


def test_a_file_without_a_usable_row(here):
    Path("labels.csv").write_text(HEADER + "p,x,y,left,w\n")
    with pytest.raises(DataError) as caught:
        import_data("preferences", "labels.csv", here / "out", max_quarantined=1.0)
    assert str(caught.value) == (
        "No row of labels.csv can be used (label_unknown 1); the first: row 1 "
        "(line 2): the label 'left' is not one of A, B, tie, both_bad, both_good, unsure; "
        "columns.labels can say what it means. "
        f"See {here}/out/quarantine.jsonl."
    )


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        (
            {"format": "tabel"},
            f"'tabel' is no format; there are auto, {', '.join(FORMATS)}. Did you mean 'table'?",
        ),
        (
            {"format": "prompts"},
            "The format 'prompts' holds no preferences; "
            f"{', '.join(n for n, f in FORMATS.items() if 'preferences' in f.readers)} can.",
        ),
        (
            {"format": "hh", "columns": Columns(prompt="p")},
            "columns has no effect on the format 'hh'. Leave one of them out.",
        ),
        ({"limit": 0}, "limit is a number of rows from 1 up, not 0."),
        ({"max_quarantined": 5}, "max_quarantined is a share between 0 and 1, not 5."),
    ],
)
def test_options_that_cannot_be_followed(here, choices, sentence):
    Path("labels.csv").write_text(HEADER + good(2))
    with pytest.raises(DataError) as caught:
        import_data("preferences", "labels.csv", here / "out", **choices)
    assert str(caught.value) == sentence


def test_the_limit_counts_input_rows(here):
    Path("labels.csv").write_text(HEADER + "p,x,x,A,w\n" + good(9))
    report = import_data("preferences", "labels.csv", here, limit=4, max_quarantined=0.5)
    assert (report.rows_in, report.rows_out, report.rows_quarantined) == (4, 3, 1)


@pytest.mark.parametrize("full", ["judgements", "quarantine", "import"])
def test_a_full_disk_is_an_os_error_and_leaves_no_half_file(here, monkeypatch, full):
    Path("labels.csv").write_text(HEADER + good(50) + "p,x,y,C,w\n")
    whole_or_absent = store.whole_or_absent

    class FullDisk:
        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    @contextmanager
    def on_a_full_disk(path: Path) -> Iterator[Any]:
        with whole_or_absent(path) as stream:
            yield FullDisk() if path.name.startswith(full) else stream

    monkeypatch.setattr(importing, "whole_or_absent", on_a_full_disk)
    monkeypatch.setattr(store, "whole_or_absent", on_a_full_disk)
    with pytest.raises(OSError) as caught:
        import_data("preferences", "labels.csv", here / "out")
    assert caught.value.errno == errno.ENOSPC
    left = {path.name for path in (here / "out").iterdir()}
    records = {"judgements.jsonl", "judgements-00000.parquet", "quarantine.jsonl"}
    assert left == (records if full == "import" else set())


def test_half_a_surrogate_pair_is_set_aside_and_still_written_to_the_quarantine(here):
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    rows = [row] * 30 + [{**row, "chosen": "\ud83d"}]
    Path("pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    report = import_data("preferences", "pairs.jsonl", here)
    assert report.by_reason == {"invalid_record": 1}
    (reject,) = lines(here / "quarantine.jsonl")
    assert reject["raw"]["chosen"] == "\ud83d"


# --- the other kinds and formats -----------------------------------------------------------------

USER, ANSWER = {"role": "user", "content": "p"}, {"role": "assistant", "content": "a"}


def write_json_lines(name: str, *rows: dict) -> str:
    Path(name).write_text("\n".join(json.dumps(row) for row in rows))
    return name


def test_trl_pairs_as_text_messages_and_whole_conversations(here):
    path = write_json_lines(
        "pairs.jsonl",
        {"prompt": "p", "chosen": "a", "rejected": "b", "row": 1},
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "b"}]},
        {"chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": "b"}]},
        {"prompt": "p", "chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": "b"}]},
    )
    assert sniff(path, "preferences") == "trl"
    judgements = read_preferences(path)
    assert {judgement.item_id for judgement in judgements} == {judgements[0].item_id}
    assert {judgement.ranks for judgement in judgements} == {(1, 2)}
    assert len(judgements) == 4


def test_trl_pairs_that_are_set_aside(here):
    path = write_json_lines(
        "pairs.jsonl",
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "p", "chosen": "a", "rejected": "a"},
        {"prompt": "p", "chosen": [{"role": "bot", "content": "a"}], "rejected": "a"},
        {"prompt": [ANSWER], "chosen": "a", "rejected": "b"},
    )
    report = import_data("preferences", path, here, max_quarantined=1.0)
    assert report.by_reason == {"bad_messages": 1, "identical_responses": 1, "invalid_record": 1}


def test_demonstrations(here):
    path = write_json_lines(
        "shown.jsonl",
        {"prompt": "p", "completion": "a"},
        {"messages": [USER, ANSWER]},
        {"messages": [ANSWER]},
        {"messages": [USER, ANSWER, USER]},
        {"prompt": "p", "completion": " "},
        {"messages": "p"},
    )
    report = import_data("demonstrations", path, here, max_quarantined=1.0)
    assert (report.format, report.rows_out) == ("demonstrations", 2)
    assert report.by_reason == {
        "bad_messages": 1, "empty_prompt": 1, "empty_response": 1, "ends_without_answer": 1,
    }  # fmt: skip
    first, second = read_demonstrations(here)
    assert first == second and (first.prompt.text, first.response.text) == ("p", "a")


def test_prompts_from_json_lines_and_from_a_table(here):
    path = write_json_lines("prompts.jsonl", {"prompt": "p"}, {"prompt": [USER], "id": 3})
    import_data("prompts", path, here / "a")
    assert [prompt.text for prompt in read_prompts(here / "a")] == ["p", "p"]
    Path("labels.csv").write_text(HEADER + good(2))
    import_data("prompts", "labels.csv", here / "b")
    assert [prompt.text for prompt in read_prompts(here / "b")] == ["p0", "p1"]


def test_text_from_json_lines_and_from_blocks(here):
    path = write_json_lines("a.jsonl", {"text": " one\n\ntwo "}, {"text": "three"})
    import_data("text", path, here / "a")
    assert list(read_text(here / "a")) == [" one\n\ntwo ", "three"]
    Path("b.txt").write_text("\n  one\nmore\n\n\ntwo\u2028too\n")
    report = import_data("text", "b.txt", here / "b")
    assert list(read_text(here / "b")) == ["  one\nmore", "two\u2028too"]
    assert report.rows_in == 2


def test_a_folder_and_a_glob_are_read_in_order(here):
    (here / "data" / "more").mkdir(parents=True)
    (here / "data/README.txt").write_text("No data.")
    (here / "data/b.csv").write_text(HEADER + good(1))
    (here / "data/more/a.tsv").write_text((HEADER + "q,x,y,B,w\n").replace(",", "\t"))
    (here / "data/a.jsonl").write_text('{"prompt": "j"}')
    report = import_data("prompts", "data", here / "out")
    assert report.files == ["data/a.jsonl", "data/b.csv", "data/more/a.tsv"]
    assert [prompt.text for prompt in read_prompts(here / "out")] == ["j", "p0", "q"]
    assert import_data("preferences", "data/**/*.?sv", here / "two").rows_out == 2


def test_a_folder_without_data_and_a_json_array(here):
    (here / "none").mkdir()
    with pytest.raises(DataError) as caught:
        sniff("none", "text")
    assert str(caught.value) == (
        "The folder none holds no .csv, .tsv, .jsonl, .ndjson, .parquet, .json or .txt file."
    )
    Path("all.json").write_text('[{"text": "one"}, {"text": "two"}]')
    import_data("text", "all.json", here / "out")
    assert list(read_text(here / "out")) == ["one", "two"]


def test_reading_back_says_what_is_wrong(here):
    with pytest.raises(DataError) as caught:
        read_judgements(here)
    assert str(caught.value) == (
        f"There is no file {here}/judgements.jsonl. Import the preferences first."
    )
    (here / "judgements.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"judgements\.jsonl, line 1 is not a record of ours: "):
        list(read_judgements(here))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
keys = st.sampled_from(["prompt", "chosen", "rejected", "completion", "messages", "text", "role"])
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text()}
    )
)
objects = st.dictionaries(keys, json_values | messages | st.text(), max_size=4)


@given(
    st.lists(objects | json_values, min_size=1, max_size=6),
    st.sampled_from(
        [("preferences", "trl"), ("demonstrations", "demonstrations"), ("prompts", "prompts"),
         ("text", "text"), ("preferences", "hh"), ("demonstrations", "hh")]
    ),
)  # fmt: skip
def test_any_json_is_out_or_set_aside(tmp_path_factory, rows, kind_and_format):
    kind, format = kind_and_format
    folder = tmp_path_factory.mktemp("any")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        report = import_data(
            kind, str(folder / "rows.jsonl"), folder, format=format, max_quarantined=1.0
        )
    except DataError as error:
        # No usable row, or the first row is a list, which makes the file an array.
        assert (
            str(error).startswith("No row of")
            or " has no column" in str(error)
            or isinstance(rows[0], list)
        )
        return
    if isinstance(rows[0], list):
        return
    assert report.rows_in == len(rows) == report.rows_out + report.rows_quarantined
    assert sum(report.by_reason.values()) == report.rows_quarantined
    assert len((folder / "quarantine.jsonl").read_text().splitlines()) == report.rows_quarantined
    written = (folder / store.RECORD_FILES[kind]).read_text(encoding="utf-8")
    assert written.count("\n") == report.rows_out


def test_the_package_loads_without_the_heavy_libraries():
    heavy = "torch, transformers, datasets, pandas, pyarrow, pydantic, numpy"
    code = (
        "import preference_data, sys; "
        f"print([name for name in '{heavy}'.split(', ') if name in sys.modules])"
    )
    root = Path(__file__).parents[2]
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert said.stdout == "[]\n"


def test_an_earlier_import_stays_until_the_new_one_is_good(here):
    Path("good.csv").write_text(HEADER + good(3))
    Path("bad.csv").write_text(HEADER + good(1) + "p,x,y,C,w\n")
    import_data("preferences", "good.csv", here / "out")
    before = {path.name: path.read_bytes() for path in (here / "out").iterdir()}
    with pytest.raises(DataError, match=r"See .*out/quarantine-failed\.jsonl\."):
        import_data("preferences", "bad.csv", here / "out")
    after = {path.name: path.read_bytes() for path in (here / "out").iterdir()}
    failed = after.pop("quarantine-failed.jsonl")
    assert after == before and b"label_unknown" in failed
    import_data("preferences", "good.csv", here / "out", limit=2)
    assert {path.name for path in (here / "out").iterdir()} == set(before)


def test_files_of_a_folder_that_are_not_read_are_named(here):
    Path("data").mkdir()
    Path("data/a.csv").write_text(HEADER + good(2))
    Path("data/b.json").write_text("[]")
    Path("data/readme.txt").write_text("no data")
    report = import_data("preferences", "data", here / "out")
    assert report.notes == ["Not read, beside the other files of data: b.json."]


def test_a_data_folder_is_read_as_its_records_alone(here):
    Path("labels.csv").write_text(HEADER + good(3) + "p,x,y,C,w\n")
    import_data("preferences", "labels.csv", here / "out", max_quarantined=0.5)
    report = import_data("preferences", "out", here / "again")
    assert (report.format, report.files, report.rows_in) == (
        "judgements",
        ["out/judgements.jsonl"],
        3,
    )
    assert list(read_judgements(here / "again")) == list(read_judgements(here / "out"))
