"""From a file as it was found to a data folder with every row accounted for."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import orjson

from preference_data.counts import counted, verb
from preference_data.quarantine import DataError, Quarantine, Rejected, reasons_in_words
from preference_data.records import SCHEMA_VERSION, Judgement
from preference_data.sources.carriers.files import Reading, content_hash, find_files
from preference_data.sources.columns.mapping import Columns
from preference_data.sources.finishing import Finishing, PersonalData
from preference_data.sources.formats import Kind, Records, read_records
from preference_data.sources.segments import NotSplittable, convert_table, splittable
from preference_data.sources.store import (
    FAILED_FILE,
    IMPORT_FILE,
    QUARANTINE_FILE,
    RecordSink,
    record_sink,
    whole_or_absent,
)
from preference_data.sources.tally import Advance, Tally, unwatched

MAX_QUARANTINED = 0.05
WATCHED_ROWS = 1000
"""Rows between two words to who waits."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ImportReport:
    """One import in numbers: `rows_in` = `rows_out` + `rows_quarantined`, always.

    A row of some formats holds several records (two criteria, three annotators): `records` counts
    those, and `by_label`, `by_k` and `by_annotator` count records, too. `by_reason` counts the
    quarantined rows. `by_label` counts first, second, tie, both_good, both_bad, unsure; of more
    than two answers ranking, ranking_with_ties or best_of; of one answer good, bad or rating.
    """

    kind: Kind
    format: str
    source: str
    files: list[str]
    sha256: str
    limit: int | None
    rows_in: int
    rows_out: int
    rows_quarantined: int
    records: int
    by_reason: dict[str, int]
    by_label: dict[str, int]
    by_k: dict[str, int]
    by_annotator: dict[str, int]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}


Way = Callable[[RecordSink, Quarantine], Tally]
"""Writes all records and rejects, and counts them."""


class _Unusable(DataError):
    """Too little of the data can be used; apart, since the quarantine file is then kept."""


def import_data(
    kind: Kind,
    path: str,
    output_dir: Path,
    *,
    format: str = "auto",
    columns: Columns | None = None,
    limit: int | None = None,
    max_quarantined: float = MAX_QUARANTINED,
    encoding: str | None = None,
    delimiter: str | None = None,
    keep_raw: bool = False,
    personal_data: PersonalData = "keep",
    pseudonym_key: bytes | None = None,
    advance: Advance = unwatched,
) -> ImportReport:
    """Reads a file, a glob or a folder into `output_dir`; each file there is whole or absent.

    Writes the records (judgements.jsonl with its twin in Parquet shards, demonstrations.jsonl,
    prompts.jsonl or text.jsonl), quarantine.jsonl, and last import.json, the report. `limit` takes
    the first rows; `max_quarantined` is the share of them that may be rejected, not counting those
    that say themselves that they do not count. `keep_raw` keeps each judgement's row as JSON;
    `personal_data` "mask" or "drop" treats e-mail addresses, phone numbers and their like, in the
    quarantine, too; with a `pseudonym_key` every annotator gets a pseudonym (HMAC-SHA256).
    `advance` is called with how many more rows were read and, where it is known, the share of the
    data's bytes that they and those before them are.

    Raises DataError if the data cannot be read, no row is usable, or more rows than allowed are
    rejected (they are written then, too, and an earlier import in the folder stays), and OSError if
    a file cannot be written.
    """
    _check_options(limit, max_quarantined)
    reading = Reading(columns, encoding, delimiter)
    finishing = Finishing(reading, keep_raw, personal_data, pseudonym_key)
    format, items = read_records(path, kind, format, reading, finishing)
    items = islice(items, limit)
    output_dir.mkdir(parents=True, exist_ok=True)

    def one_by_one(sink: RecordSink, quarantine: Quarantine) -> Tally:
        tally = Tally()
        for found in _accepted(_watched(items, advance), quarantine):
            for record in found:
                sink.write({"text": record} if isinstance(record, str) else record.to_json())
            tally.add(found)
        return tally

    def in_segments(sink: RecordSink, quarantine: Quarantine) -> Tally:
        return convert_table(files[0], reading, output_dir, sink, quarantine, advance)

    files = find_files(path)
    ways = [one_by_one]
    plain = format == "table" and limit is None and finishing.does_nothing
    if plain and len(files) == 1 and splittable(files[0], reading):
        ways = [in_segments, one_by_one]
    tally, quarantine = _write(kind, path, output_dir, ways, max_quarantined)
    report = _report(kind, format, path, limit, tally, quarantine, reading)
    with whole_or_absent(output_dir / IMPORT_FILE) as stream:
        stream.write(orjson.dumps(report.to_json(), option=orjson.OPT_INDENT_2))
    return report


