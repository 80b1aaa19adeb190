"""Sequence to scalar: what a reward is, not how it is trained."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reward_models.reward_model import RewardModel

__all__ = ["RewardModel"]


def __getattr__(name: str) -> Any:
    if name == "RewardModel":
        from reward_models.reward_model import RewardModel

        return RewardModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
