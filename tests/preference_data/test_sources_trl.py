"""Rows as trainers read them: standard and conversational, with and without a prompt."""

from __future__ import annotations

from pathlib import Path

import pytest
from one_row import read_judgement

from preference_data import Columns
from preference_data.quarantine import DataError
from preference_data.sources.carriers.files import Reading
from preference_data.sources.formats import read_records

USER = {"role": "user", "content": "Hi"}
GOOD = {"role": "assistant", "content": "Hello"}
BAD = {"role": "assistant", "content": "What?"}


def read_row(folder: Path, row: dict[str, object], reading: Reading | None = None):
    return read_judgement(folder, row, "trl", reading)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Hello", "rejected": "What?"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "Hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    ],
    ids=["standard", "conversational", "prompt given twice", "implicit prompt"],
)
def test_the_ways_to_write_the_same_pair(tmp_path, row):
    judgement = read_row(tmp_path, row)
    assert [message.to_json() for message in judgement.prompt.messages] == [USER]
    assert [response.text for response in judgement.responses] == ["Hello", "What?"]
    assert (judgement.ranks, judgement.scores) == ((1, 2), None)


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "Q: Hi A: Hello", "rejected": "Q: Hi A: What?"},
        {"chosen": [GOOD], "rejected": [BAD]},
    ],
)
def test_without_a_prompt_no_shared_beginning_is_taken_for_it(tmp_path, row):
    item = read_row(tmp_path, row)
    assert (item.reason, item.detail) == (
        "no_prompt",
        "row 1 (line 1): there is no column prompt, and chosen and rejected are no whole "
        "conversations. Add the prompt (characters that two answers share are not taken for it), "
        "or name its column in columns: {prompt: …, responses: [chosen, rejected], best: first}.",
    )


def test_scores_are_kept_even_where_they_are_equal(tmp_path):
    row = {"chosen": [USER, GOOD], "rejected": [USER, BAD]}
    scored = {**row, "score_chosen": 8.5, "score_rejected": 8.5}
    assert read_row(tmp_path, scored).scores == (8.5, 8.5)
    assert read_row(tmp_path, {**row, "score_chosen": 8, "score_rejected": None}).scores == (
        8,
        None,
    )
    broken = read_row(tmp_path, {**row, "score_chosen": "high", "score_rejected": 1})
    assert broken.reason == "score_invalid"


def test_a_margin_is_left_alone_with_a_note(tmp_path):
    reading = Reading()
    row = {"prompt": "Hi", "chosen": "Hello", "rejected": "What?", "margin": 2.5}
    judgement = read_row(tmp_path, row, reading)
    assert judgement.strength is None
    assert reading.notes == [
        f"{tmp_path / 'rows.jsonl'} has a column margin, which is not read: what it was given on, "
        "and so which strength it is, is not known."
    ]


def test_a_prompt_of_another_name_is_mapped(tmp_path):
    """With a mapping the file is read as a table, whatever its columns look like."""
    path = tmp_path / "pairs.csv"
    path.write_text("question,chosen,rejected\nHi,Hello,What?\n")
    columns = Columns(prompt="question", responses=("chosen", "rejected"), best="first")
    format, items = read_records(str(path), "preferences", "auto", Reading(columns))
    ((judgement,),) = items
    assert (format, judgement.prompt.text, judgement.ranks) == ("table", "Hi", (1, 2))
    assert [response.text for response in judgement.responses] == ["Hello", "What?"]


def test_a_table_that_is_named_trl_and_has_no_pair(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,good,bad\nHi,Hello,What?\n")
    _, items = read_records(str(path), "preferences", "trl", Reading())
    with pytest.raises(DataError) as caught:
        list(items)
    assert str(caught.value) == (
        f'{path} has no columns "chosen", "rejected"; it has prompt, good, bad. Rename the columns.'
    )


def test_identical_answers_are_set_aside(tmp_path):
    item = read_row(tmp_path, {"prompt": "Hi", "chosen": "Hello", "rejected": "Hello"})
    assert item.reason == "identical_responses"
