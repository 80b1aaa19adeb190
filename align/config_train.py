"""How a step trains: the settings of supervised, ranking and preference training."""
# pyright: strict

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from align.config_errors import ConfigError
from align.config_section import NonNegativeFloat, PositiveFloat, PositiveInt, Section
from preference_data.forward_size import rows_at_once


class Train(Section):
    """Settings that every gradient step shares; names as in transformers' TrainingArguments."""

    num_train_epochs: PositiveFloat = 1.0
    """Passes over the training rows."""
    max_steps: PositiveInt | None = None
    """Stop after so many optimiser steps, whatever num_train_epochs says."""
    train_batch_size: PositiveInt = 32
    """Rows between two optimiser steps, over all ranks."""
    learning_rate: PositiveFloat = 1e-4
    """The largest one, after the warm-up."""
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    """Shape of the learning rate after the warm-up; linear and cosine end at 0."""
    warmup_steps: NonNegativeFloat = 0.05
    """Steps in which the learning rate rises from 0; below 1, a share of all steps."""
    weight_decay: NonNegativeFloat = 0.0
    """Of AdamW, decoupled from the gradient (arXiv:1711.05101)."""
    adam_epsilon: PositiveFloat = 1e-8
    """Added to the denominator of Adam's update."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this global norm."""
    max_length: PositiveInt = 512
    """Tokens of a row, prompt and completion together."""
    logging_steps: PositiveInt = 10
    """Optimiser steps between two lines of metrics."""

    def ineffective(self) -> Iterator[tuple[str, str]]:
        if self.max_steps is not None and self.sets("num_train_epochs"):
            yield "num_train_epochs", "beside max_steps"


class TextTrain(Train):
    """Settings of training on text, token after token."""

    per_device_train_batch_size: PositiveInt | None = None
    """Rows of one forward pass on one rank; does not change the result of one process but for
    rounding. By default as many as hold 1024 tokens on a CPU and 8192 on a GPU, if each is as long
    as the longest: where one row is far longer than the others, more may be faster."""

    def micro_batch_size(self, world_size: int, longest: int, device: str) -> int:
        """Rows of at most `longest` tokens of one forward pass on one rank, a device of this type.
        Raises ConfigError if the sizes do not divide."""
        per_rank, rest = divmod(self.train_batch_size, world_size)
        if rest:
            raise ConfigError(
                f"train_batch_size {self.train_batch_size} does not divide by {world_size} ranks."
            )
        micro = self.per_device_train_batch_size or rows_at_once(per_rank, longest, device)
        if per_rank % micro:
            raise ConfigError(
                f"per_device_train_batch_size {micro} does not divide the {per_rank} rows that a "
                f"rank takes of train_batch_size {self.train_batch_size}."
            )
        return micro


class RankingTrain(Train):
    """Settings of training on judgements."""

    tokens_per_forward: PositiveInt | None = None
    """Tokens one forward pass holds on one rank, whole judgements; does not change the result. By
    default 1024 on a CPU, 8192 on a GPU."""
    save_steps: PositiveInt = 100
    """Optimiser steps between two checkpoints, from which an interrupted step goes on; does not
    change the result."""
    truncation: Literal["none", "left"] = "none"
    """Of a judgement longer than max_length: `none` leaves it out, `left` cuts the beginning of its
    prompt, never an answer, and leaves it out only if an answer takes up all of max_length. A
    reward model then reads what it scores in the same way."""

    def ineffective(self) -> Iterator[tuple[str, str]]:
        yield from super().ineffective()
        if self.sets("save_steps") and self.max_steps and self.save_steps >= self.max_steps:
            yield "save_steps", f"with max_steps {self.max_steps}; none comes before the end"


Ties = Literal["drop", "half", "rao_kupper", "davidson"]


