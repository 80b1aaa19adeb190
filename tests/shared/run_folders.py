"""A run folder made by hand, for tests of what reads one: no model is trained for it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from preference_data.records import Judgement, Prompt, Response
from reward_models.annotator_agreement import annotator_agreement
from reward_models.report_card import Judged
from reward_models.report_card import report_card as make_card

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> & so on"


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_object(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


EVALUATION = {
    "evaluate/gold/win_rate/ppo_vs_sft": 0.91,
    "evaluate/gold/win_rate/ppo_vs_sft_low": 0.88,
    "evaluate/gold/win_rate/ppo_vs_sft_high": 0.94,
    "evaluate/reward/win_rate/dpo_vs_sft": 0.52,
    "evaluate/reward/win_rate/dpo_vs_sft_low": 0.45,
    "evaluate/reward/win_rate/dpo_vs_sft_high": 0.59,
    "evaluate/reward/win_rate/ppo_vs_sft": 0.31,
    "evaluate/reward/win_rate/ppo_vs_sft_low": 0.25,
    "evaluate/reward/win_rate/ppo_vs_sft_high": 0.37,
    "evaluate/gold/score/sft": 0.12,
    "evaluate/gold/score/ppo": 1.48,
    "evaluate/kl/ppo": 7.31,
    "evaluate/length/sft": 18.2,
    "evaluate/length/ppo": 22.9,
    "evaluate/eos_rate/ppo": 0.995,
}


INPUTS = {
    "sft": ["base", "data.labels"],
    "reward": ["base", "sft", "data.labels"],
    "dpo": ["base", "sft", "data.labels"],
    "ppo": ["base", "sft", "reward", "data.labels"],
    "evaluate": ["base", "sft", "ppo", "dpo", "reward", "data.labels"],
}


def make_run(folder: Path, prompt: str = "Tell me about rivers.") -> Path:
    """A finished run of five steps, in the form that the pipeline writes it."""
    steps = {
        "sft": ("sft", {"train/loss": 1.83}, 40.2),
        "reward": ("reward", {"reward/accuracy": 0.86, "reward/ece": 0.031}, 61.0),
        "dpo": ("dpo", {"dpo/accuracy": 0.71, "dpo/margin": 0.42}, 75.0),
        "ppo": ("ppo", {"objective/kl": 7.3, "objective/score": 2.1}, 312.4),
        "evaluate": ("evaluate", EVALUATION, 22.0),
    }
    settings: dict[str, Any] = {name: {"kind": kind} for name, (kind, _, _) in steps.items()}
    settings["evaluate"] |= {"baseline": "sft", "policies": ["sft", "ppo"], "judges": ["gold"]}
    write_object(
        folder / "run.json",
        {
            "name": "rivers",
            "command": "align run configs/rivers.yaml seed=3",
            "config": {
                "name": "rivers",
                "seed": 3,
                "base": {"model": "builtin:tiny"},
                "data": {"labels": {"path": "labels.csv"}},
                "steps": settings,
            },
        },
    )
    rows = {"in": 1010, "out": 1000, "quarantined": 10}
    results = {}
    for name, (kind, metrics, seconds) in steps.items():
        record = {"name": name, "kind": kind, "seconds": seconds, "rows": rows, "metrics": metrics}
        versions = {"torch": "2.13.0", "transformers": "5.23.0"}
        inputs = dict.fromkeys(INPUTS[name], "0123456789abcdef")
        record |= {"format": 2, "versions": versions, "inputs": inputs}
        write_object(folder / name / "artifact.json", record)
        results[name] = record | {"cached": name == "sft"}
    for name, kind in (("base", "base"), ("data/labels", "data")):
        made = {"kind": kind, "seconds": 1.2, "rows": None if kind == "base" else rows}
        write_object(folder / name / "artifact.json", made)
    write_object(folder / "summary.json", {"name": "rivers", "seconds": 512.0, "steps": results})
    write_histories(folder)
    write_samples(folder, prompt)
    write_object(
        folder / "data" / "labels" / "import.json",
        {
            "rows_in": 2431,
            "rows_out": 2400,
            "rows_quarantined": 31,
            "by_reason": {"empty answer": 20, "same answers": 11},
            "by_label": {"A": 1201, "B": 1100, "tie": 99},
            "by_annotator": {f"annotator-{i}": 100 + i for i in range(20)},
            "source": "labels.csv",
            "format": "pairs",
            "notes": ["31 rows name no annotator."],
        },
    )
    write_judgements(folder / "data" / "labels")
    return folder


def write_histories(folder: Path) -> None:
    def log(name: str, count: int, metrics: Any) -> None:
        start = 1_790_000_000.0
        lines = [{"step": i, "time": start + i, **metrics(i / count)} for i in range(1, count + 1)]
        write_lines(folder / name / "metrics.jsonl", lines)

    log("sft", 40, lambda x: {"train/loss": 1.8 + 2 * math.exp(-4 * x), "train/grad_norm": 1.0})
    log("reward", 40, lambda x: {"train/loss": 0.7 - 0.3 * x, "reward/accuracy": 0.5 + 0.36 * x})
    log(
        "dpo",
        40,
        lambda x: {
            "train/loss": 0.69 - 0.2 * x,
            "dpo/margin": x,
            "dpo/chosen_reward": 0.2 * x,
            "dpo/rejected_reward": -0.8 * x,
        },
    )
    log(
        "ppo",
        100,
        lambda x: {
            "objective/score": 2.1 * x + 0.2 * math.sin(40 * x),
            "objective/reward": 1.7 * x,
            "objective/kl": 7.3 * x,
            "objective/entropy": 2 - x,
            "response/length": 18 + 5 * x,
            "response/eos_rate": 0.9 + 0.09 * x,
            "response/distinct_2": 0.8 - 0.2 * x,
            "policy/clip_fraction": 0.12 - 0.03 * x,
            "value/clip_fraction": 0.05,
            "value/explained_variance": None,
            "policy/approx_kl": 0.01,
        },
    )


def write_judgements(folder: Path, count: int = 30, who: str = "ann") -> None:
    """`count` prompts, each judged by two annotators of one mind: the longer answer is better."""
    rows = [
        Judgement(
            Prompt.from_text(f"Where does river {i} end?"),
            (Response.from_text("In the sea, after a long way."), Response.from_text(f"Sea {i}.")),
            (1, 2),
            name,
        ).to_json()
        for i in range(count)
        for name in (who, "bob")
    ]
    write_lines(folder / "judgements.jsonl", rows)


def write_samples(folder: Path, prompt: str) -> None:
    answers = []
    for i in range(20):
        gain = (i - 4) / 10  # -0.4 … 1.5: four lower, one equal, fifteen higher
        text = f"{prompt} ({i})"
        answers += [
            {"prompt": text, "policy": "ppo", "completion": f"after {i}", "gold": gain},
            {"prompt": text, "policy": "sft", "completion": f"before {i}", "gold": 0.0},
        ]
    write_lines(folder / "evaluate" / "samples.jsonl", answers)
    pair = {"chosen": "It flows.", "rejected": "No.", "chosen_score": -1.5, "rejected_score": 2.25}
    write_lines(folder / "reward" / "samples.jsonl", [{"prompt": prompt, **pair}])
    write_object(folder / "reward" / "report_card.json", report_card())
    sample = {"prompt": prompt, "completion": "Water.", "score": 1.0, "kl": 2.0, "length": 3}
    write_lines(folder / "ppo" / "samples.jsonl", [{"step": s, **sample} for s in (1, 50, 100)])


def report_card(who: str = "ann") -> dict[str, Any]:
    """The card of 4 pairs: margins 1, 2, -1, 3, one tie, and votes on the first by two people."""
    judged = Judged(
        scores=np.array([1.0, 0, 2, 0, -1, 0, 3, 0]),
        lengths=np.array([9.0, 3, 4, 8, 5, 5, 6, 1]),
        prompts=np.repeat(np.arange(4), 2),
        better=np.arange(0, 8, 2),
        worse=np.arange(1, 8, 2),
        weights=np.ones(4),
        labels=np.ones(4),
        ties=np.array([[0, 2]]),
        groups={},
    )
    prompt, one, other = Prompt.from_text("p"), Response.from_text("a"), Response.from_text("b")
    votes = [Judgement(prompt, (one, other), (1, 2), name) for name in (who, "bob")]
    scores = {(prompt.id, one.id): 1.0, (prompt.id, other.id): 0.0}
    return {
        "side": "held-out",
        **make_card(judged, judged, seed=0),
        "annotators": annotator_agreement(votes, scores, seed=0),
        "overfit_check": {"pairs": 64, "steps": 200, "accuracy": 0.75},
    }
