"""What goes wrong in policy optimisation, read off the metrics of every iteration while it runs.

Each rule is a pure function of the metrics so far and says in one sentence what it sees and which
option to change. The thresholds are constants with their reasons. Needs neither torch nor a model.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from align.artifacts import write_json
from align.over_optimisation import parting_point

FINDINGS_FILE = "findings.json"
log = logging.getLogger("align")

LASTING = 3
"""Iterations in a row that must show a thing: one may be chance."""
RECOVERED = 5
"""Iterations in a row without a thing that end a finding; what comes and goes is said once."""
BASELINE = 3
"""First iterations, whose mean stands for the policy that the step started from."""
KL_ERRORS = 4.0
"""Standard errors below 0 of a mean KL. KL is never negative; at 4, chance says so once in 30,000
looks, so that a long run at a KL of about 0 raises nothing."""
KL_ROUNDING = 0.01
"""Nats per response that rounding may make of a KL of 0."""
KL_PER_TOKEN = 2.0
"""Nats per token: a sampled token is then e^2 = 7 times as likely as under the reference, whose
language the policy has left. Runs that are known to have gone well stay below 1."""
KL_DOUBLES_FROM, KL_DOUBLES_WITHIN = 5.0, 5
"""Nats per response, and iterations: below about 6 (the target of Ziegler et al. 2019) doubling is
how every run begins."""
SAME_REPLY = 0.5
"""Share of all responses that are one and the same text, and LARGER_SHARE times that at first."""
LARGER_SHARE = 2.0
VARIETY_LEFT = 1 / 3
"""Of the share of different bigrams at first. A policy that settles on good phrases loses up to
half of it without harm."""
FEW_ENDS = 0.1
"""Share of responses that end, while their length is ALL_LENGTH of what they may have."""
ALL_LENGTH = 0.95
EMPTY = 2.0
"""Tokens of a response, its end included, where there was more than twice as much at first."""
VALUE_WARMUP, VALUE_LASTING = 10, 5
"""Iterations in which a value function may be worse than a constant (it starts at what the reward
model thinks of whole responses), and in a row afterwards."""
CLIPPED = 0.4
"""Share of tokens whose ratio is outside the clipping range; 0.1 to 0.3 is usual."""
APPROX_KL = 0.1
"""Nats per token between the policy before and after its update; early stopping is commonly set to
0.01 to 0.03."""
LITTLE_ENTROPY = 0.05
"""Nats per token: about one token in a hundred is then not the likeliest one."""

KL, KL_ERROR = "objective/kl", "objective/kl_error"
SCORE, JUDGE = "objective/score", "judge/score"
LENGTH, ENDS = "response/length", "response/eos_rate"
VARIETY, TOP_SHARE = "response/distinct_2", "response/top_reply_share"
EXPLAINED, ENTROPY = "value/explained_variance", "objective/entropy"
CLIP_FRACTION, UPDATE_KL = "policy/clip_fraction", "policy/approx_kl"
WATCHED = (
    KL, KL_ERROR, SCORE, JUDGE, LENGTH, ENDS, VARIETY, TOP_SHARE, EXPLAINED, ENTROPY,
    CLIP_FRACTION, UPDATE_KL, "objective/reward", "policy/loss", "value/loss", "train/grad_norm",
)  # fmt: skip

Severity = Literal["warning", "stop"]
"""`stop`: more training makes the policy worse, or its numbers mean nothing."""


@dataclass(frozen=True)
class Finding:
    """Something wrong, from an iteration on."""

    name: str
    severity: Severity
    step: int
    """The iteration that showed it first."""
    text: str
    """What it is and what to change, in a sentence."""
    until: int | None = None
    """The last iteration that showed it; None as long as it goes on."""


@dataclass(frozen=True)
class Course:
    """The watched metrics of the iterations so far, and what advice needs to know."""

    rows: Sequence[Mapping[str, float]]
    step_name: str
    max_new_tokens: int

    @property
    def train(self) -> str:
        """Dotted path of the step's settings."""
        return f"steps.{self.step_name}.train"

    def last(self, name: str, count: int = LASTING) -> list[float]:
        """The metric in the last `count` iterations; empty if there are fewer, or it is missing."""
        values = [row[name] for row in self.rows[-count:] if name in row]
        return values if len(values) == count else []

    def at_first(self, name: str) -> float:
        """Mean of the metric in the first iterations; NaN until others have come after them, which
        makes every comparison false."""
        values = [row.get(name, math.nan) for row in self.rows[:BASELINE]]
        if len(self.rows) < BASELINE + LASTING:
            return math.nan
        return sum(values) / BASELINE

    def every(self, *names: str) -> list[tuple[int, list[float]]]:
        """(iteration, values) of each iteration that has all the metrics as finite numbers."""
        found = [
            (iteration, [row.get(name, math.nan) for name in names])
            for iteration, row in enumerate(self.rows, 1)
        ]
        return [line for line in found if all(map(math.isfinite, line[1]))]


