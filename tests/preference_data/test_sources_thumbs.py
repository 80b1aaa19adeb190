"""Thumbs up and down on single answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from preference_data import Columns, import_data
from preference_data.quarantine import DataError, Rejected
from preference_data.sources.carriers.files import Reading
from preference_data.sources.formats import read_records


def read_rows(path: Path):
    format, items = read_records(str(path), "preferences", "auto", Reading())
    assert format == "thumbs"
    return [item if isinstance(item, Rejected) else item[0] for item in items]


def read_label(folder: Path, label: object):
    path = folder / "log.jsonl"
    path.write_text(json.dumps({"prompt": "Hi", "completion": "Hello", "label": label}))
    (item,) = read_rows(path)
    return item


@pytest.mark.parametrize(
    ("label", "score"),
    [
        (True, 1.0), ("true", 1.0), ("thumbs_up", 1.0), ("Thumbs up", 1.0), (" up", 1.0),
        ("👍", 1.0), (1, 1.0), ("+1", 1.0),
        (False, 0.0), ("False", 0.0), ("thumbs_down", 0.0), ("down", 0.0), ("👎", 0.0),
        (-1, 0.0), ("-1", 0.0),
    ],
)  # fmt: skip
def test_what_a_label_means(tmp_path, label, score):
    judgement = read_label(tmp_path, label)
    assert (judgement.kind, judgement.scores, judgement.ranks) == ("binary", (score,), (None,))
    assert judgement.label == ("good" if score else "bad")


@pytest.mark.parametrize("label", [0, "0", 0.0, 2, "5", 0.5])
def test_a_number_that_was_not_agreed_on_stops_the_import(tmp_path, label):
    with pytest.raises(DataError) as error:
        read_label(tmp_path, label)
    assert str(error.value) == (
        f"{tmp_path / 'log.jsonl'}, row 1 (line 1): the label {label!r} has no agreed meaning. "
        "Write true for a thumb up and false for a thumb down, or say what it means with columns: "
        "{responses: [completion], thumbs: {…: up, …: down}} and no format."
    )


def test_a_table_of_0_and_1_is_refused_as_a_whole(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("prompt,completion,label\nHi,Hello,1\nHi,What?,0\n")
    with pytest.raises(DataError, match=r"row 2 \(line 3\): the label '0' has no agreed meaning"):
        import_data("preferences", str(path), tmp_path / "out")
    assert not (tmp_path / "out" / "judgements.jsonl").exists()


def test_a_mapping_gives_0_and_1_their_meaning(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("prompt,completion,label\nHi,Hello,1\nHi,What?,0\nHi,Eh?,\n")
    columns = Columns(responses=("completion",), thumbs={"1": "up", "0": "down"})
    report = import_data("preferences", str(path), tmp_path / "out", columns=columns)
    assert (report.format, report.by_label) == ("table", {"bad": 1, "good": 1})
    assert report.by_reason == {"label_missing": 1}


def test_no_vote_is_no_thumb_down_and_no_fault(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("prompt,completion,label\nHi,Hello,true\nHi,What?,\nHi,Eh?,false\n")
    report = import_data("preferences", str(path), tmp_path / "out", max_quarantined=0.0)
    assert report.by_label == {"good": 1, "bad": 1}
    assert report.by_reason == {"no_vote": 1}


def test_a_null_in_json_is_no_vote(tmp_path):
    item = read_label(tmp_path, None)
    assert (item.reason, item.expected) == ("no_vote", True)
    assert item.detail == "row 1 (line 1): label is empty: nobody voted."


@pytest.mark.parametrize("label", ["meh", ["up"]])
def test_another_word_is_set_aside(tmp_path, label):
    item = read_label(tmp_path, label)
    assert (item.reason, item.expected) == ("label_unknown", False)


def test_prompts_and_answers_may_be_messages(tmp_path):
    path = tmp_path / "log.jsonl"
    row = {
        "prompt": [{"role": "user", "content": "Hi"}],
        "completion": [{"role": "assistant", "content": "Hello"}],
        "label": True,
        "annotator": "ann@example.org",
        "comment": "kind",
    }
    path.write_text(json.dumps(row))
    (judgement,) = read_rows(path)
    assert (judgement.prompt.text, judgement.responses[0].text) == ("Hi", "Hello")
    assert judgement.comment == "kind"
    # sha256 of the address, so that no address is kept.
    assert judgement.annotator and "@" not in judgement.annotator


def test_an_empty_answer_is_set_aside(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"prompt": "Hi", "completion": "", "label": False}))
    (item,) = read_rows(path)
    assert item.reason == "empty_response"
