"""Runs in Weights & Biases, read back from the files that `wandb sync` would send. No network."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launchers import PYTHONPATH
from small_runs import ONE_LAYER, world_of

from align.artifacts import Artifact
from align.config import Config, ConfigError, Wandb, build_config
from align.pipeline import Pipeline
from align.tracking import Trackers, make_tracker
from align.tracking.dashboard import (
    TELLING,
    TRAINING,
    fnmatchcase,
    layout_of,
    read_logged,
    specification,
    workspace_of,
)
from align.tracking.files import FileTracker, read_lines
from align.tracking.lineage import of_data, of_step
from align.tracking.surroundings import git_state, without_home
from align.tracking.weights_and_biases import WandbTracker, wandb_mode

ROOT = Path(__file__).resolve().parents[2]
HOME = ("DATA", "CACHE", "CONFIG")


# --- reading the files ----------------------------------------------------------------------------


def records(path: Path) -> Iterator[Any]:
    """The records of a run file: a LevelDB log behind a header of 7 bytes, in 32 KiB blocks.

    A record is cut into pieces of (checksum, length, kind); kind 1 is whole, 2 3 4 are the first,
    middle and last piece. Fewer than 7 bytes at the end of a block are padding.
    """
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    data, position, piece = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        piece += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(piece)
            yield record
            piece = b""


def finished_records(path: Path) -> list[Any]:
    """All records, once the last is there: wandb's own process may write it just after `finish`."""
    for _ in range(100):
        found = list(records(path))
        if found and found[-1].HasField("exit"):
            return found
        time.sleep(0.1)
    raise AssertionError(f"{path} has no end")


def values(items: Any) -> dict[str, Any]:
    """Keys and values of a record's items; a nested key is joined with a dot."""
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


class Read:
    """The one offline run below a step's folder, as the server would have it after a sync."""

    def __init__(self, step: Path) -> None:
        (self.path,) = step.glob("wandb/offline-run-*/*.wandb")
        found = finished_records(self.path)
        kinds = [(record.WhichOneof("record_type"), record) for record in found]
        (self.run,) = [record.run for kind, record in kinds if kind == "run"]
        self.config = values(self.run.config.update)
        self.history = [values(r.history.item) for kind, r in kinds if kind == "history"]
        self.alerts = [r.alert for kind, r in kinds if kind == "alert"]
        artifacts = [r.artifact for kind, r in kinds if kind == "artifact"]
        artifacts = [one for one in artifacts if one.type != "run_table"]
        self.used = {one.name: one for one in artifacts if one.use_after_commit}
        self.made = {one.name: one for one in artifacts if not one.use_after_commit}
        self.metrics = [r.metric for kind, r in kinds if kind == "metric"]
        self.exit_code = found[-1].exit.exit_code
        self.summary: dict[str, Any] = {}
        for kind, record in kinds:
            if kind == "summary":
                self.summary |= values(record.summary.update)

    @property
    def steps(self) -> list[int]:
        return [row["_step"] for row in self.history]

    def table(self, name: str) -> dict[str, Any]:
        """The newest state of a table, as the file that the history names."""
        row = next(row for row in reversed(self.history) if f"{name}.path" in row)
        return json.loads((self.path.parent / "files" / row[f"{name}.path"]).read_text())


@pytest.fixture
def no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment in which wandb finds no key and writes below `tmp_path`; gives its netrc."""
    for name, value in keyless(tmp_path).items():
        monkeypatch.setenv(name, value)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "netrc"


def keyless(folder: Path) -> dict[str, str]:
    places = {f"WANDB_{name}_DIR": str(folder / "wandb-home") for name in HOME}
    return {**places, "NETRC": str(folder / "netrc")}


def alone(folder: Path, **more: str) -> dict[str, str]:
    """The environment of another process, which finds no key and has wandb's service to itself."""
    inherited = {n: v for n, v in os.environ.items() if not n.startswith("WANDB_")}
    return {**inherited, **keyless(folder), "PYTHONPATH": str(ROOT), **more}


