"""A step's numbers for the person who waits."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from align import progress
from align.summary import headline_metrics, is_number, number

TEXT = {
    "train/loss": "loss",
    "train/token_accuracy": "token accuracy",
    "train/grad_norm": "grad norm",
    "train/lr": "lr",
}
SHOWN: dict[str, dict[str, str]] = {
    "pretrain": TEXT,
    "sft": TEXT,
    "reward": {
        "train/loss": "loss",
        "reward/accuracy": "accuracy",
        "reward/margin": "margin",
        "reward/rating_error": "rating error",
        "train/tokens_per_second": "tokens/s",
    },
    "dpo": {
        "train/loss": "loss",
        "dpo/accuracy": "accuracy",
        "dpo/margin": "margin",
        "train/tokens_per_second": "tokens/s",
    },
    "ppo": {
        "objective/score": "score",
        "objective/kl": "kl",
        "response/length": "length",
        "objective/entropy": "entropy",
        "train/tokens_per_second": "tokens/s",
    },
}
"""The metrics worth a look while waiting, by kind of step, in the order of the line, and what they
are called. A line has the first four that there are."""
AT_ONCE = 4
NAME, VALUE = 8, 8
"""Columns of a step's name and of a number, so that lines stand below each other."""


class ConsoleTracker:
    """One short line a log step on standard error: coloured on a terminal, plain text elsewhere."""

    def __init__(self, step_name: str, kind: str, stream: TextIO | None = None) -> None:
        self.step_name = step_name
        self.kind = kind
        self.stream = stream

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.kind == "evaluate":  # dozens of numbers, once: the last line has those that count
            return
        labels = SHOWN.get(self.kind, {})
        shown = [(label, metrics[name]) for name, label in labels.items() if name in metrics]
        # A line without a known name shows its first numbers as they are.
        numbers = shown or list(metrics.items())
        place = progress.place_of(step)
        self._write(
            f"{step:>5}" if place.total is None else f"{step:>5,}/{place.total:,}",
            [(label, f"{brief(value):<{VALUE}}") for label, value in numbers[:AT_ONCE]],
            progress.left_in_words(place.left) if place.left and place.left >= 1 else "",
        )

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Nothing: samples are for the report."""

    def finish(self, metrics: Mapping[str, float]) -> None:
        self._write(" done", [("", headline_metrics(self.kind, metrics))])

    def _write(self, when: str, numbers: Sequence[tuple[str, str]], left: str = "") -> None:
        if progress.is_silent():
            return
        progress.said()
        stream = self.stream or sys.stderr
        name = f"{self.step_name:<{NAME}}"
        if not stream.isatty():
            words = "  ".join(f"{label} {value}".lstrip() for label, value in numbers)
            plain = "  ".join(part for part in (f"{name}  {when}", words, left) if part)
            print(plain.rstrip(), file=stream, flush=True)
            return
        from rich.console import Console
        from rich.text import Text

        line = Text.assemble((name, "bold cyan"), "  ", (when, "dim"))
        for label, value in numbers:
            line.append(f"  {label} " if label else "  ", "dim").append(value)
        line.rstrip()
        # Through the console of the bar, so that neither tears the other.
        out = Console(file=self.stream) if self.stream else progress.console()
        if left and len(line) + len(left) + 2 <= out.width:
            line.append(f"  {left}", "dim")
        out.print(line, soft_wrap=True)


def brief(value: Any) -> str:
    """A number of at most eight characters: `0.693`, `1,234`, `-7.2e-07`."""
    small = is_number(value) and 0 < abs(value) < 0.001
    return f"{value:.1e}" if small else number(value)
