"""What must hold before a policy is changed for the first time, and of every number it learns from.

Policy and reference start as the same weights, so before the first update their log-probabilities
are equal, and those recorded while sampling equal those of a packed forward. Whatever breaks this
(another temperature, another reference, wrong positions, dropout, an end that is not scored) would
otherwise show as a policy that learns a little worse than it could.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from align.roles import Roles
from align.rollout import Rollout
from align.training import NonFiniteError
from preference_data.batches import pack
from preference_data.rendering import Renderer

log = logging.getLogger("align")

SINGLE, HALF = 1e-4, 2e-2
"""Nats by which log-probabilities of the same weights may differ: on any token in float32, in the
mean over tokens in 16 bits, where a single unlikely token may be further off."""


class FailedInvariant(RuntimeError):
    """Something that must hold before the first update does not; the message says what."""


def check_first_rollout(rollout: Rollout, roles: Roles, temperature: float) -> None:
    """Scores are numbers, every token up to the end counts, and the policy is the reference.

    Raises FailedInvariant.
    """
    if not bool(torch.isfinite(rollout.scores).all()):
        raise FailedInvariant("a score of the first rollout is not a number")
    check_ends(rollout, roles.renderer)
    check_reference(rollout, roles, temperature)


def check_ends(rollout: Rollout, renderer: Renderer) -> None:
    """The last token under a row's mask is its response's last, the end token where it ended.

    Masks come from lengths. Were they made of `ids != pad`, a tokenizer whose pad token is its end
    token would lose the end, and the policy would never learn to stop. Raises FailedInvariant.
    """
    end = renderer.tokenizer.eos_token_id
    for row, sample in enumerate(rollout.samples):
        ids = sample.group.completions[0]
        counted = int(rollout.mask[row].sum())
        if counted != len(ids):
            raise FailedInvariant(
                f"response {row} of the first rollout has {len(ids)} tokens, but {counted} of them "
                f"count; its last token, which carries the score, is {_shown(ids[-1], renderer)}"
            )
        if end in ids[:-1] or (ids[-1] == end) != sample.ended:
            raise FailedInvariant(
                f"response {row} of the first rollout {'ended' if sample.ended else 'did not end'}"
                f", but its last token is {_shown(ids[-1], renderer)}; check that the tokenizer's "
                f"eos_token {_shown(end, renderer)} is what ends an answer in its chat template"
            )


def check_reference(rollout: Rollout, roles: Roles, temperature: float) -> None:
    """The policy's recorded log-probabilities are the reference's. Raises FailedInvariant."""
    drift = (rollout.logprobs - rollout.reference).abs()
    if agree(float(drift.max()), float(drift[rollout.mask].mean()), roles):
        return
    row, place = divmod(int(drift.argmax()), drift.shape[1])
    sample = rollout.samples[row]
    batch = pack([sample.group]).to(roles.model.device)
    with torch.no_grad():
        again = roles.logprobs("policy", batch, temperature).logprobs
    off = float((again.cpu() - rollout.logprobs[row, : len(again)]).abs().max())
    ours = off <= float(drift.max()) / 2
    raise FailedInvariant(
        f"before the first update the policy is the reference, but the log-probability of token "
        f"{place} of response {row}, {_shown(sample.group.completions[0][place], roles.renderer)}, "
        f"differs by {float(drift.max()):.3g} nats (mean {float(drift[rollout.mask].mean()):.3g}); "
        + (
            "a forward of the policy confirms what was sampled, so the reference has other "
            "weights: give both the same start, or delete the run folder of the policy's step if "
            "it was changed since"
            if ours
            else "a forward of the policy does not give what was recorded while sampling, so the "
            "sampler sees another distribution: compare temperature, positions and dropout"
        )
    )


def check_ratio(largest: float, mean: float, roles: Roles) -> None:
    """Before the first update a forward of the policy gives the log-probabilities recorded while
    sampling: the ratio is 1. `largest` and `mean` |log ratio|. Raises FailedInvariant."""
    if not agree(largest, mean, roles):
        raise FailedInvariant(
            f"before the first update the policy's log-probabilities differ from those recorded "
            f"while sampling by up to {largest:.3g} nats (mean {mean:.3g}), so the first ratio is "
            f"not 1; sampling and training must share the temperature, and dropout must be off"
        )


def agree(largest: float, mean: float, roles: Roles) -> bool:
    """Whether two computations of the same log-probabilities differ by rounding alone."""
    half = {parameter.dtype for parameter in roles.parameters()} & {torch.bfloat16, torch.float16}
    return mean <= HALF if half else largest <= SINGLE  # a NaN agrees with nothing


def check_finite(iteration: int, rollout: Rollout, numbers: Mapping[str, Tensor]) -> None:
    """Raises NonFiniteError that names the iteration and the rows of what is not a number.

    `numbers` by name: [B], or [B, R] whose places outside the mask do not matter.
    """
    for name, values in numbers.items():
        finite = torch.isfinite(values)
        wrong = ~(finite if values.ndim == 1 else (finite | ~rollout.mask).all(dim=1))
        rows = wrong.nonzero().flatten().tolist()
        if rows:
            shown = ", ".join(map(str, rows[:8])) + (", …" if len(rows) > 8 else "")
            raise NonFiniteError(
                f"in iteration {iteration} the {name} of {len(rows)} of {len(rollout.samples)} "
                f"responses is not a number (rows {shown}); nothing was learnt from it"
            )


def say_where_the_score_stands(rollout: Rollout, renderer: Renderer) -> None:
    """One line of the log: which token of the first response carries its score."""
    sample = rollout.samples[0]
    ids = sample.group.completions[0]
    log.info(
        "the score of a response is the reward of its last token, its end included: "
        "%.3g on token %d of %d of the first response, %s (%s)",
        sample.score, len(ids), len(ids), _shown(ids[-1], renderer),
        "its end" if sample.ended else "it was cut off",
    )  # fmt: skip


def _shown(token: int, renderer: Renderer) -> str:
    return f"{renderer.tokenizer.decode([token])!r} (id {token})"