def make_config(folder: Path, **section: Any) -> Config:
    return build_config(
        {
            "name": "rivers",
            "output_dir": str(folder),
            "tracking": {"wandb": {"project": "hh", "mode": "offline", **section}},
            "data": {"demos": {"path": "builtin:demonstrations"}},
            "steps": {
                "sft": {"kind": "sft", "data": "demos", "train": {"learning_rate": 0.003}},
                "next": {"kind": "sft", "data": "demos", "init": "base"},
            },
        }
    )


def tracker_of(folder: Path, fingerprint: str = "f" * 16, **section: Any) -> Trackers:
    config = make_config(folder, **section)
    return make_tracker(config, "sft", "sft", folder / "sft", fingerprint, main=True)


# --- online, offline, disabled --------------------------------------------------------------------


def test_mode_follows_the_key(no_key: Path, monkeypatch: pytest.MonkeyPatch):
    auto = Wandb(project="p")
    assert wandb_mode(auto) == "offline"
    no_key.write_text("machine example.org login user password x\n")
    assert wandb_mode(auto) == "offline"
    no_key.write_text("machine api.wandb.ai login user password not-a-key\n")
    assert wandb_mode(auto) == "online"
    assert wandb_mode(Wandb(project="p", mode="offline")) == "offline"
    assert wandb_mode(Wandb(project="p", mode="disabled")) == "disabled"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode(auto) == "disabled"
    monkeypatch.setenv("WANDB_MODE", "dryrun")  # as offline was called
    assert wandb_mode(auto) == "offline"
    monkeypatch.delenv("WANDB_MODE")
    no_key.write_text("this is no netrc file\n")
    assert wandb_mode(auto) == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "not-a-key")
    assert wandb_mode(auto) == "online"


def test_online_without_a_key_is_an_error_and_no_prompt(no_key: Path):
    with pytest.raises(ConfigError, match=r"tracking\.wandb\.mode is 'online', but .* no key"):
        wandb_mode(Wandb(project="p", mode="online"))


def test_disabled_is_no_tracker_at_all(tmp_path: Path, no_key: Path):
    trackers = tracker_of(tmp_path, mode="disabled").trackers
    assert [type(tracker).__name__ for tracker in trackers] == ["FileTracker", "ConsoleTracker"]
    with pytest.raises(ConfigError, match=r"log_data .*with mode: disabled"):
        make_config(tmp_path, mode="disabled", log_data=True)
    with pytest.raises(ConfigError, match=r"tracking\.wandb\.mode"):
        make_config(tmp_path, mode="sometimes")


ALONE = """
import sys
from pathlib import Path
from align.config import Wandb
from align.tracking import weights_and_biases
weights_and_biases.PATIENCE = 1
tracker = weights_and_biases.WandbTracker(
    Wandb(project="p"), group="g", step_name="s", kind="ppo", config={}, folder=Path("s"),
    run_id="abc",
)
tracker.log(1, {"a": 1.0})
tracker.finish({})
print("stdin is", sys.stdin)
"""


