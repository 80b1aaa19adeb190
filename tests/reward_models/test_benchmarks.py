"""A model on a benchmark in one call: what it is given, what it cannot read, what is reported."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from preference_data.quarantine import DataError
from preference_data.records import Prompt, Response
from reward_models.benchmarks import AT_ONCE, run_benchmark


class Letters:
    """Scores an answer by how many e's it has; cannot read a z."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[Any], list[Any]]] = []

    def score(
        self, prompts: Sequence[str | Prompt], completions: Sequence[str | Response]
    ) -> list[float]:
        self.calls.append((list(prompts), list(completions)))
        texts = [c if isinstance(c, str) else c.text for c in completions]
        for text in texts:
            if "z" in text:
                raise ValueError(f"{text} is too long")
        return [float(text.count("e")) for text in texts]


class Constant:
    def __init__(self, scores: list[float]):
        self.scores = scores

    def score(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[float]:
        return self.scores


def pairs(path: Path, *answers: tuple[str, str], **more: Any) -> str:
    rows = [{"prompt": "q", "chosen": a, "rejected": b, **more} for a, b in answers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_one_call_reads_scores_and_evaluates(tmp_path: Path):
    """ee over e, e over ee, e over a: 2 of 3. The longer answer wins once, and once they tie. Each
    of the three texts is scored once."""
    model = Letters()
    source = pairs(tmp_path / "pairs.jsonl", ("ee", "e"), ("e", "ee"), ("e", "a"))
    done: list[int] = []
    report = run_benchmark(model, source, advance=done.append)
    assert report.scores == ((2.0, 1.0), (1.0, 2.0), (1.0, 0.0))
    assert report.evaluation.overall is not None
    assert report.evaluation.overall.score == pytest.approx(2 / 3)
    assert report.evaluation.overall.longer == pytest.approx(1 / 2)
    assert model.calls == [(["q"] * 3, ["ee", "e", "a"])]
    assert sum(done) == 3


def test_conversations_reach_the_model_whole(tmp_path: Path):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    asked = [*turns, {"role": "user", "content": "more"}]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": asked, "chosen": "e", "rejected": "a"}))
    model = Letters()
    run_benchmark(model, str(path))
    [(prompts, completions)] = model.calls
    assert [len(prompt.messages) for prompt in prompts] == [3, 3]
    assert completions == ["e", "a"]


def test_what_the_model_cannot_read_is_left_out_and_said(tmp_path: Path):
    """More than one call holds: the calls without such an item are whole, the others by item."""
    answers = [("e", "a")] * (AT_ONCE + 2)
    answers[1] = ("z", "a")
    source = pairs(tmp_path / "pairs.jsonl", *answers)
    report = run_benchmark(Letters(), source)
    assert [(one.item.id, one.reason) for one in report.unscored] == [
        ("pairs.jsonl:2", "z is too long")
    ]
    assert len(report.items) == AT_ONCE + 1
    assert report.evaluation.overall is not None and report.evaluation.overall.items == AT_ONCE + 1
    with pytest.raises(DataError, match=r"could score none of the 1 item .*; the first: z is too"):
        run_benchmark(Letters(), pairs(tmp_path / "none.jsonl", ("z", "a")))


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0], "gave 1 score to 2 completions"),
        ([1.0, math.nan], "a score is finite"),
        ([math.inf, 1.0], "a score is finite"),
    ],
)
def test_scores_that_are_none_are_refused(scores: list[float], message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        run_benchmark(Constant(scores), pairs(tmp_path / "pairs.jsonl", ("a", "b")))


def test_the_report_accounts_for_every_row(tmp_path: Path):
    """Six rows: one rejected, two beyond the limit of two, one unscored, two scored."""
    path = tmp_path / "pairs.jsonl"
    pairs(path, ("z", "a"), ("e", "a"), ("e", "a"), ("e", "a"), subset="x")
    with path.open("a") as stream:
        stream.write('{"prompt": "", "chosen": "e", "rejected": "a"}\n')
        stream.write('{"prompt": "q", "chosen": "e", "rejected": "a", "subset": "y", "id": 7}\n')
    report = run_benchmark(Letters(), str(path), limit=2, seed=3).to_json()
    assert report["rows"] == {
        "in": 6, "scored": 2, "unscored": 1, "rejected": 1, "beyond_limit": 2,
    }  # fmt: skip
    assert report["by_reason"] == {"empty_prompt": 1}
    assert report["items"][1] == {
        "id": "7", "subset": "y", "right": [True, False], "scores": [1.0, 0.0],
    }  # fmt: skip
    assert report["unscored"] == [{"id": "pairs.jsonl:1", "subset": "x", "reason": "z is too long"}]
    assert [(one["row"], one["reason"]) for one in report["rejected"]] == [(5, "empty_prompt")]
    assert report["subsets"]["x"]["items"] == 1 and report["overall"]["score"] == 1.0
    assert (report["layout"], report["limit"], report["seed"]) == ("pairs", 2, 3)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
