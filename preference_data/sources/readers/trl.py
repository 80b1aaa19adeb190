"""The rows that trainers read: chosen and rejected answers, messages, prompts, plain text.

https://huggingface.co/docs/trl/dataset_formats. Each value is text or a list of messages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

from preference_data.quarantine import Rejected, RowFault
from preference_data.records import Demonstration, Judgement, Message, Prompt
from preference_data.sources.carriers.files import Reading
from preference_data.sources.carriers.rows import Row, convert_rows
from preference_data.sources.cells import messages_of, prompt_of, response_of, text_of
from preference_data.sources.columns.headers import check_columns
from preference_data.sources.readers import hh
from preference_data.sources.readers.conversations import check_ending, compare, last_answer
from preference_data.sources.readers.ratings import number_of


def recognises(values: Mapping[str, object]) -> bool:
    """A chosen and a rejected answer, which are no transcripts of HH."""
    return "chosen" in values and "rejected" in values and not hh.recognises(values)


def read_pairs(
    rows: Iterator[Row | Rejected], reading: Reading
) -> Iterator[tuple[Judgement, ...] | Rejected]:
    """One judgement a row, as `judgement` makes it; notes a column that is left alone."""

    def convert(row: Row) -> tuple[Judgement, ...]:
        if "margin" in row.values:
            reading.note(
                f"{row.file} has a column margin, which is not read: what it was given on, and so "
                "which strength it is, is not known."
            )
        return (judgement(row),)

    return convert_rows(rows, convert)


def judgement(row: Row) -> Judgement:
    """From `{"prompt", "chosen", "rejected"}`; the chosen answer is the first response.

    Where chosen and rejected are whole conversations (they open with the user or the system, as
    in UltraFeedback), their shared turns are the prompt and the prompt column is not needed.
    `score_chosen` and `score_rejected` are kept. Columns of other names are a table's, whose
    mapping says `responses: [good, bad]` and `best: first`.
    """
    check_columns(row, "chosen", "rejected")
    chosen, rejected = row.values.get("chosen"), row.values.get("rejected")
    if _is_conversation(chosen) and _is_conversation(rejected):
        prompt, best, worst = compare(
            messages_of(cast(list[object], chosen), "chosen"),
            messages_of(cast(list[object], rejected), "rejected"),
        )
    else:
        if "prompt" not in row.values:
            raise RowFault(
                "no_prompt",
                "there is no column prompt, and chosen and rejected are no whole conversations. "
                "Add the prompt (characters that two answers share are not taken for it), or name "
                "its column in columns: {prompt: …, responses: [chosen, rejected], best: first}.",
            )
        prompt = prompt_of(row.values, "prompt")
        best, worst = response_of(row.values, "chosen"), response_of(row.values, "rejected")
        if best == worst:
            raise RowFault("identical_responses", "chosen and rejected are identical.")
    scores = number_of(row.values, "score_chosen"), number_of(row.values, "score_rejected")
    return Judgement(
        prompt,
        (best, worst),
        (1, 2),
        scores=None if scores == (None, None) else scores,
        source=row.source("trl"),
    )


def demonstration(row: Row) -> Demonstration:
    """From `{"prompt", "completion"}` or `{"messages"}`, whose last turn is the answer."""
    if "messages" not in row.values:
        check_columns(row, "prompt", "completion")
        prompt = prompt_of(row.values, "prompt")
        return Demonstration(prompt, response_of(row.values, "completion"))
    messages = row.values["messages"]
    if not isinstance(messages, list):
        raise RowFault("bad_messages", "messages is not a list of messages.")
    turns = messages_of(cast(list[object], messages), "messages")
    check_ending(turns, "messages")
    return Demonstration(*last_answer(turns))


def prompt(row: Row) -> Prompt:
    """From `{"prompt"}`; other columns are left alone."""
    check_columns(row, "prompt")
    return prompt_of(row.values, "prompt")


def text(row: Row) -> str:
    """From `{"text"}`."""
    check_columns(row, "text")
    document = text_of(row.values, "text")
    if not document.strip():
        raise RowFault("empty_text", "text is empty.")
    return Message("user", document).content  # refuses text that no file can hold


def _is_conversation(value: object) -> bool:
    if not isinstance(value, list) or not value:
        return False
    first = cast(list[object], value)[0]
    return isinstance(first, dict) and cast(dict[str, object], first).get("role") != "assistant"
