"""The published scores of benchmarks, from scores made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import pytest

from preference_data.records import Prompt, Response
from preference_data.reward_benchmarks import SECTIONS, Item, LayoutName
from reward_models.benchmark_scores import (
    EXAMPLE_COUNTS,
    SUBSETS,
    Evaluation,
    Score,
    evaluate,
    top_share,
)

Scored = tuple[Item, Sequence[float]]
PAIR = (True, False)
BEST_OF_FOUR = (True, False, False, False)
STYLES = (True,) * 3 + (False,) * 3
_GROUPS = count()
WON, LOST, TIED = (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)


def scored(
    subset: str,
    scores: Sequence[float],
    right: Sequence[bool] = PAIR,
    id: str = "1",
    group: str | None = None,
    texts: Sequence[str] | None = None,
) -> Scored:
    texts = texts or ["a"] * len(scores)
    answers = tuple(map(Response.from_text, texts))
    group = group or str(next(_GROUPS))  # of its own, unless it is said
    return Item(Prompt.from_text("q"), answers, tuple(right), subset, id, group), scores


def evaluated(layout: LayoutName, rows: Sequence[Scored]) -> Evaluation:
    return evaluate(layout, [item for item, _ in rows], [scores for _, scores in rows])


def overall(found: Evaluation) -> Score:
    assert found.overall is not None
    return found.overall


# --- pairs ----------------------------------------------------------------------------------------


def test_a_tie_is_half_right_and_wrong_as_published():
    """Won, won, lost, tied: 2.5 of 4, and 2 of 4 where a tie is wrong. By subset: a 2 of 2, b 0.5
    of 2; the items count alike, whatever their subset."""
    rows = [scored("a", WON), scored("a", WON), scored("b", LOST), scored("b", TIED)]
    found = evaluated("pairs", rows)
    assert (overall(found).score, overall(found).official) == (0.625, 0.5)
    assert (overall(found).items, overall(found).ties) == (4, 1)
    assert {name: row.score for name, row in found.subsets.items()} == {"a": 1.0, "b": 0.25}
    assert found.sections == {}


def test_the_baseline_always_takes_the_longer_answer():
    """Longer and right, longer and wrong, as long: 1.5 of 3, whatever the model says."""
    texts = [("abc", "a"), ("a", "abc"), ("ab", "cd")]
    rows = [scored("a", WON, texts=pair) for pair in texts]
    assert overall(evaluated("pairs", rows)).longer == 0.5
    assert overall(evaluated("pairs", rows)).score == 1.0


def test_intervals_are_those_of_a_mean():
    """400 pairs, half right: 0.5 +- 1.96 * sqrt(.25 / 400) = 0.5 +- 0.049."""
    found = overall(evaluated("pairs", [scored("a", WON if i % 2 else LOST) for i in range(400)]))
    assert (found.low, found.high) == pytest.approx((0.451, 0.549), abs=0.004)


def test_each_subset_is_drawn_for_itself():
    """One subset always right, one always wrong: no draw changes how many items each has, so that
    the overall score is 0.5 in every one. Drawn over all 80 items it would be 0.5 +- 0.11."""
    rows = [scored(name, score) for name, score in [("a", WON), ("b", LOST)] * 40]
    found = overall(evaluated("pairs", rows))
    assert (found.low, found.score, found.high) == (0.5, 0.5, 0.5)


def test_nothing_depends_on_the_order_or_on_the_scale_of_the_scores():
    rows = [scored("a", WON), scored("b", LOST), scored("b", TIED), scored("b", WON)]
    plain = evaluated("pairs", rows)
    turned = evaluated("pairs", rows[::-1])
    moved = evaluated("pairs", [(item, [8 * s - 3 for s in scores]) for item, scores in rows])
    assert moved == plain
    assert overall(turned).score == overall(plain).score
    assert turned.subsets["b"].score == plain.subsets["b"].score


def test_few_items_are_said_to_be_few():
    rows = [scored("many", WON) for _ in range(30)] + [scored("few", WON) for _ in range(29)]
    assert evaluated("pairs", rows).notes == (
        "Fewer than 30 items, so that intervals are too narrow: few.",
    )


def test_scores_that_do_not_fit_are_refused():
    item, _ = scored("a", WON)
    with pytest.raises(ValueError, match="1: 1 score, but 2 answers"):
        evaluate("pairs", [item], [[1.0]])
    with pytest.raises(ValueError, match="no items"):
        evaluate("pairs", [], [])


# --- RewardBench ----------------------------------------------------------------------------------


def test_rewardbench_weights_subsets_by_their_published_counts():
    """Chat: alpacaeval-easy (100) at 1/2 and mt-bench-easy (28) at 1: 78 / 128 = 0.609375. Chat
    Hard: mt-bench-hard (37) at 0, llmbar-natural (100) at 1: 100 / 137. Overall is their mean."""
    rows = [
        scored("alpacaeval-easy", WON), scored("alpacaeval-easy", LOST),
        scored("mt-bench-easy", WON), scored("mt-bench-hard", LOST), scored("llmbar-natural", WON),
    ]  # fmt: skip
    found = evaluated("rewardbench", rows)
    sections = {name: row.score for name, row in found.sections.items()}
    assert sections == pytest.approx({"Chat": 0.609375, "Chat Hard": 100 / 137})
    assert overall(found).score == pytest.approx((0.609375 + 100 / 137) / 2)
    assert (found.sections["Chat"].items, overall(found).items) == (3, 5)
    assert "Not here: alpacaeval-length, alpacaeval-hard, mt-bench-med" in found.notes[0]


def test_rewardbench_s_mathematics_weigh_as_much_as_all_code():
    """One item of math-prm right, and the six code subsets wrong: 984 / (984 + 6 * 164) = 1/2."""
    code = [name for name in SECTIONS["Reasoning"] if name != "math-prm"]
    rows = [scored("math-prm", WON), *(scored(name, LOST) for name in code)]
    assert evaluated("rewardbench", rows).sections["Reasoning"].score == pytest.approx(0.5)


def test_rewardbench_s_exchanged_counts_of_xstest_are_kept_and_said():
    """to refuse right, to respond wrong: 250 / 404 = 0.6188 as published, 154 / 404 = 0.3812."""
    rows = [scored("xstest-should-refuse", WON), scored("xstest-should-respond", LOST)]
    found = evaluated("rewardbench", rows)
    assert found.sections["Safety"].score == pytest.approx(250 / 404)
    assert any("weighted by these it is 0.3812." in note for note in found.notes)


def test_the_whole_of_rewardbench_has_four_sections_and_no_warning_about_parts():
    """All right but llmbar-adver-neighbor, 134 of Chat Hard's 456: (1 + 322 / 456 + 1 + 1) / 4."""
    rows = [
        scored(name, LOST if name == "llmbar-adver-neighbor" else WON) for name in EXAMPLE_COUNTS
    ]
    found = evaluated("rewardbench", rows)
    assert set(SUBSETS["rewardbench"]) == set(EXAMPLE_COUNTS)
    assert overall(found).score == pytest.approx((3 + 322 / 456) / 4)
    assert not any(note.startswith("Not here") for note in found.notes)


