"""The files that labellers get, and the way back from their answers to what was asked.

`labels.csv` is for a spreadsheet: one row a question, the label to be filled in with A, B, tie or
both_bad. `label_studio.json` holds the same questions as tasks of Label Studio, and
`label_studio_config.xml` the labelling interface for them. Both are read by `align import` when
they come back, the first as a table and the second as Label Studio's export. `key.jsonl` stays
here: it says why each question was asked.

Texts are verbatim, also where a spreadsheet would take them for a formula. What a spreadsheet makes
of them does no harm: the column `group` holds the question's id, by which `apply_key` finds the
question and restores its texts.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from preference_data.exports import FORMULA_STARTS
from preference_data.labelling.selection import Question
from preference_data.quarantine import DataError
from preference_data.records import Judgement, Prompt, Response
from preference_data.sources.cells import EXCEL_CELL
from preference_data.sources.store import read_judgements, record_sink, whole_or_absent

LABELS_FILE = "labels.csv"
TASKS_FILE = "label_studio.json"
CONFIG_FILE = "label_studio_config.xml"
KEY_FILE = "key.jsonl"


_COLUMNS = ("prompt", "response_a", "response_b", "label", "annotator", "comment", "group")
_ROW_ID = re.compile("r[0-9a-f]{15}")
_CONFIG = """\
<View>
  <Header value="Prompt"/>
  <Text name="prompt_text" value="$prompt"/>
  <Header value="Answer A"/>
  <Text name="answer1_text" value="$answer1"/>
  <Header value="Answer B"/>
  <Text name="answer2_text" value="$answer2"/>
  <Header value="Which answer is better?"/>
  <Choices name="better" toName="prompt_text" choice="single-radio" required="true">
    <Choice value="A"/>
    <Choice value="B"/>
    <Choice value="tie"/>
    <Choice value="both_bad"/>
  </Choices>
  <TextArea name="comment" toName="prompt_text" placeholder="Comment (optional)" rows="2"/>
</View>
"""


def write_labelling_files(questions: Sequence[Question], folder: Path) -> None:
    """Writes the four files into the folder, labels.csv last; each is whole or absent.

    Raises DataError if there is a labels.csv or a key.jsonl already, and OSError if a file cannot
    be written.
    """
    check_unused(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [{"data": _task(question)} for question in questions]
    key = b"".join(orjson.dumps(question.to_json()) + b"\n" for question in questions)
    files = {
        KEY_FILE: key,
        CONFIG_FILE: _CONFIG.encode(),
        TASKS_FILE: orjson.dumps(tasks, option=orjson.OPT_INDENT_2),
        # The byte order mark tells Excel that it is UTF-8.
        LABELS_FILE: _table(questions).encode("utf-8-sig"),
    }
    for name, content in files.items():
        with whole_or_absent(folder / name) as stream:
            stream.write(content)


def check_unused(folder: Path) -> None:
    """Raises DataError if the folder holds a labels.csv, which may be filled in, or the key.jsonl
    of questions whose labels are still to come back."""
    for name, what in ((LABELS_FILE, "hold labels"), (KEY_FILE, "belong to labels elsewhere")):
        if (folder / name).exists():
            raise DataError(
                f"{folder / name} is there already and may {what}. Give another folder, or remove "
                "it."
            )


def too_long_for_excel(questions: Sequence[Question]) -> int:
    """How many of the questions have a text that does not fit into a cell of Excel's."""
    return sum(any(len(text) > EXCEL_CELL for text in _shown(one)) for one in questions)


def like_formulas(questions: Sequence[Question]) -> int:
    """How many of the questions have a text that a spreadsheet may take for a formula."""
    return sum(any(text.startswith(FORMULA_STARTS) for text in _shown(one)) for one in questions)


def read_key(path: Path) -> list[Question]:
    """The questions in the order in which they are asked; `path` is key.jsonl or its folder.

    Raises DataError for a file that is not there or a line that is no question.
    """
    file = path / KEY_FILE if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"There is no file {file}. It is written by `align select`.")
    questions: list[Question] = []
    for line, text in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            questions.append(Question.from_json(orjson.loads(text)))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}, line {line} is no question of ours: {error}") from error
    return questions


@dataclass(frozen=True, slots=True)
class Joined:
    """What became of the judgements of a data folder."""

    judgements: int
    matched: int
    """Of a question in the key."""
    held_out: int
    """Of these, of the random share."""
    restored: int
    """Of these, those whose texts came back changed."""
    unmatched: tuple[int, ...]
    """The row, counted from 1, of each judgement that answers no question of the key."""


