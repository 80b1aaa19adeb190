"""Logs of thumbs: a prompt, one answer, and whether the user liked it, as KTO trains on.

https://huggingface.co/docs/trl/dataset_formats#unpaired-preference.
"""

from __future__ import annotations

from collections.abc import Mapping

from preference_data.quarantine import DataError, RowFault, SetAside
from preference_data.records import Judgement
from preference_data.sources.carriers.rows import Row
from preference_data.sources.cells import prompt_of, response_of, short_text_of
from preference_data.sources.columns.headers import check_columns
from preference_data.sources.readers.annotation_tasks import annotator_of
from preference_data.sources.readers.ratings import number_of

_UP = {"true", "up", "thumbs up", "thumb up", "👍"}
_DOWN = {"false", "down", "thumbs down", "thumb down", "👎"}


def recognises(values: Mapping[str, object]) -> bool:
    """The prompt, one completion and the label."""
    return values.keys() >= {"prompt", "completion", "label"}


def judgement(row: Row) -> Judgement:
    """Of one answer, with the score 1 for a thumb up and 0 for a thumb down.

    Columns of other names, or numbers, are a table's, whose mapping says `responses: [answer]`,
    `label: rating` and `thumbs: {"1": up, "0": down}`. Raises SetAside where nobody voted, and
    DataError for a number other than 1 and -1, which shows that the file's numbers mean something
    else.
    """
    check_columns(row, "prompt", "completion")
    return Judgement(
        prompt=prompt_of(row.values, "prompt"),
        responses=(response_of(row.values, "completion"),),
        ranks=(None,),
        annotator=annotator_of(row.values.get("annotator")),
        comment=short_text_of(row.values, "comment"),
        source=row.source("thumbs"),
        kind="binary",
        scores=(1.0 if _is_up(row) else 0.0,),
    )


def _is_up(row: Row) -> bool:
    label = row.values.get("label")
    word = "" if label is None else str(label).strip().casefold().replace("_", " ")
    if word in _UP | _DOWN:
        return word in _UP
    try:
        number = number_of(row.values, "label")
    except RowFault:
        raise RowFault(
            "label_unknown",
            f"the label {label!r:.60} is not one of true, false, up, down, thumbs up, thumbs down, "
            "1, -1.",
        ) from None
    if number is None:
        raise SetAside("no_vote", "label is empty: nobody voted.")
    if number not in (1, -1):
        raise DataError(
            f"{row.file}, row {row.row} (line {row.line}): the label {label!r:.60} has no agreed "
            "meaning. Write true for a thumb up and false for a thumb down, or say what it means "
            "with columns: {responses: [completion], thumbs: {…: up, …: down}} and no format."
        )
    return number == 1
