"""PandaLM: three annotators an item, each a row of account; and the published test set."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from real_data import real_data

from preference_data import import_data, read_judgements
from preference_data.quarantine import Rejected
from preference_data.sources.carriers.files import Reading
from preference_data.sources.formats import read_records

ITEM = {
    "idx": 0,
    "motivation_app": "Tea",
    "cmp_key": "m-1_m-2",
    "instruction": "Say it shorter.",
    "input": "A long way to say it.",
    "response1": "Say it.",
    "response2": "It.",
    "annotator1": 1,
    "annotator2": 2,
    "annotator3": 0,
}


def read_items(folder: Path, *rows: dict[str, object]):
    path = folder / "items.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    format, items = read_records(str(path), "preferences", "auto", Reading())
    assert format == "pandalm"
    return [item if isinstance(item, Rejected) else item[0] for item in items]


def test_an_item_is_three_rows_of_account(tmp_path):
    judgements = read_items(tmp_path, ITEM)
    assert [judgement.label for judgement in judgements] == ["first", "second", "tie"]
    assert [judgement.annotator for judgement in judgements] == [
        "annotator1", "annotator2", "annotator3",
    ]  # fmt: skip
    assert {judgement.prompt.text for judgement in judgements} == {
        "Say it shorter.\n\nA long way to say it."
    }
    assert [response.model for response in judgements[0].responses] == ["m-1", "m-2"]
    assert len({judgement.id for judgement in judgements}) == 3
    assert len({judgement.item_id for judgement in judgements}) == 1


def test_one_bad_verdict_leaves_the_others(tmp_path):
    first, second, third = read_items(tmp_path, {**ITEM, "annotator1": 3, "annotator2": None})
    assert (first.reason, first.detail) == (
        "label_unknown", "row 1 (line 1): annotator1 is 3, not one of 1, 2, 0.",
    )  # fmt: skip
    assert (second.reason, second.expected) == ("not_annotated", True)
    assert third.is_tie
    # What was set aside is this verdict, not the other two.
    assert (first.raw["annotator1"], "annotator2" in first.raw) == (3, False)


@pytest.mark.parametrize(
    ("answer", "reason", "detail"),
    [
        (True, "wrong_type", "response1 is True, not text."),
        ("", "empty_response", "response1 is empty."),
    ],
)
def test_an_item_with_a_broken_answer_is_set_aside_once(tmp_path, answer, reason, detail):
    broken, *votes = read_items(tmp_path, {**ITEM, "response1": answer}, ITEM)
    assert (broken.reason, broken.detail) == (reason, f"row 1 (line 1): {detail}")
    assert broken.raw == {**ITEM, "response1": answer}
    assert [vote.label for vote in votes] == ["first", "second", "tie"]


def test_an_item_without_annotators_is_set_aside_once(tmp_path):
    """The file is PandaLM's by its first item."""
    bare = {name: value for name, value in ITEM.items() if not name.startswith("annotator")}
    *_, item = read_items(tmp_path, ITEM, bare)
    assert (item.row, item.reason) == (2, "label_missing")


def test_identical_answers_may_be_a_tie_and_nothing_else(tmp_path):
    first, second, third = read_items(tmp_path, {**ITEM, "response2": "Say it."})
    assert (first.reason, second.reason) == ("identical_responses", "identical_responses")
    assert third.is_tie


def test_an_unusual_key_names_no_models(tmp_path):
    judgement = read_items(tmp_path, {**ITEM, "cmp_key": "m_1_m_2"})[0]
    assert [response.model for response in judgement.responses] == [None, None]


@pytest.fixture
def real() -> str:
    return str(real_data("pandalm", "testset-v1.json"))


def test_the_real_file_counts_as_published(real, tmp_path):
    """2,997 verdicts on 999 items: 2,671 decisive and 326 ties.

    An item is one row of account if an answer of it is JSON's true (6) or empty (54), and three
    if not: 939 * 3 = 2,817. The 60 are 2.1 % of the rows, fewer than the import allows.
    """
    report = import_data("preferences", real, tmp_path)
    assert (report.format, report.rows_in, report.rows_out) == ("pandalm", 2877, 2817)
    assert report.by_reason == {"empty_response": 54, "wrong_type": 6}
    quarantine = (tmp_path / "quarantine.jsonl").read_bytes().splitlines()
    verdicts = Counter(report.by_label)
    for line in quarantine:
        raw = json.loads(line)["raw"]
        for i in (1, 2, 3):
            verdicts[{0: "tie", 1: "first", 2: "second"}[raw[f"annotator{i}"]]] += 1
    assert verdicts["tie"] == 326
    assert verdicts["first"] + verdicts["second"] == 2671
    assert sum(report.by_annotator.values()) == 2817


def test_the_real_winner_between_two_models_is_the_known_one(real, tmp_path):
    """LLaMA over OPT: 211 to 74 votes in the file, whose key names LLaMA first."""
    import_data("preferences", real, tmp_path)
    wins = Counter(
        comparison.chosen.model
        for judgement in read_judgements(tmp_path)
        for comparison in judgement.comparisons()
        if {response.model for response in judgement.responses} == {"llama-7b", "opt-7b"}
    )
    assert wins["llama-7b"] > 2 * wins["opt-7b"]
