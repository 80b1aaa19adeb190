"""A killed run goes on to the same bits: adapters, metrics, samples and what the optimiser holds.

Run as a script, this file is the lives of one run: each a process that kills itself at a certain
call, but for the last, which comes to the end.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from launchers import PYTHONPATH, free_port
from safetensors.torch import load_file
from small_runs import ONE_LAYER, builtin, world_of
from step_files import is_clocked, metrics_of

from align import checkpoints
from align.checkpoints import Checkpoint
from align.config import ConfigError, build_config
from align.engine import Engine
from align.pipeline import Pipeline
from align.rankings import Meter
from align.schedules import SCHEDULES
from align.tracking import Trackers
from align.tracking.files import FileTracker
from align.training import ParameterGroup, Training

ROOT = Path(__file__).resolve().parents[2]
RANKING = {
    "max_steps": 7, "train_batch_size": 4, "learning_rate": 1e-2, "max_length": 96,
    "logging_steps": 3, "save_steps": 2,
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "name": "resumed",
    "output_dir": "run",
    "base": {"architecture": ONE_LAYER},
    # Dropout: the random state counts, too.
    "lora": {"r": 2, "alpha": 4, "dropout": 0.2},
    "world": world_of(30),
    "data": builtin("labels", "prompts"),
    "steps": {
        "reward": {"kind": "reward", "data": "labels", "init": "base", "train": RANKING},
        "dpo": {"kind": "dpo", "data": "labels", "policy": "base", "train": RANKING},
        "ppo": {
            "kind": "ppo", "data": "prompts", "policy": "base", "reward": "reward",
            "train": {
                "iterations": 7, "save_iterations": 2, "prompts_per_iteration": 6,
                "rollout_batch_size": 3, "max_new_tokens": 6, "learning_rate": 1e-2,
                "value_learning_rate": 1e-2,
                "kl": {"coefficient": 0.05, "target": 0.02, "horizon": 50},
            },
        },
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Life:
    """A process (or several) of a run, until it is killed or comes to the end."""

    kill: tuple[str, str, int, str] | None = None
    """(module, or module:class, function, which call of it, "before" or "after" it)"""
    ranks: int = 1
    cut: str | None = None
    """A file that loses its second half before this life."""


# --- the lives of a run ---------------------------------------------------------------------------


def kill_at(owner: str, name: str, count: int, when: str) -> None:
    """Makes this process kill itself, as `kill -9` would, at a call of a function."""
    module, _, holder = owner.partition(":")
    place: Any = importlib.import_module(module)
    place = getattr(place, holder) if holder else place
    function: Callable[..., Any] = getattr(place, name)
    calls = 0

    def counted(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*given, **named)
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(place, name, counted)


def live(life: Life, rank: int, port: int) -> int:
    """One rank of a life, in a process of its own. Returns its exit code."""
    if life.ranks > 1:
        os.environ |= {
            "RANK": str(rank), "WORLD_SIZE": str(life.ranks), "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip

    def put_aside(step: Path) -> None:
        """Instead of removing them: what they hold is compared, too."""
        if (step / "checkpoints").is_dir():
            shutil.rmtree(Path("kept") / step.name, ignore_errors=True)
            shutil.copytree(step / "checkpoints", Path("kept") / step.name)
            shutil.rmtree(step / "checkpoints")

    checkpoints.remove = put_aside
    if life.kill is not None and rank == 0:
        kill_at(*life.kill)
    Pipeline(build_config(json.loads(Path("config.json").read_text()))).run()
    return 0


def main(lives: list[Life]) -> None:
    """Forks the processes of each life, once everything is imported; prints how each ended."""
    import align.quiet

    for kind in ("dpo", "evaluate", "ppo", "reward"):
        importlib.import_module(f"align.stages.{kind}")
    align.quiet.quiet_libraries()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for life in lives:
        if life.cut is not None:
            file = max(Path().glob(life.cut))
            os.truncate(file, file.stat().st_size // 2)
        print(_exit_code(life), flush=True)


def _exit_code(life: Life) -> int:
    port = free_port()
    children: list[int] = []
    for rank in range(life.ranks):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = live(life, rank, port)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    first, status = os.wait()
    for other in children:
        if other != first:
            if status:  # as a launcher does: the others would wait for it
                os.kill(other, signal.SIGKILL)
            os.waitpid(other, 0)
    return os.waitstatus_to_exitcode(status)


def run_lives(folder: Path, lives: list[Life]) -> list[int]:
    """The exit codes of the lives of the run in `folder`, one after the other."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    plan = json.dumps([dataclasses.asdict(life) for life in lives])
    done = subprocess.run(
        [sys.executable, str(Path(__file__)), plan], cwd=folder, text=True, capture_output=True,
        timeout=500, check=False, env={**os.environ, "PYTHONPATH": PYTHONPATH},
    )  # fmt: skip
    (folder / "log").write_text(done.stderr)
    codes = [int(line) for line in done.stdout.split()]
    assert done.returncode == 0 and 1 not in codes, done.stdout + done.stderr
    return codes


