"""Proximal policy optimisation (Schulman et al. 2017) on a learned reward (Ziegler et al. 2019).

Policy, reference, reward and value are roles on one base; an iteration is in
`align.policy_gradient`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from align.artifacts import Rows
from align.config import PPOTrain
from align.policy import check_positions
from align.policy_gradient import Optimiser
from align.progress import tracked
from align.prompts import asked_prompts, fitting
from align.proofs import prove_policy
from align.ptx import load_demonstrations
from align.rewards import add_reward_roles, make_scorer, value_start
from align.roles import Roles
from align.rollout import Roller, Rollout
from align.stage import StageContext, StageResult
from align.watch import Watch
from preference_data.records import Prompt
from preference_data.rendering import Rendered
from reward_models.scalar_head import ScalarHead

SAMPLES_KEPT = 8
"""Rows of the sample table at each of SAMPLE_TIMES evenly spaced iterations."""
SAMPLE_TIMES = 6


def run(context: StageContext) -> StageResult:
    """Optimises the policy on the training side of the prompts."""
    train = context.step.train
    roles = _make_roles(context)
    prompts, rows = _prompts(context, roles)
    scorer = make_scorer(context, roles, prompts)
    prompts, rows = scorer.readable(rows)
    texts = {ids: prompt.text for ids, prompt in prompts.items()}
    roller = Roller(
        roles, scorer, context.engine, train.temperature, train.tokens_per_forward,
        train.rollout_batch_size,
    )  # fmt: skip
    watch = Watch(context, roles, prompts)
    demonstrations = train.ptx and load_demonstrations(context, roles.renderer, train.ptx)
    optimiser = Optimiser(context.engine, roles, roller, train, context.seed, demonstrations)
    metrics: dict[str, float] = {}
    done = _resume(context, optimiser, watch)
    batches = enumerate(_batches(list(texts), train, context.seed), 1)
    left = islice(batches, done, None)
    total = train.iterations
    for iteration, batch in tracked(left, "training", "iterations", total=total, done=done):
        with optimiser.training.whole() if train.stop_when_ill else nullcontext():
            watch.begin()
        metrics = optimiser.step(iteration, batch)
        metrics = watch.look(iteration, optimiser.rollout, metrics)
        context.tracker.log(iteration, metrics)
        if iteration == 1 or iteration % max(1, train.iterations // (SAMPLE_TIMES - 1)) == 0:
            context.tracker.table("samples", _samples(iteration, optimiser.rollout, roles, texts))
        if watch.stopped_at is not None:
            break
        if iteration % train.save_iterations == 0 and iteration < train.iterations:
            context.engine.checkpoints.save(
                iteration,
                optimiser.training,
                {"optimiser": optimiser.to_json(), "watch": watch.state()},
                tensors=watch.tensors(),
            )
    optimiser.training.close()
    metrics = watch.end(metrics)
    if context.engine.is_main:
        saved = roles.save("policy", context.folder)
        group = optimiser.rollout.samples[0].group
        row = Rendered(group.prompt, group.completions[0])
        prove_policy(context, roles, "policy", saved, row)
    context.engine.barrier()
    return StageResult(metrics, rows=rows, base=roles.base_path)


def _resume(context: StageContext, optimiser: Optimiser, watch: Watch) -> int:
    """Puts everything where the newest checkpoint left it; returns the iterations that are done.

    Prompts, draws and minibatches follow from the seed and the iteration: they are in none.
    """
    found = context.engine.checkpoints.restore(optimiser.training)
    if found.number:
        optimiser.load_json(found.state["optimiser"])
        watch.load_state(found.state["watch"], found.tensors)
    return found.number


def _make_roles(context: StageContext) -> Roles:
    """Four roles on the base under the policy; the value starts as the reward model."""
    step = context.step
    roles = context.load_roles(step.policy)
    start = context.weights_of(step.policy)
    roles.add("reference", weights=start)
    roles.add("policy", weights=start, fresh=True, trainable=True)
    torch.manual_seed(context.seed)
    add_reward_roles(context, roles)
    if step.train.has_value:
        _add_value(context, roles, start)
    return roles.to(
        context.engine.device
    ).eval()  # dropout would make the first ratio differ from 1


def _add_value(context: StageContext, roles: Roles, start: Path | None) -> None:
    """The value function: an adapter and head started from the reward model, or from the policy's
    weights `start` and 0 without one; or a head on the policy's own trunk, which starts from 0."""
    trunk = context.step.train.value == "trunk"
    if not trunk and (known := value_start(context, roles)) is not None:
        weights, head = known
        roles.add("value", weights=weights, trainable=True, head=head)
        return
    head = ScalarHead(roles.model.config.hidden_size, bias=True)
    torch.nn.init.zeros_(head.weight)
    if trunk:
        roles.add_head("value", "policy", head)
    else:
        roles.add("value", weights=start, fresh=True, trainable=True, head=head)


def _prompts(context: StageContext, roles: Roles) -> tuple[dict[tuple[int, ...], Prompt], Rows]:
    """The training side's prompts by their ids, and their account."""
    training = asked_prompts(context)
    fits = fitting(context.config, context.name, training, roles.renderer)
    found = {ids: prompt for prompt, ids in fits}
    check_positions(
        roles.model.config, list(found), context.step.train.max_new_tokens, context.name
    )
    return found, Rows(len(training), len(found), len(training) - len(found))


def _batches(
    prompts: Sequence[tuple[int, ...]], train: PPOTrain, seed: int
) -> Iterator[list[tuple[int, ...]]]:
    """Prompts of each iteration, in a fresh order every pass; samples of a prompt side by side."""
    generator = torch.Generator().manual_seed(seed)
    queue: list[int] = []
    for _ in range(train.iterations):
        while len(queue) < train.prompts_per_iteration:
            queue += torch.randperm(len(prompts), generator=generator).tolist()
        now, queue = queue[: train.prompts_per_iteration], queue[train.prompts_per_iteration :]
        yield [prompts[i] for i in now for _ in range(train.samples_per_prompt)]


def _samples(
    iteration: int, rollout: Rollout, roles: Roles, texts: Mapping[tuple[int, ...], str]
) -> list[dict[str, Any]]:
    return [
        {
            "step": iteration,
            "prompt": texts[sample.group.prompt],
            "completion": roles.renderer.decode(sample.group.completions[0]),
            "score": sample.score,
            **sample.parts,
            "kl": kl,
            "length": len(sample.logprobs),
        }
        for sample, kl in zip(
            rollout.samples[:SAMPLES_KEPT], rollout.kl[:SAMPLES_KEPT].tolist(), strict=True
        )
    ]
