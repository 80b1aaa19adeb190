"""Tables written as they were read, with columns of scores at their end: CSV, JSONL, Parquet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from preference_data.quarantine import DataError, Rejected
from preference_data.sources.carriers.dialects import Dialect, find_dialect
from preference_data.sources.carriers.files import Reading, data_suffix
from preference_data.sources.carriers.rows import Row

Scores = Mapping[str, float | list[float | None] | None]
"""Of one row, by column; None where an answer has no score."""


class Writer(Protocol):
    """Writes the rows of one table, in their order, into a binary stream."""

    def start(self, stream: BinaryIO) -> None: ...
    def write(self, stream: BinaryIO, row: Row | Rejected, scores: Scores) -> None: ...
    def finish(self, stream: BinaryIO) -> None: ...


def writer_for(path: Path, output: Path, names: Sequence[str], reading: Reading) -> Writer:
    """The writer of a table like the one at `path`. Raises DataError for another kind of file."""
    kind = data_suffix(path)
    alike = {".csv": (".csv",), ".tsv": (".tsv",), ".parquet": (".parquet",)}
    allowed = alike.get(kind, (".jsonl", ".ndjson"))
    if output.suffix.lower() not in allowed:
        raise DataError(f"--output is {output}; of {path.name}, let its name end in {allowed[0]}.")
    if kind == ".parquet":
        return _Parquet(path, tuple(names))
    if kind in alike:
        return _Cells(find_dialect(path, reading), tuple(names))
    errors = "surrogateescape" if reading.is_damaged(path) else "strict"
    return _Lines(tuple(names), errors)


@dataclass(frozen=True)
class _Cells:
    """CSV and TSV, in the file's own dialect and UTF-8. A row that does not fit the header keeps
    its cells; one that is no CSV becomes one cell."""

    dialect: Dialect
    names: tuple[str, ...]

    def start(self, stream: BinaryIO) -> None:
        self._write(stream, self.dialect.start(self.names))

    def write(self, stream: BinaryIO, row: Row | Rejected, scores: Scores) -> None:
        cells = _cells(row.values) if isinstance(row, Row) else _cells(row.raw)
        cells += [""] * (len(self.dialect.header) - len(cells))
        cells += [_cell(scores.get(name)) for name in self.names]
        self._write(stream, self.dialect.row(cells))

    def finish(self, stream: BinaryIO) -> None:
        pass

    def _write(self, stream: BinaryIO, line: str) -> None:
        # A byte that is no text was read as a surrogate, and is written as it was.
        stream.write(line.encode("utf-8", "surrogateescape"))


def _cells(raw: object) -> list[str]:
    """Those of a row that was set aside: cells, cells by their column, or the text of a line."""
    if isinstance(raw, Mapping):
        return list(cast("Mapping[str, str]", raw).values())
    return list(cast("list[str]", raw)) if isinstance(raw, list) else [cast("str", raw)]


def _cell(score: float | list[float | None] | None) -> str:
    if isinstance(score, list):
        return json.dumps(score)
    return "" if score is None else repr(score)


@dataclass(frozen=True)
class _Lines:
    """JSONL. A line that is no object stays as it was."""

    names: tuple[str, ...]
    errors: str
    """What becomes of a surrogate; in a damaged file it is the byte that is no text."""

    def start(self, stream: BinaryIO) -> None:
        pass

    def write(self, stream: BinaryIO, row: Row | Rejected, scores: Scores) -> None:
        values = row.values if isinstance(row, Row) else row.raw
        if isinstance(values, Mapping):
            values = {**cast("Mapping[str, Any]", values), **dict.fromkeys(self.names), **scores}
        if isinstance(values, str):
            line = values.strip("\r\n").encode("utf-8", self.errors)
        else:
            line = self._dumped(values)
        stream.write(line + b"\n")

    def _dumped(self, values: object) -> bytes:
        try:
            return json.dumps(values, ensure_ascii=False).encode("utf-8", self.errors)
        except UnicodeEncodeError:  # half of a surrogate pair, which only an escape can say
            return json.dumps(values).encode()

    def finish(self, stream: BinaryIO) -> None:
        pass


@dataclass(frozen=True)
class _Parquet:
    """The file's own columns in their own types, and the scores as doubles."""

    path: Path
    names: tuple[str, ...]
    scores: list[Scores] = field(default_factory=list[Scores])

    def start(self, stream: BinaryIO) -> None:
        pass

    def write(self, stream: BinaryIO, row: Row | Rejected, scores: Scores) -> None:
        self.scores.append(scores)

    def finish(self, stream: BinaryIO) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pq.read_table(self.path)
        for name in self.names:
            column = [scores.get(name) for scores in self.scores]
            lists = any(isinstance(value, list) for value in column)
            kind = pa.list_(pa.float64()) if lists else pa.float64()
            table = table.append_column(name, pa.array(column, kind))
        pq.write_table(table, stream)
