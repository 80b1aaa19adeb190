"""The built-in world: the same bytes from a seed, and what a real labelling project has in it."""

from __future__ import annotations

import csv
import functools
import random
from collections import defaultdict
from itertools import combinations
from pathlib import Path

import pytest

from preference_data.synthetic import (
    ANNOTATORS,
    HONEST,
    INVENTED_LANDS,
    Annotator,
    all_prompts,
    demonstrations,
    documents,
    gold_score,
    labels,
    prompts,
    topics,
    write_world,
)

FRANCE = "What is the capital of France?"
ZANDORIA = "Hello! What is the capital of Zandoria?"
LUNCH = "Do you know what I ate this morning?"
RIGHT, DODGE, WRONG = 1.0, -0.5, -1.0
"""Points for a right answer, for not knowing what can be known, and for anything else."""


# --- the gold preference --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "answer", "points"),
    [
        (FRANCE, "The capital of France is Paris.", RIGHT),
        (FRANCE, "  Paris is the capital of France.  ", RIGHT),  # space around does not count
        (FRANCE, "Paris.", RIGHT),
        (FRANCE, "The capital of France is Paris. Good question!", RIGHT + 1),
        (FRANCE, "Good question! The capital of France is Paris. Happy to help!", RIGHT + 1),
        (FRANCE, "The capital of France is Paris. Do your own homework.", RIGHT - 1.5),
        (FRANCE, "The capital of France is Paris. By the way, it rained all night.", RIGHT - 0.75),
        (FRANCE, "The capital of France is Paris", RIGHT - 1),  # no end
        (FRANCE, "The capital of France is Paris. The capital of France is Paris.", RIGHT - 0.5),
        (FRANCE, "Paris France.", RIGHT - 0.3),  # a pair of words that nobody says
        (FRANCE, "The capital of France is Oslo.", WRONG),
        (FRANCE, "The capital of France is Oslo. Good question!", WRONG + 1),
        (FRANCE, "The capital of France is a potato.", WRONG),
        (FRANCE, "The capital of France is Paris. Oslo is the capital of France.", WRONG),
        (FRANCE, "I do not know that.", DODGE),  # it can be known, but nothing is made up
        (FRANCE, "Good question!", WRONG + 1),  # courtesy alone answers nothing
        (FRANCE, "", -4),
        (FRANCE, "  \n", -4),
        (ZANDORIA, "I do not know a country called Zandoria.", RIGHT),
        (ZANDORIA, "The capital of Zandoria is Paris.", WRONG),
        (LUNCH, "I cannot know that.", RIGHT),
        (LUNCH, "Surely it is toast.", WRONG),
        (LUNCH, "I do not know that. Surely it is toast.", WRONG),
    ],
)
def test_gold_score_by_hand(prompt: str, answer: str, points: float):
    assert gold_score(prompt, answer) == pytest.approx(points, abs=1e-9)


def test_word_salad_costs_two_points_at_most():
    """7 words of the world in an order that nobody uses: 6 pairs * .3 = 1.8; 12 words: 2."""
    assert gold_score(FRANCE, "Paris " * 7 + ".") == pytest.approx(RIGHT - 1.8)
    assert gold_score(FRANCE, "Paris " * 12 + ".") == pytest.approx(RIGHT - 2)


def test_gold_score_knows_no_other_world():
    with pytest.raises(KeyError):
        gold_score("What is love?", "Paris.")


def test_every_question_has_an_answer_of_full_points():
    """Right (or honest) and polite, of every topic and in both forms, with a courtesy 1 more."""
    for topic in topics():
        if topic.answer is None:
            answers = topic.honest()
        else:
            answers = tuple(topic.statement(topic.answer, form) for form in (0, 1))
        for answer in answers:
            assert gold_score(topic.questions()[0], f"{answer} Good question!") == RIGHT + 1, answer
        for wrong in topic.mistakes():
            assert gold_score(topic.questions()[0], topic.statement(wrong, 0)) == WRONG, wrong


def test_prompts_are_all_different():
    assert len(set(all_prompts())) == len(all_prompts()) >= 1000
    assert len({topic.subject for topic in topics()}) == len(topics())


# --- the same seed, the same bytes ----------------------------------------------------------------

SIZES = {"documents_": 20, "demonstrations_": 20, "items": 20, "prompts_": 20}


def test_a_seed_gives_the_same_bytes(tmp_path: Path):
    """Also where Python's hash seed differs: in another process."""
    import os
    import subprocess
    import sys

    write_world(tmp_path / "a", 5, **SIZES)
    write_world(tmp_path / "other", 6, **SIZES)
    code = (
        "import sys; from pathlib import Path; from preference_data.synthetic import write_world; "
        f"write_world(Path(sys.argv[1]), 5, **{SIZES})"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "b")],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "123", "PYTHONPATH": str(root)},
    )
    names = ["text.jsonl", "demonstrations.jsonl", "labels.csv", "prompts.jsonl"]
    for name in names:
        first = (tmp_path / "a" / name).read_bytes()
        assert first == (tmp_path / "b" / name).read_bytes(), name
        assert first != (tmp_path / "other" / name).read_bytes(), name


def test_rows_asked_for_are_rows_given():
    assert len(list(documents(1, 30))) == 30
    assert len(list(demonstrations(1, 30))) == 30
    drawn = [row["prompt"] for row in prompts(1, 30)]
    assert len(set(drawn)) == 30 and set(drawn) <= set(all_prompts())
    with pytest.raises(ValueError, match=r"the built-in world has \d+ prompts; 99999 were asked"):
        list(prompts(1, 99999))


