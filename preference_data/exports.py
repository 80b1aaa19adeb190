"""Judgements as what trainers, people and other services read. Views: nothing here is stored.

Rows are JSON objects. Prompts, completions, chosen and rejected are lists of messages, as TRL reads
them (https://huggingface.co/docs/trl/dataset_formats); it ignores the columns it does not know.
Of those, `split` is the side that the data's owner put a judgement on, null where on none: what is
on test or validation is not for training.
"""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, TextIO

import orjson

from preference_data.quarantine import DataError
from preference_data.records import Judgement, Message, Prompt, Response
from preference_data.splits import split as sides

Ties = Literal["drop", "both"]
Pairs = Literal["all", "adjacent", "best_worst"]
Side = Literal["all", "train", "test"]
RowOf = dict[str, Any]

View = Literal["preference", "listwise", "unpaired", "prompts", "demonstrations", "openai", "table"]
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the start of a formula (OWASP, CSV injection)."""

_STRICTEST = ("test", "validation", "train")


def preference_rows(
    judgements: Iterable[Judgement],
    *,
    ties: Ties = "drop",
    pairs: Pairs = "all",
    max_pairs_per_prompt: int | None = None,
    min_strength: float | None = None,
    seed: int = 0,
) -> Iterator[RowOf]:
    """One row a pair: prompt, chosen, rejected, target, weight, judgement_id, split.

    `target` is the probability that the chosen one is better: 1, the judgement's own, or 0.5 for a
    tie, which `ties` "both" gives in both orders, also inside a ranking (but not the losers of a
    best-of, which nobody compared). `pairs` of a ranking are all that differ in rank, those next
    to each other, or the best against the worst; "all" and "adjacent" come with every tied pair.
    The weights add up to the judgement's, where both orders of a tied pair count as one pair.
    `max_pairs_per_prompt` keeps a random choice by `seed`; `min_strength` drops judgements that
    are weaker, and keeps those that give no strength.
    """
    rows = (
        row
        for judgement in _votes(judgements)
        if min_strength is None or judgement.strength is None or judgement.strength >= min_strength
        for row in _pairs_of(judgement, ties, pairs)
    )
    return _capped(rows, max_pairs_per_prompt, seed) if max_pairs_per_prompt else rows


def listwise_rows(judgements: Iterable[Judgement]) -> Iterator[RowOf]:
    """Whole rankings: prompt, completions, ranks (1 = best, None = not ranked), weight, split."""
    for judgement in _votes(judgements):
        if any(rank is not None for rank in judgement.ranks):
            yield {
                "prompt": _messages(judgement.prompt),
                "completions": [_messages(response) for response in judgement.responses],
                "ranks": list(judgement.ranks),
                "weight": judgement.weight,
                "judgement_id": judgement.id,
                "split": judgement.split,
            }


def unpaired_rows(judgements: Iterable[Judgement], *, decided: bool = False) -> Iterator[RowOf]:
    """Single answers that are good or bad (KTO): prompt, completion, label, split.

    From thumbs, and from pairs of which both were called good or bad. `decided` also takes the
    winner of a pair as good and the loser as bad.
    """
    for judgement in judgements:
        if judgement.gold is None:
            labels = _thumbs(judgement, decided)
            for response, label in zip(judgement.responses, labels, strict=True):
                if label is not None:
                    yield {
                        "prompt": _messages(judgement.prompt),
                        "completion": _messages(response),
                        "label": label,
                        "split": judgement.split,
                    }


def prompt_rows(judgements: Iterable[Judgement]) -> Iterator[RowOf]:
    """Every different prompt once, in the order of its first judgement: prompt, split.

    A prompt with judgements on several sides is held out.
    """
    sides: defaultdict[Prompt, set[str | None]] = defaultdict(set)
    for judgement in judgements:
        if judgement.gold is None:
            sides[judgement.prompt].add(judgement.split)
    for prompt, on in sides.items():
        split = next((side for side in _STRICTEST if side in on), None)
        yield {"prompt": _messages(prompt), "split": split}


def demonstration_rows(judgements: Iterable[Judgement]) -> Iterator[RowOf]:
    """The answer that is ranked first alone, or has a thumb up: prompt, completion, split."""
    for judgement in judgements:
        best = [rank == 1 for rank in judgement.ranks]
        if judgement.kind == "binary":
            best = [judgement.scores == (1.0,)]
        if judgement.gold is None and sum(best) == 1:
            yield {
                "prompt": _messages(judgement.prompt),
                "completion": _messages(judgement.responses[best.index(True)]),
                "split": judgement.split,
            }


def openai_rows(judgements: Iterable[Judgement], *, pairs: Pairs = "all") -> Iterator[RowOf]:
    """Pairs as OpenAI's preference fine-tuning reads them, with no column beside theirs."""
    for row in preference_rows(judgements, pairs=pairs):
        yield {
            "input": {"messages": row["prompt"], "tools": [], "parallel_tool_calls": True},
            "preferred_output": row["chosen"],
            "non_preferred_output": row["rejected"],
        }


