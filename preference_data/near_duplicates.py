"""Texts that say almost the same: clusters of near duplicates, and overlap with evaluation texts.

Texts are compared by their words: case, punctuation and spacing never count. Characters stand for
words in scripts without spaces, and a symbol or an operator between numbers is a word ("12 + 7" is
not "12 - 7").
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_WORDS = 5
_COMMON_TEXTS = 100
_COMMON_SHARE = 0.05
_PERMUTATIONS = 128
_INDEX_SLACK = 0.875
_SEED = 1


@dataclass(frozen=True, slots=True)
class Clusters:
    """Keys that belong together, each cluster named by its smallest key."""

    representatives: Mapping[str, str] = field(default_factory=dict[str, str])
    """The representative of every key of a cluster of two or more, its own included."""

    def of(self, key: str) -> str:
        """The representative of the key's cluster: the key itself if it is alone or unknown."""
        return self.representatives.get(key, key)

    @property
    def groups(self) -> list[tuple[str, ...]]:
        """The clusters of two keys or more, sorted, each in sorted order."""
        members: dict[str, list[str]] = {}
        for key in sorted(self.representatives):
            members.setdefault(self.representatives[key], []).append(key)
        return sorted(tuple(keys) for keys in members.values())


def near_duplicates(
    texts_by_key: Mapping[str, str],
    threshold: float = 0.8,
    advance: Callable[[int], object] = lambda texts: None,
) -> Clusters:
    """Joins texts whose sets of 5-word runs have a Jaccard similarity of `threshold` or more.

    One word changed in a text of W words leaves a similarity of (W - 9) / (W + 1), so 0.8 joins
    such texts from 49 words up, and keeps short prompts of one template apart; a text under five
    words is joined only to the same words. A run found in over 100 texts and in over a twentieth
    of them is a template's and does not count, or a long template would join all that use it.
    What is alike only through a third text is joined, too. Candidates come from MinHash, which
    misses about one pair in 400 at a similarity of 0.8 and practically none above 0.9. `advance` is
    called with how many more texts were looked at. Raises ValueError if the threshold is not in
    (0, 1].

    1. Texts of the same words are joined.  2. MinHash proposes pairs of the others.
    3. The exact similarity decides.  4. Joined pairs grow into clusters.
    """
    if not 0.0 < threshold <= 1.0:
        raise ValueError(f"A threshold lies above 0 and up to 1, not at {threshold!r}.")
    keys_by_line: dict[str, list[str]] = {}
    for key in sorted(texts_by_key):
        keys_by_line.setdefault(_line(texts_by_key[key]), []).append(key)  # 1
    parents = list(range(len(keys_by_line)))
    if threshold < 1.0 and keys_by_line:
        runs = _telling_runs(list(keys_by_line))

        @lru_cache(maxsize=20_000)
        def run_set(place: int) -> frozenset[int]:
            return frozenset(runs[place].tolist())

        sizes = [len(keys) for keys in keys_by_line.values()]
        looked = _candidates(runs, threshold, lambda place: advance(sizes[place]))
        for one, other in looked:  # 2
            root, other_root = _root(parents, one), _root(parents, other)
            # Large clusters propose most of their pairs: those already joined need no proof.
            if root != other_root and _alike(run_set(one), run_set(other), threshold):  # 3
                parents[max(root, other_root)] = min(root, other_root)  # 4
    return _clusters(list(keys_by_line.values()), parents)


@dataclass(frozen=True, slots=True)
class Overlap:
    """A text that holds words of an evaluation text; both by their place in what was given."""

    text: int
    evaluation_text: int
    words: str
    """The shared words in lower case, without punctuation."""


def contamination(
    texts: Iterable[str], evaluation_texts: Iterable[str], n: int = 13
) -> list[Overlap]:
    """The texts that share n consecutive words with an evaluation text, each with its first run.

    An evaluation text of fewer than n words is found where a text has the same words and no
    others. Raises ValueError if n is not positive.
    """
    if n < 1:
        raise ValueError(f"The number of words must be positive, not {n}.")
    runs: dict[str, int] = {}
    whole: dict[str, int] = {}
    for place, text in enumerate(evaluation_texts):
        line = _line(text)
        if line.count(" ") + 1 < n:
            whole.setdefault(line, place)
        for run in _runs_in_order(line, n):
            runs.setdefault(run, place)
    found: list[Overlap] = []
    for place, text in enumerate(texts):
        line = _line(text)
        if line in whole:
            found.append(Overlap(place, whole[line], line))
            continue
        shared = next((run for run in _runs_in_order(line, n) if run in runs), None)
        if shared is not None:
            found.append(Overlap(place, runs[shared], shared))
    return found


