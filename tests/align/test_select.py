"""`align select`: sampled answers and reward models in, a labelling task out, and back again."""

from __future__ import annotations

import csv
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align import progress
from align.artifacts import Artifact
from align.cli import main
from preference_data.labelling.files import read_key
from preference_data.records import Judgement, Prompt, Response
from preference_data.sources.store import read_judgements

ANSWERS = ["x", "xx", "xxxx"]


@pytest.fixture
def reward_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reward models by their folders' names: "long" counts an answer's letters, "short" counts
    against them, "doubt" hardly counts them. None reads more than eight."""

    class RewardModel:
        members = ()

        @classmethod
        def from_pretrained(cls, path: Path) -> RewardModel:
            model = cls()
            model.weight = {"long": 1.0, "short": -1.0, "doubt": 0.01}[path.name]
            return model

        def score(self, prompts: list[Prompt], completions: list[Response]) -> list[float]:
            if any(len(response.text) > 8 for response in completions):
                raise ValueError("a conversation of 9 tokens is longer than the 8 that it reads")
            return [self.weight * len(response.text) for response in completions]

    module = types.ModuleType("reward_models")
    module.__dict__["RewardModel"] = RewardModel
    monkeypatch.setitem(sys.modules, "reward_models", module)


@pytest.fixture
def select(
    reward_models: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """`select(source, ...)` runs the command on rows of JSONL or on a path, and returns what it
    printed."""

    def run(source: list[Any] | Path, *options: str, models: tuple[str, ...] = ("long",)) -> str:
        if isinstance(source, list):
            lines = "".join(json.dumps(row) + "\n" for row in source)
            source = tmp_path / "samples.jsonl"
            source.write_text(lines)
        chosen: list[str] = []
        for name in models:
            (tmp_path / name).mkdir(exist_ok=True)
            chosen += ["--model", str(tmp_path / name)]
        output = ["--output", str(tmp_path / "task")]
        code = main(["select", str(source), *chosen, *output, *options])
        captured = capsys.readouterr()
        return captured.out if code == 0 else captured.err

    return run


def samples(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"p{number}", "completions": ANSWERS} for number in range(count)]


def rejects(folder: Path) -> list[tuple[int, str]]:
    lines = (folder / "quarantine.jsonl").read_text().splitlines()
    return [(row["row"], row["reason"]) for row in map(json.loads, lines)]


def test_select_writes_the_labelling_files(select: Callable[..., str], tmp_path: Path):
    """Of differences of 1, 2 and 3, one model asks about the first: H(sigmoid 1) = 0.840."""
    printed = select(samples(20), "--count", "10", "--random-share", "0", "--max-per-prompt", "1")
    assert printed.splitlines() == [
        "10 pairs of 20 prompts with 60 answers: 10 informative (0.840 to 0.840 bits, by the "
        "model's own doubt), 0 at random; 0 are asked twice.",
        f"To label: {tmp_path / 'task' / 'labels.csv'}",
    ]
    names = {path.name for path in (tmp_path / "task").iterdir()}
    assert names == {
        "labels.csv", "label_studio.json", "label_studio_config.xml", "key.jsonl",
        "quarantine.jsonl",
    }  # fmt: skip
    key = read_key(tmp_path / "task")
    assert {frozenset(one.text for one in row.responses) for row in key} == {frozenset({"x", "xx"})}
    assert len({row.prompt.text for row in key}) == 10


def test_select_shows_how_far_it_is(
    select: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Rows as they are read, whose end is not known, and then prompts as they are scored."""
    begun: list[tuple[str, int | None, str]] = []
    monkeypatch.setattr(
        progress._display, "begin", lambda b: begun.append((b.what, b.total, b.unit))
    )
    assert "To label:" in select(samples(20), "--count", "10")
    assert begun == [("reading", None, "rows"), ("scoring", 20, "prompts")]


