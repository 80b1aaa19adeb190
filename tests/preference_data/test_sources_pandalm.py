"""PandaLM: three annotators an item, each a row of account; and the published test set."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from preference_data import import_data, read_judgements
from preference_data.quarantine import DataError, Rejected
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
def test_each_verdict_on_a_broken_answer_is_set_aside(tmp_path, answer, reason, detail):
    items = read_items(tmp_path, {**ITEM, "response1": answer})
    assert [item.reason for item in items] == [reason] * 3
    assert items[0].detail == f"row 1 (line 1): {detail}"


def test_an_unusual_key_names_no_models(tmp_path):
    judgement = read_items(tmp_path, {**ITEM, "cmp_key": "m_1_m_2"})[0]
    assert [response.model for response in judgement.responses] == [None, None]


@pytest.fixture
def real() -> str:
    if "ALIGN_TEST_DATA" not in os.environ:
        pytest.skip("ALIGN_TEST_DATA does not name the folder of real data")
    return str(Path(os.environ["ALIGN_TEST_DATA"]) / "pandalm" / "testset-v1.json")


def test_the_real_file_counts_as_published(real, tmp_path):
    """2,997 verdicts on 999 items: 2,671 decisive and 326 ties.

    18 of them are on 6 answers that are JSON's true, and 162 on 54 empty ones; 2,817 are left.
    """
    report = import_data("preferences", real, tmp_path, max_quarantined=0.07)
    assert (report.format, report.rows_in, report.rows_out) == ("pandalm", 2997, 2817)
    assert report.by_reason == {"empty_response": 162, "wrong_type": 18}
    quarantine = (tmp_path / "quarantine.jsonl").read_bytes().splitlines()
    verdicts = Counter(report.by_label)
    for line in quarantine:
        raw = json.loads(line)["raw"]
        (verdict,) = (raw[f"annotator{i}"] for i in (1, 2, 3) if f"annotator{i}" in raw)
        verdicts[{0: "tie", 1: "first", 2: "second"}[verdict]] += 1
    assert verdicts["tie"] == 326
    assert verdicts["first"] + verdicts["second"] == 2671
    assert sum(report.by_annotator.values()) == 2817


def test_the_real_winner_between_two_models_is_the_known_one(real, tmp_path):
    """LLaMA over OPT: 211 to 74 votes in the file, whose key names LLaMA first."""
    import_data("preferences", real, tmp_path, max_quarantined=0.07)
    wins = Counter(
        comparison.chosen.model
        for judgement in read_judgements(tmp_path)
        for comparison in judgement.comparisons()
        if {response.model for response in judgement.responses} == {"llama-7b", "opt-7b"}
    )
    assert wins["llama-7b"] > 2 * wins["opt-7b"]


def test_the_real_file_needs_leave_for_so_many_broken_answers(real, tmp_path):
    with pytest.raises(DataError, match=r"180 of 2997 rows .* more than the 5.00%"):
        import_data("preferences", real, tmp_path)
