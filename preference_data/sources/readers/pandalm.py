"""PandaLM's test set: an instruction, two answers, and the verdicts of three annotators.

https://github.com/WeOpenML/PandaLM. Each verdict counts as a row, so that one that cannot be
used does not take the others with it. An item whose own text cannot be used is one row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

from preference_data.quarantine import Rejected, RowFault, SetAside
from preference_data.records import Judgement, Prompt, Response
from preference_data.sources.carriers.files import Reading
from preference_data.sources.carriers.rows import Row, convert_rows
from preference_data.sources.cells import is_blank, short_text_of
from preference_data.sources.columns.mapping import Verdict
from preference_data.sources.readers.alpaca import instruction_of
from preference_data.sources.readers.pairs import ranks_of, response_by, verdict_of

_MEANINGS: dict[float, Verdict] = {1: "first", 2: "second", 0: "tie"}


def recognises(values: Mapping[str, object]) -> bool:
    """The instruction, two numbered responses and the first annotator's verdict."""
    return values.keys() >= {"instruction", "response1", "response2", "annotator1"}


def read_votes(
    rows: Iterator[Row | Rejected], reading: Reading
) -> Iterator[tuple[Judgement, ...] | Rejected]:
    """One judgement for each annotator of an item: 1 and 2 name the better answer, 0 is a tie."""
    for found in convert_rows(rows, lambda row: (_item(row),)):
        if isinstance(found, Rejected):
            yield found
            continue
        (item,) = found
        yield from convert_rows(iter(item.votes), partial(_judgement, item))


@dataclass(frozen=True, slots=True)
class _Item:
    """What the annotators of an item share, and a row for each of them."""

    prompt: Prompt
    responses: tuple[Response, Response]
    votes: tuple[Row, ...]


def _item(row: Row) -> _Item:
    """Raises RowFault for an item that nobody could have judged."""
    values = row.values
    annotators = _annotators(values)
    if not annotators:
        raise RowFault("label_missing", "there is no column annotator1.")
    first, second = _models(values)
    responses = (response_by(values, "response1", first), response_by(values, "response2", second))
    common = {name: values[name] for name in values if name not in annotators}
    votes = (replace(row, values={**common, name: values[name]}) for name in annotators)
    return _Item(instruction_of(values), responses, tuple(votes))


def _judgement(item: _Item, row: Row) -> tuple[Judgement]:
    (annotator,) = _annotators(row.values)
    if is_blank(row.values[annotator]):
        raise SetAside("not_annotated", f"{annotator} is empty.")
    verdict = verdict_of(row.values, annotator, _MEANINGS)
    ranks, outcome = ranks_of(verdict, item.responses)
    judgement = Judgement(
        prompt=item.prompt,
        responses=item.responses,
        ranks=ranks,
        annotator=annotator,
        outcome=outcome,
        source=row.source("pandalm"),
    )
    return (judgement,)


def _annotators(values: Mapping[str, object]) -> list[str]:
    return [name for name in values if re.fullmatch(r"annotator[0-9]+", name)]


def _models(values: Mapping[str, object]) -> tuple[str | None, str | None]:
    """The two names of `cmp_key`, as in "bloom-7b_llama-7b"."""
    names = (short_text_of(values, "cmp_key") or "").split("_")
    return (names[0], names[1]) if len(names) == 2 else (None, None)
