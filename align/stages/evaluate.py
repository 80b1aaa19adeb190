"""Policies against a baseline on held-out prompts: win rates, KL, lengths, and samples to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from align.artifacts import Rows
from align.config_rewards import label_of
from align.ensembles import reward_weights
from align.judges import GOLD, Judge, add_judge, make_judge
from align.metrics.replies import win_rate
from align.policy import check_positions, respond, uniforms
from align.progress import tracked
from align.prompts import asked_prompts, fitting
from align.rankings import Ranked, by_group, load_rankings
from align.report_card import judged_of
from align.rewards import Sampled
from align.roles import Roles
from align.rollout import packed_scores, packed_tokens
from align.stage import StageContext, StageResult
from preference_data.batches import Group
from reward_models.calibration import Array, correlation, named, reward_accuracy
from reward_models.report_card import Judged
from reward_models.scalar_head import Scoring, Truncation

REWARD_READS_UP_TO = 1 << 30


@dataclass(frozen=True)
class Reply:
    """A policy's answer to a prompt."""

    ids: tuple[int, ...]
    text: str
    ended: bool
    kl: float
    """log pi - log baseline, summed over the tokens, nats"""


def run(context: StageContext) -> StageResult:
    """1 the prompts; 2 every policy's replies with the same draws; 3 every judge's scores;
    4 win rates with intervals; 5 the reward models' accuracy.

    The numbers come from the functions behind the modules of `align.metrics`.
    """
    step = context.step
    policies = list(dict.fromkeys((step.baseline, *step.policies)))
    roles = _make_roles(context, policies)
    prompts, rows = _prompts(context, roles)  # 1
    draws = uniforms(context.seed, len(prompts), step.max_new_tokens)
    replies = {  # 2
        policy: _replies(context, roles, policy, prompts, draws)
        for policy in tracked(policies, "replies", "policies")
    }
    scores = {  # 3
        name: {policy: judge(_answers(prompts, replies[policy])) for policy in policies}
        for name, judge in tracked(_judges(context, roles).items(), "judgement", "judges")
    }
    metrics = _win_rates(context, scores, policies)  # 4
    for policy in policies:
        metrics |= _facts(policy, replies[policy])
    metrics |= _reward_accuracy(context, roles)  # 5
    samples = [
        {
            "prompt": prompt.text,
            "policy": policy,
            "completion": replies[policy][i].text,
            **{name: by_policy[policy][i] for name, by_policy in scores.items()},
        }
        for i, (prompt, _) in enumerate(prompts)
        for policy in policies
    ]
    context.tracker.log(0, metrics)
    context.tracker.table("samples", samples)
    return StageResult(metrics, rows=rows)


def _make_roles(context: StageContext, policies: list[str]) -> Roles:
    """Every policy and every reward judge on the baseline's base."""
    step = context.step
    roles = context.load_roles(step.baseline)
    for name in policies:
        if context.base_of(name) != roles.base_path:
            raise RuntimeError(
                f"{name!r} stands on {context.base_of(name)}, {step.baseline!r} on "
                f"{roles.base_path}; one evaluation needs one base"
            )
        roles.add(name, weights=context.weights_of(name))
    for judge in step.judges:
        if isinstance(judge, str) and judge != GOLD:
            add_judge(context, roles, judge, judge)
    return roles.to(context.engine.device).eval()


def _prompts(context: StageContext, roles: Roles):
    """[(prompt, ids)] of the held-out side, and their account."""
    step = context.step
    asked = asked_prompts(context)
    found = fitting(context.config, context.name, asked, roles.renderer)
    check_positions(
        roles.model.config, [ids for _, ids in found], step.max_new_tokens, context.name
    )
    return found, Rows(len(asked), len(found), len(asked) - len(found))


def _replies(context: StageContext, roles: Roles, policy: str, prompts, draws) -> list[Reply]:
    step, engine = context.step, context.engine
    mine = engine.share(range(len(prompts)))
    replies: list[Reply] = []
    if mine:
        with roles.active(policy) as model:
            responses = respond(
                model, [prompts[i][1] for i in mine], draws[mine], roles.renderer, step.temperature
            )
        groups = [Group(prompts[i][1], (r.ids,)) for i, r in zip(mine, responses, strict=True)]
        under_baseline = packed_tokens(
            groups,
            lambda batch: roles.logprobs(step.baseline, batch, step.temperature).logprobs,
            engine,
        )
        replies = [
            Reply(r.ids, roles.renderer.decode(r.ids), r.ended, sum(r.logprobs) - sum(reference))
            for r, reference in zip(responses, under_baseline, strict=True)
        ]
    return engine.gather(replies)


