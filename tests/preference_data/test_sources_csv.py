"""Tables of labels: what spreadsheets and web forms do to a CSV file, and what is said of it."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preference_data import Columns, DataError, read_preferences
from preference_data.quarantine import Rejected
from preference_data.sources.carriers import tables
from preference_data.sources.carriers.files import Reading
from preference_data.sources.carriers.tables import read_table
from preference_data.sources.formats import read_records

HEADER = "prompt,response_a,response_b,label\n"
RANKED = "prompt,response_1,response_2,response_3,rank_1,rank_2,rank_3\n"


def write(text: str | bytes, name: str = "labels.csv") -> str:
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return name


def read(path: str, **choices) -> tuple[list, list[Rejected]]:
    """(judgements, rejects), whatever their shares."""
    _, items = read_records(path, "preferences", "auto", Reading(**choices))
    found = list(items)
    rejects = [item for item in found if isinstance(item, Rejected)]
    return [r for item in found if not isinstance(item, Rejected) for r in item], rejects


def cells(judgement) -> list[str]:
    return [judgement.prompt.text, *(response.text for response in judgement.responses)]


def error(path: str, **choices) -> str:
    with pytest.raises(DataError) as caught:
        read(path, **choices)
    return str(caught.value)


# --- what the rows mean --------------------------------------------------------------------------


def test_each_label_becomes_its_verdict_whatever_its_case(here):
    labels = ["A", "b", "TIE", "both_bad", "Both Good"]
    rows = "".join(f"p{label},x,y,{label}\n" for label in labels)
    judgements, rejects = read(write(HEADER + rows))
    assert rejects == []
    assert [(j.ranks, j.outcome) for j in judgements] == [
        ((1, 2), None), ((2, 1), None), ((1, 1), "tie"), ((1, 1), "both_bad"),
        ((1, 1), "both_good"),
    ]  # fmt: skip


def test_optional_columns_are_read_and_others_left_alone(here):
    text = (
        "id,prompt,response_a,response_b,label,annotator,strength,comment,system,created_at\n"
        "007,p,x,y,A,w1,0.25,because,Be brief.,2026-01-01\n"
        "008,p,x,y,B,,,,,\n"
    )
    full, bare = read(write(text))[0]
    assert (full.annotator, full.strength, full.comment) == ("w1", 0.25, "because")
    assert full.prompt.text == "system: Be brief.\nuser: p"
    assert (bare.annotator, bare.strength, bare.comment) == (None, None, None)
    assert (full.source.format, full.source.file) == ("table", "labels.csv")
    assert [(j.source.row, j.source.line) for j in (full, bare)] == [(1, 2), (2, 3)]


def test_rows_of_rankings_may_differ_in_length_and_leave_answers_unranked(here):
    rows = "p,x,y,z,2,1,3\nq,x,y,,1,1,\nr,x,y,z,1.0,,2.0\n"
    three, two, gap = read(write(RANKED + rows))[0]
    assert three.ranks == (2, 1, 3)
    assert (len(two.responses), two.ranks, two.outcome) == (2, (1, 1), "tie")
    assert (gap.ranks, gap.outcome) == ((1, None, 2), None)


def test_a_mapping_names_other_columns_and_other_labels(here):
    text = "question,left,right,winner,worker\np,x,y,1,w\np,x,y,0,w\np,x,y,neither,w\n"
    columns = Columns(
        prompt="question",
        responses=("left", "right"),
        label="winner",
        annotator="worker",
        labels={"0": "second", "1": "first", "Neither": "unsure"},
    )
    judgements, _ = read(write(text), columns=columns)
    assert [j.label for j in judgements] == ["first", "second", "unsure"]
    assert {j.annotator for j in judgements} == {"w"}


def test_a_mapping_of_labels_alone_keeps_the_usual_columns(here):
    columns = Columns(labels={"0": "first", "1": "second"})
    assert read(write(HEADER + "p,x,y,1\n"), columns=columns)[0][0].label == "second"


def test_a_mapping_of_ranks(here):
    columns = Columns(prompt="q", responses=("good", "bad"), ranks=("rg", "rb"))
    (judgement,) = read(write("q,good,bad,rg,rb\np,x,y,2,1\n"), columns=columns)[0]
    assert judgement.ranks == (2, 1)


def test_json_lines_hold_the_same_keys_and_messages(here):
    turns = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "?"}]
    rows = [
        {"prompt": [*turns, turns[0]], "response_a": "x", "response_b": "y", "label": "B"},
        {"prompt": "p", "response_1": "x", "response_2": "y", "rank_1": 1, "rank_2": 2},
        {"prompt": "p", "response_a": True, "response_b": "y", "label": "A"},
    ]
    text = "\n".join(json.dumps(row) for row in rows) + "\n\n{broken\n[1]\n"
    (chat, ranked), rejects = read(write(text, "labels.jsonl"))
    assert len(chat.prompt.messages) == 3 and chat.ranks == (2, 1)
    assert ranked.ranks == (1, 2) and ranked.source.line == 2
    assert [(r.row, r.line, r.reason) for r in rejects] == [
        (3, 3, "wrong_type"), (4, 5, "json_invalid"), (5, 6, "json_not_object"),
    ]  # fmt: skip
    assert rejects[0].detail == "row 3 (line 3): response_a is True, not text."


# --- what is said of bad input -------------------------------------------------------------------


def test_missing_file(here):
    assert error("labels.csv") == f"There is no file labels.csv (looked for {here}/labels.csv)."


@pytest.mark.parametrize("text", ["", "\n\n", "\ufeff"])
@pytest.mark.parametrize("name", ["labels.csv", "labels.jsonl"])
def test_empty_file(here, name, text):
    assert error(write(text, name)) == f"{name} is empty."


def test_header_without_rows(here):
    assert error(write(HEADER)) == "labels.csv has a header but no rows."


def test_a_missing_column_is_named_with_those_found_and_the_nearest(here):
    assert error(write("promt,response_a,response_b,label\np,x,y,A\n")) == (
        'labels.csv has no column "prompt" (nearest: "promt"); it has promt, response_a, '
        "response_b, label. Rename the column, or map with columns.prompt."
    )


def test_several_missing_columns_are_named_at_once(here):
    assert error(write("prompt,response_1,response_2,rnk_1,rank_2\np,x,y,1,2\n")) == (
        'labels.csv has no column "rank_1" (nearest: "rnk_1"); it has prompt, response_1, '
        "response_2, rnk_1, rank_2. Rename the column, or map with columns.ranks."
    )
    assert error(write("text\nx\n")) == (
        'labels.csv has no columns "prompt", "response_a", "response_b", "label"; it has text. '
        "Rename the columns, or map with columns.prompt, columns.responses, columns.label."
    )


def test_no_column_is_suggested_twice_nor_one_that_is_read_before_one_that_is_not(here):
    """response_a is as near to response_b as response_2 is, but it is an answer already."""
    assert error(write("prompt,response_a,response_2,label\np,x,y,A\n")).startswith(
        'labels.csv has no column "response_b" (nearest: "response_2"); it has prompt, '
    )
    assert error(write("prompt,respond_x,label\np,x,A\n")).startswith(
        'labels.csv has no columns "response_a" (nearest: "respond_x"), "response_b"; it has '
    )


@pytest.mark.parametrize(
    "header",
    [
        "Prompt,Response_A,Response_B,Label,Annotator",
        "PROMPT,Response A,Response B,LABEL,annotator",
        "prompt,response-a,responseB,label, ANNOTATOR",
    ],
)
def test_the_usual_names_in_other_spellings(here, header):
    ((judgement,), rejects) = read(write(header + "\np,x,y,B,w\n"))
    assert rejects == []
    assert (cells(judgement), judgement.label, judgement.annotator) == (
        ["p", "x", "y"], "second", "w",
    )  # fmt: skip


def test_numbered_answers_and_ranks_in_other_spellings(here):
    text = "Prompt,Response 1,Response 2,Response 3,Rank-1,Rank-2,Rank-3\np,x,y,z,2,3,1\n"
    (judgement,) = read(write(text))[0]
    assert (cells(judgement), judgement.ranks) == (["p", "x", "y", "z"], (2, 3, 1))


def test_two_spellings_of_one_name_are_not_chosen_between(here):
    assert error(write("Prompt,PROMPT,response_a,response_b,label\np,q,x,y,A\n")).startswith(
        'labels.csv has no column "prompt" (nearest: "'
    )


def test_a_third_answer_is_not_left_out_without_a_word(here):
    text = "prompt,response_a,response_b,response_c,label\np,x,y,z,A\n"
    assert error(write(text)) == (
        "labels.csv has response_c beside response_a and response_b. Name the answers that were "
        "compared with columns.responses."
    )
    columns = Columns(responses=("response_a", "response_b"))
    assert len(read(write(text), columns=columns)[0]) == 1


@pytest.mark.parametrize(
    ("kind", "header", "missing"),
    [
        ("demonstrations", "question,answer", 'columns "prompt", "completion"'),
        ("demonstrations", "prompt,answer", 'column "completion"'),
        ("prompts", "question,answer", 'column "prompt"'),
        ("text", "question,answer", 'column "text"'),
    ],
)
def test_a_table_of_another_kind_without_its_column_names_those_it_has(here, kind, header, missing):
    _, items = read_records(write(header + "\np,x\n"), kind, "auto", Reading())
    with pytest.raises(DataError) as caught:
        list(items)
    plural = "s" if "columns" in missing else ""
    assert str(caught.value) == (
        f"labels.csv has no {missing}; it has {header.replace(',', ', ')}. Rename the column"
        f"{plural}."
    )


def test_an_object_that_lacks_the_prompt_is_set_aside_when_the_first_has_it(here):
    path = write('{"prompt": "p"}\n{"question": "q"}\n{"prompt": null}\n', "p.jsonl")
    _, items = read_records(path, "prompts", "auto", Reading())
    (_, lacking, blank) = items
    assert (lacking.reason, lacking.detail) == (
        "column_missing",
        'row 2 (line 2): there is no column "prompt", only question.',
    )
    assert blank.reason == "empty_prompt"


def test_a_mapped_column_that_is_not_there(here):
    assert error(write(HEADER + "p,x,y,A\n"), columns=Columns(annotator="worker")) == (
        'labels.csv has no column "worker"; it has prompt, response_a, response_b, label. '
        "Rename the column, or map with columns.annotator."
    )


def test_an_unknown_label_is_set_aside_with_row_value_and_allowed_values(here):
    judgements, (reject,) = read(write(HEADER + "p,x,y,A\np,x,y,C\n"))
    assert len(judgements) == 1
    assert (reject.row, reject.line, reject.reason) == (2, 3, "label_unknown")
    assert reject.detail == (
        "row 2 (line 3): the label 'C' is not one of A, B, tie, both_bad, both_good, unsure; "
        "columns.labels can say what it means."
    )
    assert reject.raw == {"prompt": "p", "response_a": "x", "response_b": "y", "label": "C"}


@pytest.mark.parametrize("label", ["0", "1", "2", "-1", "1.5"])
def test_the_meaning_of_a_number_is_never_guessed(here, label):
    assert error(write(HEADER + f"p,x,y,A\np,x,y,{label}\n")) == (
        f"labels.csv, row 2 (line 3): the label '{label}' has no agreed meaning. Say with "
        f"columns.labels whether '{label}' is first, second or tie, with columns.scale that it is "
        "a grade, or with columns.label_is that it is the better answer's number."
    )


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ("p,x,x,A", "identical_responses", "two identical answers are ranked one above the other."),
        ("p,x,y,", "label_missing", "label is empty."),
        (" ,x,y,A", "empty_prompt", "prompt is empty."),
        ("p,x,\t,A", "empty_response", "response_b is empty."),
    ],
)
def test_rows_of_pairs_that_are_set_aside(here, row, reason, detail):
    _, (reject,) = read(write(HEADER + row + "\n"))
    assert (reject.reason, reject.detail) == (reason, f"row 1 (line 2): {detail}")


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ("p,x,y,,1,first,", "rank_invalid", "rank_2 is 'first', not a whole number from 1"),
        ("p,x,y,,0,1,", "rank_invalid", "rank_1 is '0', not a whole number from 1 (best) up."),
        ("p,x,y,z,1,,", "too_few_ranks", "1 of 3 answers is ranked."),
        ("p,x,y,,1,2,3", "empty_response", "response_3 is empty."),
        ("p,x,y,x,1,2,3", "identical_responses", "two identical answers are ranked one above"),
    ],
)
def test_rows_of_rankings_that_are_set_aside(here, row, reason, detail):
    _, (reject,) = read(write(RANKED + row + "\n"))
    assert reject.reason == reason
    assert reject.detail.startswith(f"row 1 (line 2): {detail}")


def test_identical_answers_may_tie(here):
    assert read(write(HEADER + "p,x,x,tie\n"))[0][0].label == "tie"


@pytest.mark.parametrize("strength", ["2", "-0.1", "nan", "much"])
def test_a_strength_outside_0_to_1_is_set_aside(here, strength):
    text = f"prompt,response_a,response_b,label,strength\np,x,y,A,{strength}\n"
    _, (reject,) = read(write(text))
    assert reject.detail == (f"row 1 (line 2): strength is '{strength}', not a number from 0 to 1.")


def test_a_json_object_without_a_column_is_set_aside_when_others_have_it(here):
    row = {"prompt": "p", "response_a": "x", "response_b": "y", "label": "A"}
    less = {key: value for key, value in row.items() if key != "label"}
    _, (reject,) = read(write(f"{json.dumps(row)}\n{json.dumps(less)}\n", "l.jsonl"))
    assert reject.reason == "column_missing"


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        ({"ranks": ("r",), "label": "l"}, "Map the answers' ranks or their label, not both."),
        (
            {"responses": ("x", "y"), "ranks": ("r",)},
            "1 column of ranks does not fit 2 of responses.",
        ),
        (
            {"responses": ("x", "y", "z"), "label": "l"},
            "A label needs two columns of responses, and ranks two or more.",
        ),
        (
            {"labels": {"0": "left"}},
            "columns.labels.0 is one of first, second, tie, both_good, both_bad, unsure, "
            "not 'left'.",
        ),
    ],
)
def test_a_mapping_that_contradicts_itself(choices, sentence):
    with pytest.raises(ValueError) as caught:
        Columns(**choices)
    assert str(caught.value) == sentence


def test_a_label_cannot_compare_three(here):
    columns = Columns(labels={"x": "first"})
    assert error(write(RANKED + "p,x,y,z,1,2,3\n"), columns=columns) == (
        "labels.csv has 3 columns of responses, and a label compares two. "
        "Map columns.ranks, or two columns.responses."
    )


# --- what is in files called CSV (preference-formats.md, 1.17) -----------------------------------


@pytest.mark.parametrize("extra", ["p,x,y,A,EXTRA", "p,x,y,A,"])
def test_a_first_row_that_is_too_long_shifts_nothing(here, extra):
    judgements, (reject,) = read(write(HEADER + extra + "\nq,x,y,B\n"))
    assert [cells(j) for j in judgements] == [["q", "x", "y"]]
    assert (reject.reason, reject.detail) == (
        "fields_extra",
        "row 1 (line 2) has 5 fields where the header has 4.",
    )


def test_a_row_that_is_too_short(here):
    _, (reject,) = read(write(HEADER + "q,x,y,B\np,x,y\n"))
    assert (reject.reason, reject.raw) == ("fields_missing", ["p", "x", "y"])


def test_a_quote_that_is_never_closed_costs_its_row_only(here):
    text = HEADER + 'p,"x\nx",y,A\np,"x,y,A\n' + "q,x,y,B\n" * 5
    judgements, (reject,) = read(write(text))
    assert [(j.source.row, j.source.line) for j in judgements] == [
        (1, 2), (3, 5), (4, 6), (5, 7), (6, 8), (7, 9),
    ]  # fmt: skip
    assert (reject.row, reject.line, reject.reason) == (2, 4, "csv_syntax")
    assert reject.raw == 'p,"x,y,A\n'
    assert reject.detail == (
        "row 2 (lines 4 to 4) is not CSV: a quoted field is never closed. "
        "Close every quoted field, and write a quote inside one twice."
    )


def test_a_stray_quote_that_the_next_quoted_field_closes_costs_its_row_only(here):
    text = HEADER + 'p,"x,y,A\nq,"x, too",y,B\nr,x,y,A\n'
    judgements, (reject,) = read(write(text))
    assert [cells(j) for j in judgements] == [["q", "x, too", "y"], ["r", "x", "y"]]
    assert (reject.line, reject.reason, reject.raw) == (2, "csv_syntax", 'p,"x,y,A\n')


def test_lines_inside_a_broken_text_are_no_rows(here):
    """The second and third lines have three commas each, and only the second looks like a row."""
    text = HEADER + 'p,"he said \\"hi\\"\nyes, and, then, A\nbye\n",y,A\nq,x,y,B\nr,x,y,B\n'
    judgements, (reject,) = read(write(text))
    assert [cells(j)[0] for j in judgements] == ["q", "r"]
    assert (reject.row, reject.line, reject.reason) == (1, 2, "csv_syntax")
    assert reject.detail.startswith("row 1 (lines 2 to 5) is not CSV: ',' expected after '\"'.")
    assert [j.source.line for j in judgements] == [6, 7]


def test_two_broken_rows_side_by_side(here):
    text = HEADER + 'p,"x,y,A\np,"x,y,A\nq,x,y,B\nr,x,y,A\n'
    judgements, (reject,) = read(write(text))
    assert [cells(j)[0] for j in judgements] == ["q", "r"]
    assert reject.raw == 'p,"x,y,A\np,"x,y,A\n'


def test_a_broken_last_row(here):
    judgements, (reject,) = read(write(HEADER + "q,x,y,B\n" + 'p,"x,y,A'))
    assert (len(judgements), reject.line, reject.raw) == (1, 3, 'p,"x,y,A')


def test_in_a_table_of_one_column_an_open_quote_refuses_the_file(here):
    path = write('prompt\np\n"q\nr\n')
    with pytest.raises(DataError) as caught:
        list(read_table(Path(path), Reading()))
    assert str(caught.value) == (
        "labels.csv: a quoted field is never closed in the row that begins on line 3. "
        "Close every quoted field, and write a quote inside one twice."
    )


def test_a_field_that_is_too_long_costs_its_row_only(here, monkeypatch):
    monkeypatch.setattr(tables, "FIELD_LIMIT", 1000)
    text = HEADER + "q,x,y,B\n" + 'p,"' + "x\n" * 600 + '",y,A\n' + "q,x,y,B\n" * 2
    judgements, (reject,) = read(write(text))
    assert [(j.source.row, j.source.line) for j in judgements] == [(1, 2), (3, 604), (4, 605)]
    assert (reject.line, reject.reason) == (3, "csv_syntax")
    assert reject.detail.startswith(
        "row 2 (lines 3 to 603) is not CSV: a field is longer than 1,000 characters. "
    )


def test_backslash_escapes_spoil_their_own_row_only(here):
    text = HEADER + 'p,"he said \\"hi\\", then",y,A\nq,x,y,B\n'
    judgements, (reject,) = read(write(text))
    assert [cells(j) for j in judgements] == [["q", "x", "y"]]
    assert (reject.reason, reject.line) == ("csv_syntax", 2)
    assert reject.raw == 'p,"he said \\"hi\\", then",y,A\n'


def test_a_quote_inside_a_bare_field_is_text(here):
    assert cells(read(write(HEADER + 'p,5" pipe,y,A\n'))[0][0])[1] == '5" pipe'


def test_a_duplicate_column_is_an_error(here):
    assert error(write("prompt,response_a,response_b,label,prompt\np,x,y,A,q\n")) == (
        'The header of labels.csv names "prompt" twice. Rename one of the two.'
    )


def test_a_trailing_comma_in_the_header_is_a_column_without_a_name(here):
    text = "prompt,response_a,response_b,label,\np,x,y,A,\n"
    assert cells(read(write(text))[0][0]) == ["p", "x", "y"]


@pytest.mark.parametrize("word", ["NA", "null", "None", "007", "1e5", "=1+1", "- item", "nan"])
def test_words_that_others_convert_stay_text(here, word):
    assert cells(read(write(HEADER + f"{word},x,{word}2,A\n"))[0][0]) == [word, "x", f"{word}2"]


@pytest.mark.parametrize(
    "encoding",
    ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"],
)
def test_encodings_are_told_apart(here, encoding, recwarn):
    path = write((HEADER + "où,naïve – €,y,A\n").encode(encoding))
    (judgement,) = read_preferences(path)
    assert cells(judgement) == ["où", "naïve – €", "y"]
    said = [str(warning.message) for warning in recwarn]
    assert said == (
        [
            "labels.csv is not UTF-8 and was read as cp1252 (Windows); if letters look wrong, "
            "name its encoding."
        ]
        if encoding == "cp1252"
        else []
    )


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_short_header_tells_utf_16_without_a_mark(here, encoding):
    path = write(("a,b\n日本語の答え,答\n" * 40).encode(encoding))
    rows = [row for row in read_table(Path(path), Reading()) if not isinstance(row, Rejected)]
    assert [row.values for row in rows] == [{"a": "日本語の答え", "b": "答"}] * 40


def test_bytes_that_are_not_utf_8_cost_their_rows_only(here):
    row = "déjà vu,x,y,A\n".encode()
    reading = Reading()
    path = write(HEADER.encode() + row * 3 + row.replace("é".encode(), b"\xc3") + row)
    _, items = read_records(path, "preferences", "table", reading)
    rejects = [item for item in items if isinstance(item, Rejected)]
    assert [(r.row, r.line, r.reason) for r in rejects] == [(4, 5, "bad_bytes")]
    assert rejects[0].detail == "row 4 (line 5): prompt holds bytes that are not UTF-8."
    assert reading.notes == [
        "labels.csv is UTF-8 but for 1 byte; rows that hold such bytes were set aside."
    ]
    header = write("é".encode() * 9 + b"\xff,x\np,q\n")
    assert error(header) == (
        "The header of labels.csv has bytes that are no text. Name its encoding."
    )


@pytest.mark.parametrize("codec", ["hex", "rot13", "klingon", "a\0b"])
def test_what_is_no_encoding(here, codec):
    assert error(write(HEADER), encoding=codec) == f"{codec!r} is no encoding that Python knows."


def test_a_named_encoding_is_used_and_checked(here):
    path = write((HEADER + "Łódź,x,y,A\n").encode("cp1250"))
    assert cells(read(path, encoding="cp1250")[0][0])[0] == "Łódź"
    assert error(path, encoding="utf-8") == "labels.csv is not text in utf-8."
    assert error(path, encoding="klingon") == "'klingon' is no encoding that Python knows."
    assert error(write(b"prompt\n\x81\n")) == (
        "labels.csv is text in no known encoding. Name it with the encoding option."
    )


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("opening", ["", "sep={}\r\n"])
def test_delimiters_are_told_apart(here, delimiter, opening):
    rows = [HEADER.strip().split(","), ["p; a | b, c\td", "x", "y,", "A"], ["q", "x", "y", "B"]]
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter).writerows(rows)
    judgements, rejects = read(write(opening.format(delimiter) + stream.getvalue()))
    assert rejects == []
    assert [cells(j) for j in judgements] == [["p; a | b, c\td", "x", "y,"], ["q", "x", "y"]]
    assert judgements[0].source.line == (3 if opening else 2)


def test_a_given_delimiter_wins_over_a_sep_line(here):
    text = "sep=;\n" + HEADER.replace(",", "^") + "p^x^y^A\n"
    assert cells(read(write(text), delimiter="^")[0][0]) == ["p", "x", "y"]
    with pytest.raises(DataError, match=r"^A delimiter is one character, not '::'\.$"):
        Reading(delimiter="::")


def test_bare_carriage_returns_end_lines(here):
    judgements, _ = read(write((HEADER + "p,x,y,A\nq,x,y,B\n").replace("\n", "\r")))
    assert [j.source.line for j in judgements] == [2, 3]


def test_a_nul_stays(here):
    assert cells(read(write(HEADER + "p\0q,x,y,A\n"))[0][0])[0] == "p\0q"


def test_a_field_above_the_standard_limit_is_read(here):
    long = "x" * 200_000
    assert cells(read(write(HEADER + f"p,{long},y,A\n"))[0][0])[1] == long


def test_a_field_of_17_million_characters_is_read(here):
    long = 'x, "y"\r\n' * 2_200_000
    stream = io.StringIO()
    csv.writer(stream).writerows([HEADER.strip().split(","), ["p", long, "y", "A"]])
    assert len(long) > 17_000_000
    (judgement,) = read(write(stream.getvalue()))[0]
    assert cells(judgement) == ["p", long, "y"]


def test_memory_stays_flat(here):
    """30 MB of rows of 3 KB: what is held is a row, not the file."""
    row = 'p,"' + ("word, " * 50 + "\r\n") * 10 + '",y,A\n'
    with open("labels.csv", "w", newline="") as stream:
        stream.write(HEADER)
        for _ in range(10_000):
            stream.write(row)
    assert Path("labels.csv").stat().st_size > 30_000_000
    tracemalloc.start()
    try:
        count = sum(1 for _ in read_table(Path("labels.csv"), Reading()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 10_000
    assert peak < 6_000_000


def test_a_header_repeated_in_the_middle_is_no_data(here):
    judgements, (reject,) = read(write(HEADER + "p,x,y,A\n" + HEADER + "q,x,y,B\n"))
    assert len(judgements) == 2
    assert (reject.row, reject.line, reject.reason) == (2, 3, "header_repeated")
    assert reject.expected


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_files_that_were_joined_have_a_byte_order_mark_and_a_header_in_the_middle(here, quoting):
    stream = io.StringIO()
    rows = [HEADER.strip().split(","), ["p", "x\n1, 2", "y", "A"]]
    csv.writer(stream, quoting=quoting).writerows(rows)
    judgements, (reject,) = read(write(("\ufeff" + stream.getvalue()) * 2))
    assert [cells(j) for j in judgements] == [["p", "x\n1, 2", "y"]] * 2
    assert (reject.reason, reject.expected, reject.line) == ("header_repeated", True, 4)


def test_a_byte_order_mark_inside_a_text_stays(here):
    assert cells(read(write(HEADER + "\ufeffp,\ufeffx,y,A\n"))[0][0]) == ["\ufeffp", "\ufeffx", "y"]


def test_rows_without_a_value_are_set_aside(here):
    judgements, rejects = read(write(HEADER + "p,x,y,A\n,,,\n , ,,\n"))
    assert len(judgements) == 1
    assert [(r.line, r.reason, r.expected) for r in rejects] == [
        (3, "row_empty", True), (4, "row_empty", True),
    ]  # fmt: skip
    assert rejects[0].detail == "row 2 (line 3) has nothing in any column."


def test_two_columns_without_a_name_are_two(here):
    (row,) = read_table(Path(write("prompt,,label,\np,x,A,y\n")), Reading())
    assert row.values == {"prompt": "p", "column 2": "x", "label": "A", "column 4": "y"}


def test_ids_that_excel_rounded_are_noted_once_a_column(here):
    reading = Reading()
    text = "id,prompt,n\n1.23E+15,1.5E+10 is large,12\n9.99E+12,p,1.2E+2\n"
    list(read_table(Path(write(text)), reading))
    assert reading.notes == [
        'labels.csv has numbers such as 1.23E+15 in "id": Excel rounds long ids so.',
        'labels.csv has numbers such as 1.23E+15 in "n": Excel rounds long ids so.',
    ]


def test_line_numbers_count_lines_inside_quotes_and_blank_ones(here):
    text = HEADER + 'p,"x\r\nx\nx",y,A\n\nq,x,y,B\n'
    judgements, _ = read(write(text))
    assert cells(judgements[0])[1] == "x\r\nx\nx"
    assert [(j.source.row, j.source.line) for j in judgements] == [(1, 2), (2, 6)]


def test_compressed_files_and_broken_ones(here):
    whole = gzip.compress((HEADER + "p,x,y,A\n").encode())
    assert len(read(write(whole, "labels.csv.gz"))[0]) == 1
    assert error(write(whole[:-12], "labels.csv.gz")).startswith(
        "labels.csv.gz is not a whole gzip file ("
    )


def test_cells_that_excel_cut_are_noted_once(here):
    row = f"p,{'x' * 32_767},y,A\n"
    with pytest.warns(UserWarning) as caught:
        read_preferences(write(HEADER + row * 2))
    assert [str(warning.message) for warning in caught] == [
        "labels.csv has cells of exactly 32,767 characters: Excel cuts longer text there."
    ]


def test_a_quoted_crlf_survives_every_block_boundary(here):
    """pyarrow.csv loses a byte of a CRLF that straddles a block (apache/arrow#51368)."""
    answer = "line\r\n" * 7
    rows = "".join(f'p{n},"{answer}{n}",y,A\r\n' for n in range(20_000))
    for n, row in enumerate(read_table(Path(write(HEADER + rows)), Reading())):
        assert row.values["response_a"] == f"{answer}{n}"


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
labels = st.sampled_from(["A", "B", "tie", "both_bad", "C", ""])


@given(st.lists(st.tuples(text, text, text, labels), min_size=1, max_size=8))
def test_every_row_is_out_verbatim_or_set_aside(tmp_path_factory, rows):
    """Any Unicode but half surrogates, written by a standard writer, in a standard order."""
    path = tmp_path_factory.mktemp("csv") / "labels.csv"
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, quoting=csv.QUOTE_ALL)
        writer.writerow(HEADER.strip().split(","))
        writer.writerows(rows)
    _, items = read_records(str(path), "preferences", "table", Reading(delimiter=","))
    found = list(items)
    assert len(found) == len(rows)
    for number, (row, item) in enumerate(zip(rows, found, strict=True), start=1):
        if isinstance(item, Rejected):
            assert item.row == number
            assert list(item.raw.values()) == list(row)
            usable = all(cell.strip() for cell in row) and row[3] != "C"
            assert not usable or (row[1] == row[2] and row[3] in "AB")
        else:
            [judgement] = item
            assert cells(judgement) == list(row[:3])
            assert judgement.source.row == number
