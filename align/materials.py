"""What a run makes before its steps: the world, imported data, the splits, the built-in base."""

from __future__ import annotations

from pathlib import Path

from align.artifacts import Artifact, Rows, versions, write_json
from align.config import BUILTIN_DATA, Config
from align.progress import Bar, progress
from align.tasks import CLUSTERS_FILE, Task, data_folder


def make(task: Task, config: Config) -> Artifact:
    """The world, a data source, or the built-in base; rank 0 alone comes here."""
    with progress(task.name, unit="rows") as bar:
        return _make(task, config, bar)


def _make(task: Task, config: Config, bar: Bar) -> Artifact:
    rows, metrics = None, {}
    if task.kind == "world":
        from preference_data.synthetic import write_world

        world = config.world
        write_world(
            task.folder, config.seed, documents_=world.documents,
            demonstrations_=world.demonstrations, items=world.items, prompts_=world.prompts,
        )  # fmt: skip
    elif task.kind == "data":
        rows = _import(task, config, bar)
    elif task.kind == "splits":
        metrics = _find_clusters(task, config, bar)
    else:
        from align.base import build_tiny
        from preference_data import views

        texts = [text for source in config.data for text in views.text(data_folder(config, source))]
        metrics = {"parameters": float(build_tiny(task.folder, config.base, texts, config.seed))}
    return Artifact(
        name=task.name, kind=task.kind, path=task.folder, fingerprint=task.fingerprint,
        inputs=task.inputs, rows=rows, metrics=metrics, seed=config.seed, versions=versions(),
    )  # fmt: skip


def _import(task: Task, config: Config, bar: Bar) -> Rows:
    from preference_data import views
    from preference_data.sources import import_data

    source = task.name.removeprefix("data.")
    data = config.data[source]
    path = data.path
    if path in BUILTIN_DATA:
        name = path.removeprefix("builtin:")
        suffix = "csv" if name == "labels" else "jsonl"
        path = str(Path(config.output_dir) / "world" / f"{name}.{suffix}")
    report = import_data(
        config.run_as(source), path, task.folder, format=data.format,
        columns=data.columns, limit=data.limit, max_quarantined=data.max_quarantined,
        encoding=data.encoding, delimiter=data.delimiter, personal_data=data.personal_data,
        advance=bar.advance,
    )  # fmt: skip
    if data.aggregate is not None:
        views.write_aggregated(task.folder, data.aggregate)
    return Rows(report.rows_in, report.rows_out, report.rows_quarantined)


def _find_clusters(task: Task, config: Config, bar: Bar) -> dict[str, float]:
    from preference_data import views
    from preference_data.near_duplicates import near_duplicates
    from preference_data.splits import opening

    assert config.near_duplicates is not None
    openings = {
        found.id: found.text
        for source in config.data
        if config.run_as(source) != "text"
        for found in map(opening, views.prompts(data_folder(config, source)))
    }
    bar.total = len(openings)
    clusters = near_duplicates(openings, config.near_duplicates, bar.advance)
    write_json(task.folder / CLUSTERS_FILE, dict(clusters.representatives))
    return {"prompts": float(len(openings)), "clusters": float(len(clusters.groups))}
