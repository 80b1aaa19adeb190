"""A table of prompts and answers, written again with the scores of a reward model beside them.

Rows in are rows out, and every other value stays as it was. A row that cannot be scored keeps an
empty score and is named in a quarantine file beside the table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from align.score_writers import Scores, writer_for
from preference_data.counts import counted, verb
from preference_data.quarantine import DataError, Quarantine, Rejected, RowFault, reasons_in_words
from preference_data.records import Judgement, Prompt, Response
from preference_data.sources.carriers import read_rows
from preference_data.sources.carriers.files import Reading, data_suffix, find_files
from preference_data.sources.carriers.rows import Row, rejected
from preference_data.sources.cells import as_prompt, as_response
from preference_data.sources.columns.mapping import Columns, Constant, Matching
from preference_data.sources.formats import FORMATS, read_records, sniff
from preference_data.sources.store import whole_or_absent

if TYPE_CHECKING:
    from preference_data.batches import Group

ONE = ("completion", "response", "answer")
"""What a column of the one answer is called: its score is `score`."""
LISTS = ("completions", "responses", "answers")
"""What a column that holds a list of answers is called: `score` is a list, too."""
PAIR = ("chosen", "rejected")
_LETTERED = re.compile(r"(?i)(?:response|answer|completion)[\s_-]?([a-z]|[0-9]+)")
_CHUNK = 512
"""Rows that are scored together."""
_NAMED = 10
"""Rows that a warning names."""

GroupOf = Callable[[Prompt, Response], "Group"]
ScoreGroups = Callable[[Sequence["Group"]], list[float]]
Found = tuple[Prompt, list[tuple[str | None, Response | RowFault]]]
"""A row's prompt, and the name of the score of each of its answers (None: the list's next one)."""


@dataclass(frozen=True)
class Layout:
    """Where prompts and answers are; `answers` None: where the format's own reader finds them."""

    prompt: str
    answers: Mapping[str, str] | str | None
    """Column of each answer by the name of its score, or the column that lists them."""
    system: str | Constant | None = None

    def read(self, row: Row) -> Found:
        """Raises RowFault if there is no prompt or no answer, ValueError for what is no record."""
        values = row.values
        system = self.system
        text = system.constant if isinstance(system, Constant) else values.get(system or "")
        prompt = as_prompt(
            values.get(self.prompt), self.prompt, text if isinstance(text, str) else ""
        )
        if isinstance(self.answers, str):
            listed = values.get(self.answers)
            if not isinstance(listed, list) or not listed:
                raise RowFault("no_answers", f"{self.answers} is no list of answers.")
            return prompt, [
                (None, _response(one, f"{self.answers}[{place}]"))
                for place, one in enumerate(listed)
            ]
        assert self.answers is not None
        return prompt, [
            (name, _response(values.get(column), column)) for name, column in self.answers.items()
        ]


def _response(value: object, name: str) -> Response | RowFault:
    try:
        return as_response(value, name)
    except RowFault as fault:
        return fault
    except ValueError as error:
        return RowFault("invalid_record", str(error))


@dataclass
class Result:
    """What was written, and what could not be scored."""

    output: Path
    rows: int = 0
    answers: int = 0
    pairs: int = 0
    """Of two answers of which one was judged better."""
    right: float = 0.0
    """Of these, where it has the higher score; equal scores count a half."""
    warnings: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class Table:
    """A table to score, checked before any model is loaded."""

    source: str
    path: Path
    output: Path
    format: str
    columns: Columns | None
    layout: Layout
    names: tuple[str, ...]
    """Of the columns of scores; of a list, the one."""

    @classmethod
    def open(
        cls, source: str, output: Path, column: str, format: str, columns: Columns | None
    ) -> Table:
        """Raises DataError for a file that is missing, holds no answers or has such a column, and
        for an output of another kind."""
        path, *others = find_files(source)
        if others:
            raise DataError(f"{source} is {len(others) + 1} files; score one at a time.")
        first = next((r for r in read_rows([path], Reading(columns)) if isinstance(r, Row)), None)
        if first is None:
            raise DataError(f"{path} has no row that can be read.")
        if path.resolve() in (output.resolve(), _quarantine_of(output).resolve()):
            what = "is" if output.resolve() == path.resolve() else "would set rows aside in"
            raise DataError(f"--output {what} {path} itself; name another file.")
        format = sniff(source, "preferences") if format == "auto" else format
        if columns is not None and not FORMATS[format].uses_columns:
            format = "table"
        found = _columns(path, Reading(columns))
        layout = _layout(_with_later(first, found, columns), format, columns, column)
        answers = layout.answers
        names = tuple(answers) if isinstance(answers, Mapping) else (column,)
        if taken := [name for name in names if name in found]:
            raise DataError(
                f"{path} has a column {taken[0]} already; give the scores another name with "
                f"--column."
            )
        writer_for(path, output, names, Reading(columns))  # refuses another kind of file
        return cls(source, path, output, format, columns, layout, names)

    @property
    def quarantine(self) -> Path:
        return _quarantine_of(self.output)

    def count(self) -> int:
        """How many rows there are, which is read at once: scoring them takes much longer."""
        return sum(1 for _ in read_rows([self.path], Reading(self.columns)))

    def rows(self) -> Iterator[tuple[Row | Rejected, tuple[Judgement, ...] | Rejected]]:
        """Each row beside what was judged of it, which is nothing where nothing says so."""
        reading = Reading(self.columns)
        for row, judged in zip_longest(read_rows([self.path], reading), self._judged()):
            together = isinstance(judged, tuple) and any(
                one.source and one.source.row != row.row for one in judged if row is not None
            )
            if row is None or (self.layout.answers is None and (judged is None or together)):
                raise DataError(
                    f"{self.path}: the format {self.format!r} makes one judgement of several rows. "
                    f"Import it, and score the folder."
                )
            yield row, judged or ()

    def _judged(self) -> Iterator[tuple[Judgement, ...] | Rejected]:
        """Raises DataError only where the answers themselves are read in this way."""
        reading = Reading(self.columns)
        try:
            for found in read_records(self.source, "preferences", self.format, reading)[1]:
                if isinstance(found, Rejected):
                    yield found
                else:
                    yield tuple(one for one in found if isinstance(one, Judgement))
        except DataError:
            if self.layout.answers is None:
                raise


