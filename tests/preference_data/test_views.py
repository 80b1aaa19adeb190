"""A richer kind of data serves every poorer one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from preference_data import views
from preference_data.quarantine import DataError
from preference_data.records import Demonstration, Judgement, Message, Prompt, Response

WHY, HOW = Prompt.from_text("Why?"), Prompt.from_text("How?")
TURNS = Prompt((Message("user", "Hot?"), Message("assistant", "Cold."), Message("user", "Big?")))
YES, NO, SO = (Response.from_text(text) for text in ("Yes.", "No.", "So."))
JUDGEMENTS = [
    Judgement(WHY, (NO, YES), (2, 1)),
    Judgement(HOW, (SO, NO), (1, 1)),  # a tie: no best answer
    Judgement(WHY, (SO, YES, NO), (1, None, 2)),
    Judgement(HOW, (YES, NO, SO), (1, 1, 2)),  # two best
    Judgement(TURNS, (YES, NO), (None, None), outcome="unsure"),
]
DEMONSTRATIONS = [Demonstration(WHY, SO), Demonstration(TURNS, YES), Demonstration(WHY, NO)]


def write(folder: Path, name: str, records: Sequence[Any]) -> Path:
    rows = [record if isinstance(record, dict) else record.to_json() for record in records]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_judgements_are_read_as_they_were_written(tmp_path: Path):
    assert views.judgements(write(tmp_path, "judgements", JUDGEMENTS)) == JUDGEMENTS


def test_the_one_best_answer_is_a_demonstration(tmp_path: Path):
    """Ranks 2 1 and 1 None 2 have one best answer; the tie, the two best and the unsure none."""
    folder = write(tmp_path, "judgements", JUDGEMENTS)
    assert views.demonstrations(folder) == [Demonstration(WHY, YES), Demonstration(WHY, SO)]


def test_demonstrations_come_before_judgements(tmp_path: Path):
    write(tmp_path, "demonstrations", DEMONSTRATIONS)
    assert views.demonstrations(write(tmp_path, "judgements", JUDGEMENTS)) == DEMONSTRATIONS


@pytest.mark.parametrize(
    ("name", "records"),
    [
        ("judgements", JUDGEMENTS),
        ("demonstrations", [Demonstration(p, YES) for p in (WHY, HOW, WHY, TURNS)]),
        ("prompts", [WHY, HOW, WHY, TURNS]),
    ],
)
def test_prompts_are_different_and_in_their_first_order(
    tmp_path: Path, name: str, records: Sequence[Any]
):
    assert views.prompts(write(tmp_path, name, records)) == [WHY, HOW, TURNS]


@pytest.mark.parametrize(
    ("name", "records", "documents"),
    [
        ("text", [{"text": "One."}, {"text": "Two."}], ["One.", "Two."]),
        (
            "judgements", [*JUDGEMENTS[:2], JUDGEMENTS[0]],
            ["Why?\n\nNo.", "Why?\n\nYes.", "How?\n\nSo.", "How?\n\nNo."],
        ),
        (
            "demonstrations", DEMONSTRATIONS[:2],
            ["Why?\n\nSo.", "Hot?\n\nCold.\n\nBig?\n\nYes."],
        ),
        ("prompts", [WHY, TURNS], ["Why?", "Hot?\n\nCold.\n\nBig?"]),
    ],
)  # fmt: skip
def test_everything_is_text(
    tmp_path: Path, name: str, records: Sequence[Any], documents: list[str]
):
    assert views.text(write(tmp_path, name, records)) == documents


def test_poorer_data_does_not_serve_a_richer_kind(tmp_path: Path):
    folder = write(tmp_path, "prompts", [WHY])
    for view in (views.judgements, views.demonstrations):
        with pytest.raises(DataError, match="holds no preferences"):
            view(folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    for view, kind in ((views.prompts, "preferences"), (views.text, "prompts")):
        with pytest.raises(DataError, match=f"holds no {kind}"):
            view(empty)
