"""What a reward step says of its model: the report card on held-out judgements, as its artifact.

`reward_models.report_card` does the sums; here judgements and scores become its input. The card is
`report_card.json` in the step's folder; the worst mistakes are `samples.jsonl`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from align.artifacts import write_json
from align.rankings import Ranked, by_group, pair_index
from align.roles import Roles
from align.rollout import packed_scores
from align.stage import StageContext
from preference_data.near_duplicates import Clusters
from preference_data.records import Judgement, Prompt
from preference_data.sources.store import read_judgements
from preference_data.splits import opening
from reward_models import report_card as sums
from reward_models.annotator_agreement import annotator_agreement
from reward_models.folders import member_folders, weights_folder
from reward_models.report_card import Judged, classes_of
from reward_models.scalar_head import Scoring

CARD_FILE = "report_card.json"
REFERENCE_ROWS = 512
"""Training judgements whose answers the held-out ones are compared with."""
WORST_KEPT = 20


@dataclass(frozen=True)
class ReportCard:
    """The card as JSON, its headline metrics, and the worst mistakes as rows."""

    card: dict[str, Any]
    metrics: dict[str, float]
    mistakes: list[dict[str, Any]]

    def write(self, context: StageContext) -> None:
        """Into the step's folder and the trackers; rank 0 alone comes here.

        A temperature of held-out pairs is stored with the model, or with each of an ensemble.
        """
        write_json(context.folder / CARD_FILE, self.card)
        for name, rows in {"samples": self.mistakes, **tables(self.card)}.items():
            if rows:
                context.tracker.table(name, rows)
        temperature = self.card["calibration"]["temperature"]
        if temperature is not None and self.card["side"] == "held-out":
            for folder in member_folders(context.folder) or [context.folder]:
                _store(weights_folder(folder), temperature)


def report_card(
    context: StageContext, roles: Roles, held_out: Sequence[Ranked], train: Sequence[Ranked],
    overfit_check: Mapping[str, Any] | None = None,
) -> ReportCard | None:  # fmt: skip
    """The card of the role `reward`, on the held-out judgements; on those it was trained on where
    nothing with a pair is held out. None if there are no pairs at all (thumbs up and down). All
    ranks come here, and all have the same in the end."""
    measured = has_pairs(held_out)
    rows = held_out if measured else train
    if not has_pairs(rows):
        return None
    scores = torch.cat(ranked_scores(context, roles, rows)).numpy()
    reference_rows = train[:REFERENCE_ROWS]
    reference = torch.cat(ranked_scores(context, roles, reference_rows)).numpy()

    def make() -> ReportCard:
        raw = _votes(context.data[context.step.data], rows)
        judged = judged_of(rows, scores, context.clusters, _groups(rows, raw))
        trained = judged_of(reference_rows, reference, context.clusters)
        card = {
            "side": "held-out" if measured else "training",
            **sums.report_card(judged, trained, context.seed),
            "annotators": annotator_agreement(raw, _by_ids(rows, scores), context.seed),
            "overfit_check": overfit_check,
        }
        metrics = sums.metrics(card)
        if measured and card["training_accuracy"] is not None:
            metrics["train_accuracy"] = card["training_accuracy"]
        return ReportCard(card, metrics, mistakes(rows, judged))

    return context.engine.from_main(make)


def has_pairs(rows: Sequence[Ranked]) -> bool:
    """Whether people ranked two answers in any of the rows."""
    return any(row.pairs for row in rows)


def ranked_scores(
    context: StageContext, roles: Roles, rows: Sequence[Ranked]
) -> list[torch.Tensor]:
    """[K] scores of every row, computed by all ranks."""
    engine = context.engine
    mine = engine.share(rows)
    groups = [row.group for row in mine]
    flat = packed_scores(roles, "reward", groups, engine)
    return engine.gather(by_group(mine, flat))


def tables(card: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The card's tables as rows of plain columns, by name."""
    named = [
        *((name, row) for name, rows in card["breakdowns"].items() for row in rows),
        *(
            ("length difference", {**row, "group": f"{row['from']:.0f} to {row['to']:.0f} tokens"})
            for row in card["length"]["by_difference"]
        ),
        *(
            (
                "annotator",
                {"group": row["annotator"], "pairs": row["votes"], "accuracy": row["model"]},
            )
            for row in (card["annotators"] or {"annotators": []})["annotators"]
        ),
    ]
    breakdowns = [
        {
            "breakdown": name,
            "group": row["group"],
            "pairs": row["pairs"],
            "accuracy": row["accuracy"]["value"],
            "accuracy_low": row["accuracy"]["low"],
            "accuracy_high": row["accuracy"]["high"],
        }
        for name, row in named
    ]
    curves = [
        {"temperature": when, **found}
        for when in ("before", "after")
        for found in (card["calibration"][when] or {"curve": []})["curve"]
    ]
    return {"breakdowns": breakdowns, "reliability": curves}


# --- from judgements to numbers ------------------------------------------------------------------


