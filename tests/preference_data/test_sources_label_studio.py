"""Label Studio: the four exports of one project agree, and every control says what it means."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from real_data import real_data

from preference_data import Columns, DataError, sniff
from preference_data.quarantine import Rejected
from preference_data.sources.carriers.files import Reading
from preference_data.sources.columns.mapping import Graded, Matching
from preference_data.sources.formats import FORMATS, read_records

DATA = {"prompt": "Why?", "answer1": "No.", "answer2": "Yes."}
ITEMS = [
    {"id": "x", "title": "t", "body": "one"},
    {"id": "y", "html": "<b>two</b>"},
    {"id": "z", "title": "three"},
]


def result(name: str, type: str, value: dict, to: str = "shown") -> dict:
    return {"id": "r", "from_name": name, "to_name": to, "type": type, "value": value}


def selected(side: str, name: str = "pw", to: str = "shown") -> dict:
    return result(name, "pairwise", {"selected": side}, to)


def choice(name: str, *choices: str) -> dict:
    return result(name, "choices", {"choices": list(choices)})


def rating(name: str, stars: object, to: str = "shown") -> dict:
    return result(name, "rating", {"rating": stars}, to)


def annotation(*results: dict, **more) -> dict:
    return {"id": 11, "completed_by": 3, "was_cancelled": False, "result": list(results), **more}


def task(*annotations: dict, data: dict = DATA, **more) -> dict:
    return {"id": 7, "data": data, "annotations": list(annotations), "predictions": [], **more}


def read_tasks(folder: Path, *rows: dict, **columns):
    """(judgements, rejects, notes)"""
    path = folder / "tasks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_file(path, **columns)


def read_file(path: Path, **columns):
    reading = Reading(Columns(**columns) if columns else None)
    name, items = read_records(str(path), "preferences", "label_studio", reading)
    found = list(items)
    rejects = [item for item in found if isinstance(item, Rejected)]
    judgements = [one for item in found if not isinstance(item, Rejected) for one in item]
    assert name == "label_studio"
    return judgements, rejects, reading.notes


def one(folder: Path, *results: dict, data: dict = DATA, **columns):
    (judgement,), rejects, _ = read_tasks(folder, task(annotation(*results), data=data), **columns)
    assert not rejects
    return judgement


def fault(folder: Path, *results: dict, data: dict = DATA) -> tuple[str, str]:
    judgements, (reject,), _ = read_tasks(folder, task(annotation(*results), data=data))
    assert not judgements
    return reject.reason, reject.detail


def texts(judgement) -> list[str]:
    return [response.text for response in judgement.responses]


# --- the task and its annotations ----------------------------------------------------------------


def test_an_annotation_keeps_who_when_how_long_and_of_which_task(tmp_path):
    made = annotation(
        selected("right"), created_at="2026-01-02T03:04:05Z", lead_time=4.5, completed_by={"id": 9}
    )
    (judgement,), _, _ = read_tasks(tmp_path, task(made))
    assert (judgement.prompt.text, texts(judgement)) == ("Why?", ["No.", "Yes."])
    assert (judgement.ranks, judgement.position, judgement.criterion) == ((2, 1), (0, 1), "overall")
    assert (judgement.annotator, judgement.group) == ("9", "7")
    assert (judgement.duration, judgement.created_at) == (4.5, "2026-01-02T03:04:05Z")
    assert (judgement.source.format, judgement.source.row) == ("label_studio", 1)
    assert judgement.annotator_kind == "human"


def test_each_annotation_counts_on_its_own(tmp_path):
    """Of five annotations one is skipped, one empty and one broken: the other two stay."""
    rows = task(
        annotation(selected("left"), completed_by=1),
        annotation(id=12, was_cancelled=True),
        annotation(id=13),
        annotation(selected("middle"), id=14),
        annotation(selected("right"), completed_by=2),
    )
    judgements, rejects, _ = read_tasks(tmp_path, rows, task(), {"data": DATA, "annotations": 5})
    assert [(judgement.annotator, judgement.ranks) for judgement in judgements] == [
        ("1", (1, 2)),
        ("2", (2, 1)),
    ]
    assert [(reject.row, reject.reason, reject.expected) for reject in rejects] == [
        (1, "skipped", True),
        (1, "not_annotated", True),
        (1, "label_unknown", False),
        (2, "not_annotated", True),
        (3, "bad_task", False),
    ]
    assert rejects[0].detail == "row 1 (line 1): annotation 12 was skipped."
    assert rejects[2].detail == "row 1 (line 1): pw is 'middle', not left or right."
    assert rejects[0].raw["annotations"][0]["id"] == 12


def test_predictions_are_never_read(tmp_path):
    guess = {"model_version": "m", "result": [selected("left")]}
    judgements, (reject,), _ = read_tasks(tmp_path, task(predictions=[guess]))
    assert (judgements, reject.reason) == ([], "not_annotated")


def test_old_files_call_annotations_completions(tmp_path):
    """Seconds since 1970: 1,500,000,000 is 14 July 2017, 02:40 UTC."""
    row = task()
    row["completions"] = [
        {"id": 1, "result": [selected("left")], "created_at": 1_500_000_000},
        {"id": 2, "result": [], "skipped": True},
    ]
    del row["annotations"]
    (judgement,), (reject,), _ = read_tasks(tmp_path, row)
    assert (judgement.annotator, judgement.created_at) == (None, "2017-07-14T02:40:00+00:00")
    assert reject.reason == "skipped"


def test_an_email_becomes_a_pseudonym_whatever_its_case(tmp_path):
    people = [{"id": 4, "email": "Ann@x.org", "first_name": "Ann"}, "ann@x.org"]
    row = task(*(annotation(selected("left"), completed_by=who) for who in people))
    judgements, _, _ = read_tasks(tmp_path, row)
    digest = sha256(b"ann@x.org").hexdigest()[:16]
    assert [judgement.annotator for judgement in judgements] == [digest, digest]
    assert "nn@x" not in json.dumps([judgement.to_json() for judgement in judgements])


def test_a_ground_truth_makes_its_task_a_control_item(tmp_path):
    truth = annotation(selected("right"), ground_truth=True, completed_by=1)
    row = task(annotation(selected("left")), truth, annotation(choice("tie", "Tie")))
    judgements, _, _ = read_tasks(tmp_path, row, task(annotation(selected("left"))))
    assert [(j.ranks, j.gold) for j in judgements] == [
        ((1, 2), (2, 1)),
        ((2, 1), (2, 1)),
        ((1, 1), (2, 1)),
        ((1, 2), None),
    ]


def test_a_broken_ground_truth_is_rejected_alone(tmp_path):
    truth = annotation(selected("middle"), ground_truth=True)
    judgements, (reject,), _ = read_tasks(tmp_path, task(annotation(selected("left")), truth))
    assert ([j.gold for j in judgements], reject.reason) == ([None], "label_unknown")


# --- which field is which ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("answer1", "answer2"),
        ("response_a", "response_b"),
        ("Response A", "Response B"),
        ("text-1", "text-2"),
        ("left", "right"),
        ("left_answer", "right_answer"),
        ("answer_left", "answer_right"),
        ("completion9", "completion10"),
    ],
)
def test_the_left_answer_is_the_first_of_two_by_name(tmp_path, first, second):
    """The fields are given in the other order, so that their order decides nothing."""
    data = {second: "B", first: "A", "question": "Why?", "model": "m"}
    judgement = one(tmp_path, selected("left"), data=data)
    assert (texts(judgement), judgement.ranks) == (["A", "B"], (1, 2))


def test_what_was_taken_for_left_is_noted(tmp_path):
    _, _, notes = read_tasks(tmp_path, task(annotation(selected("left"))))
    assert notes == [
        '"answer1" was taken for the left answer and "answer2" for the right one, by their names; '
        "if it was the other way round, name them with columns.responses."
    ]


def test_a_mapping_names_left_and_right(tmp_path):
    names = {"prompt": "frage", "responses": ("answer2", "answer1")}
    rows = task(annotation(selected("left")), data={**DATA, "frage": "Warum?"})
    (judgement,), _, notes = read_tasks(tmp_path, rows, **names)
    assert (judgement.prompt.text, texts(judgement)) == ("Warum?", ["Yes.", "No."])
    assert (judgement.ranks, notes) == ((1, 2), [])


def test_a_control_of_two_fields_by_name_says_which_is_left(tmp_path):
    judgement = one(tmp_path, selected("left", to="answer2,answer1"))
    assert (texts(judgement), judgement.ranks) == (["Yes.", "No."], (1, 2))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            {"prompt": "p", "foo": "a", "bar": "b"},
            "Which fields of {path} are the responses cannot be told (none has a usual name); it "
            "has prompt, foo, bar. Name them with columns.responses and the format label_studio.",
        ),
        (
            {"prompt": "p", "answer1": "a", "answer2": "b", "text_a": "c", "text_b": "d"},
            "Which fields of {path} are the responses cannot be told (answer1 or answer2 or "
            "text_a or text_b?); it has prompt, answer1, answer2, text_a, text_b. Name them with "
            "columns.responses and the format label_studio.",
        ),
        (
            {"prompt": "p", "question": "q", "answer1": "a", "answer2": "b"},
            "Which fields of {path} are the prompt cannot be told (prompt or question?); it has "
            "prompt, question, answer1, answer2. Name them with columns.prompt and the format "
            "label_studio.",
        ),
        (
            {"prompt": "p", "answer1": "a", "answer2": "b", "answer3": "c"},
            "{path} compares a left with a right answer and has answer1, answer2, answer3. Name "
            "the two, left first, with columns.responses and the format label_studio.",
        ),
    ],
)
def test_fields_that_cannot_be_told_are_refused(tmp_path, data, said):
    with pytest.raises(DataError) as caught:
        read_tasks(tmp_path, task(annotation(selected("left")), data=data))
    assert str(caught.value) == said.format(path=tmp_path / "tasks.jsonl")


def test_a_later_task_without_the_fields_is_rejected_alone(tmp_path):
    good, bad = annotation(selected("left")), {"prompt": "p", "foo": "a"}
    judgements, (reject,), _ = read_tasks(tmp_path, task(good), task(good, data=bad))
    assert (len(judgements), reject.row, reject.reason) == (1, 2, "field_missing")


def test_a_mapping_that_is_not_read_or_not_there_is_refused(tmp_path):
    row = task(annotation(selected("left")))
    with pytest.raises(DataError, match=r"columns\.annotator has no effect on .* Leave it out\."):
        read_tasks(tmp_path, row, annotator="x")
    with pytest.raises(DataError, match=r"columns\.responses as a list of fields"):
        read_tasks(tmp_path, row, responses=Matching("answer(.)"))
    with pytest.raises(DataError, match=r'no field "answer_1" \(nearest: "answer1"\)'):
        read_tasks(tmp_path, row, responses=("answer_1", "answer2"))


# --- what the controls mean ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "ranks", "outcome"),
    [
        ("Answer A", (1, 2), None),
        ("answer 2", (2, 1), None),
        ("answer2", (2, 1), None),
        ("Response B is better", (2, 1), None),
        ("Left is better", (1, 2), None),
        ("right", (2, 1), None),
        ("Tie", (1, 1), "tie"),
        ("Both bad", (1, 1), "both_bad"),
        ("Both are good!", (1, 1), "both_good"),
        ("Not sure", (None, None), "unsure"),
    ],
)
def test_a_choice_decides_where_there_is_no_pairwise(tmp_path, words, ranks, outcome):
    judgement = one(tmp_path, choice("better", words), choice("difficult", "Yes."))
    assert (judgement.ranks, judgement.outcome, judgement.position) == (ranks, outcome, None)


@pytest.mark.parametrize("words", ["1", "0", "C", "answer 3", "good", "Yes.", "A and B"])
def test_words_that_choose_no_answer_are_no_verdict(tmp_path, words):
    assert fault(tmp_path, choice("better", words)) == (
        "no_verdict",
        "row 1 (line 1): no control says which answer is better (answered: better).",
    )


def test_two_choices_at_once_are_no_verdict(tmp_path):
    assert fault(tmp_path, choice("better", "Answer A", "Answer B"))[0] == "no_verdict"


def test_a_mapping_names_the_control_that_decides_and_its_words(tmp_path):
    given = (choice("preis", "Die erste"), choice("urteil", "Beide schlecht"))
    labels = {"die erste": "first", "beide schlecht": "both_bad"}
    assert one(tmp_path, *given, label="urteil", labels=labels).outcome == "both_bad"
    assert one(tmp_path, *given, label="preis", labels=labels).ranks == (1, 2)


def test_pairwise_goes_before_a_choice(tmp_path):
    assert one(tmp_path, choice("tie", "Tie"), selected("right")).ranks == (2, 1)


def test_several_pairwise_controls_are_several_criteria(tmp_path):
    row = task(annotation(selected("left", "helpful"), selected("right", "harmless")))
    judgements, _, _ = read_tasks(tmp_path, row)
    found = [(judgement.criterion, judgement.ranks) for judgement in judgements]
    assert found == [("helpful", (1, 2)), ("harmless", (2, 1))]
    assert judgements[0].item_id == judgements[1].item_id


@pytest.mark.parametrize(("stars", "strength"), [(1, 0.0), (3, 0.5), (5, 1.0)])
def test_one_rating_of_the_task_is_the_strength(tmp_path, stars, strength):
    """On 1..5: (3 - 1) / (5 - 1) = 0.5."""
    judgement = one(tmp_path, selected("right"), rating("conf", stars))
    assert (judgement.strength, judgement.scale) == (strength, "1..5")


def test_a_rating_is_no_strength_of_a_tie_nor_beside_another(tmp_path):
    assert one(tmp_path, choice("tie", "Tie"), rating("conf", 3)).strength is None
    two = (selected("left"), rating("conf", 3), rating("clarity", 5))
    assert one(tmp_path, *two).strength is None
    assert one(tmp_path, *two, strength="clarity").strength == 1.0


def test_the_ends_of_a_rating_are_given_or_taken_for_1_and_5(tmp_path):
    """On 0..10, 8 is 8 / 10."""
    given = (selected("left"), rating("conf", 8))
    assert fault(tmp_path, *given) == (
        "strength_invalid",
        "row 1 (line 1): conf is 8, outside 1..5.",
    )
    judgement = one(tmp_path, *given, strength=Graded("conf", 0, 10))
    assert (judgement.strength, judgement.scale) == (0.8, "0..10")


def test_ratings_of_each_answer_are_a_judgement_of_their_aspect(tmp_path):
    given = (
        rating("quality_answer1", 2),
        rating("quality_answer2", 4),
        rating("tone_answer1", 3),
        rating("tone_answer2", 3),
    )
    judgements, _, _ = read_tasks(tmp_path, task(annotation(*given)))
    assert [(j.criterion, j.kind, j.scores, j.ranks, j.outcome) for j in judgements] == [
        ("quality", "rating", (2.0, 4.0), (2, 1), None),
        ("tone", "rating", (3.0, 3.0), (1, 1), "tie"),
    ]


def test_ratings_stand_beside_the_preference_and_are_not_its_strength(tmp_path):
    given = (selected("left"), rating("stars_answer1", 2), rating("stars_answer2", 4))
    judgements, _, _ = read_tasks(tmp_path, task(annotation(*given)))
    found = [(j.criterion, j.kind, j.ranks, j.strength) for j in judgements]
    assert found == [("overall", "ranking", (1, 2), None), ("stars", "rating", (2, 1), None)]


def test_one_answer_alone_is_rated(tmp_path):
    judgement = one(tmp_path, rating("quality", 4), data={"prompt": "p", "response": "r"})
    assert (judgement.kind, judgement.scores, judgement.ranks) == ("rating", (4.0,), (None,))
    assert (judgement.criterion, texts(judgement)) == ("quality", ["r"])


def test_paragraphs_are_the_comment(tmp_path):
    why = result("why", "textarea", {"text": ["shorter", "kinder"]})
    assert one(tmp_path, selected("left"), why).comment == "shorter\nkinder"
    assert one(tmp_path, selected("left"), why, comment="other").comment is None


def test_a_text_cannot_beat_itself(tmp_path):
    data = {"prompt": "p", "answer1": "same", "answer2": "same"}
    assert fault(tmp_path, selected("left"), data=data)[0] == "identical_responses"
    assert one(tmp_path, choice("tie", "Tie"), data=data).is_tie


@pytest.mark.parametrize(
    ("results", "data", "reason"),
    [
        ((selected("left"),), {**DATA, "answer2": " "}, "empty_response"),
        ((selected("left"),), {**DATA, "prompt": ""}, "empty_prompt"),
        ((selected("left"), rating("conf", "high")), DATA, "rating_invalid"),
        ((rating("stars_answer1", 2),), DATA, "too_few_ratings"),
        ((result("box", "rectanglelabels", {"x": 1}),), DATA, "no_verdict"),
    ],
)
def test_annotations_that_cannot_be_used(tmp_path, results, data, reason):
    assert fault(tmp_path, *results, data=data)[0] == reason


# --- rankers -------------------------------------------------------------------------------------


def ranker(value: object) -> dict:
    return result("rank", "ranker", {"ranker": value})


@pytest.mark.parametrize("value", [["z", "x", "y"], {"rank": ["z", "x", "y"]}])
def test_a_ranker_orders_the_items(tmp_path, value):
    judgement = one(tmp_path, ranker(value), data={"prompt": "p", "items": ITEMS})
    assert texts(judgement) == ["one", "<b>two</b>", "three"]
    assert (judgement.ranks, judgement.position) == ((2, 3, 1), (0, 1, 2))
    assert judgement.criterion == "overall"


def test_items_that_were_moved_nowhere_are_not_ranked(tmp_path):
    data = {"prompt": "p", "results": [{**item, "id": i} for i, item in enumerate(ITEMS)]}
    judgement = one(tmp_path, ranker({"rank": ["2", 0]}), data=data)
    assert judgement.ranks == (2, None, 1)


def test_each_bucket_of_two_or_more_is_an_order_of_its_own(tmp_path):
    """The export does not say whether one bucket is better than another."""
    items = [*ITEMS, {"id": "w", "body": "four"}, {"id": "v", "body": "five"}]
    buckets = {"good": ["y", "x"], "bad": ["z", "w"], "_": ["v"]}
    row = task(annotation(ranker(buckets)), data={"prompt": "p", "items": items})
    judgements, _, _ = read_tasks(tmp_path, row)
    assert [(judgement.criterion, judgement.ranks) for judgement in judgements] == [
        ("good", (2, 1, None, None, None)),
        ("bad", (None, None, 1, 2, None)),
    ]


@pytest.mark.parametrize(
    ("value", "items", "reason"),
    [
        ({"good": ["x"], "bad": ["y"]}, ITEMS, "too_few_ranks"),
        (["x", "q"], ITEMS, "item_unknown"),
        (["x", "x"], ITEMS, "bad_ranking"),
        ("x,y", ITEMS, "bad_ranking"),
        (["x", "y"], [{"id": "x", "body": "a"}, {"id": "y"}], "empty_response"),
        (["x", "y"], [{"id": "x", "body": "a"}, {"id": "x", "body": "b"}], "bad_items"),
        (["x", "y"], "x,y", "bad_items"),
    ],
)
def test_rankings_that_cannot_be_used(tmp_path, value, items, reason):
    assert fault(tmp_path, ranker(value), data={"prompt": "p", "items": items})[0] == reason


# --- tables and JSON_MIN -------------------------------------------------------------------------

FLAT = {"annotation_id": "5", "annotator": "3", "id": "7", "created_at": "", "lead_time": "2.5"}


def write_table(folder: Path, *rows: dict) -> Path:
    path = folder / "result.csv"
    with open(path, "w", newline="") as stream:
        writer = csv.DictWriter(stream, sorted({key for row in rows for key in row}), restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_cells_hold_json_only_where_a_control_does(tmp_path):
    data = {**DATA, "prompt": '[{"selected":"left"}]', "answer2": "[not JSON"}
    path = write_table(tmp_path, {**FLAT, **data, "pw": '[{"selected":"right"}]'})
    (judgement,), _, _ = read_file(path)
    assert judgement.prompt.text == '[{"selected":"left"}]'
    assert (texts(judgement), judgement.ranks) == (["No.", "[not JSON"], (2, 1))
    assert (judgement.duration, judgement.created_at) == (2.5, None)


def test_a_table_s_choice_is_noted_and_can_be_named(tmp_path):
    rows = {**FLAT, **DATA, "better": "Answer B", "gpt4": "A"}
    path = write_table(tmp_path, rows)
    judgements, _, notes = read_file(path)
    assert {(j.criterion, j.ranks) for j in judgements} == {("better", (2, 1)), ("gpt4", (1, 2))}
    assert any('"gpt4" was taken for a choice' in note for note in notes)
    (judgement,), _, notes = read_file(path, label="better")
    assert (judgement.criterion, judgement.ranks, notes) == ("overall", (2, 1), [])


def test_a_bare_paragraph_is_a_comment_only_by_name(tmp_path):
    path = write_table(tmp_path, {**FLAT, **DATA, "pw": '[{"selected":"left"}]', "why": "short"})
    assert read_file(path)[0][0].comment is None
    assert read_file(path, comment="why")[0][0].comment == "short"


def test_a_field_that_a_control_displaced_is_found(tmp_path):
    row = {**FLAT, **DATA, "_data_prompt": "Why?", "prompt": '[{"rating":4}]'}
    path = write_table(tmp_path, {**row, "pw": '[{"selected":"left"}]'})
    (judgement,), _, _ = read_file(path)
    assert (judgement.prompt.text, judgement.ranks, judgement.strength) == ("Why?", (1, 2), 0.75)


def test_a_table_holds_rankers_and_items_as_json(tmp_path):
    row = {**FLAT, "prompt": "p", "items": json.dumps(ITEMS)}
    path = write_table(tmp_path, {**row, "rank": '[{"ranker":{"rank":["y","x","z"]}}]'})
    (judgement,), _, _ = read_file(path)
    assert (texts(judgement)[0], judgement.ranks) == ("one", (2, 1, 3))


def test_json_min_rows_differ_in_their_keys(tmp_path):
    """A control that was not answered is absent; a list of the task's own objects is no control."""
    own = {"turns": [{"author": "u", "text": "x"}]}
    rows = (
        {**FLAT, **DATA, **own, "pw": [{"selected": "left"}]},
        {**FLAT, **DATA, **own, "tie": "Tie"},
        {**FLAT, **DATA, **own},
    )
    judgements, (reject,), _ = read_tasks(tmp_path, *rows)
    assert [(j.ranks, j.comment) for j in judgements] == [((1, 2), None), ((1, 1), None)]
    assert (reject.row, reject.reason) == (3, "no_verdict")


