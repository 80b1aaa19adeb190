"""Trackers: what is on disk and on the console afterwards, and which trackers there are."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from align.config import Config, build_config
from align.tracking import Trackers, make_tracker
from align.tracking.console import ConsoleTracker
from align.tracking.files import FileTracker, read_lines, read_tables
from align.tracking.protocol import send_alert


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


def test_alerts_are_lines_and_no_table(tmp_path: Path):
    tracker = FileTracker(tmp_path)
    tracker.table("samples", [{"prompt": "a"}])
    tracker.alert("same replies", "iteration 4: all alike", "error")
    tracker.fail("step ppo failed: no memory")
    lines = read_lines(tmp_path / "alerts.jsonl")
    assert [(line["level"], line["title"], line["text"]) for line in lines] == [
        ("error", "same replies", "iteration 4: all alike"),
        ("error", "failed", "step ppo failed: no memory"),
    ]
    assert read_tables(tmp_path) == {"samples": [{"prompt": "a"}]}


def test_a_line_that_a_kill_cut_is_not_read(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"step": 1}\n{"st')
    assert read_lines(tmp_path / "a.jsonl") == [{"step": 1}]
    assert read_lines(tmp_path / "b.jsonl") == []


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


class Listener(Recorder):
    def alert(self, title: str, text: str, level: str) -> None:
        self.calls.append(("alert", title, level))

    def fail(self, text: str) -> None:
        self.calls.append(("fail", text))


def test_alerts_reach_the_trackers_that_take_them():
    """A tracker without `alert` (the console) is passed over, also as the only one."""
    deaf, listener = Recorder(), Listener()
    send_alert(Trackers([deaf, listener]), "blind value", "why", "warning")
    Trackers([deaf, listener]).fail("no memory")
    send_alert(deaf, "blind value", "why", "warning")
    assert listener.calls == [("alert", "blind value", "warning"), ("fail", "no memory")]
    assert deaf.calls == []


def test_the_failure_outlives_a_tracker_that_fails(tmp_path: Path):
    """A full disk ends the step and takes no alert either: the others are told, and the error that
    goes on is the first."""
    listener = Listener()
    (tmp_path / "alerts.jsonl").mkdir()  # nothing can be appended to it
    trackers = Trackers([FileTracker(tmp_path), listener])
    with pytest.raises(ValueError, match="the first"), trackers.told_of_errors():
        raise ValueError("the first")
    assert listener.calls == [("fail", "the first")]


def test_an_error_is_told_and_goes_on_an_interruption_only_goes_on():
    listener = Listener()
    with pytest.raises(ValueError), Trackers([listener]).told_of_errors():
        raise ValueError("no\n  memory")
    with pytest.raises(KeyboardInterrupt), Trackers([listener]).told_of_errors():
        raise KeyboardInterrupt
    assert listener.calls == [("fail", "no memory")]


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
        "heavy = ('wandb', 'torch', 'tensorboardX', 'matplotlib', 'jinja2'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout.strip() == "[]"
