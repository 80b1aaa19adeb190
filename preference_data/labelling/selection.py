"""What to label next: of K sampled answers a prompt, the pairs whose label would tell most.

A reward model predicts the label of a pair, P(a is better) = sigmoid(r_a - r_b). What a label is
expected to tell of the models, in bits, is the mutual information of the two (BALD, Houlsby et
al. 2011, arXiv:1112.5745), over M models with the predictions p_1 .. p_M:

    information = H(mean of p_m) - mean of H(p_m),   H(p) = -p log2 p - (1 - p) log2(1 - p)

It is high where the models contradict each other with confidence, and low where all are in doubt:
there the answers are equally good, and a label is a coin toss. One model cannot tell the two
cases apart; of one, the information is the entropy H(p) alone, and p near 1/2 comes first.

Before that, the differences of each model are brought to the scale that the models have on
average (the geometric mean of their root mean squares), since how loud a model is depends on how
long it was trained. Those of a single model stay as they are.

Labels chosen so are no fair sample: a model looks worse on them than it is. A share of the pairs
is therefore drawn at random, and no informative pair comes from their prompts.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import isfinite
from typing import Any, Literal, get_args

import numpy as np

from preference_data.counts import counted
from preference_data.near_duplicates import near_duplicates
from preference_data.quarantine import DataError
from preference_data.records import Judgement, Prompt, Response
from preference_data.splits import opening
from preference_data.votes.table import ContentIds, Floats, Ints

Why = Literal["random", "informative", "repeat"]
Limit = Literal["judged", "alike", "random_share", "max_per_prompt"]
"""What keeps a pair from being asked: its votes, two answers that are all but the same, a prompt
that the random share is drawn from, or enough other pairs of its prompt."""

_REASONS = get_args(Why)
_MOST_REPEATS = 1 / 3
"""A repeat stands in the last third and its first showing in the first."""
_AT_ONCE = 1000
"""Pairs whose answers are looked through for near duplicates together."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """K >= 2 different answers to one prompt, each with the score of every model.

    Raises ValueError for fewer answers, two of the same text, or scores that do not fit.
    """

    prompt: Prompt
    responses: tuple[Response, ...]
    scores: tuple[tuple[float, ...], ...]
    """[K][M], as the models gave them."""

    def __post_init__(self) -> None:
        if len(self.responses) < 2 or len({one.id for one in self.responses}) < len(self.responses):
            raise ValueError("Two different answers or more are needed, and none of them twice.")
        sizes = {len(scores) for scores in self.scores}
        if len(self.scores) != len(self.responses) or len(sizes) != 1 or sizes == {0}:
            raise ValueError("Every answer needs the score of each model.")
        if not all(isfinite(score) for scores in self.scores for score in scores):
            raise ValueError("A score is a finite number.")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is asked, and of what. Raises DataError for a number out of its range."""

    count: int
    """Different pairs, at most."""
    random_share: float = 0.15
    """Of `count`, in [0, 1]: drawn at random."""
    repeats: float = 0.05
    """Of the pairs that were chosen, in [0, 1/3]: asked a second time, on top of `count`."""
    max_per_prompt: int = 2
    """Pairs that begin with the same user turn."""
    votes: int = 1
    """A pair that was judged so often is not asked again."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("count", "max_per_prompt", "votes"):
            if getattr(self, name) < 1:
                raise DataError(f"{name} is a number from 1 up, not {getattr(self, name)}.")
        if not 0.0 <= self.random_share <= 1.0:
            raise DataError(f"random_share lies between 0 and 1, not at {self.random_share:g}.")
        if not 0.0 <= self.repeats <= _MOST_REPEATS:
            raise DataError(f"repeats lies between 0 and 1/3, not at {self.repeats:g}.")


@dataclass(frozen=True, slots=True)
class Question:
    """One pair as it is put to a labeller, and what he must not see: why it is asked."""

    id: str
    """Opaque: neither its order nor why it is asked can be told from it."""
    prompt: Prompt
    responses: tuple[Response, Response]
    """In the order in which they are shown."""
    why: Why
    information: float
    """Bits that the label is expected to give, whyever the pair is asked."""
    scores: tuple[tuple[float, ...], tuple[float, ...]]
    """[2][M], as `responses`."""

    def __post_init__(self) -> None:
        if self.why not in _REASONS:
            raise ValueError(f"Why is one of {', '.join(_REASONS)}, not {self.why!r}.")

    @property
    def item_id(self) -> str:
        """That of every judgement of this pair, whichever answer stands first."""
        return Judgement(self.prompt, self.responses, (1, 1)).item_id

    def to_json(self) -> dict[str, Any]:
        return {
            **self.prompt.to_json(),
            "row_id": self.id,
            "item_id": self.item_id,
            "shown_first": self.responses[0].id,
            "responses": [response.to_json() for response in self.responses],
            "why": self.why,
            "information": self.information,
            "scores": [list(scores) for scores in self.scores],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Question:
        """Raises ValueError for another schema version or a bad value, KeyError for a lost key."""
        first, second = (Response.from_json(response) for response in data["responses"])
        ours, theirs = (tuple(scores) for scores in data["scores"])
        return cls(
            id=data["row_id"],
            prompt=Prompt.from_json(data),
            responses=(first, second),
            why=data["why"],
            information=data["information"],
            scores=(ours, theirs),
        )


@dataclass(frozen=True, slots=True)
class Chosen:
    """What is asked, and what of the rest could not be."""

    questions: list[Question]
    """In the order in which they are asked; fewer than planned if there are no more."""
    passed_over: Mapping[Limit, int]
    """Where there are fewer: the other pairs, by what kept them from being asked."""


def select(
    candidates: Sequence[Candidates], plan: Plan, earlier: Iterable[Judgement] = ()
) -> list[Question]:
    """The questions that `choose` finds, in the order in which they are asked."""
    return choose(candidates, plan, earlier).questions


def choose(
    candidates: Sequence[Candidates], plan: Plan, earlier: Iterable[Judgement] = ()
) -> Chosen:
    """The questions to ask, and why there are no more of them.

    No pair is asked that people have judged `plan.votes` times in `earlier`, nor one of two
    answers that near-duplicate detection takes for the same. Every prompt stands in `candidates`
    once. Raises DataError if there is no pair to ask, or a model scores all answers alike.

    1. All pairs, less those that are judged.  2. The random share.
    3. The most informative of the other prompts.  4. Sides, order and repeats.
    """
    rng = np.random.default_rng(plan.seed)
    pairs = _all_pairs(candidates)
    open_pairs = np.flatnonzero(_votes_on(candidates, pairs, earlier) < plan.votes)  # 1
    if not len(open_pairs):
        raise DataError(
            f"There is no pair to ask: of {counted(len(pairs.prompt), 'pair')}, people have "
            "judged all. Ask for more votes on each (--votes), or give other answers."
        )
    choice = _Choice(candidates, pairs, plan.max_per_prompt)
    order = rng.permutation(open_pairs)
    share = round(plan.random_share * plan.count)
    drawn = choice.take(order, share)  # 2
    barred = set(choice.taken)
    ranked = order[np.argsort(-pairs.information[order], kind="stable")]
    sought = choice.take(ranked, plan.count - len(drawn), barred)  # 3
    if not drawn and not sought:
        raise DataError("There is no pair to ask: the answers of each prompt are all but the same.")
    chosen = drawn + sought
    turned = _favoured_first(pairs.lean[chosen], rng)
    questions = [
        _question(candidates, pairs, place, turn, plan.seed)
        for place, turn in zip(chosen, turned, strict=True)
    ]
    questions[: len(drawn)] = [replace(one, why="random") for one in questions[: len(drawn)]]
    passed_over: Counter[Limit] = Counter()
    if len(chosen) < plan.count:
        # A share that came out too small was not short of prompts, but of pairs of them.
        left = np.setdiff1d(open_pairs, chosen)
        passed_over = choice.limits(left, barred if len(drawn) == share else ())
        passed_over["judged"] = len(pairs.prompt) - len(open_pairs)
    return Chosen(_with_repeats(questions, plan, rng), +passed_over)  # 4


def on_one_scale(differences: Floats) -> Floats:
    """[M, N] score differences of M models, all with the same root mean square afterwards.

    It is the geometric mean of those they had, so that one model's differences stay as they are.
    Raises DataError for a model whose differences are all 0.
    """
    size = np.sqrt(np.mean(differences**2, axis=1, keepdims=True))
    if not size.all():
        raise DataError(
            f"Model {int(np.argmin(size)) + 1} of {len(size)} gives the answers of each prompt the "
            "same score; leave it out."
        )
    return differences * np.exp(np.mean(np.log(size)) - np.log(size))


def information(differences: Floats) -> Floats:
    """[M, N] score differences to [N] bits: how much a label is expected to tell of the models.

    Of several models their mutual information with the label, of one the entropy of the label.
    """
    size = np.abs(differences)
    less_likely = np.exp(-np.logaddexp(0.0, size))  # sigmoid(-size), exact where it is tiny
    own = (np.log1p(np.exp(-size)) + size * less_likely) / np.log(2.0)
    if len(differences) == 1:
        return own[0]
    first = np.exp(-np.logaddexp(0.0, -differences)).mean(axis=0)
    second = np.exp(-np.logaddexp(0.0, differences)).mean(axis=0)
    return np.maximum(_surprise(first) + _surprise(second) - own.mean(axis=0), 0.0)


def _surprise(p: Floats) -> Floats:
    """-p log2 p, which is 0 at 0."""
    return -p * np.log2(np.where(p > 0.0, p, 1.0))


@dataclass(frozen=True, slots=True)
class _Pairs:
    """N pairs of answers, each of one prompt."""

    prompt: Ints
    """[N] place in the candidates."""
    first: Ints
    second: Ints
    """[N] places among the prompt's answers, first < second."""
    information: Floats
    """[N] bits."""
    lean: Floats
    """[N] mean difference over the models: above 0, they take the first for the better one."""


