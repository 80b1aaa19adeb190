"""What a stage is given and what it gives back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.artifacts import Artifact, Rows
from align.base import load_base, load_renderer
from align.config import Config
from align.engine import Engine
from align.roles import Roles
from align.tracking import Tracker
from preference_data import views
from preference_data.near_duplicates import Clusters
from preference_data.rendering import Renderer
from preference_data.splits import R, split


@dataclass(frozen=True)
class StageContext:
    """Everything around one step while it runs."""

    config: Config
    name: str
    step: Any
    """The step's own section of the configuration."""
    folder: Path
    base_path: str
    """The bare base that `init: base` means."""
    inputs: Mapping[str, Artifact]
    """The steps it stands on, by name."""
    data: Mapping[str, Path]
    """Folders of imported data, by name."""
    engine: Engine
    tracker: Tracker
    seed: int
    clusters: Clusters
    """Openings of prompts that say almost the same, of all data sources."""

    def base_of(self, step: str) -> str:
        """The base model that the policy of `step` (a step's name or `base`) stands on."""
        if step == "base":
            return self.base_path
        artifact = self.inputs[step]
        if artifact.kind == "pretrain":
            return str(artifact.model)
        assert artifact.base is not None
        return artifact.base

    def weights_of(self, step: str) -> Path | None:
        """The adapter (or full weights) of `step` on its base; None for a bare base."""
        if step == "base" or self.inputs[step].kind == "pretrain":
            return None
        artifact = self.inputs[step]
        return artifact.adapter or artifact.model

    def load_roles(self, step: str) -> Roles:
        """The base under `step`, without any role yet."""
        path = self.base_of(step)
        model = load_base(path, self.config.base, self.engine.device)
        renderer, revision = self.load_renderer(path), self._revision(path)
        roles = Roles(model, renderer, self.config.lora, path, revision)
        return roles.to(self.engine.device)

    def load_renderer(self, path: str) -> Renderer:
        return load_renderer(path, self._revision(path))

    def _revision(self, path: str) -> str | None:
        return self.config.base.revision if path == self.config.base.model else None

    def split(self, source: str, records: Iterable[R]) -> tuple[list[R], list[R]]:
        """(train, test) of a data source's records; a prompt is on one side in the whole run."""
        return sides(self.config, source, self.data[source], self.clusters, records)


def sides(
    config: Config, source: str, folder: Path, clusters: Clusters, records: Iterable[R]
) -> tuple[list[R], list[R]]:
    """(train, test) of the records of a data source, whose folder this is."""
    given = views.given(folder, clusters)
    return split(records, config.data[source].test_fraction, f"{config.seed}", clusters, given)


@dataclass(frozen=True)
class StageResult:
    """What a step reports; its files are in its folder already, proved by reloading."""

    metrics: dict[str, float]
    rows: Rows | None = None
    base: str | None = None
    samples: list[dict[str, Any]] = field(default_factory=list)
