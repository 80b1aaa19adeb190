"""Training on HH pairs and rankings: packed batches against TRL's own trainers, in turns.

    ALIGN_TEST_DATA=FOLDER python tests/benchmarks/packed_vs_trl.py --kind reward --model 14m --lora
    ALIGN_TEST_DATA=FOLDER python tests/benchmarks/packed_vs_trl.py --table --results rows.jsonl

Both train the same Llama-shaped model with random weights on the same rows, each in a
process of its own, one after the other. TRL runs without gradient checkpointing, in every honest
way: with its own padding, with rows of one length together, these in whole batches or two pairs a
forward pass, in DPO with the reference computed before the training or along with it, in bfloat16
with autocast or without, and if ours is compiled, compiled or not. All ways run once; the best one
runs as often as ours (`--repeats`), and its median is the one that ours is compared with. `--kind
ranking` gives TRL all six pairs of rankings of four (Fine-grained RLHF) where ours takes the
rankings.

A row of the table has the medians of the whole run's seconds and their spread, the ratio, the
tokens (`pairs'` are those of all conversations and equal on both sides; `computed` hold the padding
and leave out what is shared), and the peak of memory above what the process held with the model in
it. `fewer tokens` is TRL's computed tokens by ours: the speed that batches alone would give, if a
token cost both sides the same. `speed a token` is the rest of the speed: above 1, a computed token
takes ours less time. `--malloc` gives both sides an allocator that keeps what it frees, instead of
a page fault for every large tensor. `--profile` says where the time of ours goes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from packed_work import LLAMAS, Work, build

MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**26),
}
"""glibc's: large blocks come from the heap, which is grown by 64 MB at a time and never shrinks."""

SHORT = {8: 8, 16: 6}
"""Batches of rows in a table's configuration, by their size."""

Result = dict[str, Any]


def configurations() -> list[Work]:
    """What `--table` runs."""
    works = [
        Work(kind, "14m", lora, batch, steps)
        for kind in ("reward", "dpo")
        for lora in (True, False)
        for batch, steps in SHORT.items()
    ]
    works += [Work("dpo", "14m", lora, 8, 4, epochs=2) for lora in (True, False)]
    works.append(Work("ranking", "14m", True, 4, 3))
    works += [Work(kind, "60m", True, 8, 2) for kind in ("reward", "dpo")]
    return works


def variants(work: Work) -> list[str]:
    """The ways in which TRL can be run."""
    ways = ["padded", "grouped", "grouped+accumulated"]
    # Within one epoch a reference computed before costs what it costs along with the training.
    if work.kind == "dpo" and work.epochs > 1:
        ways += [f"{way}+cached" for way in ways]
    if work.dtype != "float32":
        ways += [f"{way}+uncast" for way in ways]
    if work.compile:
        ways += [f"{way}+compiled" for way in ways]
    return ways


def compare(work: Work, repeats: int, malloc: bool) -> Result:
    """Ours and TRL in turns: TRL's ways once each, then the best of them again."""
    with tempfile.TemporaryDirectory() as folder:
        build(work, Path(folder))
        found: dict[str, list[Result]] = {"ours": [child("ours", work, folder, malloc)]}
        for way in variants(work):
            found[way] = [child(way, work, folder, malloc)]
        best = min(variants(work), key=lambda way: found[way][0]["seconds"])
        for _ in range(repeats - 1):
            for side in ("ours", best):
                found[side].append(child(side, work, folder, malloc))
    rest = {way: found[way][0] for way in variants(work) if way != best}
    return {
        "work": dataclasses.asdict(work), "malloc": malloc, "best": best, "rest": rest,
        "ours": found["ours"], "trl": found[best],
    }  # fmt: skip


