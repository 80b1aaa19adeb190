"""What the command line prints: tables of a run, of a plan and of imported data, and errors."""

from __future__ import annotations

import errno
import json
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from align.config import ConfigError
from align.quiet import show_everything
from align.summary import (
    duration,
    headline_metrics,
    memory_held,
    read_findings,
    short,
    size_in_words,
)
from preference_data import DataError
from preference_data.counts import counted
from preference_data.sources.store import RECORD_FILES

if TYPE_CHECKING:
    from align.memory.cards import Card
    from align.memory.plan import MemoryPlan

USER_ERROR, RUN_ERROR, INTERRUPTED = 2, 1, 130
"""Exit codes: the user's mistake, the run's failure, Ctrl-C (128 + SIGINT)."""

NARROW = 60
"""Columns of a terminal below which a run's steps are lines, not a table."""


def console() -> Console:
    """Standard output; wide enough for a table in one piece when it is a file or a pipe."""
    return Console() if sys.stdout.isatty() else Console(width=160)


# --- errors --------------------------------------------------------------------------------------


def exit_code(call: Callable[[], object], *, debug: bool, resumes: bool = True) -> int:
    """Calls, and turns what it raises into a sentence on standard error and an exit code.

    With `debug`, the traceback goes before the sentence, and libraries say what they like. What
    `resumes` goes on where Ctrl-C left it.
    """
    show_everything(debug)
    try:
        call()
    except KeyboardInterrupt:
        go_on = "; run the same command again to go on" if resumes else ""
        code, text = INTERRUPTED, f"Interrupted{go_on}."
    except Exception as error:
        if debug:
            traceback.print_exc()
        code, text = _explained(error, debug)
    else:
        return 0
    print(text, file=sys.stderr)
    return code


