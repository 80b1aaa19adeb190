"""What a step's numbers go to, as a small protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable


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
