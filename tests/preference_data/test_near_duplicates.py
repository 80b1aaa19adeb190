"""Near duplicates: what is joined and what stays apart, and overlap with evaluation texts."""

from __future__ import annotations

import random

import pytest

from preference_data.near_duplicates import Clusters, Overlap, contamination, near_duplicates

WORDS = [f"word{number}" for number in range(2000)]


def joined(*texts: str, threshold: float = 0.8) -> bool:
    """Whether all of the texts are one cluster."""
    keys = {str(number): text for number, text in enumerate(texts)}
    return near_duplicates(keys, threshold).groups == [tuple(sorted(keys))]


def prose(seed: int, words: int) -> list[str]:
    """Different words, so that a run of five occurs once."""
    return random.Random(seed).sample(WORDS, words)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is the opposite of hot?", "what is the  opposite of HOT"),
        ("Say «hi», please!", "Say 'hi' please."),
        ("A first line\nand a second", "a first line and\ta second"),
        ("ﬁne print", "fine print"),
        ("Cafe\u0301", "CAFÉ"),
        ("Straße", "STRASSE"),
        ("北京是哪个国家的首都？", "北京是哪个国家的首都"),
        ("Bold: **yes**", "bold yes"),
        ("???", "???"),
    ],
)
def test_case_punctuation_and_spacing_do_not_count(one, other):
    assert joined(one, other, threshold=1.0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is the opposite of hot?", "What is the opposite of cold?"),
        ("What is the capital of Australia?", "What is the capital of Austria?"),
        ("Translate into French: I like apples.", "Translate into German: I like apples."),
        ("What is 12 + 7?", "What is 12 - 7?"),
        ("What is 12*7?", "What is 12/7?"),
        ("Write quicksort in C", "Write quicksort in C++"),
        ("北京是哪个国家的首都？", "东京是哪个国家的首都？"),
        ("Why?", "How?"),
        ("???", "!!!"),
        ("", "?"),
        ("👍", "👎"),
    ],
)
def test_short_prompts_of_one_template_stay_apart(one, other):
    assert not joined(one, other)


@pytest.mark.parametrize(("words", "alike"), [(48, False), (49, True)])
def test_one_word_counts_less_the_longer_the_text(words, alike):
    """W words have W - 4 runs, and a word in the middle is in 5 of them: (W - 9) / (W + 1) is
    39/49 = 0.796 for 48 words and 40/50 = 0.8 for 49."""
    text = prose(1, words)
    edited = [*text[:20], "other", *text[21:]]
    assert joined(" ".join(text), " ".join(edited)) == alike


def test_the_threshold_is_what_decides():
    """A word before 20 others: 16 shared runs of 17 in all, 0.94."""
    text = " ".join(prose(2, 20))
    assert joined(text, "please " + text, threshold=0.94)
    assert not joined(text, "please " + text, threshold=0.95)
    assert not joined(text, "please " + text, threshold=1.0)


@pytest.mark.parametrize("threshold", [0.0, 1.1, float("nan")])
def test_a_threshold_outside_its_range_is_refused(threshold):
    with pytest.raises(ValueError, match="A threshold lies above 0 and up to 1"):
        near_duplicates({"a": "b"}, threshold)


def test_clusters_are_named_by_their_smallest_key():
    """c is like b and b like a, but c and a share only 33 of 43 runs: one cluster."""
    text = prose(3, 42)
    texts = {
        "b": " ".join(text),
        "a": " ".join(["early", *text[1:]]),
        "c": " ".join([*text[:-4], "late", *text[-3:]]),
        "d": " ".join(prose(4, 60)),
    }
    pair = {key: texts[key] for key in "ac"}
    assert near_duplicates(pair).groups == []
    clusters = near_duplicates(texts)
    assert clusters.groups == [("a", "b", "c")]
    assert [clusters.of(key) for key in "abcdz"] == ["a", "a", "a", "d", "z"]


def test_nothing_gives_no_clusters():
    assert near_duplicates({}) == Clusters()
    assert near_duplicates({"a": ""}).groups == []


def test_planted_copies_are_found_and_nothing_else_whatever_the_order():
    """Each of 300 texts of 60 to 120 words has a copy with one other word; some copies, at worst
    51/61 = 0.84 alike, might be missed by MinHash, so the count is pinned to all of them."""
    generator = random.Random(5)
    texts: dict[str, str] = {}
    for number in range(300):
        words = prose(100 + number, generator.randint(60, 120))
        texts[f"{number}a"] = " ".join(words)
        words[generator.randrange(len(words))] = "changed"
        texts[f"{number}b"] = " ".join(words)
    clusters = near_duplicates(texts)
    assert clusters.groups == sorted((f"{number}a", f"{number}b") for number in range(300))
    keys = list(texts)
    generator.shuffle(keys)
    assert near_duplicates({key: texts[key] for key in keys}) == clusters


def test_a_long_template_joins_nothing():
    """80 shared words and 6 own ones: 76 runs of 82 + 6 = 0.86 alike, in every one of the texts.

    The same own words, and an edit of case, are still a duplicate; under 100 texts no run is
    taken for a template's, and all are one cluster.
    """
    template = " ".join(prose(6, 80))
    texts = {f"{n:03}": f"{template}: {' '.join(prose(1000 + n, 6))}" for n in range(150)}
    few = {key: texts[key] for key in list(texts)[:50]}
    assert len(near_duplicates(few).groups[0]) == 50
    texts["shouted"] = texts["007"].upper()
    texts["bare"] = template
    assert near_duplicates(texts).groups == [("007", "shouted")]


def test_many_copies_are_one_cluster():
    text = prose(7, 80)
    texts = {f"{n:02}": " ".join([*text[:n], "other", *text[n + 1 :]]) for n in range(80)}
    texts |= {f"plain {n}": " ".join(text) for n in range(50)}
    (group,) = near_duplicates(texts).groups
    assert len(group) == 130


def test_thirteen_words_of_an_evaluation_text_are_contamination():
    evaluation = ["One " + " ".join(prose(8, 20)), "Two " + " ".join(prose(9, 13))]
    first = prose(8, 20)
    texts = [
        "Clean. " + " ".join(prose(10, 40)),
        "Here it is: " + ", ".join(first[3:16]).upper() + "!",
        " ".join(first[3:15]),
        " ".join(prose(9, 13)) + " " + " ".join(first),
    ]
    assert contamination(texts, evaluation) == [
        Overlap(1, 0, " ".join(first[3:16])),
        Overlap(3, 1, " ".join(prose(9, 13))),
    ]
    assert [found.text for found in contamination(texts, evaluation, n=12)] == [1, 2, 3]
    (copied,) = contamination(evaluation[:1], evaluation)
    assert copied == Overlap(0, 0, "one " + " ".join(first[:12]))


def test_a_short_evaluation_text_must_be_the_whole_text():
    texts = ["Why?", "Why not?", "why", "Because."]
    assert contamination(texts, ["WHY", "How?"]) == [Overlap(0, 0, "why"), Overlap(2, 0, "why")]
    assert contamination(texts, []) == []


def test_a_run_of_no_words_is_refused():
    with pytest.raises(ValueError, match="The number of words must be positive, not 0"):
        contamination(["a"], ["a"], n=0)
