"""AlpacaFarm's and AlpacaEval's annotations: an instruction, two outputs and a preference.

https://github.com/tatsu-lab/alpaca_eval. The preference counts from 1: it is 1 plus the
probability that the second output is the better one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from preference_data.quarantine import Rejected, RowFault, SetAside
from preference_data.records import AnnotatorKind, Judgement, Prompt
from preference_data.sources.carriers.files import Reading
from preference_data.sources.carriers.rows import Row, convert_rows
from preference_data.sources.cells import short_text_of, text_of
from preference_data.sources.columns.mapping import Verdict
from preference_data.sources.readers.pairs import ranks_of, response_by
from preference_data.sources.readers.ratings import number_of


def recognises(values: Mapping[str, object]) -> bool:
    """The instruction, two numbered outputs and the preference."""
    return values.keys() >= {"instruction", "output_1", "output_2", "preference"}


def read_annotations(
    rows: Iterator[Row | Rejected], reading: Reading
) -> Iterator[tuple[Judgement, ...] | Rejected]:
    """One judgement a row: 1 and 2 name the better output, 1.5 and 0 (in old files) are ties.

    Any other number from 1 to 2 is a soft label and gives the probability, too.
    """
    return convert_rows(rows, lambda row: (_judgement(row, reading),))


def instruction_of(values: Mapping[str, object]) -> Prompt:
    """The instruction, and after a blank line the input; one of them alone if that is all."""
    parts = [text_of(values, name) for name in ("instruction", "input")]
    said = [part for part in parts if part.strip()]
    if not said:
        raise RowFault("empty_prompt", "instruction is empty.")
    return Prompt.from_text("\n\n".join(said))


def _judgement(row: Row, reading: Reading) -> Judgement:
    values = row.values
    preference = number_of(values, "preference")
    if preference is None:
        raise SetAside("not_annotated", "preference is empty: nobody judged the two outputs.")
    if not (preference == 0 or 1 <= preference <= 2):
        raise RowFault("label_unknown", f"preference is {preference:g}, not 0 or from 1 to 2.")
    responses = (
        response_by(values, "output_1", short_text_of(values, "generator_1")),
        response_by(values, "output_2", short_text_of(values, "generator_2")),
    )
    ranks, outcome = ranks_of(_verdict(preference), responses)
    soft = preference not in (0, 1, 1.5, 2)
    annotator, kind = _annotator(row, reading)
    return Judgement(
        prompt=instruction_of(values),
        responses=responses,
        ranks=ranks,
        annotator=annotator,
        outcome=outcome,
        strength=abs(2 * preference - 3) if soft else None,
        annotator_kind=kind,
        scale="1..2" if soft else None,
        probability=2 - preference if soft else None,
        duration=number_of(values, "time_per_example"),
        source=row.source("alpaca"),
    )


def _verdict(preference: float) -> Verdict:
    if preference in (0, 1.5):
        return "tie"
    return "first" if preference < 1.5 else "second"


def _annotator(row: Row, reading: Reading) -> tuple[str | None, AnnotatorKind]:
    """People have an `annotator_index`, and configurations of a judging model a name."""
    person = short_text_of(row.values, "annotator_index")
    judge = short_text_of(row.values, "annotator")
    if person is not None:
        return person, "human"
    if judge is not None:
        return judge, "human" if judge.startswith("human") else "model"
    if "raw_preference" not in row.values:  # AlpacaFarm has this column for its people only
        reading.note(f"{row.file} does not say who judged; its judgements are taken for people's.")
    return None, "human"
