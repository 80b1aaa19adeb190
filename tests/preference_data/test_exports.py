"""Judgements as other tools read them; small rankings, every row written out by hand."""

from __future__ import annotations

import csv
import json

import pytest

from preference_data.exports import (
    demonstration_rows,
    listwise_rows,
    openai_rows,
    preference_rows,
    prompt_rows,
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
    for view in (preference_rows, listwise_rows, demonstration_rows, openai_rows, table_rows):
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


def test_a_sheet_for_people_runs_no_formula_when_asked(tmp_path):
    risky = Judgement(
        Prompt.from_text("=1+1"), (Response.from_text("- a list"), Response.from_text("b")), (1, 2)
    )
    rows = list(table_rows([risky, judged(1, 2, 3, comment="why")], neutralise=True))
    assert rows[0]["prompt"] == "'=1+1" and rows[0]["response_1"] == "'- a list"
    assert rows[0]["response_3"] == "" and rows[0]["rank_3"] is None
    assert rows[1]["comment"] == "why"
    assert next(table_rows([risky]))["prompt"] == "=1+1"
    assert write_rows(rows, tmp_path / "sheet.csv") == 2
    with open(tmp_path / "sheet.csv", encoding="utf-8", newline="") as stream:
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
