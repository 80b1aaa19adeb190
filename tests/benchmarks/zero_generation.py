"""Rollouts under ZeRO-3 against ZeRO-2, on two ranks, in turns.

    torchrun --nproc_per_node 2 tests/benchmarks/zero_generation.py [--lora 0] [--tokens 64]

Both sample the same tokens from a Llama of 7 million parameters and read them under the reference.
ZeRO-3 gathers the trained weights once before; the time of that is in its rollout. Prints a line a
round and the ratio of the medians. Measured on two CPU cores: 1.02 with LoRA, 1.07 in full.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from align.base import build_tiny, load_base, load_renderer
from align.config import Base, Lora
from align.engine import Engine
from align.policy import uniforms
from align.roles import Roles
from align.rollout import Roller
from align.schedules import SCHEDULES
from align.sharded_training import plain_linear
from align.training import ParameterGroup, Training
from reward_models.scoring import Scores

SETTINGS = Path(__file__).parents[2] / "configs" / "deepspeed"
TEXT = "Question: What is the capital of France?\nAnswer:\nThe capital of France is Paris."
ARCHITECTURE = {
    "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6,
    "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 300,
}  # fmt: skip


def build(folder: Path) -> None:
    build_tiny(folder, Base(architecture=dict(ARCHITECTURE)), [TEXT], seed=1)


def prepare(stage: int, lora: bool, folder: Path) -> tuple[Training, Roller]:
    """A policy under the stage, and what samples from it."""
    engine = Engine(deepspeed=str(SETTINGS / f"zero{stage}.json"))
    model = load_base(str(folder), Base(model=str(folder)), engine.device)
    renderer = load_renderer(str(folder))
    roles = Roles(model, renderer, Lora(r=16, alpha=32) if lora else None, str(folder))
    torch.manual_seed(0)
    roles.add("reference")
    roles.add("policy", fresh=True, trainable=True)
    roles.to(engine.device).eval()
    training = engine.training(
        roles, [ParameterGroup(roles.parameters_of("policy"), 1e-4)], total_steps=100,
        schedule=SCHEDULES["constant"](), max_grad_norm=1.0,
    )  # fmt: skip

    def scorer(groups: Any) -> Scores:
        return Scores([0.0] * len(groups))

    return training, Roller(roles, scorer, engine, 1.0, 8192)


def rollout_time(training: Training, roller: Roller, whole: Any, tokens: int, rows: int) -> float:
    """Seconds of a rollout, on the slower rank."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 200, (rows, 24), generator=generator).tolist()
    prompts, draws = [tuple(row) for row in ids], uniforms(0, rows, tokens)
    roller.engine.barrier()
    started = time.monotonic()
    with whole:
        roller.collect(prompts, draws)
    return max(roller.engine.gather([time.monotonic() - started]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lora", type=int, choices=[0, 1], default=1)
    parser.add_argument("--tokens", type=int, default=64, help="of a response")
    parser.add_argument("--rows", type=int, default=16, help="responses of a rollout")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    folder = Path(tempfile.gettempdir()) / f"zero_generation_{os.getppid()}"
    if os.environ.get("RANK", "0") == "0":
        build(folder)
    joined = Engine()
    joined.barrier()
    two, three = (prepare(stage, bool(chosen.lora), folder) for stage in (2, 3))
    times: dict[str, list[float]] = {"ZeRO-2": [], "ZeRO-3": []}
    for number in range(chosen.rounds + 1):
        with plain_linear():
            now = rollout_time(*two, nullcontext(), chosen.tokens, chosen.rows)
        found = {"ZeRO-2": now}
        found["ZeRO-3"] = rollout_time(*three, three[0].whole(), chosen.tokens, chosen.rows)
        if number:  # the first one warms up
            for name, seconds in found.items():
                times[name].append(seconds)
            if joined.is_main:
                print(", ".join(f"{name} {s:.3f} s" for name, s in found.items()), flush=True)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    if joined.is_main:
        kind = "LoRA" if chosen.lora else "full"
        ratio = medians["ZeRO-3"] / medians["ZeRO-2"]
        print(f"{kind}, {joined.world_size} ranks: ZeRO-3 / ZeRO-2 = {ratio:.2f}", flush=True)
    joined.close()


if __name__ == "__main__":
    main()
