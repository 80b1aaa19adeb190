"""The labellers' files: written, filled in by a simulated labeller, imported, joined."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from preference_data import import_data, read_judgements
from preference_data.labelling.files import (
    apply_key,
    like_formulas,
    read_key,
    too_long_for_excel,
    write_labelling_files,
)
from preference_data.labelling.selection import Candidates, Plan, Question, select
from preference_data.quarantine import DataError
from preference_data.records import Judgement, Message, Prompt, Response
from preference_data.splits import split
from preference_data.votes.annotators import Proportion, annotators

AWKWARD = [
    "=1+1",
    "- a list\n- of two",
    'She said "no", twice;\r\nthen left.',
    "  spaces around  ",
    "\tÜber 9 % — ja 👍",
    "A",
    "tie",
    '{"text": "[1, 2]"}',
    "007",
    "@home +1",
]


def awkward_candidates() -> list[Candidates]:
    """Ten prompts of three answers, none of which a spreadsheet or a parser leaves alone."""
    found: list[Candidates] = []
    for number, text in enumerate(AWKWARD):
        answers = tuple(
            Response.from_text(answer, model)
            for answer, model in ((text, "x"), (f"{text} {number}", "y"), (f"{number}", None))
        )
        scores = ((0.5, 1.0), (0.25 * number, 0.0), (1.0, 0.1 * number))
        found.append(Candidates(Prompt.from_text(f"{text}?"), answers, scores))
    return found


@pytest.fixture
def asked(tmp_path: Path) -> list[Question]:
    """Ten questions and three repeats, written into `tmp_path / "task"`."""
    questions = select(awkward_candidates(), Plan(10, 0.3, 0.3, max_per_prompt=1, seed=8))
    write_labelling_files(questions, tmp_path / "task")
    return questions


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "labels.csv", encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream, strict=True))


def fill_in(folder: Path, label: Callable[[dict[str, str]], str], annotator: str = "ann") -> Path:
    """What comes back from a labeller, saved beside the file that he was given."""
    rows = rows_of(folder)
    path = folder / f"{annotator}.csv"
    with open(path, "w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({**row, "label": label(row), "annotator": annotator})
    return path


def prefers_longer(row: dict[str, str]) -> str:
    a, b = len(row["response_a"]), len(row["response_b"])
    return "tie" if a == b else "A" if a > b else "B"


def import_labels(path: Path, output: Path) -> list[Judgement]:
    report = import_data("preferences", str(path), output)
    assert report.rows_quarantined == 0
    return list(read_judgements(output))


# --- what is written -----------------------------------------------------------------------------


def test_the_table_holds_the_texts_verbatim_and_nothing_of_the_key(
    asked: list[Question], tmp_path: Path
):
    rows = rows_of(tmp_path / "task")
    assert (tmp_path / "task" / "labels.csv").read_bytes().startswith(b"\xef\xbb\xbfprompt,")
    assert rows == [
        {
            "prompt": one.prompt.text,
            "response_a": one.responses[0].text,
            "response_b": one.responses[1].text,
            "label": "",
            "annotator": "",
            "comment": "",
            "group": one.id,
        }
        for one in asked
    ]
    assert len(rows) == 13
    shown = {text for row in rows for text in (row["response_a"], row["response_b"])}
    assert shown & set(AWKWARD)


def test_label_studio_gets_the_same_questions_and_an_interface_for_them(
    asked: list[Question], tmp_path: Path
):
    tasks = json.loads((tmp_path / "task" / "label_studio.json").read_text(encoding="utf-8"))
    assert [list(task) for task in tasks] == [["data"]] * 13
    assert [task["data"]["group"] for task in tasks] == [one.id for one in asked]
    assert tasks[0]["data"] == {
        "prompt": asked[0].prompt.text,
        "answer1": asked[0].responses[0].text,
        "answer2": asked[0].responses[1].text,
        "group": asked[0].id,
    }
    view = ElementTree.parse(tmp_path / "task" / "label_studio_config.xml").getroot()
    assert {text.get("value") for text in view.iter("Text")} == {"$prompt", "$answer1", "$answer2"}
    assert [choice.get("value") for choice in view.iter("Choice")] == ["A", "B", "tie", "both_bad"]
    objects = {text.get("name") for text in view.iter("Text")}
    controls = [*view.iter("Choices"), *view.iter("TextArea")]
    assert {control.get("toName") for control in controls} <= objects


def test_the_key_says_why_each_row_is_asked(asked: list[Question], tmp_path: Path):
    assert read_key(tmp_path / "task") == read_key(tmp_path / "task" / "key.jsonl") == asked
    lines = (tmp_path / "task" / "key.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    whys = [row["why"] for row in rows]
    assert (whys.count("random"), whys.count("informative"), whys.count("repeat")) == (3, 7, 3)
    assert all(len(scores) == 2 for row in rows for scores in row["scores"])
    models = {one["model"] for row in rows for one in row["responses"]}
    assert models <= {"x", "y", None} and "x" in models


def test_what_labellers_get_does_not_say_why(asked: list[Question], tmp_path: Path):
    for name in ("labels.csv", "label_studio.json", "label_studio_config.xml"):
        text = (tmp_path / "task" / name).read_text(encoding="utf-8")
        assert not re.search(r"random|informative|repeat|score|model", text)


def test_labels_are_never_written_over(asked: list[Question], tmp_path: Path):
    path = fill_in(tmp_path / "task", prefers_longer).replace(tmp_path / "task" / "labels.csv")
    before = path.read_bytes()
    with pytest.raises(DataError, match="is there already and may hold labels"):
        write_labelling_files(asked, tmp_path / "task")
    assert path.read_bytes() == before


def test_texts_that_excel_cuts_are_counted(asked: list[Question]):
    assert too_long_for_excel(asked) == 0
    fits, cut = (Response.from_text("x" * size) for size in (32_767, 32_768))
    long = replace(asked[0], responses=(asked[0].responses[0], cut))
    fitting = replace(asked[0], responses=(fits, asked[0].responses[1]))
    assert too_long_for_excel([long, fitting, *asked]) == 1


def test_texts_that_a_spreadsheet_may_run_are_counted(asked: list[Question]):
    plain = replace(
        asked[0],
        prompt=Prompt.from_text("1 = 1"),
        responses=(Response.from_text("a"), Response.from_text("a-b")),
    )
    risky = [
        replace(plain, prompt=Prompt.from_text(f"{sign}1"), responses=plain.responses)
        for sign in "=+-@"
    ]
    answer = replace(plain, responses=(plain.responses[0], Response.from_text("- a")))
    assert like_formulas([plain]) == 0
    assert like_formulas([plain, *risky, answer]) == 5


# --- what comes back -----------------------------------------------------------------------------


def test_a_filled_table_joins_the_earlier_judgements(asked: list[Question], tmp_path: Path):
    """By their ids alone, whichever answer stood first."""
    judgements = import_labels(fill_in(tmp_path / "task", prefers_longer), tmp_path / "data")
    assert [one.item_id for one in judgements] == [one.item_id for one in asked]
    earlier = [
        Judgement(one.prompt, one.responses[::-1], (1, 2), annotator="before") for one in asked
    ]
    assert {one.item_id for one in earlier} == {one.item_id for one in judgements}
    assert len({one.item_id for one in judgements}) == 10
    # So that what was labelled is not asked again.
    again = Plan(10, 0.0, 0.0, max_per_prompt=3, seed=8)
    other = {one.item_id for one in select(awkward_candidates(), again, judgements)}
    assert len(other) == 10 and not other & {one.item_id for one in judgements}


def test_repeats_measure_self_consistency(asked: list[Question], tmp_path: Path):
    """Who reads answers alike whichever stands first; who always takes A contradicts himself."""
    reader = import_labels(fill_in(tmp_path / "task", prefers_longer), tmp_path / "reader")
    left = import_labels(fill_in(tmp_path / "task", lambda _: "A", "left"), tmp_path / "left")
    found = {one.annotator: one.repeats for one in annotators([*reader, *left])}
    assert found == {"ann": Proportion(3, 3), "left": Proportion(0, 3)}


def test_the_key_restores_the_places_and_holds_the_random_share_out(
    asked: list[Question], tmp_path: Path
):
    path = fill_in(tmp_path / "task", lambda _: "A")
    before = import_labels(path, tmp_path / "data")
    assert {one.position for one in before} == {None}
    joined = apply_key(tmp_path / "data", tmp_path / "task" / "key.jsonl")
    judgements = list(read_judgements(tmp_path / "data"))
    drawn = {one.item_id for one in asked if one.why == "random"}
    of_the_share = sum(one.item_id in drawn for one in asked)  # repeats of it, too
    assert (joined.judgements, joined.matched, joined.held_out) == (13, 13, of_the_share)
    assert 3 <= of_the_share <= 6
    assert [one.responses for one in judgements] == [one.responses for one in asked]
    assert {one.position for one in judgements} == {(0, 1)}
    assert [one.ranks for one in judgements] == [one.ranks for one in before]
    assert annotators(judgements)[0].left == Proportion(13, 13)
    train, test = split(judgements, 0.0)
    assert {one.item_id for one in test} == drawn
    assert {one.item_id for one in train} == {one.item_id for one in asked} - drawn
    # The Parquet twin says the same.
    (tmp_path / "data" / "judgements.jsonl").unlink()
    assert list(read_judgements(tmp_path / "data")) == judgements


def test_judgements_of_something_else_stay_as_they_are(asked: list[Question], tmp_path: Path):
    path = fill_in(tmp_path / "task", lambda _: "B")
    with open(path, "a", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerow(["Why?", "So.", "Because.", "A", "ann", "", ""])
    before = import_labels(path, tmp_path / "data")
    joined = apply_key(tmp_path / "data", tmp_path / "task")
    after = list(read_judgements(tmp_path / "data"))
    assert (joined.judgements, joined.matched, joined.unmatched) == (14, 13, (14,))
    assert after[-1] == before[-1]


def change(path: Path, places: dict[int, dict[str, str]]) -> None:
    """Replaces cells of these rows of a table, counted from 0."""
    with open(path, encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for place, cells in places.items():
        rows[place] |= cells
    with open(path, "w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_the_id_finds_questions_whose_texts_a_spreadsheet_changed(
    asked: list[Question], tmp_path: Path
):
    path = fill_in(tmp_path / "task", prefers_longer)
    drawn = [place for place, one in enumerate(asked) if one.why == "random"]
    rows = rows_of(tmp_path / "task")
    changed = {
        drawn[0]: {"response_a": rows[drawn[0]]["response_a"] + " "},
        drawn[1]: {"prompt": rows[drawn[1]]["prompt"][:-1], "response_b": "#NAME?"},
    }
    change(path, changed)
    before = import_labels(path, tmp_path / "data")
    joined = apply_key(tmp_path / "data", tmp_path / "task")
    after = list(read_judgements(tmp_path / "data"))
    assert (joined.matched, joined.restored, joined.unmatched) == (13, 2, ())
    assert [one.item_id for one in before] != [one.item_id for one in asked]
    assert [one.item_id for one in after] == [one.item_id for one in asked]
    assert [one.responses for one in after] == [one.responses for one in asked]
    assert [one.ranks for one in after] == [one.ranks for one in before]
    assert {after[place].split for place in drawn} == {"test"}
    # A second time finds nothing to restore.
    again = apply_key(tmp_path / "data", tmp_path / "task")
    assert (again.matched, again.restored) == (13, 0)
    assert list(read_judgements(tmp_path / "data")) == after


def test_without_an_id_the_texts_find_the_question_and_what_they_do_not_find_is_listed(
    asked: list[Question], tmp_path: Path
):
    path = fill_in(tmp_path / "task", prefers_longer)
    change(path, {place: {"group": ""} for place in range(13)})
    change(path, {4: {"prompt": "Another?"}, 6: {"prompt": "And another?", "group": "mine"}})
    import_labels(path, tmp_path / "data")
    joined = apply_key(tmp_path / "data", tmp_path / "task")
    assert (joined.matched, joined.restored, joined.unmatched) == (11, 0, (5, 7))


def test_an_id_that_the_key_does_not_have_is_refused(asked: list[Question], tmp_path: Path):
    path = fill_in(tmp_path / "task", prefers_longer)
    change(path, {2: {"group": "r" + "0" * 15}})
    before = import_labels(path, tmp_path / "data")
    with pytest.raises(DataError, match=r"ann\.csv, row 3 \(line \d+\): .* has no question r0{15}"):
        apply_key(tmp_path / "data", tmp_path / "task")
    assert list(read_judgements(tmp_path / "data")) == before


def test_an_id_beside_the_texts_of_another_question_is_refused(
    asked: list[Question], tmp_path: Path
):
    """A column that was sorted alone, and answers that changed places."""
    rows = rows_of(tmp_path / "task")
    count = Counter(one.item_id for one in asked)
    once = next(place for place, one in enumerate(asked) if count[one.item_id] == 1)
    swapped = {"response_a": rows[once]["response_b"], "response_b": rows[once]["response_a"]}
    for changed in ({0: {"group": asked[1].id}, 1: {"group": asked[0].id}}, {once: swapped}):
        path = fill_in(tmp_path / "task", prefers_longer)
        change(path, changed)
        import_labels(path, tmp_path / "data")
        with pytest.raises(DataError, match="stands beside the texts of another question"):
            apply_key(tmp_path / "data", tmp_path / "task")


def test_a_key_of_other_questions_is_refused(asked: list[Question], tmp_path: Path):
    (tmp_path / "other.csv").write_text("prompt,response_a,response_b,label\np,a,b,A\n")
    before = import_labels(tmp_path / "other.csv", tmp_path / "data")
    with pytest.raises(DataError, match=r"No judgement of .* answers a question"):
        apply_key(tmp_path / "data", tmp_path / "task")
    assert list(read_judgements(tmp_path / "data")) == before


def test_conversations_are_shown_as_text_and_restored_by_the_key(tmp_path: Path):
    turns = (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello."))
    prompt = Prompt((*turns, Message("user", "And now?")))
    answers = (
        Response.from_text("Now we wait."),
        Response(
            (*map(Message, ("assistant", "user"), ("We?", "Yes.")), Message("assistant", "k"))
        ),
    )
    [question] = select([Candidates(prompt, answers, ((0.0,), (1.0,)))], Plan(1, 0.0, 0.0))
    write_labelling_files([question], tmp_path / "task")
    [row] = rows_of(tmp_path / "task")
    shown = "system: Be brief.\nuser: Hi\nassistant: Hello.\nuser: And now?"
    assert row["prompt"] == shown
    path = fill_in(tmp_path / "task", lambda _: "A")
    [flat] = import_labels(path, tmp_path / "data")
    assert flat.prompt == Prompt.from_text(shown) and flat.item_id != question.item_id
    apply_key(tmp_path / "data", tmp_path / "task")
    [restored] = read_judgements(tmp_path / "data")
    assert (restored.prompt, restored.responses) == (prompt, question.responses)
    assert restored.item_id == question.item_id


CHOICES = ["A", "B", "tie", "both_bad"]


def annotated(folder: Path) -> list[dict[str, Any]]:
    """The tasks as Label Studio exports them, labelled with each choice in turn; the last of
    them was skipped."""
    tasks = json.loads((folder / "label_studio.json").read_text(encoding="utf-8"))
    for number, task in enumerate(tasks):
        choice = {"choices": [CHOICES[number % 4]]}
        result = [
            {"from_name": "better", "to_name": "prompt_text", "type": "choices", "value": choice},
            {
                "from_name": "comment",
                "to_name": "prompt_text",
                "type": "textarea",
                "value": {"text": ["B is longer"]},
            },
        ]
        task |= {"id": number + 1, "project": 1, "predictions": []}
        task["annotations"] = [
            {"id": number, "completed_by": 5, "was_cancelled": number == 12, "lead_time": 4.5}
        ]
        task["annotations"][0]["result"] = result
    return tasks


def test_label_studio_s_export_joins_the_earlier_judgements(asked: list[Question], tmp_path: Path):
    path = tmp_path / "export.json"
    path.write_text(json.dumps(annotated(tmp_path / "task")), encoding="utf-8")
    report = import_data("preferences", str(path), tmp_path / "data")
    assert (report.format, report.by_reason) == ("label_studio", {"skipped": 1})
    judgements = list(read_judgements(tmp_path / "data"))
    assert [one.item_id for one in judgements] == [one.item_id for one in asked[:12]]
    assert [one.label for one in judgements[:4]] == ["first", "second", "tie", "both_bad"]
    assert {one.comment for one in judgements} == {"B is longer"}
    assert apply_key(tmp_path / "data", tmp_path / "task").matched == 12
    assert {one.position for one in read_judgements(tmp_path / "data")} == {(0, 1)}


def test_so_does_its_flat_export(asked: list[Question], tmp_path: Path):
    """As its converter writes CSV: strings quoted, columns in alphabetical order."""
    path = tmp_path / "export.csv"
    with open(path, "w", encoding="utf-8", newline="") as stream:
        names = [
            "annotation_id", "annotator", "answer1", "answer2", "better", "created_at", "group",
            "id", "lead_time", "prompt", "updated_at",
        ]  # fmt: skip
        writer = csv.DictWriter(stream, names, quoting=csv.QUOTE_NONNUMERIC)
        writer.writeheader()
        tasks = json.loads((tmp_path / "task" / "label_studio.json").read_text(encoding="utf-8"))
        for number, task in enumerate(tasks):
            made = {"annotation_id": number, "annotator": "5", "id": number, "lead_time": 2.5}
            dates = {"created_at": "2026-03-01T10:00:00Z", "updated_at": "2026-03-01T10:00:00Z"}
            writer.writerow({**task["data"], **made, **dates, "better": CHOICES[number % 4]})
    judgements = import_labels(path, tmp_path / "data")
    assert [one.item_id for one in judgements] == [one.item_id for one in asked]
    assert [one.label for one in judgements[:4]] == ["first", "second", "tie", "both_bad"]


def test_a_key_that_cannot_be_read_is_refused(asked: list[Question], tmp_path: Path):
    with pytest.raises(DataError, match=r"There is no file .*none"):
        read_key(tmp_path / "none")
    path = tmp_path / "task" / "key.jsonl"
    for line in ("{", '{"schema_version": 1}', "3"):
        path.write_text(line + "\n")
        with pytest.raises(DataError, match=r"key\.jsonl, line 1 is no question of ours"):
            read_key(path)


# --- real texts ----------------------------------------------------------------------------------

real_data = pytest.mark.skipif(
    "ALIGN_TEST_DATA" not in os.environ, reason="ALIGN_TEST_DATA names no folder of real data"
)


def by_length(judgements: list[Judgement]) -> list[Candidates]:
    """The answers of each prompt under one model that counts their letters."""
    answers: dict[Prompt, dict[str, Response]] = {}
    for one in judgements:
        answers.setdefault(one.prompt, {}).update({r.id: r for r in one.responses})
    return [
        Candidates(prompt, tuple(ours.values()), tuple((len(r.text) / 100,) for r in ours.values()))
        for prompt, ours in answers.items()
        if len(ours) > 1
    ]


@real_data
@pytest.mark.parametrize(
    ("path", "least"),
    [("fine-grained-rlhf/dev_feedback.json.gz", 490), ("hh-rlhf/harmless-base", 1000)],
)
def test_real_texts_come_back_to_what_was_asked(path: str, least: int, tmp_path: Path):
    """Of four answers to a question, and of conversations of several turns."""
    source = Path(os.environ["ALIGN_TEST_DATA"]) / path
    import_data("preferences", str(source), tmp_path / "earlier")
    given = by_length(list(read_judgements(tmp_path / "earlier")))
    questions = select(given, Plan(3000, 0.2, 0.05, max_per_prompt=1))
    assert len(questions) > least
    write_labelling_files(questions, tmp_path / "task")
    judgements = import_labels(fill_in(tmp_path / "task", prefers_longer), tmp_path / "data")
    assert apply_key(tmp_path / "data", tmp_path / "task").matched == len(judgements)
    restored = list(read_judgements(tmp_path / "data"))
    assert [one.responses for one in restored] == [one.responses for one in questions]
    assert [one.item_id for one in restored] == [one.item_id for one in questions]


@real_data
def test_what_real_people_have_judged_is_not_asked_again(tmp_path: Path):
    """Four answers a question and all six pairs of them judged: nothing is left, unless a second
    vote is wanted."""
    source = Path(os.environ["ALIGN_TEST_DATA"]) / "fine-grained-rlhf" / "dev_feedback.json.gz"
    import_data("preferences", str(source), tmp_path / "earlier")
    earlier = list(read_judgements(tmp_path / "earlier"))
    with pytest.raises(DataError, match="people have judged all"):
        select(by_length(earlier), Plan(100), earlier)
    assert len(select(by_length(earlier), Plan(100, repeats=0.0, votes=2), earlier)) == 100
