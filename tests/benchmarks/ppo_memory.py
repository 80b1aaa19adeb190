"""Peak memory of a PPO update with four roles on one base, against an SFT step of the same tokens.

    ALIGN_TEST_DATA=… python tests/benchmarks/ppo_memory.py [--model 60m]

All sides take the same prompts (HH, at most 128 tokens), a response of 64 tokens to each, the same
random model (a Llama of 14 M parameters by default) and the same LoRA; one optimiser step each, in
a process of its own. What counts is the highest resident size above the one after loading and a
small warm-up. malloc is told to give large blocks back at once, so that this is what is held.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from packed_work import Work, build
from ppo_vs_trl import never_ends, prompts_of

SIDES = ("sft, trl", "sft, packed", "ppo, value adapter", "ppo, value on the trunk")
RESPONSE = 64
SMALL = 2
"""Rows of the warm-up."""
EXACT_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536",
                "MALLOC_TOP_PAD_": "0", "MALLOC_ARENA_MAX": "1"}  # fmt: skip


def peak_of(work: Callable[[], object]) -> float:
    """MB that the process held at most during `work`, above what it held before (Linux)."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(name)]
    return int(line.split()[1]) / 1024


def load(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The engine, and roles of which only a trained policy is there."""
    import torch

    from align.base import load_base, load_renderer
    from align.config import Base, Lora
    from align.engine import Engine
    from align.roles import Roles

    torch.manual_seed(0)
    engine, folder = Engine(), str(arguments.folder)
    base = load_base(folder, Base(model=folder), engine.device)
    roles = Roles(base, load_renderer(folder), Lora(), folder)
    roles.add("policy", fresh=True, trainable=True)
    never_ends(roles.renderer.tokenizer)
    return engine, roles


def responses_to(prompts: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Of RESPONSE tokens each, drawn at random."""
    import torch

    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(300, 8000, (len(prompts), RESPONSE), generator=generator)
    return [tuple(row) for row in drawn.tolist()]


def trl(arguments: argparse.Namespace) -> dict[str, float]:
    """As the sft stage runs trl's SFTTrainer: the batch in one forward pass, rows padded."""
    from align.config import TextTrain
    from align.supervised import fit_language_model
    from align.tracking import Tracker

    engine, roles = load(arguments)
    prompts = prompts_of(arguments.folder, arguments.batch)
    rows = [
        {"input_ids": [*p, *r], "completion_mask": [0] * len(p) + [1] * len(r)}
        for p, r in zip(prompts, responses_to(prompts), strict=True)
    ]

    class Silent(Tracker):
        def log(self, *_: Any) -> None: ...
        def table(self, *_: Any) -> None: ...
        def finish(self, *_: Any) -> None: ...

    def step(count: int) -> None:
        train = TextTrain(max_steps=1, train_batch_size=count, per_device_train_batch_size=count)
        module: Any = roles.module("policy")
        fit_language_model(module, rows[:count], roles.renderer, train, engine, Silent(), 0)

    step(SMALL)
    return {"step": peak_of(lambda: step(arguments.batch))}


def packed(arguments: argparse.Namespace) -> dict[str, float]:
    """The same loss in packed batches, in parts as PPO's."""
    from align.schedules import SCHEDULES
    from align.training import ParameterGroup
    from preference_data.batches import Group, pack, split_evenly

    engine, roles = load(arguments)
    training = engine.training(
        roles, [ParameterGroup(roles.parameters_of("policy"), 1e-5)], total_steps=10,
        schedule=SCHEDULES["constant"](), max_grad_norm=1.0,
    )  # fmt: skip
    prompts = prompts_of(arguments.folder, arguments.batch)
    every = [Group(p, (r,)) for p, r in zip(prompts, responses_to(prompts), strict=True)]

    def step(count: int) -> None:
        groups = every[:count]
        parts = split_evenly(groups, engine.tokens_per_forward(), 2)
        for number, part in enumerate(parts, 1):
            batch = pack([groups[i] for i in part])
            loss = -roles.logprobs("policy", batch).logprobs.sum() / (count * RESPONSE)
            training.backward(loss, last=number == len(parts))
        training.step()

    step(SMALL)
    return {"step": peak_of(lambda: step(arguments.batch))}


def ppo(arguments: argparse.Namespace, value: str) -> dict[str, float]:
    """A rollout (sampling, score, reference, values), then one pass over it in one step."""
    from align.config import PPOTrain
    from align.policy import uniforms
    from align.policy_gradient import Optimiser
    from align.ppo_update import Lesson
    from align.rollout import Roller, packed_scores
    from reward_models.scalar_head import ScalarHead
    from reward_models.scoring import Scores

    engine, roles = load(arguments)
    width = roles.model.config.hidden_size
    roles.add("reference", fresh=True)
    roles.add("reward", fresh=True, head=ScalarHead(width))
    head = ScalarHead(width, bias=True)
    if value == "trunk":
        roles.add_head("value", "policy", head)
    else:
        roles.add("value", fresh=True, trainable=True, head=head)
    roles.eval()
    train = PPOTrain(
        iterations=2, prompts_per_iteration=arguments.batch, epochs=1, minibatches=1,
        max_new_tokens=RESPONSE, value=value,  # type: ignore[arg-type]
    )  # fmt: skip

    def scorer(groups: Any) -> Scores:
        return Scores(packed_scores(roles, "reward", groups, engine, train.tokens_per_forward))

    roller = Roller(roles, scorer, engine, train.temperature, train.tokens_per_forward)
    optimiser = Optimiser(engine, roles, roller, train, seed=0)
    prompts = prompts_of(arguments.folder, arguments.batch)
    lessons: list[Lesson] = []

    def collect(count: int) -> None:
        rollout = roller.collect(prompts[:count], uniforms(0, count, RESPONSE))
        lessons.append(Lesson(2, rollout, rollout.logprobs, rollout.logprobs, 0.0, False))

    collect(SMALL)
    optimiser.updater.run(lessons[0])
    return {
        "rollout": peak_of(lambda: collect(arguments.batch)),
        "step": peak_of(lambda: optimiser.updater.run(lessons[1])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="14m")
    parser.add_argument("--batch", type=int, default=32, help="rows of the step")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        run = {
            SIDES[0]: trl,
            SIDES[1]: packed,
            SIDES[2]: lambda given: ppo(given, "adapter"),
            SIDES[3]: lambda given: ppo(given, "trunk"),
        }[arguments.side]
        print("RESULT " + json.dumps(run(arguments)))
        return
    with tempfile.TemporaryDirectory() as folder:
        build(Work("reward", arguments.model, True, 8, 1), Path(folder))
        found = {side: _child(side, folder) for side in SIDES}
    print(f"{arguments.batch} rows, {arguments.model}, LoRA: MB above the loaded model")
    for side, one in found.items():
        shares = [one["step"] / found[sft]["step"] for sft in SIDES[:2]]
        rollout = f"   rollout {one['rollout']:.0f}" if "rollout" in one else ""
        print(
            f"  {side:24} {one['step']:6.0f}   {shares[0]:.2f} of trl's SFT step, {shares[1]:.2f} "
            f"of the packed one{rollout}"
        )


def _child(side: str, folder: str) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--folder", folder]
    environment = {**os.environ, **EXACT_MALLOC}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    line = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
    if not line:
        sys.exit(f"{side} failed: {done.stderr[-2000:]}")
    return json.loads(line[0].removeprefix("RESULT "))


if __name__ == "__main__":
    main()
