"""The run folder's own record: JSON-lines files that a resumed step goes on with."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align.tracking.plain import plain
from align.tracking.protocol import Level

METRICS, ALERTS = "metrics", "alerts"
log = logging.getLogger("align")


class FileTracker:
    """Appends to JSON-lines files in the step's folder; each line is on disk when `log` returns.

    Metrics go to `metrics.jsonl` as {"step", "time" (Unix seconds), name: number, …}, a table to
    `<name>.jsonl`, alerts to `alerts.jsonl` as {"level", "title", "text"}. JSON has no NaN
    or infinity, so a number that is not finite is written as null.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mended: set[Path] = set()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._append(METRICS, [{"step": step, "time": time.time(), **metrics}])

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self._append(name, rows)

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Nothing: the headline numbers stand in the step's artifact."""

    def alert(self, title: str, text: str, level: Level) -> None:
        self._append(ALERTS, [{"level": level, "title": title, "text": text}])

    def fail(self, text: str) -> None:
        self.alert("failed", text, "error")

    def position(self) -> dict[str, int]:
        """Bytes of every JSON-lines file of the step, all synced."""
        sizes: dict[str, int] = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            with path.open("rb") as file:
                os.fsync(file.fileno())
                sizes[path.name] = os.fstat(file.fileno()).st_size
        return sizes

    def rewind(self, position: Mapping[str, int]) -> None:
        """Cuts every JSON-lines file of the step back; one that is not in `position` is removed.

        A file that has become shorter is left as it is, and said to be.
        """
        for path in sorted(self.folder.glob("*.jsonl")):
            if path.name not in position:
                path.unlink()
        for name, size in position.items():
            path = self.folder / name
            if not path.is_file() or path.stat().st_size < size:
                log.warning("%s has lost lines since the checkpoint was written", path)
            else:
                os.truncate(path, size)

    def _append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        path = self.folder / f"{name}.jsonl"
        if path not in self._mended:
            self.folder.mkdir(parents=True, exist_ok=True)
            _drop_half_line(path)
            self._mended.add(path)
        lines = [json.dumps(plain(row), ensure_ascii=False, allow_nan=False) for row in rows]
        with path.open("a", encoding="utf-8", errors="replace") as file:
            file.write("".join(line + "\n" for line in lines))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON-lines file; none if there is no such file."""
    if not path.is_file():
        return []
    whole = path.read_bytes().rpartition(b"\n")[0]
    return [json.loads(line) for line in whole.split(b"\n") if line]


def read_tables(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of each table that a step's folder holds, by name."""
    paths = sorted(folder.glob("*.jsonl"))
    return {path.stem: read_lines(path) for path in paths if path.stem not in (METRICS, ALERTS)}


def _drop_half_line(path: Path) -> None:
    """Cuts off a last line without its end, which a killed run leaves and no reader can parse."""
    if path.exists():
        with path.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