# --- recognition and the real project ------------------------------------------------------------


@pytest.mark.parametrize("row", [task(annotation(selected("left"))), {**FLAT, **DATA}])
def test_the_format_is_recognised_and_by_no_other(tmp_path, row):
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps(row))
    assert sniff(str(path), "preferences") == "label_studio"
    found = [name for name, f in FORMATS.items() if f.recognises and f.recognises(row)]
    assert found == ["label_studio"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "response_a": "a", "response_b": "b", "label": "A"},
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"data": "text", "annotations": "text"},
        {"annotations": [], "text": "t"},
    ],
)
def test_other_rows_are_not_recognised(row):
    recognises = FORMATS["label_studio"].recognises
    assert recognises and not recognises(row)


@pytest.fixture
def real() -> Path:
    return real_data("label_studio")


def what_was_said(path: Path) -> dict:
    """The judgements by task and annotator, without their place in the file."""
    judgements, _, _ = read_file(path)
    return {(one.group, one.annotator): replace(one, source=None) for one in judgements}


def test_the_real_exports_agree_but_for_what_tables_lose(real):
    """JSON has two annotations and a skipped one; the others lose that and the ground truth."""
    judgements, (reject,), _ = read_file(real / "out_JSON_result.json")
    assert (len(judgements), reject.reason) == (2, "skipped")
    whole = what_was_said(real / "out_JSON_result.json")
    email = sha256(b"a@b.c").hexdigest()[:16]
    assert {who: (j.ranks, j.gold) for who, j in whole.items()} == {
        ("1", "3"): ((1, 2), (1, 1)),
        ("1", email): ((1, 1), (1, 1)),
    }
    assert whole["1", "3"].strength == 0.75
    assert whole["1", "3"].comment == "shorter\nmore polite"
    without_gold = {who: replace(j, gold=None) for who, j in whole.items()}
    for name in ("out_JSON_MIN_result.json", "out_CSV_result.csv", "out_TSV_result.csv"):
        assert what_was_said(real / name) == without_gold
        assert sniff(str(real / name), "preferences") == "label_studio"