def _answers(prompts, replies: Sequence[Reply]) -> list[Sampled]:
    return [
        Sampled(prompt, reply.text, Group(ids, (reply.ids,)))
        for (prompt, ids), reply in zip(prompts, replies, strict=True)
    ]


def _judges(context: StageContext, roles: Roles) -> dict[str, Judge]:
    judges: dict[str, Judge] = {}
    for number, judge in enumerate(context.step.judges):
        name, option = label_of(judge), f"judges[{number}]"
        judges[name] = make_judge(context, roles, judge, name, option)
    return judges


def _win_rates(context: StageContext, scores, policies: list[str]) -> dict[str, float]:
    """Per judge: mean scores, and each policy's win rate over the baseline; a tie is half a win."""
    metrics: dict[str, float] = {}
    baseline = context.step.baseline
    for judge, by_policy in scores.items():
        for policy in policies:
            metrics[f"evaluate/{judge}/score/{policy}"] = float(np.mean(by_policy[policy]))
            if policy == baseline:
                continue
            found = win_rate(
                np.array(by_policy[policy]),
                np.array(by_policy[baseline]),
                context.seed,
                context.step.bootstrap,
            )
            metrics |= named(f"evaluate/{judge}/win_rate/{policy}_vs_{baseline}", found)
    return metrics


def _facts(policy: str, replies: list[Reply]) -> dict[str, float]:
    return {
        f"evaluate/kl/{policy}": float(np.mean([reply.kl for reply in replies])),
        f"evaluate/length/{policy}": float(np.mean([len(reply.ids) for reply in replies])),
        f"evaluate/eos_rate/{policy}": float(np.mean([reply.ended for reply in replies])),
    }


def _reward_accuracy(context: StageContext, roles: Roles) -> dict[str, float]:
    """Each reward judge on held-out judgements, as its own step measures it: against the labels,
    and against gold where it is known."""
    step = context.step
    rewards = [j for j in step.judges if isinstance(j, str) and j != GOLD]
    if step.preferences is None or not rewards:
        return {}
    metrics: dict[str, float] = {}
    read: dict[tuple[int, Truncation], list[Ranked]] = {}
    for name in rewards:
        limits = _limits(context, name)
        if limits not in read:
            read[limits] = load_rankings(context, step.preferences, roles.renderer, *limits).test
        if rows := read[limits]:
            judged = judged_of(rows, _answer_scores(context, roles, name, rows), context.clusters)
            metrics |= _against_labels(context, name, judged)
            if GOLD in step.judges:
                metrics |= _against_gold(context, name, judged, _gold_scores(rows))
    return metrics


def _answer_scores(context: StageContext, roles: Roles, role: str, rows: Sequence[Ranked]) -> Array:
    """[N] scores of all answers of `rows`, computed by all ranks."""
    mine = context.engine.share(rows)
    groups = [row.group for row in mine]
    flat = packed_scores(roles, role, groups, context.engine)
    return torch.cat(context.engine.gather(by_group(mine, flat))).numpy()


def _against_labels(context: StageContext, reward: str, judged: Judged) -> dict[str, float]:
    found = reward_accuracy(
        judged.margins, judged.weights, judged.clusters, context.seed, context.step.bootstrap
    )
    return named(f"evaluate/{reward}/accuracy", found)


def _against_gold(
    context: StageContext, reward: str, judged: Judged, scores: Array
) -> dict[str, float]:
    """The same against the order of the gold `scores` [N]; pairs that gold ties are left out of the
    accuracy."""
    gold = scores[judged.better] - scores[judged.worse]
    decided = gold != 0
    if not decided.any():
        return {}
    found = reward_accuracy(
        (judged.margins * np.sign(gold))[decided],
        judged.weights[decided],
        judged.clusters[decided],
        context.seed,
        context.step.bootstrap,
    )
    return {
        **named(f"evaluate/{reward}/gold_accuracy", found),
        f"evaluate/{reward}/gold_correlation": correlation(judged.margins, gold),
    }


def _gold_scores(rows: Sequence[Ranked]) -> Array:
    """[N] gold scores of all answers of `rows`."""
    from preference_data.synthetic import gold_score

    return np.array(
        [
            gold_score(row.judgement.prompt.text, response.text)
            for row in rows
            for response in row.judgement.responses
        ]
    )


def _limits(context: StageContext, name: str) -> tuple[int, Truncation]:
    """max_length and truncation under which the reward model reads judgements, as in training; one
    that cuts nothing is asked about conversations of any length."""
    scoring = Scoring.load(reward_weights(context, name)[0])
    limit = REWARD_READS_UP_TO if scoring.truncation == "none" else scoring.max_length
    return limit, scoring.truncation