def _all_pairs(candidates: Sequence[Candidates]) -> _Pairs:
    if not candidates:
        raise DataError("There is no pair to ask: no prompt has two answers.")
    prompt: list[Ints] = []
    sides: list[tuple[Ints, Ints]] = []
    differences: list[Floats] = []
    for place, one in enumerate(candidates):
        first, second = np.triu_indices(len(one.responses), 1)
        scores = np.array(one.scores, dtype=np.float64)
        prompt.append(np.full(len(first), place))
        sides.append((first, second))
        differences.append((scores[first] - scores[second]).T)
    levelled = on_one_scale(np.concatenate(differences, axis=1))
    return _Pairs(
        np.concatenate(prompt),
        np.concatenate([first for first, _ in sides]),
        np.concatenate([second for _, second in sides]),
        information(levelled),
        levelled.mean(axis=0),
    )


def _votes_on(
    candidates: Sequence[Candidates], pairs: _Pairs, earlier: Iterable[Judgement]
) -> Ints:
    """[N] how many people have said which of the two is better overall, or that neither is."""
    ids = ContentIds()
    votes: Counter[tuple[str, frozenset[str]]] = Counter()
    for judgement in earlier:
        if judgement.annotator_kind in ("human", "human_aggregate"):
            for one, other in _compared(judgement):
                pair = frozenset((ids.of(one), ids.of(other)))
                votes[ids.of(judgement.prompt), pair] += judgement.votes or 1
    if not votes:
        return np.zeros(len(pairs.prompt), dtype=np.int64)
    names = [[ids.of(one) for one in group.responses] for group in candidates]
    prompts = [ids.of(group.prompt) for group in candidates]
    places = zip(pairs.prompt.tolist(), pairs.first.tolist(), pairs.second.tolist(), strict=True)
    asked = ((prompts[p], frozenset((names[p][i], names[p][j]))) for p, i, j in places)
    return np.array([votes[pair] for pair in asked])


