"""The front matter of a model card: what the hub reads of it, as YAML."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from align.artifacts import Artifact
from align.summary import RunRecord, WinRate, number

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

HUB_LICENSES = frozenset((
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m",
    "bigscience-bloom-rail-1.0", "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0",
    "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0",
    "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0",
    "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0",
    "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    "cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0",
    "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2", "agpl-3.0", "gfdl", "gpl",
    "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "isc", "h-research", "lppl-1.3c",
    "ms-pl", "apple-ascl", "mpl-2.0", "odc-by", "odbl", "openrail++", "osl-3.0", "postgresql",
    "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl", "lgpl-lr", "deepfloyd-if-license",
    "fair-noncommercial-research-license", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3",
    "llama4", "gemma", "unknown", "other",
))  # fmt: skip
"""Identifiers that the hub takes as a licence (huggingface.co/docs/hub/repositories-licenses)."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation step says about a policy."""

    name: str
    settings: Mapping[str, Any]
    prompts: Any
    rates: list[WinRate]
    """With the policy on either side."""
    facts: dict[str, float]


def front_matter(
    made: Artifact,
    run: RunRecord,
    base: str | None,
    full: bool,
    license: str | None,
    found: Sequence[Evaluation],
) -> str:
    """What the hub reads, in YAML; `base` is an id on the hub, or None."""
    from huggingface_hub import ModelCardData

    scorer = made.kind == "reward"
    name = f"{run.name}-{made.name}"
    results = list(_reward_results(made, run) if scorer else _policy_results(made, found))
    tags = [made.kind, "reward-model" if scorer else "rlhf", *([] if full else ["lora"])]
    identifier, license_name = hub_license(license)
    return ModelCardData(
        base_model=base,
        license=identifier,
        license_name=license_name,
        library_name="transformers" if full else "peft",
        pipeline_tag="text-classification" if scorer else "text-generation",
        tags=tags,
        eval_results=results or None,
        model_name=name if results else None,
    ).to_yaml()


def hub_license(license: str | None) -> tuple[str | None, str | None]:
    """(identifier, name) of a licence as the hub takes it: its own identifier, or `other` with a
    name of its own."""
    if license is None:
        return None, None
    if license.lower() in HUB_LICENSES:
        return license.lower(), None
    return "other", re.sub(r"[^a-z0-9.]+", "-", license.lower()).strip("-") or None


def _policy_results(made: Artifact, found: Sequence[Evaluation]) -> Iterator[EvalResult]:
    """The win rates of the policy itself."""
    for evaluation in found:
        for rate in evaluation.rates:
            if rate.policy == made.name:
                name = f"Win rate against {rate.baseline}, judged by {rate.judge}"
                source = str(evaluation.settings.get("data"))
                yield _result("text-generation", source, "win_rate", name, rate.rate, rate)


def _reward_results(made: Artifact, run: RunRecord) -> Iterator[EvalResult]:
    """What the reward step measured on pairs that it was not trained on."""
    own = next((step.settings for step in run.steps if step.name == made.name), {})
    source = str(own.get("data"))
    for metric in ("accuracy", "ece", "brier"):
        value = made.metrics.get(f"reward/{metric}")
        if value is not None:
            ends = (made.metrics.get(f"reward/{metric}_{end}") for end in ("low", "high"))
            name = f"{metric} on held-out pairs"
            yield _result("text-classification", source, metric, name, value, Ends(*ends))


@dataclass(frozen=True)
class Ends:
    """Of a 95 % interval, if there is one."""

    low: float | None
    high: float | None


def _result(
    task: str, source: str, metric: str, name: str, value: float, ends: Ends | WinRate
) -> EvalResult:
    from huggingface_hub import EvalResult

    if ends.low is not None and ends.high is not None:
        name += f" (95 % interval {number(ends.low)} to {number(ends.high)})"
    return EvalResult(
        task_type=task,
        dataset_type=source,
        dataset_name=f"{source}, held out",
        metric_type=metric,
        metric_name=name,
        metric_value=round(value, 6),
    )
