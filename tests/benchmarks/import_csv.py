"""Imports a large CSV of labels and reads it with others' readers, in turns; counts wrong rows.

    python tests/benchmarks/import_csv.py --rows 2000000 --folder FOLDER

writes 1.2 GB to the folder. Each reader runs in a process of its own. A row is wrong if its prompt,
answers or label differ from what was written, among them the answers "NA" and "null" and line ends
inside cells; the time to compare is not counted.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

COLUMNS = ("prompt", "response_a", "response_b", "label", "annotator")
Texts = tuple[str, str, str, str]


def rows(count: int) -> Iterator[tuple[str, ...]]:
    """Rows of about 600 bytes; every 50th answer is a word that readers take for nothing."""
    draw = random.Random(0)
    words = [f"word{i}" for i in range(2000)]

    def text(length: int) -> str:
        chosen = draw.choices(words, k=length)
        chosen[length // 3] += draw.choice(["\r\n", "\n", ',"so"'])
        return " ".join(chosen)

    for number in range(count):
        answer = ("NA", "null", "007")[number // 50 % 3] if number % 50 == 0 else text(26)
        yield (
            f"{text(15)} {number}", answer, text(30), draw.choice(["A", "B", "tie", "both_bad"]),
            f"w{draw.randrange(500)}",
        )  # fmt: skip


def write(path: Path, count: int) -> None:
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        writer.writerows(rows(count))


def align(path: Path, folder: Path) -> Iterable[Any]:
    from preference_data import import_data

    import_data("preferences", str(path), folder / "align")
    return _imported(folder / "align" / "judgements.jsonl")


def _imported(path: Path) -> Iterator[Texts]:
    import orjson

    labels = {((1, 2), None): "A", ((2, 1), None): "B", ((1, 1), "tie"): "tie"}
    with open(path, "rb") as stream:
        for line in stream:
            row = orjson.loads(line)
            first, second = (r["messages"][0]["content"] for r in row["responses"])
            label = labels.get((tuple(row["ranks"]), row["outcome"]), row["outcome"])
            yield row["prompt"][0]["content"], first, second, label


def datasets(path: Path, folder: Path) -> Iterable[Any]:
    from datasets import load_dataset

    data: Any = load_dataset(
        "csv", data_files=str(path), split="train", cache_dir=str(folder / "datasets")
    )
    return (tuple(row[name] for name in COLUMNS[:4]) for row in data)


def pandas(path: Path, folder: Path) -> Iterable[Any]:
    import pandas as pd

    return pd.read_csv(path)[list(COLUMNS[:4])].itertuples(index=False, name=None)


def standard(path: Path, folder: Path) -> Iterable[Any]:
    """The reader underneath, which neither checks nor writes anything."""
    with open(path, encoding="utf-8", newline="") as stream:
        for _ in csv.reader(stream, strict=True):
            pass
    return ()


READERS: dict[str, Callable[[Path, Path], Iterable[Any]]] = {
    "align import": align,
    "datasets load_dataset": datasets,
    "pandas read_csv": pandas,
    "csv (reads only)": standard,
}


def measure(name: str, path: Path, count: int) -> dict[str, Any]:
    """Seconds, peak memory of the process and its children's largest, and rows read wrong."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        start = time.monotonic()
        found = iter(READERS[name](path, Path(folder)))
        seconds = time.monotonic() - start
        memory = sum(_peak(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        wrong = count
        if name != "csv (reads only)":
            pairs = zip(rows(count), found, strict=False)
            wrong = count - sum(written[:4] == tuple(read) for written, read in pairs)
    return {"seconds": seconds, "megabytes": memory, "wrong": wrong}


def _peak(who: int) -> float:
    """MiB; of children, the largest one times their usual number."""
    peak = resource.getrusage(who).ru_maxrss / 1024
    return peak * len(os.sched_getaffinity(0)) if who == resource.RUSAGE_CHILDREN else peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--folder", type=Path, help="Where there is room for several gigabytes.")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--reader", choices=READERS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.reader:
        print(json.dumps(measure(arguments.reader, arguments.file, arguments.rows)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "labels.csv"
        write(path, arguments.rows)
        print(f"{arguments.rows:,} rows, {path.stat().st_size / 1e9:.2f} GB")
        for _ in range(arguments.turns):
            for name in READERS:
                command = [sys.executable, __file__, "--reader", name, "--file", str(path)]
                done = subprocess.run(
                    [*command, "--rows", str(arguments.rows)], capture_output=True, text=True,
                    check=False,
                )  # fmt: skip
                if done.returncode:
                    print(f"{name:24} failed: {done.stderr.strip().splitlines()[-1]}")
                    continue
                found = json.loads(done.stdout.splitlines()[-1])
                rate = arguments.rows / found["seconds"]
                wrong = f"{found['wrong']:,}" if name != "csv (reads only)" else "-"
                print(
                    f"{name:24} {found['seconds']:7.1f} s {rate:10,.0f} rows/s "
                    f"{found['megabytes']:7,.0f} MB   wrong rows: {wrong}"
                )


if __name__ == "__main__":
    main()