def table_rows(judgements: Iterable[Judgement], *, neutralise: bool = False) -> Iterator[RowOf]:
    """Flat rows for people, with the columns that an import knows where it can.

    Where all judgements are of two answers: prompt, response_a, response_b, label (A, B, tie,
    both_good, both_bad or unsure). Where all are thumbs: prompt, completion, label (up or down).
    Otherwise prompt, response_1.., rank_1.. for as many as the longest ranking has, and the label
    in a word (`Judgement.label`), which an import does not read beside ranks. After these come
    annotator, comment, criterion, split and judgement_id; and, if a judgement has them, strength,
    weight, probability, votes, duration, created_at, group, annotator_kind, and score_a.. or
    score_1... Conversations are flattened into text.

    A spreadsheet runs cells that begin with = + - @ as formulas; `neutralise` puts an apostrophe
    before them, which changes the text.
    """
    rows = [judgement for judgement in judgements if judgement.gold is None]
    cells_of = _layout(rows)
    rare = [name for name, usual in _RARE_FACTS.items() if _any_other(rows, name, usual)]
    for row in rows:
        cells = {"prompt": row.prompt.text, **cells_of(row)}
        cells |= {name: getattr(row, name) for name in (*_FACTS, *rare)}
        cells["judgement_id"] = row.id
        yield {key: _safe(cell) if neutralise else cell for key, cell in cells.items()}


_FACTS = ("annotator", "comment", "criterion", "split")
_RARE_FACTS: dict[str, object] = {
    "strength": None, "weight": 1.0, "probability": None, "votes": None, "duration": None,
    "created_at": None, "group": None, "annotator_kind": "human",
}  # fmt: skip
"""With what most judgements have there."""
_SIDES = {"first": "A", "second": "B"}


def _any_other(rows: Sequence[Judgement], name: str, usual: object) -> bool:
    return any(getattr(row, name) != usual for row in rows)


def _layout(rows: Sequence[Judgement]) -> Callable[[Judgement], RowOf]:
    """What gives each row its answers and its verdict, in the same columns for all."""
    scored = any(row.scores is not None for row in rows)
    if all(row.kind == "binary" for row in rows):
        return _thumb_cells
    if all(len(row.responses) == 2 for row in rows):
        return lambda row: _pair_cells(row, scored)
    most = max(len(row.responses) for row in rows)
    return lambda row: _ranking_cells(row, scored, most)


def _thumb_cells(row: Judgement) -> RowOf:
    return {"completion": row.responses[0].text, "label": "up" if row.label == "good" else "down"}


def _pair_cells(row: Judgement, scored: bool) -> RowOf:
    cells: RowOf = _numbered("response", [one.text for one in row.responses], "ab")
    cells["label"] = _SIDES.get(row.label, row.label)
    return cells | _numbered("score", row.scores or (), "ab" if scored else "")


def _ranking_cells(row: Judgement, scored: bool, most: int) -> RowOf:
    names = [str(place) for place in range(1, most + 1)]
    cells: RowOf = _numbered("response", [one.text for one in row.responses], names)
    cells |= _numbered("rank", row.ranks, names)
    cells["label"] = row.label
    return cells | _numbered("score", row.scores or (), names if scored else ())