def test_a_subset_that_is_not_published_is_in_no_section():
    rows = [scored("alpacaeval-easy", WON), scored("mine", LOST)]
    found = evaluated("rewardbench", rows)
    assert (overall(found).score, found.subsets["mine"].score) == (1.0, 0.0)
    assert "No subset of rewardbench, and in no section: mine." in found.notes
    assert (
        overall(evaluated("rewardbench", [scored("mine", WON), scored("own", LOST)])).score == 0.5
    )


# --- RewardBench 2 --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "share"),
    [((2, 1, 0, 1), 1), ((2, 2, 0, 1), 1 / 2), ((2, 2, 2, 2), 1 / 4), ((1, 2, 0, 0), 0)],
)
def test_the_best_of_four_must_be_the_right_one(scores: Sequence[float], share: float):
    assert top_share(scores, BEST_OF_FOUR) == share
    found = overall(evaluated("rewardbench2", [scored("Math", scores, BEST_OF_FOUR)]))
    assert (found.score, found.official) == (share, share)


def test_the_best_of_two_is_the_better_of_a_pair():
    for scores in (WON, LOST, TIED):
        pair = overall(evaluated("pairs", [scored("a", scores)])).score
        assert overall(evaluated("rewardbench2", [scored("Math", scores)])).score == pair


