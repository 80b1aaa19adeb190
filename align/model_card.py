"""The card of an exported model, written from what its run recorded and from nothing else.

Only records that belong to the model are told: each names the fingerprints of what it was made
from, so a step that was run again since, or an evaluation of an older policy, is left out. What the
records do not say is left out, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from align.artifacts import Artifact
from align.config import Base
from align.config_rewards import AnyReward, label_of, leaves
from align.front_matter import Evaluation, front_matter
from align.hub import Repository
from align.summary import (
    RunRecord,
    StepRecord,
    WinRate,
    mapping_or_empty,
    measured,
    number,
    win_rates,
)
from reward_models.folders import PARTS as WEIGHTS
from reward_models.folders import SCORING_FILE, member_folders
from reward_models.scalar_head import Scoring


@dataclass(frozen=True)
class Lineage:
    """What the model was made from."""

    steps: list[StepRecord]
    """In the run's order, the model's own last."""
    sources: dict[str, Mapping[str, Any]]
    """The import report of each data source."""
    lost: list[str]
    """Names of what is gone, or was made again since."""


@dataclass(frozen=True)
class Loading:
    """What `from_pretrained` is given, as Python."""

    folder: str
    """For `RewardModel.from_pretrained`"""
    weights: str
    tokenizer: str
    base: str | None
    """Under an adapter; None for whole weights"""


def model_card(
    made: Artifact,
    run: RunRecord,
    base: Base,
    folder: Path,
    license: str | None,
    repository: Repository | None = None,
) -> str:
    """The card in Markdown, with front matter that the hub reads.

    `folder` is the export, and the card's code loads it from there; with `repository`, it loads
    what was pushed to that. `base` is what an adapter stands on.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown; `cell` keeps text of others inside its cell
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number, cell=cell, fence=fence, basename=lambda path: Path(path).name
    )
    lineage = trace(made, run)
    own = next((step.settings for step in run.steps if step.name == made.name), {})
    data = {name: mapping_or_empty(one) for name, one in _section(run, "data").items()}
    weights = folder / _weights_of(folder)
    is_local = Path(base.model).is_dir() or base.model.startswith("builtin:")
    pushed_whole = repository is not None and is_local and (folder / "merged").is_dir()
    found = list(evaluations(made, run))
    full = weights.name == "model" or pushed_whole
    front = front_matter(made, run, None if is_local else base.model, full, license, found)
    return environment.get_template("model_card.md.jinja").render(
        front=front,
        run=run,
        made=made,
        scorer=made.kind == "reward",
        base=base.model,
        revision=base.revision,
        built_in=_section(run, "base").get("model") == "builtin:tiny",
        data=data,
        licensed=any(one.get("license") for one in data.values()),
        local_base=is_local,
        brings_base=(folder / "base").is_dir(),
        merged=(folder / "merged").is_dir(),
        members=len(member_folders(folder)),
        full=full,
        pushed_whole=pushed_whole,
        repository=repository,
        loading=_loading(folder, weights, base, repository, pushed_whole),
        scoring=_scoring(weights),
        lineage=lineage,
        evaluations=found,
        settings=settings,
        table=intervals,
        chat_template=_chat_template(weights),
        temperature=mapping_or_empty(own.get("train")).get("temperature", 1.0),
        optimised_for=_rewards_of(own),
        command=_command(run.command),
        license=license,
    )


def _section(run: RunRecord, name: str) -> Mapping[str, Any]:
    return mapping_or_empty(run.config.get(name))


def _weights_of(folder: Path) -> str:
    """Where the model lies in an export; of an ensemble, its first member."""
    start = "members/1/" if member_folders(folder) else ""
    return next(f"{start}{part}" for part in WEIGHTS if (folder / start / part).is_dir())


def _loading(
    folder: Path, weights: Path, base: Base, repository: Repository | None, pushed_whole: bool
) -> Loading:
    def quoted(path: str) -> str:
        return json.dumps(path)

    adapter = weights.name == "adapter" and not pushed_whole
    inside = weights.relative_to(folder).as_posix()
    hub = f"{quoted(base.model)}" + (f", revision={quoted(base.revision)}" if base.revision else "")
    under = hub
    if (folder / "base").is_dir():
        under = quoted("base")
    elif Path(base.model).is_dir():
        under = quoted(f"PATH/TO/{Path(base.model).name}")
    if repository is None:
        return Loading(quoted("."), quoted(inside), quoted(inside), under if adapter else None)
    revision = f", revision={quoted(repository.revision)}" if repository.revision else ""
    place = f"{quoted(repository.name)}{revision}"
    top = place
    if inside.startswith("members/"):  # whole weights of a member lie in its folder itself
        part = "members/1" if pushed_whole else inside
        place = f"{place}, subfolder={quoted(part)}"
        top = f"snapshot_download({top})"
    return Loading(top, place, place, under if adapter else None)


