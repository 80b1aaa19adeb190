"""The report's curves of a step, and its win rates as a forest; every figure is a data URI."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from align.summary import StepRecord, WinRate, is_number, number
from preference_data.figures import BLUE, INK, LINE, WARM, svg

Series = tuple[str, list[float], list[float]]
"""A line of a chart: label, x values, y values."""

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

    return svg((4.2, 2.4), draw)


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

    return svg((4.2, 0.8 + 0.45 * len(rates)), draw)
