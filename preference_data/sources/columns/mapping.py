"""Which column of a table of labels means what."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Literal, cast, get_args

from preference_data.counts import counted, verb
from preference_data.records import AnnotatorKind, Split
from preference_data.sources.cells import plain_label

Verdict = Literal["first", "second", "tie", "both_good", "both_bad", "unsure"]
Thumb = Literal["up", "down"]
LabelIs = Literal["model", "text", "column", "index_from_0", "index_from_1"]

_VERDICTS = get_args(Verdict)
_NO_COLUMNS = (
    "labels", "label_is", "scale", "thumbs", "best", "better", "splits", "annotator_kind",
)  # fmt: skip
_CONFIG = {"extra": "forbid", "use_attribute_docstrings": True}
"""Read by pydantic when a config holds a mapping: an unknown key is an error there. Without an
annotation in the classes, which would list it as a field."""


@dataclass(frozen=True, slots=True)
class Matching:
    """The columns whose whole name matches `pattern`; its one group says whose answer they hold.

    Raises ValueError for a pattern that is no regular expression with one group.
    """

    __pydantic_config__ = _CONFIG

    pattern: str
    """A regular expression with one group, as in "answer_(.+)"."""

    def __post_init__(self) -> None:
        if _compiled(self.pattern, "pattern").groups != 1:
            raise ValueError(
                f"pattern {self.pattern!r} needs one group in parentheses, as in 'answer_(.+)'."
            )


@dataclass(frozen=True, slots=True)
class Constant:
    """The same text for every row."""

    __pydantic_config__ = _CONFIG

    constant: str
    """The text."""


@dataclass(frozen=True, slots=True)
class Ends:
    """The two ends of a scale of numbers: where the first answer wins, and where the second."""

    __pydantic_config__ = _CONFIG

    first: float
    """The label that prefers the first answer most."""
    second: float
    """The label that prefers the second answer most."""

    def __post_init__(self) -> None:
        if self.first == self.second:
            raise ValueError(f"scale runs from {self.first:g} to {self.second:g}, which is no way.")


@dataclass(frozen=True, slots=True)
class Graded:
    """A column of numbers from `lowest` (strength 0) to `highest` (strength 1)."""

    __pydantic_config__ = _CONFIG

    column: str
    """Name of the column."""
    lowest: float
    """The number that means "barely better"."""
    highest: float
    """The number that means "much better"."""

    def __post_init__(self) -> None:
        if self.lowest == self.highest:
            raise ValueError(f"lowest and highest are both {self.lowest:g}.")


@dataclass(frozen=True, slots=True)
class Dated:
    """A column of dates in a `format` of strptime's, as in "%m/%d/%Y %H:%M:%S"."""

    __pydantic_config__ = _CONFIG

    column: str
    """Name of the column."""
    format: str
    """In the codes of Python's strptime."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A column that says which of two answers was shown first (on the left)."""

    __pydantic_config__ = _CONFIG

    column: str
    """Name of the column."""
    values: dict[str, Literal["first", "second"]]
    """Which answer was shown first, for each value of the column."""

    def __post_init__(self) -> None:
        _check_values("shown_first.values", self.values, ("first", "second"))


@dataclass(frozen=True, slots=True)
class Wide:
    """One row a person and one column an item, as web forms write it.

    The columns whose whole name matches `columns` hold the labels. The named groups of the pattern
    become columns of their own; the group `item` finds the item's other columns in `items`: a file
    with a column `item` (looked for as it stands, then beside the table), or {item: {column:
    text}}. Without `items`, all that is known of an item is in the header.

    Raises ValueError for a pattern that is no regular expression with named groups.
    """

    __pydantic_config__ = _CONFIG

    columns: str
    """A regular expression with named groups, as in "Which is better\\? \\[(?P<item>.*)\\]"."""
    items: str | dict[str, dict[str, str]] | None = None
    """What is known of each item."""

    def __post_init__(self) -> None:
        groups = _compiled(self.columns, "wide.columns").groupindex
        if not groups:
            raise ValueError("wide.columns needs a named group, as in 'Q[0-9]+ (?P<item>.*)'.")
        if ("item" in groups) != (self.items is not None):
            raise ValueError("wide.items goes with a group (?P<item>...) in wide.columns.")
        if "label" in groups:
            raise ValueError("wide.columns cannot name a group label: the cell is the label.")


