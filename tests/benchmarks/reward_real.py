"""Reward models on real human judgements: a small base made here, accuracy on held-out prompts.

    python tests/benchmarks/reward_real.py --data FOLDER --work FOLDER [--only NAME,…] [--table]

The data are those that `ALIGN_TEST_DATA` names. A small Llama is pretrained on the training side's
text of all sources, and a reward model is trained from it for each question. What is done is not
done again, so it can be stopped and started; `--table` only prints what is done. What is compared:

- HH, UKP arguments (whole topics held out), fine-grained RLHF and PandaLM, each beside the answer
  that is longer;
- rankings of four against their six pairs, over the same judgements, by tokens computed;
- ties modelled, halved and dropped;
- on UKP, Dawid-Skene's soft labels against the majority and against every vote by itself, for the
  same number of steps, all judged by the gold label of held-out topics.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from preference_data import Judgement, Prompt, Response, read_preferences
from preference_data.records import Ranks
from reward_models import RewardModel
from reward_models.calibration import expected_calibration_error, hits_of, reward_accuracy

BASE = {
    "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 2048,
}  # fmt: skip
UKP_RANKS: dict[str, Ranks] = {"a1": (1, 2), "a2": (2, 1), "equal": (1, 1)}
HELD_OUT = 0.25
TRAIN: dict[str, Any] = {
    "train_batch_size": 32, "learning_rate": 1e-4, "max_length": 512, "truncation": "left",
    "lr_scheduler_type": "cosine", "logging_steps": 20,
}  # fmt: skip


PRETRAIN = {
    "kind": "pretrain", "data": "everything",
    "train": {
        "num_train_epochs": 1, "train_batch_size": 16, "learning_rate": 3e-3, "max_length": 384,
        "lr_scheduler_type": "cosine", "logging_steps": 50,
    },
}  # fmt: skip


# --- the sources, as judgements -------------------------------------------------------------------


def hh(data: Path) -> Iterator[Judgement]:
    for part in ("helpful", "harmless"):
        yield from read_preferences(data / "hh-rlhf" / f"{part}-base" / "test.jsonl.gz")


def panda(data: Path) -> Iterator[Judgement]:
    yield from read_preferences(data / "pandalm" / "testset-v1.json")


def fine_pairs(data: Path) -> Iterator[Judgement]:
    yield from read_preferences(data / "fine-grained-rlhf" / "dev_feedback.json.gz")


def fine_rankings(data: Path) -> Iterator[Judgement]:
    """The six comparisons of a prompt's four answers as one ranking: by wins, a tie half of one.

    Left out where that order contradicts a comparison, so that both forms say the same.
    """
    by_prompt: dict[str, list[Judgement]] = defaultdict(list)
    for judgement in fine_pairs(data):
        by_prompt[judgement.prompt.id].append(judgement)
    for compared in by_prompt.values():
        wins: dict[Response, float] = defaultdict(float)
        for one in compared:
            for response, result in zip(one.responses, _results(one), strict=True):
                wins[response] += result
        if len(wins) < 4 or any(_contradicts(one, wins) for one in compared):
            continue
        levels = sorted(set(wins.values()), reverse=True)
        yield replace(
            compared[0], responses=tuple(wins), outcome=None, position=None, group=None,
            ranks=tuple(1 + levels.index(count) for count in wins.values()),
        )  # fmt: skip


def _results(one: Judgement) -> tuple[float, float]:
    first, second = one.ranks
    assert first is not None and second is not None
    return (0.5, 0.5) if first == second else (float(first < second), float(second < first))


def _contradicts(one: Judgement, wins: dict[Response, float]) -> bool:
    first, second = (wins[response] for response in one.responses)
    return (first > second) - (first < second) != _results(one)[0] - _results(one)[1]


def ukp_tables(data: Path) -> tuple[dict[str, Any], list[dict[str, str]], list[dict[str, str]]]:
    def rows(name: str) -> list[dict[str, str]]:
        path = data / "ukp-convincing-arguments" / f"{name}.csv.gz"
        with gzip.open(path, "rt", newline="") as file:
            return list(csv.DictReader(file))

    arguments = {row["argument_id"]: row for row in rows("arguments")}
    return arguments, rows("pairs"), rows("annotations")


def ukp(data: Path, gold: bool) -> Iterator[Judgement]:
    """Every vote; or with `gold` the gold label of every pair that has one."""
    arguments, pairs, votes = ukp_tables(data)
    topics = sorted({_topic(row) for row in pairs})
    held_out = topics[: round(HELD_OUT * len(topics))]
    ids = {(row["topic"], row["pair_id"]): (row["arg1_id"], row["arg2_id"]) for row in pairs}
    for row in pairs if gold else votes:
        label = row["gold_label"] if gold else row["value"]
        if label not in UKP_RANKS:
            continue
        one, two = (arguments[name] for name in ids[row["topic"], row["pair_id"]])
        if one["text"] == two["text"]:
            continue
        prompt = Prompt.from_text(f"{one['debate_title']}: {one['stance']}")
        answers = (Response.from_text(one["text"]), Response.from_text(two["text"]))
        yield Judgement(
            prompt, answers, UKP_RANKS[label], None if gold else row["worker"],
            split="test" if _topic(row) in held_out else "train",
        )  # fmt: skip


def _topic(row: dict[str, str]) -> str:
    """Both stances on a question are one topic."""
    return hashlib.sha256(row["topic"].split("_")[0].encode()).hexdigest()


def write(path: Path, judgements: Sequence[Judgement]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for judgement in judgements:
            file.write(json.dumps(judgement.to_json(), ensure_ascii=False) + "\n")


def prepare(data: Path, work: Path) -> None:
    folder = work / "judgements"
    if folder.is_dir():
        return
    rankings = list(fine_rankings(data))
    asked = {ranking.prompt for ranking in rankings}
    found = {
        "hh": list(hh(data)),
        "ukp": list(ukp(data, gold=False)),
        "panda": list(panda(data)),
        "fine": rankings,
        "fine_pairs": [one for one in fine_pairs(data) if one.prompt in asked],
    }
    found["everything"] = [one for name in ("hh", "ukp", "panda", "fine") for one in found[name]]
    folder.mkdir(parents=True)
    for name, judgements in found.items():
        write(folder / f"{name}.jsonl", judgements)


# --- the runs -------------------------------------------------------------------------------------


def _source(work: Path, name: str, **more: Any) -> dict[str, Any]:
    path = str(work / "judgements" / f"{name}.jsonl")
    return {"path": path, "format": "judgements", "test_fraction": HELD_OUT, **more}


def base_tree(work: Path) -> dict[str, Any]:
    """A base made of the training side's text; the rewards' run splits the same prompts alike."""
    return {
        "name": "base", "seed": 17, "output_dir": str(work / "base"), "lora": None,
        "base": {"model": "builtin:tiny", "architecture": BASE},
        "data": {"everything": _source(work, "everything")},
        "steps": {"pretrain": PRETRAIN},
    }  # fmt: skip


def rewards_tree(work: Path, only: Sequence[str]) -> dict[str, Any]:
    sources = {n: _source(work, n) for n in ("hh", "panda", "fine", "fine_pairs", "ukp")}
    for method in ("majority", "dawid_skene"):
        sources[f"ukp_{method}"] = _source(work, "ukp", aggregate=method)
    steps = {name: step for name, step in steps_of(work).items() if name in only or not only}
    used = {step["data"] for step in steps.values()}
    return {
        "name": "rewards", "seed": 17, "output_dir": str(work / "rewards"), "lora": None,
        "base": {"model": str(work / "base" / "pretrain" / "model")},
        "data": {name: source for name, source in sources.items() if name in used},
        "steps": steps,
    }  # fmt: skip


def steps_of(work: Path) -> dict[str, Any]:
    """Every reward model, by what it is called in the tables."""
    forms = {"votes": "ukp", "majority": "ukp_majority", "dawid_skene": "ukp_dawid_skene"}
    rankings: dict[str, Any] = {"num_train_epochs": 2, "train_batch_size": 8}
    pairs = {
        "num_train_epochs": round(2 * tokens_share(work), 3), "train_batch_size": 48,
        "ties": "drop",
    }  # fmt: skip
    return {
        "hh": _reward("hh"),
        **{f"ukp_{form}": _reward(source, max_steps=120) for form, source in forms.items()},
        **{
            f"panda_{ties}": _reward("panda", ties=ties)
            for ties in ("drop", "half", "davidson", "rao_kupper")
        },
        **{
            f"fine_{ties}": _reward("fine", **rankings, ties=ties)
            for ties in ("drop", "half", "davidson")
        },
        "fine_plackett_luce": _reward("fine", **rankings, loss="plackett_luce"),
        "fine_pairs": _reward("fine_pairs", **pairs),
    }


def _reward(source: str, **train: Any) -> dict[str, Any]:
    return {"kind": "reward", "data": source, "train": {**TRAIN, **train}}


def tokens_share(work: Path) -> float:
    """Tokens of the rankings of four, of those of their pairs."""
    from align.base import load_renderer

    renderer = load_renderer(str(work / "base" / "pretrain" / "model"))
    alone = together = 0
    for judgement in read_preferences(work / "judgements" / "fine.jsonl"):
        rows = [renderer.render(judgement.prompt, one) for one in judgement.responses]
        sizes = [len(row.completion) for row in rows]
        together += len(rows[0].prompt) + sum(sizes)
        alone += sum(len(rows[0].prompt) + a + b for a, b in combinations(sizes, 2))
    return together / alone


def run(work: Path, only: Sequence[str]) -> None:
    """Makes the base and trains the reward models, those that are not there yet."""
    from align.config import build_config
    from align.pipeline import Pipeline

    Pipeline(build_config(base_tree(work))).run()
    Pipeline(build_config(rewards_tree(work, only))).run()


# --- the tables -----------------------------------------------------------------------------------


class Row(NamedTuple):
    """What a table says of a reward model."""

    name: str
    pairs: int
    accuracy: tuple[float, float, float]
    """with its 95 % interval"""
    longer: float
    """accuracy of the longer (or the shorter) answer"""
    ece: float

    def __str__(self) -> str:
        value, low, high = self.accuracy
        return (
            f"{self.name:26} {self.pairs:6}  {value:.3f} [{low:.3f}, {high:.3f}]  "
            f"{self.longer:.3f}  {self.ece:.3f}"
        )


def held_out(work: Path, name: str) -> Row | None:
    """As the step itself reports it, on the held-out prompts."""
    path = work / "rewards" / name / "artifact.json"
    if not path.is_file():
        return None
    found = json.loads(path.read_text())["metrics"]
    number = {key.removeprefix("reward/"): value for key, value in found.items()}
    return Row(
        name, int(number["pairs"]),
        (number["accuracy"], number["accuracy_low"], number["accuracy_high"]),
        number["length_baseline"], number["ece"],
    )  # fmt: skip


def against_gold(work: Path, data: Path, name: str) -> Row | None:
    """On the gold labels of UKP's held-out topics."""
    folder = work / "rewards" / name
    if not (folder / "artifact.json").is_file():
        return None
    pairs = [one for one in ukp(data, gold=True) if one.split == "test" and not one.is_tie]
    model = RewardModel.from_pretrained(folder)
    answers = dict.fromkeys((one.prompt, r) for one in pairs for r in one.responses)
    scores = dict(
        zip(answers, model.score([p for p, _ in answers], [r for _, r in answers]), strict=True)
    )
    decided = [(one, *sorted(one.responses, key=_rank_in(one))) for one in pairs]
    gap = np.array([
        scores[one.prompt, better] - scores[one.prompt, worse] for one, better, worse in decided
    ])  # fmt: skip
    longer = np.array([len(better.text) - len(worse.text) for _, better, worse in decided])
    found = reward_accuracy(gap, np.ones(len(gap)), np.arange(len(gap)), seed=17)
    sure = 1 / (1 + np.exp(-gap))
    return Row(
        f"{name}, gold", len(pairs), (found.value, found.low, found.high),
        float(hits_of(longer).mean()), expected_calibration_error(sure, np.ones(len(sure))),
    )  # fmt: skip


def _rank_in(judgement: Judgement) -> Callable[[Response], int]:
    ranks = dict(zip(judgement.responses, judgement.ranks, strict=True))
    return lambda response: ranks[response] or 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", default="", help="names of reward models, with commas")
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    work = options.work.absolute()
    prepare(options.data, work)
    if not options.table:
        run(work, [name for name in options.only.split(",") if name])
    print(f"{'':26} {'pairs':>6}  {'accuracy':22} longer    ece")
    for name in steps_of(work):
        if row := held_out(work, name):
            print(row)
    for name in ("ukp_votes", "ukp_majority", "ukp_dawid_skene"):
        if row := against_gold(work, options.data, name):
            print(row)


if __name__ == "__main__":
    main()
