"""Trackers: what is on disk, on the console and in the W&B run afterwards. No network."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from align.config import Config, ConfigError, Wandb, build_config
from align.tracking import Trackers, make_tracker
from align.tracking.console import ConsoleTracker
from align.tracking.files import FileTracker
from align.tracking.weights_and_biases import WandbTracker, wandb_mode


def read_strict(path: Path) -> list[dict[str, Any]]:
    """JSON lines by the standard: NaN and Infinity are errors."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


# --- files ---------------------------------------------------------------------------------------


def test_file_holds_each_line_at_once_and_no_nan(tmp_path: Path):
    tracker = FileTracker(tmp_path / "ppo")
    tracker.log(1, {"objective/kl": 0.5, "objective/score": float("nan")})
    (line,) = read_strict(tmp_path / "ppo" / "metrics.jsonl")  # before the tracker is finished
    assert list(line) == ["step", "time", "objective/kl", "objective/score"]
    assert (line["step"], line["objective/kl"], line["objective/score"]) == (1, 0.5, None)
    assert line["time"] > 1.7e9

    tracker.log(2, {"a": float("inf"), "b": torch.tensor(0.25), "c": np.float32(1.5), "d": 3})  # type: ignore[dict-item]
    second = read_strict(tmp_path / "ppo" / "metrics.jsonl")[1]
    assert {name: second[name] for name in "abcd"} == {"a": None, "b": 0.25, "c": 1.5, "d": 3}


