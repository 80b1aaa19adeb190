"""What a stage reads from imported data: a richer kind serves every poorer one.

Judgements hold prompts and answers, so they also serve as prompts, as demonstrations (the answers
ranked best) and as text; what a step asks for need not be what was imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from preference_data.near_duplicates import Clusters
from preference_data.quarantine import DataError
from preference_data.records import Demonstration, Judgement, Message, Prompt
from preference_data.sources.store import (
    AGGREGATED_FILE,
    RECORD_FILES,
    read_demonstrations,
    read_judgements,
    read_prompts,
    read_text,
    whole_or_absent,
)
from preference_data.splits import Side, given_sides
from preference_data.votes.aggregate import Method, aggregate


def judgements(folder: Path) -> list[Judgement]:
    """The judgements of two answers or more that are no control items; where the folder was
    aggregated, one for each item.

    Raises DataError if the folder holds no preferences.
    """
    _require(folder, "preferences")
    aggregated = folder / AGGREGATED_FILE
    return [
        judgement
        for judgement in read_judgements(aggregated if aggregated.is_file() else folder)
        if len(judgement.responses) > 1 and judgement.gold is None
    ]


def write_aggregated(folder: Path, method: Method) -> None:
    """One judgement for each item beside those of an imported folder, for `judgements` to read.

    Raises DataError if no judgement takes part.
    """
    found = aggregate(list(read_judgements(folder)), method)
    if not found:
        raise DataError(f"{folder}: there is nothing to aggregate, no two answers were compared.")
    with whole_or_absent(folder / AGGREGATED_FILE) as stream:
        for judgement in found:
            stream.write(orjson.dumps(judgement.to_json()) + b"\n")


def given(folder: Path, clusters: Clusters | None = None) -> dict[str, Side]:
    """The sides on which the data's owner put its prompts, for the split of whatever is read."""
    if not _holds(folder, "preferences"):
        return {}
    return given_sides(read_judgements(folder), clusters)


def demonstrations(folder: Path) -> list[Demonstration]:
    """Demonstrations, or the best-ranked answer of every judgement that ranks one alone."""
    if _holds(folder, "demonstrations"):
        return list(read_demonstrations(folder))
    _require(folder, "preferences")
    return [
        Demonstration(judgement.prompt, judgement.responses[judgement.ranks.index(1)])
        for judgement in read_judgements(folder)
        if judgement.ranks.count(1) == 1
    ]


def prompts(folder: Path) -> list[Prompt]:
    """The different prompts, in the order they first come up."""
    found = dict.fromkeys(_prompts(folder))
    return list(found)


def _prompts(folder: Path) -> Iterator[Prompt]:
    if _holds(folder, "prompts"):
        yield from read_prompts(folder)
    elif _holds(folder, "demonstrations"):
        yield from (row.prompt for row in read_demonstrations(folder))
    else:
        _require(folder, "preferences")
        yield from (row.prompt for row in read_judgements(folder))


def text(folder: Path, training: Callable[[Iterable[Any]], Iterable[Any]] = iter) -> list[str]:
    """Documents: plain text, or the whole conversations of anything else; of judgements each one
    once, however many were made about it.

    `training` picks the records of the training side, so that no step reads what another holds out.
    """
    if _holds(folder, "text"):
        return list(read_text(folder))
    if _holds(folder, "preferences"):
        judged = (
            _joined(*row.prompt.messages, *response.messages)
            for row in training(read_judgements(folder))
            for response in row.responses
        )
        return list(dict.fromkeys(judged))
    if _holds(folder, "demonstrations"):
        return [
            _joined(*row.prompt.messages, *row.response.messages)
            for row in training(read_demonstrations(folder))
        ]
    _require(folder, "prompts")
    return [_joined(*prompt.messages) for prompt in training(read_prompts(folder))]


def _joined(*messages: Message) -> str:
    return "\n\n".join(message.content for message in messages)


def _holds(folder: Path, kind: str) -> bool:
    return (folder / RECORD_FILES[kind]).is_file()


def _require(folder: Path, kind: str) -> None:
    if not _holds(folder, kind):
        raise DataError(f"{folder} holds no {kind}.")
