"""Damages valid files in every way that files are damaged, and reads what is left.

    python tests/benchmarks/fuzz_import.py --inputs 20000 --seed 0

A reader may say in one sentence that the file cannot be read (DataError), or account for every
row; whatever else happens is printed with its seed, and the input is saved. About a millisecond
an input.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import orjson

from preference_data import DataError, import_data
from preference_data.quarantine import Quarantine, Rejected
from preference_data.sources.carriers import read_rows
from preference_data.sources.carriers.files import Reading
from preference_data.sources.formats import read_records

KINDS = ("preferences", "preferences", "preferences", "demonstrations", "prompts", "text")
WHOLE_IMPORT = 20
"""One input in so many goes through import_data, which writes and reads back."""

TEXTS = [
    "Why is the sky blue?", "Scattering.\r\n\r\nShort waves more.", 'Say "hi", then\ngo; or | stay',
    "où – naïve €", "日本語の答え 😀", "a\tb", "- item", "=1+1", "NA", "007", "", " ", "\u2028x",
]  # fmt: skip
ENDS = {"LF": "\n", "CRLF": "\r\n", "CR": "\r"}


# --- valid files ---------------------------------------------------------------------------------


def objects(random: Random) -> list[dict[str, object]]:
    """Rows of one of the usual shapes."""
    shape = random.choice(("table", "ranks", "trl", "chat", "hh", "text"))
    return [_object(random, shape) for _ in range(random.randint(1, 8))]


def _object(random: Random, shape: str) -> dict[str, object]:
    a, b, c = (random.choice(TEXTS) for _ in range(3))
    turn = [{"role": "user", "content": a}]
    return {
        "table": {"prompt": a, "response_a": b, "response_b": c, "label": random.choice("AABC")},
        "ranks": {"prompt": a, "response_1": b, "response_2": c, "rank_1": 1, "rank_2": 2},
        "trl": {"prompt": a, "chosen": b, "rejected": c, "margin": 1.5},
        "chat": {
            "chosen": [*turn, {"role": "assistant", "content": b}],
            "rejected": [*turn, {"role": "assistant", "content": c}],
        },
        "hh": {
            "chosen": f"\n\nHuman: {a}\n\nAssistant: {b}",
            "rejected": f"\n\nHuman: {a}\n\nAssistant: {c}",
        },
        "text": {"text": a, "messages": turn, "completion": b},
    }[shape]


def table(random: Random) -> tuple[str, bytes]:
    rows = objects(random)
    stream = io.StringIO()
    delimiter = random.choice(",,,;\t|")
    writer = csv.writer(
        stream,
        delimiter=delimiter,
        quoting=random.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC)),
        lineterminator=random.choice(list(ENDS.values())),
    )
    writer.writerow(list(rows[0]))
    writer.writerows(
        [value if isinstance(value, str) else json.dumps(value) for value in row.values()]
        for row in rows
    )
    encoding = random.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"))
    suffix = ".tsv" if delimiter == "\t" else ".csv"
    return suffix, stream.getvalue().encode(encoding, "replace")


def json_lines(random: Random) -> tuple[str, bytes]:
    end = random.choice(list(ENDS.values()))
    ascii_only = random.random() < 0.5
    text = "".join(json.dumps(row, ensure_ascii=ascii_only) + end for row in objects(random))
    return random.choice((".jsonl", ".json", ".ndjson", ".dat")), text.encode()


def json_array(random: Random) -> tuple[str, bytes]:
    rows = objects(random)
    indent = random.choice((None, None, 0, 2))
    text = json.dumps(rows, indent=indent)
    if random.random() < 0.3:
        text = "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"
    elif random.random() < 0.2:
        text = "\n".join(json.dumps(row, indent=indent) for row in rows)
    return random.choice((".json", ".json", ".jsonl", ".dat")), text.encode(
        random.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32"))
    )


def text_blocks(random: Random) -> tuple[str, bytes]:
    end = random.choice(list(ENDS.values()))
    return ".txt", (end * 2).join(random.choice(TEXTS) for _ in range(4)).encode()


def parquet(random: Random) -> tuple[str, bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(objects(random)), sink)
    return ".parquet", sink.getvalue()


MAKERS = (table, table, table, json_lines, json_lines, json_array, json_array, text_blocks)


def valid_file(random: Random) -> tuple[str, bytes]:
    """A suffix and the bytes of a file that a careful program wrote."""
    suffix, data = (parquet if random.random() < 0.03 else random.choice(MAKERS))(random)
    if random.random() < 0.05:
        return suffix + ".gz", gzip.compress(data, 1)
    return suffix, data


# --- damage --------------------------------------------------------------------------------------

MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")
PIECES = (
    b'"', b'"', b'""', b",", b";", b"\t", b"\n", b"\r", b"\r\n", b"\n\n", b"\\", b'\\"', b"{", b"}",
    b"[", b"]", b":", b"\0", b"\xff", b"\x81", b"\xc3", b"\\ud83d", b"\\u00", b"NaN", b"-Infinity",
    b"1e999", b"9" * 5000, b"[" * 2000, b'{"a":' * 500, b"null", b"true", b"sep=;\n",
    b"\xef\xbb\xbf", b'{"a":1,"a":2}', b"\x1f\x8b", b"\x1a",
)  # fmt: skip
Damage = Callable[[Random, bytes], bytes]


def _flip(random: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random.randint(1, 4)):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _insert(random: Random, data: bytes) -> bytes:
    at = random.randint(0, len(data))
    return data[:at] + random.choice(PIECES) + data[at:]


def _delete_piece(random: Random, data: bytes) -> bytes:
    piece = random.choice((b'"', b",", b"\n", b"{", b"}", b"[", b"]", b":", b"\r", b"\\"))
    places = [at for at in range(len(data)) if data.startswith(piece, at)]
    if not places:
        return data
    at = random.choice(places)
    return data[:at] + data[at + len(piece) :]


def _cut(random: Random, data: bytes) -> bytes:
    return data[: random.randint(0, len(data))]


def _drop(random: Random, data: bytes) -> bytes:
    start = random.randint(0, len(data))
    return data[:start] + data[start + random.randint(0, 40) :]


def _splice(random: Random, data: bytes) -> bytes:
    other = valid_file(random)[1]
    return data[: random.randint(0, len(data))] + other[random.randint(0, len(other)) :]


def _join(random: Random, data: bytes) -> bytes:
    return data + random.choice((b"", b"\n", MARKS[0])) + valid_file(random)[1]


def _mark(random: Random, data: bytes) -> bytes:
    return random.choice(MARKS) + data


def _noise(random: Random, data: bytes) -> bytes:
    at = random.randint(0, len(data))
    return data[:at] + random.randbytes(random.randint(1, 30)) + data[at:]


DAMAGES: tuple[Damage, ...] = (
    _flip, _insert, _insert, _delete_piece, _cut, _drop, _splice, _join, _mark, _noise,
)  # fmt: skip


def damaged_file(random: Random) -> tuple[str, bytes]:
    """A suffix, now and then of another kind, and bytes of which some are wrong."""
    suffix, data = valid_file(random)
    for _ in range(random.choice((0, 1, 1, 1, 2, 3))):
        data = random.choice(DAMAGES)(random, data or b"\n")
    if random.random() < 0.05:
        suffix = random.choice((".csv", ".json", ".jsonl", ".txt", ".tsv", ".csv.gz", ".parquet"))
    return suffix, data


# --- the law -------------------------------------------------------------------------------------


def read(path: Path, kind: str, folder: Path, *, whole: bool) -> str:
    """What came of it: "refused" or "read". Raises whatever a reader may not raise."""
    try:
        count = check_rows(path)
        check_records(path, kind, count)
        if whole:
            check_import(path, kind, folder, count)
    except DataError as error:
        str(error).encode()  # or it could not be printed
        assert str(error).endswith("."), f"no sentence: {error}"
        return "refused"
    return "read"


def check_rows(path: Path) -> int:
    """Rows are numbered 1, 2, 3, and begin on lines that do not go back."""
    line = count = 0
    for count, row in enumerate(read_rows([path], Reading()), start=1):
        assert row.row == count, f"row {row.row} comes as number {count}"
        assert row.line >= max(line, 1), f"row {count} is on line {row.line} after {line}"
        line = row.line
    assert count, "no row, and nothing said"
    return count


def check_records(path: Path, kind: str, count: int) -> None:
    """Each row is out or set aside, and each of both can be written."""
    quarantine, out = Quarantine(io.BytesIO()), 0
    for item in read_records(str(path), kind, "auto", Reading())[1]:
        if isinstance(item, Rejected):
            quarantine.add(item)
            item.detail.encode()
            assert item.reason and item.detail.endswith("."), f"no sentence: {item.detail}"
            continue
        out += 1
        for record in item:
            orjson.dumps(record if isinstance(record, str) else record.to_json())
    assert count == out + quarantine.rows, f"{count} rows in, {out} + {quarantine.rows} out"


def check_import(path: Path, kind: str, folder: Path, count: int) -> None:
    """The report counts what the files hold."""
    report = import_data(kind, str(path), folder, max_quarantined=1.0)
    said = json.loads((folder / "import.json").read_text())
    rejects = (folder / "quarantine.jsonl").read_bytes().splitlines()
    assert said == json.loads(json.dumps(report.to_json()))
    assert count == report.rows_in == report.rows_out + report.rows_quarantined
    assert [json.loads(reject)["row"] > 0 for reject in rejects] == [True] * report.rows_quarantined
    [records] = folder.glob("*s.jsonl") if kind != "text" else folder.glob("text.jsonl")
    assert records.read_bytes().count(b"\n") == report.records


def fuzz(inputs: int, seed: int, folder: Path, kept: Path) -> tuple[Counter[str], list[str]]:
    """How often each outcome was, and a report of each that is not allowed."""
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    for number in range(seed, seed + inputs):
        random = Random(number)
        suffix, data = damaged_file(random)
        path = folder / f"input{suffix}"
        path.write_bytes(data)
        output = folder / "out"
        try:
            whole = random.randrange(WHOLE_IMPORT) == 0
            outcomes[read(path, random.choice(KINDS), output, whole=whole)] += 1
        except Exception:
            outcomes["failed"] += 1
            kept.mkdir(parents=True, exist_ok=True)
            saved = shutil.copy(path, kept / f"{number}{suffix}")
            failures.append(f"seed {number}, saved as {saved}\n{traceback.format_exc()}")
        finally:
            path.unlink()
            shutil.rmtree(output, ignore_errors=True)
    return outcomes, failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first; each has its own")
    parser.add_argument("--kept", type=Path, default=Path(tempfile.gettempdir(), "fuzz_failures"))
    options = parser.parse_args()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        outcomes, failures = fuzz(options.inputs, options.seed, Path(folder), options.kept)
    print(*failures, sep="\n")
    print(
        f"{options.inputs} inputs: {outcomes['read']} read, {outcomes['refused']} refused, "
        f"{outcomes['failed']} failed"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
