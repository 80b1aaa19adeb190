"""Prodigy: accepted options, the compare recipe in both of its forms, and what does not count."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from preference_data import sniff
from preference_data.quarantine import Rejected
from preference_data.sources.carriers.files import Reading
from preference_data.sources.formats import FORMATS, read_records

OPTIONS = [{"id": 0, "text": "No."}, {"id": 1, "text": "Yes."}]
TASK = {
    "text": "Why?",
    "options": OPTIONS,
    "accept": [1],
    "answer": "accept",
    "_input_hash": -5,
    "_task_hash": 6,
    "_view_id": "choice",
    "_annotator_id": "labels-ann",
    "_timestamp": 1_500_000_000,
}
PAIR = {
    "id": 1,
    "input": {"text": "Why?"},
    "accept": {"text": "new"},
    "reject": {"text": "old"},
    "mapping": {"B": "accept", "A": "reject"},
    "answer": "accept",
    "_input_hash": 5,
    "_task_hash": 7,
}


def read(folder: Path, row: dict):
    path = folder / "tasks.jsonl"
    path.write_text(json.dumps(row))
    _, items = read_records(str(path), "preferences", "auto", Reading())
    (item,) = items
    return item if isinstance(item, Rejected) else item[0]


def texts(judgement) -> list[str]:
    return [response.text for response in judgement.responses]


def test_the_accepted_option_is_the_better_answer(tmp_path):
    """1,500,000,000 seconds after 1970 is 14 July 2017, 02:40 UTC."""
    judgement = read(tmp_path, TASK)
    assert (judgement.prompt.text, texts(judgement)) == ("Why?", ["No.", "Yes."])
    assert (judgement.ranks, judgement.kind, judgement.position) == ((2, 1), "ranking", (0, 1))
    assert (judgement.annotator, judgement.group) == ("labels-ann", "-5")
    assert judgement.created_at == "2017-07-14T02:40:00+00:00"
    assert judgement.source.format == "prodigy"
    assert [response.model for response in judgement.responses] == [None, None]


def test_ids_may_be_text_and_the_session_may_stand_for_the_annotator(tmp_path):
    options = [{"id": "x", "text": "a"}, {"id": "y", "html": "<b>b</b>"}]
    row = {**TASK, "options": options, "accept": ["x"], "_session_id": "s", "user_input": "short"}
    del row["_annotator_id"]
    judgement = read(tmp_path, row)
    assert (judgement.ranks, texts(judgement)) == ((1, 2), ["a", "<b>b</b>"])
    assert (judgement.annotator, judgement.comment) == ("s", "short")


def test_the_best_of_three_leaves_the_others_uncompared(tmp_path):
    row = {**TASK, "options": [*OPTIONS, {"id": 2, "text": "Maybe."}], "accept": [2]}
    judgement = read(tmp_path, row)
    assert (judgement.kind, judgement.ranks) == ("best_of", (2, 2, 1))


def test_an_option_for_a_tie_is_no_answer(tmp_path):
    options = [OPTIONS[0], {"id": "tie", "text": "Equal"}, OPTIONS[1]]
    tie = read(tmp_path, {**TASK, "options": options, "accept": ["tie"]})
    assert (texts(tie), tie.ranks, tie.outcome) == (["No.", "Yes."], (1, 1), "tie")
    won = read(tmp_path, {**TASK, "options": options, "accept": [0]})
    assert (won.kind, won.ranks, won.outcome) == ("ranking", (1, 2), None)


@pytest.mark.parametrize("accepted", ["B", "reject"])
def test_compare_s_options_name_their_systems_in_the_order_shown(tmp_path, accepted):
    row = {
        **TASK,
        "options": [{"id": "B", "text": "old"}, {"id": "A", "text": "new"}],
        "mapping": {"A": "accept", "B": "reject"},
        "accept": [accepted],
    }
    judgement = read(tmp_path, row)
    assert (judgement.ranks, judgement.position) == ((1, 2), (0, 1))
    assert [response.model for response in judgement.responses] == ["B", "A"]


@pytest.mark.parametrize(("answer", "ranks"), [("accept", (2, 1)), ("reject", (1, 2))])
def test_in_compare_s_pairs_the_answer_says_which_is_better(tmp_path, answer, ranks):
    """B's answer stands under accept; the systems come in the order of their names."""
    judgement = read(tmp_path, {**PAIR, "answer": answer})
    assert [(r.text, r.model) for r in judgement.responses] == [("old", "A"), ("new", "B")]
    assert (judgement.prompt.text, judgement.ranks, judgement.position) == ("Why?", ranks, None)


@pytest.mark.parametrize(
    ("changed", "reason", "expected"),
    [
        ({"answer": "ignore"}, "skipped", True),
        ({"answer": "reject"}, "task_rejected", True),
        ({"accept": []}, "not_annotated", True),
        ({"accept": None}, "not_annotated", True),
        ({"accept": [0, 1]}, "several_chosen", False),
        ({"accept": [7]}, "option_unknown", False),
        ({"answer": "yes"}, "label_unknown", False),
        ({"options": "a, b"}, "bad_options", False),
        ({"options": [OPTIONS[1], {"id": 2}]}, "empty_response", False),
        ({"options": [OPTIONS[1]]}, "invalid_record", False),
        ({"options": [OPTIONS[1], {"id": 2, "text": "Yes."}]}, "identical_responses", False),
        ({"options": [OPTIONS[1], OPTIONS[1]]}, "option_unknown", False),
        ({"text": " "}, "empty_prompt", False),
    ],
)
def test_tasks_that_do_not_count_or_cannot_be_used(tmp_path, changed, reason, expected):
    item = read(tmp_path, {**TASK, **changed})
    assert isinstance(item, Rejected)
    assert (item.reason, item.expected) == (reason, expected)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"mapping": {"A": "accept"}}, "bad_mapping"),
        ({"reject": {"text": ""}}, "empty_response"),
        ({"reject": {"text": "new"}}, "identical_responses"),
        ({"answer": "ignore"}, "skipped"),
    ],
)
def test_pairs_that_cannot_be_used(tmp_path, changed, reason):
    item = read(tmp_path, {**PAIR, **changed})
    assert isinstance(item, Rejected)
    assert item.reason == reason


@pytest.mark.parametrize("row", [TASK, PAIR])
def test_the_format_is_recognised_and_by_no_other(tmp_path, row):
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps(row))
    assert sniff(str(path), "preferences") == "prodigy"
    found = [name for name, f in FORMATS.items() if f.recognises and f.recognises(row)]
    assert found == ["prodigy"]


@pytest.mark.parametrize(
    "row",
    [
        {"text": "t", "label": "X", "answer": "accept", "_input_hash": 1, "_task_hash": 2},
        {"text": "t", "options": OPTIONS, "accept": [1], "answer": "accept"},
        {"prompt": "p", "response_a": "a", "response_b": "b", "label": "A"},
        {"prompt": "p", "chosen": "a", "rejected": "b"},
    ],
)
def test_other_rows_are_not_recognised(row):
    recognises = FORMATS["prodigy"].recognises
    assert recognises and not recognises(row)
