"""The run as one HTML page, made from nothing but the run folder.

The page loads nothing: styles and figures are inside it, and its content-security policy forbids
the rest. Everything that comes from data is escaped. A run that is not finished, or a folder with
files missing, still gives a page, which says what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.artifacts import write_text
from align.displacement import remark as displacement_remark
from align.report_ppo import over_optimisation
from align.report_reward import card_view, share
from align.summary import (
    Row,
    StepRecord,
    WinRate,
    duration,
    finding_in_words,
    finite_numbers,
    is_number,
    mapping_or_empty,
    number,
    read_run,
    short,
    win_rates,
)
from preference_data.figures import BLUE, INK, LINE, WARM, svg

Series = tuple[str, list[float], list[float]]
"""A line of a chart: label, x values, y values."""


def write_report(run_dir: Path) -> Path:
    """Writes `report.html` into the run folder and returns its path. Safe to call at any time."""
    import jinja2

    run = read_run(run_dir)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number, short=short, duration=duration, text=as_text, share=share
    )
    page = environment.get_template("report.html.jinja").render(
        run=run,
        headline=[rate for step in run.steps for rate in win_rates(step.metrics)],
        forest_chart=forest_chart,
        disagreements=disagreements,
        displacements=[
            found for step in run.steps if (found := displacement_remark(step.name, step.metrics))
        ],
        charts=charts,
        finding_in_words=finding_in_words,
        over_optimisation=over_optimisation,
        card_view=card_view,
        metric_table=metric_table,
        policy_table=policy_table,
        side_by_side=side_by_side,
        first_and_last=first_and_last,
        counts=counts,
        config_yaml=_yaml(run.config),
    )
    # A lone surrogate in a completion is no UTF-8; it becomes a question mark.
    write_text(run_dir / "report.html", page.encode("utf-8", "replace").decode("utf-8"))
    return run_dir / "report.html"


# --- what the page shows of it -------------------------------------------------------------------


def as_text(value: Any) -> str:
    """A prompt as text: messages one under the other, with their roles."""
    if isinstance(value, list):
        messages = [mapping_or_empty(message) for message in value]
        return "\n".join(f"{m.get('role', '?')}: {m.get('content', '')}" for m in messages)
    return "" if value is None else str(value)


def metric_table(step: StepRecord) -> list[tuple[str, list[float]]]:
    """Each logged metric with its [first, last, lowest, highest] value, in order of appearance."""
    values: dict[str, list[float]] = {}
    for row in step.history:
        for name, value in row.items():
            if name not in {"step", "time"} and is_number(value):
                values.setdefault(name, []).append(value)
    return [(name, [v[0], v[-1], min(v), max(v)]) for name, v in values.items()]


def policy_table(metrics: Mapping[str, float]) -> tuple[list[str], dict[str, Row]]:
    """Measures and, by policy, their values: `evaluate/kl/ppo` is measure `kl` of policy `ppo`."""
    table: dict[str, Row] = {}
    for name, value in metrics.items():
        parts = name.split("/")
        if parts[0] == "evaluate" and len(parts) >= 3 and "win_rate" not in parts:
            measure = " ".join(parts[1:-1]).replace("_", " ")
            table.setdefault(parts[-1], {})[measure] = value
    return list(dict.fromkeys(m for row in table.values() for m in row)), table


def counts(values: Any, limit: int = 12) -> list[tuple[str, float, float | None]]:
    """(name, count, share of the largest), largest first; what is over `limit` as one last line.

    That line has no share, or it would dwarf the others.
    """
    found = sorted(finite_numbers(values).items(), key=lambda item: -item[1])
    largest = max((count for _, count in found), default=0) or 1
    rest = found[limit - 1 :] if len(found) > limit else []
    named = found[: len(found) - len(rest)]
    lines: list[tuple[str, float, float | None]] = [(n, c, c / largest) for n, c in named]
    if rest:
        lines.append((f"{len(rest)} others", sum(count for _, count in rest), None))
    return lines


def disagreements(rates: Sequence[WinRate]) -> list[str]:
    """Comparisons that another judge calls better and gold does not: the sign of a gamed reward."""
    gold = {(r.policy, r.baseline): r.verdict for r in rates if r.judge == "gold"}
    return [
        f"{rate.judge} prefers {rate.policy} to {rate.baseline}, but gold does not: the policy may "
        "have learned to please the judge instead of people."
        for rate in rates
        if rate.verdict == "better" and gold.get((rate.policy, rate.baseline), "better") != "better"
    ]


def first_and_last(samples: Sequence[Row], each: int = 3) -> list[Row]:
    """The first rows of the first and of the last step that samples were taken at: no picking."""
    steps = [row["step"] for row in samples if is_number(row.get("step"))]
    if not steps:
        return list(samples[:each])
    ends = dict.fromkeys([min(steps), max(steps)])
    return [row for end in ends for row in [r for r in samples if r.get("step") == end][:each]]


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


def _yaml(config: Row) -> str:
    import yaml

    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True) if config else ""


# --- figures -------------------------------------------------------------------------------------

COLOURS = (BLUE, WARM)

Curve = tuple[str, tuple[str, ...], str]
"""Title, metrics drawn in one chart, and what it says."""

LOSS: Curve = ("Training loss", ("train/loss",), "")
NORM: Curve = ("Gradient norm", ("train/grad_norm",), "before clipping")
SPEED: Curve = ("Tokens per second", ("train/tokens_per_second",), "")
CURVES: dict[str, tuple[Curve, ...]] = {
    "pretrain": (LOSS, NORM, SPEED),
    "sft": (LOSS, NORM, SPEED),
    "reward": (
        LOSS,
        ("Accuracy", ("reward/accuracy",), "chosen scored above rejected"),
        ("Margin", ("reward/margin",), "chosen score less rejected score"),
        NORM,
    ),
    "dpo": (
        LOSS,
        ("Margin", ("dpo/margin",), "chosen reward less rejected reward"),
        ("Accuracy", ("dpo/accuracy",), "chosen reward above rejected reward"),
        (
            "Log-ratio to the reference",
            ("dpo/chosen_logratio", "dpo/rejected_logratio"),
            "nats per token; both below 0 = displacement",
        ),
        ("Implicit rewards", ("dpo/chosen_reward", "dpo/rejected_reward"), "β · log π/π_ref"),
        NORM,
    ),
    "ppo": (
        ("Score and reward", ("objective/score", "objective/reward"), "before and after KL"),
        ("Judge", ("judge/score",), "nothing is trained on it"),
        ("KL to the reference", ("objective/kl",), "nats per response"),
        ("Entropy", ("objective/entropy",), "nats per token"),
        ("Response length", ("response/length",), "tokens"),
        ("Responses that end", ("response/eos_rate",), "share with an end-of-sequence token"),
        (
            "Variety",
            ("response/distinct_2", "response/top_reply_share"),
            "distinct bigrams; share of the commonest reply",
        ),
        ("Clip fraction", ("policy/clip_fraction", "value/clip_fraction"), "share of tokens"),
        ("Explained variance", ("value/explained_variance",), "of the returns, by the value"),
        ("Policy loss", ("policy/loss",), ""),
    ),
}


@dataclass(frozen=True)
class Chart:
    """A figure as a data URI, with its words."""

    title: str
    hint: str
    change: str
    """First and last value of the first line."""
    uri: str


def charts(step: StepRecord) -> list[Chart]:
    """The curves of a step that have at least one finite point."""
    found = []
    for title, names, hint in CURVES.get(step.kind, ()):
        series: list[Series] = []
        for name in names:
            points = [(r["step"], r[name]) for r in step.history if is_number(r.get(name))]
            if points:
                label = name.rpartition("/")[2].replace("_", " ")
                if len({n.rpartition("/")[2] for n in names}) < len(names):
                    label = name.partition("/")[0]
                series.append((label, [p[0] for p in points], [p[1] for p in points]))
        if series:
            values = series[0][2]
            change = number(values[0]) + (f" → {number(values[-1])}" if len(values) > 1 else "")
            uri = line_chart(series, "iteration" if step.kind == "ppo" else "step")
            found.append(Chart(title, hint, change, uri))
    return found


def line_chart(series: Sequence[Series], x_label: str) -> str:
    """Curves over steps as a data URI; a legend only where there are several lines."""

    def draw(axes: Any) -> None:
        for (label, x, y), colour in zip(series, COLOURS, strict=False):
            marker = "o" if len(x) == 1 else ""
            axes.plot(x, y, color=colour, linewidth=1.4, marker=marker, markersize=4, label=label)
        axes.set_xlabel(x_label)
        axes.margins(x=0.02, y=0.12)
        axes.locator_params(nbins=5)
        axes.grid(axis="y", color=LINE, linewidth=0.6)
        axes.spines["left"].set_visible(False)
        if len(series) > 1:
            axes.legend(frameon=False, loc="best", handlelength=1.2)

    return svg((3.6, 2.1), draw)


def forest_chart(rates: Sequence[WinRate]) -> str:
    """Win rates with their 95 % intervals around the line of no difference, as a data URI."""

    def draw(axes: Any) -> None:
        for y, rate in enumerate(rates):
            colour = COLOURS[1] if rate.verdict == "worse" else COLOURS[0]
            clear = rate.verdict != "no clear difference"
            if rate.low is not None and rate.high is not None:
                axes.plot([rate.low, rate.high], [y, y], color=colour, linewidth=2)
            fill = colour if clear else "white"
            axes.plot([rate.rate], [y], "o", color=colour, markersize=7, markerfacecolor=fill)
        axes.axvline(0.5, color=INK, linewidth=0.8, linestyle=(0, (3, 3)))
        labels = [f"{rate.policy} vs {rate.baseline}\n{rate.judge}" for rate in rates]
        axes.set_yticks(range(len(rates)), labels, parse_math=False)
        axes.set_ylim(len(rates) - 0.4, -0.6)
        axes.set_xlim(0, 1)
        axes.set_xlabel("win rate (0.5 = no difference)")
        axes.grid(axis="x", color=LINE, linewidth=0.6)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)

    return svg((4.8, 0.8 + 0.5 * len(rates)), draw)
