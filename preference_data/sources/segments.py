"""A large table of labels, converted by several processes.

The file is cut where the number of quotes before is even, at the end of a line. That is the end of
a row in every file that its writer quoted properly, and it is proved: each segment is parsed
strictly from its first character to its last, so that if the first segment ends with a whole row,
the second began with one, and so on. Where a segment does not, the whole file is read in one piece
instead, which knows how to name the row that is at fault.
"""

from __future__ import annotations

import csv
import io
import multiprocessing
import os
import shutil
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from preference_data.quarantine import Quarantine, Rejected
from preference_data.sources.carriers.files import Reading
from preference_data.sources.carriers.rows import convert_rows
from preference_data.sources.carriers.tables import FIELD_LIMIT, find_delimiter, row_of
from preference_data.sources.columns.label_tables import LabelTable
from preference_data.sources.columns.plain_pairs import NotPlain, PlainPairs
from preference_data.sources.shards import write_shard
from preference_data.sources.store import RecordSink
from preference_data.sources.tally import Advance, Tally, unwatched

SMALLEST_FILE = 64 << 20
"""Bytes below which the start of other processes costs more than it saves."""
SEGMENT = 8 << 20
"""Bytes of a segment, about."""
_UNKNOWN, _BROKEN = -1, -2


class NotSplittable(Exception):
    """The file is to be read in one piece."""


@dataclass(frozen=True, slots=True)
class _Table:
    """A table whose header has been read."""

    path: Path
    reading: Reading
    delimiter: str
    header: list[str]
    header_lines: int
    folder: Path


@dataclass(frozen=True, slots=True)
class _Segment:
    number: int
    start: int
    end: int


@dataclass(slots=True)
class _Converted:
    """What a process leaves of a segment: files, and counts."""

    lines: Path
    shard: Path | None
    rejects: Path
    tally: Tally = field(default_factory=Tally)
    by_reason: Counter[str] = field(default_factory=lambda: Counter[str]())
    faults: int = 0
    first: Rejected | None = None
    notes: list[str] = field(default_factory=lambda: list[str]())


def convert_table(
    path: Path, reading: Reading, folder: Path, sink: RecordSink, quarantine: Quarantine,
    advance: Advance = unwatched,
) -> Tally:  # fmt: skip
    """Converts a label table with as many processes as there are cores.

    The same records, rejects and counts in the same order as in one piece. Raises NotSplittable,
    with something written, if the file must be read in one piece, and DataError as the readers do.
    """
    table, start = _open(path, reading, folder)
    tally = Tally()
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    most = path.stat().st_size // SEGMENT + 2
    progress = context.Array("q", [_UNKNOWN] * (2 * most + 2))
    progress[0], progress[1] = 0, table.header_lines
    changed = context.Condition()
    cores = _cores()
    pool = ProcessPoolExecutor(cores, context, _start, (table, progress, changed))
    waiting: deque[tuple[_Segment, Future[_Converted]]] = deque()

    def collect() -> None:
        segment, future = waiting.popleft()
        found = future.result()
        _collect(found, tally, sink, quarantine, reading)
        advance(found.tally.rows, segment.end / path.stat().st_size)

    try:
        for segment in _segments(path, start):
            waiting.append((segment, pool.submit(_convert, segment)))
            while len(waiting) > 2 * cores:
                collect()
        while waiting:
            collect()
    except BrokenProcessPool:
        # Such as a script without `if __name__ == "__main__"`, which no process can import.
        raise NotSplittable from None
    finally:
        pool.shutdown(cancel_futures=True)
        for left in folder.glob(".segment-*"):
            left.unlink()
    return tally


