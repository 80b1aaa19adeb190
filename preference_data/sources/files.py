"""Finding, decompressing and decoding data files."""

from __future__ import annotations

import codecs
import glob
import gzip
import hashlib
import io
import zlib
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from preference_data.quarantine import DataError
from preference_data.sources.mapping import Columns

_CHUNK = 1 << 20
_DATA_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")


@dataclass(slots=True)
class Reading:
    """How one import reads its files, and what it noticed on the way.

    `encoding` and `delimiter` are found out when None. `notes` are sentences for the report.
    Raises DataError for a delimiter that is not one character.
    """

    columns: Columns | None = None
    encoding: str | None = None
    delimiter: str | None = None
    notes: list[str] = field(default_factory=lambda: list[str]())
    _encodings: dict[Path, str] = field(default_factory=lambda: dict[Path, str]())

    def __post_init__(self) -> None:
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '\r\n"'):
            raise DataError(f"A delimiter is one character, not {self.delimiter!r}.")

    def note(self, sentence: str) -> None:
        """Once, however often it is noticed."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def encoding_of(self, path: Path) -> str:
        """Raises DataError if the file's bytes fit no encoding, or not the one that was given."""
        if path not in self._encodings:
            self._encodings[path] = self._find_encoding(path)
        return self._encodings[path]

    def _find_encoding(self, path: Path) -> str:
        if self.encoding is not None:
            return _given_encoding(path, self.encoding)
        encoding = _marked_encoding(path)
        if _decodes(path, encoding):
            return encoding
        # No statistical guess: detectors call real cp1252 files cp1250.
        if encoding != "utf-8-sig" or not _decodes(path, "cp1252"):
            raise DataError(
                f"{path} is text in no known encoding. Name it with the encoding option."
            )
        self.note(
            f"{path} is not UTF-8 and was read as cp1252 (Windows); if letters look wrong, "
            "name its encoding."
        )
        return "cp1252"


def find_files(path: str) -> list[Path]:
    """The file, the files of a glob, or a folder's data files at any depth; sorted.

    Raises DataError if there is none.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return [place]
    if place.is_dir():
        files = [file for file in sorted(place.rglob("*")) if file.is_file()]
        tables = [file for file in files if data_suffix(file) in _DATA_SUFFIXES]
        # Text files only where there is nothing else: most folders have a readme.
        found = tables or [file for file in files if data_suffix(file) == ".txt"]
        if not found:
            raise DataError(f"The folder {path} holds no .csv, .tsv, .jsonl or .txt file.")
        return found
    found = [Path(match) for match in sorted(glob.glob(str(place), recursive=True))]
    found = [match for match in found if match.is_file()]
    if not found:
        raise DataError(f"There is no file {path} (looked for {place.absolute()}).")
    return found


def data_suffix(path: Path) -> str:
    """The suffix in lower case, without a closing .gz."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def content_hash(files: Sequence[Path]) -> str:
    """sha256 of one file's bytes, or of the several files' hashes in order."""
    digests: list[str] = []
    for file in files:
        with open(file, "rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def open_text(path: Path, reading: Reading) -> TextIO:
    """The file's text, decompressed and decoded, with its line ends as they are."""
    encoding = reading.encoding_of(path)
    return io.TextIOWrapper(_open_bytes(path), encoding=encoding, newline="")


def _open_bytes(path: Path) -> BinaryIO:
    with open(path, "rb") as stream:
        compressed = stream.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path, "rb") if compressed else open(path, "rb"))


def _chunks(path: Path) -> Generator[bytes, None, None]:
    try:
        with _open_bytes(path) as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is not a whole gzip file ({error}). Fetch it again.") from None


def _decodes(path: Path, encoding: str) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for chunk in _chunks(path):
            decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeError:
        return False
    return True


def _marked_encoding(path: Path) -> str:
    """What the byte order mark says; without one, UTF-16 if every other byte is NUL."""
    with closing(_chunks(path)) as chunks:
        head = next(chunks, b"")[:64]
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    # The first characters are a header's or JSON's, so ASCII, whatever language follows.
    if len(head) >= 4 and not any(head[1::2]) and all(head[0::2]):
        return "utf-16-le"
    if len(head) >= 4 and not any(head[0::2]) and all(head[1::2]):
        return "utf-16-be"
    return "utf-8-sig"


def _given_encoding(path: Path, encoding: str) -> str:
    try:
        name = codecs.lookup(encoding).name
    except LookupError:
        raise DataError(f"{encoding!r} is no encoding that Python knows.") from None
    name = "utf-8-sig" if name == "utf-8" else name
    if not _decodes(path, name):
        raise DataError(f"{path} is not text in {encoding}.")
    return name
