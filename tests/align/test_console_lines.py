"""A log line: the numbers that matter for its kind of step, below each other, with what is left."""

from __future__ import annotations

import io

import pytest

from align import progress
from align.tracking.console import ConsoleTracker, brief


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("kind", "metrics", "words"),
    [
        (
            "sft",
            {"train/tokens": 9.0, "train/lr": 2e-5, "train/grad_norm": 1.5,
             "train/token_accuracy": 0.25, "train/loss": 0.5},
            "loss 0.5 token accuracy 0.25 grad norm 1.5 lr 2.0e-05",
        ),
        (
            "reward",
            {"train/loss": 0.69, "reward/accuracy": 0.5, "reward/margin": -0.125,
             "reward/tie_share": 0.1, "train/tokens_per_second": 7104.4},
            "loss 0.69 accuracy 0.5 margin -0.125 tokens/s 7,104",
        ),
        (
            "reward",
            {"train/loss": 0.69, "reward/rating_error": 0.75, "train/tokens_per_second": 12.0},
            "loss 0.69 rating error 0.75 tokens/s 12",
        ),
        (
            "ppo",
            {"objective/kl": 0.5, "objective/score": 1.0, "objective/entropy": 4.875,
             "response/length": 12.5, "train/tokens_per_second": 3.0},
            "score 1 kl 0.5 length 12.5 entropy 4.88",
        ),
    ],
)  # fmt: skip
def test_a_line_has_the_four_numbers_of_its_kind(kind: str, metrics: dict[str, float], words: str):
    stream = io.StringIO()
    ConsoleTracker("step", kind, stream).log(3, metrics)
    assert " ".join(stream.getvalue().split()) == f"step 3 {words}"


def test_lines_stand_below_each_other():
    stream = io.StringIO()
    tracker = ConsoleTracker("dpo", "dpo", stream)
    for step, loss in ((5, 0.6931), (1000, 1e-7)):
        tracker.log(step, {"train/loss": loss, "dpo/accuracy": 0.5})
    first, second = stream.getvalue().splitlines()
    assert first.index("accuracy") == second.index("accuracy")


def test_the_line_says_of_how_many_and_how_long():
    stream = io.StringIO()
    with progress.progress("training", 400) as bar:
        bar._begun -= 100.0  # 1 s a step: 300 more take 5 minutes
        bar.advance(100)
        ConsoleTracker("sft", "sft", stream).log(100, {"train/loss": 2.0})
    assert " ".join(stream.getvalue().split()) == "sft 100/400 loss 2 5 min 0 s left"


def test_evaluate_says_its_numbers_once():
    stream = io.StringIO()
    tracker = ConsoleTracker("evaluate", "evaluate", stream)
    metrics = {"evaluate/gold/win_rate/ppo_vs_sft": 0.71, "evaluate/kl/ppo": 3.0}
    tracker.log(0, metrics)
    assert stream.getvalue() == ""
    tracker.finish(metrics)
    assert stream.getvalue().split() == ["evaluate", "done", "gold", "ppo_vs_sft", "0.71"]


def test_quiet_silences_the_lines():
    stream = io.StringIO()
    with progress.silent():
        ConsoleTracker("sft", "sft", stream).log(1, {"train/loss": 2.0})
    assert stream.getvalue() == ""


def test_no_colour_is_respected(monkeypatch: pytest.MonkeyPatch):
    """NO_COLOR (no-color.org) leaves bold and dim, but no colour: no code from 30 to 37."""
    import re

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    ConsoleTracker("sft", "sft", stream).log(5, {"train/loss": 0.5})
    codes = re.findall(r"\x1b\[([\d;]*)m", stream.getvalue())
    assert not any(30 <= int(code or 0) <= 37 for one in codes for code in one.split(";"))


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0, "0"), (-7.15e-7, "-7.2e-07"), (0.001, "0.001"), (1234.4, "1,234"), (float("nan"), "–")],
)
def test_a_number_is_short(value: float, words: str):
    assert brief(value) == words
