"""Proximal policy optimisation (Schulman et al. 2017) on a learned reward (Ziegler et al. 2019).

Policy, reference, reward and value are roles on one base; an iteration is in
`align.policy_gradient`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from align.artifacts import Rows
from align.config import PPOTrain
from align.policy_gradient import Optimiser
from align.proofs import prove_policy
from align.rewards import make_scorer
from align.roles import Roles, load_head
from align.rollout import Roller, Rollout
from align.stage import StageContext, StageResult
from preference_data import views
from preference_data.rendering import Rendered, RenderingError
from reward_models.scalar_head import ScalarHead, Scoring, value_head_from

SAMPLES_KEPT = 8
"""Rows of the sample table at each of SAMPLE_TIMES evenly spaced iterations."""
SAMPLE_TIMES = 6


def run(context: StageContext) -> StageResult:
    """Optimises the policy on the training side of the prompts."""
    train = context.step.train
    roles = _make_roles(context)
    texts, rows = _prompts(context, roles)
    scorer = make_scorer(context, roles, texts)
    roller = Roller(
        roles, scorer, context.engine, train.temperature, train.tokens_per_forward,
        train.rollout_batch_size,
    )  # fmt: skip
    optimiser = Optimiser(context.engine, roles, roller, train, context.seed)
    metrics: dict[str, float] = {}
    for iteration, batch in enumerate(_batches(list(texts), train, context.seed), 1):
        metrics = optimiser.step(iteration, batch)
        context.tracker.log(iteration, metrics)
        if iteration == 1 or iteration % max(1, train.iterations // (SAMPLE_TIMES - 1)) == 0:
            context.tracker.table("samples", _samples(iteration, optimiser.rollout, roles, texts))
    optimiser.training.close()
    if context.engine.is_main:
        saved = roles.save("policy", context.folder)
        group = optimiser.rollout.samples[0].group
        row = Rendered(group.prompt, group.completions[0])
        prove_policy(context, roles, "policy", saved, row)
    context.engine.barrier()
    return StageResult(metrics, rows=rows, base=roles.base_path)


def _make_roles(context: StageContext) -> Roles:
    """Four roles on the base under the policy; the value starts as the reward model."""
    step = context.step
    roles = context.load_roles(step.policy)
    start = context.weights_of(step.policy)
    roles.add("reference", weights=start)
    roles.add("policy", weights=start, fresh=True, trainable=True)
    torch.manual_seed(context.seed)
    if isinstance(step.reward, str):
        weights = context.weights_of(step.reward)
        assert weights is not None
        if context.base_of(step.reward) != roles.base_path:
            raise RuntimeError(
                f"the reward model {step.reward!r} stands on {context.base_of(step.reward)}, the "
                f"policy on {roles.base_path}; both must share one base"
            )
        head, scoring = load_head(weights), Scoring.load(weights)
        scoring.check(roles.renderer.fingerprint(), f"the reward model {step.reward!r}")
        roles.add("reward", weights=weights, head=head)
        roles.add("value", weights=weights, trainable=True, head=value_head_from(head, scoring))
    else:
        head = ScalarHead(roles.model.config.hidden_size, bias=True)
        torch.nn.init.zeros_(head.weight)
        roles.add("value", weights=start, fresh=True, trainable=True, head=head)
    return roles.to(
        context.engine.device
    ).eval()  # dropout would make the first ratio differ from 1


def _prompts(context: StageContext, roles: Roles) -> tuple[dict[tuple[int, ...], str], Rows]:
    """The training side's prompts by their ids, and their account."""
    source = context.step.data
    every = views.prompts(context.data[source])
    training, _ = context.split(source, every)
    texts: dict[tuple[int, ...], str] = {}
    for prompt in training:
        try:
            row = roles.renderer.prompt(prompt)
        except RenderingError:
            continue
        if len(row) <= context.step.train.max_prompt_length:
            texts[row] = prompt.text
    if not texts:
        raise RuntimeError(
            f"no prompt of data.{source} fits into max_prompt_length "
            f"{context.step.train.max_prompt_length}"
        )
    return texts, Rows(len(training), len(texts), len(training) - len(texts))


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
            "kl": kl,
            "length": len(sample.logprobs),
        }
        for sample, kl in zip(
            rollout.samples[:SAMPLES_KEPT], rollout.kl[:SAMPLES_KEPT].tolist(), strict=True
        )
    ]
