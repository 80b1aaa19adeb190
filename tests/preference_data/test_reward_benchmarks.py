"""Benchmarks of reward models: every layout from its rows, and the rows that are none."""

# ruff: noqa: E501 - a case of a table stays in one line
from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preference_data.quarantine import DataError
from preference_data.records import Prompt, Response
from preference_data.reward_benchmarks import LAYOUTS, SECTIONS, Benchmark, Item, read_benchmark

REWARDBENCH = {
    "prompt": "Name a river.", "chosen": "The Elbe", "chosen_model": "m1", "rejected": "A lake",
    "rejected_model": "m2", "subset": "alpacaeval-easy", "id": 30,
}  # fmt: skip
REWARDBENCH_2 = {
    "id": "12", "prompt": "Name a river.", "chosen": ["The Elbe"],
    "rejected": ["A lake", "Rome", ""], "num_correct": 1, "num_incorrect": 3,
    "total_completions": 4, "models": ["m1", "m2", "m3", "m4"], "subset": "Factuality",
    "additional_metadata": {"category": None},
}  # fmt: skip
RM_BENCH = {
    "id": "chat/1", "prompt": "Name a river.", "chosen": ["E", "The Elbe", "**Elbe**"],
    "rejected": ["R", "It is Rome", "**Rome**"], "domain": "safety-refuse",
}  # fmt: skip
LLMBAR = {"input": "Name a river.", "output_1": "Rome", "output_2": "The Elbe", "label": 2}
PAIR = {"prompt": "Name a river.", "chosen": "The Elbe", "rejected": "Rome", "margin": 3}


