"""Runs side by side: settings that differ, results of the same steps, win rates between policies.

Everything is read from the run folders. The first run is what the others are compared with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from align.config import ConfigError
from align.summary import (
    Row,
    RunRecord,
    StepRecord,
    is_number,
    mapping_or_empty,
    measured,
    read_run,
)

APART = ("name", "output_dir", "seed")
"""Options that differ between any two runs that are to be compared, wherever they stand."""
ABSENT = "–"
"""Stands for the value of an option that a run's configuration does not have."""


@dataclass(frozen=True)
class Setting:
    """An option by its dotted path, and its value in each run."""

    key: str
    values: list[Any]


@dataclass(frozen=True)
class Value:
    """A result of a run, with its 95 % interval where it has one."""

    value: float
    low: float | None = None
    high: float | None = None
    differs: bool = False
    """Outside the first run's interval, whose value is outside this one's."""


@dataclass(frozen=True)
class StepResults:
    """A step that two runs or more have a result of; None for a run that has none."""

    name: str
    kind: str
    rows: list[str]
    seconds: list[float | None]
    metrics: dict[str, list[Value | None]]


@dataclass(frozen=True)
class PairedWinRate:
    """How often a judge prefers a policy's answer to that of the first run's, prompt by prompt."""

    judge: str
    run: str
    policy: str
    against_run: str
    against: str
    rate: float
    low: float
    high: float
    prompts: int
    """That both runs have answers to"""