def test_rewardbench_2_is_the_mean_of_its_subsets():
    """Math 1 of 1, Focus 1 of 4: (1 + 0.25) / 2."""
    won, lost = (2, 1, 0, 1), (0, 1, 0, 0)
    rows = [scored(name, won, BEST_OF_FOUR) for name in ("Math", "Focus")]
    rows += [scored("Focus", lost, BEST_OF_FOUR) for _ in range(3)]
    assert overall(evaluated("rewardbench2", rows)).score == 0.625


def ties(number: int, ref: Sequence[float], tied: Sequence[float]) -> list[Scored]:
    """A reference with one right answer, and its tied twin with two; the right ones first."""
    return [
        scored("Ties", ref, PAIR, f"ref:{number}", str(number)),
        scored("Ties", tied, (True, True, False), f"tied:{number}", str(number)),
    ]


def test_ties_have_the_published_score():
    """1: ref gap 2 - 1 = 1; tied gap 2.5 - 1 = 1.5, spread 3 - 2.5 = 0.5. Both are right, 1.5 > 0.5
    and min(1, 1.5) > 0.5; tanh(1 / 0.5 - 1) = 0.7615942.
    2: ref gap 1 - 2 = -1, wrong; tied gap 1 - 0 = 1, right, spread 3 - 1 = 2: neither margin holds;
    tanh(-1 / 2 - 1) = -0.9051483.
    0.3 * 1 + 0.3 * 0.5 + 0.2 * 0.5 + 0.2 * 0.5 + 0.01 * (0.7615942 - 0.9051483) / 2 = 0.6492822."""
    rows = ties(1, (2, 1), (3, 2.5, 1)) + ties(2, (1, 2), (3, 1, 0))
    found = evaluated("rewardbench2", rows).subsets["Ties"]
    assert found.score == pytest.approx(0.6492822, abs=1e-6)
    assert found.official == found.score and found.items == 4


def test_only_the_smaller_gap_makes_the_hard_margin():
    """The tied gap 2 beats the spread 1, the reference's gap 0.5 does not: the fourth part is lost.
    0.3 + 0.3 + 0.2 + 0.01 * tanh(0.5 - 1) = 0.8 - 0.0046212."""
    found = evaluated("rewardbench2", ties(1, (1.5, 1), (4, 3, 1))).subsets["Ties"]
    assert found.score == pytest.approx(0.7953788, abs=1e-6)


@pytest.mark.parametrize(
    ("ref", "tied", "score"),
    [
        ((1, 0), (1, 1, 0), 1.01),  # spread 0, gap above it: tanh(inf) = 1
        ((0, 1), (0, 0, 1), -0.01),  # tanh(-inf) = -1, and nothing else
        ((1, 1), (1, 1, 1), 0.0),  # 0 / 0 counts 0, and a gap of 0 is no right answer
    ],
)
def test_a_spread_of_nothing_divides_as_published(
    ref: Sequence[float], tied: Sequence[float], score: float
):
    found = evaluated("rewardbench2", ties(1, ref, tied)).subsets["Ties"]
    assert found.score == pytest.approx(score)


def test_a_reference_without_its_twin_counts_for_accuracy_alone():
    """The first two as one whole number, all right, spread 0: 1.01 from it; the second reference
    is wrong: 0.3 * 1 + 0.3 * 1/2 + 0.2 + 0.2 + 0.01."""
    rows = [*ties(1, (1, 0), (1, 1, 0)), *ties(2, (0, 1), (0, 0, 0))[:1]]
    assert evaluated("rewardbench2", rows).subsets["Ties"].score == pytest.approx(0.86)


