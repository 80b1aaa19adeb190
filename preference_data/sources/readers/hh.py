"""Anthropic's HH: `{"chosen", "rejected"}`, two whole transcripts as text.

https://github.com/anthropics/hh-rlhf. The transcripts are dirtier than they look: of 8,552 pairs,
36 are identical, 11 end in an empty answer, 2 not with the assistant, and 19 part before the
last turn.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from preference_data.quarantine import RowFault
from preference_data.records import Demonstration, Judgement, Message, Prompt
from preference_data.sources.carriers.rows import Row
from preference_data.sources.cells import text_of
from preference_data.sources.columns.headers import check_columns
from preference_data.sources.readers.conversations import Turns, check_ending, compare, last_answer

_TURN = re.compile(r"\n\n(Human|Assistant): ?")


def recognises(values: Mapping[str, object]) -> bool:
    """A chosen transcript that opens with the human, and a rejected one."""
    chosen = values.get("chosen")
    return "rejected" in values and isinstance(chosen, str) and chosen.startswith("\n\nHuman:")


def judgement(row: Row) -> Judgement:
    """The chosen tail is the first response."""
    prompt, chosen, rejected = compare(_turns(row, "chosen"), _turns(row, "rejected"))
    return Judgement(prompt, (chosen, rejected), (1, 2), source=row.source("hh"))


def demonstration(row: Row) -> Demonstration:
    """The chosen transcript's last answer, after everything before it."""
    return Demonstration(*last_answer(_answered(row)))


def prompt(row: Row) -> Prompt:
    """The chosen transcript up to its last answer."""
    return last_answer(_answered(row))[0]


def text(row: Row) -> str:
    """The chosen transcript as it stands."""
    _answered(row)
    return text_of(row.values, "chosen")


def _answered(row: Row) -> Turns:
    turns = _turns(row, "chosen")
    check_ending(turns, "chosen")
    return turns


def _turns(row: Row, name: str) -> Turns:
    check_columns(row, name)
    before, *parts = _TURN.split(text_of(row.values, name))
    if before or not parts or parts[0] != "Human":
        raise RowFault("starts_without_human", f"{name} does not start with a Human turn.")
    return tuple(
        Message("user" if speaker == "Human" else "assistant", words)
        for speaker, words in zip(parts[::2], parts[1::2], strict=True)
    )
