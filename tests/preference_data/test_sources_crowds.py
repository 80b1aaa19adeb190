"""Mechanical Turk's, CrowdFlower's and Toloka's results, unwrapped to tables of labels."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from preference_data import import_data, sniff
from preference_data.quarantine import DataError, Rejected
from preference_data.sources.carriers import read_rows
from preference_data.sources.carriers.files import Reading
from preference_data.sources.columns.mapping import Columns, Matching, Wide
from preference_data.sources.readers import crowds

READERS = {
    "mturk": crowds.read_mturk,
    "crowdflower": crowds.read_crowdflower,
    "toloka": crowds.read_toloka,
}
MTURK = {
    "HITId": "H1", "AssignmentId": "S1", "WorkerId": "W1", "AssignmentStatus": "Approved",
    "SubmitTime": "Tue Mar 05 10:11:12 PST 2019", "WorkTimeInSeconds": "42",
    "Input.prompt": "Name a river.", "Input.a": "The Elbe", "Input.b": "A lake",
    "Answer.choice": "b", "Approve": "", "Reject": "",
}  # fmt: skip
CROWDFLOWER = {
    "_unit_id": "7", "_created_at": "11/28/2017 14:51:43", "_id": "1",
    "_started_at": "11/28/2017 14:51:13", "_tainted": "false", "_channel": "c", "_trust": "0.75",
    "_worker_id": "W1", "_country": "DEU", "_region": "07", "_city": "Bonn", "_ip": "192.0.2.1",
    "better": "A", "better_gold": "", "prompt": "Name a river.", "response_a": "The Elbe",
    "response_b": "A lake",
}  # fmt: skip
TOLOKA = {
    "INPUT:prompt": "Name a river.", "INPUT:answer1": "The Elbe", "INPUT:answer2": "A lake",
    "OUTPUT:result": "answer1", "GOLDEN:result": "", "HINT:text": "",
    "ASSIGNMENT:task_id": "T1", "ASSIGNMENT:worker_id": "W1", "ASSIGNMENT:status": "APPROVED",
    "ASSIGNMENT:started": "2024-05-06T07:08:09",
}  # fmt: skip


def read(folder: Path, format: str, *rows: dict[str, str], reading: Reading | None = None) -> list:
    path = folder / ("result.tsv" if format == "toloka" else "result.csv")
    with path.open("w", newline="") as stream:
        delimiter = "\t" if format == "toloka" else ","
        table = csv.DictWriter(stream, rows[0], delimiter=delimiter, quoting=csv.QUOTE_ALL)
        table.writeheader()
        table.writerows(rows)
    assert sniff(str(path), "preferences") == format
    reading = reading or Reading()
    return list(READERS[format](read_rows([path], reading), reading))


def verdicts(item) -> list[tuple]:
    assert not isinstance(item, Rejected), item
    return [(*(r.text for r in j.responses), j.label) for j in item]


def test_an_assignment_with_what_the_platform_knows(tmp_path):
    (item,) = read(tmp_path, "mturk", MTURK)
    assert verdicts(item) == [("The Elbe", "A lake", "second")]
    (judgement,) = item
    assert judgement.prompt.text == "Name a river."
    assert (judgement.annotator, judgement.group, judgement.duration) == ("W1", "H1", 42.0)
    assert judgement.created_at == "2019-03-05T10:11:12-08:00"
    assert (judgement.source.format, judgement.source.row) == ("mturk", 1)


@pytest.mark.parametrize("change", [{"AssignmentStatus": "Rejected"}, {"Reject": "x"}])
def test_a_rejected_assignment_is_set_aside(tmp_path, change):
    items = read(tmp_path, "mturk", {**MTURK, **change}, MTURK)
    assert (items[0].reason, items[0].expected) == ("assignment_rejected", True)
    assert verdicts(items[1]) == [("The Elbe", "A lake", "second")]


def without(row: dict[str, str], *names: str) -> dict[str, str]:
    return {name: cell for name, cell in row.items() if name not in names}


def test_a_radio_group_is_one_answer(tmp_path):
    row = without(MTURK, "Answer.choice")
    groups = [("false", "true"), ("true", "false"), ("true", "true"), ("false", "false")]
    items = read(
        tmp_path,
        "mturk",
        *({**row, "Answer.choice.a": a, "Answer.choice.b": b} for a, b in groups),
    )
    assert [item[0].label for item in items[:2]] == ["second", "first"]
    assert [item.reason for item in items[2:]] == ["label_unknown", "label_missing"]
    assert "'a|b'" in items[2].detail


def test_task_answers_are_json(tmp_path):
    row = without(MTURK, "Answer.choice")
    answers = [
        json.dumps([{"choice": {"a": True, "b": False}, "note": "said so"}]),
        json.dumps([{"choice": "b"}]),
        "oops",
        "[3]",
    ]
    items = read(tmp_path, "mturk", *({**row, "Answer.taskAnswers": cell} for cell in answers))
    assert [item[0].label for item in items[:2]] == ["first", "second"]
    assert [item.reason for item in items[2:]] == ["json_invalid", "wrong_type"]


def test_several_items_in_a_hit(tmp_path):
    """Three places for items, of which the last HIT fills two; the question is asked once."""
    row = without(MTURK, "Input.a", "Input.b", "Answer.choice")
    for n, (a, b, choice) in enumerate((("x", "y", "a"), ("u", "v", "B"), ("", "", "")), start=1):
        row |= {f"Input.a{n}": a, f"Input.b{n}": b, f"Answer.choice{n}": choice}
    (item,) = read(tmp_path, "mturk", row)
    assert verdicts(item) == [("x", "y", "first"), ("u", "v", "second")]
    assert {j.annotator for j in item} == {"W1"}
    assert len({j.id for j in item}) == 2


def test_a_hit_without_any_item_is_rejected(tmp_path):
    row = without(MTURK, "Input.a", "Input.b", "Answer.choice")
    row |= dict.fromkeys(("Input.a1", "Input.b1", "Answer.choice1"), "")
    row |= dict.fromkeys(("Input.a2", "Input.b2", "Answer.choice2"), "")
    (item,) = read(tmp_path, "mturk", row)
    assert (item.reason, item.expected) == ("empty_prompt", False)


def test_numbered_answers_to_one_question_are_one_item(tmp_path):
    row = without(MTURK, "Input.a", "Input.b")
    row |= {"Input.answer1": "x", "Input.answer2": "y", "Answer.choice": "Answer1"}
    (item,) = read(tmp_path, "mturk", row)
    assert verdicts(item) == [("x", "y", "first")]


MAPPED_RANKS = Columns(
    responses=("answer1", "answer2"), ranks=("Answer.place1", "Answer.place2"), prompt="prompt"
)
FOUND_RANKS = Columns(
    responses=Matching("Input[.]answer([0-9])"), ranks=Matching("Answer[.]place([0-9])")
)


@pytest.mark.parametrize("columns", [MAPPED_RANKS, FOUND_RANKS])
def test_numbers_that_a_mapping_names_tell_no_items_apart(tmp_path, columns):
    row = without(MTURK, "Input.a", "Input.b", "Answer.choice")
    row |= {"Input.answer1": "x", "Input.answer2": "y", "Answer.place1": "2", "Answer.place2": "1"}
    (item,) = read(tmp_path, "mturk", row, reading=Reading(columns))
    assert verdicts(item) == [("x", "y", "second")]


def test_ranks_under_their_usual_names_are_one_item(tmp_path):
    row = without(MTURK, "Input.a", "Input.b", "Answer.choice")
    row |= {"Input.response_1": "x", "Input.response_2": "y"}
    row |= {"Answer.rank_1": "2", "Answer.rank_2": "1"}
    (item,) = read(tmp_path, "mturk", row)
    assert verdicts(item) == [("x", "y", "second")]


def test_items_by_a_mapping_of_their_columns_without_the_number(tmp_path):
    row = without(MTURK, "Input.a", "Input.b", "Answer.choice")
    for n, better in enumerate("ab", start=1):
        row |= {f"Input.a_{n}": f"x{n}", f"Input.b_{n}": f"y{n}", f"Answer.pick_{n}": better}
    columns = Columns(
        responses=("Input.a", "Input.b"), label="pick", labels={"a": "first", "b": "second"}
    )
    (item,) = read(tmp_path, "mturk", row, reading=Reading(columns))
    assert verdicts(item) == [("x1", "y1", "first"), ("x2", "y2", "second")]


def test_entities_are_unescaped_and_noted(tmp_path):
    reading = Reading()
    row = {**MTURK, "Input.a": "Elbe&#44; the &quot;long&quot;", "Input.b": "?a=1&copy=2 &amp;lt;"}
    (item,) = read(tmp_path, "mturk", row, reading=reading)
    assert verdicts(item) == [('Elbe, the "long"', "?a=1&copy=2 &lt;", "second")]
    assert [note for note in reading.notes if "HTML entities" in note]
    plain = Reading()
    read(tmp_path, "mturk", MTURK, reading=plain)
    assert plain.notes == []


@pytest.mark.parametrize("prefix", ["", "Input."])
def test_columns_are_mapped_with_the_prefix_or_without(tmp_path, prefix):
    row = without(MTURK, "Input.prompt", "Answer.choice")
    row |= {"Input.wanted": "Name a sea.", "Answer.pick": "1"}
    columns = Columns(
        prompt=f"{prefix}wanted",
        responses=(f"{prefix}b", f"{prefix}a"),
        label="Answer.pick" if prefix else "pick",
        labels={"1": "first", "2": "second"},
    )
    (item,) = read(tmp_path, "mturk", row, reading=Reading(columns))
    assert verdicts(item) == [("A lake", "The Elbe", "first")]
    assert item[0].prompt.text == "Name a sea."


def test_a_number_is_not_guessed(tmp_path):
    with pytest.raises(DataError, match="no agreed meaning"):
        read(tmp_path, "mturk", {**MTURK, "Answer.choice": "1"})


def test_columns_that_may_mean_either_must_be_mapped(tmp_path):
    row = without(MTURK, "Input.prompt")
    row |= {"Input.question": "Which?", "Input.context": "Rivers."}
    with pytest.raises(DataError, match="prompt"):
        read(tmp_path, "mturk", row)


def test_crowdflower_keeps_no_address_or_place(tmp_path):
    reading = Reading()
    broken = {**CROWDFLOWER, "better": ""}
    judged, rejected = read(tmp_path, "crowdflower", CROWDFLOWER, broken, reading=reading)
    assert verdicts(judged) == [("The Elbe", "A lake", "first")]
    (judgement,) = judged
    assert (judgement.annotator, judgement.group, judgement.weight) == ("W1", "7", 0.75)
    assert (judgement.duration, judgement.created_at) == (30.0, "2017-11-28T14:51:43")
    assert judgement.gold is None
    assert any("_trust" in note for note in reading.notes)
    assert rejected.reason == "label_missing"
    for personal in ("192.0.2.1", "Bonn", "DEU"):
        assert personal not in json.dumps([judgement.to_json(), asdict(rejected)])


def test_tainted_and_untrusted_rows_are_set_aside(tmp_path):
    items = read(
        tmp_path, "crowdflower", {**CROWDFLOWER, "_tainted": "True"}, {**CROWDFLOWER, "_trust": "0"}
    )
    assert [(item.reason, item.expected) for item in items] == [
        ("tainted", True), ("untrusted", True),
    ]  # fmt: skip


def test_a_gold_label_is_the_expected_ranks(tmp_path):
    """Either of two accepted labels is right; a wrong answer is held against the first."""
    golds = [("A", "B"), ("A", "tie\nA"), ("A", "B\ntie")]
    items = read(
        tmp_path,
        "crowdflower",
        *({**CROWDFLOWER, "better": given, "better_gold": gold} for given, gold in golds),
    )
    assert [item[0].ranks for item in items] == [(1, 2)] * 3
    assert [item[0].gold for item in items] == [(2, 1), (1, 2), (2, 1)]


def test_gold_by_a_mapped_label(tmp_path):
    row = {**CROWDFLOWER, "better": "1", "better_gold": "2"}
    columns = Columns(
        responses=("response_a", "response_b"),
        label="better",
        labels={"1": "first", "2": "second"},
    )
    (item,) = read(tmp_path, "crowdflower", row, reading=Reading(columns))
    assert (item[0].ranks, item[0].gold) == ((1, 2), (2, 1))


def test_a_mapped_gold_column_is_the_one_that_counts(tmp_path):
    row = {**CROWDFLOWER, "better_gold": "B", "checked": "tie"}
    columns = Columns(label="better", gold="checked")
    (item,) = read(tmp_path, "crowdflower", row, reading=Reading(columns))
    assert (item[0].ranks, item[0].gold) == ((1, 2), (1, 1))
    columns = Columns(
        prompt="INPUT:prompt",
        responses=("INPUT:answer2", "INPUT:answer1"),
        label="OUTPUT:result",
        labels={"answer2": "first", "answer1": "second"},
        gold="GOLDEN:result",
    )
    row = {**TOLOKA, "GOLDEN:result": "answer2"}
    (item,) = read(tmp_path, "toloka", row, reading=Reading(columns))
    assert verdicts(item) == [("A lake", "The Elbe", "second")]
    assert item[0].gold == (1, 2)


def test_a_wide_mapping_has_no_effect_here(tmp_path):
    columns = Columns(wide=Wide(columns="Answer[.](?P<asked>.*)"))
    with pytest.raises(DataError, match="wide has no effect"):
        read(tmp_path, "mturk", MTURK, reading=Reading(columns))


def test_an_import_takes_the_mapping_with_the_format(tmp_path):
    read(tmp_path, "mturk", MTURK, {**MTURK, "AssignmentStatus": "Rejected"})
    report = import_data(
        "preferences",
        str(tmp_path / "result.csv"),
        tmp_path / "out",
        format="mturk",
        columns=Columns(responses=("b", "a"), label="choice", label_is="column"),
        max_quarantined=0.0,
    )
    assert (report.format, report.by_label) == ("mturk", {"first": 1})
    assert report.by_reason == {"assignment_rejected": 1}


def test_toloka_with_control_items_and_refused_assignments(tmp_path):
    statuses = ("REJECTED", "SKIPPED", "EXPIRED")
    judged, control, *refused = read(
        tmp_path,
        "toloka",
        TOLOKA,
        {**TOLOKA, "GOLDEN:result": "answer2"},
        *({**TOLOKA, "ASSIGNMENT:status": status} for status in statuses),
    )
    assert verdicts(judged) == [("The Elbe", "A lake", "first")]
    assert (judged[0].annotator, judged[0].group) == ("W1", "T1")
    assert (judged[0].created_at, judged[0].gold) == ("2024-05-06T07:08:09", None)
    assert (control[0].ranks, control[0].gold) == ((1, 2), (2, 1))
    assert [item.reason for item in refused] == [
        "assignment_rejected", "assignment_skipped", "assignment_expired",
    ]  # fmt: skip
    assert all(item.expected for item in refused)


def test_an_address_as_annotator_becomes_a_pseudonym(tmp_path):
    addresses = ("Ann@example.org", "ann@example.org", "bob@example.org")
    items = read(
        tmp_path, "toloka", *({**TOLOKA, "ASSIGNMENT:worker_id": one} for one in addresses)
    )
    ann, same, bob = (item[0].annotator for item in items)
    assert ann == same != bob
    assert "@" not in ann
    assert len(ann) == 16