# --- what a step leaves ---------------------------------------------------------------------------


def without_clocks(value: Any) -> Any:
    """JSON without what a clock measures, at any depth."""
    if isinstance(value, list):
        return [without_clocks(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    return {name: without_clocks(inner) for name, inner in value.items() if not is_clocked(name)}


def left_by(step: Path) -> dict[str, Any]:
    """Every file of a step's folder with its content, but for what a clock measures."""
    found: dict[str, Any] = {}
    for path in sorted(step.rglob("*")):
        name = str(path.relative_to(step))
        if name == "metrics.jsonl":
            found[name] = metrics_of(step)
        elif name == "artifact.json":
            found[name] = without_clocks(json.loads(path.read_text()))
        elif path.name == "adapter_config.json":  # peft writes a set in any order
            record = json.loads(path.read_text())
            found[name] = {**record, "target_modules": sorted(record["target_modules"])}
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def same(step: Path, reference: Path) -> None:
    mine, theirs = left_by(step), left_by(reference)
    assert mine.keys() == theirs.keys()
    for name, content in theirs.items():
        assert mine[name] == content, name


def last_kept(folder: Path, step: str) -> tuple[str, bytes, dict[str, Any]]:
    """The newest checkpoint of a step of a finished run: its number, tensors and plain state."""
    path = max((folder / "kept" / step).iterdir())
    record = json.loads((path / "state.json").read_text())
    state = {name: record[name] for name in ("number", "state", "ranks", "fingerprint")}
    return path.name, (path / "tensors.safetensors").read_bytes(), without_clocks(state)


# --- killed anywhere ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an uninterrupted run of every step."""
    folder = tmp_path_factory.mktemp("reference")
    assert run_lives(folder, [Life()]) == [0]
    return folder


def test_the_reference_depends_on_what_is_resumed(reference: Path):
    """Were nothing learnt, or the coefficient fixed, a lost state would not show."""
    metrics = left_by(reference / "run" / "ppo")["metrics.jsonl"]
    assert len(metrics) == 7
    assert len({row["objective/kl_coefficient"] for row in metrics}) > 4
    assert len({row["value/loss"] for row in metrics}) == 7
    assert not list((reference / "run").glob("*/checkpoints"))


STEP, LINE = ("align.training:Training", "step"), ("align.tracking.files:FileTracker", "log")
RANKING_LIVES = [
    Life((*STEP, 5, "after")),  # the checkpoint at 4 is there, and half a log line's sums
    Life(("os", "fsync", 3, "before")),  # the run's own record is the first
    Life(("os", "replace", 3, "before")),  # whole, but under its temporary name
    Life(("os", "replace", 3, "after")),
    Life(("align.roles:Roles", "save", 1, "after")),
    Life(("align.artifacts:Artifact", "save", 1, "after")),  # the checkpoints are still there
]
PPO_LIVES = [
    Life((*STEP, 5, "before")),  # nothing to go on from
    Life((*LINE, 3, "after")),  # a line more than the checkpoint knows of
    Life(("align.checkpoints", "write", 1, "before")),
    Life(("shutil", "rmtree", 5, "before"), ranks=2),  # three checkpoints, of 2, 4 and 6
    Life((*LINE, 1, "after"), ranks=2, cut="run/ppo/checkpoints/*6/tensors.safetensors"),
    Life((*LINE, 2, "after")),
    Life(("align.roles:Roles", "save", 1, "before")),
    Life(("align.artifacts:Artifact", "save", 1, "before")),
]


@pytest.fixture(scope="module")
def survivor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was killed 20 times."""
    folder = tmp_path_factory.mktemp("survivor")
    lives = [*RANKING_LIVES, *RANKING_LIVES, *PPO_LIVES, Life()]
    assert run_lives(folder, lives) == [*[-signal.SIGKILL] * 20, 0]
    return folder


@pytest.mark.parametrize("step", ["reward", "dpo", "ppo"])
def test_a_run_that_is_killed_anywhere_comes_to_the_same_bits(
    reference: Path, survivor: Path, step: str
):
    """Everything that is left of the step, and all that its last checkpoint held: the value
    function, the moments, the controller's coefficient, the random state."""
    same(survivor / "run" / step, reference / "run" / step)
    assert last_kept(survivor, step) == last_kept(reference, step)
    assert not (survivor / "run" / step / "checkpoints").exists()


def test_what_a_resumed_run_says(survivor: Path):
    """Life by life; the cut checkpoint of 6 is passed over for that of 4."""
    text = (survivor / "log").read_text()
    [size] = re.findall(r"is not of (\d+) bytes", text)
    assert re.findall(r"^ppo:? ((?:starts|resumes|checkpoint) .*)$", text, re.MULTILINE) == [
        "starts again: it was interrupted before its first checkpoint",
        "resumes after iteration 2",
        "resumes after iteration 2",
        f"checkpoint 6 is not used: tensors.safetensors is not of {size} bytes",
        "resumes after iteration 4",
        "resumes after iteration 4",
        "resumes after iteration 4",
        "resumes after iteration 6",
        "resumes after iteration 6",
    ]


@pytest.mark.slow
def test_a_run_that_is_killed_from_outside_comes_to_the_same_bits(reference: Path, tmp_path: Path):
    """`kill -9` at a moment that nobody chose, after so many lines of metrics; then the same
    command again."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    command = [sys.executable, "-m", "align.cli", "run", "config.json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    metrics = tmp_path / "run" / "ppo" / "metrics.jsonl"
    until = time.monotonic() + 300
    while time.monotonic() < until and process.poll() is None:
        if metrics.is_file() and metrics.read_bytes().count(b"\n") >= 3:
            break
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert b"ppo resumes after iteration" in done.stderr
    for step in ("reward", "dpo", "ppo"):
        same(tmp_path / "run" / step, reference / "run" / step)


# --- what is resumed, and what is not -------------------------------------------------------------


class Killed(BaseException):
    """The end of a life, for code that runs in the test's own process."""


@pytest.fixture
def interrupted(reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The configuration of a run that died in ppo's fifth iteration, in the working folder."""
    shutil.copytree(reference / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "ppo")
    monkeypatch.chdir(tmp_path)

    def die(self: FileTracker, step: int, metrics: Any) -> None:
        if step == 5:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        plain = FileTracker.log
        patch.setattr(FileTracker, "log", lambda *given: (plain(*given), die(*given)))
        Pipeline(build_config(CONFIG)).run()
    return copy.deepcopy(CONFIG)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the pipeline and its checkpoints have said."""
    records = [record for record in caplog.records if record.module in ("pipeline", "checkpoints")]
    return [record.getMessage() for record in records]


def planned(config: dict[str, Any]) -> tuple[str, str]:
    [row] = [row for row in Pipeline(build_config(config)).plan() if row["name"] == "ppo"]
    return row["state"], row["reason"]


def test_it_goes_on_from_the_newest_checkpoint(
    interrupted: dict[str, Any], reference: Path, caplog: pytest.LogCaptureFixture
):
    """--only, too: what it is to run is not done."""
    assert planned(interrupted) == ("resume", "after iteration 4")
    caplog.set_level(logging.INFO, "align")
    Pipeline(build_config(interrupted)).run(only="ppo")
    assert said(caplog) == ["ppo …", "ppo resumes after iteration 4"]
    same(Path("run/ppo"), reference / "run" / "ppo")


def test_how_often_it_saves_does_not_matter(interrupted: dict[str, Any], reference: Path):
    interrupted["steps"]["ppo"]["train"]["save_iterations"] = 3
    assert planned(interrupted) == ("resume", "after iteration 4")
    Pipeline(build_config(interrupted)).run()
    same(Path("run/ppo"), reference / "run" / "ppo")


def test_other_settings_start_again(interrupted: dict[str, Any], caplog: pytest.LogCaptureFixture):
    interrupted["steps"]["ppo"]["train"]["learning_rate"] = 0.02
    assert planned(interrupted) == ("run", "interrupted, starts again")
    caplog.set_level(logging.INFO, "align")
    Pipeline(build_config(interrupted)).run(only="ppo")
    assert said(caplog)[1] == (
        "ppo starts again: its checkpoints are damaged, or were made with other settings or inputs"
    )
    first = left_by(Path("run/ppo"))["metrics.jsonl"][0]
    assert first["step"] == 1 and first["train/lr"] != 0.01


@pytest.mark.parametrize("selection", [{"force": ["ppo"]}, {"start_from": "ppo"}])
def test_who_wants_it_anew_gets_it_anew(
    interrupted: dict[str, Any], selection: Any, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "align")
    Pipeline(build_config(interrupted)).run(**selection)
    assert said(caplog) == ["ppo …"]


def test_damaged_checkpoints_are_passed_over(
    interrupted: dict[str, Any], reference: Path, caplog: pytest.LogCaptureFixture
):
    """A bit of the newest one's tensors; then, of the one before, too: it starts again."""
    caplog.set_level(logging.INFO, "align")
    for path in sorted(Path("run/ppo/checkpoints").iterdir()):
        spoil(path / "tensors.safetensors")
    Pipeline(build_config(interrupted)).run()
    assert said(caplog) == [
        "ppo …",
        "ppo: checkpoint 4 is not used: tensors.safetensors has changed",
        "ppo: checkpoint 2 is not used: tensors.safetensors has changed",
        "ppo starts again: none of its checkpoints can be used",
    ]
    same(Path("run/ppo"), reference / "run" / "ppo")


def spoil(file: Path) -> None:
    """Turns over the last bit but a few."""
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)


# --- checkpoints by themselves --------------------------------------------------------------------


def fill(folder: Path, number: int, fingerprint: str = "mine") -> Path:
    """A checkpoint of one tensor below a step's folder."""
    target = folder / "checkpoints" / f"{number:08d}"
    target.parent.mkdir(exist_ok=True)
    record = {
        "fingerprint": fingerprint, "number": number, "unit": "step", "seconds": 1.5, "files": {},
        "world_size": 1, "state": {"nan": float("nan"), "third": 1 / 3}, "ranks": [None],
    }  # fmt: skip
    checkpoints.write(target, {"a": torch.arange(6.0).view(2, 3).T}, record)
    return target


def test_a_checkpoint_is_what_was_written(tmp_path: Path):
    fill(tmp_path, 8)
    target = fill(tmp_path, 12)
    assert sorted(path.name for path in target.iterdir()) == ["state.json", "tensors.safetensors"]
    found = checkpoints.newest(tmp_path, "mine")
    assert found is not None and (found.number, found.seconds, found.unit) == (12, 1.5, "step")
    assert found.state["third"] == 1 / 3 and found.state["nan"] != found.state["nan"]
    assert load_file(target / "tensors.safetensors")["a"].tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "state.json").unlink(),
        lambda path: (path / "state.json").write_text("{"),
        lambda path: (path / "state.json").write_text("[]"),
        lambda path: (path / "state.json").write_text(
            (path / "state.json").read_text().replace("0.333", "0.334")
        ),
        lambda path: (path / "tensors.safetensors").unlink(),
        lambda path: os.truncate(path / "tensors.safetensors", 40),
        shutil.rmtree,
    ],
)
def test_the_one_before_a_damaged_one_is_the_newest(tmp_path: Path, damage: Any):
    fill(tmp_path, 8)
    damage(fill(tmp_path, 12))
    found = checkpoints.newest(tmp_path, "mine")
    assert found is not None and found.number == 8