def write(path: Path, *rows: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts(item: Item, right: bool) -> list[str]:
    marked = zip(item.completions, item.right, strict=True)
    return [completion.text for completion, mark in marked if mark is right]


@pytest.mark.parametrize(
    ("row", "layout", "right", "wrong", "subset", "id"),
    [
        (REWARDBENCH, "rewardbench", ["The Elbe"], ["A lake"], "alpacaeval-easy", "30"),
        (REWARDBENCH_2, "rewardbench2", ["The Elbe"], ["A lake", "Rome", ""], "Factuality", "12"),
        (
            RM_BENCH, "rm_bench", ["E", "The Elbe", "**Elbe**"], ["R", "It is Rome", "**Rome**"],
            "safety-refuse", "chat/1",
        ),
        (LLMBAR, "llmbar", ["The Elbe"], ["Rome"], "rows", "rows.jsonl:1"),
        (PAIR, "pairs", ["The Elbe"], ["Rome"], "all", "rows.jsonl:1"),
    ],
)  # fmt: skip
def test_each_layout_is_recognised_by_its_first_row(
    row: Any, layout: str, right: list[str], wrong: list[str], subset: str, id: str, tmp_path: Path
):
    found = read_benchmark(write(tmp_path / "rows.jsonl", row))
    [item] = found.items
    assert (found.layout, found.rows, found.rejected) == (layout, 1, ())
    assert item.prompt == Prompt.from_text("Name a river.")
    assert (texts(item, True), texts(item, False)) == (right, wrong)
    assert (item.subset, item.id) == (subset, id)
    assert read_benchmark(found.source, layout).items == found.items


def test_llmbar_keeps_the_order_of_its_outputs(tmp_path: Path):
    first = {**LLMBAR, "label": "1", "subset": "Natural"}
    [item] = read_benchmark(write(tmp_path / "rows.jsonl", first)).items
    assert (item.right, texts(item, True), item.subset) == ((True, False), ["Rome"], "Natural")


def test_a_table_of_pairs_needs_three_columns_and_may_have_a_subset(tmp_path: Path):
    path = tmp_path / "pairs.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["prompt", "chosen", "rejected", "subset"])
        writer.writerows([["q", "a", "b", "hard"], ["q", "a", "b", ""], ["", "a", "b", "easy"]])
    found = read_benchmark(str(path))
    assert [item.subset for item in found.items] == ["hard", "all"]
    assert found.by_reason() == {"empty_prompt": 1} and found.rows == 3


def test_conversations_are_read_as_prompts_and_as_pairs(tmp_path: Path):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    more = [*turns, {"role": "user", "content": "more"}]
    asked = {**REWARDBENCH, "prompt": more}
    whole = {"chosen": [*more, {"role": "assistant", "content": "yes"}],
             "rejected": [*more, {"role": "assistant", "content": "no"}]}  # fmt: skip
    prompts = [
        read_benchmark(write(tmp_path / "asked.jsonl", asked)).items[0].prompt,
        read_benchmark(write(tmp_path / "whole.jsonl", whole)).items[0].prompt,
    ]
    assert [p.text for p in prompts] == ["user: q\nassistant: a\nuser: more"] * 2


@pytest.mark.parametrize("kind", ["json", "jsonl.gz", "parquet"])
def test_every_carrier_gives_the_same_items(kind: str, tmp_path: Path):
    rows = [REWARDBENCH_2, {**REWARDBENCH_2, "id": "13"}]
    path = tmp_path / f"test.{kind}"
    if kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    found = read_benchmark(str(path))
    assert [(item.id, item.right) for item in found.items] == [
        ("12", (True, False, False, False)), ("13", (True, False, False, False)),
    ]  # fmt: skip


def test_llmbar_s_folder_gives_the_subsets_and_not_its_evaluators(tmp_path: Path):
    for folder in ("Natural", "Adversarial/Manual"):
        (tmp_path / folder / "evaluators").mkdir(parents=True)
        (tmp_path / folder / "dataset.json").write_text(json.dumps([LLMBAR]))
        (tmp_path / folder / "evaluators/result.json").write_text('[{"winner": 1}]')
    found = read_benchmark(str(tmp_path))
    assert [item.subset for item in found.items] == ["Manual", "Natural"]
    assert found.notes == (f"Of the 4 files of {tmp_path}, dataset.json alone was read.",)


@pytest.mark.parametrize(
    ("whole", "part", "row"),
    [
        ("total_dataset.json", "chat_filtered.json", RM_BENCH),
        ("filtered-00000-of-00001.jsonl", "raw-00000-of-00001.jsonl", REWARDBENCH),
    ],
)
def test_parts_and_unfiltered_rows_beside_the_benchmark_are_not_read(
    whole: str, part: str, row: Any, tmp_path: Path
):
    write(tmp_path / whole, row)
    write(tmp_path / part, row, row)
    found = read_benchmark(str(tmp_path))
    assert len(found.items) == 1 and found.files == (str(tmp_path / whole),)
    assert found.notes == (f"Of the 2 files of {tmp_path}, {whole} alone was read.",)


def test_ties_are_grouped_by_their_number(tmp_path: Path):
    tied = {**REWARDBENCH_2, "subset": "ties", "id": "tied:3", "chosen": ["a", "b"],
            "num_correct": 2}  # fmt: skip
    ref = {**REWARDBENCH_2, "subset": "Ties", "id": "ref:3"}
    other = {**ref, "id": "ref:4"}
    path = write(tmp_path / "rows.jsonl", REWARDBENCH_2, tied, ref, other)
    items = read_benchmark(path).items
    assert [(item.subset, item.group) for item in items[1:]] == [
        ("Ties", "3"), ("Ties", "3"), ("Ties", "4"),
    ]  # fmt: skip
    limited = read_benchmark(path, limit=1)
    assert [item.id for item in limited.items] == ["12", "tied:3", "ref:3"]
    assert limited.notes == ("Of each subset, the first 1 alone.",)


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ({**REWARDBENCH_2, "num_correct": 2}, "count_differs", "num_correct is 2, but 1 are chosen."),
        ({**REWARDBENCH_2, "rejected": "x"}, "no_list", "rejected is 'x', not a list of completions."),
        ({**REWARDBENCH_2, "rejected": [3]}, "wrong_type", "rejected is 3, not text."),
        ({**REWARDBENCH_2, "rejected": [None]}, "empty_response", "rejected is empty."),
        ({**REWARDBENCH_2, "subset": None}, "no_subset", "subset is empty."),
        ({**REWARDBENCH_2, "prompt": " "}, "empty_prompt", "prompt is empty."),
        ({**REWARDBENCH_2, "subset": "Ties"}, "id_invalid", "the id of a row of Ties is '12', not ref:N or tied:N."),
        ({**REWARDBENCH_2, "subset": "Ties", "id": "tied:1"}, "tied_alone", "tied:1 has one right answer, so that nothing is tied."),
        ({**REWARDBENCH_2, "subset": "Ties", "id": "ref:1", "chosen": ["a", "b"], "num_correct": 2}, "ref_tied", "ref:1 has 2 right answers, and a reference has one."),
        ({"id": "1"}, "column_missing", 'there is no columns "prompt", "chosen", "rejected", "subset", only id.'),
    ],
)  # fmt: skip
def test_a_faulty_row_is_kept_with_its_reason(row: Any, reason: str, detail: str, tmp_path: Path):
    found = read_benchmark(write(tmp_path / "rows.jsonl", REWARDBENCH_2, row))
    [fault] = found.rejected
    assert (found.rows, len(found.items)) == (2, 1)
    assert (fault.reason, fault.row) == (reason, 2)
    assert fault.detail == f"row 2 (line 2): {detail}"


