"""What judges answers without training on them: gold, a reward step, what reads text, or several.

A reward step is a role on the policies' base, and every rank scores its share; what reads text is
asked by the first rank alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from align.config import EnsembleReward, SingleReward
from align.config_rewards import PartReward, leaves
from align.ensembles import add_reward_step
from align.rewards import Sampled, Scorers, text_scorer
from align.roles import Roles
from align.stage import StageContext
from reward_models.scoring import Scorer, combined

GOLD = "gold"
"""The preference behind the built-in world's labels."""


Judge = Callable[[Sequence[Sampled]], list[float]]
"""All ranks' answers -> a score each, on every rank."""


def add_judge(context: StageContext, roles: Roles, step: str, role: str) -> None:
    """The reward model of `step` as a frozen role.

    Raises RuntimeError if it stands on another base than the policies do.
    """
    if context.base_of(step) != roles.base_path:
        raise RuntimeError(
            f"the judge {step!r} stands on {context.base_of(step)}, the policy on "
            f"{roles.base_path}; both must share one base"
        )
    add_reward_step(context, roles, step, role)


def make_judge(
    context: StageContext, roles: Roles, judge: PartReward, role: str, option: str,
    tokens: int | None = None,
) -> Judge:  # fmt: skip
    """The judge that an `option` of the step names; `role` is that of a reward step's, whose
    forwards hold at most `tokens` tokens. Steps within an ensemble become roles here."""
    where = f"steps.{context.name}.{option}"
    if judge == GOLD:
        return _gold
    if isinstance(judge, str):
        scorers = Scorers(context, roles, lambda _: role, tokens)
        return _shared(context, scorers.step(judge, where))
    if not isinstance(judge, EnsembleReward):
        return _asked(context, judge, where)
    return _ensemble(context, roles, judge, role, tokens, where)


def _ensemble(
    context: StageContext, roles: Roles, judge: EnsembleReward, role: str, tokens: int | None,
    where: str,
) -> Judge:  # fmt: skip
    """Each member is asked as a judge of its own, but for those of one step, read together."""

    def role_of(step: str) -> str:
        return f"{role}_{step}"

    for _, leaf in leaves(judge, where):
        if isinstance(leaf, str) and not roles.has(role_of(leaf)):
            add_judge(context, roles, leaf, role_of(leaf))
    roles.to(context.engine.device).eval()
    scorers = Scorers(context, roles, role_of, tokens)
    if isinstance(judge.ensemble, str):
        return _shared(context, scorers.scorer(judge, where))
    members = [
        _shared(context, scorers.step(leaf, option))
        if isinstance(leaf, str)
        else _asked(context, leaf, option)
        for option, leaf in leaves(judge, where)
    ]

    def score(answers: Sequence[Sampled]) -> list[float]:
        each = [member(answers) for member in members]
        return combined(each, judge.combine, judge.std_weight).values

    return score


def _shared(context: StageContext, scorer: Scorer[Sampled]) -> Judge:
    """Every rank scores its share."""

    def score(answers: Sequence[Sampled]) -> list[float]:
        mine = context.engine.share(answers)
        return context.engine.gather(scorer(mine).values if mine else [])

    return score


def _asked(context: StageContext, judge: SingleReward, where: str) -> Judge:
    """The first rank asks for the scores of all."""
    assert not isinstance(judge, str)
    scorer = text_scorer(judge, where, str(context.engine.device))
    return lambda answers: context.engine.from_main(lambda: scorer(answers).values)


def _gold(answers: Sequence[Sampled]) -> list[float]:
    from preference_data.synthetic import gold_score

    return [gold_score(answer.prompt.text, answer.completion) for answer in answers]
