"""A step's numbers for the person who waits."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from align.summary import headline_metrics, number

SHOWN = {
    "train/loss": "loss",
    "objective/score": "score",
    "objective/kl": "kl",
    "reward/accuracy": "accuracy",
    "dpo/accuracy": "accuracy",
    "response/length": "length",
    "train/tokens_per_second": "tokens/s",
}
"""The metrics worth a look while waiting, in the order of the line, and what they are called."""


class ConsoleTracker:
    """One short line a log step on standard error: coloured on a terminal, plain text elsewhere."""

    def __init__(self, step_name: str, kind: str, stream: TextIO | None = None) -> None:
        self.step_name = step_name
        self.kind = kind
        self.stream = stream

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        shown = [(label, metrics[name]) for name, label in SHOWN.items() if name in metrics]
        # A line without a known name (a final evaluation, say) shows its first numbers as they are.
        numbers = shown or list(metrics.items())[:3]
        self._write(f"{step:>6}", [(label, number(value)) for label, value in numbers])

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Nothing: samples are for the report."""

    def finish(self, metrics: Mapping[str, float]) -> None:
        self._write("  done", [("", headline_metrics(self.kind, metrics))])

    def _write(self, when: str, numbers: Sequence[tuple[str, str]]) -> None:
        stream = self.stream or sys.stderr
        if not stream.isatty():
            words = "  ".join(f"{label} {value}".strip() for label, value in numbers)
            print(f"{self.step_name}  {when}  {words}".rstrip(), file=stream, flush=True)
            return
        from rich.console import Console
        from rich.text import Text

        line = Text.assemble((self.step_name, "bold cyan"), "  ", (when, "dim"))
        for label, value in numbers:
            line.append(f"  {label} " if label else "  ", "dim").append(value)
        Console(file=stream).print(line, soft_wrap=True)
