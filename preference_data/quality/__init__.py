"""How good the labels of a data folder are: numbers, and findings that say what to do about them.

Every judgement counts once: the pairs of a ranking share it, as they share its weight in training.
Control items tell about annotators and about nothing else.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from preference_data.quality.findings import findings_of
from preference_data.quality.measures import (
    Votes,
    counts_of,
    languages_of,
    leaks_of,
    length_of,
    models_of,
    personal_data_of,
    position_of,
    repeats_of,
    truncation_of,
)
from preference_data.quality.report import (
    Imported,
    QualityReport,
)
from preference_data.quarantine import DataError
from preference_data.records import Judgement
from preference_data.rendering import Renderer
from preference_data.sources.store import IMPORT_FILE, QUARANTINE_FILE, read_judgements
from preference_data.votes.agreement import agreement
from preference_data.votes.annotators import annotators


def inspect_folder(
    folder: Path, renderer: Renderer | None = None, max_length: int | None = None
) -> QualityReport:
    """The report of a data folder of preferences.

    With a renderer and a length in tokens it also says what would not fit. Raises DataError if
    the folder holds no preferences, or a line that is not a record.
    """
    return quality(
        list(read_judgements(folder)),
        folder=str(folder),
        imported=_imported(folder),
        renderer=renderer,
        max_length=max_length,
    )


def quality(
    judgements: Sequence[Judgement],
    *,
    folder: str = "",
    imported: Imported | None = None,
    renderer: Renderer | None = None,
    max_length: int | None = None,
) -> QualityReport:
    """The report of judgements. Raises ValueError if one of `renderer` and `max_length` is lost."""
    if (renderer is None) != (max_length is None):
        raise ValueError("Truncation needs both a renderer and a max_length.")
    votes = Votes([judgement for judgement in judgements if judgement.gold is None])
    pairs = votes.pairs()
    truncation = None
    if renderer is not None and max_length is not None:
        truncation = truncation_of(votes.judgements, renderer, max_length)
    named = {judgement.annotator for judgement in votes.judgements} - {None}
    report = QualityReport(
        folder=folder,
        imported=imported,
        counts=counts_of(votes, pairs, len(judgements), len(named)),
        agreement=agreement(votes.judgements) if len(named) > 1 else None,
        annotators=annotators(judgements) if named else [],
        position=position_of(votes, pairs),
        length=length_of(votes, pairs),
        repeats=repeats_of(votes, pairs),
        models=models_of(votes, pairs),
        leaks=leaks_of(votes),
        languages=languages_of(votes),
        personal_data=personal_data_of(judgements),
        truncation=truncation,
        findings=[],
    )
    return replace(report, findings=findings_of(report))


def _imported(folder: Path) -> Imported | None:
    path = folder / IMPORT_FILE
    if not path.is_file():
        return None
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        faults, set_aside = Counter[str](report["by_reason"]), Counter[str]()
        for reason in _expected(folder / QUARANTINE_FILE):
            faults[reason] -= 1
            set_aside[reason] += 1
        return Imported(
            source=report["source"],
            format=report["format"],
            rows_in=report["rows_in"],
            rows_out=report["rows_out"],
            faults=dict(+faults),
            set_aside=dict(set_aside),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no import report: {error}. Import the data again.") from error


def _expected(path: Path) -> Iterator[str]:
    """The reasons of the quarantined rows of which the file itself says that they do not count."""
    if not path.is_file():
        return
    with open(path, encoding="utf-8", newline="\n") as lines:
        for line in lines:
            reject = json.loads(line)
            if reject.get("expected"):
                yield reject["reason"]
