"""What a step's numbers go to, as small protocols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

Level = Literal["info", "warning", "error"]


class Tracker(Protocol):
    """Takes the metrics of one step of the pipeline while it runs."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """A line of metrics at optimiser step (or PPO iteration) `step`."""
        ...

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """More rows of a table of samples; every row has the same columns."""
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


@runtime_checkable
class Alerting(Protocol):
    """A tracker that hands on what somebody should look at."""

    def alert(self, title: str, text: str, level: Level) -> None:
        """Something was found, once."""
        ...

    def fail(self, text: str) -> None:
        """The step has failed, for the reason `text`; nothing is logged afterwards."""
        ...


def send_alert(tracker: Tracker, title: str, text: str, level: Level) -> None:
    """Hands an alert to a tracker that takes alerts."""
    if isinstance(tracker, Alerting):
        tracker.alert(title, text, level)
