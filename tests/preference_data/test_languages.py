"""Languages: found in whole sentences, and not guessed from a word or two."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from real_data import real_data

from preference_data.languages import UNKNOWN, language_of, language_shares

SENTENCES = {
    "en": "Name a colour that goes well with the colour of snow.",
    "de": "Welche Farbe passt gut zu der Farbe von frischem Schnee?",
    "fr": "Quelle couleur va bien avec la couleur de la neige fraîche ?",
    "es": "¿Qué color combina bien con el color de la nieve fresca?",
    "ja": "雪の色に合う色を一つ教えてください。",
    "ru": "Назови цвет, который хорошо сочетается с цветом снега.",
    "ar": "اذكر لونا يتناسب مع لون الثلج الجديد",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_sentences_are_recognised(language):
    assert language_of(SENTENCES[language]) == language


@pytest.mark.parametrize("text", ["", "Hi", "Why?", "lol ok thx", "2+2=?"])
def test_what_says_too_little_is_unknown(text):
    assert language_of(text) == UNKNOWN


def test_shares_sum_to_one_and_the_largest_is_first():
    texts = [SENTENCES["de"], SENTENCES["en"], "Hi", SENTENCES["en"]]
    assert list(language_shares(texts).items()) == [("en", 0.5), ("de", 0.25), (UNKNOWN, 0.25)]
    assert language_shares([]) == {}


@pytest.fixture
def real() -> Path:
    return real_data()


def test_real_english_instructions_are_english(real):
    """427 instructions, all in English: no other language is named, 4 are too short to tell."""
    texts = [
        json.loads(line)["instruction"]
        for name in ("seed_tasks.jsonl", "user_oriented_instructions.jsonl")
        for line in (real / "self-instruct" / name).read_text(encoding="utf-8").splitlines()
    ]
    assert language_shares(texts) == {"en": 423 / 427, UNKNOWN: 4 / 427}


def test_other_languages_among_real_messages_are_found(real):
    """2,022 messages of OASST that are said to be English; some are not."""
    rows = gzip.decompress((real / "oasst" / "en-validation.jsonl.gz").read_bytes()).splitlines()
    texts = [json.loads(row)["text"] for row in rows]
    shares = language_shares(texts)
    assert next(iter(shares)) == "en"
    assert shares["en"] > 0.94 and shares[UNKNOWN] < 0.05
    found = {text: language_of(text) for text in texts if not text.isascii()}
    assert found["¿Cuál es el tiempo que se retrasa en Singapur?"] == "es"
