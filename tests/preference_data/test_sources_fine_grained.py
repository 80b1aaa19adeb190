"""Fine-grained RLHF: six comparisons a row, and the counts of the real file."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from real_data import real_data

from preference_data import import_data, read_judgements, sniff
from preference_data.quarantine import Rejected
from preference_data.sources.carriers.files import Reading
from preference_data.sources.formats import read_records

ROW = {
    "question": "how long is the elbe",
    "passages": [["Elbe", "Elbe\n\nA river.", "It is long."], ["Elbe", "It ends at sea."]],
    "prediction 1": "long", "prediction 2": "1,094 km", "prediction 3": "short",
    "prediction 4": "a river", "preference": [2, 1, 0, 1, 1, 2],
}  # fmt: skip


def read(folder: Path, row: dict) -> Any:
    path = folder / "dev.jsonl"
    path.write_text(json.dumps(row))
    assert sniff(str(path), "preferences") == "fine_grained"
    _, items = read_records(str(path), "preferences", "fine_grained", Reading())
    (item,) = items
    return item


def test_the_six_pairs_in_their_order(tmp_path):
    judgements = read(tmp_path, ROW)
    assert [(*(r.text for r in j.responses), j.label) for j in judgements] == [
        ("long", "1,094 km", "second"),
        ("long", "short", "first"),
        ("long", "a river", "tie"),
        ("1,094 km", "short", "first"),
        ("1,094 km", "a river", "first"),
        ("short", "a river", "second"),
    ]
    assert len({j.group for j in judgements}) == 1
    assert judgements[0].group is not None
    assert len({j.id for j in judgements}) == 6


def test_the_prompt_is_the_passages_and_the_question(tmp_path):
    (first, *_) = read(tmp_path, ROW)
    assert first.prompt.text == (
        "Elbe\n\nA river. It is long.\n\nElbe\n\nIt ends at sea.\n\nhow long is the elbe"
    )
    (first, *_) = read(tmp_path, {**ROW, "passages": []})
    assert first.prompt.text == "how long is the elbe"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"preference": [2, 1, 0, 1, 1]}, "preference_invalid"),
        ({"preference": [2, 1, 0, 1, 1, 3]}, "preference_invalid"),
        ({"preference": [2, 1, 0, 1, 1, True]}, "preference_invalid"),
        ({"preference": "210112"}, "preference_invalid"),
        ({"prediction 2": "long"}, "identical_responses"),
        ({"prediction 4": " "}, "empty_response"),
        ({"question": ""}, "empty_prompt"),
        ({"passages": [["Elbe", 3]]}, "wrong_type"),
    ],
)
def test_rows_that_are_rejected(tmp_path, change, reason):
    item = read(tmp_path, {**ROW, **change})
    assert isinstance(item, Rejected)
    assert (item.reason, item.expected) == (reason, False)


@pytest.fixture
def real() -> Path:
    return real_data("fine-grained-rlhf", "dev_feedback.json.gz")


def test_the_real_file_counts_as_published(real, tmp_path):
    """500 prompts with 6 comparisons: 2,616 decisive and 384 ties (data README)."""
    report = import_data("preferences", str(real), tmp_path / "out", max_quarantined=0.0)
    assert (report.format, report.rows_in, report.rows_out) == ("fine_grained", 500, 500)
    assert report.records == 3000
    assert report.by_label == {"first": 1577, "second": 1039, "tie": 384}


def test_the_real_file_has_no_cycles(real, tmp_path):
    """488 rows decide something; pairs ordered 12, 13, 23, 14, 24, 34 would make 103 cycles."""
    import_data("preferences", str(real), tmp_path / "out")
    better: dict[str, set[tuple[str, str]]] = {}
    for judgement in read_judgements(tmp_path / "out"):
        for pair in judgement.comparisons():
            assert judgement.group is not None
            edges = better.setdefault(judgement.group, set())
            edges.add((pair.chosen.id, pair.rejected.id))
    cycles = 0
    for edges in better.values():
        texts = {text for edge in edges for text in edge}
        cycles += any({(a, b), (b, c), (c, a)} <= edges for a, b, c in permutations(texts, 3))
    assert (len(better), cycles) == (488, 0)
