"""What fits a card, and which settings would make the rest fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from align.config import DPO, PPO, SFT, Config, ConfigError, Lora, Pretrain, Reward
from align.config_errors import hint
from align.memory.sharding import Sharding
from align.memory.steps import Estimator, StepMemory

GIB = 2**30
CARDS = {
    "t4": 14.6, "v100-16": 15.8, "rtx4080": 15.6, "l4": 22.0, "a10g": 22.1, "rtx3090": 23.6,
    "rtx4090": 23.5, "rtx5090": 31.3, "v100-32": 31.7, "a100-40": 39.4, "a40": 44.4, "l40s": 44.4,
    "a100-80": 79.2, "h100": 79.1, "h200": 139.8, "b200": 178.3,
}  # fmt: skip
"""GiB that torch finds on each."""
TOLERANCE = 1.15
"""The estimate may be wrong by this factor: what fits has room for it."""
MOST = 6
"""Alternatives that are named."""
SMALLEST = 256
"""Tokens of a forward pass, below which none is proposed."""


@dataclass(frozen=True)
class Card:
    """A device's memory."""

    name: str
    size: float
    """bytes"""

    def verdict(self, memory: StepMemory) -> str:
        """yes, tight (within what the estimate may be wrong by), or no."""
        total = memory.peak.total
        if total > self.size:
            return "no"
        return "yes" if total * TOLERANCE <= self.size else "tight"


def card_of(text: str) -> Card:
    """A card by its name, or by its GiB. Raises ConfigError for another text."""
    name = text.strip().lower()
    try:
        size = CARDS[name] if name in CARDS else float(name)
    except ValueError:
        raise ConfigError(
            f"--card {text!r} is neither a number of GiB nor a card that is known"
            f"{hint(name, CARDS)} Cards: {', '.join(CARDS)}."
        ) from None
    if not 0 < size < float("inf"):
        raise ConfigError(f"--card is {text}; give the GiB of one card.")
    return Card(name if name in CARDS else f"{size:g} GiB", size * GIB)


@dataclass(frozen=True)
class Alternative:
    """Settings under which a step fits."""

    settings: tuple[str, ...]
    """as on the command line, or in words"""
    memory: StepMemory


@dataclass(frozen=True)
class _Change:
    """One setting made smaller; `group` is the setting, of which a combination has one."""

    group: str
    text: str
    apply: Callable[[Estimator], Estimator]


def alternatives(estimator: Estimator, step: str, card: Card) -> list[Alternative]:
    """The fewest changes that let the step fit, at most three at once, the mildest first."""
    changes = list(_changes(estimator, step))
    for count in (1, 2, 3):
        found: list[Alternative] = []
        for several in combinations(changes, count):
            if len({change.group for change in several}) < count:
                continue
            changed = estimator
            for change in several:
                changed = change.apply(changed)
            memory = changed.step(step)
            if card.verdict(memory) == "yes":
                found.append(Alternative(tuple(change.text for change in several), memory))
        if found:
            return _mildest(found)
    return []


def least(estimator: Estimator, step: str) -> StepMemory:
    """What the step takes with every setting at its smallest."""
    smallest = {change.group: change for change in _changes(estimator, step)}
    for change in smallest.values():
        estimator = change.apply(estimator)
    return estimator.step(step)


def _mildest(found: list[Alternative]) -> list[Alternative]:
    """One of each kind: of several sizes of a setting, the largest, which was tried first."""
    kinds: dict[tuple[str, ...], Alternative] = {}
    for one in found:
        kinds.setdefault(tuple(text.split("=")[0].split(" with")[0] for text in one.settings), one)
    return list(kinds.values())[:MOST]


def _changes(estimator: Estimator, step: str) -> Iterator[_Change]:
    config = estimator.config
    trains = config.steps[step].kind not in ("evaluate", "export")
    if trains and not config.base.gradient_checkpointing:
        yield _set("base.gradient_checkpointing", True, "true")
    yield from _smaller(estimator, step)
    kinds = {other.kind for other in config.steps.values()}
    # Weights that are trained themselves would lose their updates to rounding.
    if config.base.dtype == "float32" and config.lora is not None and "pretrain" not in kinds:
        yield _set("base.dtype", "bfloat16", "bfloat16")
    if trains and config.lora is None and config.steps[step].kind != "pretrain":
        yield _Change("lora", "lora={r: 16}", lambda e: _with(e, lora=Lora()))
    if trains and estimator.sharding.stage is None:
        # Adapters are too small for ZeRO 3 to save anything.
        for stage in (1, 2, 3) if config.lora is None else (1, 2):
            for ranks in (2, 4, 8):
                sharding = Sharding(ranks, stage)
                yield _Change(
                    "ranks",
                    f"deepspeed: ZeRO {stage} with {ranks} processes",
                    lambda e, sharding=sharding: replace(e, sharding=sharding),
                )


def _smaller(estimator: Estimator, name: str) -> Iterator[_Change]:
    """Smaller sizes of what the step computes at once, down to the smallest: halves, or where a
    size must divide a rank's rows, divisors."""
    step = estimator.config.steps[name]
    sizes: list[tuple[str, int, int]] = []
    if isinstance(step, Pretrain | SFT):
        option = f"steps.{name}.train.per_device_train_batch_size"
        size = estimator.micro_batch_size(step)
        for smaller in range(size // 2, 0, -1):
            if size % smaller == 0:
                size = smaller
                yield _set(option, size, str(size))
    elif isinstance(step, Reward | DPO | PPO):
        tokens = estimator.tokens_per_forward(step.train)
        sizes.append(("tokens_per_forward", tokens, SMALLEST))
    if isinstance(step, PPO):
        share = -(-step.train.responses_per_iteration() // estimator.sharding.world_size)
        size = step.train.rollout_batch_size or share
        sizes.append(("rollout_batch_size", size, step.train.samples_per_prompt))
    for option, size, smallest in sizes:
        while size // 2 >= smallest:
            size //= 2
            yield _set(f"steps.{name}.train.{option}", size, str(size))


def _set(path: str, value: object, text: str) -> _Change:
    return _Change(
        path, f"{path}={text}", lambda e: replace(e, config=_changed(e.config, path, value))
    )


def _changed(config: Config, path: str, value: object) -> Config:
    """A copy with another value at the dotted path."""
    *parents, last = path.split(".")
    chain: list[Any] = [config]
    for name in parents:
        parent = chain[-1]
        chain.append(parent[name] if isinstance(parent, dict) else getattr(parent, name))
    new: Any = value
    for parent, name in zip(reversed(chain), reversed([*parents, last]), strict=True):
        if isinstance(parent, dict):
            new = {**parent, name: new}
        else:
            new = parent.model_copy(update={name: new})
    return new


def _with(estimator: Estimator, **settings: Any) -> Estimator:
    return replace(estimator, config=estimator.config.model_copy(update=settings))
