"""Answers to scores behind one protocol: a function, a model, an ensemble, a sum.

A scorer is called with answers and gives one finite number each; whatever else comes back is
refused with the reward and the row. Nothing here imports torch: arrays and tensors are read by
their own `tolist`.
"""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from preference_data.counts import counted
from preference_data.records import Prompt

if TYPE_CHECKING:
    from preference_data.batches import Group
    from reward_models.reward_model import RewardModel


class ScoringError(RuntimeError):
    """A reward that gave no usable score; the message names it and the row."""


@dataclass(frozen=True)
class Answer:
    """What is scored."""

    prompt: Prompt
    completion: str


@dataclass(frozen=True)
class Scores:
    """A score for each of B answers, and what it was made of."""

    values: list[float]
    """[B]"""
    parts: Mapping[str, list[float]] = field(default_factory=dict[str, list[float]])
    """[B] by what they are logged as below `objective/`: `score/NAME` of a sum's part before its
    weight, `score_std` of an ensemble's members."""


Combine = Literal["mean", "min", "mean_minus_std"]
"""How the scores of an ensemble's members become one."""

Tracked = Callable[[list[Any]], Iterable[Any]]
"""Hands on the parts that something long is done in, and may show how far it is."""


def untracked(parts: list[Any]) -> list[Any]:
    """Shows nothing."""
    return parts


A = TypeVar("A", bound=Answer)
A_contra = TypeVar("A_contra", bound=Answer, contravariant=True)


class Scorer(Protocol[A_contra]):
    """Gives scores to answers; some need more than the text and take a kind of Answer with it."""

    def __call__(self, answers: Sequence[A_contra]) -> Scores:
        """A score for each answer, in their order. Raises ScoringError."""
        ...


def score(
    scorer: Scorer[Answer], prompts: Sequence[str | Prompt], completions: Sequence[str]
) -> list[float]:
    """The score of each completion of the prompt beside it. Raises ScoringError, and ValueError
    for lists of different lengths."""
    answers = [
        Answer(Prompt.from_text(prompt) if isinstance(prompt, str) else prompt, completion)
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    return scorer(answers).values


# --- what a score is ------------------------------------------------------------------------------


def checked(found: Any, answers: Sequence[Answer], name: str) -> list[float]:
    """`found` as a list of finite numbers, one for each answer.

    It is a sequence of numbers, or an array or tensor of shape [B]; single numbers may be numpy's
    or torch's. Raises ScoringError for anything else.
    """
    values = _plain(found)
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Sequence):
        raise ScoringError(
            f"{name} gave {_described(found)}; it must give a list of "
            f"{counted(len(answers), 'number')}, one for each answer"
        )
    if len(values) != len(answers):
        raise ScoringError(
            f"{name} gave {counted(len(values), 'score')} for {counted(len(answers), 'answer')}"
        )
    return [
        _number(value, row, answer, name)
        for row, (value, answer) in enumerate(zip(values, answers, strict=True))
    ]


def _plain(value: Any) -> Any:
    """Arrays, tensors and their scalars as Python's own lists and numbers."""
    return value.tolist() if callable(getattr(value, "tolist", None)) else value


def _number(value: Any, row: int, answer: Answer, name: str) -> float:
    plain = _plain(value)
    where = f"{name} gave {{}} in row {row} (prompt {_short(answer.prompt.text)})"
    if isinstance(plain, bool) or not isinstance(plain, Real):
        raise ScoringError(where.format(_described(value)) + "; a score is a number")
    try:
        number = float(plain)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ScoringError(where.format(number) + "; a score is a finite number")
    return number


def _described(value: Any) -> str:
    if value is None:
        return "None"
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"{type(value).__name__} of shape {list(shape)}"
    return f"{_short(value)} ({type(value).__name__})"


