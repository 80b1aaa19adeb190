"""Judgements as other tools read them; small rankings, every row written out by hand."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest

from preference_data import import_data, read_judgements
from preference_data.exports import (
    HeldOut,
    demonstration_rows,
    listwise_rows,
    openai_rows,
    preference_rows,
    prompt_rows,
    rows_of,
    table_rows,
    unpaired_rows,
    write_rows,
)
from preference_data.quarantine import DataError
from preference_data.records import Judgement, Prompt, Response


def judged(*ranks: int | None, prompt: str = "q", **more) -> Judgement:
    """Answers "a", "b", … in this order."""
    responses = tuple(Response.from_text("abcdef"[i]) for i in range(len(ranks)))
    return Judgement(Prompt.from_text(prompt), responses, tuple(ranks), **more)


def thumb(up: bool) -> Judgement:
    answer = Response.from_text("good" if up else "bad")
    return Judgement(Prompt.from_text("q"), (answer,), (None,), kind="binary", scores=(float(up),))


def pairs(rows) -> list[tuple[str, str, float, float]]:
    return [
        (r["chosen"][0]["content"], r["rejected"][0]["content"], r["target"], r["weight"])
        for r in rows
    ]


CONTROL = judged(1, 2, gold=(1, 2))


def test_pairs_of_a_ranking():
    """a > b = c > d, e not ranked: 5 pairs that differ, of which 4 are of neighbouring ranks."""
    ranking = judged(1, 2, 2, 4, None)
    everything = pairs(preference_rows([ranking]))
    fifth = pytest.approx(0.2)
    assert everything == [
        ("a", "b", 1, fifth), ("a", "c", 1, fifth), ("a", "d", 1, fifth), ("b", "d", 1, fifth),
        ("c", "d", 1, fifth),
    ]  # fmt: skip
    assert [p[:2] for p in pairs(preference_rows([ranking], pairs="adjacent"))] == [
        ("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"),
    ]  # fmt: skip
    assert pairs(preference_rows([ranking], pairs="best_worst")) == [("a", "d", 1, 1)]


def test_a_tie_is_dropped_or_given_in_both_orders():
    tie = judged(1, 1, outcome="tie", weight=3.0)
    assert pairs(preference_rows([tie])) == []
    assert pairs(preference_rows([tie], ties="both")) == [
        ("a", "b", 0.5, 1.5), ("b", "a", 0.5, 1.5),
    ]  # fmt: skip


def test_ties_inside_a_ranking_are_given_in_both_orders():
    """a > b = c: three pairs of weight 1/3, of which the tied one is halved. With best-worst, only
    what is tied throughout has a tied pair; the losers of a best-of were not compared."""
    third, sixth = pytest.approx(1 / 3), pytest.approx(1 / 6)
    for choice in ("all", "adjacent"):
        assert pairs(preference_rows([judged(1, 2, 2)], ties="both", pairs=choice)) == [
            ("a", "b", 1, third), ("a", "c", 1, third),
            ("b", "c", 0.5, sixth), ("c", "b", 0.5, sixth),
        ]  # fmt: skip
    best_worst = preference_rows([judged(1, 2, 2)], ties="both", pairs="best_worst")
    assert pairs(best_worst) == [("a", "b", 1, 0.5), ("a", "c", 1, 0.5)]
    partly = preference_rows([judged(1, 1, None)], ties="both", pairs="best_worst")
    assert pairs(partly) == [("a", "b", 0.5, 0.5), ("b", "a", 0.5, 0.5)]
    best_of = preference_rows([judged(2, 1, 2, kind="best_of")], ties="both")
    assert pairs(best_of) == [("b", "a", 1, 0.5), ("b", "c", 1, 0.5)]


def test_a_soft_label_is_the_target_of_the_chosen_one():
    """P(first) = 0.2, so the second is chosen with 0.8."""
    assert pairs(preference_rows([judged(2, 1, probability=0.2)])) == [("b", "a", 0.8, 1)]


def test_the_losers_of_a_best_of_are_not_compared():
    best = judged(2, 1, 2, kind="best_of")
    assert [p[:2] for p in pairs(preference_rows([best]))] == [("b", "a"), ("b", "c")]


def test_weak_ones_and_more_than_a_prompt_s_share_are_left_out():
    weak, strong, unknown = (judged(1, 2, strength=s) for s in (0.1, 0.9, None))
    assert len(list(preference_rows([weak, strong, unknown], min_strength=0.5))) == 2
    many = [judged(1, 2, 3), judged(1, 2, 3, annotator="x"), judged(1, 2, prompt="other")]
    kept = list(preference_rows(many, max_pairs_per_prompt=2, seed=1))
    assert [r["prompt"][0]["content"] for r in kept] == ["q", "q", "other"]
    assert kept == list(preference_rows(many, max_pairs_per_prompt=2, seed=1))
    others = [list(preference_rows(many, max_pairs_per_prompt=2, seed=s)) for s in range(2, 12)]
    assert any(other != kept for other in others)


def test_control_items_are_in_no_view():
    views = (
        preference_rows, listwise_rows, demonstration_rows, openai_rows, table_rows, prompt_rows,
    )  # fmt: skip
    for view in views:
        assert list(view([CONTROL])) == []
    assert list(unpaired_rows([CONTROL], decided=True)) == []


def test_rankings_stay_whole():
    [row] = listwise_rows([judged(2, None, 1), judged(None, None, outcome="unsure")])
    assert row["ranks"] == [2, None, 1]
    assert [c[0] for c in row["completions"]] == [
        {"role": "assistant", "content": text} for text in "abc"
    ]


def test_thumbs_and_what_counts_as_one():
    rows = [thumb(True), thumb(False), judged(1, 1, outcome="both_bad"), judged(1, 2)]
    labels = [(r["completion"][0]["content"], r["label"]) for r in unpaired_rows(rows)]
    assert labels == [("good", True), ("bad", False), ("a", False), ("b", False)]
    decided = [
        (r["completion"][0]["content"], r["label"]) for r in unpaired_rows(rows, decided=True)
    ]
    assert decided == [*labels, ("a", True), ("b", False)]


def test_prompts_once_and_demonstrations_of_the_best():
    rows = [judged(2, 1), judged(1, 1, outcome="tie"), judged(1, 2, prompt="r"), thumb(True)]
    assert [r["prompt"][0]["content"] for r in prompt_rows(rows)] == ["q", "r"]
    found = [
        (r["prompt"][0]["content"], r["completion"][0]["content"]) for r in demonstration_rows(rows)
    ]
    assert found == [("q", "b"), ("r", "a"), ("q", "good")]


def test_openai_rows():
    [row] = openai_rows([judged(2, 1)])
    assert row == {
        "input": {
            "messages": [{"role": "user", "content": "q"}], "tools": [],
            "parallel_tool_calls": True,
        },
        "preferred_output": [{"role": "assistant", "content": "b"}],
        "non_preferred_output": [{"role": "assistant", "content": "a"}],
    }  # fmt: skip


# --- sides ---------------------------------------------------------------------------------------

SIDES = [
    judged(1, 2, prompt="held out", split="test"),
    judged(1, 2, prompt="checked", split="validation"),
    judged(1, 2, prompt="learnt", split="train"),
    judged(1, 2, prompt="free"),
    judged(1, 2, prompt="held out", annotator="another"),
]


@pytest.mark.parametrize("view", ["preference", "listwise", "demonstrations", "table"])
def test_rows_name_the_side_that_they_were_put_on(view):
    rows = list(rows_of(view, SIDES, {}))
    assert [row["split"] for row in rows] == ["test", "validation", "train", None, None]


def test_thumbs_and_prompts_name_their_side():
    """A prompt that is judged on two sides is held out."""
    [row] = unpaired_rows([replace(thumb(True), split="test")])
    assert row["split"] == "test"
    learnt = judged(2, 1, prompt="held out", split="train")
    rows = list(prompt_rows([learnt, *SIDES]))
    assert [row["split"] for row in rows] == ["test", "validation", "train", None]


def test_a_side_can_be_taken_alone():
    """What has no side of its own follows what begins alike, as in training."""

    def prompts(split):
        return [row["prompt"][0]["content"] for row in rows_of("preference", SIDES, {}, split)]

    assert prompts("train") == ["learnt", "free"]
    assert prompts("test") == ["held out", "checked", "held out"]
    assert len(prompts("all")) == len(prompts(None)) == 5


def test_held_out_rows_are_counted():
    rows = HeldOut(rows_of("preference", SIDES, {}))
    assert (len(list(rows)), rows.rows) == (5, 2)


def test_openai_rows_cannot_say_that_they_are_held_out():
    with pytest.raises(DataError, match="held out, and the rows of openai have no column"):
        list(rows_of("openai", SIDES, {}))
    assert len(list(rows_of("openai", SIDES, {}, "train"))) == 2
    assert len(list(rows_of("openai", SIDES, {}, "all"))) == 5
    assert len(list(rows_of("openai", SIDES[2:4], {}))) == 2


# --- tables --------------------------------------------------------------------------------------


def again(tmp_path, judgements):
    """Written as a table and imported, with no word about its columns; and the report."""
    write_rows(table_rows(judgements), tmp_path / "table.csv")
    report = import_data("preferences", str(tmp_path / "table.csv"), tmp_path / "data")
    return list(read_judgements(tmp_path / "data")), report


KEPT = ("prompt", "responses", "ranks", "outcome", "annotator", "comment", "criterion", "split",
        "strength", "duration", "created_at", "weight", "group")  # fmt: skip


def facts(judgements):
    return [[getattr(one, name) for name in KEPT] for one in judgements]


def test_a_table_of_pairs_can_be_imported_again(tmp_path):
    """Every verdict but "unsure", in the importer's own words, with all that was said beside it."""
    judgements = [
        judged(1, 2, annotator="ann", strength=0.1, duration=2.5, comment='"so",\nthen'),
        judged(2, 1, annotator="bob", split="test", criterion="harmless", weight=0.5, group="g"),
        judged(1, 1, outcome="tie", created_at="2026-03-01T10:00:00"),
        judged(1, 1, outcome="both_good", split="validation"),
        judged(1, 1, outcome="both_bad", strength=1.0, prompt="=1+1"),
    ]
    found, report = again(tmp_path, judgements)
    assert report.rows_quarantined == 0
    assert facts(found) == facts(judgements)
    assert (
        (tmp_path / "table.csv")
        .read_bytes()
        .startswith(
            b"\xef\xbb\xbfprompt,response_a,response_b,label,annotator,comment,criterion,split,strength,"
            b"weight,duration,created_at,group,judgement_id\r\n"
        )
    )


