"""Prompts with sampled answers and reward models in, a labelling task out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from align.artifacts import Artifact
from align.config import ConfigError
from align.progress import tracked
from preference_data.counts import counted, verb
from preference_data.labelling.files import (
    Joined,
    check_unused,
    like_formulas,
    too_long_for_excel,
    write_labelling_files,
)
from preference_data.labelling.selection import Candidates, Chosen, Limit, Plan, Question, choose
from preference_data.quarantine import DataError, Quarantine, Rejected, RowFault, SetAside
from preference_data.records import Prompt, Response
from preference_data.sources.carriers import read_rows
from preference_data.sources.carriers.files import Reading, find_files
from preference_data.sources.carriers.rows import Row, convert_rows, rejected
from preference_data.sources.cells import as_response, prompt_of, response_of
from preference_data.sources.columns.headers import check_columns
from preference_data.sources.shards import shards_of
from preference_data.sources.store import (
    QUARANTINE_FILE,
    RECORD_FILES,
    read_judgements,
    whole_or_absent,
)

_LIMITS: dict[Limit, str] = {
    "max_per_prompt": "of a prompt with as many questions as --max-per-prompt allows",
    "random_share": "of a prompt of the random share, which no other question may touch",
    "alike": "of two answers that are all but the same",
    "judged": "judged already, as often as --votes asks for",
}
_ROWS_SHOWN = 10

Score = Callable[[list[Prompt], list[Response]], list[float]]
"""Prompts and the completion beside each, to scores: `RewardModel.score`."""


@dataclass(frozen=True, slots=True)
class Answers:
    """A row's prompt and the answers in it, and the row, for what is refused later."""

    prompt: Prompt
    responses: tuple[Response, ...]
    row: Row
    faults: tuple[RowFault, ...] = ()
    """Of answers that are left out already."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What was written, and what could not be asked."""

    questions: list[Question]
    prompts: int
    """With two different answers or more."""
    answers: int
    models: int
    left_out: Mapping[str, int]
    """Rows, answers and prompts in quarantine.jsonl, by reason."""
    too_long_for_excel: int
    like_formulas: int
    passed_over: Mapping[Limit, int]
    """Where fewer pairs are asked than were wanted: the others, by what kept them out."""


def check_places(source: str, output: Path, earlier: Path | None) -> None:
    """Raises DataError for what would fail later, before any model is loaded."""
    check_unused(output)
    files = find_files(source)
    if not _is_data_folder(Path(source)):
        first = next((row for row in read_rows(files, Reading()) if isinstance(row, Row)), None)
        if first is not None:
            check_columns(replace(first, row=1), "prompt")
    if earlier is not None and not earlier.exists():
        raise DataError(f"{earlier}: there is no such folder.")


def load_scores(folders: Sequence[Path]) -> list[Score]:
    """The reward models in these folders, each member of an ensemble as one of its own.

    Raises ConfigError for a folder that holds none.
    """
    for folder in folders:
        step = Artifact.load(folder)
        if step is not None and step.kind != "reward":
            raise ConfigError(f"--model: {folder} is a step of kind {step.kind}, not reward.")
    from reward_models import RewardModel

    try:
        models = [RewardModel.from_pretrained(folder) for folder in folders]
    except FileNotFoundError as error:
        raise ConfigError(f"--model: {error}") from None
    return [one.score for model in models for one in model.members or (model,)]


def write_selection(
    source: str, models: Sequence[Score], plan: Plan, output: Path, earlier: Path | None = None
) -> Selection:
    """Scores the answers of `source`, selects, and writes the labelling files into `output`.

    `source` is a data folder of judgements, or files with rows of `prompt` and `completions` (or
    one `completion` a row). Rows, answers and prompts that cannot be asked about are written to
    quarantine.jsonl beside the other files. Raises DataError if nothing can be asked (then there
    is at most quarantine.jsonl, and the error names it), or `output` holds a labels.csv, and
    OSError if a file cannot be written.
    """
    check_unused(output)
    new = not output.exists()
    judged = list(read_judgements(earlier)) if earlier else []
    output.mkdir(parents=True, exist_ok=True)
    with whole_or_absent(output / QUARANTINE_FILE) as stream:
        quarantine = Quarantine(stream)
        rows = accepted(tracked(read_answers(source), "reading", "rows"), quarantine)
        candidates = scored(rows, models, quarantine)
    if not candidates:
        first = f" (the first: {quarantine.first.detail})" if quarantine.first else ""
        raise DataError(
            f"{source} has no prompt with two answers that can be compared{first}. "
            f"See {output / QUARANTINE_FILE}."
        )
    try:
        chosen = choose(candidates, plan, judged)
    except DataError as error:
        if quarantine.rows:
            raise DataError(f"{error} See {output / QUARANTINE_FILE}.") from None
        _remove_empty(output, new)
        raise
    write_labelling_files(chosen.questions, output)
    return _selection(chosen, candidates, len(models), quarantine)