def _numbered(what: str, values: Sequence[object], names: Sequence[str]) -> RowOf:
    """One cell a name, empty where there are fewer values."""
    return {f"{what}_{name}": value for name, value in zip_longest(names, values[: len(names)])}


_VIEWS: dict[View, tuple[Callable[..., Iterator[RowOf]], tuple[str, ...]]] = {
    "preference": (
        preference_rows,
        ("ties", "pairs", "max_pairs_per_prompt", "min_strength", "seed"),
    ),
    "listwise": (listwise_rows, ()),
    "unpaired": (unpaired_rows, ("decided",)),
    "prompts": (prompt_rows, ()),
    "demonstrations": (demonstration_rows, ()),
    "openai": (openai_rows, ("pairs",)),
    "table": (table_rows, ("neutralise",)),
}
_UNSET = {"ties": "drop", "pairs": "all"}


def rows_of(
    view: View,
    judgements: Iterable[Judgement],
    options: Mapping[str, Any],
    split: Side | None = None,
) -> Iterator[RowOf]:
    """The rows of a view by its name, of one side or, if `split` is not given, of all.

    `split` "train" leaves out what is held out, "test" leaves out the rest; a judgement without a
    side of its own follows those that begin with the same user turn. Raises DataError for an
    option that has no effect on the view, and where held-out judgements would become rows that
    cannot say so.
    """
    make, used = _VIEWS[view]
    for name, value in options.items():
        if name not in used and value not in (None, False, _UNSET.get(name)):
            fitting = [other for other, (_, uses) in _VIEWS.items() if name in uses]
            raise DataError(f"{name} has no effect on {view}, only on {', '.join(fitting)}.")
    if split in ("train", "test"):
        judgements = sides(judgements, 0.0)[split == "test"]
    elif split is None and view == "openai":
        judgements = _none_held_out(judgements)
    return make(judgements, **{name: options[name] for name in used if name in options})


def _none_held_out(judgements: Iterable[Judgement]) -> Iterator[Judgement]:
    for judgement in judgements:
        if judgement.split in ("validation", "test"):
            raise DataError(
                "Some judgements are held out, and the rows of openai have no column to say so. "
                "Leave them out with --split train, or take them with --split all."
            )
        yield judgement


class HeldOut:
    """Rows on their way; `rows` counts those on the validation or the test side."""

    def __init__(self, rows: Iterable[RowOf]) -> None:
        self._rows = rows
        self.rows = 0

    def __iter__(self) -> Iterator[RowOf]:
        for row in self._rows:
            self.rows += row.get("split") in ("validation", "test")
            yield row


