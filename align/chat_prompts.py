"""A file of prompts in, the same rows with answers out."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from align.config import ConfigError
from align.progress import progress
from preference_data.sources.store import whole_or_absent

if TYPE_CHECKING:
    from torch import Tensor

    from align.chat import Sampling, Score, Turns, Voice

KINDS = (".jsonl", ".csv")
"""What answers are written as."""
AT_ONCE = 32
"""Prompts that are answered in one batch."""


@dataclass(frozen=True)
class Row:
    """A row of the file, its fields as they are, and the conversation that it asks."""

    number: int
    """from 1; that of the line, but for CSV"""
    fields: dict[str, Any]
    turns: Turns


@dataclass
class Answered:
    """What came of a file of prompts."""

    rows: int = 0
    faults: list[str] = field(default_factory=list[str])
    """Rows that have no answer, and why"""


def read_prompts(path: Path, system: str | None = None) -> list[Row]:
    """The rows of JSONL (`prompt`, text or messages, or `messages`), of CSV (a column `prompt`), or
    of any other text, a prompt each line.

    Raises ConfigError for a file that cannot be read, holds nothing, or has a row without a prompt.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"--prompts: {path} is not UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"--prompts: {path} cannot be read: {error.strerror}.") from None
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        rows = _json_rows(path, text)
    elif suffix in (".csv", ".tsv"):
        rows = _table_rows(path, text, "\t" if suffix == ".tsv" else ",")
    else:
        lines = enumerate(text.splitlines(), 1)
        rows = [
            Row(number, {"prompt": line}, _user(line)) for number, line in lines if line.strip()
        ]
    if not rows:
        raise ConfigError(f"--prompts: {path} holds no prompt.")
    return [Row(row.number, row.fields, _with_system(row.turns, system)) for row in rows]


def _json_rows(path: Path, text: str) -> list[Row]:
    rows: list[Row] = []
    # Not splitlines: JSON holds other ends of lines, such as U+2028, as they are.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except ValueError:
            raise ConfigError(f"--prompts: {path}, line {number} is no JSON.") from None
        if not isinstance(fields, dict):
            raise ConfigError(f"--prompts: {path}, line {number} is no JSON object.")
        rows.append(Row(number, fields, _turns_of(fields, f"{path}, line {number}")))
    return rows


def _turns_of(fields: Mapping[str, Any], where: str) -> Turns:
    asked = fields.get("prompt", fields.get("messages"))
    if isinstance(asked, str):
        return _user(asked)
    if not isinstance(asked, list):
        raise ConfigError(
            f"--prompts: {where} has neither prompt (text or messages) nor messages; it has "
            f"{', '.join(fields) or 'nothing'}."
        )
    for turn in asked:
        if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
            raise ConfigError(f"--prompts: {where} has a message without role and content.")
    return [{"role": turn["role"], "content": turn["content"]} for turn in asked]


def _table_rows(path: Path, text: str, delimiter: str) -> list[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restkey="")
    try:
        rows = list(reader)
    except csv.Error as error:
        raise ConfigError(f"--prompts: {path} cannot be read as a table: {error}.") from None
    columns = list(reader.fieldnames or ())
    if rows and "prompt" not in columns:
        raise ConfigError(
            f"--prompts: {path} has no column prompt; its columns are {', '.join(columns)}."
        )
    found: list[Row] = []
    for number, fields in enumerate(rows, 1):
        if "" in fields or None in fields.values():
            raise ConfigError(
                f"--prompts: {path}, row {number} has more or fewer cells than the header."
            )
        found.append(Row(number, dict(fields), _user(fields["prompt"])))
    return found


def _user(text: str) -> Turns:
    return [{"role": "user", "content": text}]


def _with_system(turns: Turns, system: str | None) -> Turns:
    """With the system message in front, unless the row brings its own."""
    if not system or (turns and turns[0]["role"] == "system"):
        return turns
    return [{"role": "system", "content": system}, *turns]