def _remove_empty(output: Path, new: bool) -> None:
    (output / QUARANTINE_FILE).unlink()
    if new:
        output.rmdir()


def _selection(
    chosen: Chosen, candidates: Sequence[Candidates], models: int, quarantine: Quarantine
) -> Selection:
    return Selection(
        chosen.questions,
        len(candidates),
        sum(len(one.responses) for one in candidates),
        models,
        quarantine.by_reason,
        too_long_for_excel(chosen.questions),
        like_formulas(chosen.questions),
        chosen.passed_over,
    )


def read_answers(source: str) -> Iterator[Answers | Rejected]:
    """One thing for each row. Raises DataError for a missing or empty file."""
    folder = Path(source)
    if _is_data_folder(folder):
        yield from _judged_answers(folder)
        return
    for found in convert_rows(read_rows(find_files(source), Reading()), lambda row: (_row(row),)):
        if isinstance(found, Rejected):
            yield found
        else:
            yield from found


def _is_data_folder(folder: Path) -> bool:
    records = folder / RECORD_FILES["preferences"]
    return folder.is_dir() and (records.is_file() or bool(shards_of(folder)))


def accepted(
    rows: Iterator[Answers | Rejected], quarantine: Quarantine
) -> list[tuple[Prompt, list[tuple[Response, Row]]]]:
    """Every prompt once, with all its different answers; the rest goes to the quarantine."""
    found: dict[str, tuple[Prompt, dict[str, tuple[Response, Row]]]] = {}
    for row in rows:
        if isinstance(row, Rejected):
            quarantine.add(row)
            continue
        for fault in row.faults:
            _refuse(quarantine, row.row, fault)
        answers = found.setdefault(row.prompt.id, (row.prompt, {}))[1]
        for response in row.responses:
            if answers.setdefault(response.id, (response, row.row))[0] is not response:
                _refuse(quarantine, row.row, SetAside("same_answer", "an answer is there already."))
    return [(prompt, list(answers.values())) for prompt, answers in found.values()]


def scored(
    prompts: Sequence[tuple[Prompt, Sequence[tuple[Response, Row]]]],
    models: Sequence[Score],
    quarantine: Quarantine,
) -> list[Candidates]:
    """The prompts with two answers or more that every model can score."""
    candidates: list[Candidates] = []
    for prompt, answers in tracked(prompts, "scoring", "prompts"):
        known: list[tuple[Response, tuple[float, ...]]] = []
        for response, row in answers:
            try:
                known.append((response, _scores(models, prompt, response)))
            except RowFault as fault:
                _refuse(quarantine, row, fault)
        if len(known) > 1:
            responses, scores = zip(*known, strict=True)
            candidates.append(Candidates(prompt, responses, scores))
        elif known:
            fault = SetAside("one_answer", "the prompt has one answer, and no other to compare.")
            _refuse(quarantine, answers[0][1], fault)
    return candidates


def chosen_in_words(selection: Selection, plan: Plan) -> str:
    """What was selected, in lines for people."""
    whys = Counter(question.why for question in selection.questions)
    bits = [one.information for one in selection.questions if one.why == "informative"]
    asked = whys["random"] + whys["informative"]
    told = "the disagreement of the models" if selection.models > 1 else "the model's own doubt"
    between = f" ({max(bits):.3f} to {min(bits):.3f} bits, by {told})" if bits else ""
    lines = [
        f"{counted(asked, 'pair')} of {counted(selection.prompts, 'prompt')} with "
        f"{counted(selection.answers, 'answer')}: "
        f"{whys['informative']:,} informative{between}, {whys['random']:,} at random; "
        f"{whys['repeat']:,} {verb(whys['repeat'], 'is', 'are')} asked twice."
    ]
    if asked < plan.count:
        lines.append(_shortage(selection, plan, asked))
    for reason, count in sorted(selection.left_out.items()):
        lines.append(f"Left out as {reason}: {count:,} (quarantine.jsonl)")
    if cut := selection.too_long_for_excel:
        lines.append(
            f"{counted(cut, 'question')} {verb(cut, 'has', 'have')} a text that Excel would cut; "
            "have them labelled in another program."
        )
    if alike := selection.like_formulas:
        lines.append(
            f"{counted(alike, 'question')} {verb(alike, 'has', 'have')} a text that begins with = "
            "+ - or @, which a spreadsheet may change; `align import --key` restores it, as long "
            "as the column group stays as it is."
        )
    return "\n".join(lines)


