"""Judgements as Parquet shards: the twin of judgements.jsonl for whatever reads Arrow.

The JSON lines are parsed by Arrow itself under an explicit schema, so that the twins cannot differ
in what a column holds, and a file of a million rows never stands in memory.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

SHARD_ROWS = 50_000
"""Judgements of a shard, at most."""
_ROW_GROUP = 5_000
_PATTERN = "judgements-*.parquet"
_REPEATED = [
    "kind", "outcome", "scale", "criterion", "annotator_id", "annotator_kind", "split",
    "source_format", "source_file",
]  # fmt: skip
"""Columns of few different values; looking for repeats in the others costs more than it saves."""


@cache
def schema() -> Any:
    """The pyarrow.Schema of a shard: one column for each key of a judgement's JSON."""
    import pyarrow as pa

    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    response = pa.struct(
        [("response_id", pa.string()), ("model", pa.string()), ("messages", messages)]
    )
    ranks, text, number = pa.list_(pa.int32()), pa.string(), pa.float64()
    return pa.schema(
        [
            ("schema_version", pa.int16()), ("judgement_id", text), ("item_id", text),
            ("prompt_id", text), ("group", text), ("prompt", messages),
            ("responses", pa.list_(response)), ("kind", text), ("ranks", ranks), ("outcome", text),
            ("scores", pa.list_(number)), ("scale", text), ("strength", number),
            ("probability", number), ("criterion", text), ("annotator_id", text),
            ("annotator_kind", text), ("votes", pa.int32()), ("weight", number),
            ("position", pa.list_(pa.int32())), ("gold", ranks), ("comment", text),
            ("duration", number), ("created_at", text), ("split", text), ("source_format", text),
            ("source_file", text), ("source_row", pa.int64()), ("source_line", pa.int64()),
            ("raw", text),
        ]
    )  # fmt: skip


def write_shard(lines: bytes, longest: int, path: Path) -> None:
    """Writes judgements' JSON lines, of at most `longest` bytes each, as one Parquet file."""
    import pyarrow.json
    import pyarrow.parquet

    table = pyarrow.json.read_json(
        io.BytesIO(lines),
        # A block must hold at least the longest line.
        read_options=pyarrow.json.ReadOptions(
            use_threads=False, block_size=max(4 << 20, longest + 1)
        ),
        parse_options=pyarrow.json.ParseOptions(
            explicit_schema=schema(), unexpected_field_behavior="error"
        ),
    )
    pyarrow.parquet.write_table(
        table, path, compression="zstd", compression_level=1, row_group_size=_ROW_GROUP,
        use_dictionary=_REPEATED,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip


def read_shards(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of a folder's shards, in order, as `Judgement.from_json` reads them."""
    import pyarrow.parquet

    for path in shards_of(folder):
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(_ROW_GROUP):
            yield from batch.to_pylist()


def shards_of(folder: Path) -> list[Path]:
    """The folder's shards, in order."""
    return sorted(folder.glob(_PATTERN))


class ShardWriter:
    """Collects JSON lines and writes a shard whenever enough are there, under partial names.

    The shards take their names, and those of an earlier import go, with `publish`; without it
    `discard` leaves the folder as it was.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lines: list[bytes] = []
        self._written: list[Path] = []

    def write(self, line: bytes) -> None:
        self._lines.append(line)
        if len(self._lines) == SHARD_ROWS:
            self._flush()

    def add(self, shard: Path) -> None:
        """Takes over a shard that another process wrote."""
        self._flush()
        os.replace(shard, self._next())

    def _flush(self) -> None:
        if self._lines:
            write_shard(b"".join(self._lines), max(map(len, self._lines)), self._next())
            self._lines = []

    def _next(self) -> Path:
        partial = self._folder / f".shard-{len(self._written)}.{os.getpid()}.partial"
        self._written.append(partial)
        return partial

    def publish(self) -> None:
        self._flush()
        for old in shards_of(self._folder):
            old.unlink()
        for number, partial in enumerate(self._written):
            os.replace(partial, self._folder / f"judgements-{number:05}.parquet")
        self._written = []

    def discard(self) -> None:
        for partial in self._written:
            partial.unlink(missing_ok=True)