def _short(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


# --- a function -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Function:
    """A Python function of two lists of text, prompts and completions."""

    function: Callable[[list[str], list[str]], Any]
    name: str

    def __post_init__(self) -> None:
        """Raises ScoringError for a function that cannot be called with two lists."""
        if inspect.iscoroutinefunction(self.function):
            raise ScoringError(f"{self.name} is asynchronous; write it with def")
        try:
            inspect.signature(self.function).bind([], [])
        except TypeError:
            raise ScoringError(
                f"{self.name} cannot be called as {self.name}(prompts, completions)"
            ) from None
        except ValueError:  # a function of C tells nothing of its arguments
            pass

    def __call__(self, answers: Sequence[Answer]) -> Scores:
        try:
            found = self.function(
                [answer.prompt.text for answer in answers],
                [answer.completion for answer in answers],
            )
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise ScoringError(
                f"{self.name} raised {type(error).__name__}: {error} "
                f"({place.filename}, line {place.lineno})"
            ) from error
        return Scores(checked(found, answers, self.name))


# --- a model with its own tokenizer ---------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A reward model beside the policy's base, scored through text: (raw - mean) / std; or the
    members of an ensemble, each normalised by itself.

    A control token of its own that a completion spells out is left out of the text.
    """

    model: RewardModel
    name: str
    combine: Combine = "mean"
    std_weight: float = 1.0
    """Of an ensemble, as `Ensemble` has them"""
    tracked: Tracked = field(default=untracked, repr=False, compare=False)
    """Around the forward passes"""

    def __call__(self, answers: Sequence[Answer]) -> Scores:
        groups: list[Group] = []
        for row, answer in enumerate(answers):
            text = self.model.without_control(answer.completion)
            try:
                groups.append(self.model.group_of(answer.prompt, text))
            except ValueError as error:
                raise ScoringError(
                    f"{self.name} cannot score row {row} "
                    f"(prompt {_short(answer.prompt.text)}): {error}"
                ) from error
        found = self.model.member_scores(groups, tracked=self.tracked)
        each = [
            checked(model.normalised(raw), answers, self.name)
            for model, raw in zip(self.model.members or (self.model,), found, strict=True)
        ]
        if len(each) == 1:
            return Scores(each[0])
        return combined(each, self.combine, self.std_weight)

    def refusal(self, prompt: Prompt, tokens: int) -> str | None:
        """Why a completion of so many of the model's tokens to the prompt could not be scored, or
        None if it could."""
        try:
            self.model.check_room(prompt, tokens)
        except ValueError as error:
            return str(error)
        return None


# --- several --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ensemble(Generic[A]):
    """Several scorers of one thing as one (Coste et al. 2024, arXiv:2310.02743, section 3).

    `mean`; `min` (worst case); `mean_minus_std`, less `std_weight` population standard deviations.
    The paper takes the variance off; the deviation has the scores' own unit.
    """

    members: tuple[Scorer[A], ...]
    combine: Combine = "mean"
    std_weight: float = 1.0

    def __call__(self, answers: Sequence[A]) -> Scores:
        scores = [member(answers).values for member in self.members]
        return combined(scores, self.combine, self.std_weight)


def combined(
    scores: Sequence[Sequence[float]], combine: Combine = "mean", std_weight: float = 1.0
) -> Scores:
    """[M][B] scores of M members as one score for each answer, as `Ensemble` says, and their
    spread."""
    rows = list(zip(*scores, strict=True))
    spread = list(map(_std, rows))
    if combine == "min":
        return Scores(list(map(min, rows)), {"score_std": spread})
    weight = std_weight if combine == "mean_minus_std" else 0.0
    values = [_mean(row) - weight * std for row, std in zip(rows, spread, strict=True)]
    return Scores(values, {"score_std": spread})


@dataclass(frozen=True)
class Part(Generic[A]):
    """A part of a weighted sum; its scores are logged under its own name."""

    scorer: Scorer[A]
    weight: float
    name: str


@dataclass(frozen=True)
class WeightedSum(Generic[A]):
    """The sum of weight * score over the parts."""

    parts: tuple[Part[A], ...]

    def __call__(self, answers: Sequence[A]) -> Scores:
        scores = [part.scorer(answers) for part in self.parts]
        weights = [part.weight for part in self.parts]
        columns = zip(*(found.values for found in scores), strict=True)
        values = [
            math.fsum(w * value for w, value in zip(weights, row, strict=True)) for row in columns
        ]
        logged: dict[str, list[float]] = {}
        for part, found in zip(self.parts, scores, strict=True):
            own = f"score/{part.name}"
            logged[own] = found.values
            for name, inner in found.parts.items():
                logged[name.replace("score", own, 1)] = inner
        return Scores(values, logged)


def parts_of(scorer: Any) -> Iterator[Any]:
    """The scorers that give scores by themselves, down from a sum or an ensemble."""
    if isinstance(scorer, WeightedSum):
        for part in scorer.parts:
            yield from parts_of(part.scorer)
    elif isinstance(scorer, Ensemble):
        for member in scorer.members:
            yield from parts_of(member)
    else:
        yield scorer


def _mean(row: Sequence[float]) -> float:
    return math.fsum(row) / len(row)


def _std(row: Sequence[float]) -> float:
    """Population standard deviation."""
    mean = _mean(row)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in row) / len(row))
