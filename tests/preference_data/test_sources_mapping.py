"""Any table through a mapping of its columns: what each option reads, and what is said of slips."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preference_data import Columns, DataError, Judgement
from preference_data.quarantine import Rejected
from preference_data.sources.carriers import read_rows
from preference_data.sources.carriers.files import Reading, find_files
from preference_data.sources.carriers.rows import Row
from preference_data.sources.columns.label_tables import read_label_table
from preference_data.sources.columns.mapping import (
    Constant,
    Dated,
    Ends,
    Graded,
    Matching,
    Shown,
    Wide,
)

PAIR = "prompt,response_a,response_b,label"
REAL = Path(os.environ.get("ALIGN_TEST_DATA", "/nowhere"))


def write(text: str, name: str = "labels.csv") -> str:
    Path(name).write_text(text, encoding="utf-8")
    return name


def table(header: str, *rows: str) -> str:
    return write("\n".join([header, *rows]) + "\n")


def objects(*rows: object) -> str:
    return write("".join(json.dumps(row) + "\n" for row in rows), "labels.jsonl")


def read_all(path: str, reading: Reading) -> tuple[list, list[Rejected]]:
    items = list(read_label_table(read_rows(find_files(path), reading), reading))
    rejects = [item for item in items if isinstance(item, Rejected)]
    return [record for item in items if not isinstance(item, Rejected) for record in item], rejects


def read(path: str, columns: Columns | None = None, **options) -> tuple[list, list[Rejected]]:
    """(judgements, rejects) under a mapping, or under its options."""
    return read_all(path, Reading(columns or (Columns(**options) if options else None)))


def good(path: str, **options) -> list:
    judgements, rejects = read(path, **options)
    assert rejects == []
    return judgements


def bad(path: str, **options) -> tuple[str, str]:
    """The reason and the sentence of the one row that is set aside."""
    _, (reject,) = read(path, **options)
    return reject.reason, reject.detail.partition(": ")[2]


def error(path: str, **options) -> str:
    with pytest.raises(DataError) as caught:
        read(path, **options)
    return str(caught.value)


def texts(judgement) -> list[str]:
    return [response.text for response in judgement.responses]


# --- without a mapping ---------------------------------------------------------------------------


def test_the_usual_optional_columns_need_no_mapping(here):
    header = PAIR + ",annotator,strength,comment,duration,created_at,split,criterion"
    full, bare = good(
        table(
            header,
            "p,x,y,a,w1,0.5,because,12.5,2026-01-02T03:04:05Z,dev,helpful",
            "p,x,y,Both_Bad,,,,,,,",
        )
    )
    assert (full.ranks, full.annotator, full.strength, full.comment) == (
        (1, 2),
        "w1",
        0.5,
        "because",
    )
    assert (full.duration, full.created_at) == (12.5, "2026-01-02T03:04:05Z")
    assert (full.split, full.criterion) == ("validation", "helpful")
    assert (bare.outcome, bare.duration, bare.created_at, bare.split, bare.criterion) == (
        "both_bad", None, None, None, "overall",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("column", "value", "reason", "sentence"),
    [
        ("duration", "-1", "duration_invalid", "duration is '-1', not a number of seconds."),
        ("duration", "1_0", "duration_invalid", "duration is '1_0', not a number of seconds."),
        ("duration", "inf", "duration_invalid", "duration is 'inf', not a number of seconds."),
        (
            "created_at", "11/28/2017", "date_invalid",
            "created_at is '11/28/2017', not an ISO 8601 date; columns.created_at can name its "
            "format.",
        ),
        (
            "split", "fold3", "split_unknown",
            "split is 'fold3', not one of train, training, validation, valid, val, dev, test; "
            "columns.splits can say what it means.",
        ),
    ],
)  # fmt: skip
def test_optional_columns_that_cannot_be_read(here, column, value, reason, sentence):
    assert bad(table(f"{PAIR},{column}", f"p,x,y,A,{value}")) == (reason, sentence)


def test_cells_of_nothing_but_space_are_blank(here):
    """A blank split, side or control is none; a blank label alone sets its row aside."""
    shown = Shown("left", {"A": "first", "B": "second"})
    path = table(PAIR + ",split,right,left", "p,x,y,A, ,\t, ", "p,x,y, ,,,")
    (judgement,), (reject,) = read(path, gold="right", shown_first=shown)
    assert (judgement.label, judgement.split, judgement.gold, judgement.position) == (
        "first", None, None, None,
    )  # fmt: skip
    assert (reject.reason, reject.expected) == ("label_missing", True)


@pytest.mark.parametrize(
    ("annotator", "expected"),
    [(3.0, "3"), (-0.0, "0"), (7, "7"), (None, None), (float(2**53), "9007199254740992")],
)
def test_ids_that_were_written_as_whole_floats(here, annotator, expected):
    row = {"prompt": "p", "response_a": "x", "response_b": "y", "label": "A"}
    (judgement,) = good(objects({**row, "annotator": annotator}))
    assert judgement.annotator == expected


@pytest.mark.parametrize("annotator", [True, False, 2.5, 1e300, [1]])
def test_what_is_no_id(here, annotator):
    row = {"prompt": "p", "response_a": "x", "response_b": "y", "label": "A"}
    reason, sentence = bad(objects({**row, "annotator": annotator}))
    assert (reason, sentence) == (
        "wrong_type", f"annotator is {annotator!r}, not text or a whole number.",
    )  # fmt: skip


def test_weights_groups_and_controls_need_no_mapping(here):
    weighed, control = good(table(PAIR + ",weight,Group,gold", "p,x,y,A,2.5,t1,", "p,x,y,A,,,B"))
    assert (weighed.weight, weighed.group, weighed.gold) == (2.5, "t1", None)
    assert (control.weight, control.group, control.gold) == (1.0, None, (2, 1))


def test_places_need_no_mapping_where_they_are_a_list(here):
    row = {"prompt": "p", "answers": ["x", "y"], "ranks": [1, 2], "position": [1, 0]}
    (judgement,) = good(objects(row), responses="answers", ranks="ranks")
    assert judgement.position == (1, 0)


def test_a_column_that_is_mapped_has_no_second_meaning(here):
    path = table("prompt,response_a,response_b,gold,weight", "p,x,y,A,0.5")
    (judgement,) = good(path, label="gold", strength="weight")
    assert (judgement.gold, judgement.weight, judgement.strength) == (None, 1.0, 0.5)


def notes(path: str, **options) -> list[str]:
    reading = Reading(Columns(**options) if options else None)
    read_all(path, reading)
    return reading.notes


def test_columns_that_are_not_read_are_noted_once(here):
    path = table(PAIR + ",rater,confidence,position", "p,x,y,A,w,5,1", "q,x,y,A,w,5,1")
    assert notes(path) == [
        "Not read in labels.csv: rater, confidence, position; map them if they matter."
    ]
    assert notes(path, annotator="rater", strength="confidence", group="position") == []
    many = ",".join(f"c{n}" for n in range(12))
    assert notes(table(f"{PAIR},{many}", "p,x,y,A" + "," * 12)) == [
        "Not read in labels.csv: c0, c1, c2, c3, c4, c5, c6, c7, c8, c9 and 2 more; map them if "
        "they matter."
    ]


def test_what_later_objects_have_beside_is_noted_at_the_end(here):
    row = {"prompt": "p", "response_a": "x", "response_b": "y", "label": "A", "id": 1}
    assert notes(objects(row, {**row, "who": "w"}, {**row, "sure": 1, "who": "v"})) == [
        "Not read in labels.jsonl: id; map them if they matter.",
        "Not read in some rows: who, sure; map them if they matter.",
    ]


def test_a_path_into_a_column_reads_it(here):
    row = {"prompt": "p", "response_a": "x", "response_b": "y", "label": "A", "meta": {"who": "w"}}
    assert notes(objects(row), annotator="meta.who") == []


# --- labels --------------------------------------------------------------------------------------

VOCABULARIES = [
    ({"a1": "first", "a2": "second", "equal": "tie"}, ["a1", "A2", "equal"], "12="),
    ({"1": "first", "2": "second", "0": "tie"}, ["1", "2.0", "0"], "12="),
    ({"1": "first", "2": "second", "1.5": "tie"}, ["1", "2", "1.50"], "12="),
    ({"0": "first", "1": "second"}, ["0", "1"], "12"),
    ({"1": "first", "0": "second"}, ["0", "1"], "21"),
    (
        {"left": "first", "right": "second", "neither": "both_bad"},
        ["LEFT", "right", "Neither"],
        "12-",
    ),
    (
        {"model_a": "first", "model_b": "second", "tie": "tie", "tie (bothbad)": "both_bad"},
        ["model_a", "model_b", "tie", "tie (bothbad)"],
        "12=-",
    ),
    ({"true": "first", "false": "second"}, ["True", "FALSE"], "12"),
    ({"👍": "first", "👎": "second", "🤷": "unsure"}, ["👍", "👎", "🤷"], "12?"),
]
SIGNS = {"first": "1", "second": "2", "tie": "=", "both_bad": "-", "both_good": "+", "unsure": "?"}


@pytest.mark.parametrize(("labels", "cells", "verdicts"), VOCABULARIES)
def test_vocabularies_of_labels(here, labels, cells, verdicts):
    judgements = good(table(PAIR, *(f"p,x,y,{cell}" for cell in cells)), labels=labels)
    assert "".join(SIGNS[judgement.label] for judgement in judgements) == verdicts


def test_labels_of_json_are_compared_as_they_would_be_written(here):
    row = {"prompt": "p", "response_a": "x", "response_b": "y"}
    path = objects(*({**row, "label": label} for label in (True, False, 2, 2.0, 1.5, [1])))
    labels = {"true": "first", "false": "second", "2": "both_good", "1.5": "tie"}
    judgements, (reject,) = read(path, labels=labels)
    assert [j.label for j in judgements] == ["first", "second", "both_good", "both_good", "tie"]
    assert reject.reason == "wrong_type"


def test_two_spellings_of_a_label_with_two_meanings():
    with pytest.raises(ValueError, match=r"^columns\.labels gives 'A' two meanings: "):
        Columns(labels={"a": "first", "A": "second"})
    with pytest.raises(ValueError, match=r"^columns\.labels gives '1\.0' two meanings: "):
        Columns(labels={"1": "first", "1.0": "second"})


@pytest.mark.parametrize(
    ("ends", "label", "expected"),
    [
        ((-3, 3), "-3", ((1, 2), None, 1.0, "-3..3")),
        ((-3, 3), "-2", ((1, 2), None, 2 / 3, "-3..3")),
        ((-3, 3), "0", ((1, 1), "tie", None, "-3..3")),
        ((-3, 3), "1", ((2, 1), None, 1 / 3, "-3..3")),
        ((3, -3), "1", ((1, 2), None, 1 / 3, "-3..3")),
        ((1, 7), "4", ((1, 1), "tie", None, "1..7")),
        ((1, 7), "7", ((2, 1), None, 1.0, "1..7")),
        ((1, 5), "2", ((1, 2), None, 0.5, "1..5")),
        ((5, 1), "2", ((2, 1), None, 0.5, "1..5")),
        ((1, 6), "3", ((1, 2), None, 0.2, "1..6")),
        ((1, 6), "4", ((2, 1), None, 0.2, "1..6")),
    ],
)
def test_graded_labels_between_two_ends(here, ends, label, expected):
    """Of 1..6 the middle is 3.5 and half its width 2.5, so 3 and 4 are 0.5 / 2.5 away."""
    (j,) = good(table(PAIR, f"p,x,y,{label}"), scale=Ends(*ends))
    assert (j.ranks, j.outcome, j.strength and pytest.approx(j.strength), j.scale) == expected


def test_graded_labels_in_words(here):
    scale = ("A>>B", "A>B", "A=B", "B>A", "B>>A")
    path = table(PAIR, *(f"p,x,y,{label}" for label in ("A>>B", "a > b", "A>B", "A=B", "B>>A")))
    judgements, (spaced,) = read(path, scale=scale)
    assert [(j.label, j.strength) for j in judgements] == [
        ("first", 1.0), ("first", 0.5), ("tie", None), ("second", 1.0),
    ]  # fmt: skip
    assert {j.scale for j in judgements} == {"A>>B..B>>A"}
    assert (spaced.row, spaced.reason) == (2, "label_unknown")


def test_an_even_scale_has_no_tie_and_a_short_one_no_strength(here):
    even = ("much left", "left", "right", "much right")
    judgements = good(table(PAIR, *(f"p,x,y,{label}" for label in even)), scale=even)
    assert [j.label for j in judgements] == ["first", "first", "second", "second"]
    assert [j.strength for j in judgements] == pytest.approx([1.0, 1 / 3, 1 / 3, 1.0])
    short = good(table(PAIR, "p,x,y,left", "p,x,y,none"), scale=("left", "none", "right"))
    assert [(j.label, j.strength) for j in short] == [("first", None), ("tie", None)]


def test_a_scale_of_numbers_is_a_scale_of_their_words(here):
    judgements = good(
        table(PAIR, "p,x,y,1", "p,x,y,2.0", "p,x,y,3", "p,x,y,5"), scale=(1, 2.0, 3, 4, 5)
    )
    assert [(j.label, j.strength, j.scale) for j in judgements] == [
        ("first", 1.0, "1..5"), ("first", 0.5, "1..5"), ("tie", None, "1..5"),
        ("second", 1.0, "1..5"),
    ]  # fmt: skip


@pytest.mark.parametrize("label", ["Response A", "3 stars"])
def test_a_label_in_other_words_has_a_remedy(here, label):
    assert bad(table(PAIR, f"p,x,y,{label}")) == (
        "label_unknown",
        f"the label '{label}' is not one of A, B, tie, both_bad, both_good, unsure; columns.labels "
        "can say what it means.",
    )


def test_the_better_answer_may_have_a_column_of_its_own(here):
    path = table("question,chosen,rejected,who", "p,x,y,w", "p,x,x,w", "p,,y,w")
    judgements, rejects = read(
        path, prompt="question", responses=("chosen", "rejected"), best="first", annotator="who"
    )
    assert [(j.label, texts(j), j.annotator) for j in judgements] == [("first", ["x", "y"], "w")]
    assert [reject.reason for reject in rejects] == ["identical_responses", "empty_response"]
    (second,) = good(table("prompt,bad,good", "p,y,x"), responses=("bad", "good"), best="second")
    assert (second.label, second.ranks) == ("second", (2, 1))


def test_the_best_of_several_columns(here):
    path = table("prompt,good,bad_1,bad_2", "p,x,y,z")
    (judgement,) = good(path, responses=("good", "bad_1", "bad_2"), best="first")
    assert (judgement.kind, judgement.ranks) == ("best_of", (1, 2, 2))


def test_thumbs_on_single_answers(here):
    path = table(
        "prompt,response,rating,user",
        "p,x,1,u", "p,y,0,", "p,z,1.0,u", "p,y,,u", "p,y,2,u", "p,,1,u",
    )  # fmt: skip
    judgements, rejects = read(
        path, responses=("response",), label="rating", thumbs={"1": "up", "0": "down"},
        annotator="user",
    )  # fmt: skip
    assert [(j.kind, j.scores, j.ranks, j.annotator) for j in judgements] == [
        ("binary", (1.0,), (None,), "u"), ("binary", (0.0,), (None,), None),
        ("binary", (1.0,), (None,), "u"),
    ]  # fmt: skip
    assert [(reject.reason, reject.expected) for reject in rejects] == [
        ("label_missing", True), ("label_unknown", False), ("empty_response", False),
    ]  # fmt: skip
    assert rejects[1].detail == (
        "row 5 (line 6): the label '2' is not one of 1, 0; columns.thumbs can say what it means."
    )


def test_thumbs_take_no_gold_column_for_a_control(here):
    path = table("prompt,completion,label,gold", "p,x,1,1")
    (judgement,) = good(path, responses=("completion",), thumbs={"1": "up", "0": "down"})
    assert (judgement.label, judgement.gold) == ("good", None)


def test_a_scale_may_have_labels_beside_it(here):
    path = table(PAIR, "p,x,y,-1", "p,x,y,both bad", "p,x,y,4", "p,x,y,left")
    judgements, rejects = read(path, scale=Ends(-3, 3), labels={"both bad": "both_bad"})
    assert [j.label for j in judgements] == ["first", "both_bad"]
    assert [reject.detail for reject in rejects] == [
        "row 3 (line 4): the label '4' is not on -3..3.",
        "row 4 (line 5): the label is 'left', not a number on -3..3.",
    ]


def test_a_scale_ignores_an_unmapped_column_of_strengths(here):
    (judgement,) = good(table(PAIR + ",strength", "p,x,y,1,5"), scale=Ends(1, 5))
    assert judgement.strength == 1.0


def test_a_label_that_names_the_model(here):
    header = "prompt,response_a,response_b,by_a,by_b,label"
    path = table(
        header, "p,x,y,gpt,own,own", "p,x,y,gpt,own,tie", "p,x,y,gpt,own,other", "p,x,y,m,m,m"
    )
    judgements, rejects = read(
        path, models=("by_a", "by_b"), label_is="model", labels={"tie": "tie"}
    )
    assert [j.label for j in judgements] == ["second", "tie"]
    assert [response.model for response in judgements[0].responses] == ["gpt", "own"]
    assert [reject.reason for reject in rejects] == ["label_unknown", "label_ambiguous"]


def test_a_label_that_repeats_the_answer_or_names_its_column(here):
    path = table(PAIR, "p,Yes.,No. ,No.", "p,Yes.,No.,no.")
    (judgement,), (other,) = read(path, label_is="text")
    assert (judgement.label, other.reason) == ("second", "label_unknown")
    path = table("prompt,one,two,three,pick", "p,x,y,z,two")
    (best,) = good(path, responses=("one", "two", "three"), label="pick", label_is="column")
    assert (best.kind, best.ranks) == ("best_of", (2, 1, 2))


@pytest.mark.parametrize(
    ("label_is", "cells", "ranks"),
    [
        ("index_from_0", ["0", "2.0"], [(1, 2, 2), (2, 2, 1)]),
        ("index_from_1", ["1", "3"], [(1, 2, 2), (2, 2, 1)]),
    ],
)
def test_the_index_of_the_best_counts_from_where_it_is_said_to(here, label_is, cells, ranks):
    rows = [f"p,x,y,z,{cell}" for cell in cells]
    judgements, (reject,) = read(
        table("prompt,response_1,response_2,response_3,label", *rows, "p,x,y,z,-1"),
        label_is=label_is,
    )
    assert [(j.kind, j.ranks) for j in judgements] == [("best_of", ranks[0]), ("best_of", ranks[1])]
    assert reject.reason == "label_unknown"


ONE_HOT = {"winner_a": "first", "winner_b": "second", "winner_tie": "tie"}


def test_one_hot_columns(here):
    path = table(
        "prompt,response_a,response_b,winner_a,winner_b,winner_tie",
        "p,x,y,1,0,0", "p,x,y,0,1.0,0", "p,x,y,,,true", "p,x,y,1,1,0", "p,x,y,0,0,0",
        "p,x,y,0,2,0", "p,x,x,1,0,0",
    )  # fmt: skip
    judgements, rejects = read(path, one_hot=ONE_HOT)
    assert [j.label for j in judgements] == ["first", "second", "tie"]
    names = "winner_a, winner_b, winner_tie"
    assert [reject.detail.partition(": ")[2] for reject in rejects] == [
        f"2 of {names} are 1; it must be one.",
        f"0 of {names} are 1; it must be one.",
        "winner_b is '2', not 0 or 1.",
        "two identical answers are ranked one above the other.",
    ]


# --- scores and ranks ----------------------------------------------------------------------------

SCORED = "prompt,response_a,response_b,score_a,score_b"


def test_scores_are_compared_and_kept(here):
    path = table(SCORED, "p,x,y,0.5,-1", "p,x,y,2,2.0", "p,x,y,1,", "p,x,y,high,1")
    judgements, rejects = read(path, scores=("score_a", "score_b"))
    assert [(j.kind, j.ranks, j.outcome, j.scores) for j in judgements] == [
        ("rating", (1, 2), None, (0.5, -1.0)), ("rating", (1, 1), "tie", (2.0, 2.0)),
    ]  # fmt: skip
    assert [(reject.reason, reject.detail.partition(": ")[2]) for reject in rejects] == [
        ("too_few_scores", "1 of 2 answers has a score."),
        ("score_invalid", "score_a is 'high', not a number."),
    ]


def test_lower_scores_may_be_better_and_near_ones_tie(here):
    path = table(SCORED, "p,x,y,1,0", "p,x,y,1,1.25", "p,x,y,1,1.5")
    judgements = good(path, scores=("score_a", "score_b"), better="lower", tie_within=0.25)
    assert [j.ranks for j in judgements] == [(2, 1), (1, 1), (1, 2)]
    assert judgements[0].scores == (-1.0, 0.0)


def test_a_threshold_counts_from_the_best_of_each_rank(here):
    """10 and 9 are within 1; 8 is 2 below 10, so it begins the next rank, which 7 joins."""
    path = table("prompt,r1,r2,r3,r4,s1,s2,s3,s4", "p,w,x,y,z,9,7,10,8")
    (judgement,) = good(path, responses=Matching("r(.)"), scores=Matching("s(.)"), tie_within=1)
    assert judgement.ranks == (1, 2, 1, 2)


def test_one_answer_with_a_score_is_a_rating(here):
    path = table("prompt,answer,score", "p,x,3", "p,x,")
    (judgement,), (reject,) = read(path, responses=("answer",), scores=("score",))
    assert (judgement.kind, judgement.ranks, judgement.scores) == ("rating", (None,), (3.0,))
    assert reject.reason == "too_few_scores"


def test_patterns_join_answers_with_their_ranks_by_what_they_capture(here):
    """Column 10 comes after 2, and each rank goes to the answer of its number."""
    header = "prompt,ans_2,ans_10,ans_1,place 1,place 10,place 2,by_1,by_2,by_10"
    path = table(header, "p,b,c,a,3,1,2,m1,m2,m10", "p,,c,a,1,2,,m1,,m10")
    full, gap = good(
        path,
        responses=Matching(r"ans_(\d+)"),
        ranks=Matching(r"place (\d+)"),
        models=Matching(r"by_(\d+)"),
    )
    assert (texts(full), full.ranks) == (["a", "b", "c"], (3, 2, 1))
    assert [response.model for response in full.responses] == ["m1", "m2", "m10"]
    assert (texts(gap), gap.ranks) == (["a", "c"], (1, 2))
    assert [response.model for response in gap.responses] == ["m1", "m10"]


def test_patterns_of_words_keep_the_order_of_the_table(here):
    path = table("prompt,text_right,text_left,label", "p,x,y,A")
    (judgement,) = good(path, responses=Matching("text_(left|right)"))
    assert texts(judgement) == ["x", "y"]


# --- the other roles -----------------------------------------------------------------------------


def test_every_role_of_a_table(here):
    header = "q,l,r,better,who,sure,why,sys,aspect,task,secs,when,fold,right,w,ml,mr,swapped"
    path = table(
        header,
        "p,x,y,2,ann,3,why,Be brief.,harmless,t1,7,28.11.2017 14:51,blind,1,2.5,m1,m2,yes",
        "p,x,y,1,,,,,,,,,,,,,,",
    )
    full, bare = good(
        path, prompt="q", responses=("l", "r"), label="better",
        labels={"1": "first", "2": "second"}, annotator="who", strength=Graded("sure", 1, 5),
        comment="why", system="sys", criterion="aspect", group="task", duration="secs",
        created_at=Dated("when", "%d.%m.%Y %H:%M"), split="fold", splits={"blind": "test"},
        gold="right", weight="w", models=("ml", "mr"),
        shown_first=Shown("swapped", {"yes": "second", "no": "first"}),
    )  # fmt: skip
    assert full.prompt.text == "system: Be brief.\nuser: p"
    assert (full.ranks, full.gold, full.position, full.weight) == ((2, 1), (1, 2), (1, 0), 2.5)
    assert (full.annotator, full.strength, full.scale) == ("ann", 0.5, "1..5")
    assert (full.comment, full.criterion, full.group, full.duration) == (
        "why", "harmless", "t1", 7.0,
    )  # fmt: skip
    assert (full.created_at, full.split) == ("2017-11-28T14:51:00", "test")
    assert [response.model for response in full.responses] == ["m1", "m2"]
    assert (bare.gold, bare.position, bare.weight, bare.strength) == (None, None, 1.0, None)
    assert (bare.criterion, bare.group, bare.created_at, bare.split) == (
        "overall",
        None,
        None,
        None,
    )


def test_constants(here):
    (judgement,) = good(
        table(PAIR, "p,x,y,A"),
        criterion=Constant("helpful"), annotator=Constant("me"), system=Constant("Be brief."),
        split=Constant("test"), annotator_kind="model",
    )  # fmt: skip
    assert (judgement.criterion, judgement.annotator, judgement.split) == ("helpful", "me", "test")
    assert (judgement.annotator_kind, judgement.prompt.messages[0].content) == (
        "model",
        "Be brief.",
    )


@pytest.mark.parametrize(
    ("options", "header", "row", "reason"),
    [
        ({"weight": "w"}, "w", "0", "weight_invalid"),
        ({"weight": "w"}, "w", "nan", "weight_invalid"),
        ({"strength": Graded("s", 1, 5)}, "s", "6", "strength_invalid"),
        (
            {"shown_first": Shown("left", {"A": "first", "B": "second"})},
            "left",
            "C",
            "position_invalid",
        ),
        ({"created_at": Dated("t", "%d.%m.%Y")}, "t", "2026-01-02", "date_invalid"),
        ({"gold": "g"}, "g", "C", "label_unknown"),
        ({"gold": "g", "labels": {"A": "first", "?": "unsure"}}, "g", "?", "gold_unsure"),
    ],
)
def test_values_that_cannot_be_read(here, options, header, row, reason):
    assert bad(table(f"{PAIR},{header}", f"p,x,y,A,{row}"), **options)[0] == reason


@pytest.mark.parametrize(
    ("places", "expected"),
    [("0,1,2", (0, 1, 2)), ("3,1,2", (2, 0, 1)), (",,", None)],
)
def test_positions_count_from_0_or_from_1(here, places, expected):
    header = "prompt,a1,a2,a3,r1,r2,r3,p1,p2,p3"
    options = {
        "responses": Matching("a(.)"),
        "ranks": Matching("r(.)"),
        "position": Matching("p(.)"),
    }
    (judgement,) = good(table(header, f"p,x,y,z,1,2,3,{places}"), **options)
    assert judgement.position == expected


def test_positions_that_are_no_places(here):
    header = "prompt,a1,a2,r1,r2,p1,p2"
    options = {"responses": ("a1", "a2"), "ranks": ("r1", "r2"), "position": ("p1", "p2")}
    path = table(header, "p,x,y,1,2,1,1", "p,x,y,1,2,2,3", "p,x,y,1,2,1,", "p,x,y,1,2,0.5,1")
    _, rejects = read(path, **options)
    assert [reject.reason for reject in rejects] == ["position_invalid"] * 4


def test_gold_ranks_of_a_ranking(here):
    header = "prompt,a1,a2,r1,r2,g1,g2"
    options = {"responses": ("a1", "a2"), "ranks": ("r1", "r2"), "gold": ("g1", "g2")}
    control, plain = good(table(header, "p,x,y,1,2,2,1", "p,x,y,1,2,,"), **options)
    assert (control.gold, plain.gold) == ((2, 1), None)


# --- paths and JSON ------------------------------------------------------------------------------


def test_paths_lead_into_objects_and_lists(here):
    row = {
        "info": {"post": "p", "meta": {"worker": 7}},
        "summaries": [{"text": " x", "policy": "ref"}, {"text": "y", "policy": "sup"}],
        "choice": 1,
    }
    (judgement,) = good(
        objects(row),
        prompt="info.post", responses=("summaries.0.text", "summaries.1.text"), label="choice",
        models=("summaries.0.policy", "summaries.1.policy"), label_is="index_from_0",
        annotator="info.meta.worker",
    )  # fmt: skip
    assert (judgement.prompt.text, texts(judgement), judgement.ranks) == ("p", [" x", "y"], (2, 1))
    assert (judgement.annotator, judgement.responses[0].model) == ("7", "ref")


def test_a_star_takes_every_element_of_a_list(here):
    def row(*scores):
        return {"q": "p", "answers": [{"text": f"t{i}", "s": s} for i, s in enumerate(scores)]}

    judgements, (reject,) = read(
        objects(row(1, 3, 2), row(5, 5), {"q": "p", "answers": "none"}),
        prompt="q", responses="answers.*.text", scores="answers.*.s",
    )  # fmt: skip
    assert [(len(j.responses), j.ranks) for j in judgements] == [(3, (3, 1, 2)), (2, (1, 1))]
    assert reject.detail == (
        "row 3 (line 3): answers.*.text leads through 'none', which has no '*'; name the column "
        "in columns.json if it holds JSON as text."
    )


def test_a_column_whose_name_has_dots_wins_over_a_path(here):
    path = table("Input.prompt,Input.a,Input.b,Answer.choice", "p,x,y,A")
    (judgement,) = good(
        path, prompt="Input.prompt", responses=("Input.a", "Input.b"), label="Answer.choice"
    )
    assert judgement.prompt.text == "p"


def test_cells_that_hold_json(here):
    answers = json.dumps(['x, "x"', "y", "z"])
    with open("labels.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [
                ["prompt", "answers", "meta", "best"],
                ["p", answers, '{"who": "w"}', "1"],
                ["p", answers, "", "2"],
                ["p", "[x]", "", "0"],
                ["p", "{}", "", "0"],
            ]
        )
    path = "labels.csv"
    judgements, rejects = read(
        path, responses="answers", label="best", label_is="index_from_0",
        json=("answers", "meta"), annotator="meta.who",
    )  # fmt: skip
    assert [(j.ranks, j.annotator) for j in judgements] == [((2, 1, 2), "w"), ((2, 2, 1), None)]
    assert texts(judgements[0]) == ['x, "x"', "y", "z"]
    assert [reject.reason for reject in rejects] == ["json_invalid", "not_a_list"]
    assert rejects[0].raw["answers"] == "[x]"


def test_lists_of_unequal_length(here):
    rows = [{"prompt": "p", "r": ["x", "y"], "k": ranks} for ranks in ([1, 2], [1, 2, 3])]
    judgements, (reject,) = read(objects(*rows), responses="r", ranks="k")
    assert (len(judgements), reject.reason) == (1, "lengths_differ")
    assert reject.detail == "row 2 (line 2): 2 answers have 3 ranks."


def test_a_path_that_no_row_has_is_noted(here):
    row = {"prompt": "p", "response_a": "x", "response_b": "y", "label": "A", "extra": {"sure": 1}}
    reading = Reading(Columns(strength="extra.sure", annotator="extra.wroker"))
    judgements, _ = read_all(objects(row), reading)
    assert [(j.strength, j.annotator) for j in judgements] == [(1.0, None)]
    assert reading.notes == [
        "extra.wroker, which columns.annotator names, has no value in any row."
    ]


# --- one column an item --------------------------------------------------------------------------

FORM = (
    "Timestamp,Name,Which answer is better? [1],Which answer is better? [2],Remarks",
    "2026/01/02,Ada,First,Both are bad,none",
    "2026/01/03,Bo,,Sometimes,hm",
)
ITEMS = "item,prompt,response_a,response_b\n1,p1,x1,y1\n2,p2,x2,y2\n"
QUESTIONS = r"Which answer is better\? \[(?P<item>.*)\]"
FORM_LABELS = {"First": "first", "Second": "second", "Both are bad": "both_bad"}


def check_form(judgements, rejects):
    assert [(j.annotator, j.prompt.text, texts(j), j.label) for j in judgements] == [
        ("Ada", "p1", ["x1", "y1"], "first"), ("Ada", "p2", ["x2", "y2"], "both_bad"),
    ]  # fmt: skip
    assert len({j.id for j in judgements}) == 2
    assert [(r.row, r.reason, r.expected) for r in rejects] == [
        (2, "not_answered", True), (2, "label_unknown", False),
    ]  # fmt: skip
    assert rejects[0].detail == "row 2 (line 3): Which answer is better? [1] is empty."


def test_a_form_with_its_items_in_a_file_beside_it(here):
    Path("form").mkdir()
    write("\n".join(FORM) + "\n", "form/labels.csv")
    write(ITEMS, "form/items.csv")
    options = {"wide": Wide(QUESTIONS, "items.csv"), "annotator": "Name", "labels": FORM_LABELS}
    check_form(*read("form/labels.csv", **options))


def test_a_form_with_its_items_in_the_mapping(here):
    items = {
        str(n): {"prompt": f"p{n}", "response_a": f"x{n}", "response_b": f"y{n}"} for n in (1, 2, 3)
    }
    reading = Reading(Columns(wide=Wide(QUESTIONS, items), annotator="Name", labels=FORM_LABELS))
    check_form(*read_all(table(*FORM), reading))
    assert reading.notes == [
        "1 item of columns.wide.items has no column in labels.csv: 3.",
        "Not read in labels.csv: Timestamp, Remarks; map them if they matter.",
    ]


def test_groups_of_the_header_are_columns(here):
    path = table("who,p1 / x / y (helpful),p1 / x / y (kind)", "w,A,B")
    judgements = good(
        path,
        annotator="who", responses=("a", "b"),
        wide=Wide(r"(?P<prompt>.*) / (?P<a>.*) / (?P<b>.*) \((?P<criterion>.*)\)"),
    )  # fmt: skip
    assert [(j.criterion, j.label, texts(j)) for j in judgements] == [
        ("helpful", "first", ["x", "y"]), ("kind", "second", ["x", "y"]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "items", "sentence"),
    [
        (
            "Q(?P<item>.*)", {},
            "labels.csv has no column that matches columns.wide.columns, 'Q(?P<item>.*)'; it has "
            "Timestamp, Name, Which answer is better? [1], Which answer is better? [2], Remarks.",
        ),
        (
            QUESTIONS, {"1": {"prompt": "p"}},
            "labels.csv: the column 'Which answer is better? [2]' asks for the item '2', which "
            "columns.wide.items does not have. Add it, or narrow columns.wide.columns.",
        ),
        (
            QUESTIONS, {"1": {"Name": "p"}, "2": {}},
            "labels.csv: Name would be the name of two columns of one row (a person's, an item's, "
            "or label, which is the cell). Rename one of them.",
        ),
        (QUESTIONS, "gone.csv", "There is no file gone.csv"),
    ],
)  # fmt: skip
def test_forms_that_do_not_fit_their_mapping(here, columns, items, sentence):
    assert error(table(*FORM), wide=Wide(columns, items)).startswith(sentence)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("id,prompt\n1,p\n", "items.csv has no column item; it has id, prompt."),
        ("item,prompt\n1,p\n1,q\n", "items.csv has the item '1' twice, the second in row 2."),
        (
            "item,prompt\n1\n",
            "items.csv cannot be used: row 1 (line 2) has 1 field where the header ",
        ),
    ],
)
def test_files_of_items_that_cannot_be_used(here, text, sentence):
    write(text, "items.csv")
    assert error(table(*FORM), wide=Wide(QUESTIONS, "items.csv")).startswith(sentence)


# --- what is said of a mapping -------------------------------------------------------------------

MISTAKES: list[tuple[dict[str, object], str]] = [
    (
        {"scores": ("s", "t"), "label": "l"},
        "Map a label or scores, not both: each says which answer",
    ),
    ({"ranks": ("s", "t"), "one_hot": ONE_HOT}, "Map ranks or one_hot, not both: each says which"),
    ({"best": "first", "label": "l"}, "Map a label or best, not both: each says which answer"),
    ({"best": "first", "gold": "g"}, "columns.gold needs a label or ranks, in whose words"),
    ({"best": "first", "wide": Wide("(?P<q>.*)")}, "With wide the cells are the labels: map no"),
    ({"thumbs": {"1": "up"}}, "columns.thumbs needs one column of responses, as in responses: ["),
    ({"thumbs": {"1": "up"}, "responses": ("a", "b")}, "columns.thumbs needs one column of"),
    ({"thumbs": {"1": "good"}}, "columns.thumbs.1 is one of up, down, not 'good'."),
    (
        {"thumbs": {"1": "up"}, "responses": ("a",), "labels": {"0": "tie"}},
        "columns.thumbs is of one answer; labels, label_is, scale and gold need two.",
    ),
    (
        {"responses": ("a",), "label": "l"},
        "One column of responses needs scores, or a label that columns.thumbs explains.",
    ),
    ({"scale": (1, 2, "1.0")}, "columns.scale lists two values or more, each once."),
    ({"better": "lower"}, "columns.better has no effect without scores; remove it."),
    ({"tie_within": 0.0}, "columns.tie_within has no effect without scores; remove it."),
    (
        {"scores": ("s", "t"), "tie_within": -1.0},
        "columns.tie_within is a number from 0 up, not -1.",
    ),
    (
        {"split": Constant("test"), "splits": {"x": "test"}},
        "columns.splits has no effect on a constant split; remove it.",
    ),
    (
        {"label_is": "model"},
        "columns.label_is: model needs columns.models, the models of the answers.",
    ),
    (
        {"label_is": "column", "responses": "r"},
        "columns.label_is: column needs one column an answer.",
    ),
    ({"label_is": "text", "scale": ("a", "b")}, "Map scale or label_is, not both: each says what"),
    (
        {"scale": ("a", "b"), "strength": "s"},
        "Map scale or strength, not both: the scale gives the",
    ),
    ({"scale": ("a",)}, "columns.scale lists two values or more, each once."),
    ({"scale": ("a", "b", "A")}, "columns.scale lists two values or more, each once."),
    ({"gold": "g", "scores": ("s", "t")}, "columns.gold needs a label or ranks, in whose words"),
    ({"gold": ("g", "h")}, "columns.gold is one column, in the words of the label."),
    (
        {"responses": Matching("a(.)"), "ranks": ("r1", "r2")},
        "columns.ranks is given in another way than columns.responses; give both as a list of",
    ),
    (
        {"responses": ("a", "b"), "models": ("m",)},
        "1 column of models does not fit 2 of responses.",
    ),
    ({"responses": ("a", "b", "c"), "one_hot": ONE_HOT}, "one_hot needs two columns of responses."),
    (
        {"responses": ("a", "b", "c"), "ranks": ("a", "b", "c"), "shown_first": Shown("s", {})},
        "shown_first needs two columns of responses.",
    ),
    (
        {"position": ("p", "q"), "shown_first": Shown("s", {})},
        "Map position or shown_first, not both.",
    ),
    ({"one_hot": {"a": "won"}}, "columns.one_hot.a is one of first, second, tie, both_good, "),
    (
        {"splits": {"a": "half"}, "split": "s"},
        "columns.splits.a is one of train, validation, test, ",
    ),
    (
        {"wide": Wide("(?P<q>.*)"), "label": "l"},
        "With wide the cells are the labels: map no label,",
    ),
]


@pytest.mark.parametrize(("options", "sentence"), MISTAKES)
def test_mappings_that_contradict_themselves_or_have_no_effect(options, sentence):
    with pytest.raises(ValueError) as caught:
        Columns(**options)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Matching("answer"), "pattern 'answer' needs one group in parentheses, as in"),
        (lambda: Matching("("), "pattern '(' is no regular expression: missing ), "),
        (lambda: Ends(1, 1), "scale runs from 1 to 1, which is no way."),
        (lambda: Graded("c", 2, 2), "lowest and highest are both 2."),
        (
            lambda: Shown("c", {"1": "left"}),
            "columns.shown_first.values.1 is one of first, second, not",
        ),
        (lambda: Wide("Q.*"), "wide.columns needs a named group, as in 'Q[0-9]+ (?P<item>.*)'."),
        (
            lambda: Wide("(?P<item>.*)"),
            "wide.items goes with a group (?P<item>...) in wide.columns.",
        ),
        (lambda: Wide("(?P<label>.*)"), "wide.columns cannot name a group label: the cell is the"),
    ],
)
def test_parts_of_a_mapping_that_cannot_be(make, sentence):
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"annotator": "worker.id"},
            'labels.csv has no column "worker.id"; it has prompt, response_a, response_b, label. '
            "Rename the column, or map with columns.annotator.",
        ),
        (
            {"one_hot": {"lable": "first", "other": "second"}},
            'labels.csv has no columns "lable" (nearest: "label"), "other"; it has prompt, ',
        ),
        (
            {"models": ("response_a", "respons_b")},
            'labels.csv has no column "respons_b" (nearest: "response_b"); it has prompt, ',
        ),
        ({"created_at": Dated("time", "%d")}, 'labels.csv has no column "time"; it has prompt, '),
        ({"shown_first": Shown("left", {})}, 'labels.csv has no column "left"; it has prompt, '),
        (
            {"responses": Matching("answer_(.)")},
            "labels.csv has no column that matches columns.responses, 'answer_(.)'; it has ",
        ),
        (
            {"responses": Matching("response_(.)"), "models": Matching("(l)abel")},
            "labels.csv: columns.models finds l and columns.responses a, b, which do not go ",
        ),
        (
            {"ranks": ("label",)},
            "1 column of ranks does not fit 2 of responses in labels.csv.",
        ),
        (
            {"models": Matching("model_(.)")},
            "labels.csv has no column that matches columns.models, 'model_(.)'; it has prompt, ",
        ),
        (
            {"splits": {"x": "test"}},
            "columns.splits has no effect: labels.csv has no column split. Map it.",
        ),
        (
            {"json": ("meta",), "annotator": "meta.who"},
            'labels.csv has no columns "meta.who", "meta"; it has prompt, response_a, response_b, ',
        ),
    ],
)
def test_mapped_columns_that_are_not_in_the_file(here, options, sentence):
    assert error(table(PAIR, "p,x,y,A"), **options).startswith(sentence)


def test_json_of_a_column_that_nothing_reads(here):
    assert error(table(PAIR + ",extra", "p,x,y,A,{}"), json=("response_a", "extra")) == (
        "columns.json names 'extra', which no other option reads; remove it."
    )


def test_what_is_filled_in_may_contradict_what_was_mapped(here):
    path = table("prompt,response_1,response_2,rank_1,rank_2,g", "p,x,y,1,2,1")
    assert error(path, gold="g").startswith(
        "labels.csv: columns.gold is given in another way than columns.responses; "
    )


def test_usual_answers_are_joined_by_their_letters(here):
    path = table("prompt,response_b,response_a,label,by_b,by_a", "p,y,x,A,mb,ma")
    (judgement,) = good(path, models=Matching("by_(.)"))
    assert [(r.text, r.model) for r in judgement.responses] == [("x", "ma"), ("y", "mb")]


def test_a_usual_column_may_hold_json(here):
    turns = json.dumps([{"role": "system", "content": "s"}, {"role": "user", "content": "p"}])
    with open("labels.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([PAIR.split(","), [turns, "x", "y", "A"]])
    (judgement,) = good("labels.csv", json=("prompt",))
    assert [message.role for message in judgement.prompt.messages] == ["system", "user"]


# --- anything in any cell ------------------------------------------------------------------------

cell = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 4) | st.floats() | st.text(max_size=3)
    | st.sampled_from(["A", "B", "tie", "m", "1", "0", "-3", "1e400", "\ud800", "2026-01-01"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("at*"), inner),
    max_leaves=4,
)  # fmt: skip
MAPPINGS = [
    Columns(),
    Columns(scale=Ends(-3, 3), models=("m", "n"), annotator="c.a", strength=None),
    Columns(label_is="index_from_0", responses="l", models="k", system="c.t", json=("c",)),
    Columns(label_is="text", gold="m", weight="n", shown_first=Shown("c", {"A": "first"})),
    Columns(responses="l", ranks="k", position="l", gold="k", duration="n", group="m"),
    Columns(responses="l.*.t", scores="k", tie_within=0.5, created_at=Dated("c", "%Y")),
    Columns(responses=("m",), scores=("n",), criterion="c", split="k", comment="l"),
    Columns(responses=("m",), label="n", thumbs={"A": "up", "B": "down"}),
    Columns(responses=("m", "l"), best="second", annotator="c"),
    Columns(one_hot={"m": "first", "n": "tie"}, strength=Graded("label", 3, 1)),
]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(MAPPINGS),
    st.lists(st.fixed_dictionaries(
        dict.fromkeys(("response_a", "response_b", "label", "m", "n", "c", "l", "k"), cell)
    ), min_size=1, max_size=20),
)  # fmt: skip
def test_every_row_gives_its_record_or_its_reason(columns, rows):
    """Whatever the cells hold; a number without a meaning ends the reading with a sentence."""
    given_rows = [
        Row("l.jsonl", n, n, {"prompt": "p", **values}) for n, values in enumerate(rows, start=1)
    ]
    items = read_label_table(iter(given_rows), Reading(columns))
    seen = 0
    try:
        for seen, item in enumerate(items, start=1):
            if isinstance(item, Rejected):
                assert (item.row, bool(item.reason), item.raw) == (
                    seen,
                    True,
                    given_rows[seen - 1].values,
                )
            else:
                (judgement,) = item
                assert judgement.source.row == seen
                assert Judgement.from_json(json.loads(json.dumps(judgement.to_json()))) == judgement
    except DataError as mistake:
        assert "has no agreed meaning" in str(mistake)
    else:
        assert seen == len(rows)


# --- real votes ----------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL.is_dir(), reason="ALIGN_TEST_DATA is not set")
def test_three_annotators_of_real_pairs_by_their_columns(here):
    """PandaLM; the counts are those of a loop over its JSON, three votes an item."""
    items = json.loads((REAL / "pandalm" / "testset-v1.json").read_text(encoding="utf-8"))
    path, counts = objects(*items), Counter[str]()
    for annotator in ("annotator1", "annotator2", "annotator3"):
        judgements, rejects = read(
            path, prompt="instruction", responses=("response1", "response2"), label=annotator,
            labels={"1": "first", "2": "second", "0": "tie"}, annotator=Constant(annotator),
        )  # fmt: skip
        assert len(judgements) + len(rejects) == len(items) == 999
        counts.update([judgement.label for judgement in judgements])
        counts.update([reject.reason for reject in rejects])
    assert counts == {
        "first": 1175, "second": 1323, "tie": 316,
        "empty_response": 162, "wrong_type": 18, "empty_prompt": 3,
    }  # fmt: skip
