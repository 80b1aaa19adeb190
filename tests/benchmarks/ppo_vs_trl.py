"""A PPO iteration of ours against TRL 1.12's `trl.experimental.ppo.PPOTrainer`, its last one.

    ALIGN_TEST_DATA=… python tests/benchmarks/ppo_vs_trl.py --trl FOLDER [--table]

FOLDER holds TRL 1.12.0 (`pip install --no-deps --target FOLDER trl==1.12.0`): it runs beside the
libraries of this environment. Both sides take the same prompts (HH, at most 128 tokens), the same
random model (a Llama of 14 M parameters by default), responses of one fixed length, the same number
of epochs, minibatches and rows; in turns, each in a process of its own. TRL holds a policy, a
reward model and a value model (and, in full fine-tuning, a reference); ours, adapters on one base,
or with `--value trunk` a value head on the policy's own trunk.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from packed_work import Work, build, rows_of

PROMPT_TOKENS = 128
WARM_UP = 1
MINIBATCHES = 1
FORWARD_ROWS = 32
"""Rows of one of TRL's forward passes in the rollout; as many as it trains on at a time."""
COMBINATIONS = [
    {"length": length, "epochs": epochs, "lora": lora, "value": value}
    for lora, value in ((True, "adapter"), (True, "trunk"), (False, "adapter"))
    for length in (64, 128)
    for epochs in (2, 4)
]


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def prompts_of(folder: Path, count: int) -> list[tuple[int, ...]]:
    """`count` different prompts of at most PROMPT_TOKENS."""
    from align.base import load_renderer
    from preference_data.rendering import RenderingError

    renderer = load_renderer(str(folder))
    found: dict[tuple[int, ...], None] = {}
    for row in rows_of(Work("reward", "14m", True, 32, 40)):
        try:
            ids = renderer.prompt(row.prompt)
        except RenderingError:
            continue
        if len(ids) <= PROMPT_TOKENS:
            found[ids] = None
    return list(found)[:count]


