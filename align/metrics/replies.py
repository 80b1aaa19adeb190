"""What replies say of the policy that wrote them: how often it beats another, how varied it is."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from preference_data.votes.agreement import Interval
from reward_models.calibration import Array, reward_accuracy


def win_rate(policy: Array, baseline: Array, seed: int, resamples: int = 2000) -> Interval:
    """How often the policy's score is above the baseline's on the same prompt; a tie is half a win.

    `policy` and `baseline` [N] are the scores that a judge gave to their replies. The 95 % interval
    is that of any share of prompts (`share_intervals`): a bootstrap over them, or Wilson's of few
    prompts, or where all are won, lost or tied.
    """
    each = np.arange(len(policy))
    return reward_accuracy(policy - baseline, np.ones(len(policy)), each, seed, resamples)


def distinct_n(replies: Sequence[str | Sequence[Hashable]], n: int) -> float:
    """Different n-grams of all replies by the number of n-grams, in [0, 1]; 0 if there are none.

    A reply is its tokens, or a text whose words are parted by whitespace; no n-gram reaches from
    one reply into the next. After Li et al. 2016, arXiv:1510.03055, section 5.2, who divide by the
    number of words instead.
    """
    if n < 1:
        raise ValueError(f"n is {n}: it must be 1 or more.")
    tokens = [reply.split() if isinstance(reply, str) else reply for reply in replies]
    found = [gram for reply in tokens for gram in zip(*(reply[i:] for i in range(n)), strict=False)]
    return len(set(found)) / max(1, len(found))