def test_an_ensemble_asks_where_it_disagrees(select: Callable[..., str], tmp_path: Path):
    """ "long" and "short" are sure of the opposite where the lengths differ most."""
    printed = select(samples(4), "--count", "4", "--max-per-prompt", "1", "--random-share", "0.5",
                     models=("long", "short"))  # fmt: skip
    assert "by the disagreement of the models), 2 at random" in printed
    informative = [row for row in read_key(tmp_path / "task") if row.why == "informative"]
    assert {frozenset(one.text for one in row.responses) for row in informative} == {
        frozenset({"x", "xxxx"})
    }
    assert {row.scores for row in informative} <= {
        ((1.0, -1.0), (4.0, -4.0)),
        ((4.0, -4.0), (1.0, -1.0)),
    }


def test_what_cannot_be_asked_is_left_out_and_said(select: Callable[..., str], tmp_path: Path):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [
        {"prompt": "p", "completions": ["x", " ", "xx", "x" * 9, "xx"]},
        {"prompt": "q", "completion": "x"},
        {"prompt": "r", "completion": "x"},
        {"prompt": "q", "completion": "xx"},
        {"prompt": "", "completions": ["x", "xx"]},
        {"prompt": "p", "chosen": "x"},
        {"prompt": "p", "completions": "x"},
        {"prompt": [*turns, turns[0]], "completions": ["x", "xx"]},
        {"prompt": "s", "completions": []},
    ]
    printed = select(rows, "--count", "4", "--random-share", "0")
    assert printed.splitlines()[:-1] == [
        "3 pairs of 3 prompts with 6 answers: 3 informative (0.840 to 0.840 bits, by the model's "
        "own doubt), 0 at random; 0 are asked twice.",
        "There are no more than 3 of the 4 wanted: every pair is asked. Give more prompts or "
        "answers.",
        "Left out as empty_prompt: 1 (quarantine.jsonl)",
        "Left out as empty_response: 1 (quarantine.jsonl)",
        "Left out as no_answers: 2 (quarantine.jsonl)",
        "Left out as not_a_list: 1 (quarantine.jsonl)",
        "Left out as not_scored: 1 (quarantine.jsonl)",
        "Left out as one_answer: 1 (quarantine.jsonl)",
        "Left out as same_answer: 1 (quarantine.jsonl)",
    ]
    assert sorted(rejects(tmp_path / "task")) == [
        (1, "empty_response"),
        (1, "not_scored"),
        (1, "same_answer"),
        (3, "one_answer"),
        (5, "empty_prompt"),
        (6, "no_answers"),
        (7, "not_a_list"),
        (9, "no_answers"),
    ]


def test_select_says_which_limit_left_too_few(select: Callable[..., str], tmp_path: Path):
    """Two prompts of three pairs. With one of each: the other four are over the limit. With all of
    one prompt and one random pair: the other two pairs of its prompt are not to be touched."""
    options = ["--count", "6", "--repeats", "0"]
    printed = select(samples(2), *options, "--random-share", "0", "--max-per-prompt", "1")
    assert printed.splitlines()[1] == (
        "There are no more than 2 of the 6 wanted: of the other pairs, 4 of a prompt with as many "
        "questions as --max-per-prompt allows. Give more prompts or answers, or raise "
        "--max-per-prompt."
    )
    for name in ("labels.csv", "key.jsonl"):
        (tmp_path / "task" / name).unlink()
    printed = select(samples(2), *options, "--random-share", "0.17", "--max-per-prompt", "3")
    assert printed.splitlines()[1] == (
        "There are no more than 4 of the 6 wanted: of the other pairs, 2 of a prompt of the random "
        "share, which no other question may touch. Give more prompts or answers."
    )


def test_select_says_what_a_spreadsheet_may_change(select: Callable[..., str]):
    rows = [{"prompt": "p", "completions": ["=1", "xxx"]}, {"prompt": "q", "completions": ANSWERS}]
    printed = select(rows, "--count", "3", "--random-share", "0")
    assert (
        "1 question has a text that begins with = + - or @, which a spreadsheet may change; "
        "`align import --key` restores it, as long as the column group stays as it is."
    ) in printed.splitlines()


