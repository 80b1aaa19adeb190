"""The report's section on a reward model: its report card in words, tables and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from align.summary import Row
from preference_data.counts import counted
from preference_data.figures import BLUE, INK, LINE, WARM, svg

CARD_FORMAT = 1
"""Of report_card.json, as reward_models/report_card.py writes it."""
TITLES = {
    "source": "By source",
    "answers": "By number of answers",
    "criterion": "By criterion",
    "clarity": "By how clear the preference was",
}


@dataclass(frozen=True)
class Measure:
    """A line of the table of headline numbers."""

    name: str
    value: str
    says: str


@dataclass(frozen=True)
class Figure:
    """A figure as a data URI, with its words."""

    title: str
    hint: str
    change: str
    uri: str


@dataclass(frozen=True)
class CardView:
    """What the page shows of a card."""

    side: str
    remarks: list[str]
    """What a reader should not overlook"""
    measures: list[Measure]
    figures: list[Figure]
    breakdowns: list[tuple[str, list[Row]]]
    annotators: Row | None


def card_view(card: Row) -> CardView | None:
    """A card for the page; None without one, or for one of another form."""
    if card.get("format") != CARD_FORMAT:
        return None
    try:
        return CardView(
            side=card["side"],
            remarks=list(_remarks(card)),
            measures=list(_measures(card)),
            figures=_figures(card),
            breakdowns=[(TITLES[name], rows) for name, rows in card["breakdowns"].items()],
            annotators=card["annotators"],
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def share(found: Mapping[str, float] | None) -> str:
    """An interval as `0.79 [0.75, 0.83]`; `–` for none."""
    if found is None:
        return "–"
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


# --- in words ------------------------------------------------------------------------------------


def _remarks(card: Row) -> Any:
    if card["side"] != "held-out":
        yield (
            "No pairs were held out: everything below is about pairs that the model was trained "
            "on, and says little about others."
        )
    length = card["length"]
    if length["above_baseline"]["low"] <= 0:
        yield (
            f"The model is not clearly better than always taking the {length['rule']} answer, "
            f"which is right on {length['baseline']['value']:.2f} of the pairs."
        )
    check = card["overfit_check"]
    if check is not None and check["accuracy"] < 1:
        yield (
            f"It could not learn {counted(check['pairs'], 'pair')} by heart: after "
            f"{counted(check['steps'], 'step')} it "
            f"ranked {check['accuracy']:.2f} of them right. That is a fault of the set-up, such as "
            "a learning rate that is too low."
        )


def _measures(card: Row) -> Any:
    length, before = card["length"], card["calibration"]["before"]
    after, temperature = card["calibration"]["after"], card["calibration"]["temperature"]
    trained = card["training_accuracy"]
    yield Measure(
        "Accuracy", share(card["accuracy"]),
        f"on {counted(card['pairs'], card['side'] + ' pair')} of "
        f"{counted(card['prompts'], 'prompt')}"
        + ("" if trained is None else f"; on training pairs {trained:.2f}"),
    )  # fmt: skip
    yield Measure("Length alone", share(length["baseline"]), f"always the {length['rule']} answer")
    yield Measure(
        "Above length alone", share(length["above_baseline"]), "accuracy less that, pair by pair"
    )
    yield Measure(
        "Length-balanced accuracy", share(length["balanced_accuracy"]),
        "on pairs weighted so that length alone gets 0.50",
    )  # fmt: skip
    found = length["correlation"]
    yield Measure(
        "Correlation with length", f"{found['pearson']:.2f}",
        f"ranks {found['spearman']:.2f}; within prompts {found['pearson_within_prompts']:.2f}, "
        f"ranks {found['spearman_within_prompts']:.2f}",
    )  # fmt: skip
    for name, key, says in (
        ("Calibration error", "ece", "gap between confidence and accuracy"),
        ("Brier score", "brier", "0.25 knows nothing"),
        ("Log-loss", "log_loss", "nats; 0.69 knows nothing"),
    ):
        calibrated = "" if after is None else f" → {after[key]:.3f}"
        yield Measure(name, f"{before[key]:.3f}{calibrated}", says)
    if after is not None:
        yield Measure("Temperature", f"{temperature:.2f}", "fitted; what stands after the arrows")
    yield from _optional(card)


def _optional(card: Row) -> Any:
    if (ties := card["ties"]) is not None:
        yield Measure(
            "Margin on ties", f"{ties['margin']:.2f}",
            f"{counted(ties['pairs'], 'pair')} that people found equal, {100 * ties['share']:.0f} "
            f"% of all; {ties['margin_of_decided']:.2f} on the others",
        )  # fmt: skip
    if (check := card["overfit_check"]) is not None:
        yield Measure(
            "Pairs learnt by heart", f"{check['accuracy']:.2f}",
            f"of {counted(check['pairs'], 'pair')}, after {counted(check['steps'], 'step')} on "
            "these alone",
        )  # fmt: skip


# --- figures -------------------------------------------------------------------------------------


def _figures(card: Row) -> list[Figure]:
    found, length = card["calibration"], card["length"]
    after = found["after"]
    ece = f"ECE {found['before']['ece']:.3f}" + ("" if after is None else f" → {after['ece']:.3f}")
    return [
        Figure(
            "Reliability", "how often people agree with it, by how sure it is", ece,
            _figure("confidence", "accuracy", lambda axes: _reliability(axes, found)),
        ),
        Figure(
            "Scores", "share of the answers; training = a sample of answers it was trained on",
            f"{card['scores']['chosen']['mean']:.2f} and {card['scores']['rejected']['mean']:.2f}",
            _figure("score", "", lambda axes: _histograms(axes, card["scores"])),
        ),
        Figure(
            "Accuracy by length", "tokens that the preferred answer is longer by",
            f"length alone {length['baseline']['value']:.2f}",
            _figure("", "accuracy", lambda axes: _by_length(axes, length)),
        ),
    ]  # fmt: skip


def _figure(x: str, y: str, paint: Callable[[Any], None]) -> str:
    def draw(axes: Any) -> None:
        paint(axes)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(axis="y", color=LINE, linewidth=0.6)
        axes.spines["left"].set_visible(False)
        axes.legend(
            frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, handlelength=1.2,
            handletextpad=0.4, columnspacing=1.0, borderaxespad=0,
        )  # fmt: skip

    return svg((4.2, 2.8), draw)


def _reliability(axes: Any, found: Row) -> None:
    axes.plot([0.5, 1], [0.5, 1], color=INK, linewidth=0.8, linestyle=(0, (3, 3)))
    for when, colour, label in (("before", WARM, "raw"), ("after", BLUE, "with temperature")):
        curve = found[when]["curve"] if found[when] is not None else []
        if curve:
            x, y = ([point[name] for point in curve] for name in ("confidence", "accuracy"))
            axes.plot(x, y, color=colour, linewidth=1.2, label=label)
            axes.scatter(
                x, y, color=colour, linewidths=0, s=[8 + 90 * point["share"] for point in curve]
            )
    axes.set_xlim(0.48, 1.02)
    axes.set_ylim(bottom=min(0.4, axes.get_ylim()[0]), top=1.05)


def _histograms(axes: Any, scores: Row) -> None:
    edges = scores["edges"]
    for name, colour, style in (
        ("reference", INK, (0, (2, 2))), ("rejected", WARM, "-"), ("chosen", BLUE, "-"),
    ):  # fmt: skip
        counts = scores[name]["counts"]
        shares = [count / max(1, sum(counts)) for count in counts]
        label = "training" if name == "reference" else name
        axes.stairs(shares, edges, color=colour, linewidth=1.3, linestyle=style, label=label)
    axes.margins(x=0.02)
    axes.locator_params(nbins=5)


def _by_length(axes: Any, length: Row) -> None:
    rows: Sequence[Row] = length["by_difference"]
    places = range(len(rows))
    values = [row["accuracy"]["value"] for row in rows]
    low = [row["accuracy"]["value"] - row["accuracy"]["low"] for row in rows]
    high = [row["accuracy"]["high"] - row["accuracy"]["value"] for row in rows]
    axes.errorbar(
        places, values, yerr=[low, high], fmt="o", color=BLUE, markersize=4.5, elinewidth=1.3,
        label="model",
    )  # fmt: skip
    baseline = [row["baseline"] for row in rows]
    axes.plot(places, baseline, "_", color=WARM, markersize=12, markeredgewidth=2, label="length")
    axes.set_xticks(places, [_span(row) for row in rows], fontsize=7)
    axes.set_ylim(-0.05, 1.08)
    axes.set_xlim(-0.5, len(rows) - 0.5)


def _span(row: Row) -> str:
    low, high = (f"{row[name]:+.0f}".replace("-", "−") for name in ("from", "to"))
    return low.replace("+0", "0") if low == high else f"{low}\n{high}"
