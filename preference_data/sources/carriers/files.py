"""Finding, decompressing and decoding data files."""

from __future__ import annotations

import codecs
import glob
import gzip
import hashlib
import io
import re
import zlib
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from preference_data.counts import counted
from preference_data.quarantine import DataError
from preference_data.sources.columns.mapping import Columns
from preference_data.sources.store import IMPORT_FILE, RECORD_FILES

_CHUNK = 1 << 20
_HEAD = 64
_NON_ASCII = re.compile("[^\x00-\x7f]")
_SURROGATE = re.compile("[\ud800-\udfff]")

_ROW_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
# Only where there is nothing better: folders of data have a dataset_info.json or a readme, too.
_SUFFIXES_BY_RANK = (_ROW_SUFFIXES, (".json",), (".txt",))

_NO_TEXT = {
    b"PK\x03\x04": "a zip archive or an Excel workbook. Unpack it, or save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook. Save the sheet as CSV",
    b"PAR1": "a Parquet file. Let its name end in .parquet",
    b"BZh": "compressed with bzip2. Unpack it, or compress it with gzip",
    b"\xfd7zXZ\x00": "compressed with xz. Unpack it, or compress it with gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd. Unpack it, or compress it with gzip",
}


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
    _damaged: set[Path] = field(default_factory=lambda: set[Path]())

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

    def is_damaged(self, path: Path) -> bool:
        """Whether the file is UTF-8 but for some bytes, which `open_text` gives as surrogates."""
        self.encoding_of(path)
        return path in self._damaged

    def _find_encoding(self, path: Path) -> str:
        if self.encoding is not None:
            return _given_encoding(path, self.encoding)
        head = _head(path)
        encoding = _marked_encoding(path, head)
        if _decodes(path, encoding):
            return encoding
        if encoding == "utf-8-sig":
            bad, good = _bytes_and_characters(path)
            if bad < good or head.startswith(codecs.BOM_UTF8):
                self._damaged.add(path)
                self.note(
                    f"{path} is UTF-8 but for {counted(bad, 'byte')}; rows that hold such bytes "
                    f"were set aside."
                )
                return encoding
            # No statistical guess: detectors call real cp1252 files cp1250.
            if b"\0" not in head and _decodes(path, "cp1252"):
                self.note(
                    f"{path} is not UTF-8 and was read as cp1252 (Windows); if letters look "
                    "wrong, name its encoding."
                )
                return "cp1252"
        raise DataError(f"{path} is text in no known encoding. Name it with the encoding option.")


def find_files(path: str) -> list[Path]:
    """The file, the files of a glob, or a folder's data files at any depth; sorted.

    Raises DataError if there is none.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return [place]
    if place.is_dir():
        return _files_of_folder(place)
    found = [Path(match) for match in sorted(glob.glob(str(place), recursive=True))]
    found = [match for match in found if match.is_file()]
    if not found:
        raise DataError(f"There is no file {path} (looked for {place.absolute()}).")
    return found


def passed_over(path: str) -> list[Path]:
    """The data files of a folder that are not read beside those of a better kind."""
    place = Path(path).expanduser()
    if not place.is_dir() or (place / IMPORT_FILE).is_file():
        return []
    taken = set(_files_of_folder(place))
    known = {suffix for suffixes in _SUFFIXES_BY_RANK for suffix in suffixes} - {".txt"}
    return [f for f in _visible_files(place) if f not in taken and data_suffix(f) in known]


def _visible_files(place: Path) -> list[Path]:
    # Names that begin with a dot are no one's data: locks, checkpoints, what macOS leaves.
    return [f for f in sorted(place.rglob("*")) if f.is_file() and not f.name.startswith(".")]


def _files_of_folder(place: Path) -> list[Path]:
    files = _visible_files(place)
    if (place / IMPORT_FILE).is_file():  # a data folder: its twins and rejects are no more data
        own = [file for file in files if file.name in RECORD_FILES.values()]
        if own:
            return own
    for suffixes in _SUFFIXES_BY_RANK:
        found = [file for file in files if data_suffix(file) in suffixes]
        if found:
            return found
    raise DataError(
        f"The folder {place} holds no .csv, .tsv, .jsonl, .ndjson, .parquet, .json or .txt file."
    )


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
    """The file's text, decompressed and decoded, with its line ends as they are.

    Of a damaged file, each byte that is no text is a lone surrogate, which `bad_character` finds.
    """
    encoding = reading.encoding_of(path)
    errors = "surrogateescape" if reading.is_damaged(path) else "strict"
    return io.TextIOWrapper(_open_bytes(path), encoding=encoding, errors=errors, newline="")


def has_mark(path: Path) -> bool:
    """Whether the file begins with a byte order mark, decompressed."""
    marks = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
    return _head(path).startswith(marks)


def bad_character(text: str) -> bool:
    """Whether the text holds half of a surrogate pair, which no file can hold."""
    return not text.isascii() and _SURROGATE.search(text) is not None


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


def _bytes_and_characters(path: Path) -> tuple[int, int]:
    """How many bytes are not UTF-8, and how many characters are, beyond ASCII.

    Accented letters of another encoding hardly ever form a character of UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
    bad = beyond = 0
    for chunk in chain(_chunks(path), (b"",)):
        text = decoder.decode(chunk, final=not chunk)
        bad += len(_SURROGATE.findall(text))
        beyond += len(_NON_ASCII.findall(text))
    return bad, beyond - bad


def _head(path: Path) -> bytes:
    with closing(_chunks(path)) as chunks:
        return next(chunks, b"")[:_HEAD]


def _marked_encoding(path: Path, head: bytes) -> str:
    """What the byte order mark says; without one, UTF-16 if NULs say so.

    Raises DataError for what is no text at all.
    """
    for magic, what in _NO_TEXT.items():
        if head.startswith(magic):
            raise DataError(f"{path} is {what}.")
    # Before UTF-16, whose mark opens this one.
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    # The first characters are a header's or JSON's, so ASCII, whatever language follows.
    nul = [byte == 0 for byte in head[:4]]
    if nul == [False, True, False, True]:
        return "utf-16-le"
    return "utf-16-be" if nul == [True, False, True, False] else "utf-8-sig"


def _given_encoding(path: Path, encoding: str) -> str:
    try:
        name = codecs.lookup(encoding).name
        "a".encode(name)  # also refuses the codecs that are not of text, such as hex
    except (LookupError, ValueError):
        raise DataError(f"{encoding!r} is no encoding that Python knows.") from None
    name = "utf-8-sig" if name == "utf-8" else name
    if not _decodes(path, name):
        raise DataError(f"{path} is not text in {encoding}.")
    return name
