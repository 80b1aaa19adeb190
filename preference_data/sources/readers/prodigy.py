"""Prodigy's JSONL (`db-out`): options of which one is accepted, and the compare recipe's pairs.

https://prodi.gy/docs/api-interfaces. "answer" is about the task: one that was ignored, or rejected
as a whole, does not count. Only in the compare recipe's older rows, which hold one answer under
"accept" and one under "reject", does it say which of the two is better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from preference_data.quarantine import RowFault, SetAside
from preference_data.records import Judgement, Outcome, Prompt, Response
from preference_data.sources.carriers.rows import Row
from preference_data.sources.cells import prompt_of, short_text_of
from preference_data.sources.columns.verdicts import check_distinct
from preference_data.sources.readers.annotation_tasks import (
    Opinion,
    annotator_of,
    best_of,
    object_of,
    objects_of,
    text_in,
    time_of,
    undecided,
)

_HASHES = frozenset({"_task_hash", "_input_hash", "_view_id"})
_UNDECIDED: dict[str, Outcome] = {
    "tie": "tie",
    "both_good": "both_good",
    "both_bad": "both_bad",
    "unsure": "unsure",
}
"""Ids of options that are no answers."""


def recognises(values: Mapping[str, object]) -> bool:
    """An annotated task with Prodigy's own keys, and options or two systems to compare."""
    own = "answer" in values and not _HASHES.isdisjoint(values)
    return own and ("options" in values or _is_pair(values))


def judgement(row: Row) -> Judgement:
    """Raises SetAside for a task that was ignored, rejected or left open, RowFault for a bad one.

    The responses are in the order in which they were shown; of an older compare row, which does
    not say it, by the systems' names.
    """
    answer = row.values.get("answer")
    if answer == "ignore":
        raise SetAside("skipped", "the task was ignored.")
    if answer not in ("accept", "reject"):
        raise RowFault("label_unknown", f"answer is {answer!r}, not accept, reject or ignore.")
    pair = _is_pair(row.values)
    responses, opinion = _compared(row.values) if pair else _chosen(row.values)
    check_distinct(responses, opinion.ranks)
    session = row.values.get("_annotator_id") or row.values.get("_session_id")
    group = row.values.get("_input_hash")
    return Judgement(
        prompt=_prompt(row.values),
        responses=responses,
        ranks=opinion.ranks,
        annotator=annotator_of(session),
        outcome=opinion.outcome,
        comment=short_text_of(row.values, "user_input"),
        source=row.source("prodigy"),
        kind=opinion.kind,
        group=None if group is None else str(group),
        position=None if pair else tuple(range(len(responses))),
        created_at=time_of(row.values.get("_timestamp")),
    )


def _is_pair(values: Mapping[str, object]) -> bool:
    return "mapping" in values and "reject" in values and "options" not in values


def _chosen(values: Mapping[str, object]) -> tuple[tuple[Response, ...], Opinion]:
    if values["answer"] == "reject":
        raise SetAside("task_rejected", "the task was rejected as a whole.")
    options = objects_of(values["options"])
    if options is None:
        raise RowFault("bad_options", "options is no list of objects.")
    systems = {str(side): system for system, side in object_of(values.get("mapping")).items()}
    best = _accepted(values, systems)
    answers = [option for option in options if str(option.get("id")) not in _UNDECIDED]
    ids = [str(option.get("id")) for option in answers]
    responses = tuple(_response(option, systems) for option in answers)
    if best in _UNDECIDED and len(answers) < len(options):
        return responses, undecided(_UNDECIDED[best], len(ids))
    if ids.count(best) != 1:
        raise RowFault("option_unknown", f"accept is {best!r}, not one of {', '.join(ids)}.")
    return responses, best_of(ids.index(best), len(ids))


def _accepted(values: Mapping[str, object], systems: Mapping[str, str]) -> str:
    """The id of the one accepted option; compare's "accept" and "reject" stand for a system."""
    accepted = values.get("accept")
    ids = cast(list[object], accepted) if isinstance(accepted, list) else [accepted]
    if ids in ([], [None]):
        raise SetAside("not_annotated", "no option was chosen.")
    if len(ids) > 1:
        raise RowFault("several_chosen", f"{len(ids)} options were chosen, which ranks none.")
    best, known = str(ids[0]), [str(one.get("id")) for one in objects_of(values["options"]) or ()]
    return best if best in known else systems.get(best, best)


def _response(option: Mapping[str, Any], systems: Mapping[str, str]) -> Response:
    name = str(option.get("id"))
    text = text_in(option, "text", "html")
    if text is None:
        raise RowFault("empty_response", f"the option {name} has no text.")
    model = name if name in systems.values() else systems.get(name)
    return Response.from_text(text, model)


def _compared(values: Mapping[str, object]) -> tuple[tuple[Response, ...], Opinion]:
    """`mapping` says which system's answer stands under "accept", and which under "reject"."""
    mapping = object_of(values["mapping"])
    if sorted(str(side) for side in mapping.values()) != ["accept", "reject"]:
        raise RowFault("bad_mapping", "mapping does not give accept and reject one system each.")
    sides: Sequence[tuple[str, str]] = sorted(mapping.items())
    texts = [_text(values[side]) for _, side in sides]
    if None in texts:
        raise RowFault("empty_response", f"{sides[texts.index(None)][1]} has no text.")
    responses = tuple(
        Response.from_text(text, system)
        for text, (system, _) in zip(texts, sides, strict=True)
        if text is not None
    )
    return responses, best_of([side for _, side in sides].index(str(values["answer"])), 2)


def _prompt(values: Mapping[str, object]) -> Prompt:
    for name in ("prompt", "text", "input"):
        text = _text(values.get(name))
        if text is not None:
            return Prompt.from_text(text)
    return prompt_of(values, "text")


def _text(value: object) -> str | None:
    if isinstance(value, str):
        return value if value.strip() else None
    return text_in(object_of(value), "text", "html")
