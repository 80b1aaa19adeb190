"""Judgements as what trainers, people and other services read. Views: nothing here is stored.

Rows are JSON objects. Prompts, completions, chosen and rejected are lists of messages, as TRL reads
them (https://huggingface.co/docs/trl/dataset_formats); it ignores the columns it does not know.
"""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

import orjson

from preference_data.quarantine import DataError
from preference_data.records import Judgement, Message, Prompt, Response

Ties = Literal["drop", "both"]
Pairs = Literal["all", "adjacent", "best_worst"]
RowOf = dict[str, Any]

View = Literal["preference", "listwise", "unpaired", "prompts", "demonstrations", "openai", "table"]
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the start of a formula (OWASP, CSV injection)."""


def preference_rows(
    judgements: Iterable[Judgement],
    *,
    ties: Ties = "drop",
    pairs: Pairs = "all",
    max_pairs_per_prompt: int | None = None,
    min_strength: float | None = None,
    seed: int = 0,
) -> Iterator[RowOf]:
    """Chosen and rejected, one row a pair: prompt, chosen, rejected, target, weight, judgement_id.

    `target` is the probability that the chosen one is better: 1, the judgement's own, or 0.5 for a
    tie, which `ties` "both" gives in both orders. `pairs` of a ranking are all that differ in
    rank, those next to each other, or the best against the worst; their weights add up to the
    judgement's. `max_pairs_per_prompt` keeps a random choice by `seed`; `min_strength` drops
    judgements that are weaker, and keeps those that give no strength.
    """
    rows = (
        row
        for judgement in _votes(judgements)
        if min_strength is None or judgement.strength is None or judgement.strength >= min_strength
        for row in _pairs_of(judgement, ties, pairs)
    )
    return _capped(rows, max_pairs_per_prompt, seed) if max_pairs_per_prompt else rows


def listwise_rows(judgements: Iterable[Judgement]) -> Iterator[RowOf]:
    """Whole rankings: prompt, completions, ranks (1 = best, None = not ranked), weight."""
    for judgement in _votes(judgements):
        if any(rank is not None for rank in judgement.ranks):
            yield {
                "prompt": _messages(judgement.prompt),
                "completions": [_messages(response) for response in judgement.responses],
                "ranks": list(judgement.ranks),
                "weight": judgement.weight,
                "judgement_id": judgement.id,
            }


def unpaired_rows(judgements: Iterable[Judgement], *, decided: bool = False) -> Iterator[RowOf]:
    """Single answers that are good or bad (KTO): prompt, completion, label.

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
                    }


def prompt_rows(judgements: Iterable[Judgement]) -> Iterator[RowOf]:
    """Every different prompt once, in the order of its first judgement."""
    for prompt in dict.fromkeys(judgement.prompt for judgement in judgements):
        yield {"prompt": _messages(prompt)}


def demonstration_rows(judgements: Iterable[Judgement]) -> Iterator[RowOf]:
    """The answer that is ranked first alone, or has a thumb up: prompt, completion."""
    for judgement in judgements:
        best = [rank == 1 for rank in judgement.ranks]
        if judgement.kind == "binary":
            best = [judgement.scores == (1.0,)]
        if judgement.gold is None and sum(best) == 1:
            yield {
                "prompt": _messages(judgement.prompt),
                "completion": _messages(judgement.responses[best.index(True)]),
            }


def openai_rows(judgements: Iterable[Judgement], *, pairs: Pairs = "all") -> Iterator[RowOf]:
    """Pairs as OpenAI's preference fine-tuning reads them."""
    for row in preference_rows(judgements, pairs=pairs):
        yield {
            "input": {"messages": row["prompt"], "tools": [], "parallel_tool_calls": True},
            "preferred_output": row["chosen"],
            "non_preferred_output": row["rejected"],
        }


def table_rows(judgements: Iterable[Judgement], *, neutralise: bool = False) -> Iterator[RowOf]:
    """Flat rows for people: prompt, response_1.., rank_1.., outcome, annotator, strength, comment.

    All rows have the columns of the longest ranking. A spreadsheet runs cells that begin with
    = + - @ as formulas; `neutralise` puts an apostrophe before them, which changes the text.
    """
    rows = [judgement for judgement in judgements if judgement.gold is None]
    places = range(max((len(row.responses) for row in rows), default=0))
    for row in rows:
        cells: RowOf = {"prompt": row.prompt.text}
        for i in places:
            there = i < len(row.responses)
            cells[f"response_{i + 1}"] = row.responses[i].text if there else ""
        for i in places:
            cells[f"rank_{i + 1}"] = row.ranks[i] if i < len(row.responses) else None
        cells |= {
            "outcome": row.outcome, "annotator": row.annotator, "strength": row.strength,
            "comment": row.comment, "judgement_id": row.id,
        }  # fmt: skip
        yield {key: _safe(cell) if neutralise else cell for key, cell in cells.items()}


_VIEWS: dict[View, tuple[Callable[..., Iterator[RowOf]], tuple[str, ...]]] = {
    "preference": (preference_rows, ("ties", "pairs", "max_pairs_per_prompt")),
    "listwise": (listwise_rows, ()),
    "unpaired": (unpaired_rows, ("decided",)),
    "prompts": (prompt_rows, ()),
    "demonstrations": (demonstration_rows, ()),
    "openai": (openai_rows, ("pairs",)),
    "table": (table_rows, ("neutralise",)),
}
_UNSET = {"ties": "drop", "pairs": "all"}


def rows_of(
    view: View, judgements: Iterable[Judgement], options: Mapping[str, Any]
) -> Iterator[RowOf]:
    """The rows of a view by its name. Raises DataError for an option that has no effect on it."""
    make, used = _VIEWS[view]
    for name, value in options.items():
        if name not in used and value not in (None, False, _UNSET.get(name)):
            fitting = [other for other, (_, uses) in _VIEWS.items() if name in uses]
            raise DataError(f"{name} has no effect on {view}, only on {', '.join(fitting)}.")
    return make(judgements, **{name: options[name] for name in used if name in options})


def write_rows(rows: Iterable[RowOf], path: Path) -> int:
    """Writes .jsonl, .csv or .parquet; returns the number of rows.

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
    if judgement.is_tie:
        found = [(a, b, 0.5) for a, b in _orders(judgement)] if ties == "both" else []
    else:
        found = [(a, b, _target(judgement, a)) for a, b in _ranked_pairs(judgement.ranks, pairs)]
    prompt = _messages(judgement.prompt)
    return [
        {
            "prompt": prompt,
            "chosen": _messages(judgement.responses[a]),
            "rejected": _messages(judgement.responses[b]),
            "target": target,
            "weight": judgement.weight / len(found),
            "judgement_id": judgement.id,
        }
        for a, b, target in found
    ]


def _orders(judgement: Judgement) -> list[tuple[int, int]]:
    places = range(len(judgement.responses))
    return [(a, b) for a in places for b in places if a != b]


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
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def _write_json_lines(rows: Iterator[RowOf], path: Path) -> int:
    count = 0
    with open(path, "wb") as stream:
        for row in rows:
            stream.write(orjson.dumps(row) + b"\n")
            count += 1
    return count


def _write_csv(rows: Iterator[RowOf], path: Path) -> int:
    count = 0
    with open(path, "w", encoding="utf-8", newline="") as stream:
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
