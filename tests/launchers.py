"""Starts runs as users start them, with each launcher, in process groups of their own.

Not a test: the tests of launchers, faults and nodes load it.
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

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 300
"""Seconds after which a test gives a run up; ends in 20 on two cores."""
TRAIN = {
    "max_steps": 4, "train_batch_size": 8, "learning_rate": 1e-3, "max_length": 96,
    "logging_steps": 1,
}  # fmt: skip
SMALL: dict[str, Any] = {
    "name": "small",
    "output_dir": "run",
    "base": {
        "architecture": {
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 300,
        }
    },
    "lora": {"r": 2, "alpha": 4},
    "world": {"documents": 30, "demonstrations": 120, "items": 40, "prompts": 30},
    "data": {
        "demonstrations": {"path": "builtin:demonstrations"},
        "labels": {"path": "builtin:labels"},
    },
    "steps": {
        # Within an epoch: its last batch is filled up by accelerate, to as many rows on every rank.
        "sft": {"kind": "sft", "data": "demonstrations", "train": TRAIN},
        "reward": {"kind": "reward", "data": "labels", "init": "sft", "train": TRAIN},
    },
}  # fmt: skip
REWARD_ALONE: dict[str, Any] = {
    **SMALL,
    "data": {"labels": SMALL["data"]["labels"]},
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


def end(process: subprocess.Popen[str]) -> Ended:
    """Waits for it; nothing of it is left, whatever happens."""
    try:
        text, _ = process.communicate(timeout=PATIENCE)
        return Ended(process.returncode, text)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def run(command: Sequence[str], folder: Path, more: Mapping[str, str] | None = None) -> Ended:
    return end(begin(command, folder, more))