@pytest.mark.parametrize("key", [False, True])
def test_a_batch_job_is_never_asked_for_a_login(tmp_path: Path, key: bool):
    """Standard input closed and no terminal; without a key, or with one and no service."""
    with_key = {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    environment = alone(tmp_path, **(with_key if key else {}))
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" "$@" <&-', sys.executable, "-c", ALONE], cwd=tmp_path, text=True,
        capture_output=True, env=environment, start_new_session=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "stdin is None\n"
    assert ("W&B cannot be had" in done.stderr) == key
    assert Read(tmp_path / "s").steps == [1]


def test_a_project_that_wandb_refuses_is_an_error_in_a_sentence(tmp_path: Path, no_key: Path):
    with pytest.raises(ConfigError, match=r"tracking\.wandb: W&B cannot begin a run: .*project"):
        tracker_of(tmp_path, project="a/b")


# --- what a run holds -----------------------------------------------------------------------------


def test_offline_run_holds_history_config_summary_and_table(tmp_path: Path, no_key: Path):
    tracker = tracker_of(tmp_path, "0123456789abcdef")
    tracker.log(10, {"train/loss": 1.5, "train/lr": 0.003})
    tracker.table("samples", [{"prompt": "p", "score": 0.5}, {"prompt": "q", "score": 1.5}])
    tracker.log(20, {"train/loss": 1.25})
    tracker.finish({"train/loss": 1.25, "headline": 7.0})

    read = Read(tmp_path / "sft")
    run = read.run
    assert (run.project, run.run_group, run.display_name, run.job_type) == (
        "hh", "rivers", "sft", "sft",
    )  # fmt: skip
    assert read.path.stem == f"run-{run.run_id}"
    assert read.config["fingerprint"] == "0123456789abcdef"
    assert read.config["steps"]["sft"]["train"]["learning_rate"] == 0.003
    assert read.config["versions"]["torch"]
    assert (read.config["world_size"], read.config["device"]) == (1, "cpu")

    assert read.steps == [10, 20] == [row["step"] for row in read.history]
    assert [row["train/loss"] for row in read.history] == [1.5, 1.25]
    assert read.history[0]["train/lr"] == 0.003
    assert read.table("samples") == {
        "columns": ["prompt", "score"], "data": [["p", 0.5], ["q", 1.5]],
    }  # fmt: skip
    assert read.summary["headline"] == 7.0 and read.summary["train/loss"] == 1.25
    assert read.exit_code == 0


def test_panels_are_drawn_over_our_own_step(tmp_path: Path, no_key: Path):
    tracker = tracker_of(tmp_path)
    tracker.log(1, {"train/loss": 1.0})
    tracker.finish({})
    axes = {metric.glob_name: metric.step_metric for metric in Read(tmp_path / "sft").metrics}
    assert axes["*"] == "step"


def test_tables_grow(tmp_path: Path, no_key: Path):
    """Each time all rows are there; a cell that is no number or text is JSON text."""
    tracker = tracker_of(tmp_path)
    message = [{"role": "user", "content": "Grüße"}]
    tracker.log(1, {"a": 1.0})
    tracker.table("samples", [{"step": 1, "prompt": message, "score": None}])
    tracker.log(2, {"a": 2.0})
    tracker.log(3, {"a": 3.0})
    tracker.table("samples", [{"step": 3, "prompt": "p", "score": float("nan"), "kl": 0.5}])
    tracker.finish({})
    read = Read(tmp_path / "sft")
    assert [row.get("samples.nrows") for row in read.history] == [1, None, 2]
    assert read.table("samples") == {
        "columns": ["step", "prompt", "score", "kl"],
        "data": [[1, '[{"role": "user", "content": "Grüße"}]', None, None], [3, "p", None, 0.5]],
    }


def test_run_id_is_the_steps_own(tmp_path: Path, no_key: Path):
    """The same step twice is one run; another fingerprint is another. One process, three runs."""
    for index, fingerprint in enumerate(["a" * 16, "a" * 16, "b" * 16]):
        config = make_config(tmp_path)
        folder = tmp_path / str(index)
        make_tracker(config, "sft", "sft", folder, fingerprint, main=True).finish({})
    ids = [Read(tmp_path / str(index)).run.run_id for index in range(3)]
    assert ids[0] == ids[1] != ids[2]


def test_a_step_that_was_interrupted_can_run_again_in_this_process(tmp_path: Path, no_key: Path):
    tracker_of(tmp_path).log(1, {"a": 1.0})  # and an exception takes it away
    shutil.rmtree(tmp_path / "sft")
    again = tracker_of(tmp_path)
    again.log(1, {"a": 2.0})
    again.finish({})
    assert [row["a"] for row in Read(tmp_path / "sft").history] == [2.0]


def test_two_pipelines_in_one_process_do_not_mix(tmp_path: Path, no_key: Path):
    first, second = tracker_of(tmp_path / "1"), tracker_of(tmp_path / "2", "e" * 16)
    for step in (1, 2):
        first.log(step, {"a": 1.0})
        second.log(step, {"a": 2.0})
    first.finish({})
    second.log(3, {"a": 2.0})
    second.finish({})
    assert [row["a"] for row in Read(tmp_path / "1" / "sft").history] == [1.0, 1.0]
    assert [row["a"] for row in Read(tmp_path / "2" / "sft").history] == [2.0, 2.0, 2.0]


def test_wandb_run_prints_nothing(tmp_path: Path, no_key: Path, capfd: pytest.CaptureFixture[str]):
    tracker = WandbTracker(
        Wandb(project="p", mode="offline"), group="g", step_name="s", kind="ppo", config={},
        folder=tmp_path / "s", run_id="abc",
    )  # fmt: skip
    tracker.log(1, {"a": 1.0})
    tracker.table("samples", [])
    tracker.finish({})
    assert capfd.readouterr() == ("", "")


def test_one_finding_is_one_alert_and_a_failure_ends_the_run(tmp_path: Path, no_key: Path):
    tracker = tracker_of(tmp_path)
    tracker.log(1, {"a": 1.0})
    for _ in range(2):
        tracker.alert("same replies " + "x" * 80, "iteration 1: all alike", "error")
    tracker.alert("blind value", "iteration 1: it sees nothing", "warning")
    tracker.fail("step sft failed: no memory")
    read = Read(tmp_path / "sft")
    assert [(one.title[:19], one.level) for one in read.alerts] == [
        ("sft: same replies x", "ERROR"), ("sft: blind value", "WARN"), ("sft: failed", "ERROR"),
    ]  # fmt: skip
    assert max(len(one.title) for one in read.alerts) < 64
    assert read.alerts[2].text == "step sft failed: no memory"
    assert read.exit_code == 1


# --- what it was made with ------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=n", "-c", "user.email=n@example.org"]
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_known_and_what_differs_from_it_stays_here(
    tmp_path: Path, no_key: Path, monkeypatch: pytest.MonkeyPatch
):
    code, origin = tmp_path / "code", tmp_path / "origin"
    git(tmp_path, "init", "--quiet", "--bare", str(origin))
    git(tmp_path, "clone", "--quiet", str(origin), str(code))
    assert git_state(code) is None  # nothing is committed
    (code / "reward.py").write_text("old = 1\n")
    git(code, "add", ".")
    git(code, "commit", "--quiet", "-m", "first")
    git(code, "push", "--quiet", "origin", "HEAD")
    commit = git(code, "rev-parse", "HEAD")
    assert git_state(code) == {"commit": commit, "dirty": False}
    (code / "reward.py").write_text("secret = 2\n")
    assert git_state(code) == {"commit": commit, "dirty": True}
    assert git_state(tmp_path) is None

    monkeypatch.chdir(code)
    tracker = tracker_of(tmp_path / "run")
    tracker.finish({})
    read = Read(tmp_path / "run" / "sft")
    assert read.config["git"] == {"commit": commit, "dirty": True}
    assert (read.run.git.commit, read.run.git.remote_url) == (commit, "")
    files = [path for path in read.path.parent.rglob("*") if path.is_file()]
    assert files and not [path for path in files if b"secret" in path.read_bytes()]


def test_the_machine_is_not_named(tmp_path: Path, no_key: Path, monkeypatch: pytest.MonkeyPatch):
    """Neither its name nor its folders, which wandb by itself sends with the command."""
    home = tmp_path / "ada"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(sys, "argv", ["align", "run", f"{home}/secret.yaml"])
    tracker = tracker_of(tmp_path)
    tracker.finish({})
    read = Read(tmp_path / "sft")
    assert (read.run.host, read.config["command"]) == ("", "align run ~/secret.yaml")
    assert str(home).encode() not in read.path.read_bytes()


def test_a_failure_does_not_name_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    trackers = Trackers([FileTracker(tmp_path)])
    with pytest.raises(OSError), trackers.told_of_errors():
        raise OSError(f"there is no file\n {tmp_path}/labels.csv")
    [line] = read_lines(tmp_path / "alerts.jsonl")
    assert line["text"] == "there is no file ~/labels.csv"


def test_the_home_folder_is_not_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = without_home({"path": f"{tmp_path}/labels.csv", "more": [f"run {tmp_path}/x", 1, None]})
    assert found == {"path": "~/labels.csv", "more": ["run ~/x", 1, None]}


# --- lineage --------------------------------------------------------------------------------------


def import_something(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "records.jsonl").write_text('{"prompt": "a secret"}\n')
    account = {
        "kind": "demonstrations", "format": "table", "source": "/of/ada/labels.csv",
        "files": ["/of/ada/labels.csv"], "sha256": "1234", "rows_in": 3, "rows_out": 2,
        "rows_quarantined": 1, "by_reason": {"no text": 1}, "by_annotator": {"ada": 2},
    }  # fmt: skip
    (folder / "import.json").write_text(json.dumps(account))
    Artifact("data.demos", "data", folder, "d" * 16, {}).save()


def test_data_is_a_hash_and_counts_unless_it_is_asked_for(tmp_path: Path, no_key: Path):
    import_something(tmp_path / "data" / "demos")
    tracker_of(tmp_path).finish({})
    data = Read(tmp_path / "sft").used["rivers-data.demos"]
    assert data.type == "dataset"
    assert [item.path for item in data.manifest.contents] == ["identity.json"]
    metadata = json.loads(data.metadata)
    assert metadata["sha256"] == "1234" and metadata["rows_out"] == 2
    assert "ada" not in data.metadata

    shutil.rmtree(tmp_path / "sft")
    tracker_of(tmp_path, log_data=True).finish({})
    data = Read(tmp_path / "sft").used["rivers-data.demos"]
    assert {item.path for item in data.manifest.contents} == {
        "identity.json", "import.json", "records.jsonl", "artifact.json",
    }  # fmt: skip


@pytest.mark.parametrize("sent", [False, True])
def test_weights_stay_here_unless_they_are_asked_for(tmp_path: Path, no_key: Path, sent: bool):
    """What a step makes is the artifact that those after it use: equal content, equal digest."""
    tracker = tracker_of(tmp_path, log_model=sent)
    adapter = tmp_path / "sft" / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    tracker.finish({"train/loss": 0.5})
    made = Read(tmp_path / "sft").made["rivers-sft"]
    files = {"identity.json"} | ({"adapter/adapter_model.safetensors"} if sent else set())
    assert {item.path for item in made.manifest.contents} == files
    assert json.loads(made.metadata)["metrics"] == {"train/loss": 0.5}

    Artifact("sft", "sft", tmp_path / "sft", "f" * 16, {}, metrics={"train/loss": 0.5}).save()
    config = make_config(tmp_path, log_model=sent)
    config = config.model_copy(
        update={"steps": {**config.steps, "next": config.steps["next"].model_copy(
            update={"init": "sft"})}}
    )  # fmt: skip
    make_tracker(config, "next", "sft", tmp_path / "next", "e" * 16, main=True).finish({})
    used = Read(tmp_path / "next").used["rivers-sft"]
    assert (used.digest, used.type) == (made.digest, "model")


def test_data_and_a_step_of_one_name_are_two_artifacts(tmp_path: Path):
    """W&B takes no artifact of another type under a name that is taken."""
    data = of_data("rivers", "reward", tmp_path, send=False)
    step = of_step("rivers", "reward", "reward", tmp_path, "e" * 16, {}, send=False)
    assert data.type != step.type and data.name != step.name


def test_another_fingerprint_is_another_version(tmp_path: Path):
    import_something(tmp_path / "demos")
    before = of_data("my run!", "demos", tmp_path / "demos", send=False)
    assert before.name == "my-run-data.demos"
    Artifact("data.demos", "data", tmp_path / "demos", "e" * 16, {}).save()
    assert of_data("my run!", "demos", tmp_path / "demos", send=False).identity != before.identity


# --- a kill, and a step that goes on --------------------------------------------------------------

FIRST_PART = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[2]).parent))
from {module} import tracker_of
tracker = tracker_of(Path(sys.argv[1]))
for step in range(1, 6):
    tracker.log(step, {{"a": float(step)}})
    if step % 2:
        tracker.table("samples", [{{"step": step, "prompt": "p"}}])
    if step == 2:
        tracker.alert("blind value", "iteration 2: it sees nothing", "warning")
    if step == 3:
        print(tracker.position())
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def first_part(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """The run folder of a step that was killed after its fifth line, and the position after its
    third."""
    folder = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, "-c", FIRST_PART.format(module=Path(__file__).stem), str(folder / "run"),
         __file__],
        capture_output=True, text=True, env=alone(folder, PYTHONPATH=PYTHONPATH), timeout=100,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    return folder / "run", json.loads(done.stdout.replace("'", '"'))


