"""Sampling with the prompts read in one row, against the same with a padded batch of them.

    ALIGN_TEST_DATA=… python tests/benchmarks/rollout_prompts.py

In turns, on the prompts of HH with at most 128 tokens and a Llama of 14 M parameters with random
weights: the seconds of one token of each prompt, which is reading the prompts, and of a whole
response; medians, and the ratios.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from packed_work import Work, build
from ppo_vs_trl import never_ends, prompts_of


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def measure(folder: Path, batch: int, tokens: int, repeats: int) -> dict[str, list[float]]:
    """Seconds by `packed` and `padded`."""
    import torch

    from align import decoding
    from align.base import load_base, load_renderer
    from align.config import Base
    from align.policy import respond, uniforms

    model: Any = load_base(str(folder), Base(model=str(folder)), torch.device("cpu")).eval()
    renderer = load_renderer(str(folder))
    never_ends(renderer.tokenizer)
    prompts, draws = prompts_of(folder, batch), uniforms(0, batch, tokens)
    ways: dict[str, Any] = {"packed": decoding.read_prompts, "padded": lambda *_: None}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, read in ways.items():
            decoding.read_prompts = read
            taken = seconds(lambda: respond(model, prompts, draws, renderer, 1.0))
            if turn:  # the first is for warming up
                found[name].append(taken)
        decoding.read_prompts = ways["packed"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=64, help="tokens of a response")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        build(Work("reward", "14m", True, 8, 1), Path(folder))
        print("| new tokens | padded s | packed s | times |\n|---|---|---|---|")
        for tokens in (1, arguments.length):
            taken = measure(Path(folder), arguments.batch, tokens, arguments.repeats)
            padded, packed = (statistics.median(taken[name]) for name in ("padded", "packed"))
            print(f"| {tokens} | {padded:.2f} | {packed:.2f} | {padded / packed:.2f} |")


if __name__ == "__main__":
    main()
