"""Battles of two models: Chatbot Arena's tables and conversations, and MT-bench's judgements.

https://huggingface.co/datasets/lmarena-ai/arena-human-preference-55k has one row a battle, with
the turns as JSON arrays in text cells; in lmsys/chatbot_arena_conversations and
lmsys/mt_bench_human_judgments the two conversations are lists of messages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import cast

from preference_data.counts import counted
from preference_data.quarantine import DataError, Rejected, RowFault, SetAside
from preference_data.records import AnnotatorKind, Judgement, Message, Prompt, Response
from preference_data.sources.carriers.files import Reading
from preference_data.sources.carriers.rows import Row, convert_rows
from preference_data.sources.cells import messages_of, short_text_of
from preference_data.sources.columns.mapping import Verdict
from preference_data.sources.readers.conversations import Turns, check_ending
from preference_data.sources.readers.pairs import ranks_of
from preference_data.sources.readers.ratings import number_of

_TEXTS = {"prompt", "response_a", "response_b"}
_WINNERS: dict[str, Verdict] = {
    "winner_model_a": "first",
    "winner_model_b": "second",
    "winner_tie": "tie",
}
_VERDICTS: dict[str, Verdict] = {
    "model_a": "first",
    "model_b": "second",
    "tie": "tie",
    "tie (bothbad)": "both_bad",
    # A model that judged both orders and contradicted itself; its authors count it as a tie.
    "tie (inconsistent)": "tie",
}
_HALF_A_PAIR = re.compile("[\ud800-\udfff]")


def recognises_table(values: Mapping[str, object]) -> bool:
    """The three columns of winners; or a test file, which has only an id and arrays of turns."""
    if not values.keys() >= _TEXTS:
        return False
    if values.keys() >= _WINNERS.keys():
        return True
    cells = [values[name] for name in _TEXTS]
    arrays = all(isinstance(cell, str) and cell.startswith("[") for cell in cells)
    return arrays and values.keys() == _TEXTS | {"id"}


def recognises_conversations(values: Mapping[str, object]) -> bool:
    """Two conversations, a winner and the time of the vote."""
    return _are_battles(values) and "tstamp" in values


def recognises_mt_bench(values: Mapping[str, object]) -> bool:
    """Two conversations, a winner, a judge and the turn that is judged, but no time."""
    named = "judge" in values and "turn" in values
    return _are_battles(values) and named and "tstamp" not in values


def read_table(
    rows: Iterator[Row | Rejected], reading: Reading
) -> Iterator[tuple[Judgement, ...] | Rejected]:
    """`id, model_a, model_b, prompt, response_a, response_b, winner_model_a, …`, one a row.

    Raises DataError for a file without the winners.
    """
    repair = _Repair(reading)
    return convert_rows(rows, lambda row: (_table_judgement(row, repair),))


def conversation_judgement(row: Row) -> Judgement:
    """A visitor's vote on two whole conversations."""
    values = row.values
    turns_a, turns_b = _conversations(values)
    prompt, responses = _parted(turns_a, turns_b, values)
    ranks, outcome = ranks_of(_winner(values), responses)
    return Judgement(
        prompt=prompt,
        responses=responses,
        ranks=ranks,
        annotator=short_text_of(values, "judge"),
        outcome=outcome,
        position=(0, 1),
        created_at=_moment(values, "tstamp"),
        source=row.source("arena_conversations"),
    )


def mt_bench_judgement(row: Row) -> Judgement:
    """An expert's judgement, or a model's, on the first exchange (turn 1) or on both (turn 2)."""
    values = row.values
    turn = number_of(values, "turn")
    if turn not in (1, 2):
        raise RowFault("turn_unknown", f"turn is {values.get('turn')!r:.60}, not 1 or 2.")
    turns_a, turns_b = _conversations(values)
    if turn == 1:
        turns_a, turns_b = _first_exchange(turns_a), _first_exchange(turns_b)
    prompt, responses = _parted(turns_a, turns_b, values)
    ranks, outcome = ranks_of(_winner(values), responses)
    judge = short_text_of(values, "judge")
    kind: AnnotatorKind = "model" if judge and judge.startswith("gpt") else "human"
    return Judgement(
        prompt=prompt,
        responses=responses,
        ranks=ranks,
        annotator=judge,
        annotator_kind=kind,
        outcome=outcome,
        group=short_text_of(values, "question_id"),
        source=row.source("mt_bench"),
    )


class _Repair:
    """Replaces halves of surrogate pairs in JSON cells, where about 1 % of the rows have some.

    No file can hold them; the report says how many there were.
    """

    def __init__(self, reading: Reading) -> None:
        self._notes = reading.notes
        self._halves = 0
        self._sentence = ""

    def whole(self, text: str) -> str:
        text, halves = _HALF_A_PAIR.subn("\ufffd", text)
        if halves:
            self._halves += halves
            self._report()
        return text

    def _report(self) -> None:
        # In the place of the last count: nobody knows which one will be the final one.
        if self._sentence in self._notes:
            self._notes.remove(self._sentence)
        self._sentence = f"Halves of surrogate pairs were replaced by U+FFFD: {self._halves}."
        self._notes.append(self._sentence)


