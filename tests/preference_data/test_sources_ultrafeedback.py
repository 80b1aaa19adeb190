"""UltraFeedback: GPT-4's ratings as text, with holes and with ties."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from preference_data import sniff
from preference_data.quarantine import Rejected
from preference_data.sources.carriers.files import Reading
from preference_data.sources.formats import read_records


def completion(text: str, model: str, overall: float | None = None, **ratings: str) -> dict:
    annotations = {name: {"Rating": rating, "Rationale": "r"} for name, rating in ratings.items()}
    return {"model": model, "response": text, "annotations": annotations, "overall_score": overall}


def read(folder: Path, *completions: object, kind: str = "preferences", **columns: object) -> Any:
    path = folder / "ratings.jsonl"
    row = {"source": "s", "instruction": "Add 2 and 3.", "completions": [*completions], **columns}
    path.write_text(json.dumps(row))
    assert sniff(str(path), kind) == "ultrafeedback"  # type: ignore[arg-type]
    _, items = read_records(str(path), kind, "ultrafeedback", Reading())  # type: ignore[arg-type]
    (item,) = items
    return item


def test_each_aspect_is_a_rating_of_all_completions(tmp_path):
    honesty, helpfulness, overall = read(
        tmp_path,
        completion("5", "m1", 8.5, honesty="5", helpfulness="4"),
        completion("6", "m2", 2, honesty="1", helpfulness="4"),
        completion("Five", "m3", 7.0, honesty="N/A", helpfulness="4"),
    )
    assert [r.text for r in honesty.responses] == ["5", "6", "Five"]
    assert [r.model for r in honesty.responses] == ["m1", "m2", "m3"]
    assert (honesty.criterion, honesty.scores, honesty.ranks) == (
        "honesty", (5.0, 1.0, None), (1, 2, None),
    )  # fmt: skip
    assert (helpfulness.ranks, helpfulness.outcome, helpfulness.scale) == ((1, 1, 1), "tie", "1..5")
    assert (overall.criterion, overall.scores, overall.ranks, overall.scale) == (
        "overall", (8.5, 2.0, 7.0), (1, 3, 2), "1..10",
    )  # fmt: skip
    for judgement in (honesty, helpfulness, overall):
        assert (judgement.kind, judgement.annotator_kind) == ("rating", "model")
        assert judgement.prompt.text == "Add 2 and 3."
    assert len({judgement.id for judgement in (honesty, helpfulness, overall)}) == 3


def test_one_rating_alone_is_a_rating_of_one(tmp_path):
    (judgement,) = read(
        tmp_path, completion("5", "m1", honesty="N/A"), completion("6", "m2", honesty="1")
    )
    assert [r.text for r in judgement.responses] == ["6"]
    assert (judgement.ranks, judgement.scores) == ((None,), (1.0,))


def test_the_same_words_with_two_scores_leave_the_other_pairs(tmp_path):
    """a = b in words, 4 and 2; c 3: a > c and c > b, each half of a judgement."""
    pairs = read(
        tmp_path,
        completion("5", "m1", 4), completion("5", "m2", 2), completion("Five", "m3", 3),
    )  # fmt: skip
    assert [(p.ranks, p.scores, p.weight) for p in pairs] == [
        ((1, 2), (4.0, 3.0), 0.5), ((2, 1), (2.0, 3.0), 0.5),
    ]  # fmt: skip


def test_rows_without_ratings_and_broken_rows(tmp_path):
    none = read(tmp_path)
    assert isinstance(none, Rejected)
    assert (none.reason, none.expected) == ("no_rating", True)
    for broken, reason in (
        (completion("", "m1", 3), "empty_response"),
        (completion("5", "m1", honesty="five"), "score_invalid"),
        ({**completion("5", "m1"), "annotations": "none"}, "wrong_type"),
        ("5", "wrong_type"),
    ):
        item = read(tmp_path, broken, completion("6", "m2", 3))
        assert isinstance(item, Rejected)
        assert (item.reason, item.expected) == (reason, False)


def test_the_instruction_is_the_prompt(tmp_path):
    (prompt,) = read(tmp_path, kind="prompts")
    assert prompt.text == "Add 2 and 3."
