"""Training on one GPU: packed batches against TRL's trainers, with Qwen2.5's shapes in bfloat16.

    python tests/benchmarks/packed_gpu.py                        # reward and dpo, 0.5b and 1.5b
    python tests/benchmarks/packed_gpu.py --device cpu --model tiny --kind reward --steps 1

Weights are random and conversations are made from a seed with HH's spread of lengths, so nothing is
read. Ours packs; TRL runs padded and with rows of one length together, under sdpa and, where it
is installed, flash-attention 2. Printed are tokens of the pairs' conversations a second (the same
conversations on both sides), the share of the GPU's measured bfloat16 peak that goes into the
model's own operations (padding and recomputed ones do not count), and the peak of allocated memory
above the model.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from packed_vs_trl import child
from packed_work import MODELS, Work, build

PEAK = "from packed_work import peak_flops; print(peak_flops({device!r}, {dtype!r}))"


def ways(device: str) -> list[str]:
    """Ours first, and the ways in which both can be run here."""
    from transformers.utils.import_utils import is_flash_attn_2_available

    if device == "cpu":
        return ["ours", "padded", "grouped"]
    found = ["ours", "ours+flex_attention", "padded", "grouped"]
    if not is_flash_attn_2_available():
        return found
    return [*found, "ours+flash_attention_2", "padded+flash", "grouped+flash"]


def compare(work: Work, device: str, repeats: int, peak: float) -> None:
    """Prints a table of every way on `work`."""
    print(f"\n{work.name}, {work.dtype}\n")
    print(
        "| way | s | tokens a second | utilisation | computed tokens | MB | ours: speed, memory |"
    )
    print("|" + "---|" * 7)
    reference: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        build(work, Path(folder))
        for way in ways(device):
            runs = [child(way, work, folder, malloc=False) for _ in range(repeats)]
            one = min(runs, key=lambda run: run["seconds"])
            seconds = statistics.median(run["seconds"] for run in runs)
            reference = reference or {**one, "seconds": seconds}
            print(
                f"| {way} | {seconds:.2f} | {one['real'] / seconds:,.0f} "
                f"| {100 * one['flops'] / seconds / peak:.1f} % | {one['computed']:,} "
                f"| {one['megabytes']:,.0f} | {seconds / reference['seconds']:.2f}, "
                f"{reference['megabytes'] / one['megabytes']:.2f} |",
                flush=True,
            )


def measured_peak(device: str, dtype: str) -> float:
    """In a process of its own, so that this one holds no memory of the GPU."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK.format(device=device, dtype=dtype)],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--model", choices=MODELS, action="append", help="0.5b and 1.5b")
    parser.add_argument("--kind", choices=["reward", "dpo"], action="append", help="both")
    parser.add_argument("--full", action="store_true", help="all weights instead of LoRA")
    parser.add_argument("--batch", type=int, default=32, help="pairs of a step")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    dtype = "bfloat16" if chosen.device == "cuda" else "float32"
    if chosen.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    peak = measured_peak(chosen.device, dtype)
    print(f"a large {dtype} product: {peak / 1e12:.2f} TFLOP/s")
    for kind in chosen.kind or ["reward", "dpo"]:
        for model in chosen.model or ["0.5b", "1.5b"]:
            work = Work(
                kind, model, not chosen.full, chosen.batch, chosen.steps, chosen.epochs, dtype, True
            )
            compare(work, chosen.device, chosen.repeats, peak)


if __name__ == "__main__":
    main()