def _write(
    kind: Kind, path: str, output_dir: Path, ways: Sequence[Way], max_quarantined: float
) -> tuple[Tally, Quarantine]:
    """Writes the records and the quarantine in the first way that can be gone to its end.

    An earlier import in the folder stays as it is until the new one is known to be good.
    """
    report, failed = output_dir / IMPORT_FILE, output_dir / FAILED_FILE
    for way in ways:
        unusable = None
        try:
            with whole_or_absent(failed) as rejects:
                quarantine = Quarantine(rejects)
                try:
                    with record_sink(output_dir, kind) as sink:
                        tally = way(sink, quarantine)
                        _check_usable(path, tally.rows, quarantine, max_quarantined)
                        # The report vouches for the other files: it goes first and comes last.
                        report.unlink(missing_ok=True)
                except _Unusable as error:
                    unusable = error
        except NotSplittable:
            continue
        if not (unusable and report.is_file()):
            os.replace(failed, failed := output_dir / QUARANTINE_FILE)
        if unusable:
            raise DataError(f"{unusable} See {failed}.")
        return tally, quarantine
    raise AssertionError("the last way is always gone to its end")


def read_preferences(
    path: str | Path,
    *,
    format: str = "auto",
    columns: Columns | None = None,
    max_quarantined: float = MAX_QUARANTINED,
) -> list[Judgement]:
    """The judgements of a file of labels, without writing anything.

    Warns if rows had to be left out, and with what the reader noticed. Raises DataError as
    `import_data` does.
    """
    _check_options(None, max_quarantined)
    reading, quarantine = Reading(columns), Quarantine()
    _, items = read_records(str(path), "preferences", format, reading)
    judgements = [
        record
        for found in _accepted(items, quarantine)
        for record in found
        if isinstance(record, Judgement)
    ]
    _check_usable(str(path), len(judgements), quarantine, max_quarantined)
    if quarantine.rows:
        reasons = reasons_in_words(quarantine.by_reason)
        reading.note(
            f"{counted(quarantine.rows, 'row')} of {path} "
            f"{verb(quarantine.rows, 'was', 'were')} left out ({reasons})."
        )
    for sentence in reading.notes:
        warnings.warn(sentence, stacklevel=2)
    return judgements


def _check_options(limit: int | None, max_quarantined: float) -> None:
    if limit is not None and limit < 1:
        raise DataError(f"limit is a number of rows from 1 up, not {limit}.")
    if not 0.0 <= max_quarantined <= 1.0:
        raise DataError(f"max_quarantined is a share between 0 and 1, not {max_quarantined}.")


def _watched(items: Iterable[T], advance: Advance) -> Iterator[T]:
    for number, item in enumerate(items, 1):
        yield item
        if number % WATCHED_ROWS == 0:
            advance(WATCHED_ROWS, None)


def _accepted(items: Iterable[Records | Rejected], quarantine: Quarantine) -> Iterator[Records]:
    for item in items:
        if isinstance(item, Rejected):
            quarantine.add(item)
        else:
            yield item


def _check_usable(path: str, usable: int, quarantine: Quarantine, allowed: float) -> None:
    rows_in = usable + quarantine.rows
    if quarantine.first is None or (usable and quarantine.faults <= allowed * rows_in):
        return
    found = f"No row of {path} can be used"
    if usable:
        found = (
            f"{quarantine.faults} of {counted(rows_in, 'row')} of {path} cannot be used, more "
            f"than the {allowed:.2%} that max_quarantined allows"
        )
    reasons = reasons_in_words(quarantine.by_reason)
    raise _Unusable(f"{found} ({reasons}); the first: {quarantine.first.detail}")


def _report(
    kind: Kind,
    format: str,
    path: str,
    limit: int | None,
    tally: Tally,
    quarantine: Quarantine,
    reading: Reading,
) -> ImportReport:
    files = find_files(path)
    return ImportReport(
        kind=kind,
        format=format,
        source=path,
        files=[str(file) for file in files],
        sha256=content_hash(files),
        limit=limit,
        rows_in=tally.rows + quarantine.rows,
        rows_out=tally.rows,
        rows_quarantined=quarantine.rows,
        records=tally.records,
        by_reason=_sorted(quarantine.by_reason),
        by_label=_sorted(tally.by_label),
        by_k={str(k): count for k, count in sorted(tally.by_k.items())},
        by_annotator=_sorted(tally.by_annotator),
        notes=list(reading.notes),
    )


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))
