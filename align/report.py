"""The run as one HTML page, made from nothing but the run folder.

The page loads nothing: styles and figures are inside it, and its content-security policy forbids
the rest, scripts included. Everything that comes from data is escaped. A run that failed or is not
finished, or a folder with files missing, still gives a page, which says what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align.artifacts import write_json, write_text
from align.displacement import CHOSEN, REJECTED
from align.displacement import remark as displacement_remark
from align.report_data import data_quality
from align.report_figures import charts, forest_chart
from align.report_graph import drawings, made_from
from align.report_ppo import over_optimisation
from align.report_reward import card_view, share
from align.report_samples import as_text, first_and_last, side_by_side
from align.summary import (
    Row,
    RunRecord,
    StepRecord,
    WinRate,
    duration,
    finding_in_words,
    finite_numbers,
    is_number,
    measured,
    memory_held,
    number,
    read_run,
    short,
    size_in_words,
    win_rates,
)
from preference_data.counts import counted

MEMORY = {"parameters": "Weights", "gradients": "Gradients", "optimizer": "Optimiser states"}
"""What of a step's memory is measured on every device, and what the page calls it."""


def write_report(run_dir: Path) -> Path:
    """Writes `report.html` into the run folder and returns its path. Safe to call at any time."""
    import jinja2

    run = read_run(run_dir)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number,
        short=short,
        duration=duration,
        text=as_text,
        share=share,
        counted=lambda n, noun: counted(n, noun, number(n)),
    )
    page = environment.get_template("report.html.jinja").render(
        run=run,
        drawings=drawings(run),
        headline=[rate for step in run.steps for rate in win_rates(step.metrics)],
        quality={source: data_quality(run_dir, source) for source in run.data},
        warnings=warnings(run),
        calm=calm,
        made_from=lambda step: made_from(step.artifact, step.settings, run),
        forest_chart=forest_chart,
        charts=charts,
        over_optimisation=over_optimisation,
        card_view=card_view,
        memory_table=memory_table,
        metric_table=metric_table,
        policy_table=policy_table,
        judge_table=judge_table,
        side_by_side=side_by_side,
        first_and_last=first_and_last,
        counts=counts,
        config_yaml=_yaml(run.config),
    )
    # A lone surrogate in a completion is no UTF-8; it becomes a question mark.
    write_text(run_dir / "report.html", page.encode("utf-8", "replace").decode("utf-8"))
    return run_dir / "report.html"


def report_failure(run_dir: Path, step: str, error: BaseException) -> None:
    """Notes in `run.json` what ended the run, and writes the report of what there is.

    The next run writes `run.json` anew, and the note is gone.
    """
    path = run_dir / "run.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    message = str(error).removeprefix(f"step {step} failed: ")
    write_json(path, {**record, "failure": {"step": step, "message": message}})
    write_report(run_dir)


# --- what the page shows of it -------------------------------------------------------------------


def warnings(run: RunRecord) -> list[str]:
    """What a reader should not overlook: judges at odds, displacement, the doctor's findings."""
    rates = [rate for step in run.steps for rate in win_rates(step.metrics)]
    found = disagreements(rates)
    for step in run.steps:
        if (remark := displacement_remark(step.name, step.metrics)) is not None:
            found.append(remark)
        found += [finding_in_words(step.name, finding) for finding in step.findings]
    return found


def calm(step: StepRecord) -> str:
    """That a dpo step's answers were not displaced, with the numbers; nothing if they were."""
    if not {CHOSEN, REJECTED} <= step.metrics.keys() or displacement_remark("", step.metrics):
        return ""
    return (
        f"No likelihood displacement: log π/π_ref is {step.metrics[CHOSEN]:+.2f} nats per token on "
        f"the chosen answers and {step.metrics[REJECTED]:+.2f} on the rejected ones."
    )


