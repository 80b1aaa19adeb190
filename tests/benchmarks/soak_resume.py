"""Kills a run at random moments and says whether it came to what an undisturbed one came to.

    python tests/benchmarks/soak_resume.py --kills 20 --seed 0

The run is the toy of tests/align/test_resume.py: reward, dpo and ppo. It is first run undisturbed;
then again, in another folder, in processes that are sent SIGKILL after a random time, again and
again, until one comes to the end; and in a third folder, until there were so many kills. Processes
are forked once everything is imported, so that the moments fall into the run. Compared
are all files of every step, and the last checkpoint of each (value function, moments, random
state), byte by byte but for what a clock measures. Exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "align"))
from test_resume import (  # pyright: ignore[reportMissingImports] - a test, on no package path
    CONFIG,
    Life,
    last_kept,
    left_by,
    live,
)

STEPS = ("reward", "dpo", "ppo")


def run_for(seconds: float | None) -> bool:
    """Runs the configuration in this folder in a process of its own, for so long at most.

    Returns whether it came to its end. Raises RuntimeError if it failed.
    """
    child = os.fork()
    if child == 0:
        code = 1
        with Path("log").open("a") as log:
            os.dup2(log.fileno(), 2)
            try:
                code = live(Life(), 0, 0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)  # if it has ended, it still waits to be asked how
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the run failed: {Path('log').read_text()[-2000:]}")
    return code == 0


def where() -> str:
    """The step that a kill interrupted, and its newest checkpoint."""
    for step in STEPS:
        folder = Path("run") / step
        if not (folder / "artifact.json").exists():
            found = sorted(path.name for path in folder.glob("checkpoints/*"))
            return f"in {step}, checkpoints {', '.join(found) or 'none'}"
    return "after the last step"


def begin(folder: Path) -> None:
    folder.mkdir()
    os.chdir(folder)
    Path("config.json").write_text(json.dumps(CONFIG))


def differences(run: Path, reference: Path) -> list[str]:
    """Names of what differs."""
    found: list[str] = []
    for step in STEPS:
        mine, theirs = left_by(run / "run" / step), left_by(reference / "run" / step)
        found += [
            f"{step}/{n}" for n in mine.keys() | theirs.keys() if mine.get(n) != theirs.get(n)
        ]
        if last_kept(run, step) != last_kept(reference, step):
            found.append(f"{step}/checkpoints")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for kind in ("dpo", "evaluate", "ppo", "reward"):
        importlib.import_module(f"align.stages.{kind}")
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        reference = Path(scratch) / "reference"
        begin(reference)
        started = time.monotonic()
        run_for(None)
        seconds = time.monotonic() - started
        print(f"undisturbed: {seconds:.1f} s", flush=True)
        places: Counter[str] = Counter()
        found: list[str] = []
        for number in count():
            run = Path(scratch) / f"run-{number}"
            begin(run)
            ended = False
            while not ended and places.total() < options.kills:
                moment = draw.uniform(0.0, 0.75 * seconds)
                ended = run_for(moment)
                if ended:
                    break
                places[where().partition(",")[0]] += 1
                print(f"killed after {moment:.2f} s: {where()}", flush=True)
            if not ended:
                run_for(None)
            found += differences(run, reference)
            print(f"run {number} has come to its end; differences: {found or 'none'}", flush=True)
            if places.total() >= options.kills:
                break
        print(f"{places.total()} kills ({dict(places)}); differences: {found or 'none'}")
        os.chdir("/")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
