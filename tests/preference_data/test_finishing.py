"""What an import does to records after their reader: the raw row, personal data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from preference_data import import_data, read_judgements, read_prompts, read_text
from preference_data.sources.carriers.files import Reading
from preference_data.sources.finishing import Finishing
from preference_data.sources.formats import read_records

ROWS = (
    "prompt,response_a,response_b,label,shop\n"
    "write to me,me@example.com,no,A,7\n"
    "p,x,y,maybe,8\n"
    "p,x,y,B,9\n"
)


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.csv"
    path.write_text(ROWS)
    return path


def test_the_raw_row_is_kept_with_columns_that_nothing_reads(labels, tmp_path):
    import_data("preferences", str(labels), tmp_path / "out", keep_raw=True, max_quarantined=0.5)
    first, last = read_judgements(tmp_path / "out")
    assert first.raw is not None and json.loads(first.raw)["shop"] == "7"
    assert last.raw is not None and json.loads(last.raw) == {
        "prompt": "p", "response_a": "x", "response_b": "y", "label": "B", "shop": "9",
    }  # fmt: skip


def test_every_record_of_a_row_keeps_it_and_no_earlier_row_is_remembered(tmp_path):
    """SafeRLHF: a helpful and a safe judgement a row."""
    row = {
        "prompt": "p", "response_0": "a", "response_1": "b", "is_response_0_safe": True,
        "is_response_1_safe": False, "better_response_id": 1, "safer_response_id": 0,
    }  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({**row, "prompt": f"p{i}"}) + "\n" for i in range(5)))
    finishing = Finishing(Reading(), keep_raw=True)
    _, items = read_records(str(path), "preferences", "safe_rlhf", Reading(), finishing)
    for number, records in enumerate(items):
        assert [json.loads(r.raw)["prompt"] for r in records] == [f"p{number}"] * 2
        assert len(finishing._raw) == 1


def test_masked_data_and_dropped_rows(labels, tmp_path):
    options = {"max_quarantined": 0.5}
    import_data("preferences", str(labels), tmp_path / "m", personal_data="mask", **options)
    assert next(read_judgements(tmp_path / "m")).responses[0].text == "[EMAIL]"
    report = import_data(
        "preferences", str(labels), tmp_path / "d", personal_data="drop", **options
    )
    assert report.by_reason == {"label_unknown": 1, "personal_data": 1}
    assert (report.rows_in, report.rows_out) == (3, 1)
    for path in (tmp_path / "d").iterdir():
        assert b"example.com" not in path.read_bytes()
    dropped = json.loads((tmp_path / "d" / "quarantine.jsonl").read_text().splitlines()[0])
    assert (dropped["row"], dropped["line"], dropped["raw"]) == (1, 2, None)
    assert dropped["expected"]


def test_a_masked_row_that_is_kept_raw_is_masked_there_too(labels, tmp_path):
    import_data(
        "preferences", str(labels), tmp_path / "out", keep_raw=True, personal_data="mask",
        max_quarantined=0.5,
    )  # fmt: skip
    assert b"example.com" not in (tmp_path / "out" / "judgements.jsonl").read_bytes()


def test_text_and_prompts_are_treated_too(tmp_path):
    (tmp_path / "t.txt").write_text("call me\n\nat me@example.com\n")
    import_data("text", str(tmp_path / "t.txt"), tmp_path / "m", personal_data="mask")
    assert list(read_text(tmp_path / "m")) == ["call me", "at [EMAIL]"]
    report = import_data("text", str(tmp_path / "t.txt"), tmp_path / "d", personal_data="drop")
    assert report.by_reason == {"personal_data": 1}
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": "me@example.com?"}\n')
    import_data("prompts", str(tmp_path / "p.jsonl"), tmp_path / "p", personal_data="drop")
    assert [prompt.text for prompt in read_prompts(tmp_path / "p")] == ["a"]
    rejected = json.loads((tmp_path / "p" / "quarantine.jsonl").read_text())
    assert rejected["row"] == 2 and rejected["raw"] is None


MESSY = (
    "prompt,response_a,response_b,label,annotator\n"
    "mail joe@example.com,x,y,,ann\n"
    "mail eve@example.com,x,,A,ann\n"
    "p,x,y,joe@example.com,ann\n"
    "p,x,y,A,anna@example.com\n"
    "p,x,y,B,anna@example.com\n"
)


@pytest.mark.parametrize("treatment", ["mask", "drop"])
def test_no_file_of_the_import_keeps_what_was_to_go(tmp_path, treatment):
    """Not the quarantine either, nor the sentence in it, nor the annotators' names."""
    (tmp_path / "messy.csv").write_text(MESSY)
    report = import_data(
        "preferences", str(tmp_path / "messy.csv"), tmp_path / "out", personal_data=treatment,
        max_quarantined=1,
    )  # fmt: skip
    assert (report.rows_in, report.rows_out) == (5, 2)
    for path in (tmp_path / "out").iterdir():
        assert b"example.com" not in path.read_bytes(), path.name
    [name] = report.by_annotator
    assert len(name) == 16 and report.by_annotator[name] == 2
    assert "pseudonyms of this import" in report.notes[0]


def test_a_key_gives_every_annotator_the_same_pseudonym_in_every_import(labels, tmp_path):
    labels.write_text("prompt,response_a,response_b,label,annotator\np,x,y,A,ann\np,x,y,B,bob\n")
    names = [
        sorted(
            import_data(
                "preferences", str(labels), tmp_path / folder, pseudonym_key=key * 16
            ).by_annotator
        )
        for folder, key in (("a", b"k"), ("b", b"k"), ("c", b"l"))
    ]
    assert names[0] == names[1] != names[2]
    assert not {"ann", "bob"} & {*names[0], *names[2]}


def test_judgements_of_an_earlier_import_keep_the_raw_row_they_have(labels, tmp_path):
    """Their source names a row of another file; what is dropped is named by its row here."""
    labels.write_text(
        "prompt,response_a,response_b,label\n" + "p,x,y,A\n" * 3 + "me@example.com,x,y,A\n"
    )
    import_data("preferences", str(labels), tmp_path / "first", limit=4, keep_raw=True)
    (tmp_path / "short.jsonl").write_bytes(
        b"".join((tmp_path / "first" / "judgements.jsonl").read_bytes().splitlines(True)[2:])
    )
    import_data(
        "preferences", str(tmp_path / "short.jsonl"), tmp_path / "second", keep_raw=True,
        personal_data="drop",
    )  # fmt: skip
    [kept] = read_judgements(tmp_path / "second")
    assert kept.source is not None and kept.source.row == 3 and kept.raw is not None
    dropped = json.loads((tmp_path / "second" / "quarantine.jsonl").read_text())
    assert (dropped["row"], dropped["file"]) == (2, str(tmp_path / "short.jsonl"))