def test_what_a_pair_s_table_adds_is_only_there_where_it_says_something():
    soft = judged(2, 1, probability=0.25, votes=4, annotator_kind="human_aggregate", weight=0.5)
    rated = judged(1, 2, kind="rating", scores=(4.0, 2.5))
    unsure = judged(None, None, outcome="unsure", group="g")
    rows = list(table_rows([soft, rated, unsure]))
    assert [list(row) for row in rows] == 3 * [
        ["prompt", "response_a", "response_b", "label", "score_a", "score_b", "annotator",
         "comment", "criterion", "split", "weight", "probability", "votes", "group",
         "annotator_kind", "judgement_id"]
    ]  # fmt: skip
    names = ("label", "score_a", "score_b", "weight", "probability", "votes", "annotator_kind")
    assert [[row[name] for name in names] for row in rows] == [
        ["B", None, None, 0.5, 0.25, 4, "human_aggregate"],
        ["A", 4.0, 2.5, 1.0, None, None, "human"],
        ["unsure", None, None, 1.0, None, None, "human"],
    ]


def test_a_table_of_thumbs_can_be_imported_again(tmp_path):
    judgements = [replace(thumb(True), annotator="ann", comment="why"), thumb(False)]
    found, report = again(tmp_path, judgements)
    assert (report.format, report.rows_quarantined) == ("thumbs", 0)
    assert [
        (one.scores, one.annotator, one.comment, one.prompt, one.responses) for one in found
    ] == [(one.scores, one.annotator, one.comment, one.prompt, one.responses) for one in judgements]


