"""A saved workspace in Weights & Biases: the panels that matter for the steps of a run.

Panels are drawn of what the run has logged, so that none is empty: first those that tell how each
kind of step went, then tables of samples, then everything else by the part of its name before the
slash. wandb-workspaces makes the specification and saves it; it is imported here alone.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from align.artifacts import read_json
from align.config import ConfigError
from align.tracking.files import METRICS, read_lines, read_tables
from align.tracking.weights_and_biases import AXIS, has_wandb_key

TELLING: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "evaluate": ("Evaluation", {
        "Win rate": ("evaluate/*/win_rate/*",),
        "Score": ("evaluate/*/score/*",),
        "KL to the baseline": ("evaluate/kl/*",),
        "Length": ("evaluate/length/*",),
    }),
    "ppo": ("Policy optimisation", {
        "Score and judge": ("objective/score", "judge/score"),
        "Reward": ("objective/reward",),
        "KL to the reference": ("objective/kl",),
        "Length": ("response/length",),
        "Entropy": ("objective/entropy",),
        "Responses that end": ("response/eos_rate",),
        "Variety": ("response/distinct_2", "response/top_reply_share"),
        "Value: explained variance": ("value/explained_variance",),
        "Clipped": ("policy/clip_fraction", "value/clip_fraction"),
        "Parts of the score": ("objective/score/*",),
    }),
    "reward": ("Reward model", {
        "Accuracy": ("reward/accuracy",),
        "Margin": ("reward/margin",),
        "Ties": ("reward/tie_share", "reward/tie_predicted"),
    }),
    "dpo": ("Direct preference optimisation", {
        "Accuracy": ("dpo/accuracy",),
        "Margin": ("dpo/margin",),
        "Chosen and rejected": ("dpo/chosen_reward", "dpo/rejected_reward"),
        "Log-ratio by token": ("dpo/chosen_logratio", "dpo/rejected_logratio"),
        "Displacement": ("dpo/displacement",),
    }),
}  # fmt: skip
"""For each kind of step its section's name, and patterns of metrics by the panel's title."""
TRAINING = ("Training", {
    "Loss": ("train/loss",),
    "Gradient norm": ("train/grad_norm",),
    "Learning rate": ("train/lr", "train/value_lr"),
    "Token accuracy": ("train/token_accuracy",),
    "Tokens per second": ("train/tokens_per_second",),
})  # fmt: skip
BOUNDS = ("_low", "_high")
"""Ends of the names of an interval's bounds, which stand in no telling panel."""


@dataclass(frozen=True)
class Panel:
    """Metrics drawn together, or a table."""

    title: str
    names: tuple[str, ...]
    kind: Literal["line", "bar", "table"] = "line"


@dataclass(frozen=True)
class Layout:
    """Panels in the sections of a workspace."""

    name: str
    panels: Sequence[Panel]
    is_open: bool = True


@dataclass(frozen=True)
class Logged:
    """What the steps of a run have logged."""

    name: str
    """The pipeline's, by which its runs are grouped"""
    metrics: Mapping[str, Sequence[str]]
    """Names by kind of step"""
    tables: Sequence[str]
    wandb: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The configuration's own section, empty if there is none"""


def read_logged(run: Path) -> Logged:
    """Raises ConfigError if `run` is no run folder, or nothing has been logged in it."""
    record = read_json(run / "run.json")
    if record is None:
        raise ConfigError(f"{run} is no run folder: it holds no run.json.")
    metrics: dict[str, dict[str, None]] = {}
    tables: dict[str, None] = {}
    for step, settings in record["config"]["steps"].items():
        of_kind = metrics.setdefault(settings["kind"], {})
        for line in read_lines(run / step / f"{METRICS}.jsonl"):
            of_kind |= dict.fromkeys(name for name in line if name not in (AXIS, "time"))
        tables |= dict.fromkeys(name for name, rows in read_tables(run / step).items() if rows)
    if not any(metrics.values()):
        raise ConfigError(f"{run}: no step has logged anything yet; run it first.")
    return Logged(
        record["name"], {kind: tuple(names) for kind, names in metrics.items()}, tuple(tables),
        record["config"].get("tracking", {}).get("wandb") or {},
    )  # fmt: skip


