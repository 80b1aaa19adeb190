"""Argilla: one judgement for each person and question, in every form its records take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from preference_data import Columns, DataError, sniff
from preference_data.quarantine import Rejected
from preference_data.sources.carriers.files import Reading
from preference_data.sources.formats import FORMATS, read_records

ANN, BEN = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
FIELDS = {"prompt": "Why?", "response1": "No.", "response2": "Yes."}
NO_STATUS = (
    "The export leaves out whether answers were submitted: drafts and discarded ones count, too. "
    "An export of flat records has it."
)


def v1(**questions) -> dict:
    suggestions = {f"{name}-suggestion": None for name in questions}
    return {
        **FIELDS,
        **questions,
        **suggestions,
        **{f"{name}-metadata": None for name in suggestions},
        "external_id": "rec-1",
        "metadata": '{"model": "m"}',
    }


def said(value: object, user: str | None = ANN, status: str = "submitted") -> dict:
    return {"user_id": user, "value": value, "status": status}


def ranking(*ranks: int) -> list[dict]:
    return [{"rank": r, "value": f"response{i}"} for i, r in enumerate(ranks, start=1)]


def v2(**questions) -> dict:
    """Flat; each question is a list of (value, user, status)."""
    row: dict = {"id": "rec-1", "status": "completed", "_server_id": "s", **FIELDS, "topic": "x"}
    for name, answers in questions.items():
        key = f"{name}.responses"
        row[key], row[f"{key}.users"], row[f"{key}.status"] = map(list, zip(*answers, strict=True))
    return row


def nested(**questions) -> dict:
    return {
        "id": "rec-1",
        "fields": FIELDS,
        "metadata": {},
        "suggestions": {"ranking": {"value": ["response2", "response1"], "agent": "m"}},
        "responses": questions,
        "vectors": {},
    }


def read(folder: Path, *rows: dict, **columns):
    """(judgements, rejects, notes)"""
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reading = Reading(Columns(**columns) if columns else None)
    _, items = read_records(str(path), "preferences", "argilla", reading)
    found = list(items)
    rejects = [item for item in found if isinstance(item, Rejected)]
    judgements = [one for item in found if not isinstance(item, Rejected) for one in item]
    return judgements, rejects, reading.notes


def verdicts(judgements) -> list[tuple]:
    return [(one.annotator, one.criterion, one.ranks) for one in judgements]


# --- version 1 -----------------------------------------------------------------------------------


def test_a_ranking_of_version_1_has_its_ranks_and_ties(tmp_path):
    row = v1(preference=[said(ranking(2, 1)), said(ranking(1, 1), BEN)])
    judgements, rejects, notes = read(tmp_path, row)
    assert verdicts(judgements) == [(ANN, "preference", (2, 1)), (BEN, "preference", (1, 1))]
    assert [judgement.outcome for judgement in judgements] == [None, "tie"]
    first = judgements[0]
    assert first.prompt.text == "Why?"
    assert [response.text for response in first.responses] == ["No.", "Yes."]
    assert (first.group, first.kind, first.source.format) == ("rec-1", "ranking", "argilla")
    assert (rejects, notes) == ([], [])


def test_the_transposed_form_says_the_same(tmp_path):
    """A sequence of structs comes back from `datasets` as a struct of sequences, at both levels."""
    rows = v1(preference=[said(ranking(2, 1)), said(ranking(1, 2), BEN)])
    turned = v1(
        preference={
            "user_id": [ANN, BEN],
            "value": [
                {"rank": [2, 1], "value": ["response1", "response2"]},
                {"rank": [2, 1], "value": ["response2", "response1"]},
            ],
            "status": ["submitted", "submitted"],
        }
    )
    first, _, _ = read(tmp_path, rows)
    second, _, _ = read(tmp_path, turned)
    assert verdicts(first) == [(ANN, "preference", (2, 1)), (BEN, "preference", (1, 2))]
    assert second == first


def test_only_submitted_answers_count(tmp_path):
    row = v1(
        preference=[
            said(ranking(2, 1), ANN, "draft"),
            said(ranking(1, 2), BEN),
            said(None, None, "discarded"),
        ]
    )
    judgements, rejects, _ = read(tmp_path, row, v1(preference=[]))
    assert verdicts(judgements) == [(BEN, "preference", (1, 2))]
    assert [(reject.row, reject.reason, reject.expected) for reject in rejects] == [
        (1, "draft", True),
        (1, "discarded", True),
        (2, "not_annotated", True),
    ]
    assert rejects[0].detail == "row 1 (line 1): the response is draft, not submitted."


def test_people_without_an_id_are_told_apart_by_their_place(tmp_path):
    row = v1(
        preference=[said(ranking(2, 1), None), said(ranking(1, 2), None)],
        why=[said("first", None), said("second", None)],
    )
    judgements, _, _ = read(tmp_path, row)
    found = [(one.annotator, one.ranks, one.comment) for one in judgements]
    assert found == [(None, (2, 1), "first"), (None, (1, 2), "second")]


def test_a_person_s_questions_are_several_criteria(tmp_path):
    row = v1(
        helpful=[said(ranking(2, 1))],
        harmless=[said("response1")],
        why=[said("It is kind.")],
    )
    judgements, _, _ = read(tmp_path, row)
    assert verdicts(judgements) == [(ANN, "helpful", (2, 1)), (ANN, "harmless", (1, 2))]
    assert {judgement.comment for judgement in judgements} == {"It is kind."}


def test_ratings_of_each_answer_are_compared(tmp_path):
    row = v1(**{"rating-response1": [said(2)], "rating-response2": [said(4)], "overall": [said(5)]})
    (judgement,), _, notes = read(tmp_path, row)
    assert (judgement.kind, judgement.scores, judgement.ranks) == ("rating", (2.0, 4.0), (2, 1))
    assert judgement.criterion == "rating"
    assert notes == ["The rating 'overall' is of no single answer and was left out."]


def test_one_answer_alone_is_rated(tmp_path):
    row = v1(quality=[said(4)])
    row["response"] = row.pop("response1")
    del row["response2"]
    (judgement,), _, _ = read(tmp_path, row)
    assert (judgement.kind, judgement.scores, judgement.criterion) == ("rating", (4.0,), "quality")


@pytest.mark.parametrize(
    ("label", "ranks", "outcome"),
    [
        ("response2", (2, 1), None),
        ("Response 1", (1, 2), None),
        ("tie", (1, 1), "tie"),
        ("both_bad", (1, 1), "both_bad"),
    ],
)
def test_a_label_chooses_an_answer_or_none(tmp_path, label, ranks, outcome):
    (judgement,), _, _ = read(tmp_path, v1(best=[said(label)]))
    assert (judgement.ranks, judgement.outcome) == (ranks, outcome)


def test_a_label_among_three_is_the_best_of_them(tmp_path):
    (judgement,), _, _ = read(tmp_path, {**v1(best=[said("response3")]), "response3": "Maybe."})
    assert (judgement.kind, judgement.ranks) == ("best_of", (2, 2, 1))


def test_an_optional_field_that_is_empty_is_no_answer(tmp_path):
    row = {**v1(preference=[said(ranking(2, 1))]), "response3": None}
    (judgement,), _, _ = read(tmp_path, row)
    assert len(judgement.responses) == 2


def test_an_answer_that_was_not_ranked_has_no_rank(tmp_path):
    row = {**v1(preference=[said(ranking(2, 1))]), "response3": "Maybe."}
    (judgement,), _, _ = read(tmp_path, row)
    assert judgement.ranks == (2, 1, None)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (v1(preference=[said([*ranking(1), {"rank": 2, "value": "x"}])]), "response_unknown"),
        (v1(preference=[said(ranking(1) + ranking(2))]), "bad_ranking"),
        (v1(preference=[said(ranking(1))]), "too_few_ranks"),
        (v1(preference=[said(["red", "blue"])]), "no_verdict"),
        (v1(preference=[said(None)]), "no_verdict"),
        (v1(preference="x"), "bad_responses"),
        (v1(preference=[said("response1", ANN, "odd")]), "status_unknown"),
        ({**v1(preference=[said("response1")]), "response2": "No."}, "identical_responses"),
        ({**v1(preference=[said("response1")]), "prompt": " "}, "empty_prompt"),
        (v1(preference={"user_id": [], "value": [1], "status": []}), "bad_responses"),
    ],
)
def test_answers_that_cannot_be_used(tmp_path, row, reason):
    judgements, (reject,), _ = read(tmp_path, row)
    assert (judgements, reject.reason, reject.expected) == ([], reason, False)


# --- version 2 -----------------------------------------------------------------------------------


def test_flat_records_hold_parallel_lists_and_the_order_without_ranks(tmp_path):
    row = v2(
        ranking=[
            (["response2", "response1"], ANN, "submitted"),
            (["response1", "response2"], BEN, "discarded"),
        ],
        why=[("kind", ANN, "submitted")],
    )
    # A record without responses has none of the keys.
    judgements, rejects, notes = read(tmp_path, row, v2())
    assert verdicts(judgements) == [(ANN, "ranking", (2, 1))]
    assert judgements[0].comment == "kind"
    assert [(reject.row, reject.reason) for reject in rejects] == [
        (1, "discarded"),
        (2, "not_annotated"),
    ]
    assert notes == [
        "The export gives the order of 'ranking' without the ranks, so that answers that were "
        "ranked alike cannot be told from others."
    ]


def test_suggestions_are_never_read(tmp_path):
    row = {**v2(), "ranking.suggestion": ["response2", "response1"], "ranking.suggestion.score": 1}
    judgements, (reject,), _ = read(tmp_path, row)
    assert (judgements, reject.reason) == ([], "not_annotated")


def test_early_records_have_a_column_for_each_person(tmp_path):
    row = {
        **v2(),
        f"ranking.response.{ANN}": ["response2", "response1"],
        f"ranking.response.{BEN}": None,
        f"stars_response1.response.{ANN}": 3,
        f"stars_response2.response.{ANN}": 1,
    }
    judgements, _, notes = read(tmp_path, row)
    assert verdicts(judgements) == [(ANN, "ranking", (2, 1)), (ANN, "stars", (1, 2))]
    assert NO_STATUS in notes


def test_nested_records_say_the_same_and_leave_the_status_out(tmp_path):
    row = nested(
        ranking=[{"value": ["response2", "response1"], "user_id": ANN}],
        best=[{"value": "response1", "user_id": BEN}, {"value": "tie", "user_id": ANN}],
    )
    judgements, rejects, notes = read(tmp_path, row, nested())
    assert verdicts(judgements) == [
        (ANN, "ranking", (2, 1)),
        (ANN, "best", (1, 1)),
        (BEN, "best", (1, 2)),
    ]
    assert [(reject.row, reject.reason) for reject in rejects] == [(2, "not_annotated")]
    assert NO_STATUS in notes


def test_a_nested_status_is_read_where_there_is_one(tmp_path):
    draft = {"value": "response1", "user_id": ANN, "status": "draft"}
    judgements, (reject,), notes = read(tmp_path, nested(best=[draft]))
    assert (judgements, reject.reason, notes) == ([], "draft", [])


def test_lists_that_are_not_parallel_are_rejected(tmp_path):
    row = v2(best=[("response1", ANN, "submitted")])
    row["best.responses.users"] = [ANN, BEN]
    judgements, (reject,), _ = read(tmp_path, row)
    assert (judgements, reject.reason) == ([], "bad_responses")
    assert reject.detail == (
        "row 1 (line 1): best.responses, its users and its status differ in length."
    )


def test_messages_are_a_prompt(tmp_path):
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    row = nested(best=[{"value": "response1", "user_id": ANN}])
    row["fields"] = {**FIELDS, "prompt": talk}
    (judgement,), _, _ = read(tmp_path, row)
    assert [message.role for message in judgement.prompt.messages] == ["system", "user"]


def test_fields_of_other_names_are_mapped_or_refused(tmp_path):
    row = nested(best=[{"value": "neu", "user_id": ANN}])
    row["fields"] = {"frage": "Warum?", "alt": "a", "neu": "b"}
    (judgement,), _, _ = read(tmp_path, row, prompt="frage", responses=("alt", "neu"))
    assert (judgement.prompt.text, judgement.ranks) == ("Warum?", (2, 1))
    with pytest.raises(DataError, match=r"Name them with columns\.prompt and the format argilla"):
        read(tmp_path, row)


# --- recognition ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        v1(preference=[]),
        {**FIELDS, "preference": [said(ranking(1, 2))], "external_id": None},
        v2(),
        {**FIELDS, "best.responses": ["tie"], "best.responses.users": [ANN]},
        {**FIELDS, f"best.response.{ANN}": "tie"},
        nested(),
    ],
)
def test_every_form_is_recognised_and_by_no_other(tmp_path, row):
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(row))
    assert sniff(str(path), "preferences") == "argilla"
    found = [name for name, f in FORMATS.items() if f.recognises and f.recognises(row)]
    assert found == ["argilla"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "response_a": "a", "response_b": "b", "label": "A"},
        {"prompt": "p", "chosen": "a", "rejected": "b", "external_id": "1"},
        {"prompt": "p", "responses": [{"text": "a"}], "status": "x", "id": 1},
    ],
)
def test_other_rows_are_not_recognised(row):
    recognises = FORMATS["argilla"].recognises
    assert recognises and not recognises(row)
