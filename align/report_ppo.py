"""The report's figure of over-optimisation: score and judge over the way that the policy has gone.

The axes are those of Gao et al. 2022 (arXiv:2210.10760): d = sqrt(KL), and gains since the start.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from align.over_optimisation import SPAN, fit_curve, parting_point, running_means
from align.summary import is_number, number
from preference_data.figures import BLUE, INK, LINE, WARM, svg

KL, SCORE, JUDGE = "objective/kl", "objective/score", "judge/score"


@dataclass(frozen=True)
class Gains:
    """One of the two series of a run."""

    label: str
    """What it is, its first value and its last running mean, in its own units"""
    values: list[float]
    """Gain on the first value, in units of the running mean's largest"""
    curve: list[tuple[float, float]]
    """(d, gain) along the fitted curve; empty where there is none"""


@dataclass(frozen=True)
class Overview:
    """The figure as a data URI, and what it shows."""

    uri: str
    words: str
    """What the figure says, for those who do not see it, and below it."""
    parted_at: int | None


def over_optimisation(history: Sequence[Mapping[str, Any]]) -> Overview | None:
    """The figure of a ppo step's log; None without a judge, or with too few lines for a mean."""
    rows = [row for row in history if all(is_number(row.get(n)) for n in (KL, SCORE, JUDGE))]
    if len(rows) <= SPAN:
        return None
    kl, score, judge = ([float(row[name]) for row in rows] for name in (KL, SCORE, JUDGE))
    distance = [math.sqrt(max(0.0, value)) for value in kl]
    parted = parting_point(kl, score, judge)
    both = (gains("score", distance, score), gains("judge", distance, judge))
    mark = None
    words = f"{both[0].label}; {both[1].label}."
    if parted is not None:
        iteration = int(rows[parted]["step"])
        mark = (running_means(distance)[parted - SPAN // 2], iteration)
        words += (
            f" They part at iteration {iteration}, at a KL of {number(kl[parted])} nats: from "
            "there the score goes on rising while the judge falls."
        )
    else:
        words += " They do not part: where the score rises, the judge does not clearly fall."
    return Overview(draw(distance, both, mark), words, mark and mark[1])


def gains(name: str, distance: Sequence[float], values: Sequence[float]) -> Gains:
    """A series on the common scale, with its fitted curve."""
    means = running_means(values)
    scale = max(abs(mean - values[0]) for mean in means) or 1.0
    scaled = [(value - values[0]) / scale for value in values]
    curve: list[tuple[float, float]] = []
    if len(set(distance)) >= 2 * SPAN:
        start, alpha, beta = fit_curve(distance, scaled)
        steps = [max(distance) * i / 60 for i in range(1, 61)]
        curve = [(0, start), *((d, start + d * (alpha - beta * math.log(d))) for d in steps)]
    return Gains(f"{name} {number(values[0])} → {number(means[-1])}", scaled, curve)


def draw(
    distance: Sequence[float], both: tuple[Gains, Gains], mark: tuple[float, int] | None
) -> str:
    """Points an iteration, curves as fitted, and a line where they part; as a data URI."""

    def paint(axes: Any) -> None:
        for series, colour, shape in zip(both, (WARM, BLUE), "os", strict=True):
            axes.plot(
                distance, series.values, shape, color=colour, markersize=3.5, alpha=0.55,
                markeredgewidth=0, label=series.label,
            )  # fmt: skip
            if series.curve:
                axes.plot(*zip(*series.curve, strict=True), color=colour, linewidth=1.6)
        if mark is not None:
            axes.axvline(mark[0], color=INK, linewidth=0.9, linestyle=(0, (3, 3)))
            axes.annotate(
                f"iteration {mark[1]}", (mark[0], 0.02), xycoords=("data", "axes fraction"),
                xytext=(4, 0), textcoords="offset points",
            )  # fmt: skip
        axes.set_xlabel("distance from the reference, √KL")
        axes.set_ylabel("gain, share of its largest")
        axes.margins(x=0.03, y=0.12)
        axes.locator_params(nbins=5)
        axes.grid(axis="y", color=LINE, linewidth=0.6)
        axes.spines["left"].set_visible(False)
        axes.legend(
            frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, handletextpad=0.2,
            columnspacing=1.2, borderaxespad=0,
        )  # fmt: skip

    return svg((4.6, 3.0), paint)
