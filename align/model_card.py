"""The card of an exported policy, written from what its run recorded and from nothing else.

Only records that belong to the policy are told: each names the fingerprints of what it was made
from, so a step that was run again since, or an evaluation of an older policy, is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from align.artifacts import Artifact
from align.config import Base
from align.config_rewards import AnyReward, label_of, leaves
from align.summary import (
    RunRecord,
    StepRecord,
    WinRate,
    finite_numbers,
    mapping_or_empty,
    number,
    win_rates,
)


@dataclass(frozen=True)
class Lineage:
    """What the policy was made from."""

    steps: list[StepRecord]
    """In the run's order, the policy last."""
    sources: dict[str, Mapping[str, Any]]
    """The import report of each data source."""
    lost: list[str]
    """Names of what is gone, or was made again since."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation step says about the policy."""

    name: str
    settings: Mapping[str, Any]
    prompts: Any
    rates: list[WinRate]
    """With the policy on either side."""
    facts: dict[str, float]


def model_card(
    policy: Artifact, run: RunRecord, base: Base, folder: Path, license: str | None
) -> str:
    """The card in Markdown, with front matter that the hub reads; `folder` is the export."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown; `cell` keeps text of others inside its cell
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, cell=cell, basename=lambda path: Path(path).name)
    lineage = trace(policy, run)
    own = mapping_or_empty(mapping_or_empty(run.config.get("steps")).get(policy.name))
    return environment.get_template("model_card.md.jinja").render(
        run=run,
        policy=policy,
        base=base.model,
        revision=base.revision,
        built_in=mapping_or_empty(run.config.get("base")).get("model") == "builtin:tiny",
        held_out={
            name: mapping_or_empty(data).get("test_fraction")
            for name, data in mapping_or_empty(run.config.get("data")).items()
        },
        local_base=Path(base.model).is_dir(),
        brings_base=(folder / "base").is_dir(),
        merged=(folder / "merged").is_dir(),
        full=policy.adapter is None,
        lineage=lineage,
        evaluations=list(evaluations(policy, run)),
        settings=settings,
        table=intervals,
        chat_template=_chat_template(folder),
        temperature=mapping_or_empty(own.get("train")).get("temperature", 1.0),
        optimised_for=_rewards_of(own),
        license=license,
    )


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


def evaluations(policy: Artifact, run: RunRecord) -> Iterator[Evaluation]:
    """What every evaluation of exactly this policy says about it."""
    for step in run.steps:
        inputs = mapping_or_empty(step.artifact.get("inputs"))
        if step.kind != "evaluate" or inputs.get(policy.name) != policy.fingerprint:
            continue
        facts = {
            name.removeprefix("evaluate/").removesuffix(f"/{policy.name}"): value
            for name, value in step.metrics.items()
            if name.endswith(f"/{policy.name}")
        }
        rates = [
            rate for rate in win_rates(step.metrics) if policy.name in (rate.policy, rate.baseline)
        ]
        yield Evaluation(step.name, step.settings, step.rows.get("out"), rates, facts)


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
            yield prefix + name, cell(value)


def intervals(metrics: Mapping[str, float]) -> Iterator[tuple[str, float, str]]:
    """(name, value, 95 % interval or nothing) of every metric but times."""
    numbers = finite_numbers(metrics)
    for name, value in numbers.items():
        stem = name.removesuffix("_low").removesuffix("_high")
        if name.startswith("time/") or (stem != name and stem in numbers):
            continue
        low, high = numbers.get(f"{name}_low"), numbers.get(f"{name}_high")
        known = low is not None and high is not None
        yield name, value, f"{number(low)} to {number(high)}" if known else ""


def cell(value: Any) -> str:
    """Any value as text that stays within one cell of a Markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("`", "'")


def _chat_template(folder: Path) -> str:
    for part in ("adapter", "model"):
        path = folder / part / "chat_template.jinja"
        if path.is_file():
            return path.read_text(encoding="utf-8")
    return ""