def _quarantine_of(output: Path) -> Path:
    return output.with_name(f"{output.stem}.quarantine.jsonl")


def _columns(path: Path, reading: Reading) -> dict[str, None]:
    """Of all rows, in the order in which they come; each row of JSON has columns of its own."""
    rows = read_rows([path], reading)
    if data_suffix(path) in (".csv", ".tsv", ".parquet"):
        rows = islice((row for row in rows if isinstance(row, Row)), 1)
    found: dict[str, None] = {}
    for row in rows:
        values = row.values if isinstance(row, Row) else row.raw
        if isinstance(values, Mapping):
            found |= dict.fromkeys(cast("Mapping[str, object]", values))
    return found


def _with_later(first: Row, found: Iterable[str], columns: Columns | None) -> Row:
    """The first row with the columns of answers that only later rows have."""
    responses = columns.responses if columns else None
    pattern = re.compile(responses.pattern) if isinstance(responses, Matching) else _LETTERED
    if not any(map(pattern.fullmatch, first.values)):
        return first
    answers = dict.fromkeys(name for name in found if pattern.fullmatch(name))
    return replace(first, values={**answers, **first.values})


def _layout(first: Row, format: str, columns: Columns | None, column: str) -> Layout:
    """Raises DataError if there is no prompt, or there are no answers."""
    prompt = (columns and columns.prompt) or "prompt"
    answers = _mapped(first, columns, column) if columns else _usual(first, column)
    own = FORMATS[format].recognises is not None and format != "trl"
    if own and not columns:
        return Layout(prompt, None)
    if prompt in first.values and answers:
        return Layout(prompt, answers, columns.system if columns else None)
    if format == "trl":
        return Layout(prompt, None)
    raise DataError(
        f"{first.file} has no column {prompt if prompt not in first.values else 'of answers'}; it "
        f"has {', '.join(first.values)}. Rename the columns to prompt and response, or to prompt, "
        f"response_a and response_b, or say with --mapping which is what."
    )


def _mapped(first: Row, columns: Columns, column: str) -> Mapping[str, str] | str | None:
    responses = columns.responses or _usual(first, column)
    if isinstance(responses, Matching):
        matches = {name: re.fullmatch(responses.pattern, name) for name in first.values}
        short = {f"{column}_{match.group(1)}": name for name, match in matches.items() if match}
        answers = [name for name, match in matches.items() if match]
        return short if len(short) == len(answers) else _whole_names(answers, column)
    if isinstance(responses, tuple):
        missing = [name for name in responses if name not in first.values]
        if missing:
            raise DataError(f"{first.file} has no column {missing[0]}, which the mapping names.")
        return _names(responses, column)
    return responses


def _usual(first: Row, column: str) -> Mapping[str, str] | str | None:
    lettered = tuple(name for name in first.values if _LETTERED.fullmatch(name))
    if len(lettered) > 1:
        return _names(lettered, column)
    if first.values.keys() >= set(PAIR):
        return _names(PAIR, column)
    for name in LISTS:
        if isinstance(first.values.get(name), list):
            return name
    return next(({column: name} for name in ONE if name in first.values), None)


def _names(answers: Sequence[str], column: str) -> dict[str, str]:
    """score_a of response_a, score_chosen of chosen; score alone of the only one."""
    if len(answers) == 1:
        return {column: answers[0]}
    matches = [_LETTERED.fullmatch(name) for name in answers]
    short = {f"{column}_{m.group(1).lower()}": m.group(0) for m in matches if m is not None}
    return short if len(short) == len(answers) else _whole_names(answers, column)


def _whole_names(answers: Sequence[str], column: str) -> dict[str, str]:
    return {f"{column}_{name}": name for name in answers}


# --- scoring ---------------------------------------------------------------------------------


