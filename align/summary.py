"""A run folder read back, and the few numbers of it that a person reads first.

Shared by the console, the command line and the report. Only the standard library is needed, and
whatever part of a run there is can be read.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeGuard

from preference_data.counts import counted

Row = dict[str, Any]

WIN_RATE = re.compile(r"evaluate/(?P<judge>.+)/win_rate/(?P<policy>.+?)_vs_(?P<baseline>.+)")

HEADLINES: dict[str, tuple[str, ...]] = {
    "pretrain": ("train/loss",),
    "sft": ("train/loss",),
    "reward": ("reward/accuracy", "reward/gold_accuracy"),
    "dpo": ("dpo/accuracy", "dpo/margin"),
    "ppo": ("objective/kl", "objective/score"),
}
"""Which metrics stand for a step of each kind; evaluate has its win rates."""

GROUND = ("base", "splits", "world")
"""Folders of a run that hold an artifact and are no step; no step may be called so."""


@dataclass(frozen=True)
class Measured:
    """A metric, with the ends of its 95 % interval where it has one."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        return None if self.low is None or self.high is None else (self.low, self.high)


def measured(metrics: Mapping[str, Any]) -> Iterator[Measured]:
    """Every metric that is a number; `X_low` and `X_high` are the ends of X's interval, if there is
    an X, and no metrics of their own."""
    numbers = {name: value for name, value in metrics.items() if is_number(value)}
    for name, value in numbers.items():
        stem = name.removesuffix("_low").removesuffix("_high")
        if stem == name or stem not in metrics:
            yield Measured(name, value, numbers.get(f"{name}_low"), numbers.get(f"{name}_high"))


@dataclass(frozen=True)
class WinRate:
    """How often a judge prefers a policy's answer to the baseline's, with its 95 % interval."""

    judge: str
    policy: str
    baseline: str
    rate: float
    low: float | None
    high: float | None

    @property
    def verdict(self) -> str:
        """What the interval allows to say: `better`, `worse` or `no clear difference`."""
        if self.low is not None and self.low > 0.5:
            return "better"
        if self.high is not None and self.high < 0.5:
            return "worse"
        return "no clear difference"

    def __str__(self) -> str:
        text = f"{self.judge} {self.policy}_vs_{self.baseline} {self.rate:.2f}"
        if self.low is None or self.high is None:
            return text
        return f"{text} [{self.low:.2f}, {self.high:.2f}]"


def win_rates(metrics: Mapping[str, float]) -> list[WinRate]:
    """Every win rate among `metrics`; the judge `gold` first, otherwise in the order given."""
    rates = []
    for one in measured(metrics):
        if match := WIN_RATE.fullmatch(one.name):
            rates.append(WinRate(**match.groupdict(), rate=one.value, low=one.low, high=one.high))
    return sorted(rates, key=lambda rate: rate.judge != "gold")


def headline_metrics(kind: str, metrics: Mapping[str, float]) -> str:
    """A step's result: `accuracy 0.86`, `kl 7.3, score 2.1`, or win rates; may be empty."""
    if kind == "evaluate":
        return "; ".join(map(str, win_rates(metrics)))
    names = [name for name in HEADLINES.get(kind, ()) if name in metrics]
    return ", ".join(f"{_label(name)} {short(metrics[name])}" for name in names)


