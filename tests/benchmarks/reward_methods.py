"""Ways to train a reward model, where the preference behind the labels is known.

    python tests/benchmarks/reward_methods.py --work FOLDER [--seeds N] [--only NAME,…]

One base is pretrained on the built-in world's text. For each seed, simulated annotators judge new
answers, a reward model is trained from them in each way, and all are judged by gold on pairs of
other prompts that gold does not tie. What is compared, each with its paired difference to the first
of its group over the same pairs and seeds:

- rankings of four against their six pairs, by tokens computed: the two see the same judgements;
- ties modelled, halved and dropped;
- every vote by itself, the majority and Dawid-Skene's soft labels, for the same number of steps:
  five of eight annotators judge each pair, two of whom seldom look.

What is done is not done again. Seeds are of data and training at once; intervals are over prompts.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from align.config import build_config
from align.pipeline import Pipeline
from preference_data import Judgement, Prompt, Response
from preference_data.synthetic import ANNOTATORS, Annotator, gold_score, labels
from reward_models import RewardModel
from reward_models.calibration import clustered_means, hits_of

ITEMS, HELD_OUT = 1400, 400
CROWD = (
    *ANNOTATORS,
    Annotator("gus", noise=0.8, first_bonus=0.5, careless=0.8),
    Annotator("hana", noise=0.8, first_bonus=0.2, careless=0.9),
)
VOTES = 5
TRAIN: dict[str, Any] = {"train_batch_size": 8, "learning_rate": 1e-3, "logging_steps": 50}
EPOCHS = 2.0
STEPS_OF_VOTES = 200
PROMPTS = "prompts"
GROUPS = {
    "rankings": ("bradley_terry", "plackett_luce", "six_pairs"),
    "ties": ("davidson", "rao_kupper", "half", "drop"),
    "votes": ("every_vote", "majority", "dawid_skene"),
}


# --- what is judged -------------------------------------------------------------------------------


def rows_of(seed: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Rows of the world's labels: those to learn from, and those of other prompts."""
    rows = list(labels(seed, ITEMS))
    last = ITEMS - HELD_OUT
    return [r for r in rows if int(r["item"]) < last], [r for r in rows if int(r["item"]) >= last]


def answers_of(row: dict[str, str]) -> list[str]:
    return [row[f"response_{n}"] for n in range(1, 5) if row[f"response_{n}"]]


def judgement(prompt: str, answers: Sequence[str], ranks: Sequence[int], who: str) -> Judgement:
    responses = tuple(Response.from_text(answer) for answer in answers)
    return Judgement(Prompt.from_text(prompt), responses, tuple(ranks), who)


def as_ranked(row: dict[str, str]) -> Judgement:
    answers = answers_of(row)
    ranks = [int(row[f"rank_{n}"]) for n in range(1, len(answers) + 1)]
    return judgement(row["prompt"], answers, ranks, row["annotator"])


def as_pairs(row: dict[str, str]) -> Iterator[Judgement]:
    whole = as_ranked(row)
    for a, b in combinations(range(len(whole.responses)), 2):
        first, second = whole.ranks[a], whole.ranks[b]
        assert first is not None and second is not None
        yield judgement(
            row["prompt"], [answers_of(row)[a], answers_of(row)[b]],
            [1 + (second < first), 1 + (first < second)], row["annotator"],
        )  # fmt: skip


def votes_on(rows: Sequence[dict[str, str]], seed: int) -> Iterator[Judgement]:
    """Judgements of the first two answers of each item, by VOTES of the crowd."""
    rng = random.Random(f"votes {seed}")
    for row in {row["item"]: row for row in rows}.values():
        for judge in rng.sample(CROWD, VOTES):
            shown = rng.sample(answers_of(row)[:2], 2)
            ranks = judge.ranks(row["prompt"], shown, rng)
            yield judgement(row["prompt"], shown, ranks, judge.name)


def gold_pairs(rows: Sequence[dict[str, str]]) -> list[tuple[str, str, str]]:
    """(prompt, better, worse), each once."""
    found: dict[tuple[str, str, str], None] = {}
    for row in rows:
        prompt = row["prompt"]
        scored = [(gold_score(prompt, answer), answer) for answer in answers_of(row)]
        for (gain, one), (other_gain, other) in combinations(sorted(scored, reverse=True), 2):
            if gain > other_gain:
                found[prompt, one, other] = None
    return list(found)


# --- the runs -------------------------------------------------------------------------------------


def base(work: Path) -> Path:
    """The model that all start from: it knows the world's language, and no label."""
    tree = {
        "name": "base", "seed": 17, "output_dir": str(work / "base"), "lora": None,
        "base": {"model": "builtin:tiny"}, "world": {"documents": 6000},
        "data": {"text": {"path": "builtin:text"}},
        "steps": {"pretrain": {"kind": "pretrain", "data": "text", "train": {
            "max_steps": 750, "train_batch_size": 8, "learning_rate": 3.0e-3, "max_length": 128,
            "lr_scheduler_type": "cosine", "logging_steps": 50,
        }}},
    }  # fmt: skip
    Pipeline(build_config(tree)).run()
    return work / "base" / "pretrain" / "model"