@pytest.fixture
def killed(tmp_path: Path, no_key: Path, first_part: tuple[Path, dict[str, int]]) -> dict[str, int]:
    """That folder, as `tmp_path`; gives the position."""
    shutil.copytree(first_part[0], tmp_path, dirs_exist_ok=True, symlinks=True)
    return first_part[1]


def test_after_a_kill_every_line_is_there_once(tmp_path: Path, killed: dict[str, int]):
    """Of the killed part at most a beginning is on the disk, and `wandb sync` would stop at it: it
    is gone, and all it held is in the new file, at its own time."""
    (old,) = (tmp_path / "sft" / "wandb").glob("offline-run-*")
    assert killed.keys() == {"alerts.jsonl", "metrics.jsonl", "samples.jsonl"}
    tracker = tracker_of(tmp_path)
    tracker.rewind(killed)
    for step in range(4, 7):
        tracker.log(step, {"a": float(step)})
    tracker.table("samples", [{"step": 5, "prompt": "q"}])
    tracker.finish({})

    assert not old.exists()
    read = Read(tmp_path / "sft")
    assert [(row["_step"], row["a"]) for row in read.history] == [
        (n, float(n)) for n in range(1, 7)
    ]
    assert read.table("samples")["data"] == [[1, "p"], [3, "p"], [5, "q"]]
    assert [one.title for one in read.alerts] == ["sft: blind value"]
    times = [line["time"] for line in read_lines(tmp_path / "sft" / "metrics.jsonl")]
    assert [row["_timestamp"] for row in read.history[:3]] == pytest.approx(times[:3], abs=1e-3)


