"""The languages of texts, by py3langid: offline, a model of 5 MB that knows 139 languages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

UNKNOWN = "und"
"""ISO 639 for undetermined."""

_LEAST_PROBABILITY = 0.5


def language_of(text: str) -> str:
    """The ISO 639 code of the text's main language, as in "en"; "zxx" for what is no language.

    UNKNOWN where no language has a probability of a half, as in most texts of one or two words.
    """
    return _identifier().classify(text)[0]


def language_shares(texts: Iterable[str]) -> dict[str, float]:
    """The share of the texts in each language, in [0, 1], the most frequent first, ties by code.

    The shares sum to 1, those of UNKNOWN included. No texts have no shares.
    """
    counts = Counter(language_of(text) for text in texts)
    total = counts.total()
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return {language: count / total for language, count in ordered}


@cache
def _identifier() -> LanguageIdentifier:
    # Imported here: the model takes half a second to load, and most commands do not need it.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(
        MODEL_FILE, norm_probs=True, min_confidence=_LEAST_PROBABILITY
    )
