"""What `align benchmark` prints and writes of a reward model on a benchmark."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from rich.table import Table
from rich.text import Text

from align.console import console, say
from preference_data.counts import counted
from preference_data.quarantine import reasons_in_words
from preference_data.reward_benchmarks import STYLES
from preference_data.sources.store import whole_or_absent
from reward_models.benchmark_scores import Evaluation, Score, Styles
from reward_models.benchmarks import BenchmarkReport


def write_benchmark(report: BenchmarkReport, path: Path) -> None:
    """The report as JSON, each item's scores included: the whole file or none."""
    text = json.dumps(report.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
    with whole_or_absent(path) as stream:
        stream.write(text.encode() + b"\n")


def show_benchmark(report: BenchmarkReport) -> None:
    """The scores as a table, with their intervals and what length alone would get."""
    say(f"{report.benchmark.source} ({report.benchmark.layout}): {_counts(report)}.")
    found = report.evaluation
    # Only ties of scores make a difference.
    official = any(abs(row.official - row.score) > 1e-12 for _, _, row in _rows(found))
    table = _table("", "name", "items", "score, 95 %", "longer wins", "ties")
    if official:
        table.add_column("ties as published", justify="right")
    for kind, name, row in _rows(found):
        cells = [kind, name, f"{row.items:,}", _interval(row), f"{row.longer:.3f}", f"{row.ties:,}"]
        table.add_row(*map(Text, [*cells, f"{row.official:.3f}"] if official else cells))
    console().print(table)
    if found.styles is not None:
        _show_styles(found.styles)
    for note in report.to_json()["notes"]:
        say(note)


def _counts(report: BenchmarkReport) -> str:
    read = report.benchmark
    words = f"{counted(read.rows, 'row')}, {len(report.items):,} scored"
    if report.unscored:
        first = report.unscored[0].reason.rstrip(".")
        words += f", {len(report.unscored):,} that the model cannot read ({first})"
    if read.rejected:
        words += f", {len(read.rejected):,} rejected ({reasons_in_words(read.by_reason())})"
    return words


def _rows(found: Evaluation) -> Iterator[tuple[str, str, Score]]:
    if len(found.subsets) > 1:
        # A section of one subset has its name and its numbers.
        alone = [name for name in found.subsets if name not in found.sections]
        yield from (("subset", name, found.subsets[name]) for name in alone)
    yield from (("section", name, row) for name, row in found.sections.items())
    if found.overall is not None:
        yield "overall", "", found.overall


def _interval(row: Score) -> str:
    return f"{row.score:.3f} [{row.low:.3f}, {row.high:.3f}]"


def _show_styles(styles: Styles) -> None:
    say("\nBy style: the chosen answer in the fancier one (easy), the same, or the plainer (hard)")
    names = list(dict.fromkeys(name for rows in styles.levels.values() for name in rows))
    table = _table("domain", *styles.levels)
    for name in names:
        cells = (_interval(rows[name]) if name in rows else "" for rows in styles.levels.values())
        table.add_row(*map(Text, [name, *cells]))
    console().print(table)
    words = [style.replace("_", " ") for style in STYLES]
    table = _table("chosen, by rejected", *words)
    for word, row in zip(words, styles.matrix, strict=True):
        table.add_row(word, *(f"{cell:.3f}" for cell in row))
    console().print(table)


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        left = column in ("", "name", columns[0])
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    return table
