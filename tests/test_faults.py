"""A rank that fails ends the whole run, soon, with its reason said once; the next run goes on.

With a launcher, and without one: then nobody but the ranks themselves ends those that wait.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import launchers
import pytest
import yaml
from step_files import metrics_of

FAULTY = str(launchers.SHARED / "faulty.py")
REWARD = Path("run", "reward")
WITHIN = 60.0
"""Seconds after the fault in which all must be over."""


def configured(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "small.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


def artifacts(folder: Path) -> set[str]:
    """Names of the steps that are done."""
    return {path.parent.name for path in (folder / "run").glob("*/artifact.json")}


def since_the_fault(folder: Path) -> float:
    """Seconds; the faulty rank has written down when it was."""
    return time.time() - float((folder / "fault").read_text())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, from the start to the end."""
    folder = configured(tmp_path_factory.mktemp("undisturbed"), launchers.REWARD_ALONE)
    done = launchers.run([sys.executable, "-m", "align.cli", "run", "small.yaml"], folder)
    assert done.code == 0, done.text
    return folder


def prepared(undisturbed: Path, folder: Path) -> Path:
    """A copy whose reward step has yet to be run: what comes before it takes the time."""
    shutil.copytree(undisturbed, folder, dirs_exist_ok=True)
    shutil.rmtree(folder / "run" / "reward")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_a_rank_that_is_killed_ends_the_run_and_the_next_one_finishes(
    launcher: str, undisturbed: Path, tmp_path: Path
):
    """Killed between the gradients and the third step. One process goes on from what two have left
    after the second step, and comes to what one alone comes to; also under DeepSpeed."""
    folder = prepared(undisturbed, tmp_path)
    file = launchers.ROOT / "configs" / "deepspeed" / "zero2.json"
    own = [f"deepspeed={file}"] if launcher == "deepspeed" else []
    command = [*getattr(launchers, launcher)(), FAULTY, "--config", "small.yaml", *own]
    broken = launchers.run(command, folder, {"FAULT": "kill:1:2"})
    assert broken.code != 0
    assert since_the_fault(folder) < WITHIN
    assert "reward" not in artifacts(folder)
    again = launchers.run([sys.executable, "-m", "align.cli", "run", "small.yaml", *own], folder)
    assert again.code == 0, again.text
    assert "reward" in artifacts(folder)
    assert "reward resumes after step 2" in again.text
    pairs = zip(metrics_of(folder / REWARD), metrics_of(undisturbed / REWARD), strict=True)
    for row, expected in pairs:
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.slow
def test_two_processes_go_on_from_what_one_has_left(undisturbed: Path, tmp_path: Path):
    folder = prepared(undisturbed, tmp_path)
    command = [sys.executable, FAULTY, "--config", "small.yaml"]
    assert launchers.run(command, folder, {"FAULT": "kill:0:2"}).code == -signal.SIGKILL
    script = str(launchers.ROOT / "launch" / "reward.py")
    again = launchers.run([*launchers.torchrun(), script, "--config", "small.yaml"], folder)
    assert again.code == 0, again.text
    assert again.text.count("reward resumes after step 2") == 1
    pairs = zip(metrics_of(folder / REWARD), metrics_of(undisturbed / REWARD), strict=True)
    for row, expected in pairs:
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-5)


FAULTS = {
    "nan:1:2": "rank 1: step reward failed: the loss is nan at optimiser step 3, of the rows ",
    "data:1:2": "rank 1: row 7 is not what it was",
    "data:0:2": "row 7 is not what it was",
    "kill:1:2": "rank 1 is gone: it was killed, or its machine is down.",
    "kill:0:2": "rank 0 is gone: it was killed, or its machine is down.",
    "stop:1:2": "rank 1 is gone: it was killed, or its machine is down.",
}
"""What is said, by fault: by rank 0, unless it is the one that is gone."""


@pytest.fixture(scope="module")
def without_launcher(
    undisturbed: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """The folder with a run for each fault, and how its two ranks ended."""
    folder = tmp_path_factory.mktemp("faults")
    for fault in FAULTS:
        prepared(undisturbed, folder / fault)
    done = launchers.run([sys.executable, FAULTY, "alone", *FAULTS], folder)
    assert done.code == 0, done.text
    return folder, json.loads(done.text.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_ranks_end_with_the_one_that_fails_though_no_launcher_kills_them(
    fault: str, without_launcher: tuple[Path, dict[str, Any]]
):
    """With the reason, which is said once; and there is no artifact."""
    folder, ends = without_launcher
    faulty, other = ends[fault]["faulty"], ends[fault]["other"]
    assert "reward" not in artifacts(folder / fault)
    assert max(faulty["since"], other["since"]) < WITHIN
    assert faulty["code"] == -signal.SIGKILL if fault[0] in "ks" else faulty["code"] > 0
    assert other["code"] > 0
    speaker, silent = (faulty, other) if fault == "data:0:2" else (other, faulty)
    assert speaker["text"].count(FAULTS[fault]) == 1, speaker["text"]
    assert silent["text"].count("gone") == 0, silent["text"]
    assert "Traceback" not in faulty["text"] + other["text"]
    if fault.startswith("nan"):
        ids = other["text"].partition("of the rows ")[2].split("\n")[0].split(", ")
        judgements = (folder / fault / "run/data/labels/judgements.jsonl").read_text()
        assert ids and all(f'"{name}"' in judgements for name in ids)
