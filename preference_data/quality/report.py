"""What the quality of judgements is told in: the report, its sections and its findings."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from preference_data.records import SCHEMA_VERSION
from preference_data.votes.agreement import Agreement, Interval
from preference_data.votes.annotators import AnnotatorQuality

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to act on. An error spoils training or its measure; a warning biases it."""

    level: Level
    sentence: str
    remedy: str
    number: float
    """The count or share that the sentence is about."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of the file's rows."""

    source: str
    format: str
    rows_in: int
    rows_out: int
    faults: dict[str, int]
    """Rows that could not be used, by reason."""
    set_aside: dict[str, int]
    """Rows of which the file says that they do not count, by reason."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How many of what. All but the first two are without control items."""

    judgements: int
    controls: int
    prompts: int
    responses: int
    items: int
    """Different sets of responses to a prompt."""
    annotators: int
    decided: int
    """Judgements that put one response above another."""
    tie_share: float | None
    """Of the judgements that rank two responses or more: those that rank all alike."""
    by_label: dict[str, int]
    by_k: dict[str, int]
    by_kind: dict[str, int]
    by_criterion: dict[str, int]
    by_annotator_kind: dict[str, int]
    by_split: dict[str, int]


@dataclass(frozen=True, slots=True)
class PositionBias:
    """How often the response that was shown first wins."""

    judgements: int
    """Decided ones whose order is known."""
    known: bool
    """The file says where each response was shown; else the order of the responses stands in."""
    first_wins: Interval | None
    without_order: dict[str, int]
    """Decided judgements whose order is the verdict's, by format: they tell nothing of position."""
    fixed_models: list[tuple[str, str]]
    """Pairs of models of which the first is always shown first: model and position are one."""


@dataclass(frozen=True, slots=True)
class LengthBucket:
    """Judgements in which the longer response has `low` to `high` times the characters."""

    low: float
    high: float | None
    judgements: float
    longer_wins: Interval


@dataclass(frozen=True, slots=True)
class LengthBias:
    """How often the longer response wins, in characters. Judgements are shared by their pairs."""

    judgements: float
    """That decide between responses of different length."""
    longer_wins: Interval
    correlation: float
    """Of the verdict with the log ratio of the lengths, each pair taken both ways round."""
    predictor_accuracy: Interval | None
    """Held-out, of a logistic predictor that sees only the two lengths; folds by prompt."""
    buckets: list[LengthBucket]


@dataclass(frozen=True, slots=True)
class Repeats:
    """What was judged more than once, and what does not fit together."""

    again: int
    """Judgements by an annotator of an item that the same annotator had judged before."""
    reversed: int
    """Of these, with the responses in another order than at first."""
    contradictions: int
    """Of these, with two responses the other way round than at first."""
    unnamed_again: int
    """Judgements without an annotator that repeat the verdict of another one on the item."""
    shared_items: int
    """Items judged by two named annotators or more."""
    opposed_items: int
    """Of these, with two responses that two annotators put the other way round."""
    identical: int
    """Judgements that decide between responses of the same text."""
    triangles: int
    """Three responses to one prompt, all three pairs decided by a majority."""
    cyclic_triangles: int
    """Of these, with A above B, B above C and C above A."""
    cyclic_prompts: int
    """Prompts with a cycle of any length."""


@dataclass(frozen=True, slots=True)
class ModelPair:
    """Two models over the pairs that compare them; wins are the first one's."""

    first: str
    second: str
    wins: int
    losses: int
    ties: int
    win_rate: Interval | None
    """Of the decided pairs."""


@dataclass(frozen=True, slots=True)
class SplitLeaks:
    """What keeps a held-out side from being unseen. An opening is a prompt's first user turn."""

    openings: int
    near_duplicates: int
    """Openings that say almost the same as another one."""
    clusters: int
    """Groups of such openings."""
    shared: int | None
    """Openings on both of the sides that the data's owner gave; None if it gave none."""
    shared_nearly: int | None
    """Groups of near duplicates on both sides, beyond those."""
    held_out_judgements: int
    """Held-out judgements of either sort."""


@dataclass(frozen=True, slots=True)
class Languages:
    """Shares by ISO 639 code, of at most 2,000 different texts of each sort, evenly drawn."""

    prompts: dict[str, float]
    """Of the openings."""
    responses: dict[str, float]


@dataclass(frozen=True, slots=True)
class PersonalData:
    """What looks like personal data or a secret, in prompts, responses and comments."""

    found: dict[str, int]
    """Different texts that hold it, by kind."""
    judgements: int
    """Judgements with any such text."""
    annotators: dict[str, int]
    """Annotators whose very name is some, by kind."""


@dataclass(frozen=True, slots=True)
class Truncation:
    """What does not fit into the model's length; training leaves such judgements out."""

    max_length: int
    judgements: int
    too_long: int
    """Judgements with a conversation longer than `max_length` tokens."""
    answer_lost: int
    """Of these, with a prompt that alone fills the length: nothing of the answer would be left."""
    not_rendered: int
    """Judgements that the tokenizer's template refuses."""
    longest: int
    enough_for_99: int
    """The shortest length that fits 99 % of the judgements, in tokens."""


@dataclass(frozen=True, slots=True)
class QualityReport:
    """All of it; what the data cannot tell is None or empty."""

    folder: str
    imported: Imported | None
    counts: Counts
    agreement: Agreement | None
    annotators: list[AnnotatorQuality]
    position: PositionBias
    length: LengthBias | None
    repeats: Repeats
    models: list[ModelPair]
    leaks: SplitLeaks
    languages: Languages
    personal_data: PersonalData
    truncation: Truncation | None
    findings: list[Finding]

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}