def splittable(path: Path, reading: Reading) -> bool:
    """Whether it is worth a try: a large, plain UTF-8 table."""
    wide = reading.columns is not None and reading.columns.wide is not None
    return (
        not wide
        and path.suffix.lower() in (".csv", ".tsv")
        and path.stat().st_size >= SMALLEST_FILE
        and reading.encoding_of(path) == "utf-8-sig"
        and _cores() > 1
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux, where a process may be given a few of all
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _open(path: Path, reading: Reading, folder: Path) -> tuple[_Table, int]:
    """The table, and where its first row begins."""
    delimiter = reading.delimiter or find_delimiter(path, reading)
    with open(path, "rb") as stream:
        header, lines = _header(stream, delimiter)
        return _Table(path, reading, delimiter, header, lines, folder), stream.tell()


def _header(stream: Any, delimiter: str) -> tuple[list[str], int]:
    """The names and the number of lines they take; the stream is left behind them."""
    taken = 0

    def lines() -> Iterator[str]:
        nonlocal taken
        for line in iter(stream.readline, b""):
            taken += 1
            yield line.decode("utf-8-sig" if taken == 1 else "utf-8")

    try:
        header = next(csv.reader(lines(), delimiter=delimiter, strict=True))
    except (csv.Error, StopIteration):
        raise NotSplittable from None
    names = [name.strip() for name in header]
    if not all(names) or len(set(names)) < len(names) or names[0].startswith("sep="):
        raise NotSplittable
    return names, taken


def _segments(path: Path, start: int) -> Iterator[_Segment]:
    """Cuts the file from `start` on behind line ends with an even number of quotes before."""
    number = quotes = 0
    position = start
    with open(path, "rb") as stream:
        stream.seek(start)
        while chunk := stream.read(SEGMENT):
            cut = _last_row_end(chunk, quotes)
            if cut:
                yield _Segment(number, start, position + cut)
                start, number = position + cut, number + 1
            quotes += chunk.count(b'"')
            position += len(chunk)
            if position - start > 8 * SEGMENT:
                raise NotSplittable  # an open quote, most likely
    if position > start:
        yield _Segment(number, start, position)


def _last_row_end(chunk: bytes, quotes_before: int) -> int:
    """Behind the last line end of the chunk that has an even number of quotes before it, or 0."""
    end = len(chunk)
    quotes = quotes_before + chunk.count(b'"')
    while (at := chunk.rfind(b"\n", 0, end)) >= 0:
        quotes -= chunk.count(b'"', at, end)
        if quotes % 2 == 0:
            return at + 1
        # Everything up to the quote that opens this field lies inside it.
        opened = chunk.rfind(b'"', 0, at)
        if opened < 0:
            return 0
        quotes -= 1
        end = opened
    return 0


# --- in a process of its own ----------------------------------------------------------------------

_table: _Table
_progress: Any
_changed: Any
_converter: LabelTable


def _start(table: _Table, progress: Any, changed: Any) -> None:
    global _table, _progress, _changed, _converter
    _table, _progress, _changed = table, progress, changed
    _converter = LabelTable(table.reading)
    csv.field_size_limit(FIELD_LIMIT)


def _convert(segment: _Segment) -> _Converted:
    try:
        rows = _parse(segment)
    except (csv.Error, UnicodeDecodeError, NotSplittable) as error:
        _publish(segment.number, None)
        raise NotSplittable from error
    row, line = _publish(segment.number, (len(rows[0]), rows[2]))
    stem = _table.folder / f".segment-{segment.number:05}"
    found = _Converted(stem.with_suffix(".jsonl"), None, stem.with_suffix(".rejects"))
    with open(found.rejects, "wb") as rejects:
        quarantine = Quarantine(rejects)
        lines = list(_lines(rows[0], rows[1], row, line, quarantine, found.tally))
    del rows
    longest, data = max(map(len, lines), default=0), b"".join(lines)
    del lines
    found.lines.write_bytes(data)
    if data:
        found.shard = stem.with_suffix(".parquet")
        write_shard(data, longest, found.shard)
    found.by_reason, found.faults = quarantine.by_reason, quarantine.faults
    found.first, found.notes = quarantine.first, list(_table.reading.notes)
    return found


def _parse(segment: _Segment) -> tuple[list[list[str]], list[int], int]:
    """The rows, the line within the segment that each begins on, and the number of lines."""
    with open(_table.path, "rb") as stream:
        stream.seek(segment.start)
        text = stream.read(segment.end - segment.start).decode("utf-8")
    if '\ufeff"' in text:
        raise NotSplittable  # a mark between joined files, which the reader of the whole drops
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_table.delimiter, strict=True)
    rows: list[list[str]] = []
    begins: list[int] = []
    line = 0
    for cells in reader:
        if cells:
            rows.append(cells)
            begins.append(line + 1)
        line = reader.line_num
    return rows, begins, line


def _publish(number: int, counts: tuple[int, int] | None) -> tuple[int, int]:
    """Waits for the segments before, and says how many rows and lines there are up to this one.

    Returns those before this one. Raises NotSplittable if one of them was not whole.
    """
    at = 2 * number
    with _changed:
        _changed.wait_for(lambda: _progress[at] != _UNKNOWN)
        before = int(_progress[at]), int(_progress[at + 1])
        if counts is None or before[0] == _BROKEN:
            rows, lines = _BROKEN, 0
        else:
            rows, lines = before[0] + counts[0], before[1] + counts[1]
        _progress[at + 2], _progress[at + 3] = rows, lines
        _changed.notify_all()
    if before[0] == _BROKEN:
        raise NotSplittable
    return before


def _lines(
    rows: list[list[str]],
    begins: list[int],
    row: int,
    line: int,
    quarantine: Quarantine,
    tally: Tally,
) -> Iterator[bytes]:
    """The JSON lines of the rows; `row` and `line` are the numbers before the first."""
    lane = _plain_pairs()
    for cells, begin in zip(rows, begins, strict=True):
        row += 1
        if lane is not None:
            try:
                text, label, annotator = lane.line(cells, row, line + begin)
            except NotPlain:
                pass
            else:
                tally.rows += 1
                tally.records += 1
                tally.add_judgement(label, 2, annotator)
                yield text
                continue
        one = row_of(_table.path, row, line + begin, _table.header, cells)
        [found] = convert_rows(iter([one]), lambda row: (_converter.judgement(row),))
        if isinstance(found, Rejected):
            quarantine.add(found)
            continue
        tally.add(found)
        if lane is not None:
            lane.learn(cells, found[0])
        yield orjson.dumps(found[0].to_json()) + b"\n"


def _plain_pairs() -> PlainPairs | None:
    try:
        return PlainPairs(_table.header, str(_table.path), _table.reading.columns)
    except ValueError:  # DataError, too: the label table says what is missing
        return None


def _collect(
    found: _Converted, tally: Tally, sink: RecordSink, quarantine: Quarantine, reading: Reading
) -> None:
    tally.merge(found.tally)
    with open(found.lines, "rb") as lines:
        shutil.copyfileobj(lines, sink.stream, 1 << 20)
    found.lines.unlink()
    if found.shard is not None:
        assert sink.shards is not None
        sink.shards.add(found.shard)
    quarantine.merge(found.rejects.read_bytes(), found.by_reason, found.faults, found.first)
    for note in found.notes:
        reading.note(note)
