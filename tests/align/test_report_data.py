"""What the page says on the quality of a source's judgements."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align import report_data
from align.report_data import data_quality
from preference_data.records import Judgement, Prompt, Response
from preference_data.sources.store import RECORD_FILES


def write(run_dir: Path, repeated: bool = False) -> Path:
    """30 prompts, each judged by two annotators of one mind; the longer of two answers wins 27
    times, three are ties. `repeated`: ann judges the first one again, the other way round."""
    path = run_dir / "data" / "labels" / RECORD_FILES["preferences"]
    path.parent.mkdir(parents=True)

    def judged(i: int, who: str, ranks: tuple[int, int]) -> str:
        answers = (Response.from_text("a long answer of many words"), Response.from_text(f"{i}"))
        return Judgement(Prompt.from_text(f"question {i}?"), answers, ranks, who).to_json()

    rows = [judged(i, who, (1, 1) if i < 3 else (1, 2)) for i in range(30) for who in ("ann", "bo")]
    rows += [judged(29, "ann", (2, 1))] if repeated else []
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_numbers_and_findings_of_small_data(tmp_path: Path):
    """54 decided judgements: Wilson's lower end of 54 of 54 is 54 / (54 + 1.96²) = 93.4 %. Both
    annotators always agree; 3 of 30 prompts are ties."""
    write(tmp_path)
    found = data_quality(tmp_path, "labels")
    assert found is not None
    facts = dict(found.facts)
    assert facts["Krippendorff's alpha, nominal"].startswith("1.00 [1.00, 1.00] on 30 shared")
    assert facts["The longer response wins"] == "100 % [93, 100]"
    assert facts["Ties"] == "10 %"
    assert "Judged again by the same annotator" not in facts
    assert any("longer response wins" in sentence for _, sentence, _ in found.findings)
    assert found.command == f"align inspect {tmp_path}/data/labels --html quality.html"


def test_contradictions_are_counted(tmp_path: Path):
    write(tmp_path, repeated=True)
    found = data_quality(tmp_path, "labels")
    assert found is not None
    assert dict(found.facts)["Judged again by the same annotator"] == (
        "1, of these contradicting the first time 1"
    )


def test_large_data_is_left_to_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path)
    monkeypatch.setattr(report_data, "QUICK", path.stat().st_size - 1)
    found = data_quality(tmp_path, "labels")
    assert found is not None and (found.facts, found.findings) == ([], [])
    assert found.remark.startswith("Too many") and found.command.startswith("align inspect")


def test_judgements_that_cannot_be_read_are_no_reason_to_fail(tmp_path: Path):
    write(tmp_path).write_text('{"prompt": 3}\n')
    found = data_quality(tmp_path, "labels")
    assert found is not None and found.facts == []
    assert "line 1 is not a record of ours" in found.remark


def test_a_source_without_judgements_has_no_quality(tmp_path: Path):
    assert data_quality(tmp_path, "prompts") is None
    write(tmp_path).write_text("")
    assert data_quality(tmp_path, "labels") is None
