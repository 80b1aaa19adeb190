"""The numbers of the quality report, each section from the same votes and pairs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import ceil, sqrt

import numpy as np
from numpy.typing import NDArray

from preference_data.languages import language_shares
from preference_data.near_duplicates import near_duplicates
from preference_data.personal_data import find
from preference_data.quality.report import (
    Counts,
    Languages,
    LengthBias,
    LengthBucket,
    ModelPair,
    PersonalData,
    PositionBias,
    Repeats,
    SplitLeaks,
    Truncation,
)
from preference_data.records import Judgement, Message, Prompt, Response
from preference_data.rendering import Renderer, RenderingError
from preference_data.splits import leaks, opening
from preference_data.votes.agreement import Interval

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CHOSEN_FIRST = ("hh", "trl")
"""Formats whose files name the chosen answer first: their order was never on a screen."""
FEW = 20
"""Below so many, a share says little."""
FOLDS = 5
LANGUAGE_TEXTS = 2000


def wilson(wins: float, n: float) -> Interval:
    """A share and its 95 % interval (Wilson 1927), which stays within [0, 1]. `n` is not 0."""
    z = 1.959964
    share, scale = wins / n, 1 + z * z / n
    middle = (share + z * z / (2 * n)) / scale
    half = z / scale * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # Rounding may put the end of a share of 0 or 1 just beside it.
    return Interval(share, min(share, middle - half), max(share, middle + half))


# --- votes and pairs -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pairs:
    """Every two ranked responses of every vote, in the order in which they were given: [P]."""

    vote: Ints
    first: Ints
    second: Ints
    verdict: Ints
    """1 the first is better, -1 the second, 0 a tie."""
    shown: Ints
    """1 the first was shown before the second, -1 after it, 0 unknown."""
    share: Floats
    """The decided pairs of a vote share it; 0 for a tie."""

    def __getitem__(self, where: NDArray[np.bool_]) -> Pairs:
        return Pairs(*(getattr(self, name)[where] for name in self.__slots__))


class Votes:
    """Judgements with numbers for prompts and responses, which are alike where their ids are."""

    def __init__(self, judgements: list[Judgement]) -> None:
        self.judgements = judgements
        prompts, responses, criteria = _Numbers(), _Numbers(), dict[str, int]()
        self.prompt = np.array([prompts.of(j.prompt) for j in judgements], dtype=np.int64)
        self.responses = [tuple(responses.of(r) for r in j.responses) for j in judgements]
        self.criterion = [criteria.setdefault(j.criterion, len(criteria)) for j in judgements]
        self.prompt_ids = prompts.ids
        self.response_ids = responses.ids
        self.lengths = np.array([_characters(m) for m in responses.messages], dtype=np.float64)

    def pairs(self) -> Pairs:
        rows: list[tuple[int, int, int, int, int]] = []
        share: list[float] = []
        for vote, judgement in enumerate(self.judgements):
            found = list(_pairs_of(judgement))
            decided = sum(verdict != 0 for _, _, verdict, _ in found)
            numbers = self.responses[vote]
            for i, j, verdict, shown in found:
                rows.append((vote, numbers[i], numbers[j], verdict, shown))
                share.append(1 / decided if verdict else 0.0)
        columns = np.array(rows, dtype=np.int64).reshape(-1, 5)
        return Pairs(
            vote=columns[:, 0],
            first=columns[:, 1],
            second=columns[:, 2],
            verdict=columns[:, 3],
            shown=columns[:, 4],
            share=np.array(share, dtype=np.float64),
        )

    def items(self) -> dict[tuple[object, ...], list[int]]:
        """The votes on each item under each criterion, whatever the order of the responses."""
        found: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for vote, numbers in enumerate(self.responses):
            found[self.prompt[vote], self.criterion[vote], *sorted(numbers)].append(vote)
        return found

    def verdict(self, vote: int) -> tuple[int | None, ...]:
        """Dense ranks with the responses in the order of their numbers; None is not ranked."""
        judgement = self.judgements[vote]
        order = sorted(range(len(judgement.ranks)), key=lambda i: self.responses[vote][i])
        levels = sorted({rank for rank in judgement.ranks if rank is not None})
        ranks = (judgement.ranks[i] for i in order)
        return tuple(None if rank is None else levels.index(rank) for rank in ranks)


class _Numbers:
    """Consecutive numbers by id; an id is only computed once for the same messages."""

    def __init__(self) -> None:
        self._by_messages: dict[tuple[Message, ...], int] = {}
        self._by_id: dict[str, int] = {}
        self.messages: list[tuple[Message, ...]] = []

    @property
    def ids(self) -> list[str]:
        return list(self._by_id)

    def of(self, record: Prompt | Response) -> int:
        number = self._by_messages.get(record.messages)
        if number is None:
            number = self._by_id.setdefault(record.id, len(self._by_id))
            if number == len(self.messages):
                self.messages.append(record.messages)
            self._by_messages[record.messages] = number
        return number


def _characters(messages: tuple[Message, ...]) -> int:
    return sum(len(message.content) for message in messages)


def _pairs_of(judgement: Judgement) -> Iterator[tuple[int, int, int, int]]:
    """(i, j, verdict, shown) as in `Pairs`."""
    ranks, position = judgement.ranks, judgement.position
    for i, j in combinations(range(len(ranks)), 2):
        a, b = ranks[i], ranks[j]
        if a is None or b is None or (judgement.kind == "best_of" and a == b and len(ranks) > 2):
            continue
        shown = 0 if position is None else 1 if position[i] < position[j] else -1
        yield i, j, (a < b) - (a > b), shown


# --- counts --------------------------------------------------------------------------------------


def counts_of(votes: Votes, pairs: Pairs, judgements: int, named: int) -> Counts:
    """How many of what; `judgements` are all, `named` the annotators."""
    rows = votes.judgements
    ranked = [row for row in rows if sum(rank is not None for rank in row.ranks) > 1]
    ties = sum(row.is_tie for row in ranked)
    return Counts(
        judgements=judgements,
        controls=judgements - len(rows),
        prompts=len(votes.prompt_ids),
        responses=len(votes.response_ids),
        items=len({(prompt, *rest) for prompt, _, *rest in votes.items()}),
        annotators=named,
        decided=len(np.unique(pairs.vote[pairs.verdict != 0])),
        tie_share=ties / len(ranked) if ranked else None,
        by_label=_by(rows, lambda row: row.label),
        by_k=_by(sorted(rows, key=lambda row: len(row.responses)), lambda r: str(len(r.responses))),
        by_kind=_by(rows, lambda row: row.kind),
        by_criterion=_by(rows, lambda row: row.criterion),
        by_annotator_kind=_by(rows, lambda row: row.annotator_kind),
        by_split=_by(rows, lambda row: row.split),
    )


def _largest(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def _by(rows: Iterable[Judgement], key: Callable[[Judgement], str | None]) -> dict[str, int]:
    return dict(Counter(name for row in rows if (name := key(row)) is not None))


# --- position and length -------------------------------------------------------------------------


def position_of(votes: Votes, pairs: Pairs) -> PositionBias:
    """Over the decided pairs whose order on the screen is known, or else as listed."""
    pairs = pairs[pairs.verdict != 0]
    known = bool((pairs.shown != 0).any())
    without_order: dict[str, int] = {}
    if known:
        pairs = pairs[pairs.shown != 0]
        won = pairs.verdict == pairs.shown
    else:
        without_order = _without_order(votes, pairs)
        told = np.array([_format(votes, vote) not in without_order for vote in pairs.vote])
        pairs = pairs[told.astype(bool)]
        won = pairs.verdict == 1
    n = float(pairs.share.sum())
    return PositionBias(
        judgements=round(n),
        known=known,
        first_wins=wilson(float(pairs.share[won].sum()), n) if n else None,
        without_order=without_order,
        fixed_models=_fixed_models(votes, pairs, known),
    )


def _format(votes: Votes, vote: int) -> str:
    source = votes.judgements[vote].source
    return source.format if source else ""


def _without_order(votes: Votes, pairs: Pairs) -> dict[str, int]:
    """Formats whose decided judgements all have the winner in the same place."""
    decided, first, wins = Counter[str](), Counter[str](), Counter[str]()
    for vote, verdict in zip(pairs.vote.tolist(), pairs.verdict.tolist(), strict=True):
        wins[_format(votes, vote)] += verdict == 1
        first[_format(votes, vote)] += 1
    for vote in np.unique(pairs.vote).tolist():
        decided[_format(votes, vote)] += 1
    return {
        name: decided[name]
        for name, n in first.items()
        if name in CHOSEN_FIRST or (decided[name] >= FEW and wins[name] in (0, n))
    }


def _fixed_models(votes: Votes, pairs: Pairs, known: bool) -> list[tuple[str, str]]:
    """Pairs of models, often compared, of which the same one is always shown first."""
    seen: Counter[tuple[str, str]] = Counter()
    names = _model_names(votes)
    shown = pairs.shown if known else np.ones_like(pairs.shown)
    columns = np.stack([pairs.vote, pairs.first, pairs.second, shown], axis=1).tolist()
    for vote, first, second, before in columns:
        a, b = names[vote][first], names[vote][second]
        if a is not None and b is not None and a != b:
            seen[(a, b) if before > 0 else (b, a)] += 1
    return [(a, b) for (a, b), count in seen.items() if count >= FEW and (b, a) not in seen]


def _model_names(votes: Votes) -> list[dict[int, str | None]]:
    return [
        {number: r.model for number, r in zip(numbers, j.responses, strict=True)}
        for numbers, j in zip(votes.responses, votes.judgements, strict=True)
    ]


def length_of(votes: Votes, pairs: Pairs) -> LengthBias | None:
    """None where no decided pair differs in length."""
    pairs = pairs[pairs.verdict != 0]
    chosen = votes.lengths[np.where(pairs.verdict == 1, pairs.first, pairs.second)]
    rejected = votes.lengths[np.where(pairs.verdict == 1, pairs.second, pairs.first)]
    differ = chosen != rejected
    n = float(pairs.share[differ].sum())
    if n == 0:
        return None
    return LengthBias(
        judgements=n,
        longer_wins=wilson(float(pairs.share[chosen > rejected].sum()), n),
        correlation=_correlation(chosen, rejected, pairs.share),
        predictor_accuracy=_length_accuracy(votes, pairs, chosen, rejected),
        buckets=list(_buckets(chosen[differ], rejected[differ], pairs.share[differ])),
    )


def _correlation(chosen: Floats, rejected: Floats, share: Floats) -> float:
    gain = np.log1p(chosen) - np.log1p(rejected)
    # With each pair both ways round both means are 0, and the verdict's variance is 1.
    return float((share * gain).sum() / np.sqrt(share.sum() * (share * gain**2).sum()))


_EDGES = (1.0, 1.1, 1.25, 1.5, 2.0, 4.0)


def _buckets(chosen: Floats, rejected: Floats, share: Floats) -> Iterator[LengthBucket]:
    ratio = np.maximum(chosen, rejected) / np.maximum(np.minimum(chosen, rejected), 1)
    for low, high in zip(_EDGES, (*_EDGES[1:], None), strict=True):
        inside = (ratio >= low) & (ratio < (high or np.inf))
        n = float(share[inside].sum())
        if n:
            wins = float(share[inside & (chosen > rejected)].sum())
            yield LengthBucket(low, high, n, wilson(wins, n))


def _length_accuracy(
    votes: Votes, pairs: Pairs, chosen: Floats, rejected: Floats
) -> Interval | None:
    """What the lengths alone predict of prompts that were not learnt from; equal ones count half.

    The folds go by the order of the prompts' ids, so the rows' order does not matter.
    """
    place = np.argsort(np.argsort(votes.prompt_ids))
    prompts = len(place)
    if prompts < 2:
        return None
    fold = (place % min(FOLDS, prompts))[votes.prompt[pairs.vote]]
    gain = np.stack([np.log1p(chosen) - np.log1p(rejected), (chosen - rejected) / 1000], axis=1)
    right = np.full(len(gain), 0.5)
    for held_out in np.unique(fold):
        test = fold == held_out
        margin = gain[test] @ _fit(gain[~test], pairs.share[~test])
        right[test] = (np.sign(margin) + 1) / 2
    return wilson(float((right * pairs.share).sum()), float(pairs.share.sum()))


def _fit(gain: Floats, share: Floats) -> Floats:
    """Logistic regression without a constant: swapping a pair swaps what is predicted of it."""
    from scipy.optimize import minimize
    from scipy.special import expit

    scale = np.sqrt((gain**2).mean(axis=0)) + 1e-12 if len(gain) else np.ones(2)
    scaled = gain / scale

    def loss(weights: Floats) -> tuple[float, Floats]:
        margin = scaled @ weights
        value = (share * np.logaddexp(0, -margin)).sum() + 0.5 * weights @ weights
        return float(value), weights - scaled.T @ (share * expit(-margin))

    return np.asarray(minimize(loss, np.zeros(2), jac=True).x) / scale


# --- repeats, contradictions, cycles -------------------------------------------------------------


def repeats_of(votes: Votes, pairs: Pairs) -> Repeats:
    """Over items, whatever the order of their responses; cycles over majorities."""
    decided = pairs[pairs.verdict != 0]
    counts = Counter[str]()
    for item in votes.items().values():
        if len(item) > 1:
            counts.update(_repeats_of_item(votes, item))
    triangles, cyclic, prompts = _cycles(votes, decided)
    return Repeats(
        again=counts["again"],
        reversed=counts["reversed"],
        contradictions=counts["contradictions"],
        unnamed_again=counts["unnamed_again"],
        shared_items=counts["shared_items"],
        opposed_items=counts["opposed_items"],
        identical=len(np.unique(decided.vote[decided.first == decided.second])),
        triangles=triangles,
        cyclic_triangles=cyclic,
        cyclic_prompts=prompts,
    )


def _repeats_of_item(votes: Votes, item: Sequence[int]) -> Counter[str]:
    """What one item adds to the fields of Repeats."""
    counts = Counter[str]()
    first: dict[str, int] = {}
    unnamed: set[tuple[object, ...]] = set()
    for vote in item:
        who, verdict = votes.judgements[vote].annotator, votes.verdict(vote)
        if who is None:
            said = (verdict, votes.judgements[vote].scores, votes.judgements[vote].outcome)
            counts["unnamed_again"] += said in unnamed
            unnamed.add(said)
        elif who in first:
            counts["again"] += 1
            counts["reversed"] += votes.responses[vote] != votes.responses[first[who]]
            counts["contradictions"] += _opposed(verdict, votes.verdict(first[who]))
        else:
            first[who] = vote
    if len(first) > 1:
        verdicts = {votes.verdict(vote) for vote in first.values()}
        counts["shared_items"] += 1
        counts["opposed_items"] += any(_opposed(a, b) for a, b in combinations(verdicts, 2))
    return counts


def _opposed(one: Sequence[int | None], other: Sequence[int | None]) -> bool:
    """Two responses that the one puts in one order and the other in the other."""
    both = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    return any((a - c) * (b - d) < 0 for (a, b), (c, d) in combinations(both, 2))


def _cycles(votes: Votes, pairs: Pairs) -> tuple[int, int, int]:
    """Triangles, cyclic ones, and prompts with a cycle, in the graph of the majorities."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    pairs = pairs[pairs.first != pairs.second]
    if not len(pairs.vote):
        return 0, 0, 0
    context = np.stack([votes.prompt, np.array(votes.criterion)], axis=1)[pairs.vote]
    ends = np.concatenate(
        [np.column_stack([context, pairs.first]), np.column_stack([context, pairs.second])]
    )
    nodes, number = np.unique(ends, axis=0, return_inverse=True)
    first, second = number.reshape(2, -1)
    size = len(nodes)
    net = csr_array((pairs.verdict.astype(np.float64), (first, second)), shape=(size, size))
    beats = ((net - net.T) > 0).astype(np.float64).tocsr()
    linked = beats + beats.T
    _, component = connected_components(beats, directed=True, connection="strong")
    cyclic = np.bincount(component)[component] > 1
    return (
        round((linked @ linked).multiply(linked).sum() / 6),
        round((beats @ beats).multiply(beats.T).sum() / 3),
        len(np.unique(nodes[cyclic, 0])),
    )