Rule = Callable[[Course], str | None]
"""What is to be said after the last iteration of a course; None if all is well."""


# --- the rules -----------------------------------------------------------------------------------


def non_finite(course: Course) -> str | None:
    bad = [name for name, value in course.rows[-1].items() if not math.isfinite(value)]
    if not bad:
        return None
    return (
        f"{', '.join(bad)} is not a finite number; lower {course.train}.learning_rate or "
        f"{course.train}.max_grad_norm, or set base.dtype: float32."
    )


def negative_kl(course: Course) -> str | None:
    kl, errors = course.last(KL), course.last(KL_ERROR)
    if not kl or not errors:
        return None
    mean, error = sum(kl) / LASTING, math.hypot(*errors) / LASTING
    if not mean < -max(KL_ERRORS * error, KL_ROUNDING):
        return None
    return (
        f"the KL to the reference is {mean:.2g} nats (standard error {error:.2g}), and none is "
        "below 0: responses are drawn from another distribution than their log-probabilities say; "
        "set base.dtype: float32 and base.attention: eager."
    )


def exploding_kl(course: Course) -> str | None:
    kl, lengths = course.last(KL), course.last(LENGTH)
    ago = course.last(KL, KL_DOUBLES_WITHIN + 1)
    if kl and lengths and all(
        a > KL_PER_TOKEN * b for a, b in zip(kl, lengths, strict=True)
    ):  # fmt: skip
        seen = f"is {kl[-1]:.1f} nats, more than {KL_PER_TOKEN:g} a token"
    elif ago and ago[0] >= KL_DOUBLES_FROM and min(ago[-2:]) >= 2 * ago[0]:
        seen = f"went from {ago[0]:.1f} to {ago[-1]:.1f} nats in {KL_DOUBLES_WITHIN} iterations"
    else:
        return None
    return (
        f"the KL to the reference {seen}; raise {course.train}.kl.coefficient, set "
        f"{course.train}.kl.target, or lower {course.train}.learning_rate."
    )


def same_replies(course: Course) -> str | None:
    shares, first = course.last(TOP_SHARE), course.at_first(TOP_SHARE)
    if not shares or not min(shares) > SAME_REPLY or not min(shares) > LARGER_SHARE * first:
        return None
    return (
        f"{shares[-1]:.0%} of all responses are the same text, whatever the prompt; raise "
        f"{course.train}.kl.coefficient, or lower {course.train}.learning_rate, and look for what "
        "the reward likes in that text."
    )


def little_variety(course: Course) -> str | None:
    shares, first = course.last(VARIETY), course.at_first(VARIETY)
    if not shares or not max(shares) < VARIETY_LEFT * first:
        return None
    return (
        f"{VARIETY} fell from {first:.3f} to {shares[-1]:.3f}: the responses say the same things "
        f"again and again; raise {course.train}.kl.coefficient, or lower "
        f"{course.train}.learning_rate."
    )


def endless_responses(course: Course) -> str | None:
    ends, lengths = course.last(ENDS), course.last(LENGTH)
    if not ends or not lengths or not max(ends) < FEW_ENDS:
        return None
    if min(lengths) < ALL_LENGTH * course.max_new_tokens:
        return None
    return (
        f"only {ends[-1]:.0%} of the responses end within {course.train}.max_new_tokens "
        f"({course.max_new_tokens}); raise {course.train}.missing_eos_penalty, or max_new_tokens "
        "if good answers are longer."
    )


def empty_responses(course: Course) -> str | None:
    lengths, first = course.last(LENGTH), course.at_first(LENGTH)
    if not lengths or not max(lengths) <= EMPTY or not first > 2 * EMPTY:
        return None
    return (
        f"the responses shrank from {first:.0f} tokens to {lengths[-1]:.1f}, their end included; "
        f"raise {course.train}.kl.coefficient, and look for a reward that prefers saying nothing."
    )


def blind_value(course: Course) -> str | None:
    values = course.last(EXPLAINED, VALUE_LASTING)
    if not values or len(course.rows) < VALUE_WARMUP + VALUE_LASTING or not max(values) < 0:
        return None
    return (
        f"{EXPLAINED} has been below 0 for {VALUE_LASTING} iterations (now {values[-1]:.2f}): the "
        "value function is worse than a constant, and the advantages are noise; raise "
        f"{course.train}.value_learning_rate or prompts_per_iteration, or lower "
        f"{course.train}.learning_rate."
    )


def over_optimisation(course: Course) -> str | None:
    every = course.every(KL, SCORE, JUDGE)
    parted = parting_point(*([values[i] for _, values in every] for i in range(3)))
    if parted is None:
        return None
    at, (_, score, judge) = every[parted]
    _, (_, score_now, judge_now) = every[-1]
    return (
        f"since iteration {at} the score has gone from {score:.2f} to {score_now:.2f} while the "
        f"judge's went from {judge:.2f} to {judge_now:.2f}: the policy pleases the reward, not "
        f"the judge; set {course.train}.iterations to about {at} or stop_when_ill to true, raise "
        f"{course.train}.kl.coefficient, or give the reward model more judgements."
    )