def test_a_table_of_rankings_can_be_imported_again(tmp_path):
    """Where one has three answers, all have numbered ones; the label is then a word for people."""
    judgements = [
        judged(2, None, 1, annotator="ann", split="test"),
        judged(1, 2, comment="why"),
        judged(1, 1, 2, 4),
    ]
    rows = list(table_rows(judgements))
    assert [row["label"] for row in rows] == ["ranking", "first", "ranking_with_ties"]
    assert [rows[0][f"rank_{i}"] for i in (1, 2, 3, 4)] == [2, None, 1, None]
    assert rows[1]["response_3"] is None
    found, report = again(tmp_path, judgements)
    assert report.rows_quarantined == 0
    assert facts(found) == facts(judgements)


def test_a_rating_of_one_answer_keeps_its_score():
    rated = Judgement(
        Prompt.from_text("q"), (Response.from_text("x"),), (None,), kind="rating", scores=(3.0,)
    )
    [row] = table_rows([rated])
    assert [row[name] for name in ("response_1", "rank_1", "label", "score_1")] == [
        "x", None, "rating", 3.0,
    ]  # fmt: skip
    rows = list(table_rows([rated, thumb(False), judged(2, 1)]))
    assert [row["label"] for row in rows] == ["rating", "bad", "second"]
    assert [row["score_1"] for row in rows] == [3.0, 0.0, None]


