"""Training steps on HH pairs: packed batches against TRL's own trainers, in turns.

    ALIGN_TEST_DATA=FOLDER python tests/benchmarks/packed_vs_trl.py --kind reward --model 14m --lora

Both train the same Llama-shaped model with random weights on the same rows in the same order, each
in a process of its own, one after the other, `--repeats` times. Printed are the medians of a step's
seconds and of the whole run's (both see the same rows in all, not in the same steps), their ratios,
the tokens that each computes, and the peak of memory above what the process held before its first
step. TRL runs in float32 without gradient checkpointing, with its own padding
and, with `--grouped`, with rows of similar length together. `--kind ranking` gives TRL all six
pairs of rankings of four (Fine-grained RLHF) where ours takes the rankings.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

MODELS = {
    "14m": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 9},
    "60m": {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12},
}
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 8192}
MAX_LENGTH = 1024
WARM_UP = 1
"""Steps that are not counted."""


def judgements(kind: str) -> list[Any]:
    from preference_data import read_preferences

    data = Path(os.environ["ALIGN_TEST_DATA"])
    if kind == "ranking":
        from dataclasses import replace

        pairs = read_preferences(data / "fine-grained-rlhf" / "dev_feedback.json.gz")
        return [replace(row, ranks=row.ranks) for row in _rankings(pairs)]
    return read_preferences(data / "hh-rlhf" / "helpful-base" / "test.jsonl.gz")


def _rankings(pairs: list[Any]) -> list[Any]:
    """One judgement of four answers for each prompt, ranked by the pairs each answer won."""
    from preference_data.records import Judgement

    groups: dict[str, list[Any]] = {}
    for pair in pairs:
        groups.setdefault(pair.group or pair.prompt.id, []).append(pair)
    found = []
    for rows in groups.values():
        wins: dict[Any, int] = {}
        for row in rows:
            for response, rank in zip(row.responses, row.ranks, strict=True):
                wins[response] = wins.get(response, 0) + (rank == 1)
        order = sorted(set(wins.values()), reverse=True)
        ranks = tuple(order.index(count) + 1 for count in wins.values())
        if len(set(ranks)) > 1:
            found.append(Judgement(rows[0].prompt, tuple(wins), ranks))
    return found


def build(folder: Path, model: str, kind: str) -> None:
    from align.base import build_tiny
    from align.config import Base

    texts = [m.content for row in judgements(kind)[:600] for m in row.prompt.messages]
    build_tiny(folder, Base(architecture={**MODELS[model], **HEADS}), texts, seed=0)


# --- ours ----------------------------------------------------------------------------------------


def ours(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import torch

    from align.base import load_base, load_renderer
    from align.config import Base, DPOTrain, Lora, RewardTrain
    from align.engine import Engine
    from align.rankings import Ranked, fit_rankings
    from align.roles import Roles
    from align.stages import dpo, reward
    from preference_data.batches import Group
    from reward_models.scalar_head import ScalarHead

    torch.manual_seed(0)
    engine, renderer = Engine(), load_renderer(str(folder))
    base = load_base(str(folder), Base(), engine.device)
    roles = Roles(base, renderer, Lora(r=16, alpha=32) if arguments.lora else None, str(folder))
    rows = []
    for judgement in _rows(arguments):
        rendered = [renderer.render(judgement.prompt, r) for r in judgement.responses]
        group = Group(rendered[0].prompt, tuple(row.completion for row in rendered))
        places = combinations(sorted(range(len(rendered)), key=lambda i: judgement.ranks[i]), 2)
        pairs = tuple((a, b) for a, b in places if judgement.ranks[a] < judgement.ranks[b])
        rows.append(Ranked(judgement, group, pairs))
    clock = Clock()
    settings = {
        "train_batch_size": arguments.pairs, "max_steps": arguments.steps + WARM_UP,
        "logging_steps": 1, "max_length": MAX_LENGTH,
    }  # fmt: skip
    is_dpo = arguments.kind == "dpo"
    train: Any = (DPOTrain if is_dpo else RewardTrain)(**settings)
    context: Any = SimpleNamespace(
        step=SimpleNamespace(train=train), engine=engine, seed=0, tracker=clock
    )
    if is_dpo:
        roles.add("policy", fresh=True, trainable=True)
        clock.start()  # the reference pass counts
        roles.eval()
        reference = dpo._sums(context, roles, rows)
        fit_rankings(
            context, roles, "policy", rows,
            lambda module, batch, pairs, found: dpo._loss(
                train, module, batch, pairs, torch.cat([reference[i] for i in found])
            ),
        )  # fmt: skip
    else:
        roles.add("reward", fresh=True, trainable=True, head=ScalarHead(base.config.hidden_size))
        clock.start()
        fit_rankings(
            context, roles, "reward", rows,
            lambda module, batch, pairs, found: reward._loss(context, module, batch, pairs),
        )  # fmt: skip
    return clock.result(sum(len(row.group) for row in rows[: arguments.pairs]))


# --- TRL -----------------------------------------------------------------------------------------


def trl(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import torch
    import transformers
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

    clock = Clock()

    class Times(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.log(0, {})

    torch.manual_seed(0)
    is_dpo = arguments.kind == "dpo"
    rows = []
    for judgement in _rows(arguments):
        prompt = [message.to_json() for message in judgement.prompt.messages]
        for first, second in combinations(range(len(judgement.responses)), 2):
            a, b = judgement.ranks[first], judgement.ranks[second]
            if a == b:
                continue
            best, worst = (first, second) if a < b else (second, first)
            chosen, rejected = (
                [message.to_json() for message in judgement.responses[i].messages]
                for i in (best, worst)
            )
            rows.append(
                {"prompt": prompt, "chosen": chosen, "rejected": rejected}
                if is_dpo
                else {"chosen": prompt + chosen, "rejected": prompt + rejected}
            )
    batch = arguments.pairs * (6 if arguments.kind == "ranking" else 1)
    config: Any = (DPOConfig if is_dpo else RewardConfig)(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=batch,
        max_steps=arguments.steps + WARM_UP, max_length=MAX_LENGTH, bf16=False,
        gradient_checkpointing=False, report_to="none", save_strategy="no", use_cpu=True,
        disable_tqdm=True, logging_strategy="no", seed=0,
        train_sampling_strategy="group_by_length" if arguments.grouped else "random",
    )  # fmt: skip
    kind = "CAUSAL_LM" if is_dpo else "SEQ_CLS"
    loader = (
        transformers.AutoModelForCausalLM
        if is_dpo
        else (transformers.AutoModelForSequenceClassification)
    )
    model = loader.from_pretrained(
        folder, dtype=torch.float32, **({} if is_dpo else {"num_labels": 1})
    )
    adapter = LoraConfig(
        r=16, lora_alpha=32, target_modules="all-linear", task_type=kind,
        modules_to_save=None if is_dpo else ["score"],
    ) if arguments.lora else None  # fmt: skip
    trainer: Any = (DPOTrainer if is_dpo else RewardTrainer)(
        model=model, args=config, train_dataset=Dataset.from_list(rows), peft_config=adapter,
        processing_class=AutoTokenizer.from_pretrained(folder), callbacks=[Times()],
    )  # fmt: skip
    lengths = [tuple(map(len, _id_lists(row))) for row in trainer.train_dataset]
    trainer.train()
    first = lengths[:batch]
    return clock.result(len(first) * 2 * max(max(pair) for pair in first))


def _id_lists(row: dict[str, Any]) -> list[list[int]]:
    if "prompt_ids" in row:
        return [row["prompt_ids"] + row["chosen_ids"], row["prompt_ids"] + row["rejected_ids"]]
    return [row[name] for name in row if name.endswith("ids")][:2]


# --- measuring -----------------------------------------------------------------------------------


class Clock:
    """Times of the steps' ends; a tracker to our loop, a callback's helper to TRL's."""

    def __init__(self) -> None:
        self._ends: list[float] = []
        self._memory = 0.0

    def start(self) -> None:
        self._memory = _peak()
        self._ends = [time.monotonic()]

    def log(self, number: int, metrics: dict[str, float]) -> None:
        self._ends.append(time.monotonic())

    def result(self, tokens: int) -> dict[str, Any]:
        seconds = [end - begin for begin, end in zip(self._ends, self._ends[1:], strict=False)]
        return {
            "seconds": seconds[WARM_UP:], "first": seconds[0], "tokens": tokens,
            "megabytes": _peak() - self._memory,
        }  # fmt: skip


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _rows(arguments: argparse.Namespace) -> list[Any]:
    """Short enough for both, and as many as the steps need."""
    found = [
        row
        for row in judgements(arguments.kind)
        if sum(len(m.content) for m in row.prompt.messages) < 2500
        and max(len(r.text) for r in row.responses) < 1500
    ]
    return found[: arguments.pairs * (arguments.steps + WARM_UP)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=["reward", "dpo", "ranking"], default="reward")
    parser.add_argument("--model", choices=MODELS, default="14m")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--grouped", action="store_true")
    parser.add_argument("--pairs", type=int, default=8, help="or rankings, of a step")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=["ours", "trl"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        found = (ours if arguments.only == "ours" else trl)(arguments, arguments.folder)
        print("RESULT " + json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder), arguments.model, arguments.kind)
        results: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": []}
        for _ in range(arguments.repeats):
            for name, found in results.items():
                command = [sys.executable, __file__, *sys.argv[1:], "--only", name]
                done = subprocess.run(
                    [*command, "--folder", folder], capture_output=True, text=True, check=False
                )
                line = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
                if not line:
                    sys.exit(f"{name} failed: {done.stderr[-2000:]}")
                found.append(json.loads(line[0].removeprefix("RESULT ")))
    report(arguments, results)


