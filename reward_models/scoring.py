"""Answers to scores behind one protocol: a function, a service, a model, an ensemble, a sum.

A scorer is called with answers and gives one finite number each; whatever else comes back is
refused with the reward and the row. Nothing here imports torch: arrays and tensors are read by
their own `tolist`.
"""

from __future__ import annotations

import inspect
import json
import math
import ssl
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from itertools import chain
from numbers import Real
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from preference_data.records import Prompt

if TYPE_CHECKING:
    from preference_data.batches import Group
    from reward_models.reward_model import RewardModel

FIRST_WAIT = 0.5
LONGEST_WAIT = 30.0
"""Seconds between two attempts: the first wait, doubled every time up to the longest."""
LARGEST = 64 << 20
"""Bytes of an answer that are read: a score is a few."""
SHOWN = 200
"""Characters of a service's answer that a message quotes."""


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
            f"{name} gave {_described(found)}; it must give a list of {len(answers)} numbers, one "
            f"for each answer"
        )
    if len(values) != len(answers):
        raise ScoringError(f"{name} gave {len(values)} scores for {len(answers)} answers")
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
        each = [
            checked(model.normalised(raw), answers, self.name)
            for model, raw in zip(
                self.model.members or (self.model,), self.model.member_scores(groups), strict=True
            )
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


# --- a service ------------------------------------------------------------------------------------


class _NoRedirect(HTTPRedirectHandler):
    """A redirected POST would be repeated as a GET, and the token handed to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


@dataclass(frozen=True)
class Service:
    """Answers posted as JSON, {"prompts": [...], "completions": [...]}, for {"scores": [...]}.

    A prompt is text, or of more than one user turn a list of {"role": ..., "content": ...}.
    """

    url: str
    name: str
    batch_size: int = 64
    """Answers in one request."""
    timeout: float = 60.0
    """Seconds that the service may be silent within one request."""
    patience: float = 300.0
    """Seconds for all attempts at one request: no connection, silence, 429 and 5xx are tried
    again after a wait that doubles."""
    token: str | None = field(default=None, repr=False)
    """Sent as the bearer token, and shown nowhere."""

    def __post_init__(self) -> None:
        if self.token is not None and not (self.token.isascii() and self.token.isprintable()):
            raise ValueError("the token has characters that no header can carry")

    def __call__(self, answers: Sequence[Answer]) -> Scores:
        parts = [
            answers[first : first + self.batch_size]
            for first in range(0, len(answers), self.batch_size)
        ]
        return Scores(list(chain.from_iterable(map(self._ask, parts))))

    def _ask(self, answers: Sequence[Answer]) -> list[float]:
        body = json.dumps(
            {
                "prompts": [_posted(answer.prompt) for answer in answers],
                "completions": [answer.completion for answer in answers],
            }
        ).encode()
        text = self._post(body)
        try:
            found = json.loads(text)["scores"]
        except (ValueError, KeyError, TypeError):
            raise ScoringError(
                f"{self.name} ({self.url}) answered {self._quoted(text)}; it must answer JSON: "
                f'{{"scores": [{len(answers)} numbers]}}'
            ) from None
        return checked(found, answers, f"{self.name} ({self.url})")

    def _post(self, body: bytes) -> str:
        """The service's answer. Raises ScoringError when it refuses, or patience is over."""
        began = time.monotonic()
        for wait in _waits():
            try:
                return self._post_once(body)
            except _Again as error:
                wait = max(wait, error.wait)
                if time.monotonic() + wait - began > self.patience:
                    raise ScoringError(
                        f"{self.name} ({self.url}) {error}, still after "
                        f"{time.monotonic() - began:.0f} s; look whether the service runs, or "
                        f"raise patience or timeout"
                    ) from error.__cause__
                time.sleep(wait)
        raise AssertionError("the waits do not end")

    def _post_once(self, body: bytes) -> str:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        request = Request(self.url, data=body, headers=headers, method="POST")
        if self.token is not None:
            request.add_unredirected_header("Authorization", f"Bearer {self.token}")
        try:
            with build_opener(_NoRedirect).open(request, timeout=self.timeout) as answer:
                found = answer.read(LARGEST + 1)
            if len(found) > LARGEST:
                raise ScoringError(
                    f"{self.name} ({self.url}) answered more than {LARGEST >> 20} MiB; look at the "
                    f"address"
                )
            return found.decode("utf-8", "replace")
        except HTTPError as error:
            raise self._refusal(error) from None
        except TimeoutError as error:
            raise _Again(f"was silent for {self.timeout:g} s") from error
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, TimeoutError):
                raise _Again(f"was silent for {self.timeout:g} s") from error
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise ScoringError(f"{self.name} ({self.url}) is not trusted: {reason}") from error
            raise _Again(f"cannot be reached ({reason})") from error

    def _refusal(self, error: HTTPError) -> Exception:
        """What an HTTP status other than success is: another attempt, or the end."""
        with error:
            try:
                text = error.read(LARGEST).decode("utf-8", "replace")
            except (OSError, HTTPException):  # the status says enough
                text = ""
        said = f"answered {error.code} {error.reason}: {self._quoted(text)}"
        if error.code == 429 or error.code >= 500:
            return _Again(said, _seconds(error.headers.get("Retry-After")))
        advice = "look at the address and the token"
        if 300 <= error.code < 400:
            advice = f"write the address that it points to, {error.headers.get('Location')!r}"
        return ScoringError(f"{self.name} ({self.url}) {said}; {advice}")

    def _quoted(self, text: str) -> str:
        """The beginning of an answer, which may repeat the request's token."""
        if self.token:
            text = text.replace(self.token, "…")
        return repr(text[:SHOWN])


def _posted(prompt: Prompt) -> str | list[dict[str, str]]:
    """One user turn as its text, any other conversation as messages."""
    if len(prompt.messages) == 1 and prompt.messages[0].role == "user":
        return prompt.text
    return [message.to_json() for message in prompt.messages]


class _Again(Exception):
    """An attempt that failed in a way that may pass; `wait` seconds are asked for."""

    def __init__(self, what: str, wait: float = 0.0):
        super().__init__(what)
        self.wait = wait


def _waits() -> Iterator[float]:
    wait = FIRST_WAIT
    while True:
        yield wait
        wait = min(2 * wait, LONGEST_WAIT)


def _seconds(header: str | None) -> float:
    """Of a Retry-After header; 0 if there is none, or a date."""
    return float(header) if header is not None and header.isdecimal() else 0.0


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