# --- models --------------------------------------------------------------------------------------


def models_of(votes: Votes, pairs: Pairs) -> list[ModelPair]:
    """The most compared first."""
    names = _model_names(votes)
    found: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    columns = np.stack([pairs.vote, pairs.first, pairs.second, pairs.verdict], axis=1).tolist()
    for vote, first, second, verdict in columns:
        a, b = names[vote][first], names[vote][second]
        if a is not None and b is not None and a != b:
            found[min(a, b), max(a, b)][verdict if a < b else -verdict] += 1
    rows = [_model_pair(names, counts) for names, counts in found.items()]
    return sorted(rows, key=lambda row: (-row.wins - row.losses - row.ties, row.first, row.second))


def _model_pair(names: tuple[str, str], counts: Counter[int]) -> ModelPair:
    decided = counts[1] + counts[-1]
    rate = wilson(counts[1], decided) if decided else None
    return ModelPair(*names, wins=counts[1], losses=counts[-1], ties=counts[0], win_rate=rate)


# --- texts ---------------------------------------------------------------------------------------


def leaks_of(votes: Votes) -> SplitLeaks:
    """Near duplicates among the openings, and those on both given sides."""
    openings = {(prompt := opening(row.prompt)).id: prompt.text for row in votes.judgements}
    clusters = near_duplicates(openings)
    train = [row for row in votes.judgements if row.split == "train"]
    held_out = [row for row in votes.judgements if row.split in ("validation", "test")]
    same = {clusters.of(leak.key) for leak in leaks(train, held_out)}
    alike = leaks(train, held_out, clusters)
    given = bool(train or held_out)
    return SplitLeaks(
        openings=len(openings),
        near_duplicates=sum(map(len, clusters.groups)),
        clusters=len(clusters.groups),
        shared=len(leaks(train, held_out)) if given else None,
        shared_nearly=sum(leak.key not in same for leak in alike) if given else None,
        held_out_judgements=sum(leak.test_records for leak in alike),
    )


