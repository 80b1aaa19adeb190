"""Runs a configuration as launch/pipeline.py does; one rank has a fault in the middle of a step.

Not a test: the tests of faults start it, by a launcher or, with "alone" and the faults as its
arguments, as two processes for each fault that nobody watches. A fault is "kind:rank:steps": of
that rank, in the backward pass after so many optimiser steps.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import launchers

import align.launched
import align.peers
import launch
from align.sharded_training import DeepSpeedTraining
from align.training import Training
from preference_data.quarantine import DataError

ARGUMENTS = ["--config", "small.yaml"]
PATIENCE = 120.0
"""Seconds after which ranks that still run are killed."""


def put_in(fault: str) -> None:
    """The fault into this process, if it is of this rank."""
    kind, rank, steps = fault.split(":")
    if os.environ.get("RANK", "0") != rank:
        return
    for owner in (Training, DeepSpeedTraining):
        owner.backward = with_fault(owner.backward, kind, int(steps))


def with_fault(backward: Any, kind: str, steps: int) -> Any:
    def broken(self: Training, loss: Any, *rest: Any) -> None:
        if self.steps_done != steps:
            return backward(self, loss, *rest)
        Path("fault").write_text(str(time.time()))
        if kind == "data":
            raise DataError("row 7 is not what it was")
        backward(self, loss * float("nan") if kind == "nan" else loss, *rest)
        # As a machine that is down, the stopped one says nothing and closes no connection.
        os.kill(os.getpid(), signal.SIGSTOP if kind == "stop" else signal.SIGKILL)

    return broken


def alone(fault: str) -> dict[str, Any]:
    """Two ranks in the folder called `fault`; how each ended, in JSON: its code, what it said, and
    how long after the fault."""
    port = launchers.free_port()
    children = {_fork(fault, rank, port): rank for rank in range(2)}
    faulty = next(child for child, rank in children.items() if f":{rank}:" in fault)
    ended: dict[str, Any] = {}
    until = time.monotonic() + PATIENCE
    while len(ended) < 2:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            since = time.time() - float(Path(fault, "fault").read_text())
            text = Path(fault, f"log{children[child]}").read_text()
            ended["faulty" if child == faulty else "other"] = {
                "code": os.waitstatus_to_exitcode(status), "text": text, "since": since,
            }  # fmt: skip
        if time.monotonic() > until or (fault.startswith("stop") and "other" in ended):
            for left in children:
                if ("faulty" if left == faulty else "other") not in ended:
                    os.kill(left, signal.SIGKILL)
        time.sleep(0.05)
    return ended


def _fork(fault: str, rank: int, port: int) -> int:
    if child := os.fork():
        return child
    os.chdir(fault)
    log = os.open(f"log{rank}", os.O_CREAT | os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    align.peers.LIMIT, align.launched.SPOKEN_WITHIN = 6.0, 5.0
    put_in(fault)
    code = launch.main(ARGUMENTS)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "alone":
        importlib.import_module("align.stages.reward")
        print(json.dumps({fault: alone(fault) for fault in sys.argv[2:]}))
    else:
        put_in(os.environ["FAULT"])
        sys.exit(launch.main())
