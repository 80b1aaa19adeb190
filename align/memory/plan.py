"""What a run will hold, step by step, and what is known of its rows, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from align.config import DPO, SFT, Config, Reward
from align.memory.architecture import Architecture, UnknownBase, read_architecture
from align.memory.cards import Alternative, Card, alternatives, least
from align.memory.rows import Rows, count_rows, load_renderer
from align.memory.steps import Estimator, StepMemory, sharding_of
from preference_data.quarantine import DataError


@dataclass(frozen=True)
class MemoryPlan:
    """The estimate for each step of a run."""

    steps: tuple[StepMemory, ...]
    unknown: str | None
    """why there is none"""
    over: dict[str, float]
    """share of the rows longer than max_length, by the name of the step that reads them"""
    rows: dict[str, Rows]
    """of the data that is imported already, by source"""
    estimator: Estimator | None

    def alternatives(self, step: str, card: Card) -> list[Alternative]:
        """Settings under which the step fits the card."""
        return [] if self.estimator is None else alternatives(self.estimator, step, card)

    def least(self, step: str) -> StepMemory | None:
        """What the step takes with every setting at its smallest."""
        return None if self.estimator is None else least(self.estimator, step)


def plan_memory(config: Config, folder: Path, world_size: int, on_gpu: bool = False) -> MemoryPlan:
    """For the run in `folder`, which may not be there yet, on so many devices.

    Raises ConfigError for a DeepSpeed file that cannot be used.
    """
    sharding = sharding_of(config, world_size)
    rows = _rows(config, folder)
    over = {
        name: rows[step.data].over(step.train.max_length)
        for name, step in config.steps.items()
        if isinstance(step, SFT | Reward | DPO) and step.data in rows
    }
    try:
        base: Architecture = read_architecture(config.base, folder)
    except UnknownBase as error:
        return MemoryPlan((), str(error), over, rows, None)
    estimator = Estimator(config, base, sharding, rows, on_gpu)
    steps = tuple(map(estimator.step, config.steps))
    return MemoryPlan(steps, None, over, rows, estimator)


def _rows(config: Config, folder: Path) -> dict[str, Rows]:
    """Of every source that is imported, if the base's tokenizer is there to count with."""
    place = folder / "base" if config.base.model == "builtin:tiny" else Path(config.base.model)
    renderer = load_renderer(place) if place.is_dir() else None
    found: dict[str, Rows] = {}
    if renderer is None:
        return found
    for source in config.data:
        imported = folder / "data" / source
        if not (imported / "artifact.json").is_file():
            continue
        try:
            rows = count_rows(imported, config.run_as(source), renderer)
        except (DataError, OSError):  # the run itself will say what is wrong with it
            continue
        if rows is not None:
            found[source] = rows
    return found
