"""Peak memory of a token's log-probabilities under a large vocabulary, forward and backward.

    python tests/benchmarks/logprob_memory.py [--device cuda] [--dtype bfloat16]

`align.logits.token_logprobs`, which never holds all logits, against log_softmax and gather on
materialised ones; by default for 4,096 tokens, hidden states of 896 and Qwen2.5's 151,936 words.
Each side runs in a process of its own and counts what it holds above its inputs (hidden states, the
head's weight, targets). The head is frozen, as under LoRA, or trained: then its gradient, as large
as the weight, counts on both sides.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """MB above the inputs at the peak, seconds, and the loss of one forward and backward pass."""
    from align.base import DTYPES
    from align.logits import token_logprobs

    torch.manual_seed(0)
    device, dtype = arguments.device, DTYPES[arguments.dtype]
    head = torch.nn.Linear(arguments.hidden, arguments.vocabulary, False, device, dtype)
    head.requires_grad_(arguments.trained)
    shape = arguments.tokens, arguments.hidden
    hidden = torch.randn(*shape, device=device, dtype=dtype, requires_grad=True)
    targets = torch.randint(arguments.vocabulary, shape[:1], device=device)
    functions = {"ours": token_logprobs, "materialised": materialised}
    # The libraries' first calls allocate workspaces of their own.
    small = hidden[:8].detach().requires_grad_()
    _loss(functions[arguments.side], small, head, targets[:8]).backward()
    head.zero_grad()
    before = _peak(device, reset=True)
    begin = time.monotonic()
    loss = _loss(functions[arguments.side], hidden, head, targets)
    loss.backward()
    result = {"megabytes": _peak(device) - before, "loss": loss.item()}
    assert hidden.grad is not None
    return {**result, "seconds": time.monotonic() - begin, "gradient": float(hidden.grad.norm())}


def materialised(hidden: Any, head: Any, targets: Any) -> tuple[Any, None]:
    """The textbook's: all logits in float32, normalised, and the targets' picked out."""
    logprobs = head(hidden).float().log_softmax(-1)
    return logprobs.gather(-1, targets[:, None]).squeeze(-1), None


def _loss(function: Any, hidden: Any, head: Any, targets: Any) -> Any:
    return -function(hidden, head, targets)[0].mean()


def _peak(device: str, reset: bool = False) -> float:
    """MB; on a GPU since the last reset, which leaves the peak at what is held."""
    if device != "cuda":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated() / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--trained", action="store_true", help="the head, too")
    parser.add_argument("--side", choices=["ours", "materialised"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print("RESULT " + json.dumps(measure(arguments)))
        return
    found = {side: _child(side) for side in ("ours", "materialised")}
    ours, theirs = found["ours"], found["materialised"]
    gradient = (
        arguments.hidden
        * arguments.vocabulary
        * (2 if arguments.dtype == "bfloat16" else 4)
        / 2**20
    )
    print(
        f"{arguments.tokens:,} tokens, {arguments.vocabulary:,} words, head "
        f"{f'trained (its gradient: {gradient:,.0f} MB)' if arguments.trained else 'frozen'}"
    )
    for side, one in found.items():
        print(f"  {side:13} {one['megabytes']:8,.0f} MB, {one['seconds']:6.2f} s")
    print(
        f"  1 / {theirs['megabytes'] / ours['megabytes']:.1f} of the memory; "
        f"loss apart by {abs(ours['loss'] - theirs['loss']):.1e}, "
        f"gradient's norm by {abs(ours['gradient'] / theirs['gradient'] - 1):.1e}"
    )


def _child(side: str) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    line = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
    if not line:
        sys.exit(f"{side} failed: {done.stderr[-2000:]}")
    return json.loads(line[0].removeprefix("RESULT "))


if __name__ == "__main__":
    main()
