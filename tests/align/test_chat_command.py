"""`align chat`: one prompt, a conversation, a file of prompts, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from align.chat import Sampling, Voice
from align.chat_prompts import answer_file, read_prompts
from align.cli import main
from align.config import ConfigError

FRANCE = "What is the capital of France?"
HOT = "What is the opposite of hot?"
SHORT = ["--max-new-tokens", "8"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, shake: Any) -> Path:
    """A run folder with the policies `sft` and `ppo` and the reward model `reward`."""
    from align.base import load_base, load_renderer
    from align.config import Base, Lora
    from align.roles import Roles
    from reward_models.scalar_head import ScalarHead, Scoring

    folder = tmp_path_factory.mktemp("runs") / "mine"
    renderer = load_renderer(str(tiny_folder))
    base = load_base(str(tiny_folder), Base(model=str(tiny_folder)), torch.device("cpu"))
    roles = Roles(base, renderer, Lora(r=4, alpha=8), str(tiny_folder))
    for seed, name in enumerate(("sft", "ppo")):
        roles.add(name, fresh=True, trainable=True)
        shake(roles.parameters_of(name), seed=seed)
        roles.save(name, folder / name)
    roles.add("reward", fresh=True, trainable=True, head=ScalarHead(32))
    shake(roles.parameters_of("reward"))
    scoring = Scoring(renderer.fingerprint(), max_length=512, mean=0.5, std=2.0)
    roles.save("reward", folder / "reward", scoring)
    steps = {name: {"kind": name} for name in ("sft", "reward", "ppo")}
    (folder / "run.json").write_text(json.dumps({"name": "mine", "config": {"steps": steps}}))
    return folder


def test_one_prompt_is_answered_with_nothing_around_it(run: Path, capsys: Any):
    assert main(["chat", str(run / "ppo"), "--prompt", FRANCE, *SHORT]) == 0
    voice = Voice.load(run / "ppo", "ppo")
    ids = voice.ids([{"role": "user", "content": FRANCE}], 8)
    assert capsys.readouterr() == (voice.answer(ids, Sampling().draws(1)[:, :8], 0.7) + "\n", "")


def test_a_conversation_comes_from_standard_input(
    run: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO(f"{FRANCE}\n{HOT}\n"))
    assert main(["chat", str(run / "ppo"), "--compare", str(run / "sft"), *SHORT]) == 0
    out, err = capsys.readouterr()
    assert [line for line in out.splitlines() if line in ("ppo:", "sft:")] == ["ppo:", "sft:"] * 2
    assert err == "" and ">" not in out


def test_a_file_of_prompts_is_answered_in_order(run: Path, tmp_path: Path, capsys: Any):
    """Every row as alone in a batch, its other fields kept; the score is (raw - 0.5) / 2."""
    from reward_models import RewardModel

    rows = [
        {"id": 7, "prompt": FRANCE},
        {"id": 8, "messages": [{"role": "user", "content": HOT}]},
        {"id": 9, "prompt": [{"role": "user", "content": "word " * 600}]},
        {"id": 10, "prompt": "  "},
    ]
    file, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    command = ["chat", str(run / "ppo"), "--prompts", str(file), "--output", str(output), *SHORT]
    assert main([*command, "--reward", str(run / "reward")]) == 0
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    assert [{k: v for k, v in a.items() if k not in ("completion", "score")} for a in answers] == (
        rows
    )
    assert [a["completion"] is None for a in answers] == [False, False, True, True]
    voice = Voice.load(run / "ppo", "ppo")
    draws = Sampling(max_new_tokens=8).draws(1, 4)
    for place, text in enumerate((FRANCE, HOT)):
        ids = voice.ids([{"role": "user", "content": text}], 8)
        assert answers[place]["completion"] == voice.answer(ids, draws[place : place + 1], 0.7)
    [raw] = RewardModel.from_pretrained(run / "reward").score([FRANCE], [answers[0]["completion"]])
    assert answers[0]["score"] == pytest.approx((raw - 0.5) / 2, abs=1e-5)
    assert answers[2]["score"] is None
    out, err = capsys.readouterr()
    assert out == f"2 of 4 prompts answered: {output}\n"
    first, second, third = err.splitlines()
    assert first == "2 of 4 prompts have no answer:"
    assert second.startswith("  row 3: its ") and "1024 positions of ppo." in second
    assert third == "  row 4: its prompt is empty."

    assert main(command) == 2
    assert capsys.readouterr().err == f"--output: {output} is there already; --force replaces it.\n"
    assert main([*command, "--force", "--temperature", "0"]) == 0
    assert "score" not in output.read_text()


def test_a_table_keeps_its_columns_and_two_policies_have_their_own(run: Path, tmp_path: Path):
    file, output = tmp_path / "in.csv", tmp_path / "out.csv"
    file.write_text(f'note,prompt\n"a, b",{FRANCE}\n,{HOT}\n')
    command = ["chat", str(run / "ppo"), "--compare", str(run / "sft"), "--prompts", str(file)]
    assert main([*command, "--output", str(output), "--system", "Be brief.", *SHORT]) == 0
    with output.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["note", "prompt", "completion_ppo", "completion_sft"]
    assert [(row["note"], row["prompt"]) for row in rows] == [("a, b", FRANCE), ("", HOT)]
    assert all(row["completion_ppo"] for row in rows)


def test_answers_do_not_depend_on_the_batch(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    file = tmp_path / "in.txt"
    file.write_text(f"{FRANCE}\n\n{HOT}\nName the colour of snow.\n")
    rows = read_prompts(file)
    assert [row.number for row in rows] == [1, 3, 4]
    voices = [Voice.load(run / "ppo", "ppo")]
    printed: list[str] = []
    for size in (32, 2, 1):
        monkeypatch.setattr("align.chat_prompts.AT_ONCE", size)
        assert answer_file(rows, voices, Sampling(0.7, 8), None, None).faults == []
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] == printed[2]
    assert json.loads(printed[0].splitlines()[0])["prompt"] == FRANCE


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("in.jsonl", "", "holds no prompt"),
        ("in.csv", "prompt\n", "holds no prompt"),
        ("in.txt", " \n\n", "holds no prompt"),
        ("in.jsonl", '{"prompt": "a"}\n{', "in.jsonl, line 2 is no JSON."),
        ("in.jsonl", "[1]", "line 1 is no JSON object"),
        ("in.jsonl", '{"question": "a"}', "line 1 has neither prompt .* it has question."),
        ("in.jsonl", '{"messages": ["a"]}', "line 1 has a message without role and content"),
        ("in.csv", "question\na\n", "has no column prompt; its columns are question."),
        ("in.csv", "prompt,note\na\n", "row 1 has more or fewer cells than the header"),
        ("in.csv", "prompt\na,b\n", "row 1 has more or fewer cells than the header"),
    ],
)
def test_a_file_that_cannot_be_asked_is_refused(tmp_path: Path, name: str, text: str, message: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_prompts(tmp_path / name)


def test_the_rows_own_system_message_stands(tmp_path: Path):
    rows = [{"messages": [{"role": role, "content": "x"} for role in roles]}
            for roles in (["system", "user"], ["user"])]  # fmt: skip
    file = tmp_path / "in.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    found = [[turn["content"] for turn in row.turns] for row in read_prompts(file, "Be brief.")]
    assert found == [["x", "x"], ["Be brief.", "x"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["RUN/reward"], "RUN/reward is a reward model: it scores answers and writes none."),
        (["RUN"], "RUN is a run; name one of its policies: RUN/sft, RUN/ppo."),
        (["RUN/ppo", "--compare", "none"], "none: there is no such folder."),
        (["RUN/ppo", "--reward", "none"], "--reward: none: there is no such folder."),
        (["RUN/ppo", "--reward", "RUN/sft"], "--reward: RUN/sft holds no reward model"),
        (["RUN/ppo", "--prompt", " "], "--prompt is empty."),
        (["RUN/ppo", "--prompt", "a", "--prompts", "b"], "exclude each other"),
        (["RUN/ppo", "--output", "a.csv"], "--output has no effect without --prompts"),
        (["RUN/ppo", "--force"], "--force has no effect without --output"),
        (["RUN/ppo", "--prompts", "RUN/run.json", "--output", "a.txt"], "is to end in .jsonl or"),
        (["RUN/ppo", "--prompts", "none.csv"], "none.csv cannot be read: No such file"),
    ],
)
def test_what_chat_refuses(run: Path, options: list[str], message: str, capsys: Any):
    options = [option.replace("RUN", str(run)) for option in options]
    assert main(["chat", *options]) == 2
    assert message.replace("RUN", str(run)) in capsys.readouterr().err


def test_a_column_of_that_name_is_not_overwritten(run: Path, tmp_path: Path, capsys: Any):
    file = tmp_path / "in.jsonl"
    file.write_text(json.dumps({"prompt": FRANCE, "completion": "Paris"}))
    assert main(["chat", str(run / "ppo"), "--prompts", str(file)]) == 2
    assert "row 1 has the field completion already." in capsys.readouterr().err