class RewardTrain(RankingTrain):
    """Settings of the reward model's training."""

    loss: Literal["bradley_terry", "plackett_luce", "regression"] = "bradley_terry"
    """What is made of a judgement (reward_models/losses.py). `bradley_terry` takes every two
    answers that are ranked, and their mean; `plackett_luce` each answer as the choice among those
    ranked below it (Plackett 1975), and their mean: of two answers the same. `regression` draws
    scores to ratings, which are standardised by their scale, and to thumbs up and down
    (sigmoid(score) is the probability of up); ranks without ratings then train nothing."""
    ties: Ties | None = None
    """What is made of two answers of equal ranks, for whatever reason nobody won (tie, both_good,
    both_bad); the losers of a best-of, and answers without a rank, were not compared and are no
    ties. `davidson` (1970) and `rao_kupper` (1967) give a tie a probability of its own, whose
    parameter is learned with the head and stored with the model; under Davidson's, verdicts that
    are no ties follow Bradley and Terry, and without ties in the data nothing changes. `half`
    trains on a label of one half (under plackett_luce: on those that tie in any order, Efron 1977),
    `drop` on nothing. A soft label, as of aggregated votes, holds its ties already, half for either
    side. null = davidson; half under plackett_luce and beside margin_from_scores."""
    tie_learning_rate: PositiveFloat = 0.01
    """Largest one of the tie parameter, a single number that starts from the share of ties."""
    center_coefficient: NonNegativeFloat = 0.01
    """Weight of (r_chosen + r_rejected)^2, or of a whole ranking's mean score, doubled and squared,
    which keeps scores around 0 (arXiv:2312.09244)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Assumed share of flipped labels; a tie is the same flipped."""
    margin_from_scores: NonNegativeFloat = 0.0
    """By how much the better answer's score is to exceed the worse one's, per point of difference
    between their ratings (Touvron et al. 2023, arXiv:2307.09288, eq. 2); needs data with scores."""

    @property
    def ties_as(self) -> Ties:
        """What is made of ties, where loss and margins have a say in it."""
        margins = self.loss == "plackett_luce" or self.margin_from_scores > 0
        return self.ties or ("half" if margins else "davidson")

    @property
    def tie_model(self) -> Literal["rao_kupper", "davidson"] | None:
        """The model in which a tie has a probability of its own, if there is to be one."""
        ties = self.ties_as
        return ties if self.loss == "bradley_terry" and ties not in ("drop", "half") else None

    @property
    def trains(self) -> Literal["pairs", "ties", "ratings"]:
        """What of a judgement is trained on: ordered pairs, these and its ties, or its ratings."""
        if self.loss == "regression":
            return "ratings"
        return "pairs" if self.ties_as == "drop" else "ties"

    def ineffective(self) -> Iterator[tuple[str, str]]:
        yield from super().ineffective()
        pairwise = ("label_smoothing", "margin_from_scores")
        unread = {
            "bradley_terry": (),
            "plackett_luce": pairwise,
            "regression": (*pairwise, "ties", "center_coefficient"),
        }
        for option in unread[self.loss]:
            if self.sets(option):
                yield option, f"on {self.loss}"
        if self.sets("tie_learning_rate") and self.tie_model is None:
            yield "tie_learning_rate", "but on ties davidson and rao_kupper of loss bradley_terry"

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """(option, what is wrong), as `Step.contradictions`."""
        if self.ties not in ("rao_kupper", "davidson"):
            return
        if self.loss == "plackett_luce":
            yield (
                "ties",
                f"is {self.ties}, a model of two answers, but loss is plackett_luce; choose half "
                f"or drop, or loss bradley_terry",
            )
        elif self.loss == "bradley_terry" and self.margin_from_scores:
            yield (
                "margin_from_scores",
                f"asks for margins of its own, but under ties {self.ties} those that end in ties "
                f"are learned; choose ties half or drop",
            )


class DPOTrain(RankingTrain):
    """Settings of direct preference optimisation."""

    loss: Literal["sigmoid", "hinge", "ipo", "robust", "simpo", "orpo"] = "sigmoid"
    """What is made of a pair (align/dpo_losses.py): DPO's own, SLiC's hinge, IPO, DPO for flipped
    labels, and two without a reference, SimPO and ORPO."""
    beta: PositiveFloat = 0.1
    """Strength of the pull to the reference (Rafailov et al. 2023, eq. 7); in simpo the scale of
    the rewards, in orpo the weight of the odds ratio beside the likelihood."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Assumed share of flipped labels (conservative DPO; under robust, robust DPO)."""
    margin: NonNegativeFloat = 0.0
    """By how much the chosen reward is to exceed the rejected one: the offset of ODPO, the gamma of
    SimPO; in units of beta times nats."""
    offset_from_scores: NonNegativeFloat = 0.0
    """The alpha of ODPO (Amini et al. 2024, arXiv:2402.10571): each pair's margin grows by alpha
    times the log of the difference between its ratings, so that a difference of 1 changes nothing
    and a smaller one lowers it; needs data with scores."""
    length_normalised: bool = False
    """Log-ratios are means over the completion's tokens instead of sums."""

    @property
    def averages(self) -> bool:
        """Whether a completion counts by its mean over tokens."""
        return self.length_normalised or self.loss in ("ipo", "simpo", "orpo")

    @property
    def needs_reference(self) -> bool:
        return self.loss not in ("simpo", "orpo")

    def ineffective(self) -> Iterator[tuple[str, str]]:
        yield from super().ineffective()
        if self.loss in ("ipo", "simpo", "orpo") and self.sets("length_normalised"):
            yield "length_normalised", f"on {self.loss}, which takes means over tokens in any case"
        if self.loss in ("hinge", "ipo", "orpo"):
            if self.sets("label_smoothing"):
                yield "label_smoothing", f"on {self.loss}, only on sigmoid, robust and simpo"
            for option in ("margin", "offset_from_scores"):
                if self.sets(option):
                    yield option, f"on {self.loss}, only on sigmoid, robust and simpo"

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """(option, what is wrong), as `Step.contradictions`."""
        if self.loss == "robust" and self.label_smoothing == 0:
            yield (
                "label_smoothing",
                "is 0, but loss is robust, which corrects for that share of flipped labels; set "
                "it, or use sigmoid",
            )
        if not self.sets("beta") and (self.loss == "simpo" or self.length_normalised):
            what = "simpo" if self.loss == "simpo" else "length_normalised"
            yield (
                "beta",
                f"must be set with {what}: its default of 0.1 is for sums over tokens, and means "
                "need about 2 to 10",
            )
