"""TensorBoard's event files, read back as TensorBoard would read them."""

from __future__ import annotations

import importlib.abc
import json
import math
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from align.config import Config, ConfigError, build_config
from align.tracking import Trackers, make_tracker
from align.tracking.tensorboard import EVENTS, TensorBoardTracker

pytest.importorskip("tensorboardX")


def events(path: Path) -> Iterator[Any]:
    """The events of a file: each behind its length (8 bytes) and a checksum (4), and before one."""
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    data, position = path.read_bytes(), 0
    while position < len(data):
        (length,) = struct.unpack_from("<Q", data, position)
        event = Event()
        event.ParseFromString(data[position + 12 : position + 12 + length])
        yield event
        position += 16 + length


def what_counts(folder: Path) -> list[tuple[int, str, Any]]:
    """(step, name, number or text) of all files in order, without what a later start has ended:
    an event of a start at step s takes away all of step s and after that came before it."""
    found: list[tuple[int, str, Any]] = []
    for path in sorted(folder.glob(EVENTS), key=lambda path: int(path.suffix[1:])):
        for event in events(path):
            if event.HasField("session_log") and event.session_log.status == 1:
                found = [one for one in found if one[0] < event.step]
            for value in event.summary.value:
                is_text = value.HasField("tensor")
                what = value.tensor.string_val[0].decode() if is_text else value.simple_value
                found.append((event.step, value.tag.removesuffix("/text_summary"), what))
    return found


def config_of(run: Path, **section: Any) -> Config:
    return build_config(
        {
            "name": "rivers",
            "output_dir": str(run),
            "tracking": {"tensorboard": section},
            "data": {"demos": {"path": "builtin:demonstrations"}},
            "steps": {"sft": {"kind": "sft", "data": "demos"}},
        }
    )


def tracker_of(run: Path, **section: Any) -> Trackers:
    return make_tracker(config_of(run, **section), "sft", "sft", run / "sft", "f" * 16, True)


def test_half_of_a_surrogate_pair_ends_no_step(tmp_path: Path):
    """It is a question mark, as in the run folder's own files."""
    tracker = tracker_of(tmp_path)
    tracker.table("samples", [{"completion": "half \ud800"}])
    tracker.finish({})
    assert what_counts(tmp_path / "sft" / "tensorboard")[-1][2].endswith("| half ? |")


def test_lines_tables_and_alerts_are_on_the_disk_at_once(tmp_path: Path):
    """Before the tracker is finished; a number that is not finite is left out."""
    tracker = tracker_of(tmp_path)
    tracker.log(2, {"objective/kl": 0.5, "objective/score": math.nan})
    tracker.table("samples", [{"prompt": "a|b\r\nc", "score": 1.5}, {"prompt": "d", "kl": None}])
    tracker.alert("same replies", "iteration 2: all alike", "error")
    about, *found = what_counts(tmp_path / "sft" / "tensorboard")
    assert about[1] == "about"
    assert json.loads(about[2].removeprefix("```json\n").removesuffix("\n```"))["name"] == "rivers"
    table = "| prompt | score | kl |\n| --- | --- | --- |\n| a\\|b<br>c | 1.5 |  |\n| d |  | null |"
    assert found == [
        (2, "objective/kl", 0.5),
        (2, "samples", table),
        (2, "alerts", "**error: same replies**: iteration 2: all alike"),
    ]
    tracker.finish({"headline": 7.0})
    last = what_counts(tmp_path / "sft" / "tensorboard")[-1]
    assert last == (2, "result", "| metric | value |\n| --- | --- |\n| headline | 7.0 |")


def test_after_a_kill_every_line_counts_once(tmp_path: Path):
    """Killed after step 5, taken up after 3: 4 and 5 of the first part no longer count. In one
    second, too, in which two files would bear one name."""
    first = tracker_of(tmp_path)
    for step in range(1, 6):
        first.log(step, {"a": float(step)})
        if step == 3:
            position = first.position()
    first.trackers[-1]._writer.close()  # type: ignore[attr-defined]  # as the end of a process does
    second = tracker_of(tmp_path)
    second.rewind(position)
    for step in range(4, 7):
        second.log(step, {"a": 10.0 * step})
    second.finish({})
    found = [one for one in what_counts(tmp_path / "sft" / "tensorboard") if one[1] == "a"]
    assert found == [(n, "a", float(n) if n < 4 else 10.0 * n) for n in range(1, 7)]


def test_a_step_that_starts_again_counts_from_its_start(tmp_path: Path):
    """In a folder of the user's, which is not emptied; the step's own files are gone by then."""
    runs = tmp_path / "runs"
    for number in (1.0, 2.0):
        tracker = make_tracker(
            config_of(tmp_path, folder=str(runs)), "sft", "sft", tmp_path / f"{number}", "f", True
        )
        tracker.log(1, {"a": number})
        tracker.finish({})
    found = what_counts(runs / "rivers" / "sft")
    assert [one for one in found if one[1] == "a"] == [(1, "a", 2.0)]
    assert [one[1] for one in found].count("about") == 1


def test_a_failure_is_said(tmp_path: Path):
    tracker = tracker_of(tmp_path)
    tracker.fail("no memory")
    assert what_counts(tmp_path / "sft" / "tensorboard")[-1] == (
        0, "alerts", "**error: failed**: no memory",
    )  # fmt: skip


def test_a_folder_that_cannot_be_is_an_error(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(
        ConfigError, match=r"tracking\.tensorboard\.folder: .*file.* cannot be made"
    ):
        tracker_of(tmp_path, folder=str(tmp_path / "file"))


class Absent(importlib.abc.MetaPathFinder):
    """Finds nothing in place of a package."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name.partition(".")[0] == "tensorboardX":
            raise ModuleNotFoundError(name)


def test_without_the_library_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboardX"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    with pytest.raises(ConfigError, match=r"needs the package tensorboardX; .*\[tensorboard\]"):
        TensorBoardTracker(tmp_path / "board", tmp_path, {})