def test_what_was_sent_is_not_removed(tmp_path: Path, killed: dict[str, int]):
    (old,) = (tmp_path / "sft" / "wandb").glob("offline-run-*")
    (old / "run.wandb.synced").touch()
    tracker = tracker_of(tmp_path)
    tracker.rewind(killed)
    tracker.finish({})
    assert old.exists()


class Online:
    """A run whose server has the steps before `starting_step`."""

    offline, url, id, dir = False, "https://example.org", "abc", "nowhere"

    def __init__(self, starting_step: int) -> None:
        self.starting_step = starting_step
        self.lines: list[tuple[int, dict[str, Any]]] = []
        self.alerts: list[str] = []
        self.summary: dict[str, float] = {}

    def define_metric(self, name: str, **options: Any) -> None: ...

    def use_artifact(self, artifact: Any) -> None: ...

    def log_artifact(self, artifact: Any) -> None: ...

    def log(self, values: dict[str, Any], step: int) -> None:
        self.lines.append((step, values))

    def alert(self, title: str, text: str, level: str) -> None:
        self.alerts.append(title)

    def finish(self, exit_code: int) -> None: ...


def test_online_the_server_gets_what_it_has_not(
    tmp_path: Path, killed: dict[str, int], monkeypatch: pytest.MonkeyPatch
):
    """The server has steps 1 and 2 of a step that goes on after 3: 3 is sent from the run folder,
    an alert that it has is not sent again, and samples come with the first line that it takes."""
    import wandb

    run, asked = Online(starting_step=3), {}
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(wandb, "init", lambda **options: asked.update(options) or run)
    tracker = tracker_of(tmp_path, mode="online")
    assert asked["resume"] == "allow"
    tracker.rewind(killed)
    tracker.alert("blind value", "iteration 2: it sees nothing", "warning")
    tracker.log(4, {"a": 4.0})
    tracker.finish({"a": 4.0})
    assert [(step, line["a"]) for step, line in run.lines] == [(3, 3.0), (4, 4.0)]
    assert len(run.lines[0][1]["samples"].data) == 2
    assert run.alerts == []