ColumnGroup = tuple[str, ...] | Matching | str
"""One column an answer, a pattern that finds them, or one column that holds a list of all."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of a table's columns. What is left out is looked for under its usual name.

    A name with dots leads into JSON objects and lists (`info.post`, `summaries.0.text`, and `*`
    for every element of a list), unless a column has that very name.

    One of five says which answer is better: a `label`, `ranks` (1 = best), `scores`, the `one_hot`
    columns, of which exactly one is 1, or `best`, where the columns of the answers say it
    themselves, as in `responses: [chosen, rejected]` and `best: first`. What the label's values
    mean is said by `labels` (value: verdict), by `scale` (a list of the values from "first much
    better" to "second much better", or the numbers at its two ends), or by `label_is`: the label is
    the better answer's model, text, column or index. Nothing is guessed from the values.

    Votes on single answers have one column of responses and a label whose values `thumbs` explains:
    `responses: [completion]`, `label: rating` and `thumbs: {"1": up, "0": down}`.

    Raises ValueError for a mapping that contradicts itself or holds an option without effect.
    """

    __pydantic_config__ = _CONFIG

    prompt: str | None = None
    """Text or messages; `prompt`, if not said."""
    responses: ColumnGroup = ()
    """The answers; `response_a` and `response_b`, or `response_1`, `response_2`, …, if not said."""
    label: str | None = None
    """Which answer is better; `label`, if not said."""
    ranks: ColumnGroup = ()
    """The answers' ranks: 1 is best, equal is a tie, blank is not ranked."""
    annotator: str | Constant | None = None
    """Who judged."""
    strength: str | Graded | None = None
    """How much better, from 0 (barely) to 1."""
    comment: str | None = None
    """Why."""
    system: str | Constant | None = None
    """A system message before the prompt."""
    labels: dict[str, Verdict] = field(default_factory=lambda: dict[str, Verdict]())
    """What each value of the label means."""
    label_is: LabelIs | None = None
    """What of the better answer the label repeats."""
    scale: tuple[str | float, ...] | Ends | None = None
    """The label's values from "first much better" to "second much better", or the two ends."""
    thumbs: dict[str, Thumb] = field(default_factory=lambda: dict[str, Thumb]())
    """What each value of the label means where it is a vote on one answer."""
    best: Literal["first", "second"] | None = None
    """Which of the answers is the best in every row, as the first of chosen and rejected."""
    one_hot: dict[str, Verdict] = field(default_factory=lambda: dict[str, Verdict]())
    """Columns of 0 and 1, of which exactly one is 1, and what that means."""
    scores: ColumnGroup = ()
    """The answers' scores."""
    better: Literal["higher", "lower"] | None = None
    """Which score is better; higher, if not said. Lower-is-better scores are stored negated."""
    tie_within: float | None = None
    """Scores at most so far below the best of a rank share that rank; 0, if not said."""
    models: ColumnGroup = ()
    """Who wrote each answer."""
    position: ColumnGroup = ()
    """Where each answer was shown, counted from 0 or from 1."""
    shown_first: Shown | None = None
    """Where one column says which of two answers was shown first (on the left)."""
    criterion: str | Constant | None = None
    """What was asked about the answers; overall, where blank."""
    group: str | None = None
    """What joins the rows of one task."""
    weight: str | None = None
    """A positive number; 1, where blank."""
    gold: ColumnGroup = ()
    """The right answer of a control item, in the words of `label` or as `ranks`; else blank."""
    duration: str | None = None
    """Seconds the annotator took."""
    created_at: str | Dated | None = None
    """ISO 8601, unless a format is given."""
    split: str | Constant | None = None
    """train, validation (also valid, val, dev) or test."""
    splits: dict[str, Split] = field(default_factory=lambda: dict[str, Split]())
    """What other values of `split` mean."""
    annotator_kind: AnnotatorKind | None = None
    """Of all annotators; human, if not said."""
    json: tuple[str, ...] = ()
    """Columns whose cells hold JSON as text."""
    wide: Wide | None = None
    """Where a row is a person and a column an item."""

    def __post_init__(self) -> None:
        for option in ("labels", "one_hot"):
            _check_values(option, getattr(self, option), _VERDICTS)
        _check_values("thumbs", self.thumbs, get_args(Thumb))
        _check_values("splits", self.splits, get_args(Split))
        for sentence in (*_contradictions(self), *_without_effect(self)):
            raise ValueError(sentence)

    def named(self) -> dict[str, str]:
        """Each column that is named, with the option that names it."""
        named: dict[str, str] = {}
        for option in fields(self):
            if option.name in _NO_COLUMNS:
                continue
            value = getattr(self, option.name)
            if isinstance(value, Graded | Dated | Shown):
                value = value.column
            names = (value,) if isinstance(value, str) else value
            if isinstance(names, tuple | dict):
                for name in cast("tuple[str, ...]", names):
                    named.setdefault(name, f"columns.{option.name}")
        return named


def scale_value(value: str | float) -> str:
    """A value of a scale as its label is written: 1.0 as "1"."""
    return value if isinstance(value, str) else plain_label(str(value))


