"""ImageReward's, Nectar's and NeMo-RL's rankings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preference_data import sniff
from preference_data.quarantine import Rejected
from preference_data.sources.carriers.files import Reading
from preference_data.sources.formats import FORMATS, read_records

IMAGEREWARD = {"id": "7-1", "prompt": "a cat", "generations": ["x", "y", "z"], "ranking": [2, 1, 2]}
NECTAR = {
    "prompt": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Name a river.\n\nAssistant: ",
    "answers": [
        {"answer": "A lake", "model": "m1", "rank": 3.0},
        {"answer": "The Elbe", "model": "m2", "rank": 1.0},
        {"answer": "The Po?", "model": "m3", "rank": 2},
    ],
    "turns": 2,
    "num_responses": 3,
}
NEMO_RL = {
    "context": [{"role": "user", "content": "Name a river."}],
    "completions": [
        {"rank": 1, "completion": [{"role": "assistant", "content": "A lake"}]},
        {"rank": 0, "completion": [{"role": "assistant", "content": "The Elbe"}]},
    ],
}


def read(folder: Path, row: dict, format: str) -> Any:
    path = folder / "rankings.jsonl"
    path.write_text(json.dumps(row))
    assert sniff(str(path), "preferences") == format
    _, items = read_records(str(path), "preferences", format, Reading())
    (item,) = items
    return item


def test_imagereward_counts_from_one(tmp_path):
    (judgement,) = read(tmp_path, IMAGEREWARD, "imagereward")
    assert [r.text for r in judgement.responses] == ["x", "y", "z"]
    assert (judgement.ranks, judgement.group) == ((2, 1, 2), "7-1")
    assert (judgement.prompt.text, judgement.annotator_kind) == ("a cat", "human")


def test_nectar_is_a_model_s_ranking_of_a_transcript(tmp_path):
    (judgement,) = read(tmp_path, NECTAR, "nectar")
    assert [(m.role, m.content) for m in judgement.prompt.messages] == [
        ("user", "Hi"), ("assistant", "Hello"), ("user", "Name a river."),
    ]  # fmt: skip
    assert judgement.ranks == (3, 1, 2)
    assert [r.model for r in judgement.responses] == ["m1", "m2", "m3"]
    assert (judgement.annotator_kind, judgement.annotator) == ("model", "gpt-4")


def test_nemo_rl_counts_from_zero(tmp_path):
    (judgement,) = read(tmp_path, NEMO_RL, "nemo_rl")
    assert judgement.ranks == (2, 1)
    assert [r.text for r in judgement.responses] == ["A lake", "The Elbe"]


def test_equal_ranks_are_a_tie_and_no_rank_is_no_last_place(tmp_path):
    (tie,) = read(tmp_path, {**IMAGEREWARD, "ranking": [1, 1, 1]}, "imagereward")
    assert (tie.ranks, tie.outcome) == ((1, 1, 1), "tie")
    (holes,) = read(tmp_path, {**IMAGEREWARD, "ranking": [2, None, 1]}, "imagereward")
    assert (holes.ranks, len(holes.comparisons())) == ((2, None, 1), 1)


def test_one_text_at_two_ranks_leaves_the_other_pairs(tmp_path):
    """x = z in words at ranks 1 and 3, y between: x > y and y > z, of weight 1/2 each."""
    row = {**IMAGEREWARD, "generations": ["x", "y", "x"], "ranking": [1, 2, 3]}
    pairs = read(tmp_path, row, "imagereward")
    assert [([r.text for r in p.responses], p.ranks, p.weight) for p in pairs] == [
        (["x", "y"], (1, 2), 0.5), (["y", "x"], (1, 2), 0.5),
    ]  # fmt: skip
    (same,) = read(tmp_path, {**row, "ranking": [1, 2, 1]}, "imagereward")
    assert same.ranks == (1, 2, 1)


def nectar_with(**change: object) -> dict:
    first, *rest = NECTAR["answers"]
    return {**NECTAR, "answers": [{**first, **change}, *rest]}


@pytest.mark.parametrize(
    ("row", "format", "reason"),
    [
        ({**IMAGEREWARD, "ranking": [1, 2]}, "imagereward", "ranking_uneven"),
        ({**IMAGEREWARD, "ranking": [0, 1, 2]}, "imagereward", "rank_invalid"),
        ({**IMAGEREWARD, "ranking": [None, None, 1]}, "imagereward", "too_few_ranks"),
        ({**IMAGEREWARD, "generations": "x"}, "imagereward", "wrong_type"),
        ({**IMAGEREWARD, "prompt": " "}, "imagereward", "empty_prompt"),
        (nectar_with(rank=1.5), "nectar", "rank_invalid"),
        (nectar_with(answer=""), "nectar", "empty_response"),
        ({**NECTAR, "prompt": "Name a river."}, "nectar", "starts_without_human"),
        ({**NECTAR, "prompt": "\n\nHuman: \n\nAssistant: "}, "nectar", "empty_prompt"),
        ({**NECTAR, "answers": [*NECTAR["answers"], 3]}, "nectar", "wrong_type"),
        ({**NEMO_RL, "context": []}, "nemo_rl", "empty_prompt"),
    ],
)
def test_rows_that_are_rejected(tmp_path, row, format, reason):
    item = read(tmp_path, row, format)
    assert isinstance(item, Rejected)
    assert (item.reason, item.expected) == (reason, False)


def test_two_identical_answers_are_rejected(tmp_path):
    row = {**IMAGEREWARD, "generations": ["x", "x"], "ranking": [1, 2]}
    item = read(tmp_path, row, "imagereward")
    assert isinstance(item, Rejected)
    assert item.reason == "identical_responses"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "response_a": "x", "response_b": "y", "label": "A"},
        {"prompt": "p", "response_1": "x", "rank_1": 1, "response_2": "y", "rank_2": 2},
        {"prompt": "p", "chosen": "x", "rejected": "y"},
        {"chosen": "\n\nHuman: p\n\nAssistant: x", "rejected": "\n\nHuman: p\n\nAssistant: y"},
        {"prompt": "p", "completion": "x", "label": True},
        {"prompt": "p", "answers": ["x", "y"], "generations": ["x"], "completions": []},
    ],
)
def test_rows_of_other_formats_are_left_to_them(row):
    ours = (
        "oasst", "ultrafeedback", "helpsteer", "helpsteer_preference", "fine_grained",
        "imagereward", "nectar", "nemo_rl", "mturk", "crowdflower", "toloka",
    )  # fmt: skip
    recognised = [name for name in ours if (look := FORMATS[name].recognises) and look(row)]
    assert recognised == []
