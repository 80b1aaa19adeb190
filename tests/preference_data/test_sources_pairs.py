"""WebGPT, SHP, PKU-SafeRLHF; and that no format takes another's rows for its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from one_row import read_row

from preference_data.quarantine import Rejected
from preference_data.sources.formats import FORMATS

WEBGPT = {
    "question": {"dataset": "eli5", "id": "q7", "full_text": "Why is the sky blue?"},
    "quotes_0": {"title": ["Sky"], "extract": ["It scatters."]},
    "answer_0": "Scattering [1].",
    "score_0": 0.25,
    "quotes_1": {"title": [], "extract": []},
    "answer_1": "The sea.",
    "score_1": -0.25,
}
SHP = {
    "post_id": "p1",
    "domain": "askbaking_validation",
    "history": "Why did it sink?",
    "human_ref_A": "Too wet.",
    "human_ref_B": "Cold oven.",
    "score_A": 4,
    "score_B": 12,
    "labels": 0,
    "score_ratio": 3.0,
}
SAFE = {
    "prompt": "May I?",
    "response_0": "Do it, here is how.",
    "response_1": "Better not.",
    "response_0_source": "m0",
    "response_1_source": "m1",
    "is_response_0_safe": False,
    "is_response_1_safe": True,
    "better_response_id": 0,
    "safer_response_id": 1,
}
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def rejected(folder: Path, row: dict[str, object], format: str) -> tuple[str, str]:
    item = read_row(folder, row, format)
    assert isinstance(item, Rejected)
    return item.reason, item.detail.removeprefix("row 1 (line 1): ")


def test_webgpt_scores_say_who_won_and_by_how_much(tmp_path):
    (judgement,) = read_row(tmp_path, WEBGPT, "webgpt")
    assert judgement.prompt.text == "Why is the sky blue?"
    assert [response.text for response in judgement.responses] == ["Scattering [1].", "The sea."]
    assert (judgement.ranks, judgement.strength, judgement.group) == ((1, 2), 0.25, "q7")
    assert (judgement.scores, judgement.scale) == ((0.25, -0.25), "-1..1")


@pytest.mark.parametrize(("score", "label"), [(1.0, "first"), (-0.5, "second"), (0.0, "tie")])
def test_webgpt_verdicts(tmp_path, score, label):
    (judgement,) = read_row(tmp_path, {**WEBGPT, "score_0": score, "score_1": -score}, "webgpt")
    assert judgement.label == label


def test_webgpt_scores_that_contradict_each_other(tmp_path):
    assert rejected(tmp_path, {**WEBGPT, "score_1": 0.25}, "webgpt") == (
        "scores_contradict",
        "score_0 is 0.25 and score_1 0.25, which are not opposite numbers between -1 and 1.",
    )
    assert rejected(tmp_path, {**WEBGPT, "score_1": None}, "webgpt") == (
        "label_missing",
        "score_1 is empty.",
    )


def test_shp_prefers_b_where_the_label_is_0(tmp_path):
    (judgement,) = read_row(tmp_path, SHP, "shp")
    assert (judgement.ranks, judgement.annotator_kind) == ((2, 1), "implicit")
    assert judgement.strength == 0.5  # (3 - 1) / (3 + 1)
    assert (judgement.scores, judgement.votes) == ((4.0, 12.0), 16)
    assert (judgement.group, judgement.split) == ("p1", "validation")


def test_shp_prefers_a_where_the_label_is_1(tmp_path):
    (judgement,) = read_row(tmp_path, {**SHP, "labels": 1, "score_A": 13}, "shp")
    assert judgement.ranks == (1, 2)


@pytest.mark.parametrize(
    ("change", "reason", "detail"),
    [
        (
            {"labels": 1},
            "scores_contradict",
            "score_A is 4 and score_B 12, but labels prefers A.",
        ),
        (
            {"score_A": 12},
            "scores_contradict",
            "score_A is 12 and score_B 12, but labels prefers B.",
        ),
        ({"labels": 2}, "label_unknown", "labels is 2, not one of 1, 0."),
        ({"score_ratio": 0.5}, "strength_invalid", "score_ratio is 0.5, not 1 or more."),
        ({"human_ref_A": " "}, "empty_response", "human_ref_A is empty."),
    ],
)
def test_shp_rows_that_are_set_aside(tmp_path, change, reason, detail):
    assert rejected(tmp_path, SHP | change, "shp") == (reason, detail)


def test_safe_rlhf_holds_two_judgements_that_may_disagree(tmp_path):
    helpful, safe = read_row(tmp_path, SAFE, "safe_rlhf")
    assert (helpful.criterion, helpful.ranks, helpful.scores) == ("helpful", (1, 2), None)
    assert (safe.criterion, safe.ranks, safe.scores) == ("safe", (2, 1), (0.0, 1.0))
    assert helpful.item_id == safe.item_id
    assert helpful.id != safe.id
    assert [response.model for response in safe.responses] == ["m0", "m1"]


def test_safe_rlhf_rows_that_are_set_aside(tmp_path):
    assert rejected(tmp_path, {**SAFE, "safer_response_id": -1}, "safe_rlhf") == (
        "label_unknown",
        "safer_response_id is -1, not one of 0, 1.",
    )
    assert rejected(tmp_path, {**SAFE, "response_1": SAFE["response_0"]}, "safe_rlhf") == (
        "identical_responses",
        "two identical answers are ranked one above the other.",
    )


ROWS: dict[str, dict[str, object]] = {
    "webgpt": WEBGPT,
    "shp": SHP,
    "safe_rlhf": SAFE,
    "arena": {
        "id": 1,
        "prompt": '["a"]',
        "response_a": '["b"]',
        "response_b": '["c"]',
        "winner_model_a": 1,
        "winner_model_b": 0,
        "winner_tie": 0,
    },
    "arena_conversations": {
        "winner": "tie",
        "judge": "j",
        "turn": 1,
        "tstamp": 1.0,
        "conversation_a": MESSAGES,
        "conversation_b": MESSAGES,
    },
    "mt_bench": {
        "winner": "tie",
        "judge": "j",
        "turn": 1,
        "conversation_a": MESSAGES,
        "conversation_b": MESSAGES,
    },
    "openai_summaries": {"info": {}, "summaries": [], "choice": 0},
    "openai_summary_ratings": {"info": {}, "summary": {"axes": {}}},
    "openai_preferences": {"input": {}, "preferred_output": [], "non_preferred_output": []},
    "alpaca": {"instruction": "a", "input": "", "output_1": "b", "output_2": "c", "preference": 1},
    "pandalm": {
        "instruction": "a",
        "input": "",
        "response1": "b",
        "response2": "c",
        "annotator1": 1,
    },
    "thumbs": {"prompt": "a", "completion": "b", "label": True},
    "trl": {"prompt": "a", "chosen": "b", "rejected": "c"},
    "hh": {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_recognised_by_its_own_format_alone(name):
    found = [known for known, format in FORMATS.items() if recognises(format, ROWS[name])]
    assert found == [name]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "response_a": "b", "response_b": "c", "label": "A"},
        {"id": "1", "prompt": "a", "response_a": "b", "response_b": "c"},
        {"prompt": "a", "response_1": "b", "response_2": "c", "rank_1": 1, "rank_2": 2},
    ],
)
def test_a_plain_table_is_recognised_by_none(row):
    assert [known for known, format in FORMATS.items() if recognises(format, row)] == []


def recognises(format, row: dict[str, object]) -> bool:
    readable = "preferences" in format.readers and format.recognises is not None
    return readable and format.recognises(row)