def _scoring(weights: Path) -> Scoring | None:
    """How a reward model's scores are read; None for a policy."""
    return Scoring.load(weights) if (weights / SCORING_FILE).is_file() else None


def _command(command: str) -> str:
    """Without the folders of the machine that it ran on."""
    return " ".join(shown(word) for word in command.split())


def shown(text: str) -> str:
    """A recorded text with each absolute path in it cut to its last part."""
    return re.sub(r"(?<![\w:/.~-])(?:file://)?/[^\s:'\",]*/(?=[^\s/])", "", text)


def _rewards_of(step: Mapping[str, Any]) -> list[str]:
    """What a recorded step was optimised for, as judges are called; empty for steps without."""
    if step.get("reward") is None:
        return []
    reward: AnyReward = TypeAdapter(AnyReward).validate_python(step["reward"])
    return [label_of(leaf) for _, leaf in leaves(reward, "reward")]


def trace(policy: Artifact, run: RunRecord) -> Lineage:
    """Follows the fingerprints from the policy to the data."""
    run_dir = policy.path.parent
    found, lost, waiting = {policy.name}, set[str](), [policy]
    while waiting:
        for name, made_as in waiting.pop().inputs.items():
            kind, _, source = name.rpartition(".")
            other = Artifact.load(run_dir / kind / source)
            if name in found or name in lost or (name == "base" and other is None):
                continue  # a base from elsewhere leaves no artifact
            if other is None or other.fingerprint != made_as:
                lost.add(name)
                continue
            found.add(name)
            waiting.append(other)
    return Lineage(
        [step for step in run.steps if step.name in found and step.kind != "base"],
        {name: report for name, report in run.data.items() if f"data.{name}" in found},
        sorted(lost),
    )


def evaluations(made: Artifact, run: RunRecord) -> Iterator[Evaluation]:
    """What every evaluation of exactly this policy, or with exactly this reward model, says of
    it; nothing where it says nothing."""
    for step in run.steps:
        inputs = mapping_or_empty(step.artifact.get("inputs"))
        if step.kind != "evaluate" or inputs.get(made.name) != made.fingerprint:
            continue
        if made.kind == "reward":
            facts, rates = _of_judge(made.name, step.metrics), []
        else:
            facts, rates = _of_policy(made.name, step.metrics)
        if facts or rates:
            yield Evaluation(step.name, step.settings, step.rows.get("out"), rates, facts)


def _of_policy(name: str, metrics: Mapping[str, float]) -> tuple[dict[str, float], list[WinRate]]:
    facts = {
        metric.removeprefix("evaluate/").removesuffix(f"/{name}"): value
        for metric, value in metrics.items()
        if metric.endswith(f"/{name}")
    }
    return facts, [one for one in win_rates(metrics) if name in (one.policy, one.baseline)]


def _of_judge(name: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Its accuracies; the win rates that it gives are about policies."""
    start = f"evaluate/{name}/"
    return {
        metric.removeprefix(start): value
        for metric, value in metrics.items()
        if metric.startswith(start) and not metric.startswith(f"{start}win_rate/")
    }


def settings(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, value) of every option of a step that has one and an effect."""
    without_effect = {"kind"}
    if section.get("max_steps") is not None:
        without_effect.add("num_train_epochs")
    if "target" in section and section["target"] is None:
        without_effect.add("horizon")
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from settings(value, f"{prefix}{name}.")
        elif value is not None and name not in without_effect:
            yield prefix + name, cell(shown(str(value)))


def intervals(metrics: Mapping[str, float]) -> Iterator[tuple[str, float, str]]:
    """(name, value, 95 % interval or nothing) of every metric but times."""
    for one in measured(metrics):
        if not one.name.startswith("time/"):
            ends = "" if one.interval is None else "{} to {}".format(*map(number, one.interval))
            yield one.name, one.value, ends


def cell(value: Any) -> str:
    """Any value as text that stays within one cell of a Markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("`", "'")


def fence(text: str) -> str:
    """A fence for a block of Markdown that nothing in the text can end."""
    return "~" * max(4, *(1 + len(run) for run in re.findall("~*", text)))


def _chat_template(weights: Path) -> str:
    path = weights / "chat_template.jinja"
    return path.read_text(encoding="utf-8") if path.is_file() else ""