def test_a_data_folder_gives_its_answers_and_earlier_judgements(
    select: Callable[..., str], tmp_path: Path, capsys: Any
):
    """Six rankings of three answers, two of each prompt; two of three pairs were judged."""
    table = tmp_path / "ranks.csv"
    with open(table, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["prompt", *(f"{n}_{i}" for n in ("response", "rank") for i in (1, 2, 3))])
        for number in range(3):
            writer.writerow([f"p{number}", *ANSWERS, 1, 2, ""])
            writer.writerow([f"p{number}", *ANSWERS, 1, "", 2])
    assert main(["import", str(table), "--output", str(tmp_path / "data")]) == 0
    capsys.readouterr()
    earlier = ["--earlier", str(tmp_path / "data"), "--max-per-prompt", "3"]
    printed = select(tmp_path / "data", "--count", "9", "--random-share", "0", *earlier)
    assert printed.startswith("3 pairs of 3 prompts with 9 answers: 3 informative")
    assert "Left out" not in printed
    asked = {frozenset(one.text for one in row.responses) for row in read_key(tmp_path / "task")}
    assert asked == {frozenset({"xx", "xxxx"})}


def test_the_labels_come_back_by_import(select: Callable[..., str], tmp_path: Path, capsys: Any):
    """30 pairs, two of them twice; a labeller who prefers the shorter answer."""
    options = ["--count", "30", "--repeats", "0.07", "--seed", "3"]
    select(samples(30), *options, models=("long", "doubt"))
    task, data = tmp_path / "task", tmp_path / "data"
    with open(task / "labels.csv", encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        row |= {"annotator": "ann"}
        row["label"] = "A" if len(row["response_a"]) < len(row["response_b"]) else "B"
    with open(tmp_path / "filled.csv", "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    command = ["import", str(tmp_path / "filled.csv"), "--output", str(data)]
    assert main([*command, "--key", str(task / "key.jsonl")]) == 0
    key = read_key(task)
    drawn = {row.item_id for row in key if row.why == "random"}
    held_out = sum(row.item_id in drawn for row in key)
    assert len(key) == 32 and len(drawn) == 4
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"32 of 32 judgements answer questions of {task / 'key.jsonl'}; {held_out}, of the random "
        "share, are kept for evaluation."
    )
    judgements = list(read_judgements(data))
    assert [one.item_id for one in judgements] == [row.item_id for row in key]
    assert {one.item_id for one in judgements if one.split == "test"} == drawn
    for one in judgements:
        best = one.responses[one.ranks.index(1)]
        assert len(best.text) == min(len(response.text) for response in one.responses)


def test_labels_that_a_spreadsheet_changed_come_back_whole(
    select: Callable[..., str], tmp_path: Path, capsys: Any
):
    """A space at the end of one answer, a prompt without its last letter, a row of its own."""
    select(samples(3), "--count", "3", "--random-share", "0.34", "--repeats", "0")
    task, edited = tmp_path / "task", tmp_path / "edited.csv"
    with open(task / "labels.csv", encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        row["label"] = "A"
    rows[0]["response_a"] += " "
    rows[1]["prompt"] = rows[1]["prompt"][:-1]
    rows.append({**rows[2], "prompt": "mine", "group": ""})
    with open(edited, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    command = ["import", str(edited), "--output", str(tmp_path / "data"), "--key", str(task)]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [
        f"3 of 4 judgements answer questions of {task}; 1, of the random share, is kept for "
        "evaluation.",
        "2 came back with other texts, which were restored from the key.",
        "1 matches no question, by id or by text, and stays as it is (row 4).",
    ]
    judgements = list(read_judgements(tmp_path / "data"))
    assert [one.item_id for one in judgements[:3]] == [row.item_id for row in read_key(task)]
    assert [one.split for one in judgements].count("test") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--count", "0"], "count is a number from 1 up, not 0."),
        (["--count", "1", "--repeats", "0.5"], "repeats lies between 0 and 1/3, not at 0.5."),
        (["--count", "1", "--model", "none"], "none: there is no such folder."),
        (["--count", "1", "--earlier", "none"], "none: there is no such folder."),
        (
            ["--count", "1", "--votes", "3"],
            "--votes counts the judgements of --earlier; give both, or neither.",
        ),
    ],
)
def test_select_says_what_does_not_fit(
    select: Callable[..., str], options: list[str], message: str, tmp_path: Path
):
    assert select(samples(2), *options) == message + "\n"
    assert not (tmp_path / "task").exists()


def test_select_looks_for_its_rows_before_it_loads_a_model(
    select: Callable[..., str], tmp_path: Path
):
    said = select(tmp_path / "none.jsonl", "--count", "1", models=("unknown",))
    assert said.startswith(f"There is no file {tmp_path / 'none.jsonl'}")


def test_select_wants_reward_steps(select: Callable[..., str], tmp_path: Path):
    step = Artifact("sft", "sft", tmp_path / "sft", "0" * 16, {})
    step.path.mkdir()
    step.save()
    said = select(samples(2), "--count", "1", models=("long", "sft"))
    assert said == f"--model: {tmp_path / 'sft'} is a step of kind sft, not reward.\n"
    assert not (tmp_path / "task").exists()


def test_select_says_that_a_folder_holds_no_model(tmp_path: Path, capsys: Any):
    (tmp_path / "samples.jsonl").write_text('{"prompt": "p", "completions": ["x", "xx"]}\n')
    (tmp_path / "empty").mkdir()
    command = ["select", str(tmp_path / "samples.jsonl"), "--model", str(tmp_path / "empty")]
    assert main([*command, "--output", str(tmp_path / "task"), "--count", "1"]) == 2
    said = capsys.readouterr().err
    assert said == f"--model: {tmp_path / 'empty'} holds no reward model (no scoring.json).\n"


def test_a_selection_that_finds_nothing_leaves_nothing_unsaid(
    select: Callable[..., str], tmp_path: Path, capsys: Any
):
    """All is judged: no folder is left. With a row that was refused, its file is named."""
    table = tmp_path / "judged.csv"
    table.write_text("prompt,response_a,response_b,label\np0,x,xx,A\n")
    assert main(["import", str(table), "--output", str(tmp_path / "data")]) == 0
    capsys.readouterr()
    earlier = ["--count", "1", "--earlier", str(tmp_path / "data")]
    row = {"prompt": "p0", "completions": ["x", "xx"]}
    sentence = (
        "There is no pair to ask: of 1 pair, people have judged all. Ask for more votes on each "
        "(--votes), or give other answers."
    )
    assert select([row], *earlier) == f"{sentence}\n"
    assert not (tmp_path / "task").exists()
    said = select([row, {"prompt": "q"}], *earlier)
    assert said == f"{sentence} See {tmp_path / 'task' / 'quarantine.jsonl'}.\n"
    assert rejects(tmp_path / "task") == [(2, "no_answers")]


def test_select_does_not_write_over_labels(select: Callable[..., str], tmp_path: Path):
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "labels.csv").write_text("work")
    assert "is there already and may hold labels" in select(samples(2), "--count", "1")
    assert (tmp_path / "task" / "labels.csv").read_text() == "work"
    (tmp_path / "task" / "labels.csv").rename(tmp_path / "task" / "key.jsonl")  # labelled elsewhere
    assert "key.jsonl is there already and may belong to labels elsewhere" in select(
        samples(2), "--count", "1"
    )
    assert (tmp_path / "task" / "key.jsonl").read_text() == "work"


