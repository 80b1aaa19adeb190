"""The report's words on a data source: what was found in its judgements, if that is soon known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from preference_data.counts import counted
from preference_data.quarantine import DataError
from preference_data.sources.store import RECORD_FILES

if TYPE_CHECKING:
    from preference_data.quality.report import QualityReport
    from preference_data.votes.agreement import Interval

QUICK = 4 << 20
"""Bytes of judgements that are looked at for the page, about a second's work; for more than that
`align inspect` is to be asked."""


@dataclass(frozen=True)
class DataQuality:
    """What the page says on the quality of a source's judgements."""

    facts: list[tuple[str, str]]
    """A few numbers: name, and value with its 95 % interval"""
    findings: list[tuple[str, str, str]]
    """Level, sentence and remedy of each"""
    remark: str
    """What the command is for, and why nothing is said here if that is so"""
    command: str
    """That shows all there is to know"""


def data_quality(run_dir: Path, source: str) -> DataQuality | None:
    """The quality of a source; None where it holds no judgements."""
    folder = run_dir / "data" / source
    path = folder / RECORD_FILES["preferences"]
    if not path.is_file() or path.stat().st_size == 0:
        return None
    command = f"align inspect {folder} --html quality.html"
    if path.stat().st_size > QUICK:
        return DataQuality([], [], "Too many to be looked at for this page. How good:", command)
    from preference_data.quality import inspect_folder

    try:
        report = inspect_folder(folder)
    except (DataError, OSError) as error:
        return DataQuality([], [], f"Not looked at: {error}", "")
    return DataQuality(
        facts=list(_facts(report)),
        findings=[(found.level, found.sentence, found.remedy) for found in report.findings],
        remark="All numbers:",
        command=command,
    )


def _facts(report: QualityReport) -> Iterator[tuple[str, str]]:
    counts, agreement = report.counts, report.agreement
    if agreement is not None and (alpha := agreement.alpha_nominal) is not None:
        value = f"{alpha.value:.2f} [{alpha.low:.2f}, {alpha.high:.2f}]"
        yield (
            "Krippendorff's alpha, nominal",
            f"{value} on {counted(agreement.shared, 'shared pair')}",
        )
    if (first := report.position.first_wins) is not None:
        shown = "shown" if report.position.known else "listed"
        yield f"The response {shown} first wins", _share(first)
    if report.length is not None:
        yield "The longer response wins", _share(report.length.longer_wins)
    if counts.tie_share is not None:
        yield "Ties", f"{100 * counts.tie_share:.0f} %"
    if report.repeats.again:
        yield (
            "Judged again by the same annotator",
            f"{report.repeats.again:,}, of these contradicting the first time "
            f"{report.repeats.contradictions:,}",
        )


def _share(rate: Interval) -> str:
    low, high = (f"{100 * end:.0f}" for end in (rate.low, rate.high))
    return f"{100 * rate.value:.0f} % [{low}, {high}]"