def report(arguments: argparse.Namespace, results: dict[str, list[dict[str, Any]]]) -> None:
    training = "LoRA" if arguments.lora else "full"
    print(f"{arguments.kind}, {arguments.model}, {training}, {arguments.pairs} a step")
    medians, totals = {}, {}
    for name, found in results.items():
        seconds = [second for one in found for second in one["seconds"]]
        medians[name] = statistics.median(seconds)
        totals[name] = statistics.median([one["first"] + sum(one["seconds"]) for one in found])
        print(
            f"  {name:5} {totals[name]:7.2f} s in all, {medians[name]:.3f} s a step "
            f"({min(seconds):.3f} to {max(seconds):.3f}), "
            f"first {statistics.median([one['first'] for one in found]):.2f} s, "
            f"{found[0]['tokens']:,} tokens in the first, "
            f"{statistics.median([one['megabytes'] for one in found]):,.0f} MB more at the peak"
        )
    memory = [statistics.median([one["megabytes"] for one in results[n]]) for n in ("ours", "trl")]
    print(
        f"  {medians['trl'] / medians['ours']:.1f} times TRL's speed by the step, "
        f"{totals['trl'] / totals['ours']:.1f} times in all, "
        f"{memory[0] / memory[1]:.2f} of its memory"
    )


if __name__ == "__main__":
    main()
