"""Every format that can be read, and how an unnamed one is recognised."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from preference_data.quarantine import DataError, Rejected
from preference_data.sources.carriers import read_rows
from preference_data.sources.carriers.files import Reading, find_files, passed_over
from preference_data.sources.carriers.rows import Row, convert_rows
from preference_data.sources.columns.label_tables import read_label_table
from preference_data.sources.finishing import Finishing
from preference_data.sources.readers import (
    alpaca,
    arena,
    argilla,
    crowds,
    fine_grained,
    helpsteer,
    hh,
    judgements,
    label_studio,
    oasst,
    openai_files,
    pandalm,
    prodigy,
    rank_lists,
    safe_rlhf,
    shp,
    thumbs,
    trl,
    ultrafeedback,
    webgpt,
)
from preference_data.sources.tally import Record

Kind = Literal["preferences", "demonstrations", "prompts", "text"]
Rows = Iterator[Row | Rejected]
Records = tuple[Record, ...]
"""What one row holds: one record, or several (two criteria, three annotators)."""
Reader = Callable[[Rows, Reading], Iterator[Records | Rejected]]


@dataclass(frozen=True, slots=True)
class Format:
    """What a format's rows can be read as, and whether a row looks like one of its own."""

    readers: Mapping[Kind, Reader]
    recognises: Callable[[Mapping[str, object]], bool] | None = None
    """None: whatever no other format recognises; its errors then say what is missing."""
    uses_columns: bool = False
    """Whether a mapping of columns may be given with it."""


def row_by_row(convert: Callable[[Row], Record]) -> Reader:
    """The reader of a format in which each row is one record, whatever the rest says."""
    return lambda rows, reading: convert_rows(rows, lambda row: (convert(row),))


def several_a_row(convert: Callable[[Row], tuple[Record, ...]]) -> Reader:
    """The reader of a format whose rows hold several records each."""
    return lambda rows, reading: convert_rows(rows, convert)


# No two of one kind may recognise the same row: `sniff` refuses what it cannot tell apart.
FORMATS: dict[str, Format] = {
    "hh": Format(
        {
            "preferences": row_by_row(hh.judgement),
            "demonstrations": row_by_row(hh.demonstration),
            "prompts": row_by_row(hh.prompt),
            "text": row_by_row(hh.text),
        },
        hh.recognises,
    ),
    "oasst": Format(
        {
            "preferences": oasst.read_judgements,
            "demonstrations": oasst.read_demonstrations,
            "prompts": oasst.read_prompts,
        },
        oasst.recognises,
    ),
    "ultrafeedback": Format(
        {
            "preferences": several_a_row(ultrafeedback.judgements),
            "prompts": row_by_row(ultrafeedback.prompt),
        },
        ultrafeedback.recognises,
    ),
    "helpsteer": Format({"preferences": helpsteer.read_ratings}, helpsteer.recognises_ratings),
    "helpsteer_preference": Format(
        {"preferences": helpsteer.read_preferences}, helpsteer.recognises_preferences
    ),
    "fine_grained": Format(
        {"preferences": several_a_row(fine_grained.judgements)}, fine_grained.recognises
    ),
    "imagereward": Format(
        {"preferences": several_a_row(rank_lists.imagereward)}, rank_lists.recognises_imagereward
    ),
    "nectar": Format(
        {"preferences": several_a_row(rank_lists.nectar)}, rank_lists.recognises_nectar
    ),
    "nemo_rl": Format(
        {"preferences": several_a_row(rank_lists.nemo_rl)}, rank_lists.recognises_nemo_rl
    ),
    "arena": Format({"preferences": arena.read_table}, arena.recognises_table),
    "arena_conversations": Format(
        {"preferences": row_by_row(arena.conversation_judgement)}, arena.recognises_conversations
    ),
    "mt_bench": Format(
        {"preferences": row_by_row(arena.mt_bench_judgement)}, arena.recognises_mt_bench
    ),
    "openai_summaries": Format(
        {"preferences": row_by_row(openai_files.summary_judgement)},
        openai_files.recognises_summaries,
    ),
    "openai_summary_ratings": Format(
        {"preferences": several_a_row(openai_files.summary_ratings)},
        openai_files.recognises_summary_ratings,
    ),
    "openai_preferences": Format(
        {"preferences": openai_files.read_preferences}, openai_files.recognises_preferences
    ),
    "webgpt": Format({"preferences": row_by_row(webgpt.judgement)}, webgpt.recognises),
    "shp": Format({"preferences": row_by_row(shp.judgement)}, shp.recognises),
    "safe_rlhf": Format({"preferences": several_a_row(safe_rlhf.judgements)}, safe_rlhf.recognises),
    "alpaca": Format({"preferences": alpaca.read_annotations}, alpaca.recognises),
    "pandalm": Format({"preferences": pandalm.read_votes}, pandalm.recognises),
    "thumbs": Format({"preferences": row_by_row(thumbs.judgement)}, thumbs.recognises),
    "mturk": Format({"preferences": crowds.read_mturk}, crowds.recognises_mturk, uses_columns=True),
    "crowdflower": Format(
        {"preferences": crowds.read_crowdflower}, crowds.recognises_crowdflower, uses_columns=True
    ),
    "toloka": Format(
        {"preferences": crowds.read_toloka}, crowds.recognises_toloka, uses_columns=True
    ),
    "label_studio": Format(
        {"preferences": label_studio.read}, label_studio.recognises, uses_columns=True
    ),
    "argilla": Format({"preferences": argilla.read}, argilla.recognises, uses_columns=True),
    "prodigy": Format({"preferences": row_by_row(prodigy.judgement)}, prodigy.recognises),
    "judgements": Format({"preferences": row_by_row(judgements.judgement)}, judgements.recognises),
    "trl": Format({"preferences": trl.read_pairs}, trl.recognises),
    "table": Format({"preferences": read_label_table}, uses_columns=True),
    "demonstrations": Format({"demonstrations": row_by_row(trl.demonstration)}),
    "prompts": Format({"prompts": row_by_row(trl.prompt)}),
    "text": Format({"text": row_by_row(trl.text)}),
}


