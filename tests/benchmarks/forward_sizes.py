"""How many tokens a forward pass should hold: training on HH rows at several sizes, in turns.

    ALIGN_TEST_DATA=FOLDER python tests/benchmarks/forward_sizes.py
    ALIGN_TEST_DATA=FOLDER python tests/benchmarks/forward_sizes.py --kind sft --sizes 512,2048

Every run is a process of its own, which does the work twice and is timed the second time. Memory is
the peak above what the process held with the model in it. `sft` pads rows to the longest of a
forward pass: its sizes decide how many rows that are. The result does not depend on the size (the
losses are printed as a check). Ratios are to the first size.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from packed_sides import Clock, ours
from packed_work import MAX_LENGTH, Work, build, rows_of


def supervised(work: Work, folder: Path) -> dict[str, Any]:
    """Fine-tunes on the first answers; the metrics are of the last step."""
    from align.base import load_base, load_renderer
    from align.config import Base, Lora, TextTrain
    from align.engine import Engine
    from align.roles import Roles
    from align.supervised import fit_language_model
    from preference_data.forward_size import tokens_at_once

    clock, engine = Clock(), Engine()
    base = load_base(str(folder), Base(model=str(folder)), engine.device)
    clock.loaded(base)
    lora = Lora(r=16, alpha=32) if work.lora else None
    roles = Roles(base, load_renderer(str(folder)), lora, str(folder))
    roles.add("policy", fresh=True, trainable=True)
    rendered = [roles.renderer.render(row.prompt, row.responses[0]) for row in rows_of(work)]
    rows = [
        {
            "input_ids": [*row.prompt, *row.completion],
            "completion_mask": [0] * len(row.prompt) + [1] * len(row.completion),
        }
        for row in rendered
    ]
    longest = max(len(row["input_ids"]) for row in rows)
    room = max(1, (work.forward or tokens_at_once(engine.device.type)) // longest)
    train = TextTrain(
        train_batch_size=work.batch, max_length=MAX_LENGTH, logging_steps=1,
        per_device_train_batch_size=max(n for n in range(1, room + 1) if work.batch % n == 0),
    )  # fmt: skip

    class Last:
        loss = 0.0

        def log(self, number: int, metrics: dict[str, float]) -> None:
            clock.log(number, metrics)
            self.loss = metrics["train/loss"]

    tracker: Any = Last()
    clock.start()
    with roles.active("policy") as model:
        fit_language_model(model, rows, roles.renderer, train, engine, tracker, seed=0)
    return {**clock.result(), "loss": tracker.loss}


def once(work: Work, folder: Path) -> dict[str, Any]:
    return supervised(work, folder) if work.kind == "sft" else ours(work, folder)


def child(work: Work, folder: Path) -> dict[str, Any]:
    """A warm run in a process of its own."""
    command = [sys.executable, __file__, "--child", work.to_json(), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    line = [text for text in done.stdout.splitlines() if text.startswith("RESULT ")]
    if not line:
        sys.exit(f"{work.name} failed: {done.stderr[-2000:]}")
    return json.loads(line[0].removeprefix("RESULT "))


def compare(work: Work, sizes: list[int], repeats: int) -> None:
    """Prints a table of the sizes."""
    found: dict[int, list[dict[str, Any]]] = {size: [] for size in sizes}
    with tempfile.TemporaryDirectory() as folder:
        build(dataclasses.replace(work, kind="reward"), Path(folder))
        for _ in range(repeats):
            for size in sizes:
                found[size].append(child(dataclasses.replace(work, forward=size), Path(folder)))

    def middle(size: int, name: str) -> float:
        return statistics.median(one[name] for one in found[size])

    print(f"{work.name}\n| tokens | seconds | ratio | MB | ratio | loss |\n|" + "---|" * 6)
    for size in sizes:
        seconds, held = middle(size, "seconds"), middle(size, "megabytes")
        loss = found[size][0].get("loss")
        print(
            f"| {size} | {seconds:.2f} | {seconds / middle(sizes[0], 'seconds'):.2f} "
            f"| {held:,.0f} | {held / middle(sizes[0], 'megabytes'):.2f} "
            f"| {'' if loss is None else f'{loss:.6f}'} |",
            flush=True,
        )


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        work, folder = Work(**json.loads(sys.argv[2])), Path(sys.argv[3])
        first = once(work, folder)
        print("RESULT " + json.dumps({**once(work, folder), "megabytes": first["megabytes"]}))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=("reward", "dpo", "sft"), action="append")
    parser.add_argument("--model", choices=("tiny", "14m", "60m"), default="14m")
    parser.add_argument("--full", action="store_true", help="instead of LoRA")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sizes", default="1024,2048,8192")
    asked = parser.parse_args()
    for kind in asked.kind or ("reward", "dpo", "sft"):
        work = Work(kind, asked.model, not asked.full, asked.batch, asked.steps, warm=True)
        compare(work, [int(size) for size in asked.sizes.split(",")], asked.repeats)


if __name__ == "__main__":
    main()
