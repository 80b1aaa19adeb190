"""The report's samples: what policies answer, before and after, and how training changed it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from align.summary import Row, StepRecord, is_number, mapping_or_empty, win_rates


def as_text(value: Any) -> str:
    """A prompt as text: messages one under the other, with their roles."""
    if isinstance(value, list):
        messages = [mapping_or_empty(message) for message in value]
        return "\n".join(f"{m.get('role', '?')}: {m.get('content', '')}" for m in messages)
    return "" if value is None else str(value)


def first_and_last(samples: Sequence[Row], each: int = 3) -> list[tuple[int | None, list[Row]]]:
    """(step, its first rows) of the first and of the last step that samples were taken at.

    The first rows, not picked ones. The step is None where none is named.
    """
    steps = [row["step"] for row in samples if is_number(row.get("step"))]
    if not steps:
        return [(None, list(samples[:each]))] if samples else []
    ends = dict.fromkeys([min(steps), max(steps)])
    return [(end, [row for row in samples if row.get("step") == end][:each]) for end in ends]


@dataclass(frozen=True)
class Prompt:
    """A prompt with each policy's answer, and how much the others gain on the baseline."""

    prompt: str
    answers: dict[str, Row]
    gain: float | None
    best: str | None
    """The policy with the highest score, if there is one."""


@dataclass(frozen=True)
class SideBySide:
    """Prompts in groups (title, prompts), and how many go which way."""

    baseline: str
    policies: int
    judge: str | None
    judges: list[str]
    higher: int
    lower: int
    equal: int
    groups: list[tuple[str, list[Prompt]]]


def side_by_side(step: StepRecord, gains: int = 6, losses: int = 4) -> SideBySide | None:
    """Answers to the same prompts: largest gains, two in the middle, largest losses.

    The gain is the mean score of the other policies less the baseline's, from the judge `gold` if
    it sat, else from the first. None without samples.
    """
    policies = list(dict.fromkeys(str(row["policy"]) for row in step.samples if "policy" in row))
    if not policies:
        return None
    known = [rate.baseline for rate in win_rates(step.metrics)]
    baseline = next((p for p in [step.settings.get("baseline"), *known] if p in policies), None)
    baseline = baseline or policies[0]
    judges = list(dict.fromkeys(key for row in step.samples for key in row if _is_judge(row, key)))
    judge = "gold" if "gold" in judges else judges[0] if judges else None
    by_prompt: dict[str, dict[str, Row]] = {}
    for row in step.samples:
        by_prompt.setdefault(as_text(row.get("prompt")), {})[str(row.get("policy"))] = row
    order = [baseline, *(policy for policy in policies if policy != baseline)]
    prompts = [_compare(prompt, rows, order, judge) for prompt, rows in by_prompt.items()]
    ranked = sorted((p for p in prompts if p.gain is not None), key=lambda p: -(p.gain or 0.0))
    up = [p for p in ranked if (p.gain or 0.0) > 0]
    down = [p for p in reversed(ranked) if (p.gain or 0.0) < 0]
    shown = [*up[:gains], *down[:losses]]
    middle = [p for p in ranked if p not in shown]
    start = max(0, len(middle) // 2 - 1)
    groups = [
        ("Largest gains", up[:gains]),
        ("In the middle", middle[start : start + 2]),
        ("Largest losses", down[:losses]),
        ("Without a score", [p for p in prompts if p.gain is None][:gains]),
    ]
    return SideBySide(
        baseline=baseline,
        policies=len(policies),
        judge=judge,
        judges=judges,
        higher=len(up),
        lower=len(down),
        equal=len(ranked) - len(up) - len(down),
        groups=[(title, found) for title, found in groups if found],
    )


def _is_judge(row: Row, key: str) -> bool:
    return key not in {"prompt", "policy", "completion", "step", "kl", "length"} and is_number(
        row[key]
    )


def _compare(prompt: str, rows: dict[str, Row], order: Sequence[str], judge: str | None) -> Prompt:
    answers = {policy: rows[policy] for policy in order if policy in rows}
    scores = {p: row[judge] for p, row in answers.items() if judge and is_number(row.get(judge))}
    others = [score for policy, score in scores.items() if policy != order[0]]
    gain = None
    if order[0] in scores and others:
        gain = math.fsum(others) / len(others) - scores[order[0]]
    top = max(scores.values(), default=None)
    winners = [policy for policy, score in scores.items() if score == top]
    return Prompt(prompt, answers, gain, winners[0] if len(winners) == 1 else None)
