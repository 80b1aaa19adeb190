"""Starts runs as users start them, with each launcher, in process groups of their own.

Not a test: those of launchers, faults, nodes and ranks use it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from small_runs import ONE_LAYER, builtin, world_of

SHARED = Path(__file__).resolve().parent
ROOT = SHARED.parents[1]
PYTHONPATH = os.pathsep.join([str(ROOT), str(SHARED)])
"""For a file of tests that runs as a script: it finds this folder's modules as the tests do."""
PATIENCE = 300
"""Seconds after which a test gives a run up; ends in 20 on two cores."""
TRAIN = {
    "max_steps": 4, "train_batch_size": 8, "learning_rate": 1e-3, "max_length": 96,
    "logging_steps": 1,
}  # fmt: skip
SMALL: dict[str, Any] = {
    "name": "small",
    "output_dir": "run",
    "base": {"architecture": ONE_LAYER},
    "lora": {"r": 2, "alpha": 4},
    "world": world_of(30, demonstrations=120, items=40),
    "data": builtin("demonstrations", "labels"),
    "steps": {
        # Within an epoch: its last batch is filled up by accelerate, to as many rows on every rank.
        "sft": {"kind": "sft", "data": "demonstrations", "train": TRAIN},
        "reward": {"kind": "reward", "data": "labels", "init": "sft", "train": TRAIN},
    },
}  # fmt: skip
REWARD_ALONE: dict[str, Any] = {
    **SMALL,
    "data": builtin("labels"),
    "steps": {
        "reward": {
            "kind": "reward", "data": "labels", "init": "base",
            "train": {**TRAIN, "save_steps": 1},
        }
    },
}  # fmt: skip
LAUNCHED = {
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
}  # fmt: skip
"""What a launcher says; a test that was started by one must not hand it on."""


class Ended(NamedTuple):
    """How a run ended."""

    code: int
    text: str
    """standard output and error"""


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Of a run: one thread, no GPU, the interpreter of the tests first on the PATH."""
    found = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    paths = [str(Path(sys.executable).parent), os.environ["PATH"]]
    found |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PATH": os.pathsep.join(paths)}
    return found | {"PYTHONPATH": str(ROOT), **(more or {})}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def torchrun(ranks: int = 2, *options: str) -> list[str]:
    start = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}"]
    return [*start, *(options or (f"--master_port={free_port()}",))]


def deepspeed(ranks: int = 2, *options: str) -> list[str]:
    start = [sys.executable, "-m", "deepspeed.launcher.runner"]
    return [*start, *(options or (f"--num_gpus={ranks}", f"--master_port={free_port()}"))]


def accelerate(file: Path, *options: str) -> list[str]:
    start = [sys.executable, "-m", "accelerate.commands.launch", f"--config_file={file}"]
    return [*start, f"--main_process_port={free_port()}", *options]


def begin(
    command: Sequence[str], folder: Path, more: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """A launcher and its processes, in a session of their own, in `folder`."""
    return subprocess.Popen(
        command, cwd=folder, env=environment(more), text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def end(*processes: subprocess.Popen[str]) -> list[Ended]:
    """Waits for all of them; nothing of them is left, whatever happens."""
    try:
        texts = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return [Ended(process.returncode, text) for process, text in zip(processes, texts, strict=True)]


def run(command: Sequence[str], folder: Path, more: Mapping[str, str] | None = None) -> Ended:
    [ended] = end(begin(command, folder, more))
    return ended


def run_ranks(file: str, folder: Path, *arguments: str) -> list[Ended]:
    """How two ranks that no launcher watches end: each runs a file of tests in `folder`."""
    told = {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
        "PYTHONPATH": PYTHONPATH,
    }  # fmt: skip
    command = [sys.executable, file, *arguments]
    ranks = [
        begin(command, folder, {**told, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    return end(*ranks)
