"""Where a step's numbers go: a small protocol, and the trackers that follow it.

`FileTracker` writes the run folder's own `metrics.jsonl`, `ConsoleTracker` a line a log step for
the person who waits, `WandbTracker` a Weights & Biases run. `make_tracker` gives the ones that a
configuration asks for, and a silent one on every rank but the first.
"""

from __future__ import annotations

import json
import logging
import math
import netrc
import numbers
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO, runtime_checkable
from urllib.parse import urlsplit

from align.artifacts import fingerprint as fingerprint_of
from align.config import Config, ConfigError, Wandb
from align.summary import headline_metrics, number

log = logging.getLogger("align")


class Tracker(Protocol):
    """Takes the metrics of one step of the pipeline while it runs."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """A line of metrics at optimiser step (or PPO iteration) `step`."""
        ...

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table of samples; every row has the same columns."""
        ...

    def finish(self, metrics: Mapping[str, float]) -> None:
        """The headline numbers; nothing is logged afterwards."""
        ...


@runtime_checkable
class Rewindable(Protocol):
    """A tracker that is cut back when its step resumes: later lines are about to come again."""

    def position(self) -> dict[str, int]:
        """How far it has written, by file; all of it is on the disk."""
        ...

    def rewind(self, position: Mapping[str, int]) -> None:
        """Forgets what was written after `position`; everything, if that is empty."""
        ...


class Trackers:
    """Passes everything on to several trackers; to none, it is silent."""

    def __init__(self, trackers: Sequence[Tracker] = ()) -> None:
        self.trackers = tuple(trackers)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log(step, metrics)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        for tracker in self.trackers:
            tracker.table(name, rows)

    def finish(self, metrics: Mapping[str, float]) -> None:
        for tracker in self.trackers:
            tracker.finish(metrics)

    def position(self) -> dict[str, int]:
        """Of all trackers that write files; their files have different names."""
        found: dict[str, int] = {}
        for tracker in self.trackers:
            if isinstance(tracker, Rewindable):
                found |= tracker.position()
        return found

    def rewind(self, position: Mapping[str, int]) -> None:
        """Cuts back all trackers that write files. What was said on the console stays there, and a
        W&B run ignores the steps that it has already."""
        for tracker in self.trackers:
            if isinstance(tracker, Rewindable):
                tracker.rewind(position)


def make_tracker(
    config: Config, step_name: str, kind: str, folder: Path, fingerprint: str, main: bool
) -> Trackers:
    """The trackers of one step: file and console always, W&B when the configuration names it.

    `main` is whether this is the first rank; every other rank gets a tracker that does nothing.
    Raises ConfigError if W&B is to be online and there is no key.
    """
    if not main:
        return Trackers()
    trackers: list[Tracker] = [FileTracker(folder), ConsoleTracker(step_name, kind)]
    if config.tracking.wandb is not None:
        trackers.append(
            WandbTracker(
                config.tracking.wandb,
                group=config.name,
                step_name=step_name,
                kind=kind,
                config=config.model_dump(mode="json", by_alias=True) | {"fingerprint": fingerprint},
                folder=folder,
                run_id=fingerprint_of(config.name, step_name, fingerprint),
            )
        )
    return Trackers(trackers)


# --- files ---------------------------------------------------------------------------------------


class FileTracker:
    """Appends to JSON-lines files in the step's folder; each line is on disk when `log` returns.

    Metrics go to `metrics.jsonl` as {"step", "time" (Unix seconds), name: number, …}, a table to
    `<name>.jsonl`. JSON has no NaN or infinity, so a number that is not finite is written as null.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mended: set[Path] = set()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._append("metrics", [{"step": step, "time": time.time(), **metrics}])

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self._append(name, rows)

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Nothing: the headline numbers stand in the step's artifact."""

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
        lines = [json.dumps(_plain(row), ensure_ascii=False, allow_nan=False) for row in rows]
        with path.open("a", encoding="utf-8", errors="replace") as file:
            file.write("".join(line + "\n" for line in lines))


def _drop_half_line(path: Path) -> None:
    """Cuts off a last line without its end, which a killed run leaves and no reader can parse."""
    if path.exists():
        with path.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it: numpy and torch scalars as numbers, NaN and infinity as None."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, numbers.Integral):
        return int(value)
    as_float = float(value)
    return as_float if math.isfinite(as_float) else None