def test_select_says_why_there_is_nothing_to_ask(select: Callable[..., str], tmp_path: Path):
    said = select([{"prompt": "p", "chosen": "x", "rejected": "y"}], "--count", "1")
    assert said == (
        f"{tmp_path / 'samples.jsonl'} has no prompt with two answers that can be compared (the "
        "first: row 1 (line 1): there is neither completions nor completion, only prompt, chosen, "
        "rejected.). See "
        f"{tmp_path / 'task' / 'quarantine.jsonl'}.\n"
    )
    assert rejects(tmp_path / "task") == [(1, "no_answers")]


def test_select_names_a_column_that_is_missing_before_it_loads_a_model(
    select: Callable[..., str], tmp_path: Path
):
    """In the first row it is missing in all; a later one is set aside."""
    said = select([{"question": "p", "completions": ["x"]}], "--count", "1", models=("unknown",))
    assert said == (
        f'{tmp_path / "samples.jsonl"} has no column "prompt"; it has question, completions. '
        "Rename the column.\n"
    )
    assert not (tmp_path / "task").exists()
    printed = select([*samples(1), {"completions": ANSWERS}, {"prompt": " "}], "--count", "1")
    assert "Left out as column_missing: 1 (quarantine.jsonl)" in printed
    assert rejects(tmp_path / "task") == [(2, "column_missing"), (3, "empty_prompt")]
    rows = (tmp_path / "task" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(rows[0])["detail"] == (
        'row 2 (line 2): there is no column "prompt", only completions.'
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--key", "none"], "There is no file none. It is written by `align select`."),
        (
            ["--key", "k", "--kind", "text"],
            "--key joins judgements; it has no effect on text. Leave it out.",
        ),
        (
            ["--key", "k", "--personal-data", "mask"],
            "--key restores the texts as they were asked, so that nothing stays masked. Leave out "
            "--personal-data mask, or --key.",
        ),
    ],
)
def test_import_refuses_a_key_before_it_imports(
    options: list[str], message: str, tmp_path: Path, capsys: Any
):
    (tmp_path / "a.csv").write_text("prompt,response_a,response_b,label\np,a,b,A\n")
    folder = tmp_path / "data"
    assert main(["import", str(tmp_path / "a.csv"), "--output", str(folder), *options]) == 2
    assert capsys.readouterr() == ("", message + "\n")
    assert not folder.exists()


