"""How near training comes to a best policy that is known in closed form, over several worlds.

    python tests/benchmarks/optimum.py --seeds 5 [--broken | --variants ppo-lora,dpo-lora,…]

Each seed draws a world (tests/shared/enumerable.py): another reference, another gold score. Each
variant is a run of the pipeline from a YAML file, whose saved policy is then summed over all
responses. Printed are the way it has gone, (J - J_ref) / (J* - J_ref), its KL from the reference,
the KL of the best policy, and the run's seconds. With `--broken` the variants are broken on
purpose: where they come as far as the sound ones, the numbers prove nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")


def load_world() -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "shared" / "enumerable.py"
    spec = importlib.util.spec_from_file_location("enumerable", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["enumerable"] = module
    spec.loader.exec_module(module)
    return module


# --- faults --------------------------------------------------------------------------------------


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def end_masked() -> Iterator[None]:
    """The end token counts for nothing, as it does where the mask is made of `ids != pad` and pad
    is the end. The check of the first rollout, which sees this, is left out."""
    from dataclasses import replace

    import torch

    from align import ppo_invariants
    from align.rollout import Rollout

    made = Rollout.of

    def without_ends(samples: Any) -> Rollout:
        rollout = made(samples)
        kept = torch.tensor([len(sample.logprobs) - sample.ended for sample in samples])
        return replace(rollout, mask=torch.arange(rollout.mask.shape[1])[None, :] < kept[:, None])

    with (
        replaced(Rollout, "of", staticmethod(without_ends)),
        replaced(ppo_invariants, "check_ends", lambda rollout, renderer: None),
    ):
        yield


@contextlib.contextmanager
def top_p(share: float = 0.8) -> Iterator[None]:
    """Sampled from the likeliest tokens that hold `share` of the mass, recorded as if from all."""
    import torch

    from align import policy

    sound = policy.sample_inverse_cdf

    def truncated(logits: Any, uniform: Any, temperature: float) -> Any:
        ordered, places = torch.softmax(logits / temperature, -1).sort(-1, descending=True)
        outside = (ordered.cumsum(-1) - ordered) >= share
        tail = torch.zeros_like(outside).scatter(-1, places, outside)
        drawn = sound(logits.masked_fill(tail, -torch.inf), uniform, temperature)
        full = torch.log_softmax(logits / temperature, -1)
        return drawn._replace(logprobs=full.gather(-1, drawn.tokens[:, None]).squeeze(-1))

    with replaced(policy, "sample_inverse_cdf", truncated):
        yield


# --- variants ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    kind: str
    lora: bool
    changes: dict[str, Any] = field(default_factory=dict[str, Any])
    """of the train section; None removes a key"""
    fault: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext


WITHOUT_VALUE = {"value_learning_rate": None, "gae": None, "clip": None}


VARIANTS = {
    "ppo-lora": Variant("ppo", True),
    "ppo-full": Variant("ppo", False),
    "dpo-lora": Variant("dpo", True),
    "dpo-full": Variant("dpo", False),
    "trunk": Variant("ppo", True, {"value": "trunk"}),
    "rloo": Variant("ppo", True, {"advantage": "rloo", **WITHOUT_VALUE}),
    "grpo": Variant("ppo", True, {"advantage": "grpo", **WITHOUT_VALUE}),
    "reinforce": Variant("ppo", True, {"advantage": "reinforce", **WITHOUT_VALUE}),
}
BROKEN = {
    "end-masked": Variant("ppo", True, fault=end_masked),
    "no-kl": Variant("ppo", True, {"kl": {"coefficient": 0.0}}),
    "top-p": Variant("ppo", True, fault=top_p),
}


def measure(world: ModuleType, variant: Variant, seed: int) -> tuple[Any, float]:
    """Where the trained policy stands, and the run's seconds."""
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        drawn = world.World.draw(Path(folder), seed)
        started = time.monotonic()
        with variant.fault():
            policy = world.train(drawn, variant.kind, variant.lora, seed, **variant.changes)
        seconds = time.monotonic() - started
        among = drawn.answers if variant.kind == "dpo" else None
        return drawn.standing(policy, among), seconds


def main() -> None:
    world = load_world()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--broken", action="store_true", help="all that are broken on purpose")
    which.add_argument("--variants", default=",".join(VARIANTS), help="by comma")
    arguments = parser.parse_args()
    names = list(BROKEN) if arguments.broken else arguments.variants.split(",")
    if unknown := set(names) - {*VARIANTS, *BROKEN}:
        parser.error(f"no variant {sorted(unknown)}; there are {[*VARIANTS, *BROKEN]}")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    print(f"{'variant':18} {'lowest':>7} {'mean':>7}   each: fraction, KL (KL of the best policy)")
    for name in names:
        variant = {**VARIANTS, **BROKEN}[name]
        found = [measure(world, variant, seed) for seed in range(1, arguments.seeds + 1)]
        fractions = [standing.fraction for standing, _ in found]
        each = "  ".join(f"{one.fraction:.3f} {one.kl:.2f} ({one.best_kl:.2f})" for one, _ in found)
        print(
            f"{name:18} {min(fractions):7.3f} {statistics.mean(fractions):7.3f}   {each}   "
            f"{statistics.median(seconds for _, seconds in found):.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
