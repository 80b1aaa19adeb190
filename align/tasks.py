"""Everything that a full run makes, as a graph: each node's fingerprint, and whether it is done.

Importing this module loads neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from align import checkpoints
from align.artifacts import Artifact, fingerprint, hash_files, read_json
from align.config import BUILTIN_DATA, Config
from align.config_rewards import IDENTITY

CLUSTERS_FILE = "clusters.json"
HARMLESS = {"save_iterations", "save_steps"}
"""Train settings that change nothing of what a step leaves behind."""


@dataclass(frozen=True)
class Task:
    """A node of the pipeline: the world, the base, a data source or a step."""

    name: str
    kind: str
    folder: Path
    fingerprint: str
    inputs: dict[str, str]
    """Fingerprints of what it is made from, by name."""
    files: dict[str, str] = field(default_factory=dict[str, str])
    """Those of the files and folders that its settings name, by option."""

    def done(self) -> Artifact | None:
        """Its complete artifact, if it was made from the same things."""
        artifact = Artifact.load(self.folder)
        if artifact is None or artifact.fingerprint != self.fingerprint:
            return None
        return artifact

    def state(self) -> tuple[str, str]:
        """("done" | "resume" | "run", why)."""
        artifact = Artifact.load(self.folder)
        if artifact is None:
            if (found := checkpoints.newest(self.folder, self.fingerprint)) is not None:
                return "resume", f"after {found.unit} {found.number}"
            begun = self.folder.is_dir() and any(self.folder.iterdir())
            return "run", "interrupted, starts again" if begun else "new"
        if artifact.fingerprint == self.fingerprint:
            return "done", ""
        changed = [
            name for name, print_ in self.inputs.items() if artifact.inputs.get(name) != print_
        ]
        return "run", f"{', '.join(changed)} changed" if changed else "its settings changed"


def tasks_of(config: Config) -> list[Task]:
    """Everything that a full run makes, in order, with fingerprints."""
    run = Path(config.output_dir)
    made: dict[str, Task] = {}

    def add(
        name: str, kind: str, folder: Path, own: Any, inputs: Sequence[str],
        files: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        prints = {other: made[other].fingerprint for other in inputs}
        print_ = fingerprint(kind, own, prints)
        made[name] = Task(name, kind, folder, print_, prints, dict(files or {}))

    if any(data.path in BUILTIN_DATA for data in config.data.values()):
        own = [config.world.model_dump(), config.seed, _source_hash("synthetic.py")]
        add("world", "world", run / "world", own, ())
    for source, data in config.data.items():
        builtin = data.path in BUILTIN_DATA
        own = [
            data.model_dump(exclude={"test_fraction", "license", *(() if builtin else ("path",))}),
            config.run_as(source),
            None if builtin else content_hash(data.path),
        ]
        wide = data.columns.wide if data.columns else None
        if wide is not None and isinstance(wide.items, str):
            own.append(content_hash(wide.items))
        folder = data_folder(config, source)
        add(f"data.{source}", "data", folder, own, ("world",) if builtin else ())
    base = config.base
    computed = base.model_dump(exclude={"gradient_checkpointing"})  # gives the same numbers
    sources = [f"data.{source}" for source in config.data]
    if config.near_duplicates is not None and sources:
        add("splits", "splits", run / "splits", config.near_duplicates, sources)
    clusters = clusters_of(config)
    if base_is_ours(config):
        add("base", "base", run / "base", [computed, config.seed], sources)
    else:
        own = [computed, _folder_hash(base.model)]
        add("base", "base", Path(base.model), own, ())
    for name, step in config.steps.items():
        inputs = ["base"]
        inputs += [other for _, other, _ in step.steps_used() if other != "base"]
        inputs += [f"data.{source}" for _, source, _ in step.data_used()]
        if step.kind == "export":  # its model card quotes what was measured before it
            inputs += [o for o in made if o in config.steps and made[o].kind == "evaluate"]
        fractions = {s: config.data[s].test_fraction for _, s, _ in step.data_used()}
        lora = config.lora.model_dump() if config.lora else None
        # What the clusters are, not what they were made of: a source that adds none to those
        # of the others leaves their steps as they are.
        harmless = {"train": HARMLESS, "require": True}
        settings = step.model_dump(by_alias=True, exclude=harmless, context=IDENTITY)
        own = [settings, lora, config.seed, fractions, clusters]
        files = {option: _state_hash(path) for option, path in step.files_used()}
        own += files.values()
        if step.kind == "export":  # its model card names them
            own.append({s: data.license for s, data in config.data.items() if data.license})
        add(name, step.kind, run / name, own, list(dict.fromkeys(inputs)), files)
    return list(made.values())


def data_folder(config: Config, source: str) -> Path:
    return Path(config.output_dir) / "data" / source


def base_is_ours(config: Config) -> bool:
    return config.base.model == "builtin:tiny"


def clusters_of(config: Config) -> dict[str, str]:
    """What the splits keep together; nothing where that is not wanted, whatever is there."""
    if config.near_duplicates is None:
        return {}
    return read_json(Path(config.output_dir) / "splits" / CLUSTERS_FILE) or {}


def files_of(path: str) -> dict[str, Path]:
    """The files of a file, a folder or a glob, by path; empty if there is none."""
    place = Path(path)
    if place.is_file():
        return {path: place}
    if place.is_dir():
        return {str(file): file for file in sorted(place.rglob("*")) if file.is_file()}
    if any(character in path for character in "*?["):
        import glob

        return {name: Path(name) for name in sorted(glob.glob(path)) if Path(name).is_file()}
    return {}


def content_hash(path: str) -> str:
    """Of the files at `path`, by their names without folders: the same wherever they lie."""
    files = tuple(files_of(path).values())
    return _hash_as_they_are(files, tuple(_state_of(file) for file in files))


@lru_cache(maxsize=256)
def _hash_as_they_are(files: tuple[Path, ...], states: tuple[tuple[int, int], ...]) -> str:
    del states  # files that were not touched are not read again
    return hash_files({f"{i} {file.name}": file for i, file in enumerate(files)})


def _state_of(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def _folder_hash(model: str) -> str:
    """Content of a local model by names, sizes and times of change: weights are too big to read."""
    place = Path(model)
    if not place.is_dir():
        return model
    files = sorted(place.iterdir())
    return fingerprint([(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files])


def _state_hash(path: str) -> str:
    """Of a function's file its content; of a reward model's folder what `_folder_hash` takes."""
    if Path(path).is_file():
        return content_hash(path)
    files = files_of(path)
    return fingerprint([(name, *_state_of(file)) for name, file in files.items()])


def _source_hash(file: str) -> str:
    import preference_data

    return hash_files({file: Path(str(preference_data.__file__)).parent / file})