def write_rows(rows: Iterable[RowOf], path: Path) -> int:
    """Writes .jsonl, .csv (with a byte order mark, for Excel) or .parquet; returns the number of
    rows.

    Raises DataError for another suffix, or if there is no row.
    """
    writers: dict[str, Callable[[Iterator[RowOf], Path], int]] = {
        ".jsonl": _write_json_lines, ".csv": _write_csv, ".parquet": _write_parquet,
    }  # fmt: skip
    if path.suffix not in writers:
        raise DataError(f"{path} is to end in {', '.join(writers)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        count = writers[path.suffix](iter(rows), partial)
        if not count:
            raise DataError(f"There is nothing to write into {path}: no judgement has such a row.")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def _votes(judgements: Iterable[Judgement]) -> Iterator[Judgement]:
    return (j for j in judgements if len(j.responses) > 1 and j.gold is None)


def _pairs_of(judgement: Judgement, ties: Ties, pairs: Pairs) -> list[RowOf]:
    found = [(a, b, _target(judgement, a), 1.0) for a, b in _ranked_pairs(judgement.ranks, pairs)]
    if ties == "both" and judgement.kind != "best_of":
        # Each order is half a pair.
        found += [(a, b, 0.5, 0.5) for a, b in _tied_pairs(judgement.ranks, pairs)]
    count = sum(share for *_, share in found)
    prompt = _messages(judgement.prompt)
    return [
        {
            "prompt": prompt,
            "chosen": _messages(judgement.responses[a]),
            "rejected": _messages(judgement.responses[b]),
            "target": target,
            "weight": judgement.weight * share / count,
            "judgement_id": judgement.id,
            "split": judgement.split,
        }
        for a, b, target, share in found
    ]


def _tied_pairs(ranks: Sequence[int | None], pairs: Pairs) -> list[tuple[int, int]]:
    """Places of equal rank, in both orders; the best is the worst only where all are tied."""
    if pairs == "best_worst" and len({rank for rank in ranks if rank is not None}) > 1:
        return []
    places = range(len(ranks))
    return [(a, b) for a in places for b in places if a != b and ranks[a] == ranks[b] is not None]


def _ranked_pairs(ranks: Sequence[int | None], pairs: Pairs) -> list[tuple[int, int]]:
    """(better, worse) places."""
    levels = sorted({rank for rank in ranks if rank is not None})
    if pairs == "best_worst":
        levels = [levels[0], levels[-1]] if len(levels) > 1 else []
    step = {level: number for number, level in enumerate(levels)}
    return [
        (a, b)
        for a, first in enumerate(ranks)
        for b, second in enumerate(ranks)
        if first in step
        and second in step
        and step[first] < step[second]
        and (pairs != "adjacent" or step[second] - step[first] == 1)
    ]


def _target(judgement: Judgement, chosen: int) -> float:
    if judgement.probability is None:
        return 1.0
    return judgement.probability if chosen == 0 else 1.0 - judgement.probability


def _capped(rows: Iterable[RowOf], most: int, seed: int) -> Iterator[RowOf]:
    """The rows of each prompt that come first in an order drawn from the seed."""
    by_prompt: defaultdict[bytes, list[tuple[bytes, int]]] = defaultdict(list)
    every = list(rows)
    for number, row in enumerate(every):
        key = f"{seed} {row['judgement_id']} {number}".encode()
        draw = hashlib.sha256(key).digest()
        by_prompt[orjson.dumps(row["prompt"])].append((draw, number))
    kept = {number for found in by_prompt.values() for _, number in sorted(found)[:most]}
    return (row for number, row in enumerate(every) if number in kept)


def _thumbs(judgement: Judgement, decided: bool) -> list[bool | None]:
    if judgement.kind == "binary":
        return [judgement.scores == (1.0,)]
    if judgement.outcome in ("both_good", "both_bad"):
        return [judgement.outcome == "both_good"] * len(judgement.responses)
    if decided and sorted(judgement.ranks, key=str) == [1, 2]:
        return [rank == 1 for rank in judgement.ranks]
    return [None] * len(judgement.responses)


def _messages(turns: Prompt | Response) -> list[dict[str, str]]:
    messages: tuple[Message, ...] = turns.messages
    return [message.to_json() for message in messages]


def _safe(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA_STARTS) else cell


def _write_json_lines(rows: Iterator[RowOf], path: Path) -> int:
    count = 0
    with open(path, "wb") as stream:
        for row in rows:
            stream.write(orjson.dumps(row) + b"\n")
            count += 1
    return count


def _write_csv(rows: Iterator[RowOf], path: Path) -> int:
    count = 0
    with open(path, "w", encoding="utf-8-sig", newline="") as stream:
        for row in rows:
            if not count:
                csv.writer(stream).writerow(row)
            _write_cells(stream, row)
            count += 1
    return count


def _write_cells(stream: TextIO, row: Mapping[str, object]) -> None:
    # Lists have no cell of their own, so they are written as JSON.
    cells = [
        orjson.dumps(cell).decode() if isinstance(cell, list | dict) else cell
        for cell in row.values()
    ]
    csv.writer(stream).writerow(cells)


def _write_parquet(rows: Iterator[RowOf], path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet

    table = pa.Table.from_pylist(list(rows))
    pyarrow.parquet.write_table(table, path, compression="zstd")
    return table.num_rows