# --- console -------------------------------------------------------------------------------------

SHOWN = {
    "train/loss": "loss",
    "objective/score": "score",
    "objective/kl": "kl",
    "reward/accuracy": "accuracy",
    "dpo/accuracy": "accuracy",
    "response/length": "length",
    "train/tokens_per_second": "tokens/s",
}
"""The metrics worth a look while waiting, in the order of the line, and what they are called."""


class ConsoleTracker:
    """One short line a log step on standard error: coloured on a terminal, plain text elsewhere."""

    def __init__(self, step_name: str, kind: str, stream: TextIO | None = None) -> None:
        self.step_name = step_name
        self.kind = kind
        self.stream = stream

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        shown = [(label, metrics[name]) for name, label in SHOWN.items() if name in metrics]
        # A line without a known name (a final evaluation, say) shows its first numbers as they are.
        numbers = shown or list(metrics.items())[:3]
        self._write(f"{step:>6}", [(label, number(value)) for label, value in numbers])

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Nothing: samples are for the report."""

    def finish(self, metrics: Mapping[str, float]) -> None:
        self._write("  done", [("", headline_metrics(self.kind, metrics))])

    def _write(self, when: str, numbers: Sequence[tuple[str, str]]) -> None:
        stream = self.stream or sys.stderr
        if not stream.isatty():
            words = "  ".join(f"{label} {value}".strip() for label, value in numbers)
            print(f"{self.step_name}  {when}  {words}".rstrip(), file=stream, flush=True)
            return
        from rich.console import Console
        from rich.text import Text

        line = Text.assemble((self.step_name, "bold cyan"), "  ", (when, "dim"))
        for label, value in numbers:
            line.append(f"  {label} " if label else "  ", "dim").append(value)
        Console(file=stream).print(line, soft_wrap=True)


# --- Weights & Biases ----------------------------------------------------------------------------


class WandbTracker:
    """A Weights & Biases run for one step: grouped by pipeline, named after the step.

    `run_id` depends only on what the step is, so that a resumed step continues the same run. The
    run's files are below `folder/wandb`; an offline run is sent later with `wandb sync`. The
    library is imported here and nowhere else. Never asks for a login.
    Raises ConfigError if the mode is `online` and there is no key.
    """

    def __init__(
        self,
        section: Wandb,
        group: str,
        step_name: str,
        kind: str,
        config: dict[str, Any],
        folder: Path,
        run_id: str,
    ) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        mode = wandb_mode(section)
        self._wandb = wandb
        self._step = 0
        self._run = wandb.init(
            project=section.project,
            entity=section.entity,
            group=group,
            name=step_name,
            job_type=kind,
            id=run_id,
            # Offline there is no server to ask; `wandb sync --append` joins the parts by their id.
            resume="allow" if mode == "online" else None,
            config=config,
            dir=str(folder),
            mode=mode,
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )
        if mode == "online":
            print(f"{step_name}  W&B {self._run.url}", file=sys.stderr, flush=True)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._step = step
        self._run.log(dict(metrics), step=step)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        columns: list[Any] = list(dict.fromkeys(column for row in rows for column in row))
        data: list[Any] = [[_plain(row.get(column)) for column in columns] for row in rows]
        # With its step: without one, wandb would close the step and drop what comes to it later.
        self._run.log({name: self._wandb.Table(columns=columns, data=data)}, step=self._step)

    def finish(self, metrics: Mapping[str, float]) -> None:
        self._run.summary.update(dict(metrics))
        self._run.finish()


WandbMode = Literal["online", "offline", "disabled"]


def wandb_mode(section: Wandb) -> WandbMode:
    """`online`, `offline` or what WANDB_MODE says; `auto` is online only when a key is present."""
    if section.mode == "offline":
        return "offline"
    if section.mode == "online":
        if not _has_wandb_key():
            raise ConfigError(
                "tracking.wandb.mode is 'online', but there is no key; set WANDB_API_KEY, run "
                "`wandb login`, or use mode: offline."
            )
        return "online"
    asked = os.environ.get("WANDB_MODE")
    if asked == "disabled" or asked == "offline":
        return asked
    return "online" if _has_wandb_key() else "offline"


def _has_wandb_key() -> bool:
    """Whether wandb would find a key in the environment or in the netrc file (it is not kept)."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    files = [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]
    for file in files:
        try:
            if host and netrc.netrc(os.path.expanduser(file)).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False