def large_updates(course: Course) -> str | None:
    clipped, moved = course.last(CLIP_FRACTION), course.last(UPDATE_KL)
    if clipped and min(clipped) > CLIPPED:
        seen = f"{CLIP_FRACTION} is {clipped[-1]:.2f}"
    elif moved and min(moved) > APPROX_KL:
        seen = f"{UPDATE_KL} is {moved[-1]:.2f} nats per token"
    else:
        return None
    return (
        f"{seen}: an iteration moves the policy too far from the one that sampled; lower "
        f"{course.train}.learning_rate, or {course.train}.epochs."
    )


def no_entropy(course: Course) -> str | None:
    entropies = course.last(ENTROPY)
    if not entropies or not max(entropies) < LITTLE_ENTROPY:
        return None
    return (
        f"the entropy is {entropies[-1]:.3f} nats per token: a prompt gets the same response "
        "every time, and there is nothing left to compare; raise "
        f"{course.train}.kl.coefficient, or lower {course.train}.learning_rate."
    )


RULES: tuple[tuple[Rule, Severity], ...] = (
    (non_finite, "stop"),
    (negative_kl, "stop"),
    (exploding_kl, "stop"),
    (same_replies, "stop"),
    (little_variety, "stop"),
    (empty_responses, "stop"),
    (over_optimisation, "stop"),
    (endless_responses, "warning"),
    (blind_value, "warning"),
    (large_updates, "warning"),
    (no_entropy, "warning"),
)
"""A finding is named after its function."""


# --- the doctor ----------------------------------------------------------------------------------


class Doctor:
    """A tracker that looks at every iteration, says each finding once, and again when it returns.

    With a folder, `findings.json` there holds {"findings": [...]} from the first
    iteration on.
    """

    def __init__(
        self,
        step_name: str,
        max_new_tokens: int,
        folder: Path | None = None,
        *,
        speaks: bool = True,
    ) -> None:
        self.findings: list[Finding] = []
        self._shown: dict[str, int] = {}
        self._rows: list[dict[str, float]] = []
        self._course = Course(self._rows, step_name, max_new_tokens)
        self._folder = folder
        self._speaks = speaks

    @property
    def present(self) -> list[Finding]:
        """What the last iteration showed."""
        now = len(self._rows)
        return [f for f in self.findings if f.until is None and self._shown[f.name] == now]

    @property
    def grave(self) -> Finding | None:
        """The first finding of severity `stop` among them."""
        return next((found for found in self.present if found.severity == "stop"), None)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Steps are iterations: 1, 2, 3 and so on."""
        self._rows.append({name: float(metrics[name]) for name in WATCHED if name in metrics})
        before = list(self.findings)
        for rule, severity in RULES:
            text = rule(self._course)
            if text is None:
                self._end(rule.__name__, step)
            else:
                self._show(Finding(rule.__name__, severity, step, text))
        if self.findings != before or step == 1:
            self._write()

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Nothing: it looks at numbers only."""

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Nothing: all has been said."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as plain JSON; numbers that are not finite are None."""
        rows = [
            {name: value if math.isfinite(value) else None for name, value in row.items()}
            for row in self._rows
        ]
        findings = [dataclasses.asdict(finding) for finding in self.findings]
        return {"rows": rows, "findings": findings, "shown": dict(self._shown)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state`: what was said is not said again."""
        self._rows[:] = [
            {name: math.nan if value is None else value for name, value in row.items()}
            for row in state["rows"]
        ]
        self.findings = [Finding(**finding) for finding in state["findings"]]
        self._shown = dict(state["shown"])
        self._write()

    def _going(self, name: str) -> int | None:
        """Where the finding of that name is that has not ended."""
        found = (i for i, f in enumerate(self.findings) if f.name == name and f.until is None)
        return next(found, None)

    def _show(self, found: Finding) -> None:
        """Begins a finding, unless it is going on."""
        self._shown[found.name] = found.step
        if self._going(found.name) is not None:
            return
        self.findings.append(found)
        if self._speaks:
            name, what = self._course.step_name, found.name.replace("_", " ")
            log.warning("%s, iteration %d: %s: %s", name, found.step, what, found.text)

    def _end(self, name: str, step: int) -> None:
        """Ends a finding that has not been shown for some time."""
        going = self._going(name)
        if going is not None and step - self._shown[name] >= RECOVERED:
            ended = dataclasses.replace(self.findings[going], until=self._shown[name])
            self.findings[going] = ended

    def _write(self) -> None:
        if self._folder is not None:
            findings = [dataclasses.asdict(finding) for finding in self.findings]
            write_json(self._folder / FINDINGS_FILE, {"findings": findings})