def _explained(error: Exception, debug: bool) -> tuple[int, str]:
    if isinstance(error, ConfigError | DataError):
        return USER_ERROR, str(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        what = f" while writing {error.filename}" if error.filename else ""
        return RUN_ERROR, f"No space left{what}; free some and run again."
    if isinstance(error, OSError) and error.strerror:
        what = f"{error.filename}: " if error.filename else ""
        return RUN_ERROR, f"{what}{error.strerror}."
    # Looked up, not imported: where the pipeline was not loaded, it has raised nothing.
    step_error = getattr(sys.modules.get("align.pipeline"), "StepError", None)
    if step_error is not None and isinstance(error, step_error):
        return RUN_ERROR, str(error)
    push_error = getattr(sys.modules.get("align.hub"), "PushError", None)
    if push_error is not None and isinstance(error, push_error):
        return RUN_ERROR, str(error)
    more = "" if debug else " Run it again with --debug for the traceback."
    return RUN_ERROR, f"{type(error).__name__}: {str(error).rstrip('.')}.{more}"


# --- tables --------------------------------------------------------------------------------------


def show_summary(summary: Mapping[str, Any], run_dir: Path, *, just_run: bool = True) -> None:
    """The table of a run's steps with their headline numbers, and where the report is; after a run
    that found all of them done, that too."""
    steps: Mapping[str, Any] = summary["steps"]
    out = console()
    held = {name: size_in_words(memory_held(step["metrics"])) for name, step in steps.items()}
    measured = ("memory",) if any(held.values()) else ()
    table = _table("step", "kind", "time", "cached", "rows", *measured, "result")
    for name, step in steps.items():
        _add_row(
            table,
            name,
            step["kind"],
            duration(step["seconds"]),
            "yes" if step["cached"] else "",
            rows_in_words(step["rows"]),
            *([held[name]] if measured else []),
            headline_metrics(step["kind"], step["metrics"]),
        )
    if out.width >= NARROW:
        out.print(table)
    else:  # a table would be a column of syllables
        for name, step in steps.items():
            facts = duration(step["seconds"]), headline_metrics(step["kind"], step["metrics"])
            say(f"{name}: {', '.join(filter(None, facts))}")
    for line in read_findings(run_dir):
        say(line)
    if just_run and steps and all(step["cached"] for step in steps.values()):
        done = "the step is done" if len(steps) == 1 else f"all {len(steps)} steps are done"
        say(f"Nothing to do: {done}.")
    if (run_dir / "report.html").exists():
        say(f"Report: {run_dir / 'report.html'}")


def show_plan(steps: Iterable[Mapping[str, Any]]) -> None:
    """The table of what would run and why."""
    steps = list(steps)
    table = _table("step", "kind", "state", "rows", "why")
    for step in steps:
        rows = "" if step["rows"] is None else f"{step['rows']:,}"
        _add_row(table, step["name"], step["kind"], step["state"], rows, step["reason"])
    console().print(table)
    waiting = sum(step["state"] != "done" for step in steps)
    say(f"{waiting} of {len(steps)} would run." if waiting else "Nothing to do: all is done.")


def show_memory(plan: MemoryPlan, card: Card | None) -> None:
    """The table of what each step holds on a device, and of what would let the rest fit a card."""
    for name, rows in plan.rows.items():
        say(
            f"data.{name}: {counted(rows.count, 'row')}, about {rows.count * rows.mean:,.0f} "
            "tokens."
        )
    for name, share in plan.over.items():
        if share:
            say(f"{name}: about {share:.1%} of its rows are longer than max_length.")
    if plan.unknown is not None:
        say(f"Memory: unknown, because {plan.unknown}.")
        return
    parts = ("parameters", "adapters", "gradients", "optimizer", "activations", "cache")
    fits = () if card is None else (f"fits {card.name}",)
    table = _table("step", "memory", "at its peak", *parts, *fits)
    for step in plan.steps:
        peak = step.peak
        held = (size_in_words(getattr(peak, part)) for part in parts)
        verdict = () if card is None else (card.verdict(step),)
        _add_row(table, step.name, size_in_words(peak.total), peak.phase, *held, *verdict)
    say("")
    console().print(table)
    device = "a CPU (of a GPU: --card)" if card is None else "a GPU"
    say(f"Estimated per device, {device}, to within 15 %; what the driver takes is not in it.")
    for step in plan.steps:
        if card is not None and card.verdict(step) != "yes":
            _show_alternatives(plan, step.name, card)


def _show_alternatives(plan: MemoryPlan, step: str, card: Card) -> None:
    found = plan.alternatives(step, card)
    if not found:
        say(f"{step}: no three changes of its settings would make it fit {card.name}.")
        if (least := plan.least(step)) is not None:
            peak = least.peak
            size = size_in_words(peak.total)
            say(f"With all of them at their smallest it takes {size} ({peak.phase}).")
        return
    table = _table(f"{step} would fit with", "memory")
    for one in found:
        _add_row(table, ", ".join(one.settings), size_in_words(one.memory.peak.total))
    console().print(table)


def show_import(report: Mapping[str, Any]) -> None:
    """The counts of an import: rows in, out and quarantined, then by reason and by label."""
    say(
        f"{counted(report['rows_in'], 'row')} in, {report['rows_out']:,} out, "
        f"{report['rows_quarantined']:,} quarantined ({report['source']}, {report['format']})."
    )
    counts = {
        "quarantined because": report["by_reason"],
        "label": report["by_label"],
        "answers": report["by_k"],
        "annotator": report["by_annotator"],
    }
    for title, numbers in counts.items():
        if numbers:
            table = _table(title, "rows" if numbers is report["by_reason"] else "judgements")
            # The most frequent ones: a file may have hundreds of annotators.
            ordered = sorted(numbers.items(), key=lambda item: -item[1])
            for name, rows in ordered[:20]:
                _add_row(table, str(name), f"{rows:,}")
            if rest := ordered[20:]:
                _add_row(table, f"({len(rest)} more)", f"{sum(rows for _, rows in rest):,}")
            console().print(table)
    for note in report["notes"]:
        say(note)


def show_folder(folder: Path, examples: int) -> None:
    """What a data folder, a step's folder or a run folder holds, and its first rows.

    Raises ConfigError if it is none of these.
    """
    readers: dict[str, Callable[[Any], None]] = {
        "import.json": show_import,
        "artifact.json": _show_artifact,
        "summary.json": lambda summary: show_summary(summary, folder, just_run=False),
    }
    for name, show in readers.items():
        if (folder / name).is_file():
            show(_read(folder / name))
            break
    else:
        raise ConfigError(
            f"{folder} is no data folder, step or finished run: it holds neither "
            f"{', '.join(list(readers)[:-1])} nor {list(readers)[-1]}."
        )
    for name in (*RECORD_FILES.values(), "samples.jsonl"):
        if (folder / name).is_file():
            show_rows(folder / name, examples)


def show_rows(path: Path, examples: int) -> None:
    """The first rows of a JSONL file."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(islice(lines, examples), start=1):
            say(f"\n{path.name}, row {number}")
            try:
                row = json.loads(line)
            except ValueError:
                raise ConfigError(f"{path}, line {number} is no JSON.") from None
            for key, value in row.items():
                if value not in (None, [], {}):
                    text = (
                        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                    )
                    say(f"  {key}: {text if len(text) <= 500 else text[:499] + '…'}")


def _show_artifact(artifact: Mapping[str, Any]) -> None:
    table = _table("", "")
    table.show_header = False
    facts = {
        "step": artifact["name"],
        "kind": artifact["kind"],
        "base": artifact["base"] or "",
        "fingerprint": artifact["fingerprint"],
        "made from": ", ".join(artifact["inputs"]),
        "seed": str(artifact["seed"]),
        "time": duration(artifact["seconds"]),
        "rows": rows_in_words(artifact["rows"]),
        "versions": ", ".join(f"{name} {v}" for name, v in artifact["versions"].items()),
        **{name: short(value) for name, value in artifact["metrics"].items()},
    }
    for name, value in facts.items():
        if value:
            _add_row(table, name, value)
    console().print(table)


def rows_in_words(rows: Mapping[str, int] | None) -> str:
    """`950 of 1,000` when some rows were left out, `1,000` when none was."""
    if rows is None:
        return ""
    if rows["out"] == rows["in"]:
        return f"{rows['in']:,}"
    return f"{rows['out']:,} of {rows['in']:,}"


def _add_row(table: Table, *cells: str) -> None:
    """Cells of plain text: names from data may hold what rich would take for markup."""
    table.add_row(*map(Text, cells))


def say(text: str) -> None:
    """A line of plain text: data may hold what rich would take for markup, and is not wrapped."""
    console().print(Text(text), soft_wrap=True)


def warn(text: str) -> None:
    """A line on standard error: the command goes on, or went well but for this."""
    print(text, file=sys.stderr)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ConfigError(f"{path} is no JSON.") from None


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        right = column in {"time", "rows", "memory"} and columns[0] in {"step"}
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    return table
