"""Where the time of our training steps goes, and how much of the machine's speed they reach."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from packed_sides import ours
from packed_work import Work, build, peak_flops

KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::addmv"),
    "attention": ("scaled_dot_product", "flash_attention", "_softmax"),
    "optimiser": ("aten::_fused_adam", "aten::_foreach", "Optimizer.step", "aten::lerp", "addcdiv"),
}
"""Parts of the names of operations; what fits none is element by element, or no operation."""


def profile(work: Work) -> None:
    """Prints the shares of a run's time by kind, and the operations that take most."""
    import torch

    with tempfile.TemporaryDirectory() as name:
        build(work, Path(name))
        plain = ours(work, Path(name))
        recorded: list[Any] = []

        @contextmanager
        def around() -> Iterator[None]:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
                yield
            recorded.append(found)

        with packing_named():
            measured = ours(work, Path(name), around=around)
    events = recorded[0].key_averages()
    shares = _shares(events, measured["seconds"])
    print(f"{work.name}: {plain['seconds']:.2f} s, {measured['seconds']:.2f} s with the profiler")
    for kind, share in shares.items():
        print(f"  {kind:24} {100 * share:5.1f} %")
    for event in sorted(events, key=lambda one: -one.self_cpu_time_total)[:14]:
        print(f"    {event.self_cpu_time_total / 1e6:7.3f} s {event.count:6} {event.key}")
    peak = peak_flops("cpu", work.dtype)
    reached = plain["flops"] / plain["seconds"]
    print(
        f"  {reached / 1e9:.0f} of {peak / 1e9:.0f} GFLOP/s "
        f"({100 * reached / peak:.0f} % of a 1024 x 1024 product's) on {plain['computed']:,} tokens"
    )


@contextmanager
def packing_named() -> Iterator[None]:
    """The layout of tokens shows up in a profile under its own name."""
    import torch

    from align import rankings

    before: Callable[..., Any] = rankings.pack

    def named(*arguments: Any, **more: Any) -> Any:
        with torch.profiler.record_function("packing"):
            return before(*arguments, **more)

    rankings.pack = named
    try:
        yield
    finally:
        rankings.pack = before


def _shares(events: Any, seconds: float) -> dict[str, float]:
    """Of the wall clock; an operation's own time, and all time below an optimiser's step."""
    found = dict.fromkeys([*KINDS, "packing", "element by element"], 0.0)
    inside = {e.key: e.cpu_time_total / 1e6 for e in events}
    found["packing"] = inside.get("packing", 0.0) / seconds
    found["optimiser"] = sum(s for key, s in inside.items() if "Optimizer.step" in key) / seconds
    for event in events:
        own = event.self_cpu_time_total / 1e6 / seconds
        kinds = [kind for kind, names in KINDS.items() if any(n in event.key for n in names)]
        if kinds and kinds[0] != "optimiser":
            found[kinds[0]] += own
        elif not kinds and event.key.startswith("aten::"):
            found["element by element"] += own
    # Operations within packing and the optimiser's step were counted twice.
    found["rest (Python, autograd)"] = 1 - sum(found.values())
    return found
