"""Two answers and who of them won, for the formats that say it with a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from preference_data.quarantine import RowFault
from preference_data.records import Outcome, Ranks, Response
from preference_data.sources.cells import response_of
from preference_data.sources.columns.label_tables import VERDICTS
from preference_data.sources.columns.mapping import Verdict
from preference_data.sources.readers.ratings import number_of


def ranks_of(
    verdict: Verdict, responses: tuple[Response, Response]
) -> tuple[Ranks, Outcome | None]:
    """Raises RowFault where one of two identical answers won."""
    if verdict in ("first", "second") and responses[0].messages == responses[1].messages:
        raise RowFault(
            "identical_responses", "two identical answers are ranked one above the other."
        )
    return VERDICTS[verdict]


def verdict_of(
    values: Mapping[str, object], name: str, meanings: Mapping[float, Verdict]
) -> Verdict:
    """What the number in a column means. Raises RowFault for none, and for any other number."""
    number = number_of(values, name)
    if number is None:
        raise RowFault("label_missing", f"{name} is empty.")
    if number not in meanings:
        allowed = ", ".join(f"{meaning:g}" for meaning in meanings)
        raise RowFault("label_unknown", f"{name} is {number:g}, not one of {allowed}.")
    return meanings[number]


def response_by(values: Mapping[str, object], name: str, model: str | None) -> Response:
    """The response, with who wrote it. Raises RowFault as `response_of` does."""
    return replace(response_of(values, name), model=model)