def test_real_reward_models_choose(save_reward: Callable[..., Path], tmp_path: Path, capsys: Any):
    """Two tiny models that were moved apart: the scores in the key are theirs."""
    from reward_models import RewardModel

    folders = [save_reward(seed, f"reward{seed}", max_length=48) for seed in (1, 2)]
    rows = [
        {"prompt": "Name a colour.", "completions": ["Snow.", "It rained.", "cold", "word " * 60]},
        {"prompt": "What is hot?", "completions": ["The opposite of cold.", "Paris", "a<|end|>"]},
    ]
    source = tmp_path / "samples.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    models = [word for folder in folders for word in ("--model", str(folder))]
    output = ["--output", str(tmp_path / "task"), "--count", "3", "--random-share", "0"]
    assert main(["select", str(source), *models, *output]) == 0
    assert "3 pairs of 2 prompts with 5 answers" in capsys.readouterr().out
    assert rejects(tmp_path / "task") == [(1, "not_scored"), (2, "not_scored")]
    loaded = [RewardModel.from_pretrained(folder) for folder in folders]
    for row in read_key(tmp_path / "task"):
        for response, scores in zip(row.responses, row.scores, strict=True):
            given = [model.score([row.prompt.text], [response.text])[0] for model in loaded]
            assert list(scores) == given
            assert scores[0] != scores[1]


def test_item_ids_are_those_of_any_judgement(select: Callable[..., str], tmp_path: Path):
    select([{"prompt": "p", "completions": ["x", "xx"]}], "--count", "1")
    [row] = map(json.loads, (tmp_path / "task" / "key.jsonl").read_text().splitlines())
    answers = Response.from_text("xx", "some model"), Response.from_text("x")
    assert row["item_id"] == Judgement(Prompt.from_text("p"), answers, (1, 2)).item_id