def short(value: float | None) -> str:
    """A number with two decimals below 1, one below 100, none above; `–` when there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    if 0 < size < 0.005:
        return f"{value:.1e}"
    return f"{value:.2f}" if size < 1 else f"{value:.1f}" if size < 100 else f"{value:,.0f}"


def number(value: Any) -> str:
    """A number with three significant digits, whole ones and thousands in full; `–` for none."""
    if not is_number(value):
        return "–"
    if value == round(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: `4.2 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def size_in_words(size: float) -> str:
    """Bytes as `1.5 GiB` or `12.0 MiB`; nothing for less than 0.05 MiB."""
    if size < 2**20 / 20:
        return ""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def memory_held(metrics: Mapping[str, float]) -> float:
    """Bytes on a device: at the peak, where that was measured, or of all that was; 0 for none."""
    sizes = {name: size for name, size in metrics.items() if name.startswith("memory/")}
    return sizes.get("memory/peak", sum(sizes.values()))


def _label(name: str) -> str:
    return name.rpartition("/")[2].replace("_", " ")


# --- reading the run folder ----------------------------------------------------------------------


@dataclass(frozen=True)
class StepRecord:
    """What the folder tells about a step: done, or how far it came."""

    name: str
    kind: str
    state: str
    """`ran`, `cached` (an earlier run's result), `failed`, `unfinished` or `not run`."""
    seconds: float | None
    rows: Row
    """`in`, `out` and `quarantined`; empty when unknown."""
    metrics: dict[str, float]
    history: list[Row]
    samples: list[Row]
    findings: list[Row]
    """What the doctor of a ppo step found: `name`, `severity`, `step`, `until` and `text`."""
    card: Row
    """The report card of a reward step (reward_models/report_card.py)."""
    settings: Row
    artifact: Row

    @property
    def headline(self) -> str:
        return headline_metrics(self.kind, self.metrics)

    @property
    def done(self) -> bool:
        return bool(self.artifact)


@dataclass(frozen=True)
class RunRecord:
    """Everything that the page shows."""

    name: str
    command: str
    config: Row
    seconds: float | None
    started: str
    steps: list[StepRecord]
    ground: dict[str, Row]
    """The artifacts of what the steps stand on: `base`, and `data.NAME` of each source."""
    data: dict[str, Row]
    """The import report of each source."""
    versions: dict[str, str]
    failure: Row
    """`step` and `message` of what ended the run; empty unless it failed."""
    notes: list[str]
    """Files that could not be read, in words."""

    @property
    def missing(self) -> list[str]:
        """Names of the steps without a result."""
        return [step.name for step in self.steps if not step.done]


def read_run(run_dir: Path) -> RunRecord:
    """Reads a run folder, whatever part of it there is."""
    notes: list[str] = []
    about = _read_object(run_dir / "run.json", run_dir, notes)
    summary = _read_object(run_dir / "summary.json", run_dir, notes)
    config = mapping_or_empty(about.get("config"))
    failure = mapping_or_empty(about.get("failure"))
    # In the configuration's order; a step that only its folder tells of comes last.
    found = [path.parent.name for path in sorted(run_dir.glob("*/artifact.json"))]
    names = dict.fromkeys(
        [*mapping_or_empty(config.get("steps")), *mapping_or_empty(summary.get("steps")), *found]
    )
    steps = [
        _read_step(run_dir, name, config, summary, failure, notes)
        for name in names
        if name not in GROUND
    ]
    seconds = summary.get("seconds")
    data = {
        path.parent.name: _read_object(path, run_dir, notes)
        for path in sorted(run_dir.glob("data/*/import.json"))
    }
    versions: dict[str, str] = {}
    for step in steps:
        for library, version in mapping_or_empty(step.artifact.get("versions")).items():
            known = versions.setdefault(library, str(version))
            if str(version) not in known.split(", "):
                versions[library] = f"{known}, {version}"
    return RunRecord(
        name=str(about.get("name") or summary.get("name") or run_dir.resolve().name),
        command=str(about.get("command") or ""),
        config=config,
        seconds=seconds if is_number(seconds) else None,
        started=_started(steps, run_dir),
        steps=steps,
        ground=_read_ground(run_dir, notes),
        data=data,
        versions=versions,
        failure=failure,
        notes=notes,
    )


def _read_ground(run_dir: Path, notes: list[str]) -> dict[str, Row]:
    folders = {f"data.{path.parent.name}": path for path in run_dir.glob("data/*/artifact.json")}
    folders["base"] = run_dir / "base" / "artifact.json"
    found = {name: _read_object(folders[name], run_dir, notes) for name in sorted(folders)}
    return {name: artifact for name, artifact in found.items() if artifact}


def _read_step(
    run_dir: Path, name: str, config: Row, summary: Row, failure: Row, notes: list[str]
) -> StepRecord:
    folder = run_dir / name
    artifact = _read_object(folder / "artifact.json", run_dir, notes)
    # Of a finished step those that it was made with: the configuration may have changed since.
    configured = mapping_or_empty(config.get("steps")).get(name)
    settings = mapping_or_empty(artifact.get("settings") or configured)
    result = mapping_or_empty(mapping_or_empty(summary.get("steps")).get(name))
    history = rewind(_read_lines(folder / "metrics.jsonl", run_dir, notes))
    if artifact:
        state = "cached" if result.get("cached") else "ran"
    elif failure.get("step") == name:
        state = "failed"
    else:
        state = "unfinished" if folder.is_dir() else "not run"
    # Of a step without an artifact the summary tells what an earlier run made of it: no result.
    seconds = artifact.get("seconds")
    return StepRecord(
        name=name,
        kind=str(artifact.get("kind") or result.get("kind") or settings.get("kind") or "unknown"),
        state=state,
        seconds=seconds if is_number(seconds) else None,
        rows=mapping_or_empty(artifact.get("rows")),
        metrics=finite_numbers(artifact.get("metrics")),
        history=history,
        samples=_read_lines(folder / "samples.jsonl", run_dir, notes),
        findings=_read_findings(folder, run_dir, notes),
        card=_read_object(folder / "report_card.json", run_dir, notes),
        settings=settings,
        artifact=artifact,
    )


def rewind(lines: Iterable[Row]) -> list[Row]:
    """The log as the run that counts wrote it.

    A run that resumes from its checkpoint at step s writes the lines after s again, so a line of
    an earlier step than the one before it discards every line from that step on.
    """
    kept: list[Row] = []
    for line in lines:
        if not isinstance(line.get("step"), (int, float)):
            continue
        if kept and line["step"] < kept[-1]["step"]:
            kept = [row for row in kept if row["step"] < line["step"]]
        kept.append(line)
    return kept


def finding_in_words(step_name: str, finding: Row) -> str:
    """A finding of the doctor's as a line: `ppo, iterations 12 to 20: same replies: …`."""
    first, until = finding.get("step"), finding.get("until")
    when = f"iteration {first} on" if until is None else f"iterations {first} to {until}"
    name = str(finding.get("name", "")).replace("_", " ")
    return f"{step_name}, {when}: {name}: {finding.get('text', '')}"


def read_findings(run_dir: Path) -> list[str]:
    """The findings of all steps of a run, as lines."""
    return [
        finding_in_words(path.parent.name, finding)
        for path in sorted(run_dir.glob("*/findings.json"))
        for finding in _read_findings(path.parent, run_dir, [])
    ]


def _read_findings(folder: Path, run_dir: Path, notes: list[str]) -> list[Row]:
    found = _read_object(folder / "findings.json", run_dir, notes).get("findings")
    return [mapping_or_empty(finding) for finding in found] if isinstance(found, list) else []


def _read_object(path: Path, run_dir: Path, notes: list[str]) -> Row:
    try:
        value = _parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        value = None
    if not isinstance(value, dict):
        notes.append(f"{path.relative_to(run_dir)} is no readable JSON object.")
        return {}
    return value


def _read_lines(path: Path, run_dir: Path, notes: list[str]) -> list[Row]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return []
    rows: list[Row] = []
    bad = 0
    for line in filter(str.strip, lines):
        try:
            row = _parse(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            bad += 1
    if bad:
        notes.append(
            f"{path.relative_to(run_dir)}: {bad} of {counted(bad + len(rows), 'line')} unreadable."
        )
    return rows


def _parse(text: str) -> Any:
    """JSON; NaN and infinity, which Python's writer lets through, become None."""
    return json.loads(text, parse_constant=lambda _: None)


def mapping_or_empty(value: Any) -> Row:
    """`value` if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def finite_numbers(value: Any) -> dict[str, float]:
    """The members of a JSON object that are finite numbers."""
    return {name: n for name, n in mapping_or_empty(value).items() if is_number(n)}


def is_number(value: Any) -> TypeGuard[float]:
    """Whether `value` is a finite number (True and False are none)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _started(steps: Sequence[StepRecord], run_dir: Path) -> str:
    """When the first metric was logged, or when the run's description was written."""
    times = [row["time"] for step in steps for row in step.history if is_number(row.get("time"))]
    about = run_dir / "run.json"
    first = min(times) if times else about.stat().st_mtime if about.exists() else None
    if first is None:
        return "at an unknown time"
    moment = datetime.fromtimestamp(first, UTC)
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"
