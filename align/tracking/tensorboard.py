"""A step's numbers as TensorBoard reads them: the only importer of tensorboardX."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align.config import ConfigError
from align.tracking.files import METRICS, read_lines
from align.tracking.plain import plain
from align.tracking.protocol import Level

EVENTS = "events.out.tfevents.*"


class TensorBoardTracker:
    """Event files in `folder`, each line on the disk when `log` returns: metrics as scalars, tables
    and alerts as text. A number that is not finite is left out.

    A step that goes on from a checkpoint has a further file, which says from which step on the
    files before it no longer count. `step_folder` is where the step's `metrics.jsonl` is, `about`
    what is shown with the numbers.
    Raises ConfigError without the library, or if the folder cannot be written.
    """

    def __init__(self, folder: Path, step_folder: Path, about: Mapping[str, Any]) -> None:
        try:
            import tensorboardX.event_file_writer
            import tensorboardX.summary  # noqa: F401
        except ModuleNotFoundError as error:
            raise ConfigError(
                "tracking.tensorboard needs the package tensorboardX; install it with `pip install "
                '-c constraints.txt -e ".[tensorboard]"`, or leave tracking.tensorboard out.'
            ) from error
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"tracking.tensorboard.folder: {folder} cannot be made ({error.strerror})."
            ) from error
        self._folder = folder
        self._step_folder = step_folder
        self._about = about
        self._writer: Any = None
        self._step = 0
        # Of a step that starts again in a folder that has files, those count no longer.
        self._from: int | None = 0 if any(folder.glob(EVENTS)) else None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        from tensorboardX.summary import scalar

        self._step = step
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._write([scalar(name, float(value)) for name, value in finite.items()])

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            self._text(name, _markdown(rows))

    def alert(self, title: str, text: str, level: Level) -> None:
        self._text("alerts", f"**{level}: {title}**: {text}")

    def finish(self, metrics: Mapping[str, float]) -> None:
        rows = [{"metric": name, "value": value} for name, value in metrics.items()]
        if rows:
            self._text("result", _markdown(rows))
        self._open().close()

    def fail(self, text: str) -> None:
        self.alert("failed", text, "error")
        self._open().close()

    def position(self) -> dict[str, int]:
        """Nothing: what was written is not cut back but marked."""
        return {}

    def rewind(self, position: Mapping[str, int]) -> None:
        """What was written after the last line that is left in `metrics.jsonl` counts no longer."""
        lines = read_lines(self._step_folder / f"{METRICS}.jsonl")
        self._from = lines[-1]["step"] + 1 if lines else 0

    def _text(self, name: str, content: str) -> None:
        from tensorboardX.summary import text

        # A lone surrogate in a completion is no UTF-8; it becomes a question mark.
        self._write([text(name, content.encode("utf-8", "replace").decode())])

    def _write(self, summaries: Sequence[Any]) -> None:
        """Onto the disk. tensorboardX's SummaryWriter would leave it to a thread, and what is in
        its queue when the process is killed is lost."""
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

        writer = self._open()
        for summary in summaries:
            writer.write_event(Event(wall_time=time.time(), step=self._step, summary=summary))
        writer.flush()

    def _open(self) -> Any:
        """The writer, made when it is first needed: only then is known from where it goes on."""
        if self._writer is None:
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

            # Files are named after the second; two of one second would be one.
            part = len(list(self._folder.glob(EVENTS)))
            self._writer = EventsWriter(str(self._folder / "events"), f".{part}")
            if self._from is not None:
                start = SessionLog(status=SessionLog.START)
                self._writer.write_event(
                    Event(wall_time=time.time(), step=self._from, session_log=start)
                )
            if not self._from:
                about = json.dumps(plain(self._about), indent=2, ensure_ascii=False)
                self._text("about", f"```json\n{about}\n```")
        return self._writer


def _markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, ["---"] * len(columns), *([row.get(c, "") for c in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: Any) -> str:
    value = plain(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "<br>".join(text.replace("|", "\\|").splitlines())
