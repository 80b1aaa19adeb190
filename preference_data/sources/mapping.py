"""Which column of a table of labels means what."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Literal, get_args

from preference_data.quarantine import DataError

Verdict = Literal["first", "second", "tie", "both_good", "both_bad", "unsure"]

_VERDICTS = get_args(Verdict)
_USUAL_RESPONSES = ("response_a", "response_b")


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of a table's columns. What is left out is looked for under its usual name.

    The answers are compared by a `label` (two answers) or by `ranks` (one column an answer,
    1 = best), never by both. `labels` says what each value of the label column means.

    Raises ValueError for a mapping that contradicts itself.
    """

    # Read by pydantic when a config holds a mapping: an unknown key is an error there.
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (an annotation would list it as a field)

    prompt: str | None = None
    responses: tuple[str, ...] = ()
    label: str | None = None
    ranks: tuple[str, ...] = ()
    annotator: str | None = None
    strength: str | None = None
    comment: str | None = None
    system: str | None = None
    labels: dict[str, Verdict] = field(default_factory=lambda: dict[str, Verdict]())

    def __post_init__(self) -> None:
        if self.ranks and (self.label or self.labels):
            raise ValueError("Map the answers' ranks or their label, not both.")
        if self.ranks and len(self.ranks) != len(self.responses):
            raise ValueError(
                f"{len(self.ranks)} columns of ranks do not fit {len(self.responses)} of responses."
            )
        if len(self.responses) == 1 or (self.label and len(self.responses) not in (0, 2)):
            raise ValueError("A label needs two columns of responses, and ranks two or more.")
        for value, verdict in self.labels.items():
            if verdict not in _VERDICTS:
                allowed = ", ".join(_VERDICTS)
                raise ValueError(f"columns.labels.{value} is one of {allowed}, not {verdict!r}.")

    def completed(self, found: Sequence[str], file: str) -> Columns:
        """This mapping with the usual names filled in, for a table with the columns `found`.

        Raises DataError if a column that is needed, or that was named, is not there.
        """
        answers = self._with_answers(found, file)
        full = replace(answers, prompt=self.prompt or "prompt")
        for name in ("annotator", "strength", "comment", "system"):
            if getattr(full, name) is None and name in found:
                full = replace(full, **{name: name})
        missing = {
            column: option for column, option in full._options().items() if column not in found
        }
        if missing:
            raise DataError(_missing_columns(missing, found, file))
        return full

    def _with_answers(self, found: Sequence[str], file: str) -> Columns:
        responses = self.responses or _numbered_responses(found) or _USUAL_RESPONSES
        if self.ranks:
            return self
        ranks = tuple(name.replace("response_", "rank_") for name in responses)
        by_label = self.label or self.labels or self.responses or responses == _USUAL_RESPONSES
        if by_label or (len(responses) == 2 and "label" in found and ranks[0] not in found):
            if len(responses) != 2:
                raise DataError(
                    f"{file} has {len(responses)} columns of responses, and a label compares two. "
                    "Map columns.ranks, or two columns.responses."
                )
            return replace(self, responses=responses, label=self.label or "label")
        return replace(self, responses=responses, ranks=ranks)

    def _options(self) -> dict[str, str]:
        """Each mapped column with the option that maps it."""
        named: dict[str, str] = {}
        for option in fields(self):
            column = getattr(self, option.name)
            if option.name != "labels" and column:
                columns = (column,) if isinstance(column, str) else column
                named.update(dict.fromkeys(columns, f"columns.{option.name}"))
        return named


def _numbered_responses(found: Sequence[str]) -> tuple[str, ...]:
    numbered = [name for name in found if re.fullmatch(r"response_[0-9]+", name)]
    ordered = sorted(numbered, key=lambda name: int(name.removeprefix("response_")))
    return tuple(ordered) if len(ordered) > 1 else ()


def _missing_columns(missing: Mapping[str, str], found: Sequence[str], file: str) -> str:
    named: list[str] = []
    for column in missing:
        nearest = get_close_matches(column, found, n=1)
        named.append(f'"{column}"' + (f' (nearest: "{nearest[0]}")' if nearest else ""))
    plural = "s" if len(named) > 1 else ""
    options = ", ".join(dict.fromkeys(missing.values()))
    return (
        f"{file} has no column{plural} {', '.join(named)}; it has {', '.join(found)}. "
        f"Rename the column{plural}, or map with {options}."
    )
