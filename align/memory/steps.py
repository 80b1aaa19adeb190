"""What each step of a run holds on one device, phase by phase, from the configuration alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from align import deepspeed_settings
from align.config import (
    DPO,
    PPO,
    SFT,
    Config,
    DPOTrain,
    Evaluate,
    Export,
    PPOTrain,
    Pretrain,
    RankingTrain,
    Reward,
    Step,
    TextTrain,
)
from align.config_rewards import AnyReward, leaves
from align.memory.activations import Activations, Pass
from align.memory.architecture import Architecture
from align.memory.packing import Layout, largest_part
from align.memory.rows import Rows
from align.memory.sharding import Held, Sharding, held
from preference_data.forward_size import rows_at_once, tokens_at_once

SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number."""
ROW_STRETCH = 1.25
"""Length of a packed row, in longest judgements or conversations: what `preference_data.batches`
mostly chooses."""


@dataclass(frozen=True)
class Use:
    """Bytes on one device at the peak of a phase of a step."""

    phase: str
    parameters: float = 0.0
    """of the base, its copies, and layers with an adapter folded in"""
    adapters: float = 0.0
    """and scalar heads"""
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    cache: float = 0.0
    """keys and values of what is being sampled"""

    @property
    def total(self) -> float:
        return sum(getattr(self, part) for part in PARTS)


PARTS = tuple(field.name for field in fields(Use) if field.name != "phase")


@dataclass(frozen=True)
class StepMemory:
    """The estimate for one step."""

    name: str
    phases: tuple[Use, ...]

    @property
    def peak(self) -> Use:
        """The phase that takes most."""
        return max(self.phases, key=lambda use: use.total)