def apply_key(folder: Path, key: Path) -> Joined:
    """Rewrites a data folder's judgements as answers to the key's questions, in place.

    The folder was imported from what labellers sent back. A judgement's question is found by its
    id, which came back as the judgement's group, or where it has none by the texts. The judgement
    gets its prompt and responses as they were before they were flattened into text and went
    through other programs, where each was shown, and, if the pair is of the random share, the test
    side: it is kept for evaluation. Others stay as they are.

    Raises DataError, and changes nothing, if a file is missing or no record of ours, if no
    judgement answers a question, or if an id is not in the key or stands beside the texts of
    another question.
    """
    questions = _Questions(read_key(key), key)
    answers = [(one, questions.of(one)) for one in read_judgements(folder)]
    matched = [(one, question) for one, question in answers if question is not None]
    if not matched:
        raise DataError(
            f"No judgement of {folder} answers a question of {key}. Give the key that was "
            f"written with the labelling files."
        )
    with record_sink(folder, "preferences") as sink:
        for judgement, question in answers:
            joined = judgement if question is None else questions.answer(judgement, question)
            sink.write(joined.to_json())
    return Joined(
        judgements=len(answers),
        matched=len(matched),
        held_out=sum(question.id in questions.held_out for _, question in matched),
        restored=sum(not _verbatim(judgement, question) for judgement, question in matched),
        unmatched=tuple(
            one.source.row if one.source else place
            for place, (one, question) in enumerate(answers, start=1)
            if question is None
        ),
    )


class _Questions:
    """The questions of a key, by their id and by the texts that were shown."""

    def __init__(self, questions: Sequence[Question], key: Path) -> None:
        self._by_id = {question.id: question for question in questions}
        self._by_text = {_shown_ids(_flat(question)): question for question in questions}
        self._key = key
        drawn = {question.item_id for question in questions if question.why == "random"}
        self.held_out = {question.id for question in questions if question.item_id in drawn}

    def of(self, judgement: Judgement) -> Question | None:
        """The question that the judgement answers, None if it is none of the key."""
        id = judgement.group or ""
        shown = _shown_ids(judgement)
        question = self._by_id.get(id) if len(judgement.responses) == 2 else None
        if question is None:
            if _ROW_ID.fullmatch(id) and id not in self._by_id:
                raise DataError(
                    f"{_place(judgement)}: {self._key} has no question {id}. Give the key that was "
                    "written with these labelling files."
                )
            return self._by_text.get(shown)
        if not _verbatim(judgement, question) and self._of_another(shown, question):
            raise DataError(
                f"{_place(judgement)}: the group {id} stands beside the texts of another question, "
                "or its answers in the other order, so that the label's answer cannot be told. Put "
                "every cell back into its own row and column."
            )
        return question

    def answer(self, judgement: Judgement, question: Question) -> Judgement:
        return replace(
            judgement,
            prompt=question.prompt,
            responses=question.responses,
            position=(0, 1),
            split="test" if question.id in self.held_out else judgement.split,
        )

    def _of_another(self, shown: tuple[str, ...], question: Question) -> bool:
        prompt, first, second = _shown_ids(_flat(question))
        return shown in self._by_text or shown == (prompt, second, first)


def _verbatim(judgement: Judgement, question: Question) -> bool:
    """Whether the texts are those of the question, flattened or, once restored, not."""
    whole = replace(judgement, prompt=question.prompt, responses=question.responses)
    return _shown_ids(judgement) in (_shown_ids(_flat(question)), _shown_ids(whole))


def _place(judgement: Judgement) -> str:
    source = judgement.source
    return f"{source.file}, row {source.row} (line {source.line})" if source else "A judgement"


def _shown_ids(judgement: Judgement) -> tuple[str, ...]:
    """The prompt and the answers in the order in which they were shown."""
    return (judgement.prompt.id, *(response.id for response in judgement.responses))


def _flat(question: Question) -> Judgement:
    """A judgement of the question as it comes back: conversations are flattened into text."""
    prompt, *answers = _shown(question)
    return Judgement(Prompt.from_text(prompt), tuple(map(Response.from_text, answers)), (1, 1))


def _shown(question: Question) -> tuple[str, str, str]:
    first, second = question.responses
    return question.prompt.text, first.text, second.text


def _task(question: Question) -> Mapping[str, str]:
    prompt, first, second = _shown(question)
    return {"prompt": prompt, "answer1": first, "answer2": second, "group": question.id}


def _table(questions: Sequence[Question]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(_COLUMNS)
    writer.writerows((*_shown(question), "", "", "", question.id) for question in questions)
    return text.getvalue()