def memory_table(run: RunRecord) -> tuple[list[str], dict[str, list[str]]]:
    """Columns, and by step what it held on the first rank's device (memory/*), in words: its parts,
    and all of them together, or on a GPU the peak. Steps that measured nothing are left out."""
    parts = [part for part in MEMORY if any(f"memory/{part}" in s.metrics for s in run.steps)]
    peak = any("memory/peak" in step.metrics for step in run.steps)
    table = {
        step.name: [
            *(size_in_words(step.metrics.get(f"memory/{part}", 0)) for part in parts),
            size_in_words(
                step.metrics.get("memory/peak", 0) if peak else memory_held(step.metrics)
            ),
        ]
        for step in run.steps
    }
    table = {name: sizes for name, sizes in table.items() if any(sizes)}
    return [*(MEMORY[part] for part in parts), "Peak" if peak else "Together"], table


def metric_table(step: StepRecord) -> list[tuple[str, list[float]]]:
    """Each logged metric with its [first, last, lowest, highest] value, in order of appearance."""
    values: dict[str, list[float]] = {}
    for row in step.history:
        for name, value in row.items():
            if name not in {"step", "time"} and is_number(value):
                values.setdefault(name, []).append(value)
    return [(name, [v[0], v[-1], min(v), max(v)]) for name, v in values.items()]


def policy_table(step: StepRecord) -> tuple[list[str], dict[str, Row]]:
    """Measures and, by policy, their values: `evaluate/kl/ppo` is measure `kl` of policy `ppo`."""
    table: dict[str, Row] = {policy: {} for policy in _policies(step)}
    for name, value in step.metrics.items():
        parts = name.split("/")
        if parts[0] == "evaluate" and parts[-1] in table and "win_rate" not in parts:
            measure = " ".join(parts[1:-1]).replace("_", " ")
            table[parts[-1]][measure] = value
    known = {policy: row for policy, row in table.items() if row}
    return list(dict.fromkeys(m for row in known.values() for m in row)), known


def _policies(step: StepRecord) -> list[str]:
    """The baseline first."""
    rates = win_rates(step.metrics)
    named = [step.settings.get("baseline"), *(rate.baseline for rate in rates)]
    policies = step.settings.get("policies")
    named += policies if isinstance(policies, list) else []
    named += [rate.policy for rate in rates]
    return list(dict.fromkeys(name for name in named if isinstance(name, str)))


def judge_table(step: StepRecord) -> list[tuple[str, str, str]]:
    """(judge, measure, value with its interval) of an evaluation's own look at its judges."""
    found = []
    policies = _policies(step)
    for one in measured(step.metrics):
        parts = one.name.split("/")
        if parts[0] != "evaluate" or len(parts) != 3 or parts[-1] in policies:
            continue
        ends = "" if one.interval is None else " [{}, {}]".format(*map(number, one.interval))
        found.append((parts[1], parts[2].replace("_", " "), number(one.value) + ends))
    return found


def counts(values: Any, limit: int = 12) -> list[tuple[str, float, float | None]]:
    """(name, count, share of the largest), largest first; what is over `limit` as one last line.

    That line has no share, or it would dwarf the others.
    """
    found = sorted(finite_numbers(values).items(), key=lambda item: -item[1])
    largest = max((count for _, count in found), default=0) or 1
    rest = found[limit - 1 :] if len(found) > limit else []
    named = found[: len(found) - len(rest)]
    lines: list[tuple[str, float, float | None]] = [(n, c, c / largest) for n, c in named]
    if rest:
        lines.append((counted(len(rest), "other"), sum(count for _, count in rest), None))
    return lines


def disagreements(rates: Sequence[WinRate]) -> list[str]:
    """Comparisons that another judge calls better and gold does not: the sign of a gamed reward."""
    gold = {(r.policy, r.baseline): r.verdict for r in rates if r.judge == "gold"}
    return [
        f"{rate.judge} prefers {rate.policy} to {rate.baseline}, but gold does not: the policy may "
        "have learned to please the judge instead of people."
        for rate in rates
        if rate.verdict == "better" and gold.get((rate.policy, rate.baseline), "better") != "better"
    ]


def _yaml(config: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True) if config else ""