def score_table(
    table: Table, group_of: GroupOf, score_groups: ScoreGroups, advance: Callable[[int], None]
) -> Result:
    """Writes the table with its scores. Raises DataError, and OSError if it cannot be written.

    `group_of` raises ValueError for a conversation that cannot be scored.
    """
    result = Result(table.output)
    writer = writer_for(table.path, table.output, table.names, Reading(table.columns))
    rows, named = table.rows(), list[str]()
    table.output.parent.mkdir(parents=True, exist_ok=True)
    table.quarantine.unlink(missing_ok=True)
    with whole_or_absent(table.output) as stream, whole_or_absent(table.quarantine) as rejects:
        quarantine = Quarantine(rejects)
        writer.start(stream)
        while chunk := list(islice(rows, _CHUNK)):
            for (row, _), found in zip(
                chunk, _scored(table, chunk, group_of, score_groups, result), strict=True
            ):
                scores, fault = found
                writer.write(stream, row, scores)
                if fault is not None:
                    quarantine.add(fault)
                    named += [fault.detail] if len(named) < _NAMED else []
            result.rows += len(chunk)
            advance(len(chunk))
        writer.finish(stream)
    if not quarantine.rows:
        table.quarantine.unlink()
        return result
    more = quarantine.rows - len(named)
    result.warnings = [
        f"{quarantine.rows:,} of {counted(result.rows, 'row')} "
        f"{verb(quarantine.rows, 'has', 'have')} an answer without a score "
        f"({reasons_in_words(quarantine.by_reason)}); see {table.quarantine}.",
        *(f"  {line}" for line in named),
        *([f"  and {more:,} more."] if more else []),
    ]
    return result


def _scored(
    table: Table,
    chunk: Sequence[tuple[Row | Rejected, tuple[Judgement, ...] | Rejected]],
    group_of: GroupOf,
    score_groups: ScoreGroups,
    result: Result,
) -> Iterator[tuple[Scores, Rejected | None]]:
    """The scores of each row, and why some are missing; counts in `result`."""
    groups: list[Group] = []
    rows: list[tuple[list[tuple[str | None, str, int | None]], Rejected | None]] = []
    for row, judged in chunk:
        answers: list[tuple[str | None, str, int | None]] = []
        fault = row if isinstance(row, Rejected) else None
        if isinstance(row, Row):
            try:
                prompt, found = _found(table, row, judged)
            except (RowFault, ValueError) as error:
                found, fault = (), _as_reject(row, error)
            for name, response in found:
                place = None
                try:
                    if isinstance(response, RowFault):
                        raise response
                    groups.append(group_of(prompt, response))
                    place = len(groups) - 1
                except (RowFault, ValueError) as error:
                    fault = fault or _as_reject(row, error, name)
                identity = "" if isinstance(response, RowFault) else response.id
                answers.append((name, identity, place))
        rows.append((answers, fault))
    values = score_groups(groups)
    result.answers += len(values)
    for (_, judged), (answers, fault) in zip(chunk, rows, strict=True):
        scores = [(name, None if at is None else values[at]) for name, _, at in answers]
        by_id = {identity: values[at] for _, identity, at in answers if at is not None}
        _compare(judged, by_id, result)
        yield _laid_out(scores, table.names), fault


def _found(table: Table, row: Row, judged: tuple[Judgement, ...] | Rejected) -> Found:
    if table.layout.answers is not None:
        return table.layout.read(row)
    if isinstance(judged, Rejected):
        raise RowFault(judged.reason, judged.detail.partition(": ")[2] or judged.detail)
    different = {one.id: one for judgement in judged for one in judgement.responses}
    return judged[0].prompt, [(None, one) for one in different.values()]


def _as_reject(row: Row, error: Exception, name: str | None = None) -> Rejected:
    if isinstance(error, RowFault):
        return rejected(row, error)
    where = f"{name}: " if name else ""
    return rejected(row, RowFault("not_scored", f"{where}{str(error).rstrip('.')}."))


def _laid_out(scores: list[tuple[str | None, float | None]], names: Sequence[str]) -> Scores:
    """By column; a list where the answers are one."""
    if scores and scores[0][0] is None:
        return {names[0]: [score for _, score in scores]}
    return {**dict.fromkeys(names), **{name: score for name, score in scores if name is not None}}


def _compare(
    judged: tuple[Judgement, ...] | Rejected, scores: Mapping[str, float], result: Result
) -> None:
    if isinstance(judged, Rejected):
        return
    for judgement in judged:
        for better, worse in judgement.ordered_pairs():
            pair: list[Any] = [scores.get(judgement.responses[at].id) for at in (better, worse)]
            if None not in pair:
                result.pairs += 1
                result.right += 1.0 if pair[0] > pair[1] else 0.5 * (pair[0] == pair[1])


def scored_in_words(result: Result) -> str:
    """As in "12 rows, 24 answers scored: out.csv", and the accuracy where rows were judged."""
    answers = counted(result.answers, "answer")
    text = f"{counted(result.rows, 'row')}, {answers} scored: {result.output}"
    if not result.pairs:
        return text
    share = result.right / result.pairs
    pairs = counted(result.pairs, "pair")
    return f"{text}\nAccuracy {share:.3f} on {pairs} of which one is judged better."