@dataclass(frozen=True)
class Estimator:
    """Estimates the steps of a configuration on one of `sharding.world_size` devices."""

    config: Config
    base: Architecture
    sharding: Sharding
    rows: Mapping[str, Rows]
    """what is known of each imported data source"""
    on_gpu: bool = False
    """where the optimiser takes all parameters at once, and trl's head computes in place"""

    def step(self, name: str) -> StepMemory:
        """The estimate for the step of this name."""
        step = self.config.steps[name]
        phases = [*self._phases(step), self._check(step)]
        return StepMemory(name, tuple(phases))

    def _phases(self, step: Step) -> Iterator[Use]:
        if isinstance(step, Pretrain | SFT):
            batch, parts = self._text_pass(step)
            whole = isinstance(step, Pretrain)
            yield from self._training(batch, parts, whole=whole, by_trainer=True)
        elif isinstance(step, Reward | DPO):
            batch, parts = self._ranking_pass(step, step.train)
            yield from self._training(batch, parts, _models(step))
        elif isinstance(step, PPO):
            yield from self._ppo(step)
        elif isinstance(step, Evaluate):
            yield self._evaluation(step)
        else:
            yield self._weights("load", roles=1)

    # --- weights ----------------------------------------------------------------------------------

    @property
    def _size(self) -> int:
        return SIZES[self.config.base.dtype]

    @property
    def _base_bytes(self) -> float:
        return self.base.parameters * self._size

    @property
    def _own(self) -> int:
        """Numbers that a role has for itself, without a head."""
        lora = self.config.lora
        return self.base.parameters if lora is None else self.base.adapter_parameters(lora)

    @property
    def _own_size(self) -> int:
        return self._size if self.config.lora is None else 4

    def _held(
        self, roles: int, trained: int, whole_base: bool = False, by_trainer: bool = False
    ) -> Held:
        """With `roles` of their own weights, `trained` of which get a gradient. `whole_base` is
        pretraining, which has no role; `by_trainer` says whether transformers' Trainer has the base
        below an adapter."""
        if whole_base:
            return held(0.0, self.base.parameters, self._size, self.sharding)
        frozen = self._base_bytes + (roles - trained) * self._own * self._own_size
        lora = self.config.lora is not None
        return held(frozen, trained * self._own, self._own_size, self.sharding, by_trainer and lora)

    def _weights(
        self, phase: str, roles: int, trained: int = 0, whole_base: bool = False,
        by_trainer: bool = False,
    ) -> Use:  # fmt: skip
        """Weights alone, with the share of the adapters told apart."""
        found = self._held(roles, trained, whole_base, by_trainer)
        lora = self.config.lora is not None and not whole_base
        shared = self.sharding.world_size if self.sharding.stage == 3 else 1
        adapters = (roles - trained + trained / shared) * self._own * self._own_size
        adapters = adapters if lora else 0.0
        return Use(phase, found.parameters - adapters, adapters)

    def _gathered(self, trained: int = 1, by_layer: bool = False) -> float:
        """What ZeRO 3 makes whole beside its shards in a pass: adapters and the language heads of
        copies at once, all else `by_layer`."""
        if self.sharding.stage != 3:
            return 0.0
        if self.config.lora is None or by_layer:
            return float((trained + 1) * self.base.largest * self._size)
        return float(trained * self._own * self._own_size)

    def _check(self, step: Step) -> Use:
        """A save is proved by loading it beside the model: base and role once more."""
        roles = 1 if isinstance(step, Export) else max(1, _roles(step, self.config))
        use = self._weights("check of the save", roles)
        again = self._weights("", 0 if isinstance(step, Pretrain) else 1)
        if isinstance(step, Evaluate | Export):
            return replace(use, phase="load")
        optimizer = self._held(roles, _trained(step)).optimizer if isinstance(step, PPO) else 0.0
        return replace(
            use,
            parameters=use.parameters + again.parameters,
            adapters=use.adapters + again.adapters,
            optimizer=optimizer,
        )

    # --- training ---------------------------------------------------------------------------------

    def _activations(self, dropout: bool = True, whole_base: bool = False) -> Activations:
        base = self.config.base
        lora = None if whole_base else self.config.lora
        return Activations(
            self.base, self._size, lora, base.gradient_checkpointing, dropout, self.on_gpu
        )

    def _training(
        self, batch: Pass, parts: int, models: int = 1, whole: bool = False,
        by_trainer: bool = False,
    ) -> Iterator[Use]:  # fmt: skip
        """Steps of an optimiser on one role, in `parts` backward passes each."""
        found = self._held(models, 1, whole, by_trainer)
        weights = self._weights("training", models, 1, whole, by_trainer)
        use = replace(
            weights,
            parameters=weights.parameters + self._gathered(by_layer=whole or by_trainer),
            optimizer=found.optimizer,
            gradients=found.gradients if parts > 1 else 0.0,
            activations=self._activations(whole_base=whole).backward(batch),
        )
        if self.config.lora is None or whole:  # the first gradient of the largest layer
            largest = max(into * out for _, into, out in self.base.layers())
            use = replace(use, gradients=use.gradients + largest * self._own_size)
        yield use
        yield replace(
            use,
            phase="optimizer step",
            parameters=weights.parameters,
            gradients=found.gradients,
            activations=self._stepping(found, whole),
        )

    def _stepping(self, found: Held, whole: bool) -> float:
        """What AdamW works with: a denominator of each number, of all at once or of the largest."""
        if self.on_gpu:
            return found.gradients
        lora = self.config.lora
        if lora is None or whole:
            return 2.0 * self.base.largest * self._own_size
        return 8.0 * lora.r * max(max(into, out) for _, into, out in self.base.adapted(lora))

    def tokens_per_forward(self, train: RankingTrain | PPOTrain | None = None) -> int:
        """Tokens of a forward pass: those of the step's setting, if it has any."""
        asked = None if train is None else train.tokens_per_forward
        return tokens_at_once(self._device) if asked is None else asked

    def micro_batch_size(self, step: Pretrain | SFT) -> int:
        """Rows of a forward pass."""
        share = self._share(step.train)
        asked = step.train.per_device_train_batch_size
        return min(asked or rows_at_once(share, self._longest(step), self._device), share)

    @property
    def _device(self) -> str:
        return "cuda" if self.on_gpu else "cpu"

    def _share(self, train: TextTrain) -> int:
        """Rows of a batch that each device takes."""
        return max(1, train.train_batch_size // self.sharding.world_size)

    def _longest(self, step: Pretrain | SFT) -> int:
        known = self.rows.get(step.data)
        if known is None or isinstance(step, Pretrain):
            return step.train.max_length
        return max(known.fitting(step.train.max_length))

    def _text_pass(self, step: Pretrain | SFT) -> tuple[Pass, int]:
        """Rows padded to the longest, and how many such passes a step has."""
        longest, micro = self._longest(step), self.micro_batch_size(step)
        parts = max(1, self._share(step.train) // micro)
        return Pass(micro * longest, longest, fused_head=True), parts

    def _ranking_pass(self, step: Reward | DPO, train: RankingTrain) -> tuple[Pass, int]:
        """The largest part of a step, and how many parts there are. Unknown rows are taken to be
        pairs of the longest conversations, whose prompt is half of each."""
        known = self.rows.get(step.data)
        lengths = known.fitting(train.max_length) if known else (3 * train.max_length // 2,)
        tokens = self.tokens_per_forward(train)
        largest, parts = self._part(lengths, train.train_batch_size, tokens, 1)
        answered = known.answered if known else 2 / 3
        predicted = largest.used * answered if isinstance(train, DPOTrain) else 0.0
        return self._packed(largest, predicted), parts

    def _packed(self, part: Layout, predicted: float) -> Pass:
        """On a CPU without unused tokens and masks, unless other attention than sdpa is asked for
        (`preference_data.piecewise`)."""
        if self.on_gpu or self.config.base.attention not in ("auto", "sdpa"):
            return Pass(part.tokens, part.row, predicted)
        return Pass(part.used, part.row, predicted, pieces=True)

    def _part(
        self, lengths: tuple[int, ...], members: int, tokens: int, alone: int
    ) -> tuple[Layout, int]:
        """One process splits a step into at least `alone` parts, several into one each."""
        ranks = self.sharding.world_size
        multiple = alone if ranks == 1 else ranks
        return largest_part(lengths, members, tokens, multiple, ranks)

    # --- PPO --------------------------------------------------------------------------------------

    def _ppo(self, step: PPO) -> Iterator[Use]:
        """Sampling, then reading what was sampled, then the gradients on it."""
        train = step.train
        roles, trained = _roles(step, self.config), _trained(step)
        found = self._held(roles, trained)
        sharded = replace(self._weights("", roles, trained), optimizer=found.optimizer)
        whole = self._held(roles, 0).parameters - found.parameters + self._shards(trained)
        weights = replace(sharded, parameters=sharded.parameters + whole)
        prompts = self._prompts(step.data, train.max_prompt_length)
        new = train.max_new_tokens
        yield self._sampling(weights, train, prompts)
        acts = self._activations(dropout=False)
        lengths = tuple(prompt + new for prompt in prompts)
        share = new * len(lengths) / sum(lengths)
        responses = train.responses_per_iteration()
        step_of = max(1, responses // train.minibatches)
        tokens = self.tokens_per_forward(train)
        part, _ = self._part(lengths, step_of, tokens, 2)
        use = replace(sharded, phase="update", gradients=found.gradients)
        use = replace(use, parameters=use.parameters + self._gathered(trained))
        batch = replace(self._packed(part, part.used * share), entropy=True)
        yield replace(use, activations=acts.backward(batch))
        mine = max(1, min(responses, train.rollout_batch_size or responses))
        used = min(float(tokens), mine * sum(lengths) / len(lengths))
        more = used / part.used
        read = Layout(round(part.tokens * more), part.row, round(used))
        batch = self._packed(read, used * share)
        yield replace(weights, phase="scoring", activations=acts.forward(batch))
        step_use = replace(use, parameters=sharded.parameters, phase="optimizer step")
        yield replace(step_use, activations=self._stepping(found, False))

    def _shards(self, trained: int) -> float:
        """Of the trained roles' weights under ZeRO 3, which it keeps while they are whole."""
        if self.sharding.stage != 3:
            return 0.0
        return trained * self._own * self._own_size / self.sharding.world_size

    def _prompts(self, source: str, longest: int) -> list[int]:
        """Lengths of a sample of prompts; the longest possible where none is known."""
        known = self.rows.get(source)
        lengths = known.lengths if known else ()
        return [length for length in lengths if length <= longest] or [longest]

    def _sampling(self, weights: Use, train: PPOTrain, prompts: Sequence[int]) -> Use:
        acts = self._activations(dropout=False)
        each = train.samples_per_prompt
        share = math.ceil(train.prompts_per_iteration / self.sharding.world_size)
        if train.rollout_batch_size is not None:
            share = min(share, max(1, train.rollout_batch_size // each))
        length = max(prompts) + train.max_new_tokens
        return replace(
            weights,
            phase="rollout",
            parameters=weights.parameters + self._folded(),
            activations=acts.sampling(share * each, self._read(share, prompts), length),
            cache=acts.cache(share * each, length),
        )

    def _read(self, count: int, prompts: Sequence[int]) -> Pass:
        """So many of the prompts, read before anything is sampled."""
        longest = max(prompts)
        used = round(count * sum(prompts) / len(prompts))
        return self._packed(Layout(count * longest, longest, used), 0.0)

    def _folded(self) -> float:
        """Layers that are copied with the adapter in them while the policy samples."""
        lora = self.config.lora
        if lora is None or self._size != 4:
            return 0.0
        return 4.0 * sum(into * out for _, into, out in self.base.adapted(lora))

    def _evaluation(self, step: Evaluate) -> Use:
        acts = self._activations(dropout=False)
        prompts = self._prompts(step.data, step.max_prompt_length)
        rows = math.ceil(step.prompts / self.sharding.world_size)
        length = max(prompts) + step.max_new_tokens
        tokens = self.tokens_per_forward()
        row = round(min(tokens, ROW_STRETCH * length))
        read = self._packed(Layout(tokens, row, tokens), tokens / 2)
        sampling = acts.sampling(rows, self._read(rows, prompts), length)
        return replace(
            self._weights("sampling", _roles(step, self.config)),
            activations=max(sampling, acts.forward(read)),
            cache=acts.cache(rows, length),
        )


# --- roles ---------------------------------------------------------------------------------------


def _models(step: Reward | DPO) -> int:
    """Adapters (or copies) that the step makes."""
    return step.ensemble.members if isinstance(step, Reward) and step.ensemble else 1


def _trained(step: PPO) -> int:
    train = step.train
    return 2 if train.has_value and train.value == "adapter" else 1


def _roles(step: Step, config: Config) -> int:
    """Roles of the step that have weights of their own."""
    if isinstance(step, Pretrain | Export):
        return 0
    if isinstance(step, SFT):
        return 1
    if isinstance(step, Reward | DPO):
        return _models(step)
    if isinstance(step, PPO):
        reference = _has_weights(step.policy, config)
        judged = sum(_scorers(judge, config) for _, judge in step.judges_used())
        return reference + _trained(step) + _scorers(step.reward, config) + judged
    assert isinstance(step, Evaluate)
    policies = {*step.policies, step.baseline}
    judges = sum(_scorers(judge, config) for _, judge in step.judges_used())
    return sum(_has_weights(name, config) for name in policies) + judges


def _has_weights(name: str, config: Config) -> bool:
    """Whether a policy is more than a bare base."""
    return name != "base" and not isinstance(config.steps[name], Pretrain)


def _scorers(reward: AnyReward, config: Config) -> int:
    """Reward models on the policy's base among the rewards."""
    named = dict.fromkeys(leaf for _, leaf in leaves(reward, "") if isinstance(leaf, str))
    found = [config.steps[name] for name in named if name in config.steps]
    return sum(_models(step) for step in found if isinstance(step, Reward))


def sharding_of(config: Config, world_size: int) -> Sharding:
    """How the configuration spreads training over so many ranks. Raises ConfigError for a DeepSpeed
    file that cannot be used."""
    if config.deepspeed is None or not Path(config.deepspeed).is_file():
        return Sharding(world_size)
    stage = deepspeed_settings.stage_of(deepspeed_settings.read(config.deepspeed))
    return Sharding(world_size, stage)