def test_rm_bench_needs_three_styles_and_llmbar_a_label(tmp_path: Path):
    short = {**RM_BENCH, "chosen": ["a", "b"]}
    [fault] = read_benchmark(write(tmp_path / "a.jsonl", RM_BENCH, short)).rejected
    assert fault.reason == "styles_missing" and "2 chosen and 3 rejected" in fault.detail
    [fault] = read_benchmark(write(tmp_path / "b.jsonl", LLMBAR, {**LLMBAR, "label": 0})).rejected
    assert (fault.reason, fault.detail[16:]) == ("label_unknown", "label is '0', not 1 or 2.")


def test_what_cannot_be_read_at_all_is_said(tmp_path: Path):
    pair = write(tmp_path / "pair.jsonl", PAIR)
    other = write(tmp_path / "other.jsonl", {"question": "q", "answer": "a"})
    with pytest.raises(
        DataError, match=r"looks like none of the benchmarks .* has question, answer"
    ):
        read_benchmark(other)
    with pytest.raises(DataError, match="'rb' is no layout of a benchmark; there are auto, reward"):
        read_benchmark(pair, "rb")
    with pytest.raises(DataError, match="limit is a number of items from 1 up, not 0"):
        read_benchmark(pair, limit=0)
    with pytest.raises(DataError, match='has no column "subset"'):
        read_benchmark(pair, "rewardbench")
    with pytest.raises(DataError, match=r"No row of .* \(empty_prompt 1\); the first: row"):
        read_benchmark(write(tmp_path / "none.jsonl", {**PAIR, "prompt": ""}))
    with pytest.raises(DataError, match=r"There is no file data/none\.jsonl"):
        read_benchmark("data/none.jsonl")


def test_an_item_has_a_right_and_a_wrong_completion():
    prompt, answer = Prompt.from_text("q"), Response.from_text("a")
    for right in ((True,), (True, True), (False, False)):
        with pytest.raises(ValueError, match=r"marks|right and a wrong"):
            Item(prompt, (answer, answer), right, "all", "1", "1")


def test_the_hub_is_asked_where_there_is_no_such_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import huggingface_hub

    write(tmp_path / "data/test-00000-of-00001.jsonl", REWARDBENCH_2)
    asked: list[Any] = []

    def snapshot_download(name: str, **options: Any) -> str:
        asked.append((name, options["repo_type"], options["revision"]))
        assert {"*.parquet", "*.json.gz"} <= set(options["allow_patterns"])
        return str(tmp_path if name == "allenai/reward-bench-2" else tmp_path / "empty")

    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    found = read_benchmark("allenai/reward-bench-2@abc1")
    assert (found.layout, found.source) == ("rewardbench2", "allenai/reward-bench-2@abc1")
    with pytest.raises(DataError, match=r"princeton-nlp/LLMBar of the hub holds no data files"):
        read_benchmark("princeton-nlp/LLMBar")
    assert asked == [
        ("allenai/reward-bench-2", "dataset", "abc1"), ("princeton-nlp/LLMBar", "dataset", None),
    ]  # fmt: skip


def test_the_hub_s_refusal_is_a_sentence(monkeypatch: pytest.MonkeyPatch):
    """HF_HUB_OFFLINE is set for all tests, so that the client refuses by itself."""
    with pytest.raises(
        DataError, match="no-one/nothing is no path here, and the hub does not give"
    ):
        read_benchmark("no-one/nothing")


def test_the_layouts_and_sections_are_those_that_are_published():
    assert list(LAYOUTS) == ["rewardbench", "rm_bench", "rewardbench2", "llmbar", "pairs"]
    assert list(SECTIONS) == ["Chat", "Chat Hard", "Safety", "Reasoning"]
    assert sum(map(len, SECTIONS.values())) == 23


def test_no_row_vanishes(tmp_path: Path):
    rows = [PAIR, {**PAIR, "subset": "x"}, {**PAIR, "chosen": 3}, {**PAIR, "subset": "x"}, PAIR]
    found: Benchmark = read_benchmark(write(tmp_path / "rows.jsonl", *rows), limit=1)
    assert (found.rows, len(found.items), len(found.rejected)) == (5, 2, 1)
    assert [item.id for item in found.items] == ["rows.jsonl:1", "rows.jsonl:2"]
