"""The memory that `align plan` estimates against the peak that training steps reach.

    python tests/benchmarks/memory_plan.py [--model qwen] [--stages reward,ppo] [--tokens 2048]
    torchrun --nproc_per_node 2 tests/benchmarks/memory_plan.py --zero 2

Each case runs two optimiser steps of two parts in a process of its own, on a small random model and
made-up ids. On a CPU every operation's tensors are followed from birth to death, which counts all
but what an operation allocates inside itself; on a GPU the peak is torch's own
(`max_memory_allocated`). With `--zero` the bytes of parameters, gradients and optimiser states that
a rank holds under that ZeRO stage (0 = plain) stand beside theory.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

MODELS: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "llama", "hidden_size": 192, "intermediate_size": 768,
        "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 6,
        "vocab_size": 8192, "tie_word_embeddings": True, "max_position_embeddings": 4096,
    },
    "qwen": {
        "model_type": "qwen2", "hidden_size": 256, "intermediate_size": 1024,
        "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 2,
        "vocab_size": 32768, "tie_word_embeddings": True, "max_position_embeddings": 4096,
    },
    "gpt2": {
        "model_type": "gpt2", "n_embd": 192, "n_layer": 4, "n_head": 6, "vocab_size": 8192,
        "n_positions": 4096,
    },
}  # fmt: skip
STAGES = ("sft", "reward", "dpo", "ppo")
PROMPT, ANSWER = (60, 180), (30, 120)
"""Tokens, from and to."""


def build(model: str, folder: Path) -> None:
    """Writes the model with random weights, and a tokenizer of a few words, into `folder`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from align.base import train_tokenizer

    tokenizer = train_tokenizer(["Question: Why?\nAnswer:\nBecause."], 400)
    shape = dict(MODELS[model])
    config = AutoConfig.for_model(
        shape.pop("model_type"), **shape, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def groups_of(tokens: float, completions: int) -> list[Any]:
    """Prompts with random answers that hold about so many tokens together."""
    from preference_data.batches import Group

    chance = random.Random(0)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(chance.randint(5, 250) for _ in range(chance.randint(low, high)))

    found: list[Any] = []
    while sum(map(len, found)) < tokens:
        found.append(Group(ids(*PROMPT), tuple(ids(*ANSWER) for _ in range(completions))))
    return found


# --- what is measured ----------------------------------------------------------------------------


def peak_meter(device: str) -> Any:
    """A context with `peak`, the bytes that tensors held at most in it; `begin` starts again."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_iter

    class OnDevice:
        def __enter__(self) -> None:
            self.begin()

        def __exit__(self, *_: object) -> None: ...

        def begin(self) -> None:
            torch.cuda.reset_peak_memory_stats()

        @property
        def peak(self) -> int:
            return torch.cuda.max_memory_allocated()

    class Followed(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self._sizes: dict[int, int] = {}
            self._now = self.peak = 0
            for thing in gc.get_objects():
                if type(thing) in (torch.Tensor, torch.nn.Parameter):
                    self._note(thing)

        def begin(self) -> None:
            self.peak = self._now

        def _note(self, tensor: Any) -> None:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._sizes:
                weakref.finalize(storage, self._forget, key)
            self._now += size - self._sizes.get(key, 0)
            self._sizes[key] = size
            self.peak = max(self.peak, self._now)

        def _forget(self, key: int) -> None:
            self._now -= self._sizes.pop(key, 0)

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            found = func(*args, **(kwargs or {}))
            for leaf in tree_iter(found):
                if isinstance(leaf, torch.Tensor) and leaf.device.type == device:
                    self._note(leaf)
            return found

    return OnDevice() if device == "cuda" else Followed()


def configure(case: argparse.Namespace, train: dict[str, Any]) -> Any:
    """A configuration whose step of the case's stage trains so."""
    from align.config import build_config

    data = {"sft": "demonstrations", "ppo": "prompts"}.get(case.stage, "labels")
    steps: dict[str, Any] = {
        "start": {"kind": "sft", "data": "demonstrations"},
        "scorer": {"kind": "reward", "data": "labels", "init": "start"},
        "step": {"kind": case.stage, "data": data, "train": train},
    }
    steps["step"] |= {
        "ppo": {"policy": "start", "reward": "scorer"}, "dpo": {"policy": "start"},
        "reward": {"init": "start"},
    }.get(case.stage, {})  # fmt: skip
    return build_config(
        {
            "name": "memory", "output_dir": "nowhere", "steps": steps,
            "base": {"model": case.folder, "dtype": case.dtype,
                     "gradient_checkpointing": case.checkpointing},
            "lora": {"r": 16} if case.lora else None,
            "data": {n: {"path": f"builtin:{n}"} for n in {"demonstrations", "labels", data}},
        }
    )  # fmt: skip


def load(config: Any, case: argparse.Namespace) -> tuple[Any, Any]:
    import torch

    from align.base import load_base, load_renderer
    from align.engine import Engine
    from align.roles import Roles
    from reward_models.scalar_head import ScalarHead

    torch.manual_seed(0)
    engine = Engine(config.deepspeed)
    base = load_base(case.folder, config.base, engine.device)
    roles = Roles(base, load_renderer(case.folder), config.lora, case.folder)
    width = base.config.hidden_size
    if case.stage == "reward":
        roles.add("reward", fresh=True, trainable=True, head=ScalarHead(width))
    else:
        roles.add("policy", fresh=True, trainable=True)
    if case.stage == "ppo":
        roles.add("reference", fresh=True)
        roles.add("scorer", fresh=True, head=ScalarHead(width))
        roles.add("value", fresh=True, trainable=True, head=ScalarHead(width, bias=True))
    return engine, roles.to(engine.device)


def facts(groups: list[Any], prompts_alone: bool = False) -> Any:
    """What the plan would know of rows with these ids."""
    from align.memory.rows import Rows

    whole = [len(g.prompt) if prompts_alone else len(g) for g in groups]
    answers = sum(len(ids) for g in groups for ids in g.completions)
    share = answers / sum(map(len, groups))
    return Rows(len(groups), tuple(whole), share, (1,) * len(groups))


def measure(case: argparse.Namespace) -> dict[str, Any]:
    """Measured and estimated bytes of the case, in all and by phase."""
    from align.memory.architecture import read_architecture
    from align.memory.sharding import Sharding
    from align.memory.steps import Estimator

    run = {"sft": text, "ppo": ppo}.get(case.stage, ranking)
    config, groups, phases = run(case)
    known = {config.steps["step"].data: facts(groups, case.stage == "ppo")}
    base = read_architecture(config.base, Path(config.output_dir))
    found = Estimator(config, base, Sharding(), known, case.device == "cuda").step("step")
    uses = [use for use in found.phases if use.phase != "check of the save"]
    estimated = {use.phase: use.total for use in uses}
    return {
        "measured": max(phases.values()), "estimated": max(estimated.values()),
        "phases": phases, "estimates": estimated,
    }  # fmt: skip


def silent() -> Any:
    from align.tracking import Tracker

    class Silent(Tracker):
        def log(self, *_: Any) -> None: ...
        def table(self, *_: Any) -> None: ...
        def finish(self, *_: Any) -> None: ...

    return Silent()


def ranking(case: argparse.Namespace) -> tuple[Any, list[Any], dict[str, float]]:
    import torch
    from torch.nn.functional import logsigmoid

    from align.losses import LossOutput
    from align.rankings import Ranked, fit_rankings
    from align.stages.dpo import pair_loss
    from preference_data.records import Judgement, Prompt, Response

    answers = Response.from_text("b"), Response.from_text("c")
    judgement = Judgement(Prompt.from_text("a"), answers, (1, 2))
    groups = groups_of(1.8 * case.tokens, 2)
    rows = [Ranked(judgement, group, ((0, 1),)) for group in groups]
    train = {"max_steps": 2, "train_batch_size": len(rows), "tokens_per_forward": case.tokens}
    config = configure(case, train)
    engine, roles = load(config, case)
    step = config.steps["step"]
    context: Any = SimpleNamespace(step=step, engine=engine, seed=0, tracker=silent())

    def loss(module: Any, batch: Any, pairs: Any, mine: list[int]) -> LossOutput:
        if case.stage == "dpo":
            sums = batch.sums(module("logprobs", "policy", batch).logprobs)
            lengths = torch.bincount(batch.sequence, minlength=batch.sequences)
            return pair_loss(step.train, sums, sums.detach(), lengths, pairs)
        scores = module("scores", "reward", batch)
        return LossOutput(-logsigmoid(scores[pairs.better] - scores[pairs.worse]), {})

    role = "reward" if case.stage == "reward" else "policy"
    with peak_meter(case.device) as meter:
        fit_rankings(context, roles, role, rows, loss)
    return config, groups, {"training": meter.peak}


def text(case: argparse.Namespace) -> tuple[Any, list[Any], dict[str, float]]:
    from align.supervised import fit_language_model

    groups = groups_of(2.5 * case.tokens, 1)
    micro = max(1, case.tokens // max(map(len, groups)))
    groups = sorted(groups, key=len)[-2 * micro :]
    train = {"max_steps": 2, "train_batch_size": 2 * micro, "per_device_train_batch_size": micro}
    config = configure(case, train)
    engine, roles = load(config, case)
    rows = [
        {
            "input_ids": [*g.prompt, *g.completions[0]],
            "completion_mask": [0] * len(g.prompt) + [1] * len(g.completions[0]),
        }
        for g in groups
    ]
    settings = config.steps["step"].train
    with roles.active("policy"), peak_meter(case.device) as meter:
        fit_language_model(
            roles.module("policy"), rows, roles.renderer, settings, engine, silent(), 0
        )
    return config, groups, {"training": meter.peak}


def ppo(case: argparse.Namespace) -> tuple[Any, list[Any], dict[str, float]]:
    from align.policy import uniforms
    from align.policy_gradient import Optimiser
    from align.ppo_update import Lesson
    from align.rollout import Roller, packed_scores
    from reward_models.scoring import Scores

    new = ANSWER[1]
    mean = sum(PROMPT) / 2
    groups = groups_of(1.8 * case.tokens * mean / (mean + new), 1)
    groups = [type(group)(group.prompt, ((5,),)) for group in groups]
    train = {
        "iterations": 2, "prompts_per_iteration": len(groups), "epochs": 1, "minibatches": 1,
        "max_new_tokens": new, "tokens_per_forward": case.tokens, "rollout_batch_size": 16,
    }  # fmt: skip
    config = configure(case, train)
    engine, roles = load(config, case)
    settings = config.steps["step"].train
    roles.eval()

    def scorer(groups: Any) -> Scores:
        return Scores(packed_scores(roles, "scorer", groups, engine, settings.tokens_per_forward))

    roller = Roller(roles, scorer, engine, 1.0, settings.tokens_per_forward, 16)
    optimiser = Optimiser(engine, roles, roller, settings, seed=0)
    prompts = [group.prompt for group in groups]
    found: dict[str, float] = {}
    with peak_meter(case.device) as meter:
        for _ in range(2):
            meter.begin()
            rollout = roller.collect(prompts, uniforms(0, len(prompts), new))
            found["rollout"] = meter.peak
            meter.begin()
            tables = rollout.logprobs, rollout.logprobs
            optimiser.updater.run(Lesson(2, rollout, *tables, 0.0, value_alone=False))
            found["update"] = meter.peak
    return config, groups, found


# --- sharded -------------------------------------------------------------------------------------


def sharded(stage: int, folder: Path) -> None:
    """Bytes held after a step of this rank, beside theory; full fine-tuning of the model."""
    from align.config import build_config
    from align.memory.architecture import read_architecture
    from align.memory.sharding import Sharding, held
    from align.schedules import SCHEDULES
    from align.training import ParameterGroup
    from preference_data.batches import pack

    settings = Path(__file__).parents[2] / "configs" / "deepspeed" / f"zero{stage}.json"
    case = argparse.Namespace(
        stage="dpo", folder=str(folder), dtype="float32", lora=False, checkpointing=False
    )
    config = configure(case, {})
    config = build_config({
        **config.model_dump(mode="json", by_alias=True, exclude_unset=True),
        "deepspeed": str(settings) if stage else None,
    })  # fmt: skip
    engine, roles = load(config, case)
    training = engine.training(
        roles, [ParameterGroup(roles.parameters_of("policy"), 1e-3)], total_steps=2,
        schedule=SCHEDULES["constant"](), max_grad_norm=1.0,
    )  # fmt: skip
    for _ in range(2):
        for last in (False, True):
            batch = pack(groups_of(300, 1)).to(engine.device)
            training.backward(-training.module("logprobs", "policy", batch).logprobs.mean(), last)
        training.step()
    base = read_architecture(config.base, Path())
    sharding = Sharding(engine.world_size, stage or None)
    theory = vars(held(base.parameters * 4, base.parameters, 4, sharding))
    if engine.is_main:
        print(f"ZeRO {stage}, {engine.world_size} processes: bytes held by rank 0, and theory")
        for name, found in engine.held.items():
            expected = theory[name.removeprefix("memory/")]
            print(f"  {name:20} {found:12,.0f} {expected:12,.0f}  {found / expected:.3f}")
    training.close()
    engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=[*MODELS], default="llama")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--tokens", default="2048,8192", help="of a forward pass")
    parser.add_argument("--lora", default="1,0")
    parser.add_argument("--checkpointing", default="0,1")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--zero", type=int, choices=[0, 1, 2, 3], help="under torchrun")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print("RESULT " + json.dumps(measure(argparse.Namespace(**json.loads(arguments.case)))))
        return
    if arguments.zero is not None:
        folder = Path(tempfile.gettempdir()) / f"memory_plan_{os.getppid()}"
        if os.environ.get("RANK", "0") == "0":
            build(arguments.model, folder)
        sharded(arguments.zero, folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        build(arguments.model, Path(folder))
        cases(arguments, folder)


def cases(arguments: argparse.Namespace, folder: str) -> None:
    """Prints a line for each case: MiB measured and estimated, and their ratio."""
    print(f"{arguments.model}, {arguments.dtype}, {arguments.device}: MiB at the peak")
    choices = [arguments.stages, arguments.lora, arguments.tokens, arguments.checkpointing]
    worst = 1.0
    for stage, lora, tokens, again in itertools.product(*(text.split(",") for text in choices)):
        case = {
            "stage": stage, "lora": lora == "1", "tokens": int(tokens),
            "checkpointing": again == "1", "dtype": arguments.dtype, "device": arguments.device,
            "folder": folder,
        }  # fmt: skip
        name = f"{stage:6} {'LoRA' if lora == '1' else 'full'} {tokens:>6}"
        name += " checkpointed" if again == "1" else " " * 13
        found = _child(case)
        ratio = found["estimated"] / found["measured"]
        worst = max(worst, ratio, 1 / ratio)
        print(
            f"  {name} {found['measured'] / 2**20:8.1f} {found['estimated'] / 2**20:8.1f} "
            f"{ratio:6.3f}   {_mebibytes(found['phases'])} | {_mebibytes(found['estimates'])}",
            flush=True,
        )
    print(f"  furthest apart by a factor of {worst:.3f}")


def _mebibytes(phases: dict[str, float]) -> str:
    return ", ".join(f"{name} {size / 2**20:.0f}" for name, size in phases.items())


def _child(case: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    line = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
    if not line:
        sys.exit(f"{case} failed: {done.stderr[-2000:]}")
    return json.loads(line[0].removeprefix("RESULT "))


if __name__ == "__main__":
    main()