def _telling_runs(lines: list[str]) -> list[NDArray[np.uint64]]:
    """Of each line, the hashes of its different runs, [runs]; templates' runs are left out."""
    import numpy as np

    runs = [np.unique(np.array(_run_hashes(line), np.uint64)) for line in lines]
    hashes, counts = np.unique(np.concatenate(runs), return_counts=True)
    common = hashes[counts > max(_COMMON_TEXTS, _COMMON_SHARE * len(lines))]
    if common.size:
        own = [found[~np.isin(found, common)] for found in runs]
        # What is all template is compared as a whole, and so joined to nothing else.
        whole = [np.array([_hash(line)], np.uint64) for line in lines]
        runs = [found if found.size else line for found, line in zip(own, whole, strict=True)]
    return runs


def _candidates(
    runs: list[NDArray[np.uint64]], threshold: float, seen: Callable[[int], object]
) -> Iterator[tuple[int, int]]:
    # Imported here: it brings scipy, and most commands compare no texts.
    from datasketch import MinHash, MinHashLSH

    # A missed pair is lost and a wrong one costs one comparison, so the index is asked for more.
    index = MinHashLSH(threshold * _INDEX_SLACK, _PERMUTATIONS, weights=(0.1, 0.9))
    sketches = MinHash.generator(
        (found.tolist() for found in runs),
        num_perm=_PERMUTATIONS,
        seed=_SEED,
        hashfunc=int,  # the runs are hashes already
        scheme="affine64",
    )
    for place, sketch in enumerate(sketches):
        for other in index.query(sketch):
            yield place, cast(int, other)
        index.insert(place, sketch, check_duplication=False)
        seen(place)


def _alike(one: frozenset[int], other: frozenset[int], threshold: float) -> bool:
    shared = len(one & other)
    return shared >= threshold * (len(one) + len(other) - shared)


def _root(parents: list[int], place: int) -> int:
    while parents[place] != place:
        parents[place] = parents[parents[place]]
        place = parents[place]
    return place


def _clusters(keys: list[list[str]], parents: list[int]) -> Clusters:
    members: dict[int, list[str]] = {}
    for place, same in enumerate(keys):
        members.setdefault(_root(parents, place), []).extend(same)
    groups = (group for group in members.values() if len(group) > 1)
    return Clusters({key: min(group) for group in groups for key in group})


def _run_hashes(line: str) -> list[int]:
    return [_hash(run) for run in _runs_in_order(line, _WORDS)] or [_hash(line)]


def _hash(run: str) -> int:
    # 64 bits: among millions of runs two hardly ever meet. Python's own hash differs every time.
    return int.from_bytes(blake2b(run.encode(), digest_size=8).digest(), "big")


def _runs_in_order(line: str, n: int) -> Iterator[str]:
    """Every n consecutive words; none if there are fewer."""
    words = line.split(" ")
    for start in range(len(words) - n + 1):
        yield " ".join(words[start : start + n])


def _line(text: str) -> str:
    """The words, one space apart; a text without words is itself."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    plain = _OPERATOR.sub(lambda found: _OPERATORS[found.group()], plain)
    return " ".join(plain.translate(_SPACED).split()) or text


class _Spacing(dict[int, str]):
    """What a character is replaced by, found once for each: for `str.translate`."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)[0]
        if category in "PZC":
            replacement = " "
        elif category == "S" or _UNSPACED.match(character):
            replacement = f" {character} "
        else:
            replacement = character
        self[code] = replacement
        return replacement


_SPACED = _Spacing()
_OPERATOR = re.compile(r"(?:(?<=[\d)])|(?<=[\d)] ))[-*/](?= ?[\d(])")
_OPERATORS = {"-": " − ", "*": " × ", "/": " ÷ "}
"""Hyphen, asterisk and slash are punctuation to Unicode; between numbers they are symbols."""
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"  # kana, Han
)