def child(side: str, work: Work, folder: str, malloc: bool) -> Result:
    """One run of one side in a fresh process."""
    command = [sys.executable, str(Path(__file__).with_name("packed_sides.py")), side]
    done = subprocess.run(
        [*command, work.to_json(), folder], capture_output=True, text=True, check=False,
        env={**os.environ, **(MALLOC if malloc else {})},
    )  # fmt: skip
    line = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
    if not line:
        sys.exit(f"{side} failed on {work.name}: {done.stderr[-2000:]}")
    return json.loads(line[0].removeprefix("RESULT "))


# --- the table -----------------------------------------------------------------------------------

HEADER = (
    "| work | ours s (spread) | TRL s (spread) | TRL's best way; others s (speed) | speed "
    "| pairs' tokens ours / TRL | computed ours / TRL | fewer tokens | speed a token "
    "| MB ours / TRL | memory |\n|" + "---|" * 11
)


def table_row(result: Result) -> str:
    """A configuration as a row of markdown."""
    ours, trl = result["ours"], result["trl"]
    work = Work(**result["work"])
    seconds = _median(ours, "seconds")
    speed = _median(trl, "seconds") / seconds
    rest = ", ".join(
        f"{way} {one['seconds']:.2f} ({one['seconds'] / seconds:.1f})"
        for way, one in result["rest"].items()
    )
    fewer = trl[0]["computed"] / ours[0]["computed"]
    memory = _median(ours, "megabytes") / _median(trl, "megabytes")
    return (
        f"| {work.name}{', malloc' if result['malloc'] else ''} | {_spread(ours)} | {_spread(trl)} "
        f"| {result['best']}; {rest} | **{speed:.1f}** "
        f"| {ours[0]['real']:,} / {trl[0]['real']:,} "
        f"| {ours[0]['computed']:,} / {trl[0]['computed']:,} "
        f"| {fewer:.2f} | {speed / fewer:.2f} "
        f"| {_median(ours, 'megabytes'):,.0f} / {_median(trl, 'megabytes'):,.0f} "
        f"| **{memory:.2f}** |"
    )


def _median(runs: list[Result], name: str) -> float:
    return statistics.median(run[name] for run in runs)


def _spread(runs: list[Result]) -> str:
    seconds = [run["seconds"] for run in runs]
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"


def run_table(works: list[Work], repeats: int, malloc: bool, results: Path | None) -> None:
    """Prints a row for each of `works`. Those in the file `results` are not run again; the others
    are added to it."""
    known = [json.loads(line) for line in _lines(results)]
    print(HEADER)
    for work in works:
        same = [x for x in known if x["work"] == dataclasses.asdict(work) and x["malloc"] == malloc]
        result = same[0] if same else compare(work, repeats, malloc)
        if results is not None and not same:
            with results.open("a") as file:
                file.write(json.dumps(result) + "\n")
        print(table_row(result), flush=True)


def _lines(file: Path | None) -> list[str]:
    return file.read_text().splitlines() if file is not None and file.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=["reward", "dpo", "ranking"], default="reward")
    parser.add_argument("--model", choices=LLAMAS, default="14m")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--batch", type=int, default=8, help="pairs, or rankings, of a step")
    parser.add_argument("--steps", type=int, default=8, help="batches of rows in an epoch")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--compile", action="store_true", help="torch.compile on both sides")
    parser.add_argument("--warm", action="store_true", help="time the second of two runs")
    parser.add_argument("--malloc", action="store_true", help="an allocator that keeps memory")
    parser.add_argument("--table", action="store_true", help="all configurations, in short form")
    parser.add_argument("--results", type=Path, help="file of results, read and added to")
    parser.add_argument("--profile", action="store_true", help="where the time of ours goes")
    chosen = parser.parse_args()
    work = Work(
        chosen.kind, chosen.model, chosen.lora, chosen.batch, chosen.steps, chosen.epochs,
        chosen.dtype, warm=chosen.warm, compile=chosen.compile,
    )  # fmt: skip
    if chosen.profile:
        from packed_profile import profile

        profile(work)
    else:
        works = configurations() if chosen.table else [work]
        run_table(works, chosen.repeats, chosen.malloc, chosen.results)


if __name__ == "__main__":
    main()
