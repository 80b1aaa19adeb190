"""What an import's records hold, counted on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from preference_data.records import Demonstration, Judgement, Prompt

Record = Judgement | Demonstration | Prompt | str
Advance = Callable[[int, float | None], object]
"""Is told how many more rows were read, and which share of the bytes that makes, if it is known."""


def unwatched(rows: int, share: float | None) -> None:
    """Nobody waits."""


@dataclass(slots=True)
class Tally:
    """What the records hold. All but the first two stay empty for what is not a judgement."""

    rows: int = 0
    """Rows that gave records."""
    records: int = 0
    by_label: Counter[str] = field(default_factory=lambda: Counter[str]())
    by_k: Counter[int] = field(default_factory=lambda: Counter[int]())
    by_annotator: Counter[str] = field(default_factory=lambda: Counter[str]())

    def add(self, records: tuple[Record, ...]) -> None:
        """Counts the records of one row."""
        self.rows += 1
        for record in records:
            self.records += 1
            if isinstance(record, Judgement):
                self.add_judgement(record.label, len(record.responses), record.annotator)

    def add_judgement(self, label: str, k: int, annotator: str | None) -> None:
        self.by_label[label] += 1
        self.by_k[k] += 1
        if annotator is not None:
            self.by_annotator[annotator] += 1

    def merge(self, other: Tally) -> None:
        """Adds what another part of the same data holds."""
        self.rows += other.rows
        self.records += other.records
        self.by_label.update(other.by_label)
        self.by_k.update(other.by_k)
        self.by_annotator.update(other.by_annotator)