def judged_of(
    rows: Sequence[Ranked], scores: Any, clusters: Clusters,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> Judged:  # fmt: skip
    """The pairs of `rows`, whose completions have the `scores` [N] in this order.

    Prompts that the split keeps on one side are one prompt here.
    """
    numbers: dict[str, int] = {}
    prompts: list[int] = []
    ties: list[tuple[int, int]] = []
    for row in rows:
        number = numbers.setdefault(clusters.of(opening(row.judgement.prompt).id), len(numbers))
        ties += [(len(prompts) + i, len(prompts) + j) for i, j in row.ties]
        prompts += [number] * len(row.group.completions)
    pairs = pair_index(rows)
    return Judged(
        scores=np.asarray(scores, dtype=float),
        lengths=np.array([float(len(ids)) for row in rows for ids in row.group.completions]),
        prompts=np.array(prompts),
        better=pairs.better.numpy(),
        worse=pairs.worse.numpy(),
        weights=pairs.weight.double().numpy(),
        labels=pairs.label.double().numpy(),
        ties=np.array(ties, dtype=np.int64).reshape(-1, 2),
        groups=groups or {},
    )


def _votes(folder: Path, rows: Sequence[Ranked]) -> list[Judgement]:
    """What people said of the prompts of `rows`, before anything was aggregated."""
    prompts: set[Prompt] = {row.judgement.prompt for row in rows}
    return [judgement for judgement in read_judgements(folder) if judgement.prompt in prompts]


def _by_ids(rows: Sequence[Ranked], scores: Any) -> dict[tuple[str, str], float]:
    """Scores by the ids of prompt and response."""
    ids = [(row.judgement.prompt.id, r.id) for row in rows for r in row.judgement.responses]
    return dict(zip(ids, map(float, scores), strict=True))


def _groups(rows: Sequence[Ranked], votes: Sequence[Judgement]) -> dict[str, list[str]]:
    """The group of each pair of `rows`, by what the card breaks accuracy down by."""
    files = _files(rows, votes)
    pairs = [(row, file, pair) for row, file in zip(rows, files, strict=True) for pair in row.pairs]
    return {
        "source": [file for _, file, _ in pairs],
        "answers": [f"{len(row.group.completions)} answers" for row, _, _ in pairs],
        "criterion": [row.judgement.criterion for row, _, _ in pairs],
        "clarity": _clarity([(row, pair) for row, _, pair in pairs]),
    }


def _files(rows: Sequence[Ranked], votes: Sequence[Judgement]) -> list[str]:
    """The file that each row came from; of an aggregate, the one that all its votes came from."""
    by_item: dict[str, set[str]] = {}
    if any(row.judgement.source is None for row in rows):
        for vote in votes:
            if vote.source is not None:
                by_item.setdefault(vote.item_id, set()).add(_name(vote.source.file))
    found: list[str] = []
    for row in rows:
        source = row.judgement.source
        names = {_name(source.file)} if source else by_item.get(row.judgement.item_id, set())
        found.append(names.pop() if len(names) == 1 else "several files" if names else "unknown")
    return found


def _name(file: str) -> str:
    return file.replace("\\", "/").rpartition("/")[2]


def _clarity(pairs: Sequence[tuple[Ranked, tuple[int, int]]]) -> list[str]:
    """How clear people's preference was: their stated strength, else the difference of ratings,
    else the probability that several votes gave it."""
    strengths = [row.judgement.strength for row, _ in pairs]
    if any(strength is not None for strength in strengths):
        return classes_of(strengths, "strength")
    gaps = [row.gap(*pair) or None for row, pair in pairs]
    if any(gap is not None for gap in gaps):
        return classes_of(gaps, "rating gap")
    return classes_of([row.label(better) for row, (better, _) in pairs], "probability")


# --- mistakes ------------------------------------------------------------------------------------


def mistakes(rows: Sequence[Ranked], judged: Judged) -> list[dict[str, Any]]:
    """The pairs in which the rejected answer scores furthest above the chosen one, each once."""
    texts = [(row.judgement, response) for row in rows for response in row.judgement.responses]
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for i in np.argsort(judged.margins, kind="stable"):
        if judged.margins[i] >= 0 or len(found) == WORST_KEPT:
            break
        better, worse = int(judged.better[i]), int(judged.worse[i])
        judgement, chosen = texts[better]
        rejected = texts[worse][1]
        key = judgement.prompt.text, chosen.text, rejected.text
        source = judgement.source
        found.setdefault(
            key,
            {
                "prompt": key[0],
                "chosen": key[1],
                "rejected": key[2],
                "chosen_score": float(judged.scores[better]),
                "rejected_score": float(judged.scores[worse]),
                "annotator": judgement.annotator,
                "source": f"{_name(source.file)}, row {source.row}" if source else None,
            },
        )
    return list(found.values())


def _store(folder: Path, temperature: float) -> None:
    dataclasses.replace(Scoring.load(folder), temperature=temperature).save(folder)