def languages_of(votes: Votes) -> Languages:
    """Of different texts."""
    openings = dict.fromkeys(opening(row.prompt).text for row in votes.judgements)
    responses = dict.fromkeys(r.text for row in votes.judgements for r in row.responses)
    return Languages(
        prompts=language_shares(_evenly(list(openings), LANGUAGE_TEXTS)),
        responses=language_shares(_evenly(list(responses), LANGUAGE_TEXTS)),
    )


def _evenly(texts: Sequence[str], most: int) -> list[str]:
    """All of them, or so many at equal distances."""
    count = min(most, len(texts))
    return [texts[place * len(texts) // count] for place in range(count)]


def personal_data_of(judgements: Iterable[Judgement]) -> PersonalData:
    """Of control items, too: their text is kept like any other."""
    kinds: dict[str, frozenset[str]] = {}
    names: set[str] = set()
    affected = 0
    for row in judgements:
        texts = [m.content for m in row.prompt.messages]
        texts += [m.content for response in row.responses for m in response.messages]
        found = False
        for text in (*texts, row.comment or ""):
            if text not in kinds:
                kinds[text] = frozenset(one.kind for one in find(text))
            found = found or bool(kinds[text])
        affected += found
        names.update([row.annotator] if row.annotator is not None else [])
    return PersonalData(
        found=dict(_largest(Counter(kind for found in kinds.values() for kind in found))),
        judgements=affected,
        annotators=dict(
            _largest(Counter(k for name in names for k in {one.kind for one in find(name)}))
        ),
    )


def truncation_of(
    judgements: Sequence[Judgement], renderer: Renderer, max_length: int
) -> Truncation:
    """As training sees it: a judgement is as long as its longest conversation."""
    lengths: list[int] = []
    known: dict[tuple[Prompt, tuple[Message, ...]], tuple[int, int] | None] = {}
    lost = refused = 0
    for judgement in judgements:
        sizes = [_tokens(judgement.prompt, r, renderer, known) for r in judgement.responses]
        fine = [size for size in sizes if size is not None]
        if len(fine) < len(sizes):
            refused += 1
            continue
        lengths.append(max(whole for _, whole in fine))
        lost += fine[0][0] >= max_length
    ordered = sorted(lengths)
    return Truncation(
        max_length=max_length,
        judgements=len(judgements),
        too_long=sum(length > max_length for length in lengths),
        answer_lost=lost,
        not_rendered=refused,
        longest=ordered[-1] if ordered else 0,
        enough_for_99=ordered[ceil(0.99 * len(ordered)) - 1] if ordered else 0,
    )


def _tokens(
    prompt: Prompt,
    response: Response,
    renderer: Renderer,
    known: dict[tuple[Prompt, tuple[Message, ...]], tuple[int, int] | None],
) -> tuple[int, int] | None:
    """Tokens of the prompt and of the whole conversation; None if it cannot be rendered."""
    key = (prompt, response.messages)
    if key not in known:
        try:
            rendered = renderer.render(prompt, response)
            known[key] = (len(rendered.prompt), len(rendered))
        except RenderingError:
            known[key] = None
    return known[key]