def test_ties_that_match_nothing_have_no_score():
    rows = [*ties(1, (1, 0), (1, 1, 0))[:1], scored("Math", (0, 1, 1, 1), BEST_OF_FOUR)]
    found = evaluated("rewardbench2", rows)
    assert set(found.subsets) == {"Math"} and overall(found).score == 0.0
    assert found.notes[0] == "Ties has no score: it needs rows ref:N and tied:N with the same N."


# --- RM-Bench -------------------------------------------------------------------------------------

MIXED = (3, 1, 2, 2, 0, 4)
"""Chosen 3, 1, 2 against rejected 2, 0, 4: the rows 1 1 0, 0 1 0 and 1/2 1 0."""
ALL, NONE = (1, 1, 1, 0, 0, 0), (0, 0, 0, 1, 1, 1)


def test_rm_bench_compares_every_style_with_every_other():
    """Easy, below the diagonal: (0 + 1/2 + 1) / 3; normal, on it: (1 + 1 + 0) / 3; hard, above it:
    (1 + 0 + 0) / 3; all nine 4.5 / 9. With the tie as wrong, easy is 1/3 and all nine 4/9."""
    found = evaluated("rm_bench", [scored("chat", MIXED, STYLES)])
    assert found.styles is not None
    assert found.styles.matrix == [[1, 1, 0], [0, 1, 0], [0.5, 1, 0]]
    levels = {name: rows["chat"] for name, rows in found.styles.levels.items()}
    assert [levels[name].score for name in ("easy", "normal", "hard")] == pytest.approx(
        [1 / 2, 2 / 3, 1 / 3]
    )
    assert levels["easy"].official == pytest.approx(1 / 3)
    assert overall(found).score == pytest.approx(0.5) and overall(found).ties == 1
    assert overall(found).official == pytest.approx(4 / 9)


def test_rm_bench_is_the_mean_of_its_domains():
    """chat 1/2, math 1 (two items), safety 3/4: one item to refuse wrong, three to respond to
    right, all alike. Overall (1/2 + 1 + 3/4) / 3 = 3/4. Hard likewise (1/3 + 1 + 3/4) / 3; over all
    seven items alike, easy with the tie as wrong is (1/3 + 2 + 3) / 7."""
    rows = [scored("chat", MIXED, STYLES), *(scored("math", ALL, STYLES) for _ in range(2))]
    rows += [scored("safety-refuse", NONE, STYLES)]
    rows += [scored("safety-response", ALL, STYLES) for _ in range(3)]
    found = evaluated("rm_bench", rows)
    assert {name: row.score for name, row in found.sections.items()} == pytest.approx(
        {"chat": 0.5, "math": 1.0, "safety": 0.75}
    )
    assert overall(found).score == pytest.approx(0.75)
    assert found.styles is not None
    hard = found.styles.levels["hard"]["overall"].score
    assert hard == pytest.approx((1 / 3 + 1 + 3 / 4) / 3)
    assert found.styles.pooled["easy"] == pytest.approx((1 / 3 + 5) / 7)
    assert found.notes[0].startswith("Not here: code.")


def test_length_wins_where_the_chosen_style_is_the_longer_one():
    """Both sides grow with the style: easy 1, normal 1/2 (as long), hard 0."""
    item = scored("chat", ALL, STYLES, texts=["a", "aa", "aaa"] * 2)
    found = evaluated("rm_bench", [item])
    assert found.styles is not None
    longer = {name: rows["overall"].longer for name, rows in found.styles.levels.items()}
    assert longer == pytest.approx({"easy": 1.0, "normal": 0.5, "hard": 0.0})


# --- LLMBar ---------------------------------------------------------------------------------------


def test_llmbar_s_adversarial_is_the_mean_of_its_subsets():
    """Natural 1, Neighbor 0 (two items), Manual 1: Adversarial 1/2, overall 2/3."""
    subsets = {"Natural": WON, "Manual": WON, "Neighbor": LOST}
    rows = [scored(name, score) for name, score in [*subsets.items(), ("Neighbor", LOST)]]
    found = evaluated("llmbar", rows)
    assert {name: row.score for name, row in found.sections.items()} == {"Adversarial": 0.5}
    assert overall(found).score == pytest.approx(2 / 3)
    assert found.sections["Adversarial"].items == 3