def layout_of(logged: Logged) -> list[Layout]:
    """Every logged metric in one panel, every table in one."""
    every = list(dict.fromkeys(name for names in logged.metrics.values() for name in names))
    once = set(logged.metrics.get("evaluate", ()))
    left = dict.fromkeys(every)
    found: list[Layout] = []
    told = [TELLING[kind] for kind in TELLING if logged.metrics.get(kind)]
    for title, wanted in [*told, TRAINING]:
        panels = [_panel(name, patterns, left, once) for name, patterns in wanted.items()]
        found.append(Layout(title, [panel for panel in panels if panel.names]))
    found.append(Layout("Tables", [Panel(name, (name,), "table") for name in logged.tables]))
    rest: dict[str, list[Panel]] = {}
    for name in left:
        kind = "bar" if name in once else "line"
        rest.setdefault(name.partition("/")[0], []).append(Panel(name, (name,), kind))
    found += [Layout(prefix, panels, is_open=False) for prefix, panels in rest.items()]
    return [layout for layout in found if layout.panels]


def _panel(title: str, patterns: Iterable[str], left: dict[str, None], once: set[str]) -> Panel:
    """The metrics of these patterns, which are then no longer among those that are left."""
    names = tuple(
        name for pattern in patterns for name in left
        if fnmatchcase(name, pattern) and not name.endswith(BOUNDS)
    )  # fmt: skip
    for name in names:
        del left[name]
    return Panel(title, names, "bar" if names and once.issuperset(names) else "line")


def workspace_of(logged: Logged, entity: str, project: str) -> Any:
    """wandb-workspaces' Workspace, not saved. Raises ConfigError without the package."""
    try:
        with warnings.catch_warnings():
            # It declares its own models in the style of pydantic 1.
            warnings.simplefilter("ignore", DeprecationWarning)
            import wandb_workspaces.reports.v2 as wr
            import wandb_workspaces.workspaces as ws
    except ModuleNotFoundError as error:
        raise ConfigError(
            "align dashboard needs the package wandb-workspaces; install it with `pip install "
            '-c constraints.txt -e ".[dashboard]"`.'
        ) from error

    def drawn(panel: Panel) -> Any:
        if panel.kind == "table":
            return wr.WeavePanelSummaryTable(table_name=panel.names[0])
        if panel.kind == "bar":
            return wr.BarPlot(title=panel.title, metrics=list(panel.names))
        return wr.LinePlot(title=panel.title, x=AXIS, y=list(panel.names))

    sections = [
        ws.Section(name=part.name, panels=[drawn(p) for p in part.panels], is_open=part.is_open)
        for part in layout_of(logged)
    ]
    return ws.Workspace(
        entity=entity, project=project, name=logged.name, sections=sections,
        settings=ws.WorkspaceSettings(x_axis=AXIS, group_by_prefix="first"),
        runset_settings=ws.RunsetSettings(filters=ws.And(ws.Metric("Group") == logged.name)),
        auto_generate_panels=False,
    )  # fmt: skip


def specification(workspace: Any) -> dict[str, Any]:
    """What would be saved, as plain JSON."""
    spec = workspace._to_model().spec
    return json.loads(spec.model_dump_json(by_alias=True, exclude_none=True))


def place_of(logged: Logged, entity: str | None, project: str | None) -> tuple[str | None, str]:
    """(entity, project) that the workspace belongs to: as asked for, or as the run's configuration
    has it; the entity may be the key's own. Raises ConfigError without a project."""
    project = project or logged.wandb.get("project")
    if project is None:
        raise ConfigError("The run has no tracking.wandb.project; name one with --project.")
    return entity or logged.wandb.get("entity"), project


def save_dashboard(run: Path, entity: str | None, project: str | None) -> str:
    """Saves the workspace of a run and returns its address. Raises ConfigError."""
    logged = read_logged(run)
    entity, project = place_of(logged, entity, project)
    workspace_of(logged, "", project)  # what it misses is said before a key is
    if not has_wandb_key():
        raise ConfigError(
            "saving a dashboard needs a W&B key; set WANDB_API_KEY or run `wandb login`, or use "
            "--print."
        )
    import wandb

    try:
        entity = entity or wandb.Api().default_entity
        if entity is None:
            raise ConfigError("W&B does not say whose key this is; say --entity.")
        return workspace_of(logged, entity, project).save().url
    except (wandb.Error, ValueError, OSError) as error:
        why = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(f"the dashboard could not be saved: {why}.") from error


def print_dashboard(run: Path, entity: str | None, project: str | None) -> str:
    """The specification of a run's workspace as JSON text; nothing is sent. Raises ConfigError."""
    logged = read_logged(run)
    entity, project = place_of(logged, entity, project)
    return json.dumps(specification(workspace_of(logged, entity or "", project)), indent=2)