def test_online_a_line_that_the_server_has_is_not_sent_again(
    tmp_path: Path, killed: dict[str, int], monkeypatch: pytest.MonkeyPatch
):
    """It has all five; the ones that come again are left out, and the table waits for the sixth."""
    import wandb

    run = Online(starting_step=6)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(wandb, "init", lambda **options: run)
    tracker = tracker_of(tmp_path, mode="online")
    tracker.rewind(killed)
    for step in (4, 5):
        tracker.log(step, {"a": float(step)})
    tracker.table("samples", [{"step": 5, "prompt": "q"}])
    assert run.lines == []
    tracker.log(6, {"a": 6.0})
    ((step, line),) = run.lines
    assert (step, line["a"]) == (6, 6.0)
    assert [row[0] for row in line["samples"].data] == [1, 3, 5]


def test_a_step_that_starts_again_replaces_its_run(
    tmp_path: Path, no_key: Path, monkeypatch: pytest.MonkeyPatch
):
    """Without `resume`, wandb begins a run of the same id anew."""
    import wandb

    asked: dict[str, Any] = {}
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(wandb, "init", lambda **options: asked.update(options) or Online(0))
    tracker_of(tmp_path, mode="online").finish({})
    assert asked["resume"] is None and asked["mode"] == "online"