def ours(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import torch

    from align.base import load_base, load_renderer
    from align.config import Base, Lora, PPOTrain
    from align.engine import Engine
    from align.policy_gradient import Optimiser
    from align.roles import Roles
    from align.rollout import Roller, packed_scores
    from reward_models.scalar_head import ScalarHead
    from reward_models.scoring import Scores

    torch.manual_seed(0)
    engine = Engine()
    base = load_base(str(folder), Base(model=str(folder)), engine.device)
    lora = Lora() if arguments.lora else None
    roles = Roles(base, load_renderer(str(folder)), lora, str(folder)).to(engine.device)
    start = peak_megabytes()
    width = base.config.hidden_size
    roles.add("reference")
    roles.add("policy", fresh=True, trainable=True)
    roles.add("reward", fresh=True, head=ScalarHead(width))
    head = ScalarHead(width, bias=True)
    if arguments.value == "trunk":
        roles.add_head("value", "policy", head)
    else:
        roles.add("value", fresh=True, trainable=True, head=head)
    roles.eval()
    never_ends(roles.renderer.tokenizer)
    train = PPOTrain(
        iterations=arguments.iterations + WARM_UP, prompts_per_iteration=arguments.batch,
        epochs=arguments.epochs, minibatches=MINIBATCHES, max_new_tokens=arguments.length,
        value=arguments.value,
    )  # fmt: skip
    clock = {"score": 0.0}

    def scorer(groups: Any) -> Scores:
        begin = time.perf_counter()
        scores = packed_scores(roles, "reward", groups, engine, train.tokens_per_forward)
        clock["score"] += time.perf_counter() - begin
        return Scores(scores)

    roller = Roller(roles, scorer, engine, 1.0, train.tokens_per_forward)
    optimiser = Optimiser(engine, roles, roller, train, seed=0)
    prompts = prompts_of(folder, arguments.batch * train.iterations)
    found = []
    for iteration in range(1, train.iterations + 1):
        clock["score"] = 0.0
        rows = [prompts[(iteration * arguments.batch + i) % len(prompts)]
                for i in range(arguments.batch)]  # fmt: skip
        metrics = optimiser.step(iteration, rows)
        found.append({
            "rollout": metrics["time/rollout"], "score": clock["score"],
            "update": metrics["time/update"],
            "seconds": metrics["time/rollout"] + metrics["time/update"],
        })  # fmt: skip
    return {"iterations": found[WARM_UP:], "megabytes": peak_megabytes() - start}


def never_ends(tokenizer: Any) -> None:
    """The unused pad token ends a response: a model with random weights draws it once in 8,192."""
    tokenizer.eos_token = tokenizer.pad_token


def trl(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    sys.path.insert(0, str(arguments.trl))
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        TrainerCallback,
    )
    from trl.experimental.ppo import PPOConfig, PPOTrainer
    from trl.experimental.ppo import ppo_trainer as module

    torch.manual_seed(0)
    spent = {"rollout": 0.0}
    ends: list[tuple[float, float]] = []
    generate = module.batch_generation

    def timed(*given: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        found = generate(*given, **named)
        spent["rollout"] += time.perf_counter() - begin
        return found

    module.batch_generation = timed

    class Ends(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            ends.append((time.perf_counter(), 0.0))

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append((time.perf_counter(), spent["rollout"]))

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    prompts = prompts_of(folder, arguments.batch * (arguments.iterations + WARM_UP))
    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    start = peak_megabytes()
    scorers = [
        AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=1, dtype=torch.float32
        )
        for _ in range(2)
    ]
    config = PPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=arguments.batch,
        gradient_accumulation_steps=1, num_mini_batches=MINIBATCHES,
        num_ppo_epochs=arguments.epochs, response_length=arguments.length, temperature=1.0,
        total_episodes=arguments.batch * (arguments.iterations + WARM_UP),
        local_rollout_forward_batch_size=FORWARD_ROWS, num_sample_generations=0,
        missing_eos_penalty=1.0, report_to="none", save_strategy="no", use_cpu=True, bf16=False,
        gradient_checkpointing=False, disable_tqdm=True, logging_strategy="no", seed=0,
    )  # fmt: skip
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = PPOTrainer(
        args=config, processing_class=tokenizer, model=policy,
        ref_model=None if arguments.lora
        else AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        reward_model=scorers[0], value_model=scorers[1],
        train_dataset=Dataset.from_list([{"input_ids": list(ids)} for ids in prompts]),
        eval_dataset=Dataset.from_list([{"input_ids": list(prompts[0])}] * 8),
        peft_config=lora if arguments.lora else None, callbacks=[Ends()],
    )  # fmt: skip
    trainer.train()
    found = []
    for (begin, before), (end, after) in pairwise(ends):
        rollout = after - before
        found.append({"rollout": rollout, "update": end - begin - rollout, "seconds": end - begin})
    return {"iterations": found[WARM_UP:], "megabytes": peak_megabytes() - start}


def measure(arguments: argparse.Namespace, folder: str) -> dict[str, dict[str, float]]:
    """Medians by side, in turns."""
    sides: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": []}
    for _ in range(arguments.repeats):
        for name, found in sides.items():
            command = [sys.executable, __file__, "--only", name, "--folder", folder]
            for option in ("trl", "length", "epochs", "value", "batch", "iterations", "model"):
                command += [f"--{option}", str(getattr(arguments, option))]
            command += ["--lora"] if arguments.lora else []
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            line = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
            if not line:
                sys.exit(f"{name} failed: {done.stderr[-3000:]}")
            found.append(json.loads(line[0].removeprefix("RESULT ")))
    return {
        name: {
            **{
                part: statistics.median([one.get(part, 0.0) for run in runs
                                         for one in run["iterations"]])
                for part in ("seconds", "rollout", "score", "update")
            },
            "megabytes": statistics.median([run["megabytes"] for run in runs]),
        }
        for name, runs in sides.items()
    }  # fmt: skip


def row(arguments: argparse.Namespace, found: dict[str, dict[str, float]]) -> str:
    ours_, trl_ = found["ours"], found["trl"]
    what = "LoRA" if arguments.lora else "full"
    return (
        f"| {what}, {arguments.value} | {arguments.length} | {arguments.epochs} | "
        f"{trl_['seconds']:.1f} ({trl_['rollout']:.1f} + {trl_['update']:.1f}) | "
        f"{ours_['seconds']:.1f} ({ours_['rollout']:.1f}, scoring {ours_['score']:.1f}, + "
        f"{ours_['update']:.1f}) | **{trl_['seconds'] / ours_['seconds']:.1f}** | "
        f"{ours_['megabytes']:.0f} / {trl_['megabytes']:.0f} = "
        f"{ours_['megabytes'] / trl_['megabytes']:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trl", type=Path, required=True, help="folder of TRL 1.12.0")
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--value", choices=["adapter", "trunk"], default="adapter")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--model", default="14m")
    parser.add_argument("--table", action="store_true", help="all combinations")
    parser.add_argument("--only", choices=["ours", "trl"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        found = (ours if arguments.only == "ours" else trl)(arguments, arguments.folder)
        print("RESULT " + json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as folder:
        build(Work("reward", arguments.model, True, 8, 1), Path(folder))
        print(
            "| | length | epochs | TRL s (rollout + rest) | ours s | times | MB: ours / TRL |\n"
            "|---|---|---|---|---|---|---|"
        )
        for combination in COMBINATIONS if arguments.table else [{}]:
            vars(arguments).update(combination)
            print(row(arguments, measure(arguments, folder)), flush=True)


if __name__ == "__main__":
    main()