def _compiled(pattern: str, option: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{option} {pattern!r} is no regular expression: {error}.") from None


def _check_values(option: str, values: Mapping[str, str], allowed: tuple[str, ...]) -> None:
    plain: dict[str, str] = {}
    for value, meaning in values.items():
        if meaning not in allowed:
            raise ValueError(
                f"columns.{option}.{value} is one of {', '.join(allowed)}, not {meaning!r}."
            )
        key = value if option == "one_hot" else plain_label(value)
        if plain.setdefault(key, meaning) != meaning:
            raise ValueError(
                f"columns.{option} gives {value!r} two meanings: case, spaces and a closing .0 "
                "make no difference."
            )


def _contradictions(columns: Columns) -> Iterator[str]:
    meaning = columns.labels or columns.label_is or columns.scale
    by_label = columns.label or meaning or columns.thumbs
    if columns.ranks and by_label:
        yield "Map the answers' ranks or their label, not both."
    ways = {
        "a label": by_label, "ranks": columns.ranks, "scores": columns.scores,
        "one_hot": columns.one_hot, "best": columns.best,
    }  # fmt: skip
    mapped = [way for way, value in ways.items() if value]
    if len(mapped) > 1:
        yield f"Map {mapped[0]} or {mapped[1]}, not both: each says which answer is better."
    if columns.wide and (columns.label or [way for way in mapped if way != "a label"]):
        yield "With wide the cells are the labels: map no label, ranks, scores, one_hot or best."
    if columns.position and columns.shown_first:
        yield "Map position or shown_first, not both."
    if columns.thumbs and (meaning or columns.gold):
        yield "columns.thumbs is of one answer; labels, label_is, scale and gold need two."
    yield from _ill_fitting_groups(columns)
    if columns.scale and columns.label_is:
        yield "Map scale or label_is, not both: each says what the label means."
    if columns.scale and columns.strength:
        yield "Map scale or strength, not both: the scale gives the strength."
    if isinstance(columns.scale, tuple) and len(
        {plain_label(scale_value(value)) for value in columns.scale}
    ) < max(2, len(columns.scale)):
        yield "columns.scale lists two values or more, each once."


def _ill_fitting_groups(columns: Columns) -> Iterator[str]:
    responses = columns.responses
    for option in ("ranks", "scores", "models", "position", "gold"):
        group = getattr(columns, option)
        if not group or (option == "gold" and not columns.ranks):
            continue
        if responses and type(group) is not type(responses):
            yield (
                f"columns.{option} is given in another way than columns.responses; give both as a "
                "list of columns, as a pattern, or as one column."
            )
        elif isinstance(responses, tuple) and isinstance(group, tuple):
            columns_of = cast("tuple[str, ...]", group)
            if responses and len(columns_of) != len(responses):
                yield (
                    f"{counted(len(columns_of), 'column')} of {option} "
                    f"{verb(len(columns_of), 'does', 'do')} not fit {len(responses)} of responses."
                )
    if columns.thumbs and (not isinstance(responses, tuple) or len(responses) != 1):
        yield "columns.thumbs needs one column of responses, as in responses: [completion]."
    if not isinstance(responses, tuple):
        return
    if len(responses) == 1 and not columns.scores and not columns.thumbs:
        yield "One column of responses needs scores, or a label that columns.thumbs explains."
    by_label = (columns.label or columns.wide) and not columns.label_is and not columns.thumbs
    if by_label and len(responses) not in (0, 2):
        yield "A label needs two columns of responses, and ranks two or more."
    if columns.one_hot and len(responses) not in (0, 2):
        yield "one_hot needs two columns of responses."
    if columns.shown_first and len(responses) not in (0, 2):
        yield "shown_first needs two columns of responses."


def _without_effect(columns: Columns) -> Iterator[str]:
    effects = {
        "better": (columns.better and not columns.scores, "without scores"),
        "tie_within": (columns.tie_within is not None and not columns.scores, "without scores"),
        "splits": (columns.splits and isinstance(columns.split, Constant), "on a constant split"),
    }
    for option, (idle, why) in effects.items():
        if idle:
            yield f"columns.{option} has no effect {why}; remove it."
    if columns.label_is == "model" and not columns.models:
        yield "columns.label_is: model needs columns.models, the models of the answers."
    if columns.label_is == "column" and isinstance(columns.responses, str):
        yield "columns.label_is: column needs one column an answer."
    if columns.tie_within is not None and not 0.0 <= columns.tie_within < float("inf"):
        yield f"columns.tie_within is a number from 0 up, not {columns.tie_within:g}."
    if columns.gold and (columns.scores or columns.one_hot or columns.best):
        yield "columns.gold needs a label or ranks, in whose words it is given."
    if columns.gold and not columns.ranks and not isinstance(columns.gold, str):
        yield "columns.gold is one column, in the words of the label."
