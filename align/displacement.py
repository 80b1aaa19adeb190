"""Likelihood displacement: direct alignment makes the chosen answers too less likely than before.

A loss of the margin alone is content when both answers fall, the rejected one faster; the
probability then goes to answers that nobody judged (Razin et al. 2024, arXiv:2410.08847). Here is
when that is said to happen, and what is said. Needs neither torch nor a model.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

FALL = 0.05
"""Nats per token that log pi - log ref must be below 0 to count as fallen: a token of the chosen
answers is then 5 % less likely than under the reference. Less than that is noise."""
LINES = 3
"""Log lines in a row that must show it."""

CHOSEN, REJECTED, MARGIN = "dpo/chosen_logratio", "dpo/rejected_logratio", "dpo/margin"
log = logging.getLogger("align")


def displaced(metrics: Mapping[str, float]) -> bool:
    """Whether chosen and rejected answers have both fallen (means by token) under a margin > 0.

    False where the metrics have no log-ratios, as without a reference.
    """
    if not {CHOSEN, REJECTED, MARGIN} <= metrics.keys():
        return False
    return metrics[CHOSEN] < -FALL and metrics[REJECTED] < -FALL and metrics[MARGIN] > 0


def remark(step: str, metrics: Mapping[str, float]) -> str | None:
    """What is to be said of a DPO step with these metrics, in a sentence; None if all is well."""
    if not displaced(metrics):
        return None
    return (
        f"{step}: likelihood displacement: the chosen answers have become less likely too "
        f"({metrics[CHOSEN]:+.2f} nats per token; rejected {metrics[REJECTED]:+.2f}), so that "
        "probability goes to answers nobody judged; train for fewer steps or at a smaller "
        "learning_rate, raise beta, use loss: orpo, which keeps the chosen answers likely, or "
        "leave out pairs whose two answers are almost the same."
    )


class DisplacementAlarm:
    """A tracker that warns once: at LINES log lines in a row with both answers fallen and a margin
    that rose over them, or at the step's end."""

    def __init__(self, step_name: str) -> None:
        self._step_name = step_name
        self._lines: deque[Mapping[str, float]] = deque(maxlen=LINES)
        self._warned = False

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._lines.append(metrics)
        lasting = len(self._lines) == LINES and all(map(displaced, self._lines))
        if lasting and metrics[MARGIN] > self._lines[0][MARGIN]:
            self._warn(metrics)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Nothing: it looks at numbers only."""

    def finish(self, metrics: Mapping[str, float]) -> None:
        self._warn(metrics)

    def _warn(self, metrics: Mapping[str, float]) -> None:
        text = remark(self._step_name, metrics)
        if text is not None and not self._warned:
            log.warning(text)
            self._warned = True
