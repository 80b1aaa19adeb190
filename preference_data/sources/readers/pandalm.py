"""PandaLM's test set: an instruction, two answers, and the verdicts of three annotators.

https://github.com/WeOpenML/PandaLM. Each verdict counts as a row, so that one that cannot be
used does not take the others with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from preference_data.quarantine import Rejected, RowFault, SetAside
from preference_data.records import Judgement
from preference_data.sources.carriers.files import Reading
from preference_data.sources.carriers.rows import Row, convert_rows
from preference_data.sources.cells import short_text_of
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
    return convert_rows(_one_annotator_each(rows), lambda row: (_judgement(row),))


def _one_annotator_each(rows: Iterator[Row | Rejected]) -> Iterator[Row | Rejected]:
    for row in rows:
        annotators = [] if isinstance(row, Rejected) else _annotators(row.values)
        if isinstance(row, Rejected) or not annotators:
            yield row
            continue
        common = {name: row.values[name] for name in row.values if name not in annotators}
        for annotator in annotators:
            yield replace(row, values={**common, annotator: row.values[annotator]})


def _judgement(row: Row) -> Judgement:
    values = row.values
    annotators = _annotators(values)
    if not annotators:
        raise RowFault("label_missing", "there is no column annotator1.")
    (annotator,) = annotators
    if values[annotator] in (None, ""):
        raise SetAside("not_annotated", f"{annotator} is empty.")
    first, second = _models(values)
    responses = (response_by(values, "response1", first), response_by(values, "response2", second))
    ranks, outcome = ranks_of(verdict_of(values, annotator, _MEANINGS), responses)
    return Judgement(
        prompt=instruction_of(values),
        responses=responses,
        ranks=ranks,
        annotator=annotator,
        outcome=outcome,
        source=row.source("pandalm"),
    )


def _annotators(values: Mapping[str, object]) -> list[str]:
    return [name for name in values if re.fullmatch(r"annotator[0-9]+", name)]


def _models(values: Mapping[str, object]) -> tuple[str | None, str | None]:
    """The two names of `cmp_key`, as in "bloom-7b_llama-7b"."""
    names = (short_text_of(values, "cmp_key") or "").split("_")
    return (names[0], names[1]) if len(names) == 2 else (None, None)
