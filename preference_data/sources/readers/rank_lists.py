"""Published rankings of many answers: ImageReward's, Nectar's and NeMo-RL's.

ImageReward: `{"prompt", "generations": [...], "ranking": [1, 3, 2]}`, 1 = best. Nectar
(https://huggingface.co/datasets/berkeley-nest/Nectar): a transcript as the prompt and
`"answers": [{"answer", "model", "rank"}]`, 1 = best, by GPT-4. NeMo-RL: `{"context",
"completions": [{"rank", "completion"}]}`, 0 = best.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, cast

from preference_data.counts import counted, verb
from preference_data.quarantine import RowFault
from preference_data.records import AnnotatorKind, Judgement, Message, Prompt, Response
from preference_data.sources.carriers.rows import Row
from preference_data.sources.cells import prompt_of, response_of, short_text_of, text_of
from preference_data.sources.readers.ratings import rank_of, tie_of, without_twins

_TURN = re.compile(r"\n\n(Human|Assistant): ?")


def recognises_imagereward(values: Mapping[str, object]) -> bool:
    """A prompt, its generations and their ranking."""
    return {"prompt", "generations", "ranking"} <= values.keys()


def recognises_nectar(values: Mapping[str, object]) -> bool:
    """A prompt with answers that each have a rank."""
    return "prompt" in values and _first_has(values.get("answers"), "rank")


def recognises_nemo_rl(values: Mapping[str, object]) -> bool:
    """A context with completions that each have a rank."""
    return "context" in values and _first_has(values.get("completions"), "rank")


def imagereward(row: Row) -> tuple[Judgement, ...]:
    """The ranking, or its pairs where one generation stands at two ranks."""
    generations = _list(row.values, "generations")
    ranking = _list(row.values, "ranking")
    if len(generations) != len(ranking):
        raise RowFault(
            "ranking_uneven",
            f"ranking has {counted(len(ranking), 'rank')} for "
            f"{counted(len(generations), 'generation')}.",
        )
    answers: list[dict[str, object]] = [
        {"generation": generation, "ranking": rank}
        for generation, rank in zip(generations, ranking, strict=True)
    ]
    return _ranking(
        row,
        "imagereward",
        prompt_of(row.values, "prompt"),
        [response_of(answer, "generation") for answer in answers],
        [rank_of(answer, "ranking", best=1) for answer in answers],
        group=short_text_of(row.values, "id"),
    )


def nectar(row: Row) -> tuple[Judgement, ...]:
    """GPT-4's ranking, or its pairs where one answer stands at two ranks."""
    answers = _objects(row.values, "answers")
    responses = [
        Response(response_of(answer, "answer").messages, short_text_of(answer, "model"))
        for answer in answers
    ]
    ranks = [rank_of(answer, "rank", best=1) for answer in answers]
    prompt = _transcript(text_of(row.values, "prompt"))
    return _ranking(row, "nectar", prompt, responses, ranks, annotator="gpt-4", kind="model")


def nemo_rl(row: Row) -> tuple[Judgement, ...]:
    """The ranking, or its pairs where one completion stands at two ranks."""
    completions = _objects(row.values, "completions")
    return _ranking(
        row,
        "nemo_rl",
        prompt_of(row.values, "context"),
        [response_of(completion, "completion") for completion in completions],
        [rank_of(completion, "rank", best=0) for completion in completions],
    )


def _ranking(
    row: Row,
    format: Literal["imagereward", "nectar", "nemo_rl"],
    prompt: Prompt,
    responses: Sequence[Response],
    ranks: Sequence[int | None],
    *,
    annotator: str | None = None,
    kind: AnnotatorKind = "human",
    group: str | None = None,
) -> tuple[Judgement, ...]:
    placed = sum(rank is not None for rank in ranks)
    if placed < 2:
        raise RowFault(
            "too_few_ranks",
            f"{placed} of {counted(len(ranks), 'answer')} {verb(placed, 'is', 'are')} ranked.",
        )
    judgement = Judgement(
        prompt,
        tuple(responses),
        tuple(ranks),
        annotator=annotator,
        outcome=tie_of(tuple(ranks)),
        annotator_kind=kind,
        source=row.source(format),
        group=group,
    )
    return without_twins(judgement)


def _transcript(text: str) -> Prompt:
    before, *parts = _TURN.split(text)
    if before or not parts:
        raise RowFault("starts_without_human", "prompt does not start with a Human turn.")
    turns = list(zip(parts[::2], parts[1::2], strict=True))
    if turns[-1][0] == "Assistant" and not turns[-1][1].strip():
        turns.pop()  # the marker that asks for the answer
    if not turns or not turns[-1][1].strip():
        raise RowFault("empty_prompt", "prompt has no last turn.")
    return Prompt(
        tuple(
            Message("user" if speaker == "Human" else "assistant", words)
            for speaker, words in turns
        )
    )


def _first_has(value: object, key: str) -> bool:
    items = cast(list[object], value) if isinstance(value, list) else []
    return bool(items) and isinstance(items[0], dict) and key in items[0]


def _list(values: Mapping[str, object], name: str) -> list[object]:
    value = values.get(name)
    if not isinstance(value, list):
        raise RowFault("wrong_type", f"{name} is not a list.")
    return cast(list[object], value)


def _objects(values: Mapping[str, object], name: str) -> list[Mapping[str, object]]:
    items = _list(values, name)
    if not all(isinstance(item, dict) for item in items):
        raise RowFault("wrong_type", f"{name} holds something that is not an object.")
    return cast(list[Mapping[str, object]], items)