def test_nothing_of_another_step_is_found(tmp_path: Path):
    assert checkpoints.newest(tmp_path, "mine") is None
    fill(tmp_path, 8, "theirs")
    assert checkpoints.newest(tmp_path, "mine") is None
    shutil.copytree(tmp_path / "checkpoints/00000008", tmp_path / "checkpoints/.00000009")
    assert checkpoints.newest(tmp_path, "theirs").number == 8  # type: ignore[union-attr]


def test_neither_a_plan_nor_a_record_needs_torch():
    code = "import sys, align.checkpoints, align.pipeline; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "False"


# --- what goes into one ---------------------------------------------------------------------------


def training_of(module: torch.nn.Module) -> Training:
    groups = [ParameterGroup(list(module.parameters()), 0.1)]
    return Engine().training(
        module, groups, total_steps=10, schedule=SCHEDULES["linear"](), max_grad_norm=1.0
    )


def take_steps(training: Training, count: int) -> None:
    for _ in range(count):
        x = torch.full((1, 2), 1.0 + training.steps_done)
        training.backward(training.module(x).square().sum(), last=True)
        training.step()


def test_a_training_goes_on_from_its_state():
    """3 steps, and 2 more by another one with other weights at first: bit for bit 5 in a row.
    Without the moments, or the count that the learning rate follows, it is not the same."""
    whole = torch.nn.Linear(2, 1)
    start = copy.deepcopy(whole)
    take_steps(training_of(whole), 5)
    first = training_of(start)
    take_steps(first, 3)
    state = {name: tensor.detach().clone() for name, tensor in first.state().items()}
    after = {}
    for lost in ("nothing", "optimizer/", "steps_done"):
        module = torch.nn.Linear(2, 1)
        second = training_of(module)
        kept = {n: t for n, t in state.items() if not n.startswith(lost)}
        second.restore({"steps_done": torch.tensor(0), **kept})
        take_steps(second, 2)
        after[lost] = torch.equal(module.weight, whole.weight)
    assert after == {"nothing": True, "optimizer/": False, "steps_done": False}