def test_resumed_step_appends_and_drops_the_line_that_a_kill_cut(tmp_path: Path):
    FileTracker(tmp_path).log(1, {"train/loss": 2.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "train/lo')
    FileTracker(tmp_path).log(2, {"train/loss": 1.0})
    lines = read_strict(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["train/loss"]) for line in lines] == [(1, 2.0), (2, 1.0)]


def test_tables_accumulate_under_their_name(tmp_path: Path):
    tracker = FileTracker(tmp_path)
    message = [{"role": "user", "content": "Grüße\n\u2028"}]
    tracker.table("samples", [{"prompt": message, "score": float("-inf")}])
    tracker.table("samples", [{"prompt": "b", "score": np.int64(2)}])
    text = (tmp_path / "samples.jsonl").read_text(encoding="utf-8")
    assert text.count("\n") == 2
    rows = [json.loads(line) for line in text.rstrip("\n").split("\n")]
    assert rows == [{"prompt": message, "score": None}, {"prompt": "b", "score": 2}]


# --- console -------------------------------------------------------------------------------------


def test_console_writes_one_plain_line_a_step():
    stream = io.StringIO()
    tracker = ConsoleTracker("ppo", "ppo", stream)
    tracker.log(
        12,
        {"policy/loss": 0.01, "objective/kl": 7.31, "objective/score": 2.1,
         "train/tokens_per_second": 1234.4},
    )  # fmt: skip
    tracker.table("samples", [{"prompt": "never shown"}])
    tracker.log(13, {"evaluate/kl/ppo": 3.0})
    tracker.finish({"objective/kl": 7.31, "objective/score": 2.1})
    assert [line.split() for line in stream.getvalue().splitlines()] == [
        ["ppo", "12", "score", "2.1", "kl", "7.31", "tokens/s", "1,234"],
        ["ppo", "13", "evaluate/kl/ppo", "3"],
        ["ppo", "done", "kl", "7.3,", "score", "2.1"],
    ]


def test_console_is_coloured_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    ConsoleTracker("sft", "sft", stream).log(5, {"train/loss": 0.5})
    assert "\x1b[" in stream.getvalue() and "0.5" in stream.getvalue()


# --- which trackers ------------------------------------------------------------------------------


class Recorder:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def log(self, step: int, metrics: Any) -> None:
        self.calls.append(("log", step, metrics))

    def table(self, name: str, rows: Any) -> None:
        self.calls.append(("table", name, rows))

    def finish(self, metrics: Any) -> None:
        self.calls.append(("finish", metrics))


def test_trackers_pass_everything_on():
    first, second = Recorder(), Recorder()
    both = Trackers([first, second])
    both.log(1, {"a": 1.0})
    both.table("samples", [{"p": "q"}])
    both.finish({"b": 2.0})
    assert first.calls == second.calls == [
        ("log", 1, {"a": 1.0}),
        ("table", "samples", [{"p": "q"}]),
        ("finish", {"b": 2.0}),
    ]  # fmt: skip


def make_config(folder: Path, **tracking: Any) -> Config:
    return build_config(
        {
            "name": "rivers",
            "output_dir": str(folder),
            "tracking": tracking,
            "data": {"demos": {"path": "builtin:demonstrations"}},
            "steps": {"sft": {"kind": "sft", "data": "demos", "train": {"learning_rate": 0.003}}},
        }
    )


def test_only_the_first_rank_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = make_config(tmp_path, wandb={"project": "p", "mode": "offline"})
    silent = make_tracker(config, "sft", "sft", tmp_path / "sft", "f" * 16, main=False)
    silent.log(1, {"train/loss": 1.0})
    silent.table("samples", [{"prompt": "p"}])
    silent.finish({"train/loss": 1.0})
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr() == ("", "")

    loud = make_tracker(make_config(tmp_path), "sft", "sft", tmp_path / "sft", "f" * 16, main=True)
    loud.log(1, {"train/loss": 1.25})
    assert read_strict(tmp_path / "sft" / "metrics.jsonl")[0]["train/loss"] == 1.25
    assert "loss 1.25" in capsys.readouterr().err


def test_neither_wandb_nor_torch_is_imported_before_it_is_needed():
    code = (
        "import sys, align.tracking, align.report, align.summary; "
        "print([m for m in ('wandb', 'torch', 'matplotlib', 'jinja2') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


# --- Weights & Biases ----------------------------------------------------------------------------


@pytest.fixture
def no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment in which wandb finds no key and writes below `tmp_path`; gives its netrc."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb-home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


def test_mode_follows_the_key(no_key: Path, monkeypatch: pytest.MonkeyPatch):
    auto = Wandb(project="p")
    assert wandb_mode(auto) == "offline"
    no_key.write_text("machine example.org login user password x\n")
    assert wandb_mode(auto) == "offline"
    no_key.write_text("machine api.wandb.ai login user password not-a-key\n")
    assert wandb_mode(auto) == "online"
    assert wandb_mode(Wandb(project="p", mode="offline")) == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode(auto) == "disabled"
    monkeypatch.delenv("WANDB_MODE")
    no_key.write_text("this is no netrc file\n")
    assert wandb_mode(auto) == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "not-a-key")
    assert wandb_mode(auto) == "online"


def test_online_without_a_key_is_an_error_and_no_prompt(no_key: Path):
    with pytest.raises(ConfigError, match=r"tracking\.wandb\.mode is 'online', but .* no key"):
        wandb_mode(Wandb(project="p", mode="online"))


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


def test_offline_run_holds_history_config_summary_and_table(tmp_path: Path, no_key: Path):
    folder = tmp_path / "sft"
    config = make_config(tmp_path, wandb={"project": "hh", "mode": "auto"})
    tracker = make_tracker(config, "sft", "sft", folder, "0123456789abcdef", main=True)
    tracker.log(10, {"train/loss": 1.5, "train/lr": 0.003})
    tracker.table("samples", [{"prompt": "p", "score": 0.5}, {"prompt": "q", "score": 1.5}])
    tracker.log(20, {"train/loss": 1.25})
    tracker.finish({"train/loss": 1.25, "headline": 7.0})

    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    found = finished_records(path)
    (run,) = [record.run for record in found if record.HasField("run")]
    assert (run.project, run.run_group, run.display_name, run.job_type) == (
        "hh", "rivers", "sft", "sft",
    )  # fmt: skip
    assert path.stem == f"run-{run.run_id}"
    settings = values(run.config.update)
    assert settings["fingerprint"] == "0123456789abcdef"
    assert settings["steps"]["sft"]["train"]["learning_rate"] == 0.003

    history = [values(record.history.item) for record in found if record.HasField("history")]
    assert [row["_step"] for row in history] == [10, 20]
    assert [row["train/loss"] for row in history] == [1.5, 1.25]
    assert history[0]["train/lr"] == 0.003
    assert history[0]["samples.nrows"] == 2 and history[0]["samples.ncols"] == 2
    (table,) = folder.glob("wandb/offline-run-*/files/media/table/*.json")
    assert json.loads(table.read_text()) == {
        "columns": ["prompt", "score"], "data": [["p", 0.5], ["q", 1.5]],
    }  # fmt: skip

    summary: dict[str, Any] = {}
    for record in found:
        if record.HasField("summary"):
            summary |= values(record.summary.update)
    assert summary["headline"] == 7.0 and summary["train/loss"] == 1.25


def test_run_id_is_the_steps_own(tmp_path: Path, no_key: Path):
    """The same step twice is one run; another fingerprint is another. One process, three runs."""
    config = make_config(tmp_path, wandb={"project": "hh", "mode": "offline"})
    for index, fingerprint in enumerate(["a" * 16, "a" * 16, "b" * 16]):
        folder = tmp_path / str(index)
        make_tracker(config, "sft", "sft", folder, fingerprint, main=True).finish({})
    ids = [
        next((tmp_path / str(index)).glob("wandb/offline-run-*/*.wandb")).stem for index in range(3)
    ]
    assert ids[0] == ids[1] != ids[2]


def test_wandb_run_prints_nothing(tmp_path: Path, no_key: Path, capfd: pytest.CaptureFixture[str]):
    tracker = WandbTracker(
        Wandb(project="p", mode="offline"), group="g", step_name="s", kind="ppo", config={},
        folder=tmp_path / "s", run_id="abc",
    )  # fmt: skip
    tracker.log(1, {"a": 1.0})
    tracker.table("samples", [])
    tracker.finish({})
    assert capfd.readouterr() == ("", "")
