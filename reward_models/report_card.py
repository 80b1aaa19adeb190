"""A reward model's report card: what its scores of held-out answers say about it, as plain numbers.

Nothing here knows a model: scores, lengths and verdicts go in, a JSON object of `CARD_FORMAT`
comes out. Shares have 95 % intervals over prompts (`calibration.share_intervals`); an interval is
{"value", "low", "high"}. Every judgement counts once however many pairs it gave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy.stats import rankdata

from preference_data.votes.agreement import Interval
from reward_models import calibration
from reward_models.calibration import Array, Ints, correlation, mean

CARD_FORMAT = 1
LEAST_PAIRS = 10
"""A group of fewer pairs is joined with the others that have fewer."""
MOST_GROUPS = 20
"""Groups of one breakdown, the largest; the rest is joined."""
LENGTH_BINS = 3
"""On either side of equal lengths, with equally many pairs."""
HISTOGRAM_BINS = 24


@dataclass(frozen=True)
class Judged:
    """N answers with their scores, and P pairs of them that people ranked."""

    scores: Array
    """[N]"""
    lengths: Array
    """[N] tokens"""
    prompts: Ints
    """[N] which prompt is answered: answers of one number are not independent"""
    better: Ints
    """[P] place of the preferred answer of a pair"""
    worse: Ints
    """[P]"""
    weights: Array
    """[P]"""
    labels: Array
    """[P] probability that the better one is better: 1, or a soft label's"""
    ties: Ints
    """[Q, 2] pairs that people found equally good"""
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By breakdown, the group of every pair [P]"""

    @property
    def margins(self) -> Array:
        """[P] score of the preferred answer less that of the other."""
        return self.scores[self.better] - self.scores[self.worse]

    @property
    def hits(self) -> Array:
        """[P] 1 where the preferred answer scores higher, a half where both score alike."""
        return calibration.hits_of(self.margins)

    @property
    def longer(self) -> Array:
        """[P] by how many tokens the preferred answer is the longer one."""
        return self.lengths[self.better] - self.lengths[self.worse]

    @property
    def clusters(self) -> Ints:
        """[P] the prompt of each pair."""
        return self.prompts[self.better]


def report_card(held_out: Judged, reference: Judged, seed: int) -> dict[str, Any]:
    """The card of P > 0 held-out pairs, as a JSON object.

    `reference` holds training answers, which the scores are normalised with: their distribution
    beside that of held-out ones shows whether the model knows them by heart. Without a pair among
    them there is no training accuracy (None).
    """
    return {
        "format": CARD_FORMAT,
        "pairs": len(held_out.better),
        "prompts": len(np.unique(held_out.clusters)),
        "accuracy": _interval(
            calibration.reward_accuracy(held_out.margins, held_out.weights, held_out.clusters, seed)
        ),
        "training_accuracy": (
            mean(reference.hits, reference.weights) if len(reference.better) else None
        ),
        "margin": mean(held_out.margins, held_out.weights),
        "length": _length(held_out, seed),
        "calibration": _calibration(held_out, seed),
        "scores": _scores(held_out, reference),
        "breakdowns": {
            name: rows
            for name, groups in held_out.groups.items()
            if len(rows := _breakdown(held_out, groups, seed)) > 1
        },
        "ties": _ties(held_out),
    }


def metrics(card: Mapping[str, Any]) -> dict[str, float]:
    """The headline numbers of a card, by the last part of their names."""
    length, before = card["length"], card["calibration"]["before"]
    found = {
        **_flat("accuracy", card["accuracy"]),
        "margin": card["margin"],
        "brier": before["brier"],
        "ece": before["ece"],
        "log_loss": before["log_loss"],
        "length_baseline": length["baseline"]["value"],
        **_flat("above_length_baseline", length["above_baseline"]),
        "length_correlation": length["correlation"]["pearson"],
        "pairs": float(card["pairs"]),
    }
    if length["balanced_accuracy"] is not None:
        found["length_balanced_accuracy"] = length["balanced_accuracy"]["value"]
    if card["calibration"]["temperature"] is not None:
        found["temperature"] = card["calibration"]["temperature"]
        found["ece_calibrated"] = card["calibration"]["after"]["ece"]
    return found


def _flat(name: str, interval: Mapping[str, float]) -> dict[str, float]:
    return {
        name: interval["value"],
        f"{name}_low": interval["low"],
        f"{name}_high": interval["high"],
    }


# --- length --------------------------------------------------------------------------------------


def _length(held_out: Judged, seed: int) -> dict[str, Any]:
    """What length alone gets, by how much the model gets more, and what is left without it.

    `baseline` always takes the longer answer, or always the shorter, whichever is right more often
    on these very pairs: what a model that reads nothing but length would get at best.
    `above_baseline` is the accuracy less that, pair by pair; the model is above the baseline only
    if the whole interval is above 0.
    """
    longer = calibration.hits_of(held_out.longer)
    rule = "longer" if mean(longer, held_out.weights) >= 0.5 else "shorter"
    baseline = longer if rule == "longer" else 1 - longer
    bins = length_bins(held_out.longer)
    return {
        "rule": rule,
        "baseline": _interval(_shares(baseline, held_out, seed)),
        "above_baseline": _interval(_above(held_out, baseline, seed)),
        "balanced_accuracy": _balanced(held_out, bins, seed),
        "by_difference": _by_difference(held_out, baseline, bins, seed),
        "correlation": correlations(held_out.scores, held_out.lengths, held_out.prompts),
    }


def _above(held_out: Judged, baseline: Array, seed: int) -> Interval:
    """How much more than the baseline the model gets. Of few prompts, the interval of the share
    (1 + difference) / 2: a bootstrap of two that are right would be sure of them."""
    above = held_out.hits - baseline
    if len(np.unique(held_out.clusters)) < calibration.FEW_PROMPTS:
        share = _shares((1 + above) / 2, held_out, seed)
        return Interval(2 * share.value - 1, 2 * share.low - 1, 2 * share.high - 1)
    (found,) = calibration.clustered_means(
        above[:, None], held_out.weights[:, None], held_out.clusters, seed
    )
    return found


def length_bins(longer: Array) -> Ints:
    """[P] 0 for answers of one length; -+1 … -+LENGTH_BINS by how large the difference is.

    On each side the same limits, which part all differences into equally many.
    """
    size = np.abs(longer)
    limits = (
        np.quantile(size[size > 0], np.arange(1, LENGTH_BINS) / LENGTH_BINS) if any(size) else []
    )
    return (np.sign(longer) * (1 + np.searchsorted(limits, size))).astype(int)


def balanced_weights(bins: Ints, weights: Array) -> Array:
    """[P] weights under which length says nothing: in every bin of difference the longer answer
    and the shorter one win equally often. Pairs of a bin in which one side never wins get 0."""
    found = np.where(bins == 0, weights, 0.0)
    for size in range(1, LENGTH_BINS + 1):
        sides = [weights[bins == side * size].sum() for side in (-1, 1)]
        if all(sides):
            for side, total in zip((-1, 1), sides, strict=True):
                inside = bins == side * size
                found[inside] = weights[inside] * sum(sides) / (2 * total)
    return found


def _balanced(held_out: Judged, bins: Ints, seed: int) -> dict[str, float] | None:
    """Accuracy on pairs of which length tells nothing; None if there are none."""
    weights = balanced_weights(bins, held_out.weights)
    if not weights.any():
        return None
    (found,) = calibration.share_intervals(
        held_out.hits[:, None], weights[:, None], held_out.clusters, seed
    )
    return _interval(found)


def _by_difference(
    held_out: Judged, baseline: Array, bins: Ints, seed: int
) -> list[dict[str, Any]]:
    rows = []
    for place in sorted(set(bins.tolist())):
        inside = bins == place
        differences = held_out.longer[inside]
        rows.append(
            {
                "from": float(differences.min()),
                "to": float(differences.max()),
                "pairs": int(inside.sum()),
                "accuracy": _interval(_shares(held_out.hits, held_out, seed, inside)),
                "baseline": mean(baseline[inside], held_out.weights[inside]),
            }
        )
    return rows


def correlations(scores: Array, lengths: Array, prompts: Ints) -> dict[str, float]:
    """Of score and length: over all answers, and over those of the same prompt alone.

    The first also tells of prompts that ask for long answers; the second is what the policy can
    gain by writing more. `spearman` is that of the ranks.
    """
    ranks = rankdata(scores), rankdata(lengths)
    return {
        "pearson": correlation(scores, lengths),
        "spearman": correlation(*ranks),
        "pearson_within_prompts": correlation(
            _centred(scores, prompts), _centred(lengths, prompts)
        ),
        "spearman_within_prompts": correlation(*(_centred(rank, prompts) for rank in ranks)),
    }


def _centred(values: Array, prompts: Ints) -> Array:
    _, place = np.unique(prompts, return_inverse=True)
    return values - (np.bincount(place, weights=values) / np.bincount(place))[place]


# --- calibration ---------------------------------------------------------------------------------


def _calibration(held_out: Judged, seed: int) -> dict[str, Any]:
    """ECE, Brier, log-loss and the curve, as the scores are and after a temperature.

    `temperature` is fitted on all pairs and belongs to the model; the numbers `after` it are of
    temperatures fitted on the half of the prompts that the pair is not in. Both are None for too
    few prompts.
    """
    margins, labels, weights = held_out.margins, held_out.labels, held_out.weights
    fitted = calibration.cross_fitted(margins, labels, weights, held_out.clusters, seed)
    return {
        "temperature": (
            None if fitted is None else calibration.fit_temperature(margins, labels, weights)
        ),
        "before": _calibrated(margins, labels, weights),
        "after": None if fitted is None else _calibrated(margins / fitted, labels, weights),
    }


def _calibrated(logits: Array, labels: Array, weights: Array) -> dict[str, Any]:
    probability = calibration.probabilities(logits)
    return {
        "ece": calibration.expected_calibration_error(probability, weights, labels),
        "brier": calibration.brier(probability, labels, weights),
        "log_loss": calibration.log_loss(logits, labels, weights),
        "curve": [asdict(found) for found in calibration.reliability(probability, labels, weights)],
    }


# --- scores --------------------------------------------------------------------------------------


def _scores(held_out: Judged, reference: Judged) -> dict[str, Any]:
    """Distributions of the scores: held-out answers by verdict, and answers of the training side.

    `edges` are those of the common histogram; what lies beyond them is counted in the outer bins.
    """
    scores = {
        "chosen": held_out.scores[held_out.better],
        "rejected": held_out.scores[held_out.worse],
        "reference": reference.scores,
    }
    every = np.concatenate(list(scores.values()))
    low, high = np.percentile(every, [0.5, 99.5])
    edges = np.linspace(low, high if high > low else low + 1.0, HISTOGRAM_BINS + 1)
    return {
        "edges": edges.tolist(),
        **{
            name: {
                "answers": len(values),
                "mean": float(values.mean()),
                "std": float(values.std()),
                "percentiles": dict(
                    zip(("5", "50", "95"), np.percentile(values, [5, 50, 95]).tolist(), strict=True)
                ),
                "counts": np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0].tolist(),
            }
            for name, values in scores.items()
        },
    }


def _ties(held_out: Judged) -> dict[str, Any] | None:
    """How large the model's margin is on pairs that people found equally good; None without any.

    `share` is of all pairs that people compared.
    """
    if not len(held_out.ties):
        return None
    margins = np.abs(held_out.scores[held_out.ties[:, 0]] - held_out.scores[held_out.ties[:, 1]])
    return {
        "pairs": len(margins),
        "share": len(margins) / (len(margins) + len(held_out.better)),
        "margin": float(margins.mean()),
        "margin_of_decided": mean(np.abs(held_out.margins), held_out.weights),
    }


# --- breakdowns ----------------------------------------------------------------------------------


def _breakdown(held_out: Judged, groups: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Accuracy and margin by group, in order of size; small groups together and last."""
    names, place = np.unique(np.array(groups, dtype=object), return_inverse=True)
    sizes = np.bincount(place)
    order = np.argsort(-sizes, kind="stable")
    kept = [int(i) for i in order[:MOST_GROUPS] if sizes[i] >= LEAST_PAIRS]
    columns = {str(names[i]): place == i for i in kept}
    if joined := len(names) - len(kept):
        columns[f"{joined} other{'s' if joined > 1 else ''}"] = ~np.isin(place, kept)
    inside = np.stack(list(columns.values()), axis=1)
    intervals = calibration.share_intervals(
        np.repeat(held_out.hits[:, None], inside.shape[1], axis=1),
        inside * held_out.weights[:, None],
        held_out.clusters,
        seed,
    )
    return [
        {
            "group": name,
            "pairs": int(rows.sum()),
            "prompts": len(np.unique(held_out.clusters[rows])),
            "accuracy": _interval(interval),
            "margin": mean(held_out.margins[rows], held_out.weights[rows]),
        }
        for (name, rows), interval in zip(columns.items(), intervals, strict=True)
    ]


def classes_of(values: Sequence[float | None], unit: str) -> list[str]:
    """A class for each number, to break pairs down by: the numbers themselves where there are few
    different ones, else thirds of equally many."""
    known = np.array([value for value in values if value is not None])
    distinct = np.unique(known)
    if len(distinct) <= 6:
        return [f"no {unit}" if value is None else f"{unit} {value:.3g}" for value in values]
    low, high = np.quantile(known, [1 / 3, 2 / 3])
    names = (f"{unit} to {low:.3g}", f"{unit} to {high:.3g}", f"{unit} above {high:.3g}")
    return [
        f"no {unit}" if value is None else names[int(value > low) + int(value > high)]
        for value in values
    ]


def _shares(hits: Array, held_out: Judged, seed: int, inside: Any = slice(None)) -> Interval:
    (found,) = calibration.share_intervals(
        hits[inside][:, None], held_out.weights[inside][:, None], held_out.clusters[inside], seed
    )
    return found


def _interval(found: Interval) -> dict[str, float]:
    return {"value": found.value, "low": found.low, "high": found.high}