def test_a_training_refuses_the_state_of_other_parameters():
    module = torch.nn.Linear(2, 1)
    before = module.weight.clone()
    with pytest.raises(ValueError, match="1 parameters differ, such as weight"):
        training_of(module).restore(training_of(torch.nn.Linear(3, 1)).state())
    assert torch.equal(module.weight, before)


def test_files_are_cut_back_to_where_a_checkpoint_found_them(tmp_path: Path):
    tracker = FileTracker(tmp_path)
    tracker.log(1, {"a": 1.0})
    position = Trackers([tracker]).position()
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    tracker.log(2, {"a": 2.0})
    tracker.table("samples", [{"b": 1}])
    (tmp_path / "other.json").write_text("{}")
    Trackers([FileTracker(tmp_path)]).rewind(position)
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "other.json"}
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole
    FileTracker(tmp_path).rewind({})
    assert {path.name for path in tmp_path.iterdir()} == {"other.json"}


def test_half_a_log_line_of_two_ranks_goes_on_with_one():
    """Sums 3 and 5 over a weight of 4, then 2 more over 1: the mean is 10 / 5."""
    logged: list[Any] = []
    context: Any = SimpleNamespace(
        engine=Engine(), tracker=SimpleNamespace(log=lambda *given: logged.append(given))
    )
    ranks = ({"sums": {"x": 3.0}, "tokens": 1}, {"sums": {"x": 5.0}, "tokens": 2})
    meter = Meter(context)
    meter.restore(Checkpoint(7, {"weight": 4.0, "last": {"x": 9.0}}, ranks))
    assert meter.last == {"x": 9.0}
    meter.add({"x": torch.tensor([2.0])}, torch.tensor([1.0]), 3)
    meter.step(1.0)
    meter.log(8, {})
    assert logged[0][0] == 8 and logged[0][1]["x"] == pytest.approx(2.0, abs=1e-6)


@pytest.mark.parametrize(
    ("step", "settings", "problem"),
    [
        ("ppo", {"save_iterations": 7}, "with 7 iterations; none comes before the end"),
        ("dpo", {"save_steps": 9}, "with max_steps 7; none comes before the end"),
    ],
)
def test_a_checkpoint_that_never_comes_is_named(step: str, settings: Any, problem: str):
    config = copy.deepcopy(CONFIG)
    config["steps"][step]["train"] = config["steps"][step]["train"] | settings
    with pytest.raises(ConfigError) as error:
        build_config(config)
    assert f"steps.{step}.train.{next(iter(settings))}" in str(error.value)
    assert problem in str(error.value)


if __name__ == "__main__":
    main([Life(**life) for life in json.loads(sys.argv[1])])