def _compared(judgement: Judgement) -> Iterator[tuple[Response, Response]]:
    if judgement.criterion != "overall":
        return
    ranked = list(zip(judgement.responses, judgement.ranks, strict=True))
    for (one, rank), (other, other_rank) in combinations(ranked, 2):
        losers = judgement.kind == "best_of" and rank == other_rank
        if rank is not None and other_rank is not None and not losers:
            yield one, other


class _Choice:
    """Takes pairs in a given order, so many from what begins with the same user turn."""

    def __init__(self, candidates: Sequence[Candidates], pairs: _Pairs, most: int) -> None:
        self._candidates = candidates
        self._pairs = pairs
        self._most = most
        # The key by which prompts are put on the training or the test side.
        self._keys = [opening(one.prompt).id for one in candidates]
        self._known: dict[int, list[str]] = {}
        self.taken: Counter[str] = Counter()

    def take(self, order: Ints, count: int, barred: Collection[str] = ()) -> list[int]:
        """The first `count` pairs of the order that may be asked, none of a `barred` key."""
        found: list[int] = []
        for start in range(0, len(order), _AT_ONCE):
            some = order[start : start + _AT_ONCE]
            if len(found) < count:
                self._look_through(self._pairs.prompt[some].tolist())
            for place in some.tolist():
                if len(found) < count and self._limit(place, barred) is None:
                    self.taken[self._keys[self._pairs.prompt[place]]] += 1
                    found.append(place)
        return found

    def limits(self, places: Ints, barred: Collection[str]) -> Counter[Limit]:
        """How many of these pairs are kept from being asked by what; all have been offered."""
        counts: Counter[Limit] = Counter()
        for place in places.tolist():
            limit = self._limit(place, barred)
            if limit is not None:
                counts[limit] += 1
        return counts

    def _limit(self, place: int, barred: Collection[str]) -> Limit | None:
        prompt = int(self._pairs.prompt[place])
        key, clusters = self._keys[prompt], self._known[prompt]
        if clusters[self._pairs.first[place]] == clusters[self._pairs.second[place]]:
            return "alike"
        if key in barred:
            return "random_share"
        return "max_per_prompt" if self.taken[key] >= self._most else None

    def _look_through(self, prompts: Iterable[int]) -> None:
        """Notes for each answer of these prompts to which near duplicates it belongs."""
        new = set(prompts) - self._known.keys()
        texts = {
            f"{prompt} {place}": response.text
            for prompt in new
            for place, response in enumerate(self._candidates[prompt].responses)
        }
        clusters = near_duplicates(texts)
        for prompt in new:
            places = range(len(self._candidates[prompt].responses))
            self._known[prompt] = [clusters.of(f"{prompt} {place}") for place in places]


