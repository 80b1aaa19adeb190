"""How a process joins its peers."""

from __future__ import annotations

import itertools
import os
import socket
from datetime import timedelta
from typing import Any

import torch

from align.peers import Peers

JOINED_WITHIN = timedelta(minutes=5)
"""From the first rank that is there to the last."""
DONE_WITHIN = timedelta(hours=6)
"""Longest wait for another rank, which may import data or ask a judge meanwhile. Whether it is
alive at all is seen within a minute (align/peers.py)."""
_JOINED = itertools.count()


def join(device: torch.device) -> Peers | None:
    """Into the process group, and among those who look after each other; None if there are none.

    Raises RuntimeError if not all ranks come within JOINED_WITHIN.
    """
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    found = rendezvous("env://", timeout=JOINED_WITHIN)
    shared, rank, world_size = next(iter(found))
    # A process may run one pipeline after the other: their keys must not meet.
    store: Any = PrefixStore(f"align/{next(_JOINED)}", shared)
    peers = None
    if world_size > 1:
        wait_for_all(store, rank, world_size)
        peers = Peers(store.clone(), store.clone(), rank, world_size)
    store.set_timeout(DONE_WITHIN)
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store, rank=rank, world_size=world_size, timeout=DONE_WITHIN,
    )  # fmt: skip
    return peers


def wait_for_all(store: Any, rank: int, world_size: int) -> None:
    """Until each rank is there: torchrun holds the store itself, and lets the first one in alone.

    Raises RuntimeError if not all come within JOINED_WITHIN.
    """
    store.set(f"joined/{rank}", "")
    names = {f"joined/{other}": other for other in range(world_size)}
    try:
        store.wait(list(names), JOINED_WITHIN)
    except RuntimeError as error:
        late = ", ".join(str(other) for name, other in names.items() if not store.check([name]))
        raise RuntimeError(
            f"rank {late} did not come within {JOINED_WITHIN.total_seconds() / 60:g} minutes"
        ) from error


def stand_alone() -> None:
    """Names this process the only one, unless a launcher has named it: a plain `python` run."""
    if "RANK" not in os.environ:
        os.environ.update(
            RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(_free_port()),
        )  # fmt: skip


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
