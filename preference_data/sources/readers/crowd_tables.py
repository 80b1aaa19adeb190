"""The requester's own columns inside the results of a crowd platform."""

from __future__ import annotations

import html
import json
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from typing import cast

from preference_data.quarantine import DataError, RowFault
from preference_data.records import Judgement
from preference_data.sources.carriers.files import Reading
from preference_data.sources.carriers.rows import Row
from preference_data.sources.cells import short_text_of
from preference_data.sources.columns.label_tables import LabelTable
from preference_data.sources.columns.mapping import Columns, Matching

Cells = Mapping[str, object]

_PROMPTS = ("question", "instruction", "query", "context", "post")
_LABELS = ("choice", "preference", "winner", "better", "verdict", "result", "answer")
_STEMS = ("answer_", "answer", "response", "option_", "option", "text_", "text")
_PAIRS = (*((f"{stem}{x}", f"{stem}{y}") for stem in _STEMS for x, y in ("ab", "12")), ("a", "b"))
_NUMBERED = re.compile(r"(.*?)[_.-]?(\d+)")
# With the semicolon: "?a=1&copy=2" is an address and holds no entity.
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")


class CrowdTable:
    """Turns one answer into a judgement, by `columns` or by the usual names of its columns.

    `columns` may name a column with the platform's prefix or without. Without a mapping, a label
    may also be the name of an answer's column.
    """

    def __init__(self, reading: Reading, separator: str = "") -> None:
        """Raises DataError for a mapping of wide tables, which no platform writes."""
        if reading.columns and reading.columns.wide:
            raise DataError("columns.wide has no effect on a crowd platform's results; remove it.")
        self._table = LabelTable(reading, tells_unread=False)
        self._columns = reading.columns
        self._separator = separator

    def judgement(self, row: Row, cells: Cells, golden: Cells | None = None) -> Judgement:
        """`golden` has the expected labels of a control item, by the label's own column.

        It is not read where the mapping has a gold column. Raises what a table of labels does.
        """
        plain = {self._plain(name): cell for name, cell in cells.items()}
        names = {} if self._columns else _usual_names(plain)
        label = self._columns.label or "label" if self._columns else "label"
        found = {**_renamed(plain, names), **(cells if self._columns else {})}
        given = found.get(label)
        judgement = self._judged(row, found, label, given, names)
        accepted = _lines(golden or {}, self._plain(names.get(label, label)))
        if judgement.gold or not accepted:
            return judgement
        # Of several accepted labels the one that was given is as good as the first.
        expected = given if given in accepted else accepted[0]
        return replace(judgement, gold=self._judged(row, found, label, expected, names).ranks)

    def close(self) -> None:
        """After the last row: notes what was mapped but is in none of them."""
        self._table.close()

    def _plain(self, name: str) -> str:
        return name.partition(self._separator)[2] or name if self._separator else name

    def _judged(
        self, row: Row, found: Cells, label: str, given: object, names: Mapping[str, str]
    ) -> Judgement:
        values = found
        if label in found:
            values = {**found, label: given if self._columns else _verdict(given, names)}
        return self._table.judgement(replace(row, values=values))


def items_of(cells: Cells, columns: Columns | None) -> list[Cells]:
    """The items of a HIT that asks several: "Input.a1", "Input.a2", "Answer.choice1", …

    Items are told apart by the numbers that close the names of answers and of inputs alike, and
    lose them; columns without a number belong to every item, and items without any input are
    left out. Where the numbers tell the answers of one item apart there is one item: with columns
    rank_1, rank_2, …, and with a mapping that names numbered columns. Raises RowFault if no item
    is left.
    """
    numbered = {name: match for name in cells if (match := _NUMBERED.fullmatch(name))}
    by_prefix = {
        prefix: {match[2] for name, match in numbered.items() if name.startswith(prefix)}
        for prefix in ("Input.", "Answer.")
    }
    numbers = by_prefix["Answer."]
    if len(numbers) < 2 or not numbers <= by_prefix["Input."] or _has_one_item(numbered, columns):
        return [cells]
    shared = {name: cell for name, cell in cells.items() if name not in numbered}
    items: list[Cells] = []
    for number in sorted(numbers, key=int):
        own = {m[1]: cells[name] for name, m in numbered.items() if m[2] == number}
        if any(cell for name, cell in own.items() if name.startswith("Input.")):
            items.append({**shared, **own})
    if not items:
        raise RowFault("empty_prompt", "every item of the HIT is empty.")
    return items


