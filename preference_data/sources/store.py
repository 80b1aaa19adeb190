"""The canonical files of a data folder: written whole or not at all, and read back."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import orjson

from preference_data.quarantine import DataError
from preference_data.records import Demonstration, Judgement, Prompt
from preference_data.sources.shards import ShardWriter, read_shards, shards_of

RECORD_FILES = {
    "preferences": "judgements.jsonl",
    "demonstrations": "demonstrations.jsonl",
    "prompts": "prompts.jsonl",
    "text": "text.jsonl",
}
AGGREGATED_FILE = "aggregated.jsonl"
QUARANTINE_FILE = "quarantine.jsonl"
FAILED_FILE = "quarantine-failed.jsonl"
"""The rejects of an import that failed, where those of an earlier one are still valid."""
IMPORT_FILE = "import.json"

T = TypeVar("T")


@contextmanager
def whole_or_absent(path: Path) -> Generator[BinaryIO, None, None]:
    """A stream whose bytes become the file when the block ends well; else nothing is left.

    Raises OSError as the system does, for a full disk among others.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as stream:
            yield stream
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class RecordSink:
    """The stream of a record file, and of judgements the Parquet shards beside it."""

    def __init__(self, stream: BinaryIO, shards: ShardWriter | None) -> None:
        self.stream = stream
        self.shards = shards

    def write(self, data: Mapping[str, Any]) -> None:
        line = orjson.dumps(data) + b"\n"
        self.stream.write(line)
        if self.shards is not None:
            self.shards.write(line)


@contextmanager
def record_sink(folder: Path, kind: str) -> Generator[RecordSink, None, None]:
    """Where the records of `kind` are written: all files appear when the block ends well."""
    shards = ShardWriter(folder) if kind == "preferences" else None
    try:
        with whole_or_absent(folder / RECORD_FILES[kind]) as stream:
            yield RecordSink(stream, shards)
            if shards is not None:
                shards.publish()
    finally:
        if shards is not None:
            shards.discard()


def read_judgements(path: str | Path) -> Iterator[Judgement]:
    """From a data folder, its judgements.jsonl, or a folder with its Parquet shards alone. Raises
    DataError as all of these readers do: for a file that is not there, or a line that is not such
    a record."""
    folder = Path(path)
    twin = folder / RECORD_FILES["preferences"]
    if folder.is_dir() and shards_of(folder) and not twin.is_file():
        return map(Judgement.from_json, read_shards(folder))
    return _read(path, "preferences", Judgement.from_json)


def read_demonstrations(path: str | Path) -> Iterator[Demonstration]:
    """From a data folder or its demonstrations.jsonl."""
    return _read(path, "demonstrations", Demonstration.from_json)


def read_prompts(path: str | Path) -> Iterator[Prompt]:
    """From a data folder or its prompts.jsonl."""
    return _read(path, "prompts", Prompt.from_json)


def read_text(path: str | Path) -> Iterator[str]:
    """The documents, from a data folder or its text.jsonl."""

    def document(data: Mapping[str, Any]) -> str:
        return data["text"]

    return _read(path, "text", document)


def _read(path: str | Path, kind: str, from_json: Callable[[Mapping[str, Any]], T]) -> Iterator[T]:
    file = Path(path)
    if file.is_dir():
        file = file / RECORD_FILES[kind]
    if not file.is_file():
        raise DataError(f"There is no file {file}. Import the {kind} first.")
    return _records(file, from_json)


def _records(file: Path, from_json: Callable[[Mapping[str, Any]], T]) -> Iterator[T]:
    with open(file, encoding="utf-8", newline="\n") as stream:
        for line, text in enumerate(stream, start=1):
            try:
                yield from_json(orjson.loads(text))
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{file}, line {line} is not a record of ours: {error}") from error
