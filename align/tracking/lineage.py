"""What a step is made from and what it makes, as a tracker's artifacts: data, then steps.

Nothing of their content is sent unless that was asked for: what stands for a data source or a step
is a file of its kind and fingerprint, the same wherever it is written, and numbers beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.artifacts import Artifact, read_json
from align.config import Config
from reward_models.folders import PARTS, member_folders

COUNTS = ("kind", "format", "sha256", "rows_in", "rows_out", "rows_quarantined", "by_reason",
          "by_label", "by_k")  # fmt: skip
"""Of an import's account: what names neither a file nor an annotator."""


@dataclass(frozen=True)
class Material:
    """A data source or a step, as something that is made and used."""

    name: str
    """Letters, digits, -, _ and . only; the pipeline's name first"""
    type: str
    """"dataset", "model" or "evaluation" """
    identity: Mapping[str, Any]
    """What it is: equal materials have equal identities"""
    metadata: Mapping[str, Any]
    """What is known of it besides"""
    files: Mapping[str, Path] = field(default_factory=dict[str, Path])
    """Its content by name below the artifact; empty unless it is to be sent"""


def materials_used(config: Config, step_name: str, data: bool, model: bool) -> list[Material]:
    """The data sources and steps that a step stands on; with their files for `data`, `model`."""
    step, run = config.steps[step_name], Path(config.output_dir)
    sources = dict.fromkeys(source for _, source, _ in step.data_used())
    steps = dict.fromkeys(name for _, name, _ in step.steps_used() if name != "base")
    return [
        *(of_data(config.name, source, run / "data" / source, data) for source in sources),
        *(of_artifact(config.name, found, model)
          for name in steps if (found := Artifact.load(run / name)) is not None),
    ]  # fmt: skip


def of_data(pipeline: str, source: str, folder: Path, send: bool) -> Material:
    """An imported data source: its content's hash and counts; its files if they are to be sent."""
    account = read_json(folder / "import.json") or {}
    artifact = Artifact.load(folder)
    counts = {name: account[name] for name in COUNTS if name in account}
    return Material(
        _name(pipeline, f"data.{source}"), "dataset",  # a step may be called as it is
        {"kind": "data", "name": source, "fingerprint": artifact and artifact.fingerprint,
         "sha256": account.get("sha256")},
        counts, dict(_below(folder)) if send else {},
    )  # fmt: skip


def of_artifact(pipeline: str, artifact: Artifact, send: bool) -> Material:
    """A finished step."""
    return of_step(
        pipeline, artifact.name, artifact.kind, artifact.path, artifact.fingerprint,
        artifact.metrics, send,
    )  # fmt: skip


def of_step(
    pipeline: str, name: str, kind: str, folder: Path, fingerprint: str,
    metrics: Mapping[str, float], send: bool,
) -> Material:  # fmt: skip
    """A step with its headline metrics; its weights if they are to be sent."""
    return Material(
        _name(pipeline, name), "evaluation" if kind == "evaluate" else "model",
        {"kind": kind, "name": name, "fingerprint": fingerprint},
        {"kind": kind, "fingerprint": fingerprint, "metrics": dict(metrics)},
        dict(_weights(folder)) if send else {},
    )  # fmt: skip


def _name(pipeline: str, name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "-", f"{pipeline}-{name}")[:128]


def _weights(folder: Path) -> Iterator[tuple[str, Path]]:
    """Adapters or models of a step's folder, those of an ensemble's members included."""
    for place in [folder, *member_folders(folder)]:
        for part in PARTS:
            for name, path in _below(place / part):
                yield str((place / part / name).relative_to(folder)), path


def _below(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(folder)), path