def _has_one_item(numbered: Collection[str], columns: Columns | None) -> bool:
    if columns is None:
        return "Answer.rank_1" in numbered
    if any(isinstance(getattr(columns, option.name), Matching) for option in fields(columns)):
        return True
    prefixes = ("", "Input.", "Answer.")
    return any(f"{prefix}{name}" in numbered for name in columns.named() for prefix in prefixes)


def with_task_answers(cells: Cells) -> Cells:
    """The answers of "Answer.taskAnswers", a JSON array, as columns of their own.

    Raises RowFault if it is no array of objects.
    """
    text = short_text_of(cells, "Answer.taskAnswers")
    if text is None:
        return cells
    try:
        tasks: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowFault("json_invalid", f"Answer.taskAnswers is not JSON: {error}.") from None
    found = {name: cell for name, cell in cells.items() if name != "Answer.taskAnswers"}
    for task in cast(list[object], tasks) if isinstance(tasks, list) else [tasks]:
        if not isinstance(task, dict):
            raise RowFault("wrong_type", "Answer.taskAnswers is not an array of objects.")
        for name, answer in cast(dict[str, object], task).items():
            for option, chosen in _options(answer).items():
                found[f"Answer.{name}{option}"] = chosen
    return found


def with_radio_groups(cells: Cells) -> Cells:
    """ "Answer.choice.a": "true" and "Answer.choice.b": "false" become "Answer.choice": "a".

    Of several that are true the names are joined by "|", as the platform does.
    """
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    for name, cell in cells.items():
        group, _, option = name.rpartition(".")
        if group.startswith("Answer."):
            groups[group][option] = str(cell).strip().casefold()
    boolean = {
        group: options
        for group, options in groups.items()
        if set(options.values()) <= {"true", "false", ""} and set(options.values()) != {""}
    }
    found = {name: cell for name, cell in cells.items() if name.rpartition(".")[0] not in boolean}
    for group, options in boolean.items():
        found[group] = "|".join(option for option, chosen in options.items() if chosen == "true")
    return found


def unescaped(cells: Cells, row: Row, reading: Reading) -> Cells:
    """With HTML's entities as the characters they stand for, which is noted."""
    found = {
        name: _ENTITY.sub(lambda match: html.unescape(match[0]), cell)
        if isinstance(cell, str) and "&" in cell
        else cell
        for name, cell in cells.items()
    }
    if found != cells:
        reading.note(f"{row.file} holds HTML entities such as &#44; and they were unescaped.")
    return found


def _usual_names(plain: Cells) -> dict[str, str]:
    """From the name that a table of labels has by default to the one that stands for it here.

    Only where nothing has that name and one column alone can be meant.
    """
    here = {name.casefold(): name for name in plain}
    names: dict[str, str] = {}
    if "prompt" not in plain:
        names |= _only("prompt", ("prompt", *_PROMPTS), here)
    if "label" not in plain and "rank_1" not in plain:
        names |= _only("label", ("label", *_LABELS), here)
    pairs = [pair for pair in _PAIRS if all(name in here for name in pair)]
    if len(pairs) == 1 and not {"response_a", "response_1"} & plain.keys():
        first, second = pairs[0]
        names |= {"response_a": here[first], "response_b": here[second]}
    return names


def _renamed(plain: Cells, names: Mapping[str, str]) -> dict[str, object]:
    old = set(names.values())
    kept = {name: cell for name, cell in plain.items() if name not in old}
    return {**kept, **{new: plain[name] for new, name in names.items()}}


def _verdict(given: object, names: Mapping[str, str]) -> object:
    """ "A" or "B" for the name of an answer's column, else what was given."""
    for verdict, usual in (("A", "response_a"), ("B", "response_b")):
        if (
            isinstance(given, str)
            and given.strip().casefold() == names.get(usual, usual).casefold()
        ):
            return verdict
    return given


def _only(name: str, candidates: Sequence[str], here: Mapping[str, str]) -> dict[str, str]:
    found = [here[candidate] for candidate in candidates if candidate in here]
    return {name: found[0]} if len(found) == 1 else {}


def _lines(golden: Cells, name: str) -> list[str]:
    expected = short_text_of(golden, name) or ""
    return [line.strip() for line in expected.splitlines() if line.strip()]


def _options(answer: object) -> dict[str, object]:
    """A group's options, each by its name after a dot; any other answer as text, by no name."""
    if isinstance(answer, dict):
        options = cast(dict[str, object], answer)
        return {f".{option}": str(chosen).casefold() for option, chosen in options.items()}
    return {"": answer if isinstance(answer, str) else json.dumps(answer)}
