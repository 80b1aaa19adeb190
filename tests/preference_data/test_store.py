"""What was stored is what is read back, from either twin and by another import."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preference_data import import_data, read_judgements, sniff
from preference_data.quarantine import DataError
from preference_data.records import Judgement, Message, Prompt, Response, Source
from preference_data.sources.store import record_sink

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
NUMBERS = st.floats(-1e6, 1e6)


@st.composite
def judgements(draw: st.DrawFn) -> Judgement:
    """Any judgement: every kind, every rare field."""
    kind = draw(st.sampled_from(["ranking", "best_of", "rating", "binary"]))
    k = 1 if kind == "binary" else draw(st.integers(1 if kind == "rating" else 2, 4))
    ranks: tuple[int | None, ...] = tuple(draw(st.permutations(range(1, k + 1))))
    scores = None
    if kind == "best_of":
        ranks = tuple(min(rank, 2) for rank in ranks if rank is not None)
    if kind == "rating":
        scores = tuple(draw(st.none() | NUMBERS) for _ in range(k))
    if kind == "binary":
        scores = (float(draw(st.booleans())),)
    if k == 1:
        ranks = (None,)
    rare = {
        "annotator": draw(st.none() | TEXTS), "strength": draw(st.none() | st.floats(0, 1)),
        "weight": draw(st.floats(0.01, 9)), "criterion": draw(TEXTS),
        "comment": draw(st.none() | TEXTS), "scale": draw(st.none() | TEXTS),
        "probability": draw(st.none() | st.floats(0, 1)) if k == 2 else None,
        "votes": draw(st.none() | st.integers(1, 9)), "group": draw(st.none() | TEXTS),
        "position": draw(st.none() | st.permutations(range(k)).map(tuple)),
        "gold": tuple(range(1, k + 1)) if k > 1 and draw(st.booleans()) else None,
        "duration": draw(st.none() | st.floats(0, 1e5)),
        "split": draw(st.sampled_from([None, "train", "validation", "test"])),
        "raw": draw(st.none() | TEXTS),
    }  # fmt: skip
    source = draw(st.none() | st.builds(Source, TEXTS, TEXTS, st.integers(1, 9), st.integers(1, 9)))
    prompt = Prompt((Message("system", draw(TEXTS)), Message("user", draw(TEXTS))))
    responses = tuple(Response.from_text(draw(TEXTS), draw(st.none() | TEXTS)) for _ in range(k))
    return Judgement(prompt, responses, ranks, kind=kind, scores=scores, source=source, **rare)


def write(folder: Path, rows: list[Judgement]) -> Path:
    folder.mkdir(exist_ok=True)
    with record_sink(folder, "preferences") as sink:
        for row in rows:
            sink.write(row.to_json())
    return folder


@given(st.lists(judgements(), min_size=1, max_size=5))
def test_both_twins_and_another_import_give_the_same_judgements(tmp_path_factory, rows):
    folder = write(tmp_path_factory.mktemp("store"), rows)
    assert list(read_judgements(folder)) == rows
    for twin in ("judgements.jsonl", "judgements-00000.parquet"):
        assert sniff(str(folder / twin), "preferences") == "judgements"
        import_data("preferences", str(folder / twin), folder / "again")
        assert list(read_judgements(folder / "again")) == rows
        assert [r.id for r in read_judgements(folder / "again")] == [r.id for r in rows]
    (folder / "judgements.jsonl").unlink()
    assert list(read_judgements(folder)) == rows


def test_a_judgement_that_lost_something_is_set_aside(tmp_path: Path):
    good = Judgement(
        Prompt.from_text("p"), (Response.from_text("a"), Response.from_text("b")), (1, 2)
    ).to_json()
    rows = [good, {**good, "ranks": [1]}, {**good, "responses": 3}, {**good, "schema_version": 9}]
    rows.append({key: value for key, value in good.items() if key != "weight"})
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = import_data("preferences", str(path), tmp_path / "out", max_quarantined=1)
    assert (report.format, report.rows_out) == ("judgements", 1)
    assert report.by_reason == {"invalid_record": 2, "key_missing": 1, "wrong_type": 1}


def test_no_shard_is_left_of_an_import_that_failed(tmp_path: Path):
    rows = [Judgement(Prompt.from_text("p"), tuple(map(Response.from_text, "ab")), (1, 2))]
    write(tmp_path, rows * 3)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(DataError), record_sink(tmp_path, "preferences") as sink:
        sink.write(rows[0].to_json())
        raise DataError("no")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