def steps(share: float) -> dict[str, Any]:
    """`share`: tokens of the rankings, of those of their pairs."""

    def reward(source: str, **train: Any) -> dict[str, Any]:
        length = {} if "max_steps" in train else {"num_train_epochs": EPOCHS}
        return {"kind": "reward", "data": source, "train": {**TRAIN, **length, **train}}

    drop = {"ties": "drop"}
    six = {"train_batch_size": 48, "num_train_epochs": round(share * EPOCHS, 3)}
    alike = {"max_steps": STEPS_OF_VOTES}
    return {
        "bradley_terry": reward("rankings", **drop),
        "plackett_luce": reward("rankings", loss="plackett_luce"),
        "six_pairs": reward("pairs", **drop, **six),
        **{ties: reward("labels", ties=ties) for ties in GROUPS["ties"]},
        "every_vote": reward("votes", **alike),
        "majority": reward("votes_majority", **alike),
        "dawid_skene": reward("votes_dawid_skene", **alike),
    }


def sources(folder: Path, seed: int) -> dict[str, Any]:
    """The seed's judgements as files, and as the sources of a run."""
    rows, _ = rows_of(seed)
    four = [row for row in rows if len(answers_of(row)) == 4]
    made = {
        "labels": [as_ranked(row) for row in rows],
        "rankings": [as_ranked(row) for row in four],
        "pairs": [pair for row in four for pair in as_pairs(row)],
        "votes": list(votes_on(rows, seed)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, judgements in made.items():
        lines = [json.dumps(one.to_json(), ensure_ascii=False) + "\n" for one in judgements]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    every = {name: _source(folder, name) for name in made}
    for method in ("majority", "dawid_skene"):
        every[f"votes_{method}"] = _source(folder, "votes", aggregate=method)
    return every


def _source(folder: Path, name: str, **more: Any) -> dict[str, Any]:
    path = str(folder / f"{name}.jsonl")
    return {"path": path, "format": "judgements", "test_fraction": 0.0, **more}


def tokens_share(seed: int, model: Path) -> float:
    """Tokens of the rankings of four, of those of their six pairs."""
    from align.base import load_renderer

    renderer = load_renderer(str(model))
    alone = together = 0
    for row in rows_of(seed)[0]:
        one = as_ranked(row)
        if len(one.responses) == 4:
            shown = [renderer.render(one.prompt, response) for response in one.responses]
            prompt, sizes = len(shown[0].prompt), [len(found.completion) for found in shown]
            together += prompt + sum(sizes)
            alone += sum(prompt + a + b for a, b in combinations(sizes, 2))
    return together / alone


def hits(folder: Path, pairs: Sequence[tuple[str, str, str]]) -> Any:
    """[P] 1 where the model prefers what gold does."""
    model = RewardModel.from_pretrained(folder)
    answers = list(dict.fromkeys((p, a) for p, *both in pairs for a in both))
    found = model.score([p for p, _ in answers], [a for _, a in answers])
    score = dict(zip(answers, found, strict=True))
    return hits_of(np.array([score[p, better] - score[p, worse] for p, better, worse in pairs]))


def measured(work: Path, seed: int, model: Path, only: Sequence[str]) -> dict[str, Any]:
    """[P] hits of each way of training, on the seed's held-out pairs."""
    folder = work / f"seed-{seed}"
    wanted = {
        name: step for name, step in steps(tokens_share(seed, model)).items()
        if not only or name in only
    }  # fmt: skip
    used = {step["data"] for step in wanted.values()}
    every = sources(folder / "judgements", seed)
    tree = {
        "name": f"methods-{seed}", "seed": seed, "output_dir": str(folder / "run"),
        "base": {"model": str(model)}, "lora": {"r": 16, "alpha": 32},
        "data": {name: source for name, source in every.items() if name in used}, "steps": wanted,
    }  # fmt: skip
    Pipeline(build_config(tree)).run()
    pairs = gold_pairs(rows_of(seed)[1])
    found = {name: hits(folder / "run" / name, pairs) for name in wanted}
    return {**found, PROMPTS: np.array([f"{seed} {prompt}" for prompt, _, _ in pairs])}


def interval_of(values: Any, prompts: Any) -> tuple[float, float]:
    """95 % bootstrap interval, over prompts, of the mean of values [P]."""
    place = np.unique(prompts, return_inverse=True)[1]
    (found,) = clustered_means(values[:, None], np.ones((len(values), 1)), place, seed=17)
    return found.low, found.high


def show(found: Sequence[dict[str, Any]]) -> None:
    """A line a way: accuracy over all seeds' pairs, and its difference to its group's first."""
    print(f"{'':16} {'pairs':>6}  gold accuracy          difference to the first of its group")
    prompts = np.concatenate([by_way[PROMPTS] for by_way in found])
    for ways in GROUPS.values():
        first: Any = None
        for name in ways:
            if name not in found[0]:
                continue
            own = np.concatenate([by_way[name] for by_way in found])
            low, high = interval_of(own, prompts)
            line = f"{name:16} {len(own):6}  {own.mean():.3f} [{low:.3f}, {high:.3f}]"
            if first is None:
                first = own
            else:
                low, high = interval_of(own - first, prompts)
                line += f"   {(own - first).mean():+.3f} [{low:+.3f}, {high:+.3f}]"
            by_seed = " ".join(f"{by_way[name].mean():.3f}" for by_way in found)
            print(f"{line}   by seed {by_seed}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="", help="ways of training, with commas")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    work = options.work.absolute()
    model = base(work)
    only = [name for name in options.only.split(",") if name]
    show([measured(work, seed, model, only) for seed in range(1, 1 + options.seeds)])


if __name__ == "__main__":
    main()