def sniff(path: str, kind: Kind, reading: Reading | None = None) -> str:
    """The name of the format of the first readable row, among those that hold `kind`.

    Raises DataError for a missing or empty file, and where two formats recognise the row.
    """
    rows = read_rows(find_files(path), reading or Reading())
    # A few broken rows may open a file; where all are broken, any format says so.
    first = next((row for row in rows if isinstance(row, Row)), None)
    fitting = {name: format for name, format in FORMATS.items() if kind in format.readers}
    found = [
        name
        for name, format in fitting.items()
        if first and format.recognises and format.recognises(first.values)
    ]
    if len(found) > 1:
        raise DataError(
            f"{path} looks like {' and like '.join(found)}. Say which it is with the format option."
        )
    return found[0] if found else next(n for n, f in fitting.items() if f.recognises is None)


def read_records(
    path: str,
    kind: Kind,
    format: str,
    reading: Reading,
    finishing: Finishing | None = None,
) -> tuple[str, Iterator[Records | Rejected]]:
    """The format's name and one thing for each row of the data: its records or a reject.

    `format` "auto" takes what `sniff` finds, or "table" if that does not read the columns that
    are mapped. Raises
    DataError for a missing or empty file, a format that is unknown or does not hold `kind`, and
    a mapping that the format does not use.
    """
    if format == "auto":
        format = sniff(path, kind, reading)
        if reading.columns and not FORMATS[format].uses_columns:
            format = "table"
    reader = _reader(kind, format)
    if reading.columns and not FORMATS[format].uses_columns:
        raise DataError(f"columns has no effect on the format {format!r}. Leave one of them out.")
    if unread := passed_over(path):
        names = ", ".join(str(file.relative_to(Path(path).expanduser())) for file in unread[:5])
        more = f" and {len(unread) - 5} more" if len(unread) > 5 else ""
        reading.note(f"Not read, beside the other files of {path}: {names}{more}.")
    rows = read_rows(find_files(path), reading)
    if finishing is None or finishing.does_nothing:
        return format, reader(rows, reading)
    return format, finishing.finish(reader(finishing.watch(rows), reading))


def _reader(kind: Kind, format: str) -> Reader:
    if format not in FORMATS:
        nearest = get_close_matches(format, FORMATS, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise DataError(f"{format!r} is no format; there are auto, {', '.join(FORMATS)}.{hint}")
    reader = FORMATS[format].readers.get(kind)
    if reader is None:
        fitting = [name for name, known in FORMATS.items() if kind in known.readers]
        raise DataError(f"The format {format!r} holds no {kind}; {', '.join(fitting)} can.")
    return reader