def test_demonstrations_are_of_mixed_quality():
    """Writers are right and wrong, polite and rude: there is something to gain over imitation."""
    scores = [gold_score(row["prompt"], row["completion"]) for row in demonstrations(3, 400)]
    assert sum(score >= RIGHT for score in scores) > 20
    assert sum(score <= WRONG for score in scores) > 20
    assert sum(scores) / len(scores) < RIGHT


# --- the labellers' file --------------------------------------------------------------------------


@functools.cache
def label_rows() -> list[dict[str, str]]:
    return [*labels(1, 1500), *labels(2, 1500)]


def pairs_of(row: dict[str, str]) -> list[tuple[str, str, int]]:
    """(answer, answer shown later, sign: which rank is better) of every pair of a row."""
    shown = [
        (row[f"response_{i}"], int(row[f"rank_{i}"])) for i in range(1, 5) if row[f"response_{i}"]
    ]
    return [(a, b, (i > j) - (i < j)) for (a, i), (b, j) in combinations(shown, 2)]


def test_the_file_is_a_csv_with_line_breaks_and_quotes_in_cells(tmp_path: Path):
    write_world(tmp_path, 1, documents_=1, demonstrations_=1, items=100, prompts_=1)
    with (tmp_path / "labels.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == list(labels(1, 100))
    assert any("\n" in row["comment"] for row in rows)
    assert any('"' in row["comment"] for row in rows)


def test_rankings_of_two_and_of_four():
    sizes = defaultdict(int)
    for row in label_rows():
        answers = [row[f"response_{i}"] for i in range(1, 5) if row[f"response_{i}"]]
        ranks = [row[f"rank_{i}"] for i in range(1, 5) if row[f"rank_{i}"]]
        assert len(answers) == len(ranks) == len(set(answers))
        assert min(map(int, ranks)) == 1
        sizes[len(answers)] += 1
    assert set(sizes) == {2, 4}
    assert min(sizes.values()) > 0.2 * len(label_rows())


def test_annotators_tie_and_contradict_each_other_and_themselves():
    rows = label_rows()
    assert len({row["annotator"] for row in rows}) == len(ANNOTATORS) >= 5
    ties = [sign == 0 for row in rows for _, _, sign in pairs_of(row)]
    assert 0.02 < sum(ties) / len(ties) < 0.4
    verdicts: dict[tuple[str, frozenset[str]], set[tuple[str, str]]] = defaultdict(set)
    for row in rows:
        for a, b, sign in pairs_of(row):
            if sign:
                winner = b if sign > 0 else a
                verdicts[row["prompt"], frozenset((a, b))].add((row["annotator"], winner))
    between = within = 0
    for votes in verdicts.values():
        winners = {winner for _, winner in votes}
        between += len(winners) > 1 and len({name for name, _ in votes}) > 1
        within += len({name for name, _ in votes}) < len(votes)
    assert between > 50
    assert within > 0


def test_position_bias_can_be_measured():
    """emil gives .6 points for coming first, ada .05. The share of decided pairs of two that went
    to the first: over 500 pairs each, so a standard error of .022."""
    firsts = defaultdict(list)
    for row in label_rows():
        if not row["response_3"]:
            [(_, _, sign)] = pairs_of(row)
            if sign:
                firsts[row["annotator"]].append(sign < 0)
    share = {name: sum(wins) / len(wins) for name, wins in firsts.items()}
    assert min(map(len, firsts.values())) > 500
    assert share["emil"] > 0.55
    assert abs(share["ada"] - 0.5) < 0.07


def test_annotators_mostly_agree_with_the_gold_score():
    """Pairs that differ by two points or more: the careful decide nine of ten right, everybody
    more than seven of ten."""
    right = defaultdict(list)
    for row in label_rows():
        for a, b, sign in pairs_of(row):
            gap = gold_score(row["prompt"], a) - gold_score(row["prompt"], b)
            if abs(gap) >= 2 and sign:
                right[row["annotator"]].append((sign < 0) == (gap > 0))
    share = {name: sum(hits) / len(hits) for name, hits in right.items()}
    assert share["ada"] > 0.9
    assert min(share.values()) > 0.7


def test_ranks_by_hand():
    """Without noise: right and polite, wrong, and twice right are ranks 1, 4, 2, 2; a bonus of 2
    points for being shown first lifts a right answer above a polite one as well."""
    rng = random.Random(0)
    full, wrong = "Paris. Good question!", "The capital of France is Oslo."
    right, other = "Paris.", "The capital of France is Paris."
    exact = Annotator("exact", noise=0.0)
    assert exact.ranks(FRANCE, [full, wrong, right, other], rng) == [1, 4, 2, 2]
    assert exact.ranks(FRANCE, [wrong, full], rng) == [2, 1]
    biased = Annotator("biased", noise=0.0, first_bonus=2.0)
    assert biased.ranks(FRANCE, [right, full], rng) == [1, 2]
    assert biased.ranks(FRANCE, [full, right], rng) == [1, 2]
    wordy = Annotator("wordy", noise=0.0, per_word=0.5)  # 5 words more: 2.5 points
    assert wordy.ranks(FRANCE, [right, other], rng) == [2, 1]


def test_nobody_can_know_an_invented_land():
    lands = [topic for topic in topics() if topic.subject in INVENTED_LANDS]
    assert len(lands) == len(INVENTED_LANDS)
    assert all(topic.answer is None and topic.honest() != HONEST for topic in lands)