def _favoured_first(lean: Floats, rng: np.random.Generator) -> list[bool]:
    """[N] whether to turn each pair: the models' favourite stands first in half of them."""
    favourite_first = rng.permutation(len(lean)) % 2 == 0
    return (favourite_first != (lean > 0.0)).tolist()


def _question(
    candidates: Sequence[Candidates], pairs: _Pairs, place: int, turned: bool, seed: int
) -> Question:
    one = candidates[int(pairs.prompt[place])]
    first, second = int(pairs.first[place]), int(pairs.second[place])
    if turned:
        first, second = second, first
    question = Question(
        id="",
        prompt=one.prompt,
        responses=(one.responses[first], one.responses[second]),
        why="informative",
        information=float(pairs.information[place]),
        scores=(one.scores[first], one.scores[second]),
    )
    return replace(question, id=_row_id(question, seed))


def _row_id(question: Question, seed: int) -> str:
    text = f"{seed} {question.item_id} {question.responses[0].id}"
    # The letter is for Excel, which takes 12e4567 for a number and writes it back as one.
    return f"r{hashlib.sha256(text.encode()).hexdigest()[:15]}"


def _with_repeats(
    questions: Sequence[Question], plan: Plan, rng: np.random.Generator
) -> list[Question]:
    """In random order; what is asked twice stands in the first third, and turned in the last."""
    mixed = [questions[place] for place in rng.permutation(len(questions)).tolist()]
    count, third = round(plan.repeats * len(mixed)), len(mixed) // 3
    asked_again = rng.permutation(-(-len(mixed) // 3))[:count].tolist()
    last = mixed[len(mixed) - third :]
    last += [_repeat(mixed[place], plan.seed) for place in asked_again]
    order = rng.permutation(len(last)).tolist()
    return mixed[: len(mixed) - third] + [last[place] for place in order]


def _repeat(question: Question, seed: int) -> Question:
    turned = replace(
        question,
        responses=(question.responses[1], question.responses[0]),
        why="repeat",
        scores=(question.scores[1], question.scores[0]),
    )
    return replace(turned, id=_row_id(turned, seed))
