"""Rows of Parquet files, with the values that JSON would have: text, numbers, lists, objects."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, cast

from preference_data.quarantine import DataError, Rejected
from preference_data.sources.carriers.files import Reading
from preference_data.sources.carriers.rows import Row

_BATCH = 1024
"""Rows that are converted at once; a row group is read piece by piece."""


def read_parquet_rows(path: Path, reading: Reading) -> Iterator[Row | Rejected]:
    """Yields one thing for each row; a Parquet file has no lines, so `line` is the row.

    NaN is null. Times become ISO 8601 text, decimals text as written, bytes text if they are
    UTF-8 and else base64.

    Raises DataError for a file that is no whole Parquet file, has no rows or names a column
    twice, and without pyarrow.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(f"{path} is Parquet. Install pyarrow to read it.") from None
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            _check_names(path, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=_BATCH):
                for values in _rows_of(_in_microseconds(batch)):
                    number += 1
                    yield _row(path, number, values)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a whole Parquet file ({_first_line(error)}).") from None
    if not number:
        raise DataError(f"{path} holds no rows.")


def _check_names(path: Path, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise DataError(f'{path} has two columns "{name}". Rename one of the two.')


def _in_microseconds(batch: Any) -> Any:
    """Python's times have no nanoseconds, and pyarrow refuses them."""
    import pyarrow as pa

    for index, field in enumerate(batch.schema):
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
            column = batch.column(index).cast(pa.timestamp("us", field.type.tz), safe=False)
            batch = batch.set_column(index, field.name, column)
    return batch


def _rows_of(batch: Any) -> Iterator[dict[str, Any] | ValueError]:
    """Each row's values, or why it has none: text that is not UTF-8, a date beyond year 9999."""
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError):
        for index in range(batch.num_rows):
            try:
                yield batch.slice(index, 1).to_pylist()[0]
            except (ValueError, OverflowError) as error:
                yield ValueError(_first_line(error))


def _row(path: Path, number: int, values: dict[str, Any] | ValueError) -> Row | Rejected:
    if isinstance(values, ValueError):
        detail = f"row {number} has a value that cannot be read: {values}."
        return Rejected(number, number, "parquet_value", detail, None, str(path))
    return Row(str(path), number, number, {name: _plain(value) for name, value in values.items()})


def _plain(value: object) -> object:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, Mapping):
        items = cast(Mapping[str, object], value).items()
        return {name: _plain(inner) for name, inner in items}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in cast(list[object], value)]
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return _text_of_bytes(value) if isinstance(value, bytes) else str(value)


def _text_of_bytes(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return base64.b64encode(value).decode()


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].rstrip(".")
