"""What judges answers without training on them: gold, a reward step, or what reads text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from align.config import SingleReward
from align.rewards import Sampled, text_scorer
from align.roles import Roles, load_head
from align.rollout import packed_scores
from align.stage import StageContext
from reward_models.scalar_head import Scoring

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
    weights = context.weights_of(step)
    assert weights is not None
    roles.add(role, weights=weights, head=load_head(weights))


def make_judge(
    context: StageContext, roles: Roles, judge: SingleReward, role: str, tokens: int, option: str
) -> Judge:
    """The judge that an `option` of the step names; `role` is that of a reward step's, whose
    forwards hold at most `tokens` tokens."""
    if judge == GOLD:
        return _gold
    if isinstance(judge, str):
        return _reward_judge(context, roles, judge, role, tokens)
    scorer = text_scorer(judge, f"steps.{context.name}.{option}", str(context.engine.device))
    return lambda answers: context.engine.from_main(lambda: scorer(answers).values)


def _gold(answers: Sequence[Sampled]) -> list[float]:
    from preference_data.synthetic import gold_score

    return [gold_score(answer.prompt.text, answer.completion) for answer in answers]


def _reward_judge(context: StageContext, roles: Roles, step: str, role: str, tokens: int) -> Judge:
    weights = context.weights_of(step)
    assert weights is not None
    scoring = Scoring.load(weights)
    scoring.check(roles.renderer.fingerprint(), f"the reward model {step!r}")
    bos = roles.renderer.tokenizer.bos_token_id

    def judge(answers: Sequence[Sampled]) -> list[float]:
        engine = context.engine
        mine = [scoring.cut(answer.group, bos) for answer in engine.share(answers)]
        raw = packed_scores(roles, role, mine, tokens, engine) if mine else []
        return [(score - scoring.mean) / scoring.std for score in engine.gather(raw)]

    return judge