def test_a_sheet_for_people_runs_no_formula_when_asked(tmp_path):
    risky = Judgement(
        Prompt.from_text("=1+1"), (Response.from_text("- a list"), Response.from_text("b")), (1, 2)
    )
    rows = list(table_rows([risky, judged(1, 2, 3, comment="why")], neutralise=True))
    assert rows[0]["prompt"] == "'=1+1" and rows[0]["response_1"] == "'- a list"
    assert rows[0]["response_3"] is None and rows[0]["rank_3"] is None
    assert rows[1]["comment"] == "why"
    assert next(table_rows([risky]))["prompt"] == "=1+1"
    assert write_rows(rows, tmp_path / "sheet.csv") == 2
    with open(tmp_path / "sheet.csv", encoding="utf-8-sig", newline="") as stream:
        read = list(csv.DictReader(stream))
    assert [r["rank_2"] for r in read] == ["2", "2"] and read[0]["rank_3"] == ""


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_rows_are_written_whole(tmp_path, suffix):
    rows = list(preference_rows([judged(1, 2), judged(2, 1)]))
    path = tmp_path / "new" / f"pairs{suffix}"
    assert write_rows(rows, path) == 2
    if suffix == ".jsonl":
        assert [json.loads(line) for line in path.read_text().splitlines()] == rows
    else:
        import pyarrow.parquet

        assert pyarrow.parquet.read_table(path).to_pylist() == rows
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_nothing_to_write_and_an_unknown_suffix_are_said(tmp_path):
    with pytest.raises(DataError, match="There is nothing to write into"):
        write_rows([], tmp_path / "x.jsonl")
    with pytest.raises(DataError, match=r"is to end in \.jsonl, \.csv, \.parquet"):
        write_rows([], tmp_path / "x.xlsx")
    assert list(tmp_path.iterdir()) == []