@dataclass(frozen=True)
class Comparison:
    """What `align compare` shows; a column of a table is a run of `runs`."""

    runs: list[str]
    settings: list[Setting]
    apart: list[Setting]
    """Names, folders and seeds"""
    made_with: list[Setting]
    """Versions of libraries, and contents of data of the same name"""
    steps: list[StepResults]
    win_rates: list[PairedWinRate]
    remarks: list[str]
    """What could not be compared, and why"""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(folders: Sequence[Path]) -> Comparison:
    """The comparison of two run folders or more.

    Raises ConfigError for what is no run folder, a run named twice, and runs without a common step.
    """
    names = _names(folders)
    runs = [read_run(folder) for folder in folders]
    settings = list(_differing([_options(run.config, runs) for run in runs]))
    steps, remarks = _steps(names, runs)
    remarks += [
        f"{name}: {note}" for name, run in zip(names, runs, strict=True) for note in run.notes
    ]
    found = list(_win_rates(names, runs, remarks))
    return Comparison(
        runs=names,
        settings=[one for one in settings if not _is_apart(one.key)],
        apart=[one for one in settings if _is_apart(one.key)],
        made_with=list(_differing([_made_with(run) for run in runs])),
        steps=steps,
        win_rates=found,
        remarks=remarks,
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """What each run is called: its folder's name, or the path where two folders share one."""
    if len(folders) < 2:
        raise ConfigError("compare needs two runs or more; name another run's folder.")
    for folder in folders:
        if not (folder / "run.json").is_file():
            raise ConfigError(f"{folder} is no run folder: it holds no run.json.")
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise ConfigError(f"{folder} is named twice; compare needs different runs.")
    shared = Counter(place.name for place in places)
    return [
        str(folder) if shared[place.name] > 1 else place.name
        for folder, place in zip(folders, places, strict=True)
    ]


# --- settings ------------------------------------------------------------------------------------


def _options(config: Row, runs: Sequence[RunRecord]) -> dict[str, Any]:
    """Every option by its dotted path; a step or a source that not all runs have is one option."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if key not in ("steps", "data"):
            found |= _flat(value, key)
            continue
        for name, section in mapping_or_empty(value).items():
            if all(name in mapping_or_empty(run.config.get(key)) for run in runs):
                found |= _flat(section, f"{key}.{name}")
            else:
                say = "kind" if key == "steps" else "path"
                found[f"{key}.{name}"] = mapping_or_empty(section).get(say)
    return found


def _flat(section: Any, prefix: str) -> dict[str, Any]:
    """Options by their dotted paths; lists are values, and so is an empty section."""
    if not isinstance(section, Mapping) or not section:
        return {prefix: section}
    found: dict[str, Any] = {}
    for key, value in section.items():
        found |= _flat(value, f"{prefix}.{key}")
    return found


def _differing(found: Sequence[Mapping[str, Any]]) -> Iterator[Setting]:
    """What all have first. An option that a run does not know is like one that is null."""
    rows: list[Setting] = []
    for key in dict.fromkeys(key for options in found for key in options):
        values = [options.get(key) for options in found]
        if any(one != other for one, other in pairwise(values)):
            rows.append(Setting(key, [options.get(key, ABSENT) for options in found]))
    yield from sorted(rows, key=lambda row: ABSENT in row.values)


def _is_apart(key: str) -> bool:
    return key in APART or key.endswith(".seed")


def _made_with(run: RunRecord) -> dict[str, Any]:
    found: dict[str, Any] = {f"versions.{name}": value for name, value in run.versions.items()}
    for name, imported in run.data.items():
        if isinstance(digest := imported.get("sha256"), str):
            found[f"data.{name} (content)"] = digest[:12]
    return found


# --- results -------------------------------------------------------------------------------------


def _steps(names: Sequence[str], runs: Sequence[RunRecord]) -> tuple[list[StepResults], list[str]]:
    """The results of every step that two runs have one of, and what was left out."""
    every = [{step.name: step for step in run.steps if step.done} for run in runs]
    found: list[StepResults] = []
    remarks: list[str] = []
    for name in dict.fromkeys(name for steps in every for name in steps):
        steps = [known.get(name) for known in every]
        kinds = {step.kind for step in steps if step is not None}
        holders = [run for run, step in zip(names, steps, strict=True) if step is not None]
        if len(kinds) > 1:
            remarks.append(f"{name} is a step of different kinds: {', '.join(sorted(kinds))}.")
        elif len(holders) == 1:
            remarks.append(f"{name} has a result in {holders[0]} only.")
        else:
            found.append(_results(name, kinds.pop(), steps))
    if not found:
        raise ConfigError(
            f"{' and '.join(names)} have no step in common that has a result; compare needs one of "
            "the same name and kind."
        )
    return found, remarks


def _results(name: str, kind: str, steps: Sequence[StepRecord | None]) -> StepResults:
    values = [{} if step is None else dict(_values(step.metrics)) for step in steps]
    metrics: dict[str, list[Value | None]] = {}
    for metric in dict.fromkeys(metric for found in values for metric in found):
        row = [found.get(metric) for found in values]
        metrics[metric] = [row[0], *(_judged(value, row[0]) for value in row[1:])]
    return StepResults(
        name=name,
        kind=kind,
        rows=[ABSENT if step is None else _rows(step.rows) for step in steps],
        seconds=[None if step is None else step.seconds for step in steps],
        metrics=metrics,
    )


def _rows(rows: Row) -> str:
    out, whole = rows.get("out"), rows.get("in")
    if not is_number(out) or not is_number(whole):
        return ABSENT
    return f"{whole:,}" if out == whole else f"{out:,} of {whole:,}"


def _values(metrics: Mapping[str, float]) -> Iterator[tuple[str, Value]]:
    """Every metric but times, and the ends of intervals, which go with what they are of."""
    for one in measured(metrics):
        if not one.name.startswith("time/"):
            yield one.name, Value(one.value, one.low, one.high)


def _judged(value: Value | None, first: Value | None) -> Value | None:
    if value is None or first is None:
        return value
    differs = _outside(value.value, first) and _outside(first.value, value)
    return Value(value.value, value.low, value.high, differs)


def _outside(number: float, of: Value) -> bool:
    """False where there is no interval to be outside of."""
    return of.low is not None and of.high is not None and not of.low <= number <= of.high


# --- win rates -----------------------------------------------------------------------------------

Scores = dict[str, dict[tuple[str, int], float]]
"""Of a judge: by policy, the score of each prompt's answer; equal prompts are counted through."""


def _win_rates(
    names: Sequence[str], runs: Sequence[RunRecord], remarks: list[str]
) -> Iterator[PairedWinRate]:
    """Every run's policies against the first run's; what cannot be compared goes to `remarks`."""
    evaluations = [[step for step in run.steps if step.kind == "evaluate" and step.samples]
                   for run in runs]  # fmt: skip
    for name, found in zip(names, evaluations, strict=True):
        if not found:
            remarks.append(f"{name} has no evaluation with samples, so no win rates with it.")
    for name, found in zip(names[1:], evaluations[1:], strict=True):
        for first, other in _partners(evaluations[0], found):
            yield from _between(names[0], first, name, other, remarks)


def _partners(
    first: Sequence[StepRecord], other: Sequence[StepRecord]
) -> list[tuple[StepRecord, StepRecord]]:
    """Evaluations of the same name, or the only ones."""
    same = [(one, two) for one in first for two in other if one.name == two.name]
    alone = len(first) == len(other) == 1
    return same or ([(first[0], other[0])] if alone else [])


def _between(
    first_run: str, first: StepRecord, run: str, other: StepRecord, remarks: list[str]
) -> Iterator[PairedWinRate]:
    where = f"between {first_run} and {run}"
    judges, strangers = _common_judges(first, other)
    remarks += [
        f"The judge {judge} is not the same in both, so no win rates by it {where}."
        for judge in strangers
    ]
    if not judges and not strangers:
        remarks.append(f"The evaluations have no judge in common, so no win rates {where}.")
    for judge in judges:
        mine, yours = _scores(other, judge), _scores(first, judge)
        for policy, against in _opponents(list(mine), list(yours)):
            both = [key for key in mine[policy] if key in yours[against]]
            if not both:
                remarks.append(
                    f"{run}'s {policy} and {first_run}'s {against} have no prompt in common that "
                    f"{judge} scored, so no win rate between them."
                )
                continue
            gains = [mine[policy][key] - yours[against][key] for key in both]
            rate, low, high = _paired(gains)
            yield PairedWinRate(judge, run, policy, first_run, against, rate, low, high, len(both))


def _opponents(mine: Sequence[str], yours: Sequence[str]) -> list[tuple[str, str]]:
    """Policies of the same name, and each that has no namesake against every other such one."""
    alone = [policy for policy in mine if policy not in yours]
    without = [policy for policy in yours if policy not in mine]
    namesakes = [(policy, policy) for policy in mine if policy in yours]
    return [*namesakes, *((policy, other) for policy in alone for other in without)]


def _paired(gains: Sequence[float]) -> tuple[float, float, float]:
    """The share of gains above 0, an even one counted half, with its 95 % interval over prompts:
    a bootstrap, or Wilson's where prompts are few or all of one mind."""
    import numpy as np

    from align.metrics.replies import win_rate

    found = win_rate(np.array(gains), np.zeros(len(gains)), seed=0)
    return found.value, found.low, found.high


def _scores(step: StepRecord, judge: str) -> Scores:
    found: Scores = {}
    times: Counter[tuple[str, str]] = Counter()
    for row in step.samples:
        policy, prompt = str(row.get("policy")), str(row.get("prompt"))
        key = (prompt, times[(policy, prompt)])
        times[(policy, prompt)] += 1
        if is_number(score := row.get(judge)):
            found.setdefault(policy, {})[key] = score
    return found


def _common_judges(first: StepRecord, other: StepRecord) -> tuple[list[str], list[str]]:
    """Judges that are the same in both evaluations, and those that only share a name."""
    one, two = _judges(first), _judges(other)
    shared = [judge for judge in one if judge in two]
    same = [judge for judge in shared if one[judge] == two[judge]]
    return same, [judge for judge in shared if judge not in same]


def _judges(step: StepRecord) -> dict[str, Any]:
    """What each judge is: its settings, with the fingerprints of the steps and files that they
    name."""
    from pydantic import TypeAdapter, ValidationError

    from align.config_rewards import PartReward, label_of

    inputs, files = (mapping_or_empty(step.artifact.get(name)) for name in ("inputs", "files"))
    found: dict[str, Any] = {}
    settings = step.settings.get("judges")
    for place, judge in enumerate(settings if isinstance(settings, list) else []):
        try:
            label = label_of(TypeAdapter(PartReward).validate_python(judge))
        except ValidationError:
            continue
        option = f"judges[{place}]"
        own = {name.removeprefix(option): print_ for name, print_ in files.items()
               if name.startswith(option)}  # fmt: skip
        found[label] = (judge, [(name, inputs.get(name)) for name in _texts(judge)], own)
    return found


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
