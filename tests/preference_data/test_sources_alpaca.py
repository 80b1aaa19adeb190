"""AlpacaFarm's and AlpacaEval's annotations: a preference that counts from 1."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from one_row import read_judgement

from preference_data import import_data
from preference_data.sources.carriers.files import Reading

ANNOTATION = {
    "instruction": "Name a colour.",
    "input": "",
    "output_1": "Blue",
    "generator_1": "m1",
    "output_2": "Tea",
    "generator_2": "m2",
    "annotator": "alpaca_eval_gpt4",
    "preference": 1,
    "time_per_example": 0.5,
}


def read_row(folder: Path, row: dict[str, object], reading: Reading | None = None):
    return read_judgement(folder, row, "alpaca", reading)


def test_an_annotation_by_a_model(tmp_path):
    judgement = read_row(tmp_path, ANNOTATION)
    assert judgement.prompt.text == "Name a colour."
    assert [(r.text, r.model) for r in judgement.responses] == [("Blue", "m1"), ("Tea", "m2")]
    assert (judgement.ranks, judgement.duration) == ((1, 2), 0.5)
    assert (judgement.annotator, judgement.annotator_kind) == ("alpaca_eval_gpt4", "model")


def test_the_input_follows_the_instruction(tmp_path):
    judgement = read_row(tmp_path, {**ANNOTATION, "input": "Not blue. "})
    assert judgement.prompt.text == "Name a colour.\n\nNot blue. "


def test_a_blank_instruction_leaves_the_input(tmp_path):
    judgement = read_row(tmp_path, {**ANNOTATION, "instruction": " ", "input": "Truth"})
    assert judgement.prompt.text == "Truth"
    assert read_row(tmp_path, {**ANNOTATION, "instruction": " "}).reason == "empty_prompt"


@pytest.mark.parametrize(
    ("preference", "label", "probability", "strength"),
    [
        (1, "first", None, None),
        (2.0, "second", None, None),
        (1.5, "tie", None, None),
        (0, "tie", None, None),
        (1.25, "first", 0.75, 0.5),  # 2 - 1.25, and twice its distance from 1.5
        (1.875, "second", 0.125, 0.75),
    ],
)
def test_what_a_preference_means(tmp_path, preference, label, probability, strength):
    judgement = read_row(tmp_path, {**ANNOTATION, "preference": preference})
    assert (judgement.label, judgement.probability) == (label, probability)
    assert judgement.strength == strength


@pytest.mark.parametrize("value", [3, 0.5, -1])
def test_another_number_is_set_aside(tmp_path, value):
    item = read_row(tmp_path, {**ANNOTATION, "preference": value})
    assert item.reason == "label_unknown"
    assert item.detail == f"row 1 (line 1): preference is {value}, not 0 or from 1 to 2."


def test_a_preference_that_nobody_gave_is_no_fault(tmp_path):
    path = tmp_path / "annotations.jsonl"
    rows = [ANNOTATION, {**ANNOTATION, "preference": None}]
    path.write_text("\n".join(map(json.dumps, rows)))
    report = import_data("preferences", str(path), tmp_path / "out", max_quarantined=0.0)
    assert (report.rows_out, report.by_reason) == (1, {"not_annotated": 1})


def test_identical_outputs_may_only_tie(tmp_path):
    same = {**ANNOTATION, "output_2": "Blue"}
    assert read_row(tmp_path, same).reason == "identical_responses"
    assert read_row(tmp_path, {**same, "preference": 1.5}).is_tie


@pytest.mark.parametrize(
    ("who", "annotator", "kind", "notes"),
    [
        ({"annotator_index": 3}, "3", "human", 0),
        ({"annotator": "humans"}, "humans", "human", 0),
        ({"raw_preference": 1}, None, "human", 0),
        ({}, None, "human", 1),
    ],
)
def test_who_judged(tmp_path, who, annotator, kind, notes):
    row = {name: value for name, value in ANNOTATION.items() if name != "annotator"}
    reading = Reading()
    judgement = read_row(tmp_path, row | who, reading)
    assert (judgement.annotator, judgement.annotator_kind) == (annotator, kind)
    assert len(reading.notes) == notes
