"""`align benchmark`: a trained reward model on a benchmark's file, as a table and as JSON."""

# ruff: noqa: E501 - a case of a table stays in one line
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align.cli import main

QUESTION = "What is the capital of France?"
ANSWERS = ["The capital of France is Paris.", "cold", "I do not know that."]


@pytest.fixture
def model(save_reward: Callable[..., Path]) -> Path:
    return save_reward()


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_real_reward_model_is_measured_from_the_command_line(
    model: Path, tmp_path: Path, capsys: Any
):
    """The right answer is the one that the model itself prefers in one subset and rejects in the
    other, so that they are at 1 and 0; the longest item does not fit, and one row has no prompt."""
    from reward_models import RewardModel

    a, b = RewardModel.from_pretrained(model).score([QUESTION] * 2, ANSWERS[:2])
    best, worst = ANSWERS[:2] if a > b else ANSWERS[1::-1]
    row = {"prompt": QUESTION, "chosen": best, "rejected": worst, "subset": "right"}
    rows = [
        row,
        {**row, "chosen": worst, "rejected": best, "subset": "wrong"},
        {**row, "prompt": "Snow. " * 80},
        {**row, "prompt": ""},
    ]
    source = write(tmp_path / "pairs.jsonl", *rows)
    output = tmp_path / "report.json"
    assert main(["benchmark", str(model), str(source), "--output", str(output)]) == 0
    out = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0].startswith(f"{source} (pairs): 4 rows, 2 scored, 1 that the model cannot read")
    assert lines[0].endswith("1 rejected (empty_prompt 1).")
    longer = float(len(best) > len(worst))
    assert f"subset right 1 1.000 [1.000, 1.000] {longer:.3f} 0" in lines
    assert f"subset wrong 1 0.000 [0.000, 0.000] {1 - longer:.3f} 0" in lines
    assert "overall 2 0.500 [0.500, 0.500] 0.500 0" in lines
    assert lines[-1] == f"Report: {output}"
    report = json.loads(output.read_text())
    assert sorted(report["items"][0]["scores"]) == pytest.approx(sorted([a, b]), abs=1e-5)
    assert report["rows"]["rejected"] == report["rows"]["unscored"] == 1


def test_rm_bench_is_shown_by_style(model: Path, tmp_path: Path, capsys: Any):
    row = {"prompt": QUESTION, "chosen": ANSWERS, "rejected": ANSWERS, "domain": "chat", "id": "1"}
    assert main(["benchmark", str(model), str(write(tmp_path / "rm.jsonl", row))]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    # The same answers on both sides: equal on the diagonal, and what easy wins hard loses.
    assert "concise 0.500" in " ".join(lines)
    [domain] = [line for line in lines if line.startswith("chat")]
    easy, normal, hard = (float(word) for word in domain.split()[1::3])
    assert normal == 0.5 and easy + hard == pytest.approx(1.0, abs=1e-3)
    assert "name items score, 95 % longer wins ties ties as published" in lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{model}", "none.jsonl"], "There is no file none.jsonl (looked for "),
        (["none", "{rows}"], "none: there is no such folder."),
        (["{model}", "{rows}", "--layout", "x"], "'x' is no layout of a benchmark; there are auto, "),
        (["{model}", "{rows}", "--output", "no/folder/x.json"], "--output: there is no folder no/folder."),
        (["{model}", "{rows}", "--output", "{rows}"], "--output: {rows} is there already; --force replaces it."),
        (["{model}", "{rows}", "--force"], "--force has no effect without --output; leave it out."),
    ],
)  # fmt: skip
def test_what_is_wrong_is_a_sentence_and_code_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: Any
):
    row = {"prompt": QUESTION, "chosen": "a", "rejected": "b"}
    places = {"model": tmp_path, "rows": write(tmp_path / "rows.jsonl", row)}
    assert main(["benchmark", *(word.format(**places) for word in arguments)]) == 2
    assert capsys.readouterr().err.startswith(message.format(**places))
