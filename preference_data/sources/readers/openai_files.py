"""OpenAI's files: comparisons and ratings of summaries, and its preference fine-tuning format.

https://github.com/openai/summarize-from-feedback#human-feedback-data and
https://platform.openai.com/docs/guides/direct-preference-optimization.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

from preference_data.quarantine import Rejected, RowFault, SetAside
from preference_data.records import Judgement, Prompt, Response, Split
from preference_data.sources.carriers.files import Reading
from preference_data.sources.carriers.rows import Row, convert_rows
from preference_data.sources.cells import prompt_of, response_of, short_text_of, text_of
from preference_data.sources.readers.pairs import ranks_of, response_by, verdict_of
from preference_data.sources.readers.ratings import number_of

_SPLITS: dict[str | None, Split] = {
    "train": "train",
    "valid1": "validation",
    "valid2": "validation",
    "test": "test",
}
_AXES = ("overall", "accuracy", "coverage", "coherence")


def recognises_summaries(values: Mapping[str, object]) -> bool:
    """What was summarised, two summaries and the choice."""
    return values.keys() >= {"info", "summaries", "choice"}


def recognises_summary_ratings(values: Mapping[str, object]) -> bool:
    """What was summarised and one summary, with its axes."""
    summary = values.get("summary")
    return "info" in values and isinstance(summary, dict) and "axes" in summary


def recognises_preferences(values: Mapping[str, object]) -> bool:
    """The input and the two outputs."""
    return values.keys() >= {"input", "preferred_output", "non_preferred_output"}


def summary_judgement(row: Row) -> Judgement:
    """From `{"info", "summaries", "choice"}`; `choice` is the index of the better summary.

    The confidence, from 1 to 9, is not read: whether it says how sure the choice is, or where it
    stands between the two, is documented nowhere.
    """
    values = row.values
    summaries = values.get("summaries")
    if not isinstance(summaries, list) or len(cast(list[object], summaries)) != 2:
        raise RowFault("wrong_type", "summaries is not a list of two summaries.")
    first, second = (_object(summary, "summaries") for summary in cast(list[object], summaries))
    responses = (_summary(first), _summary(second))
    ranks, outcome = ranks_of(verdict_of(values, "choice", {0: "first", 1: "second"}), responses)
    prompt, post = _post(values)
    return Judgement(
        prompt=prompt,
        responses=responses,
        ranks=ranks,
        annotator=short_text_of(values, "worker"),
        outcome=outcome,
        group=post,
        split=_SPLITS.get(short_text_of(values, "split")),
        source=row.source("openai_summaries"),
    )


def summary_ratings(row: Row) -> tuple[Judgement, ...]:
    """From `{"info", "summary"}`: a rating from 1 to 7 for each axis that was rated.

    Raises SetAside where none was.
    """
    values = row.values
    summary = _object(values.get("summary"), "summary")
    axes = _object(summary.get("axes"), "summary.axes")
    ratings = {axis: number_of(axes, axis) for axis in _AXES}
    if all(rating is None for rating in ratings.values()):
        raise SetAside("no_rating", "no axis of the summary is rated.")
    for axis, rating in ratings.items():
        if rating is not None and not 1 <= rating <= 7:
            raise RowFault("rating_invalid", f"{axis} is {rating:g}, not a rating from 1 to 7.")
    response = _summary(summary)
    prompt, post = _post(values)
    return tuple(
        Judgement(
            prompt=prompt,
            responses=(response,),
            ranks=(None,),
            annotator=short_text_of(values, "worker"),
            criterion=axis,
            comment=short_text_of(summary, "note"),
            kind="rating",
            scores=(rating,),
            scale="1..7",
            group=post,
            split=_SPLITS.get(short_text_of(values, "split")),
            source=row.source("openai_summary_ratings"),
        )
        for axis, rating in ratings.items()
        if rating is not None
    )


def read_preferences(
    rows: Iterator[Row | Rejected], reading: Reading
) -> Iterator[tuple[Judgement, ...] | Rejected]:
    """`{"input": {"messages"}, "preferred_output", "non_preferred_output"}`, one a row."""
    return convert_rows(rows, lambda row: (_preference(row, reading),))


def _preference(row: Row, reading: Reading) -> Judgement:
    asked = _object(row.values.get("input"), "input")
    if asked.get("tools"):
        reading.note(f"{row.file} offers tools to the model; their definitions are not read.")
    prompt = prompt_of(asked, "messages")
    responses = (
        response_of(row.values, "preferred_output"),
        response_of(row.values, "non_preferred_output"),
    )
    ranks, _ = ranks_of("first", responses)
    return Judgement(prompt, responses, ranks, source=row.source("openai_preferences"))


def _post(values: Mapping[str, object]) -> tuple[Prompt, str | None]:
    """The request for a summary, as it was put to the models, and the id of the post."""
    info = _object(values.get("info"), "info")
    title = text_of(info, "title")
    body = "article" if info.get("article") is not None else "post"
    text = text_of(info, body)
    if not text.strip():
        raise RowFault("empty_prompt", f"info.{body} is empty.")
    asked = f"TITLE: {title}\n\n{body.upper()}: {text}\n\nTL;DR:"
    if body == "post":
        asked = f"SUBREDDIT: r/{text_of(info, 'subreddit')}\n\n{asked}"
    return Prompt.from_text(asked), short_text_of(info, "id")


def _summary(summary: Mapping[str, object]) -> Response:
    return response_by(summary, "text", short_text_of(summary, "policy"))


def _object(value: object, name: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise RowFault("wrong_type", f"{name} is {value!r:.60}, not a JSON object.")
    return cast(dict[str, object], value)