# --- a whole run: killed, taken up again, and looked at -------------------------------------------

RANKING = {
    "max_steps": 4, "train_batch_size": 4, "max_length": 200, "logging_steps": 1, "save_steps": 2,
}  # fmt: skip
TOY: dict[str, Any] = {
    "name": "toy",
    "output_dir": "run",
    "tracking": {"wandb": {"project": "p"}},
    "base": {"architecture": ONE_LAYER},
    "lora": {"r": 2, "alpha": 4},
    "world": world_of(30),
    "data": {
        "demos": {"path": "builtin:demonstrations"}, "labels": {"path": "builtin:labels"},
        "prompts": {"path": "builtin:prompts"},
    },
    "steps": {
        "sft": {"kind": "sft", "data": "demos",
                "train": {"max_steps": 2, "train_batch_size": 2, "logging_steps": 1}},
        "reward": {"kind": "reward", "data": "labels", "init": "sft",
                   "train": {**RANKING, "ties": "davidson"}},
        "dpo": {"kind": "dpo", "data": "labels", "policy": "sft", "train": RANKING},
        "ppo": {
            "kind": "ppo", "data": "prompts", "policy": "sft", "judge": "gold",
            "reward": [{"reward": "reward", "weight": 1.0, "name": "learned"},
                       {"reward": "reward", "weight": 0.5, "name": "again"}],
            "train": {"iterations": 6, "save_iterations": 2, "prompts_per_iteration": 6,
                      "rollout_batch_size": 3, "max_new_tokens": 6},
        },
        "evaluate": {"kind": "evaluate", "data": "prompts", "policies": ["ppo", "dpo"],
                     "baseline": "sft", "judges": ["gold", "reward"], "max_new_tokens": 6},
        "export": {"kind": "export", "policy": "ppo"},
    },
}  # fmt: skip
LIVE = """
import os, signal, sys
from align.config import build_config
from align.pipeline import Pipeline
from align.tracking import Trackers
plain = Trackers.log

def log(self, step, metrics):
    plain(self, step, metrics)
    if step == 5 and "objective/kl" in metrics:
        os.kill(os.getpid(), signal.SIGKILL)

Trackers.log = log
Pipeline(build_config({config!r})).run()
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of every kind of step with a checkpoint or without: killed with `kill -9` in ppo's
    fifth iteration, after the checkpoint of the fourth, and brought to its end."""
    folder = tmp_path_factory.mktemp("toy")
    done = subprocess.run(
        [sys.executable, "-c", LIVE.format(config=TOY)], cwd=folder, capture_output=True, text=True,
        env=alone(folder), stdin=subprocess.DEVNULL, timeout=300,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("WANDB_API_KEY", "WANDB_MODE"):
            patch.delenv(name, raising=False)
        for name, value in keyless(folder).items():
            patch.setenv(name, value)
        Pipeline(build_config(TOY)).run()
        yield folder / "run"


@pytest.mark.slow
def test_a_run_that_was_killed_is_one_group_of_whole_runs(toy: Path):
    """Every line of `metrics.jsonl` is in its step's run once, also of the step that was killed."""
    for step in ("sft", "reward", "dpo", "ppo", "evaluate"):
        read = Read(toy / step)
        lines = read_lines(toy / step / "metrics.jsonl")
        assert (read.run.run_group, read.run.display_name, read.exit_code) == ("toy", step, 0)
        assert read.steps == [line["step"] for line in lines], step
        for row, line in zip(read.history, lines, strict=True):
            assert {name: row[name] for name in line if name not in ("step", "time")} == {
                name: value for name, value in line.items() if name not in ("step", "time")
            }
    assert Read(toy / "ppo").steps == [1, 2, 3, 4, 5, 6]
    samples = read_lines(toy / "ppo" / "samples.jsonl")
    assert len(Read(toy / "ppo").table("samples")["data"]) == len(samples) > 0
    findings = json.loads((toy / "ppo" / "findings.json").read_text())["findings"]
    titles = [one.title for one in Read(toy / "ppo").alerts]
    assert titles == [f"ppo: {one['name'].replace('_', ' ')}" for one in findings] != []


@pytest.mark.slow
def test_the_lineage_leads_from_the_data_to_the_export(toy: Path):
    runs = {step: Read(toy / step) for step in TOY["steps"]}
    assert {step: set(run.used) for step, run in runs.items()} == {
        "sft": {"toy-data.demos"},
        "reward": {"toy-data.labels", "toy-sft"},
        "dpo": {"toy-data.labels", "toy-sft"},
        "ppo": {"toy-data.prompts", "toy-sft", "toy-reward"},
        "evaluate": {"toy-data.prompts", "toy-ppo", "toy-dpo", "toy-sft", "toy-reward"},
        "export": {"toy-ppo"},
    }
    made = {name: one.digest for run in runs.values() for name, one in run.made.items()}
    assert made.keys() == {f"toy-{step}" for step in runs}
    for run in runs.values():
        for name, one in run.used.items():
            assert one.digest == made.get(name, one.digest)


@pytest.mark.slow
def test_no_panel_of_the_dashboard_is_empty(toy: Path):
    """Every metric of a panel is one that a step logged, every logged one is in a panel, and every
    pattern of a telling panel finds something in a run of all kinds of steps."""
    logged = read_logged(toy)
    steps = [step for step in TOY["steps"] if (toy / step / "metrics.jsonl").exists()]
    lines = [line for step in steps for line in read_lines(toy / step / "metrics.jsonl")]
    names = {name for line in lines for name in line} - {"step", "time"}
    panels = [panel for part in layout_of(logged) for panel in part.panels]
    drawn = [name for panel in panels if panel.kind != "table" for name in panel.names]
    assert len(drawn) == len(set(drawn)) and set(drawn) == names
    for _, wanted in [*TELLING.values(), TRAINING]:
        for pattern in (pattern for patterns in wanted.values() for pattern in patterns):
            assert any(fnmatchcase(name, pattern) for name in names), pattern

    pytest.importorskip("wandb_workspaces")
    sections = specification(workspace_of(logged, "", "p"))["section"]["panelBankConfig"][
        "sections"
    ]
    configs = [panel["config"] for section in sections for panel in section["panels"]]
    assert sorted(name for config in configs for name in config.get("metrics", ())) == sorted(names)


def test_a_silent_rank_starts_no_run(tmp_path: Path, no_key: Path):
    config = make_config(tmp_path)
    make_tracker(config, "sft", "sft", tmp_path / "sft", "f" * 16, main=False).log(1, {"a": 1.0})
    assert not (tmp_path / "sft").exists()
    assert FileTracker(tmp_path).position() == {}
