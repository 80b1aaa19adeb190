"""`align score`: tables of every kind with the scores beside the answers, rows in = rows out."""

from __future__ import annotations

import csv
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align.cli import main
from preference_data.batches import Group
from preference_data.records import Prompt, Response


class LetterModel:
    """Ten times the letters of the prompt and those of the answer; nothing above 100 letters."""

    @classmethod
    def from_pretrained(cls, path: str, **_: Any) -> LetterModel:
        return cls()

    def score(self, prompts: list[str], completions: list[str]) -> list[float]:
        pairs = zip(prompts, completions, strict=True)
        found = [self.group_of(Prompt.from_text(p), Response.from_text(c)) for p, c in pairs]
        return self.score_groups(found)

    def group_of(self, prompt: Prompt, completion: Response) -> Group:
        answer = completion.messages[-1].content
        if len(answer) > 100:
            raise ValueError("a conversation of 101 tokens is longer than the 100 it reads")
        question = "".join(message.content for message in prompt.messages)
        return Group((1,) * len(question), ((2,) * len(answer),))

    def score_groups(self, groups: list[Group]) -> list[float]:
        return [10.0 * len(group.prompt) + len(group.completions[0]) for group in groups]


@pytest.fixture
def score(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """`align score` with a model that counts letters, in the test's own folder."""
    module = types.ModuleType("reward_models")
    module.__dict__["RewardModel"] = LetterModel
    monkeypatch.setitem(sys.modules, "reward_models", module)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    return lambda *arguments: main(["score", "model", *arguments])


def table(path: str) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_a_number_an_answer(score: Callable[..., int], capsys: Any):
    assert score("--prompt", "hi", "--completion", "a", "--completion", "abc") == 0
    assert capsys.readouterr().out == "21.0000\n23.0000\n"
    assert score("--prompt", "hi", "--completion", "a" * 101) == 2
    assert capsys.readouterr().err == (
        "a conversation of 101 tokens is longer than the 100 it reads.\n"
    )


def test_a_table_of_answers_keeps_its_columns(score: Callable[..., int], capsys: Any):
    """Cells with line ends, quotes, delimiters and NA come back as they were."""
    text = 'id;prompt;response\n007;hi;"a\nb"\n;hello;"say ""x;y"""\n1e5;NA;null\n'
    Path("in.csv").write_text(text)
    assert score("in.csv", "--output", "out.csv") == 0
    assert capsys.readouterr() == ("3 rows, 3 answers scored: out.csv\n", "")
    assert Path("out.csv").read_text() == (
        'id;prompt;response;score\n007;hi;"a\nb";23.0\n;hello;"say ""x;y""";59.0\n'
        "1e5;NA;null;24.0\n"
    )
    assert not Path("out.quarantine.jsonl").exists()


def test_two_answers_and_their_label_give_the_accuracy(score: Callable[..., int], capsys: Any):
    """The longer answer has the higher score: right, wrong, a tie that does not count, and equal
    scores, which count a half: 1.5 of 3."""
    Path("in.csv").write_text(
        "prompt,response_a,response_b,label\np,long,x,A\np,long,x,B\np,long,x,tie\np,abc,xyz,A\n"
    )
    assert score("in.csv", "--output", "out.csv", "--column", "rm") == 0
    assert [(row["rm_a"], row["rm_b"]) for row in table("out.csv")] == [
        ("14.0", "11.0"), ("14.0", "11.0"), ("14.0", "11.0"), ("13.0", "13.0"),
    ]  # fmt: skip
    assert capsys.readouterr().out == (
        "4 rows, 8 answers scored: out.csv\n"
        "Accuracy 0.500 on 3 pairs of which one is judged better.\n"
    )


def test_a_table_without_labels_is_scored_as_well(score: Callable[..., int], capsys: Any):
    Path("in.tsv").write_text("prompt\tResponse 1\tResponse 2\tResponse 3\np\ta\tab\tabc\n")
    assert score("in.tsv", "--output", "out.tsv") == 0
    assert Path("out.tsv").read_text().splitlines()[1] == "p\ta\tab\tabc\t11.0\t12.0\t13.0"
    assert "score_1\tscore_2\tscore_3" in Path("out.tsv").read_text()
    assert capsys.readouterr().out == "1 row, 3 answers scored: out.tsv\n"


def test_rows_in_are_rows_out(score: Callable[..., int], capsys: Any):
    """Too long, blank, ragged, and no CSV at all: each row is there, without a score, and named."""
    Path("in.csv").write_text(
        f'prompt,response,note\nhi,{"x" * 101},1\n,a,2\nhi,b\nhi,c,"3"4\nhi,d,5\nhi,e,6\n'
    )
    assert score("in.csv", "--output", "out.csv") == 0
    captured = capsys.readouterr()
    assert captured.out == "6 rows, 2 answers scored: out.csv\n"
    found = table("out.csv")
    assert [row["score"] for row in found] == ["", "", "", "", "21.0", "21.0"]
    assert (found[0]["response"], found[3]["prompt"].strip()) == ("x" * 101, 'hi,c,"3"4')
    lines = captured.err.splitlines()
    assert lines[0] == (
        "4 of 6 rows have an answer without a score (csv_syntax 1, empty_prompt 1, fields_missing "
        "1, not_scored 1); see out.quarantine.jsonl."
    )
    assert lines[1] == (
        "  row 1 (line 2): score: a conversation of 101 tokens is longer than the 100 it reads."
    )
    kept = [json.loads(line) for line in Path("out.quarantine.jsonl").read_text().splitlines()]
    assert [row["row"] for row in kept] == [1, 2, 3, 4]


def test_cells_keep_their_line_ends_and_their_bytes(score: Callable[..., int]):
    """A lone carriage return, also on Pythons that would leave it bare, and a byte that is no text
    in a row that is set aside."""
    Path("in.csv").write_bytes(
        b'prompt,response,note\nhi,a,"1\r2"\nho,b,"3\r\n4\n\xc3\xa9\xc3\xa9"\nhu,c,\xff\n'
    )
    assert score("in.csv", "--output", "out.csv") == 0
    assert Path("out.csv").read_bytes() == (
        b'prompt,response,note,score\nhi,a,"1\r2",21.0\nho,b,"3\r\n4\n\xc3\xa9\xc3\xa9",21.0\n'
        b"hu,c,\xff,\n"
    )


@pytest.mark.parametrize(
    "text",
    [
        '\ufeffprompt,response\r\nhi,a|\r\nho,"b\r\nc"|\r\n',
        'prompt;response;\rhi;"a;b";|\rho;c;1|\r',
        "sep=;\r\nprompt;response|\r\nhi;a|\r\n",
        '"prompt","n","response"|\n"hi",7,"a"|\n"ho",8,"say ""b"""|\n',
        " prompt ,response\nhi,a|\n",
    ],
    ids=["mark", "lone returns and no name", "sep", "text in quotes", "spaces in the header"],
)
def test_a_table_keeps_its_own_way_of_writing(score: Callable[..., int], text: str):
    """Byte order mark, line ends, the line that says the delimiter, quotes and the header's blanks:
    all but the score itself, where the bar stands, is as it was."""
    end = "\r\n" if "\r\n" in text else "\r" if "\r" in text else "\n"
    plain = text.replace("|", "")
    delimiter = ";" if ";" in text else ","
    Path("in.csv").write_bytes(plain.encode())
    assert score("in.csv", "--output", "out.csv") == 0
    found = Path("out.csv").read_bytes().decode()
    for added in ("score", '"score"', "21.0", "22.0", "23.0", "24.0", "25.0", "27.0"):
        found = found.replace(f"{delimiter}{added}{end}", end)
    assert found == plain


def test_a_table_in_quotes_throughout_has_its_scores_in_quotes(score: Callable[..., int]):
    """Marked as UTF-16 it is written as UTF-8, and marked again."""
    Path("in.tsv").write_bytes('"prompt"\t"response"\r\n"hi"\t"ä"\r\n'.encode("utf-16"))
    assert score("in.tsv", "--output", "out.tsv") == 0
    assert Path("out.tsv").read_bytes() == (
        '\ufeff"prompt"\t"response"\t"score"\r\n"hi"\t"ä"\t"21.0"\r\n'.encode()
    )


def test_answers_whose_columns_differ_in_a_case_are_all_scored(score: Callable[..., int]):
    Path("in.csv").write_text("prompt,Response A,response_a,response_b\nhi,a,ab,abc\n")
    assert score("in.csv", "--output", "out.csv") == 0
    [row] = table("out.csv")
    assert (row["score_Response A"], row["score_response_a"]) == ("21.0", "22.0")
    assert row["score_response_b"] == "23.0"


def test_an_answer_that_only_later_rows_have_is_scored(score: Callable[..., int], capsys: Any):
    rows = ['{"prompt": "hi", "response_a": "a", "response_b": "ab"']
    rows.append(rows[0] + ', "response_c": "abc"')
    Path("in.jsonl").write_text("".join(f"{row}}}\n" for row in rows))
    assert score("in.jsonl", "--output", "out.jsonl") == 0
    found = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [[row[f"score_{name}"] for name in "abc"] for row in found] == [
        [21.0, 22.0, None],
        [21.0, 22.0, 23.0],
    ]
    assert "1 of 2 rows has an answer without a score" in capsys.readouterr().err


def test_half_a_surrogate_pair_stays_escaped(score: Callable[..., int]):
    rows = [
        '{"prompt": "hi", "response": "a", "note": "é"}',
        '{"prompt": "hi", "response": "a", "note": "\\udc80"}',
        '{"prompt": "hi", "response": "a", "note": "\\ud800"}',
    ]
    Path("in.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    assert score("in.jsonl", "--output", "out.jsonl") == 0
    lines = Path("out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [line.partition(', "score": ')[0] + "}" for line in lines] == rows


def test_a_score_that_a_later_row_has_is_not_replaced(score: Callable[..., int], capsys: Any):
    Path("in.jsonl").write_text(
        '{"prompt": "hi", "response": "a"}\n{"prompt": "hi", "response": "b", "score": 5}\n'
    )
    assert score("in.jsonl", "--output", "out.jsonl") == 2
    assert "in.jsonl has a column score already; give the scores" in capsys.readouterr().err


def test_a_quarantine_file_can_be_scored_but_not_replaced(score: Callable[..., int], capsys: Any):
    text = '{"prompt": "hi", "response": "a"}\n'
    Path("in.quarantine.jsonl").write_text(text)
    assert score("in.quarantine.jsonl", "--output", "in.jsonl") == 2
    assert "--output would set rows aside in in.quarantine.jsonl itself" in capsys.readouterr().err
    assert Path("in.quarantine.jsonl").read_text() == text
    assert score("in.quarantine.jsonl", "--output", "out.jsonl") == 0


def test_lists_of_answers_have_lists_of_scores(score: Callable[..., int]):
    """A line that is no JSON stays; numbers that JSON writes exactly are as they were."""
    rows = [
        '{"prompt": "hi", "completions": ["a", "abc", ""], "n": 12345678901234567890}',
        "{no json",
        '{"prompt": [{"role": "user", "content": "é"}], "completions": ["ü"], "n": 0.1}',
    ]
    Path("in.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    assert score("in.jsonl", "--output", "out.jsonl") == 0
    first, second, third = Path("out.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(first) == {**json.loads(rows[0]), "score": [21.0, 23.0, None]}
    assert second == rows[1]
    assert third == rows[2][:-1] + ', "score": [11.0]}'


def test_parquet_keeps_its_types(score: Callable[..., int]):
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "prompt": ["hi", "ho"], "chosen": ["abc", "x" * 101], "rejected": ["a", "b"],
        "small": pa.array([1, None], pa.int8()), "when": pa.array([1, 2], pa.timestamp("ns")),
    }  # fmt: skip
    pq.write_table(pa.table(columns), "in.parquet")
    assert score("in.parquet", "--output", "out.parquet") == 0
    before, after = pq.read_table("in.parquet"), pq.read_table("out.parquet")
    assert after.select(before.column_names).equals(before)
    assert after["score_chosen"].to_pylist() == [23.0, None]
    assert after["score_rejected"].to_pylist() == [21.0, 21.0]


def test_a_published_format_is_scored_as_it_is_imported(score: Callable[..., int], capsys: Any):
    """HH: transcripts in two columns; the scores are of their last answers, chosen first."""
    start = "\n\nHuman: hi\n\nAssistant: "
    rows = [{"chosen": start + "abc", "rejected": start + "a"}]
    rows += [{"chosen": start + "same", "rejected": start + "same"}]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert score("in.jsonl", "--output", "out.jsonl") == 0
    found = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert found[0] == {**rows[0], "score": [23.0, 21.0]}
    assert found[1] == {**rows[1], "score": None}
    captured = capsys.readouterr()
    assert "Accuracy 1.000 on 1 pair" in captured.out
    assert "1 of 2 rows has an answer without a score" in captured.err


def test_a_data_folder_and_a_mapping(score: Callable[..., int], capsys: Any):
    Path("labels.csv").write_text("q,x,y,best\np,long,x,1\np,ab,x,2\n")
    Path("columns.yaml").write_text(
        "prompt: q\nresponses: [x, y]\nlabel: best\nlabels: {1: first, 2: second}\n"
    )
    mapping = ["--mapping", "columns.yaml"]
    assert score("labels.csv", "--output", "out.csv", *mapping) == 0
    assert [row["score_x"] for row in table("out.csv")] == ["14.0", "12.0"]
    assert "Accuracy 0.500 on 2 pairs" in capsys.readouterr().out
    assert main(["import", "labels.csv", "--output", "data", *mapping]) == 0
    capsys.readouterr()
    assert score("data", "--output", "out.jsonl") == 0
    found = [json.loads(line)["score"] for line in Path("out.jsonl").read_text().splitlines()]
    assert found == [[14.0, 11.0], [12.0, 11.0]]
    assert "Accuracy 0.500 on 2 pairs" in capsys.readouterr().out


def test_an_output_that_is_there_is_replaced_only_where_that_is_said(
    score: Callable[..., int], capsys: Any
):
    """And the rows that were set aside beside it."""
    Path("in.csv").write_text("prompt,response\nhi,a\n")
    for name in ("out.csv", "out.quarantine.jsonl"):
        Path(name).write_text("work")
        assert score("in.csv", "--output", "out.csv") == 2
        assert capsys.readouterr() == (
            "", f"--output: {name} is there already; --force replaces it.\n"
        )  # fmt: skip
        assert Path(name).read_text() == "work"
        Path(name).unlink()
    Path("out.csv").write_text("work")
    assert score("in.csv", "--output", "out.csv", "--force") == 0
    assert [row["score"] for row in table("out.csv")] == ["21.0"]
    assert score("--prompt", "hi", "--completion", "a", "--force") == 2
    assert capsys.readouterr().err == "--force has no effect with --prompt; leave it out.\n"


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a,b\n1,2\n", ["out.csv"], "in.csv has no column prompt; it has a, b. Rename the columns"),
        ("prompt,b\n1,2\n", ["out.csv"], "in.csv has no column of answers; it has prompt, b."),
        ("prompt,response\n1,2\n", ["out.jsonl"], "of in.csv, let its name end in .csv."),
        ("prompt,response\n1,2\n", ["in.csv"], "--output is in.csv itself; name another file."),
        ("prompt,response,score\n1,2,3\n", ["out.csv"], "in.csv has a column score already;"),
        ("prompt,response\n1,2\n", ["./x/../in.csv"], "--output is in.csv itself;"),
    ],
)
def test_mistakes_are_seen_before_a_model_is_loaded(
    score: Callable[..., int], text: str, options: list[str], message: str, capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.setattr(LetterModel, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    Path("in.csv").write_text(text)
    assert score("in.csv", "--output", *options) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err
    assert Path("in.csv").read_text() == text
