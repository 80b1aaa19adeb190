"""The command of `align` that sets runs side by side, and the tables that it prints."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from align.cli_options import Debug
from align.console import console, say
from align.summary import WinRate, duration, number

if TYPE_CHECKING:
    from align.compare import Comparison, PairedWinRate, Setting, StepResults, Value


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN…", help="Folders of runs; the first is compared with."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Set runs side by side: settings that differ, results, and win rates between policies."""
    from align.compare import compare as compare_runs

    found = compare_runs(runs)
    if as_json:
        print(json.dumps(found.to_json(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        show_comparison(found)


def show_comparison(found: Comparison) -> None:
    """Tables with a column a run, and in sentences what could not be compared."""
    _show_settings("Settings that differ", found.runs, found.settings)
    if not found.settings:
        say("No setting differs.")
    _show_settings("Names, folders and seeds", found.runs, found.apart)
    _show_settings("Made with", found.runs, found.made_with)
    for step in found.steps:
        _show_step(found.runs, step)
    if any(value and value.differs for step in found.steps for row in step.metrics.values()
           for value in row):  # fmt: skip
        say(f"\n* outside the 95 % interval of {found.runs[0]}, whose value is outside this one's.")
    if found.win_rates:
        _show_win_rates(found.win_rates)
    if found.remarks:
        say("")
    for remark in found.remarks:
        say(remark)


def _show_settings(title: str, runs: Sequence[str], settings: Sequence[Setting]) -> None:
    if settings:
        rows = ([one.key, *map(_option, one.values)] for one in settings)
        _show(title, ["option", *runs], rows)


def _option(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _show_step(runs: Sequence[str], step: StepResults) -> None:
    rows = [["rows", *step.rows], ["time", *map(duration, step.seconds)]]
    rows += [[name, *map(_value, values)] for name, values in step.metrics.items()]
    title = step.name if step.name == step.kind else f"{step.name} ({step.kind})"
    _show(title, ["", *runs], rows)


def _value(found: Value | None) -> str:
    if found is None:
        return number(None)
    mark = "*" if found.differs else ""
    if found.low is None or found.high is None:
        return number(found.value) + mark
    return f"{number(found.value)} [{number(found.low)}, {number(found.high)}]{mark}"


def _show_win_rates(rates: Sequence[PairedWinRate]) -> None:
    rows = (
        [
            rate.judge,
            f"{rate.run}: {rate.policy}",
            f"{rate.against_run}: {rate.against}",
            f"{rate.rate:.2f} [{rate.low:.2f}, {rate.high:.2f}]",
            f"{rate.prompts:,}",
            WinRate(rate.judge, rate.policy, rate.against, rate.rate, rate.low, rate.high).verdict,
        ]
        for rate in rates
    )
    columns = ["judge", "policy", "against", "win rate, 95 %", "prompts", "the policy is"]
    _show("Win rates on the prompts that both answered", columns, rows)


def _show(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    say(f"\n{title}")
    console().print(table)