def check_output(output: Path) -> None:
    """Raises ConfigError for a file of a kind that is not written, or in no folder."""
    if output.suffix.lower() not in KINDS:
        raise ConfigError(f"--output: {output} is to end in {' or '.join(KINDS)}.")
    if not output.parent.is_dir():
        raise ConfigError(f"--output: there is no folder {output.parent}.")


def answer_file(
    rows: Sequence[Row], voices: Sequence[Voice], sampling: Sampling, score: Score | None,
    output: Path | None,
) -> Answered:  # fmt: skip
    """Answers every row and writes it, in order, with `completion` and perhaps `score` (of several
    policies `completion_NAME`, `score_NAME`), to `output` or as JSONL to
    standard output.

    Row i is answered with the same draws whatever batch it is in. A row that cannot be asked has
    no completion and is named in the result. Raises ConfigError if a row has such a column already,
    OSError if the file cannot be written.
    """
    columns = _columns(voices, score is not None)
    for row in rows:
        for name in columns:
            if name in row.fields:
                raise ConfigError(f"--prompts: row {row.number} has the field {name} already.")
    result = Answered(len(rows))
    answered = _answered(rows, voices, sampling, score, result)
    if output is None:
        for fields in answered:
            print(json.dumps(fields, ensure_ascii=False), flush=True)
        return result
    with whole_or_absent(output) as stream:
        lines = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=True)
        _write(lines, answered, [*rows[0].fields, *columns], output.suffix.lower())
        lines.detach()
    return result


def _columns(voices: Sequence[Voice], scored: bool) -> list[str]:
    kinds = ["completion", *(["score"] if scored else [])]
    return [f"{kind}{_end(voice, voices)}" for voice in voices for kind in kinds]


def _end(voice: Voice, voices: Sequence[Voice]) -> str:
    """What the names of a policy's columns end with."""
    return "" if len(voices) == 1 else f"_{voice.name}"


def _write(
    lines: IO[str], answered: Iterable[Mapping[str, Any]], header: list[str], suffix: str
) -> None:
    if suffix == ".jsonl":
        lines.writelines(json.dumps(fields, ensure_ascii=False) + "\n" for fields in answered)
        return
    table = csv.DictWriter(lines, header, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    for fields in answered:
        table.writerow({name: _cell(value) for name, value in fields.items()})


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _answered(
    rows: Sequence[Row], voices: Sequence[Voice], sampling: Sampling, score: Score | None,
    result: Answered,
) -> Iterable[dict[str, Any]]:  # fmt: skip
    draws = sampling.draws(1, len(rows))
    with progress("answers", len(rows), "prompts") as bar:
        for first in range(0, len(rows), AT_ONCE):
            some = rows[first : first + AT_ONCE]
            found = [dict(row.fields) for row in some]
            faults: dict[int, str] = {}
            for voice in voices:
                answers = _batch(voice, some, draws[first : first + AT_ONCE], sampling, faults)
                end = _end(voice, voices)
                for fields, row, answer in zip(found, some, answers, strict=True):
                    fields[f"completion{end}"] = answer
                    if score is not None:
                        known = answer is not None
                        fields[f"score{end}"] = score(row.turns, answer) if known else None
            result.faults += [f"row {number}: {why}" for number, why in sorted(faults.items())]
            yield from found
            bar.advance(len(some))


def _batch(
    voice: Voice, rows: Sequence[Row], draws: Tensor, sampling: Sampling,
    faults: dict[int, str],
) -> list[str | None]:  # fmt: skip
    """The answer to each row; None, and a fault, where it cannot be asked."""
    prompts: list[tuple[int, ...]] = []
    places: list[int] = []
    for place, row in enumerate(rows):
        try:
            if not row.turns or not row.turns[-1]["content"].strip():
                raise ValueError("its prompt is empty")
            prompts.append(voice.ids(row.turns, sampling.max_new_tokens))
            places.append(place)
        except (ValueError, AttributeError) as error:
            faults.setdefault(row.number, str(error).rstrip("."))
    found: list[str | None] = [None] * len(rows)
    if prompts:
        answers = voice.answers(prompts, draws[places], sampling.temperature)
        for place, answer in zip(places, answers, strict=True):
            found[place] = answer
    return found
