"""Where a step's numbers go: a small protocol, and the trackers that follow it.

`FileTracker` writes the run folder's own `metrics.jsonl`, `ConsoleTracker` a line a log step for
the person who waits, `WandbTracker` a Weights & Biases run, `TensorBoardTracker` event files.
`make_tracker` gives the ones that a configuration asks for, and a silent one on every rank but the
first.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from align.artifacts import fingerprint as fingerprint_of
from align.config import Config
from align.tracking.console import ConsoleTracker
from align.tracking.files import FileTracker
from align.tracking.lineage import materials_used, of_step
from align.tracking.protocol import Alerting, Level, Rewindable, Tracker
from align.tracking.surroundings import surroundings, without_home
from align.tracking.tensorboard import TensorBoardTracker
from align.tracking.weights_and_biases import WandbTracker, wandb_mode

log = logging.getLogger("align")


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

    def alert(self, title: str, text: str, level: Level) -> None:
        for tracker in self.trackers:
            if isinstance(tracker, Alerting):
                tracker.alert(title, text, level)

    def fail(self, text: str) -> None:
        """The step has failed; in place of `finish`. A tracker that cannot take it (a full disk, a
        service that is gone) keeps neither the others nor the failure itself from being told."""
        for tracker in self.trackers:
            if isinstance(tracker, Alerting):
                try:
                    tracker.fail(text)
                except Exception as error:
                    log.warning("%s was not told of the failure: %s", type(tracker).__name__, error)

    @contextmanager
    def told_of_errors(self) -> Iterator[None]:
        """Tells the trackers of an error within it, which goes on; not of an interruption."""
        try:
            yield
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            self.fail(without_home(text))
            raise

    def position(self) -> dict[str, int]:
        """Of all trackers that write files; their files have different names."""
        found: dict[str, int] = {}
        for tracker in self.trackers:
            if isinstance(tracker, Rewindable):
                found |= tracker.position()
        return found

    def rewind(self, position: Mapping[str, int]) -> None:
        """Cuts back all trackers that can be; the first, whose files the others read, first. What
        was said on the console stays there."""
        for tracker in self.trackers:
            if isinstance(tracker, Rewindable):
                tracker.rewind(position)


def make_tracker(
    config: Config, step_name: str, kind: str, folder: Path, fingerprint: str, main: bool
) -> Trackers:
    """The trackers of one step: file and console always, others when the configuration names them.

    `main` is whether this is the first rank; every other rank gets a tracker that does nothing.
    Raises ConfigError if a tracker cannot begin as the configuration wants it.
    """
    if not main:
        return Trackers()
    trackers: list[Tracker] = [FileTracker(folder), ConsoleTracker(step_name, kind)]
    wandb, tensorboard = config.tracking.wandb, config.tracking.tensorboard
    with_wandb = wandb is not None and wandb_mode(wandb) != "disabled"
    if with_wandb or tensorboard is not None:
        about = _about(config, fingerprint)
        if with_wandb:
            trackers.append(_wandb(config, step_name, kind, folder, fingerprint, about))
        if tensorboard is not None:
            place = folder / "tensorboard"
            if tensorboard.folder is not None:
                place = Path(tensorboard.folder).expanduser() / config.name / step_name
            trackers.append(TensorBoardTracker(place, folder, about))
    return Trackers(trackers)


def _about(config: Config, fingerprint: str) -> dict[str, Any]:
    """The configuration and what the step is made with, for people to look at."""
    return {
        **without_home(config.model_dump(mode="json", by_alias=True)),
        "fingerprint": fingerprint,
        **surroundings(),
    }


def _wandb(
    config: Config, step_name: str, kind: str, folder: Path, fingerprint: str,
    about: Mapping[str, Any],
) -> WandbTracker:  # fmt: skip
    section = config.tracking.wandb
    assert section is not None
    return WandbTracker(
        section,
        group=config.name,
        step_name=step_name,
        kind=kind,
        config=about,
        folder=folder,
        run_id=fingerprint_of(config.name, step_name, fingerprint),
        used=materials_used(config, step_name, section.log_data, section.log_model),
        makes=lambda metrics: of_step(
            config.name, step_name, kind, folder, fingerprint, metrics, section.log_model
        ),
    )
