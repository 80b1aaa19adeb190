"""What people said about answers: prompts, responses, judgements and the comparisons in them.

Every record is frozen and checked when it is made, keeps its text verbatim, and converts to and
from a JSON object. Ids hash the NFC form of the text, so that two spellings of the same
characters meet; the text itself is never normalised.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from json.encoder import encode_basestring_ascii as _quoted
from math import isfinite
from operator import attrgetter
from typing import Any, Literal, get_args

SCHEMA_VERSION = 1

Role = Literal["system", "user", "assistant"]
Outcome = Literal["tie", "both_good", "both_bad", "unsure"]
AnnotatorKind = Literal["human", "human_aggregate", "model", "implicit"]
JudgementKind = Literal["ranking", "best_of", "rating", "binary"]
Split = Literal["train", "validation", "test"]

_ROLES = get_args(Role)
_OUTCOMES = get_args(Outcome)
_ANNOTATOR_KINDS = get_args(AnnotatorKind)
_KINDS = get_args(JudgementKind)
_SPLITS = get_args(Split)

Ranks = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. Raises ValueError for a bad role or text that is not Unicode."""

    role: Role
    content: str

    def __post_init__(self) -> None:
        if self.role not in _ROLES:
            raise ValueError(f"A message's role is one of {', '.join(_ROLES)}, not {self.role!r}.")
        if not isinstance(self.content, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"A message's content is text, not {type(self.content).__name__}.")
        if not self.content.isascii():
            _check_unicode(self.content, "A message")

    def to_json(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Message:
        return cls(role=data["role"], content=data["content"])


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is answered: one or more messages, the last one not the assistant's.

    Raises ValueError for no messages, a last message of the assistant, or a system message that
    is not the first.
    """

    messages: tuple[Message, ...]

    def __post_init__(self) -> None:
        if not self.messages:
            raise ValueError("A prompt needs at least one message.")
        if self.messages[-1].role == "assistant":
            raise ValueError("A prompt cannot end with an assistant message.")
        if any(message.role == "system" for message in self.messages[1:]):
            raise ValueError("Only the first message of a prompt can be a system message.")

    @classmethod
    def from_text(cls, text: str) -> Prompt:
        """The prompt of one user turn."""
        return cls((Message("user", text),))

    @property
    def text(self) -> str:
        """For display: a single user turn's content, else one "role: content" line a message."""
        return _display(self.messages, alone="user")

    @property
    def id(self) -> str:
        """16 hex digits of sha256 over the roles and the NFC form of the contents."""
        return _messages_id(self.messages)

    def to_json(self) -> dict[str, Any]:
        messages = _messages_to_json(self.messages)
        return {"schema_version": SCHEMA_VERSION, "prompt_id": self.id, "prompt": messages}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Prompt:
        """From any object with "schema_version" and "prompt": a prompt's, a judgement's, …"""
        _check_version(data)
        return cls(_messages_from_json(data["prompt"]))


@dataclass(frozen=True, slots=True)
class Response:
    """A completion: one assistant message, or several turns that end with the assistant's.

    `model` names who wrote it, if known; it is no part of the id. Raises ValueError for no
    messages, a last message that is not the assistant's, or a system message.
    """

    messages: tuple[Message, ...]
    model: str | None = None

    def __post_init__(self) -> None:
        if not self.messages:
            raise ValueError("A response needs at least one message.")
        if self.messages[-1].role != "assistant":
            raise ValueError("A response must end with an assistant message.")
        if any(message.role == "system" for message in self.messages):
            raise ValueError("A response cannot hold a system message.")

    @classmethod
    def from_text(cls, text: str, model: str | None = None) -> Response:
        """The response of one assistant turn."""
        return cls((Message("assistant", text),), model)

    @property
    def text(self) -> str:
        """For display: a single turn's content, else one "role: content" line a message."""
        return _display(self.messages, alone="assistant")

    @property
    def id(self) -> str:
        """16 hex digits of sha256 over the roles and the NFC form of the contents."""
        return _messages_id(self.messages)

    def to_json(self) -> dict[str, Any]:
        messages = _messages_to_json(self.messages)
        return {"response_id": self.id, "model": self.model, "messages": messages}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Response:
        return cls(_messages_from_json(data["messages"]), data.get("model"))


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt with the answer to imitate."""

    prompt: Prompt
    response: Response

    def to_json(self) -> dict[str, Any]:
        return {**self.prompt.to_json(), "response": self.response.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Demonstration:
        return cls(Prompt.from_json(data), Response.from_json(data["response"]))


@dataclass(frozen=True, slots=True)
class Source:
    """Where a record came from: rows count from 1 without the header, lines are physical."""

    format: str
    file: str
    row: int
    line: int

    def to_json(self) -> dict[str, str | int]:
        return {"format": self.format, "file": self.file, "row": self.row, "line": self.line}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Source:
        return cls(data["format"], data["file"], data["row"], data["line"])


@dataclass(frozen=True, slots=True)
class Comparison:
    """One decided pair of a judgement. `weight` is the judgement's, shared among its pairs."""

    prompt: Prompt
    chosen: Response
    rejected: Response
    weight: float
    strength: float | None
    judgement_id: str

    def __post_init__(self) -> None:
        _check_weight(self.weight)
        _check_strength(self.strength)

    def swapped(self) -> Comparison:
        """The opposite opinion: chosen and rejected exchanged."""
        return replace(self, chosen=self.rejected, rejected=self.chosen)

    def to_json(self) -> dict[str, Any]:
        return {
            **self.prompt.to_json(),
            "judgement_id": self.judgement_id,
            "chosen": self.chosen.to_json(),
            "rejected": self.rejected.to_json(),
            "weight": self.weight,
            "strength": self.strength,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Comparison:
        return cls(
            prompt=Prompt.from_json(data),
            chosen=Response.from_json(data["chosen"]),
            rejected=Response.from_json(data["rejected"]),
            weight=data["weight"],
            strength=data["strength"],
            judgement_id=data["judgement_id"],
        )


@dataclass(frozen=True, slots=True)
class Judgement:
    """One annotator's answer about K >= 1 responses to one prompt, under one criterion.

    `kind` is "ranking"; "best_of", where only the best is known and the others, all of rank 2, are
    not compared; "rating", which has a score for each response, whose order the ranks repeat; or
    "binary", a thumb up (score 1) or down (0) on one response. Only "rating" and "binary" may have
    K = 1, and then no rank.

    Raises ValueError for a K, ranks or scores that do not fit the kind, the responses or the
    outcome, a number out of its range, or a weight that is not a positive finite number.
    """

    prompt: Prompt
    responses: tuple[Response, ...]
    """In the order in which they were given; where each was shown is `position`."""
    ranks: Ranks
    """Aligned to `responses`: 1 is best, equal is a tie, None is not ranked (not: last)."""
    annotator: str | None = None
    outcome: Outcome | None = None
    """Why nobody won; with "unsure" no response is ranked."""
    strength: float | None = None
    """In [0, 1], 0 = barely better; never carries the direction."""
    weight: float = 1.0
    criterion: str = "overall"
    annotator_kind: AnnotatorKind = "human"
    comment: str | None = None
    source: Source | None = None
    kind: JudgementKind = "ranking"
    scores: tuple[float | None, ...] | None = None
    """Aligned to `responses`, as rated; higher is better, None is not rated."""
    scale: str | None = None
    """What `scores` or `strength` were given on, as in "0..4" or "-3..3"."""
    probability: float | None = None
    """Of the first of two responses being preferred (a soft label, Dawid-Skene's posterior)."""
    votes: int | None = None
    """How many annotators an aggregate stands for."""
    group: str | None = None
    """Joins the judgements of one ranking task, HIT, post or tree node."""
    position: tuple[int, ...] | None = None
    """Where each response was shown, 0 = first; None = unknown."""
    gold: Ranks | None = None
    """The expected ranks of a control item; such a judgement is no vote and never trained on."""
    duration: float | None = None
    """Seconds the annotator took."""
    created_at: str | None = None
    """ISO 8601."""
    split: Split | None = None
    """The side that the data's owner put it on."""
    raw: str | None = None
    """The row as it was read, as JSON, where the import was asked to keep it."""

    def __post_init__(self) -> None:
        k = len(self.responses)
        if self.kind not in _KINDS:
            raise ValueError(f"A kind is one of {', '.join(_KINDS)}, not {self.kind!r}.")
        if self.kind == "binary" and (k != 1 or self.scores not in ((0.0,), (1.0,))):
            raise ValueError("A binary judgement is of one response, with the score 0 or 1.")
        if self.kind == "rating" and self.scores is None:
            raise ValueError("A rating needs scores.")
        if k == 1 and self.kind in ("rating", "binary"):
            if self.ranks != (None,):
                raise ValueError("One response alone has no rank.")
        elif k < 2:
            raise ValueError(f"A judgement needs two responses or more, not {k}.")
        else:
            _check_ranks(self.ranks, k, self.outcome)
        if self.kind == "best_of" and sorted(self.ranks, key=str) != [1, *[2] * (k - 1)]:
            raise ValueError(f"A best-of has one rank 1 and else rank 2, not {list(self.ranks)}.")
        _check_strength(self.strength)
        _check_weight(self.weight)
        for text in (self.annotator, self.comment, self.criterion, self.group):
            if text is not None and not text.isascii():
                _check_unicode(text, "A judgement")
        if self.annotator_kind not in _ANNOTATOR_KINDS:
            allowed = ", ".join(_ANNOTATOR_KINDS)
            raise ValueError(f"annotator_kind is one of {allowed}, not {self.annotator_kind!r}.")
        if self.scores is not None:
            _check_scores(self.scores, k)
        if self.probability is not None and (k != 2 or not 0.0 <= self.probability <= 1.0):
            raise ValueError("A probability lies between 0 and 1 and is about two responses.")
        if self.position is not None and sorted(self.position) != list(range(k)):
            raise ValueError(f"{list(self.position)} are no places of {k} responses.")
        if self.gold is not None:
            _check_ranks(self.gold, k, None)
        if self.split is not None and self.split not in _SPLITS:
            raise ValueError(f"A split is one of {', '.join(_SPLITS)}, not {self.split!r}.")

    @property
    def item_id(self) -> str:
        """What was judged, whatever the order of the responses: reversed duplicates share it."""
        return _item_id(self.prompt.id, [response.id for response in self.responses])

    @property
    def id(self) -> str:
        """This annotator's judgement of this row; a permuted judgement keeps it."""
        return self._id(self.item_id)

    def _id(self, item_id: str) -> str:
        # The file's name without its folder: moving the data must not rename every judgement.
        file = self.source.file.replace("\\", "/").rpartition("/")[2] if self.source else None
        row = self.source.row if self.source else "null"
        annotator = _quoted(self.annotator) if self.annotator is not None else "null"
        file = _quoted(file) if file is not None else "null"
        return _hash(f'[{file}, {row}, "{item_id}", {annotator}, {_quoted(self.criterion)}]')

    @property
    def is_tie(self) -> bool:
        """Two responses or more, all ranked and all alike."""
        return len(self.ranks) > 1 and None not in self.ranks and len(set(self.ranks)) == 1

    @property
    def label(self) -> str:
        """The verdict in one word, for counting.

        The outcome if there is one; "first", "second" or "tie" of two responses; of more,
        "tie", "ranking", "ranking_with_ties" or "best_of"; of one, "good", "bad" or "rating".
        """
        if len(self.responses) == 1:
            if self.kind == "rating":
                return "rating"
            return "good" if self.scores == (1.0,) else "bad"
        if self.kind == "best_of" and len(self.responses) > 2:
            return "best_of"
        if self.outcome is not None or self.is_tie:
            return self.outcome or "tie"
        ranked = [rank for rank in self.ranks if rank is not None]
        if len(self.ranks) == 2:
            return "first" if ranked[0] < ranked[1] else "second"
        return "ranking" if len(set(ranked)) == len(ranked) else "ranking_with_ties"

    def permuted(self, order: Sequence[int]) -> Judgement:
        """The same judgement with response `order[i]` at place i.

        Raises ValueError if `order` is not a permutation of 0..K-1.
        """
        if sorted(order) != list(range(len(self.responses))):
            raise ValueError(f"{list(order)} is not an order of {len(self.responses)} responses.")
        turned = self.probability is not None and tuple(order) == (1, 0)
        return replace(
            self,
            responses=tuple(self.responses[i] for i in order),
            ranks=tuple(self.ranks[i] for i in order),
            scores=self.scores and tuple(self.scores[i] for i in order),
            position=self.position and tuple(self.position[i] for i in order),
            gold=self.gold and tuple(self.gold[i] for i in order),
            probability=1.0 - (self.probability or 0.0) if turned else self.probability,
        )

    def swapped(self) -> Judgement:
        """The same judgement of two responses, shown the other way round."""
        if len(self.responses) != 2:
            raise ValueError(f"Only two responses can be swapped, not {len(self.responses)}.")
        return self.permuted((1, 0))

    def ordered_pairs(self) -> tuple[tuple[int, int], ...]:
        """(better, worse) places of every two responses that are ranked, and not alike."""
        return tuple(
            (i, j)
            for i, rank in enumerate(self.ranks)
            for j, other in enumerate(self.ranks)
            if rank is not None and other is not None and rank < other
        )

    def comparisons(self) -> tuple[Comparison, ...]:
        """Every pair whose ranks differ, chosen first; empty for a tie.

        The weights add up to the judgement's own, so that a ranking of K counts once and not
        K(K-1)/2 times (InstructGPT, arXiv:2203.02155, eq. 1).
        """
        pairs = self.ordered_pairs()
        if not pairs:
            return ()
        weight, judgement_id = self.weight / len(pairs), self.id
        return tuple(
            Comparison(
                prompt=self.prompt,
                chosen=self.responses[best],
                rejected=self.responses[worst],
                weight=weight,
                strength=self.strength,
                judgement_id=judgement_id,
            )
            for best, worst in pairs
        )

    def to_json(self) -> dict[str, Any]:
        prompt = self.prompt.to_json()
        responses = [response.to_json() for response in self.responses]
        item_id = _item_id(prompt["prompt_id"], [response["response_id"] for response in responses])
        source = self.source
        return {
            **prompt,
            "judgement_id": self._id(item_id),
            "item_id": item_id,
            "responses": responses,
            "ranks": list(self.ranks),
            "outcome": self.outcome,
            "strength": self.strength,
            "weight": self.weight,
            "kind": self.kind,
            "criterion": self.criterion,
            "annotator_id": self.annotator,
            "annotator_kind": self.annotator_kind,
            "comment": self.comment,
            "source_format": source.format if source else None,
            "source_file": source.file if source else None,
            "source_row": source.row if source else None,
            "source_line": source.line if source else None,
            **self._rare_to_json(),
        }

    def _rare_to_json(self) -> dict[str, Any]:
        values = _rare_values(self)
        if values == _NO_RARE_VALUES:
            return {}
        found = {key: v for key, v in zip(_RARE, values, strict=True) if v is not None}
        for key in _LISTS:
            if key in found:
                found[key] = list(found[key])
        return found

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Judgement:
        """Raises ValueError for another schema version or a bad value, KeyError for a lost key."""
        source = None
        if data["source_format"] is not None:
            keys = ("format", "file", "row", "line")
            source = Source.from_json({key: data[f"source_{key}"] for key in keys})
        return cls(
            prompt=Prompt.from_json(data),
            responses=tuple(Response.from_json(response) for response in data["responses"]),
            ranks=tuple(data["ranks"]),
            annotator=data["annotator_id"],
            outcome=data["outcome"],
            strength=data["strength"],
            weight=data["weight"],
            criterion=data["criterion"],
            annotator_kind=data["annotator_kind"],
            comment=data["comment"],
            source=source,
            kind=data["kind"],
            **_rare_from_json(data),
        )


def _rare_from_json(data: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: data[key] for key in _RARE if data.get(key) is not None}
    for key in _LISTS:
        if key in found:
            found[key] = tuple(found[key])
    return found


_RARE = (
    "scores", "scale", "probability", "votes", "group", "position", "gold", "duration",
    "created_at", "split", "raw",
)  # fmt: skip
"""What most judgements lack: left out of the JSON where it is not known."""

_LISTS = ("scores", "position", "gold")
_rare_values = attrgetter(*_RARE)
_NO_RARE_VALUES = (None,) * len(_RARE)


def _check_unicode(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # JSON can spell half an emoji ("\ud83d"); no file and no tokenizer can hold it.
        raise ValueError(
            f"{what} holds half of a surrogate pair at character {error.start}."
        ) from None


def _check_ranks(ranks: tuple[int | None, ...], k: int, outcome: Outcome | None) -> None:
    if len(ranks) != k:
        raise ValueError(f"{k} responses need {k} ranks, not {len(ranks)}.")
    ranked = [rank for rank in ranks if rank is not None]
    for rank in ranked:
        # True and 1.0 equal 1 but would be written back as something else.
        if type(rank) is not int or rank < 1:
            raise ValueError(f"A rank is a whole number from 1 (best) up, not {rank!r}.")
    if outcome is not None and outcome not in _OUTCOMES:
        raise ValueError(f"An outcome is one of {', '.join(_OUTCOMES)}, not {outcome!r}.")
    if outcome == "unsure":
        if ranked:
            raise ValueError("An unsure judgement ranks no response.")
    elif len(ranked) < 2:
        raise ValueError(f"A judgement ranks two responses or more, not {len(ranked)}.")
    elif outcome is not None and len(set(ranked)) > 1:
        raise ValueError(f"The outcome {outcome!r} needs equal ranks, not {list(ranks)}.")


def _check_scores(scores: tuple[float | None, ...], k: int) -> None:
    if len(scores) != k:
        raise ValueError(f"{k} responses need {k} scores, not {len(scores)}.")
    for score in scores:
        if score is not None and not isfinite(score):
            raise ValueError(f"A score is a finite number, not {score!r}.")


def _check_strength(strength: float | None) -> None:
    if strength is not None and not 0.0 <= strength <= 1.0:
        raise ValueError(f"A strength lies between 0 and 1, not at {strength!r}.")


def _check_weight(weight: float) -> None:
    if not 0.0 < weight < float("inf"):
        raise ValueError(f"A weight is a positive finite number, not {weight!r}.")


def _check_version(data: Mapping[str, Any]) -> None:
    version = data.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(f"The record has schema_version {version!r}; this reads {SCHEMA_VERSION}.")


def _display(messages: tuple[Message, ...], alone: Role) -> str:
    if len(messages) == 1 and messages[0].role == alone:
        return messages[0].content
    return "\n".join(f"{message.role}: {message.content}" for message in messages)


def _messages_to_json(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [message.to_json() for message in messages]


def _messages_from_json(data: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    return tuple(Message.from_json(message) for message in data)


# Ids hash the text that json.dumps would give, put together by hand: this is most of an import's
# work, and the encoder costs ten times as much.


def _messages_id(messages: tuple[Message, ...]) -> str:
    turns = [f'["{message.role}", {_quoted(_nfc(message.content))}]' for message in messages]
    return _hash(f"[{', '.join(turns)}]")


def _item_id(prompt_id: str, response_ids: Sequence[str]) -> str:
    ids = '", "'.join(sorted(response_ids))
    return _hash(f'["{prompt_id}", ["{ids}"]]')


def _nfc(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
