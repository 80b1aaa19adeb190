"""Results of crowd platforms: Mechanical Turk's batches, CrowdFlower's (Appen's) and Toloka's.

Each wraps the requester's own columns into its own. The wrapping is read here: who answered, when,
how long it took, which answers were refused, which items are controls. The columns inside are a
table of labels, found under their usual names or mapped with `columns`. IP addresses and places
are left out, also of the rows that are set aside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from preference_data.quarantine import Rejected, SetAside
from preference_data.records import Judgement
from preference_data.sources.carriers.files import Reading
from preference_data.sources.carriers.rows import Row, convert_rows
from preference_data.sources.cells import short_text_of
from preference_data.sources.readers.annotation_tasks import annotator_of
from preference_data.sources.readers.crowd_tables import (
    CrowdTable,
    items_of,
    unescaped,
    with_radio_groups,
    with_task_answers,
)
from preference_data.sources.readers.ratings import number_of

Rows = Iterator[Row | Rejected]
Records = Iterator[tuple[Judgement, ...] | Rejected]

_PERSONAL = ("_ip", "_city", "_region", "_country")
_ZONES = {"PST": "-08:00", "PDT": "-07:00", "UTC": "+00:00", "GMT": "+00:00"}


def recognises_mturk(values: Mapping[str, object]) -> bool:
    """An assignment of a HIT to a worker."""
    return {"HITId", "AssignmentId", "WorkerId"} <= values.keys()


def recognises_crowdflower(values: Mapping[str, object]) -> bool:
    """A worker's judgement of a unit."""
    return {"_unit_id", "_worker_id"} <= values.keys()


def recognises_toloka(values: Mapping[str, object]) -> bool:
    """A performer's assignment with its inputs."""
    prefixes = {name.partition(":")[0] for name in values if ":" in name}
    return {"INPUT", "ASSIGNMENT"} <= prefixes


def read_mturk(rows: Rows, reading: Reading) -> Records:
    """One judgement for each item of an assignment; rejected assignments are set aside."""
    table = CrowdTable(reading, ".")
    yield from convert_rows(rows, lambda row: _mturk(row, table, reading))
    table.close()


def read_crowdflower(rows: Rows, reading: Reading) -> Records:
    """One judgement a row, with the worker's _trust as its weight; tainted rows are set aside."""
    table = CrowdTable(reading)
    kept = _without_personal_data(rows)
    yield from convert_rows(kept, lambda row: (_crowdflower(row, table, reading),))
    table.close()


def read_toloka(rows: Rows, reading: Reading) -> Records:
    """One judgement a row; rejected, skipped and expired assignments are set aside."""
    table = CrowdTable(reading, ":")
    yield from convert_rows(rows, lambda row: (_toloka(row, table),))
    table.close()


@dataclass(frozen=True, slots=True)
class _Wrapping:
    """What a platform says about one answer."""

    format: str
    annotator: str | None
    group: str | None
    duration: float | None
    created_at: str | None
    weight: float = 1.0

    def around(self, judgement: Judgement, row: Row) -> Judgement:
        return replace(
            judgement,
            annotator=judgement.annotator or annotator_of(self.annotator),
            group=judgement.group or self.group,
            duration=self.duration if judgement.duration is None else judgement.duration,
            created_at=judgement.created_at or self.created_at,
            weight=judgement.weight * self.weight,
            source=row.source(self.format),
        )


def _mturk(row: Row, table: CrowdTable, reading: Reading) -> tuple[Judgement, ...]:
    values = row.values
    if _said(values, "AssignmentStatus") == "rejected" or _said(values, "Reject"):
        raise SetAside("assignment_rejected", "the assignment was rejected.")
    wrapping = _Wrapping(
        format="mturk",
        annotator=short_text_of(values, "WorkerId"),
        group=short_text_of(values, "HITId"),
        duration=number_of(values, "WorkTimeInSeconds"),
        created_at=_mturk_time(_said(values, "SubmitTime")),
    )
    asked = {name: cell for name, cell in values.items() if name.startswith(("Input.", "Answer."))}
    cells = unescaped(with_radio_groups(with_task_answers(asked)), row, reading)
    items = items_of(cells, reading.columns)
    return tuple(wrapping.around(table.judgement(row, item), row) for item in items)


def _crowdflower(row: Row, table: CrowdTable, reading: Reading) -> Judgement:
    values = row.values
    if _said(values, "_tainted") in ("true", "1"):
        raise SetAside("tainted", "_tainted is true.")
    trust = number_of(values, "_trust")
    if trust == 0.0:
        raise SetAside("untrusted", "_trust is 0.")
    if trust is not None:
        reading.note(f"{row.file}: the weight of a judgement is its worker's _trust.")
    started, ended = _us_time(values, "_started_at"), _us_time(values, "_created_at")
    wrapping = _Wrapping(
        format="crowdflower",
        annotator=short_text_of(values, "_worker_id"),
        group=short_text_of(values, "_unit_id"),
        duration=(ended - started).total_seconds() if started and ended else None,
        created_at=ended.isoformat() if ended else None,
        weight=1.0 if trust is None else trust,
    )
    asked = {name: cell for name, cell in values.items() if not name.startswith("_")}
    golden = {name[:-5]: cell for name, cell in asked.items() if name.endswith("_gold")}
    return wrapping.around(table.judgement(row, asked, golden), row)


def _without_personal_data(rows: Rows) -> Rows:
    for row in rows:
        if isinstance(row, Row):
            kept = {name: cell for name, cell in row.values.items() if name not in _PERSONAL}
            row = replace(row, values=kept)
        yield row


def _toloka(row: Row, table: CrowdTable) -> Judgement:
    values = row.values
    status = _said(values, "ASSIGNMENT:status")
    if status in ("rejected", "skipped", "expired"):
        raise SetAside(f"assignment_{status}", f"ASSIGNMENT:status is {status.upper()}.")
    wrapping = _Wrapping(
        format="toloka",
        annotator=short_text_of(values, "ASSIGNMENT:worker_id"),
        group=short_text_of(values, "ASSIGNMENT:task_id"),
        duration=None,
        created_at=short_text_of(values, "ASSIGNMENT:started"),
    )
    # The label last: without its prefix it has the name of its golden one.
    prefixes = ("GOLDEN:", "INPUT:", "OUTPUT:")
    asked = {
        name: values[name] for prefix in prefixes for name in values if name.startswith(prefix)
    }
    golden = {name[7:]: cell for name, cell in values.items() if name.startswith("GOLDEN:")}
    return wrapping.around(table.judgement(row, asked, golden), row)


def _said(values: Mapping[str, object], name: str) -> str:
    """In lower case; "" where the row has none."""
    value = values.get(name)
    return "" if value is None else str(value).strip().casefold()


def _mturk_time(text: str) -> str | None:
    """ISO 8601 of "tue mar 05 10:11:12 pst 2019"; None for another form or zone."""
    parts = text.split()
    zone = _ZONES.get(parts[4].upper()) if len(parts) == 6 else None
    if zone is None:
        return None
    try:
        time = datetime.strptime(" ".join(parts[1:4] + parts[5:]), "%b %d %H:%M:%S %Y")
    except ValueError:
        return None
    return time.isoformat() + zone


def _us_time(values: Mapping[str, object], name: str) -> datetime | None:
    try:
        return datetime.strptime(_said(values, name), "%m/%d/%Y %H:%M:%S")
    except ValueError:
        return None