def _table_judgement(row: Row, repair: _Repair) -> Judgement:
    values = row.values
    missing = [name for name in _WINNERS if name not in values]
    if missing:
        raise DataError(
            f"{row.file} has no column {', '.join(missing)}: it holds no votes, as a test file. "
            "Read the training file."
        )
    questions = _cell_turns(values, "prompt", repair)
    if not questions or not all(question.strip() for question in questions):
        raise RowFault("empty_prompt", "a turn of prompt is empty.")
    turns_a = _alternating(questions, values, "response_a", repair)
    turns_b = _alternating(questions, values, "response_b", repair)
    prompt, responses = _parted(turns_a, turns_b, values)
    ranks, outcome = ranks_of(_one_hot(values), responses)
    return Judgement(
        prompt, responses, ranks, outcome=outcome, position=(0, 1), source=row.source("arena")
    )


def _cell_turns(values: Mapping[str, object], name: str, repair: _Repair) -> list[str]:
    """The texts of a JSON array; null is a turn in which nothing was said."""
    cell = values.get(name)
    try:
        turns = json.loads(cell) if isinstance(cell, str) else cell
    except (ValueError, RecursionError):
        turns = None
    if not isinstance(turns, list):
        raise RowFault("json_invalid", f"{name} is {cell!r:.60}, not a JSON array of turns.")
    texts = ["" if turn is None else turn for turn in cast(list[object], turns)]
    if not all(isinstance(text, str) for text in texts):
        raise RowFault("wrong_type", f"{name} holds a turn that is neither text nor null.")
    return [repair.whole(text) for text in cast(list[str], texts)]


def _alternating(
    questions: list[str], values: Mapping[str, object], name: str, repair: _Repair
) -> Turns:
    answers = _cell_turns(values, name, repair)
    if len(answers) != len(questions):
        raise RowFault(
            "turns_differ",
            f"prompt has {counted(len(questions), 'turn')} and {name} {len(answers)}.",
        )
    turns: list[Message] = []
    for question, answer in zip(questions, answers, strict=True):
        turns += [Message("user", question), Message("assistant", answer)]
    check_ending(tuple(turns), name)
    return tuple(turns)


def _one_hot(values: Mapping[str, object]) -> Verdict:
    marks = {name: number_of(values, name) for name in _WINNERS}
    won = [name for name, mark in marks.items() if mark == 1]
    if len(won) != 1 or any(mark not in (0, 1) for mark in marks.values()):
        shown = ", ".join(f"{name} is {values[name]!r}" for name in _WINNERS)
        raise RowFault("label_unknown", f"{shown}: one of them must be 1 and the others 0.")
    return _WINNERS[won[0]]


def _are_battles(values: Mapping[str, object]) -> bool:
    conversations = (values.get("conversation_a"), values.get("conversation_b"))
    return "winner" in values and all(isinstance(turns, list) for turns in conversations)


def _conversations(values: Mapping[str, object]) -> tuple[Turns, Turns]:
    found: list[Turns] = []
    for name in ("conversation_a", "conversation_b"):
        conversation = values.get(name)
        if not isinstance(conversation, list):
            raise RowFault("bad_messages", f"{name} is not a list of messages.")
        found.append(messages_of(cast(list[object], conversation), name))
    return found[0], found[1]


def _first_exchange(turns: Turns) -> Turns:
    roles = [message.role for message in turns]
    return turns[: roles.index("assistant") + 1] if "assistant" in roles else turns


def _parted(
    turns_a: Turns, turns_b: Turns, values: Mapping[str, object]
) -> tuple[Prompt, tuple[Response, Response]]:
    """The turns that both share as the prompt, but never an answer, however alike."""
    check_ending(turns_a, "the conversation with model_a")
    check_ending(turns_b, "the conversation with model_b")
    last = min(len(turns_a), len(turns_b)) - 1
    shared = 0
    while shared < last and turns_a[shared] == turns_b[shared]:
        shared += 1
    while shared and turns_a[shared - 1].role == "assistant":
        shared -= 1
    if not shared:
        raise RowFault("no_shared_prompt", "the two conversations share no prompt.")
    model_a, model_b = short_text_of(values, "model_a"), short_text_of(values, "model_b")
    responses = (Response(turns_a[shared:], model_a), Response(turns_b[shared:], model_b))
    return Prompt(turns_a[:shared]), responses


def _winner(values: Mapping[str, object]) -> Verdict:
    winner = short_text_of(values, "winner")
    if winner is None:
        raise RowFault("label_missing", "winner is empty.")
    if winner == "error":
        raise SetAside("no_verdict", "winner is 'error': the judge's answer could not be read.")
    if winner not in _VERDICTS:
        allowed = ", ".join(_VERDICTS)
        raise RowFault("label_unknown", f"winner is {winner!r:.60}, not one of {allowed}.")
    return _VERDICTS[winner]


def _moment(values: Mapping[str, object], name: str) -> str | None:
    """Seconds since 1970 as ISO 8601."""
    seconds = number_of(values, name)
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        raise RowFault("number_invalid", f"{name} is {seconds:g}, which is no time.") from None
