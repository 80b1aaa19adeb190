"""Where a step's numbers go: a small protocol, and the trackers that follow it.

`FileTracker` writes the run folder's own `metrics.jsonl`, `ConsoleTracker` a line a log step for
the person who waits, `WandbTracker` a Weights & Biases run. `make_tracker` gives the ones that a
configuration asks for, and a silent one on every rank but the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align.artifacts import fingerprint as fingerprint_of
from align.config import Config
from align.tracking.console import ConsoleTracker
from align.tracking.files import FileTracker
from align.tracking.protocol import Rewindable, Tracker
from align.tracking.weights_and_biases import WandbTracker


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