def _shortage(selection: Selection, plan: Plan, asked: int) -> str:
    """Why there are no more pairs than these, the limit that costs most first."""
    costs = sorted(selection.passed_over.items(), key=lambda cost: (-cost[1], cost[0]))
    others = "; ".join(f"{pairs:,} {_LIMITS[limit]}" for limit, pairs in costs)
    return (
        f"There are no more than {asked:,} of the {plan.count:,} wanted: "
        + (f"of the other pairs, {others}. " if others else "every pair is asked. ")
        + "Give more prompts or answers"
        + (", or raise --max-per-prompt." if "max_per_prompt" in selection.passed_over else ".")
    )


def joined_in_words(joined: Joined, key: Path) -> str:
    """What became of labels that came back, in lines for people."""
    lines = [
        f"{joined.matched:,} of {counted(joined.judgements, 'judgement')} "
        f"{verb(joined.matched, 'answers', 'answer')} questions of {key}; "
        f"{joined.held_out:,}, of the random share, {verb(joined.held_out, 'is', 'are')} kept for "
        "evaluation."
    ]
    if joined.restored:
        lines.append(
            f"{joined.restored:,} came back with other texts, which were restored from the key."
        )
    if joined.unmatched:
        rows = ", ".join(map(str, joined.unmatched[:_ROWS_SHOWN]))
        unmatched = len(joined.unmatched)
        more = unmatched - _ROWS_SHOWN
        lines.append(
            f"{unmatched:,} {verb(unmatched, 'matches', 'match')} no question, by id or by text, "
            f"and {verb(unmatched, 'stays as it is', 'stay as they are')} "
            f"(row {rows}{f' and {more:,} more' if more > 0 else ''})."
        )
    return "\n".join(lines)


def _row(row: Row) -> Answers:
    """From `{"prompt", "completions"}` or `{"prompt", "completion"}`, text or messages."""
    it_has = ", ".join(row.values) or "none"
    if "prompt" not in row.values:
        raise RowFault("column_missing", f'there is no column "prompt", only {it_has}.')
    prompt = prompt_of(row.values, "prompt")
    if "completions" not in row.values:
        if "completion" not in row.values:
            raise RowFault(
                "no_answers", f"there is neither completions nor completion, only {it_has}."
            )
        return Answers(prompt, (response_of(row.values, "completion"),), row)
    completions = row.values["completions"]
    if not isinstance(completions, list):
        raise RowFault("not_a_list", "completions is not a list.")
    if not completions:
        raise RowFault("no_answers", "completions is an empty list.")
    responses: list[Response] = []
    faults: list[RowFault] = []
    for place, value in enumerate(cast("list[object]", completions)):
        try:
            responses.append(as_response(value, f"completions[{place}]"))
        except RowFault as fault:  # a policy may say nothing; its other answers count
            faults.append(fault)
    return Answers(prompt, tuple(responses), row, tuple(faults))


def _judged_answers(folder: Path) -> Iterator[Answers]:
    """Each answer once: several judgements are of the same."""
    known: set[tuple[str, str]] = set()
    for number, judgement in enumerate(read_judgements(folder), start=1):
        row = Row(str(folder), number, number, judgement.to_json())
        prompt = judgement.prompt.id
        new = tuple(one for one in judgement.responses if (prompt, one.id) not in known)
        known.update((prompt, one.id) for one in new)
        yield Answers(judgement.prompt, new, row)


def _scores(models: Sequence[Score], prompt: Prompt, response: Response) -> tuple[float, ...]:
    """One of each model. Raises RowFault for what cannot be scored."""
    try:
        return tuple(score([prompt], [response])[0] for score in models)
    except ValueError as error:
        # Too long for the model, or text that no conversation may hold.
        raise RowFault(
            "not_scored", f"an answer cannot be scored: {str(error).rstrip('.')}."
        ) from None


def _refuse(quarantine: Quarantine, row: Row, fault: RowFault) -> None:
    quarantine.add(rejected(row, fault))
