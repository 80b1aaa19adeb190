"""A conversation with a policy: what it reads, what is said when, and the draws behind it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from align.chat import Conversation, Pieces, Sampling, Voice, names_of, printable
from align.chat_session import Session
from align.config import ConfigError
from align.policy import load_policy, respond, uniforms

FRANCE = "What is the capital of France?"
HOT = "What is the opposite of hot?"


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, shake: Any) -> Path:
    """A folder with the policies `one` and `other`."""
    from align.base import load_base, load_renderer
    from align.config import Base, Lora
    from align.roles import Roles

    folder = tmp_path_factory.mktemp("policies")
    for seed, name in enumerate(("one", "other")):
        base = load_base(str(tiny_folder), Base(model=str(tiny_folder)), torch.device("cpu"))
        renderer = load_renderer(str(tiny_folder))
        roles = Roles(base, renderer, Lora(r=4, alpha=8), str(tiny_folder))
        roles.add("policy", fresh=True, trainable=True)
        shake(roles.parameters_of("policy"), seed=seed)
        roles.save("policy", folder / name)
    return folder


@pytest.fixture
def voice(policies: Path) -> Voice:
    return Voice.load(policies / "one", "one")


def test_an_answer_is_that_of_the_same_seed_piece_by_piece(policies: Path, voice: Voice):
    """The first answer is drawn with the numbers of seed 1, the second with those of seed 2."""
    model, renderer = load_policy(policies / "one")
    turns = [{"role": "user", "content": FRANCE}]
    sampling = Sampling(0.7, 24)
    for number in (1, 2):
        pieces: list[str] = []
        ids = voice.ids(turns, 24)
        text = voice.answer(ids, sampling.draws(number), 0.7, pieces.append)
        [expected] = respond(model, [ids], uniforms(number, 1, 24), renderer, 0.7)
        assert text == renderer.decode(expected.ids) == "".join(pieces)
        assert len(pieces) > 1


def test_other_seeds_and_temperatures_answer_otherwise_and_0_always_the_same(voice: Voice):
    ids = voice.ids([{"role": "user", "content": FRANCE}], 24)

    def answer(seed: int, temperature: float) -> str:
        return voice.answer(ids, Sampling(temperature, 24, seed).draws(1), temperature)

    assert len({answer(seed, 1.0) for seed in range(4)}) > 1
    assert len({answer(seed, 0.0) for seed in range(4)}) == 1


def test_pieces_hold_back_unfinished_characters_and_space_at_the_end(renderer: Any):
    """é is two bytes, and so two tokens here: after the first there is nothing new to say."""
    text = "a é b"
    tokens = renderer.tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = Pieces(renderer)
    said = [list(pieces.add(token)) for token in tokens]
    assert "".join(piece for one in said for piece in one) == text
    assert [] in said
    assert not any(piece.endswith(("\ufffd", " ")) for one in said for piece in one)


def talk(voice: Voice, *questions: str, room: int = 8, **settings: Any) -> Conversation:
    conversation = Conversation(voice, **settings)
    for number, question in enumerate(questions, 1):
        draws = Sampling(0.7, room).draws(number)
        conversation.ask(question, draws, 0.7, lambda piece: None)
    return conversation


def test_a_conversation_is_read_whole(voice: Voice):
    conversation = talk(voice, FRANCE, HOT, system="Be brief.")
    roles = [turn["role"] for turn in conversation.messages]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    assert conversation.to_json()["messages"] == conversation.messages


def test_the_oldest_turns_go_when_the_context_is_full(
    voice: Voice, monkeypatch: pytest.MonkeyPatch
):
    """Room for the system message, one question and its answer, and no second question."""
    system = {"role": "system", "content": "Be brief."}
    alone = len(voice.ids([system, {"role": "user", "content": HOT}], 8))
    monkeypatch.setattr(Voice, "positions", alone + 8)
    conversation = talk(voice, FRANCE, HOT, system="Be brief.")
    assert conversation.forgotten == 2
    assert [turn["content"] for turn in conversation.messages[:2]] == ["Be brief.", HOT]
    assert [turn["content"] for turn in conversation.to_json()["messages"]][1] == FRANCE
    with pytest.raises(ValueError, match="more than the"):
        conversation.ask(HOT * 3, Sampling(0.7, 8).draws(3), 0.7, lambda piece: None)
    assert conversation.turns[-2]["content"] == HOT
    conversation.undo()
    assert [turn["content"] for turn in conversation.messages[:2]] == ["Be brief.", FRANCE]


def test_undo_takes_back_what_was_said_last(voice: Voice):
    conversation = talk(voice, FRANCE, HOT)
    assert conversation.undo() == HOT
    assert [turn["content"] for turn in conversation.turns][:1] == [FRANCE]
    assert (conversation.undo(), conversation.undo()) == (FRANCE, None)


def test_a_control_token_in_a_question_is_refused(voice: Voice):
    with pytest.raises(ValueError, match=r"the control token .<\|end\|>."):
        talk(voice, "Say <|end|> please.")


def test_a_stopped_answer_keeps_what_was_said(voice: Voice):
    def stop(piece: str) -> None:
        said.append(piece)
        if len(said) == 2:
            raise KeyboardInterrupt

    said: list[str] = []
    conversation = Conversation(voice)
    with pytest.raises(KeyboardInterrupt):
        conversation.ask(FRANCE, Sampling(1.0, 24).draws(1), 1.0, stop)
    assert [turn["content"] for turn in conversation.turns] == [FRANCE, "".join(said)]


def test_names_tell_two_policies_apart():
    assert names_of([Path("a/ppo")]) == ["ppo"]
    assert names_of([Path("a/ppo"), Path("a/sft")]) == ["ppo", "sft"]
    assert names_of([Path("a/ppo"), Path("b/ppo")]) == ["a/ppo", "b/ppo"]
    assert names_of([Path("a/ppo"), Path("a/ppo")]) == ["ppo (1)", "ppo (2)"]


def test_nothing_that_a_policy_says_moves_the_cursor():
    assert printable("a\x1b[2Jb\rc\x07\x9b\n\td\u200d👍") == "a[2Jbc\n\td\u200d👍"


def test_a_policy_of_a_moved_run_finds_its_base(policies: Path, tiny_folder: Path, tmp_path: Path):
    """The adapter names a base that is gone; the run has one of that name beside the step."""
    import shutil

    run = tmp_path / "run"
    shutil.copytree(policies / "one", run / "ppo")
    shutil.copytree(tiny_folder, run / "base")
    settings = run / "ppo" / "adapter" / "adapter_config.json"
    plain = json.loads(settings.read_text())
    settings.write_text(json.dumps({**plain, "base_model_name_or_path": "/gone/run/base"}))
    assert Voice.load(run / "ppo", "ppo").positions == 1024
    shutil.rmtree(run / "base")
    with pytest.raises(ConfigError, match=r"/gone/run/base, the base under .*, is not there"):
        Voice.load(run / "ppo", "ppo")


# --- a session ------------------------------------------------------------------------------------


@pytest.fixture
def session(
    policies: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Session, list[str]]]:
    """`session("one", "other", lines=[…])` has talked until its input ended."""

    def talked(*names: str, lines: list[str], score: Any = None) -> tuple[Session, list[str]]:
        typed: Iterator[str] = iter(lines)

        def read(prompt: str = "") -> str:
            try:
                return next(typed)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", read)
        voices = [Voice.load(policies / name, name) for name in names]
        found = Session([Conversation(voice) for voice in voices], Sampling(0.7, 8), score)
        found.run()
        return found, [turn["content"] for turn in found.conversations[0].turns]

    return talked


def test_commands_do_what_they_say(session: Any, tmp_path: Path, capsys: Any):
    file = tmp_path / "talk.json"
    lines = [
        FRANCE, "/retry", HOT, "/undo", "/system Be brief.", "/temperature 0.1",
        "/temperature warm", "/retry", f"/save {file}", f"/save {file}", "/nothing", "/undo",
        "/undo", "/retry", "", "//help", "/exit", HOT,
    ]  # fmt: skip
    found, turns = session("one", lines=lines)
    assert turns[0] == "/help" and len(turns) == 2
    assert found.sampling.temperature == 0.1
    assert found.asked == 5  # France twice, hot, France again, /help
    [saved] = json.loads(file.read_text())
    roles = [turn["role"] for turn in saved["messages"]]
    assert (saved["policy"], roles) == ("one", ["system", "user", "assistant"])
    said = capsys.readouterr().err
    for sentence in (
        f"Taken back: {HOT}", "The temperature is 0.1.", "/temperature takes a number, 0 or more",
        f"Saved: {file}", f"{file} is there already", "There is no command /nothing",
        "There is nothing to take back.", "There is no question to ask again.",
    ):  # fmt: skip
        assert sentence in said


def test_retry_draws_anew_and_reset_forgets(session: Any):
    _, first = session("one", lines=[FRANCE])
    _, again = session("one", lines=[FRANCE, "/retry"])
    _, reset = session("one", lines=[HOT, "/reset", FRANCE])
    assert first[0] == again[0] == reset[0] and first[1] != again[1]
    assert len(reset) == 2


def test_two_policies_are_asked_the_same_with_the_same_draws(session: Any, capsys: Any):
    """Each answers as it would alone; a policy beside itself says the same."""
    alone = [session(name, lines=[FRANCE, HOT])[0].conversations[0] for name in ("one", "other")]
    capsys.readouterr()
    both, _ = session("one", "other", lines=[FRANCE, HOT], score=lambda turns, answer: 1.25)
    assert [one.turns for one in both.conversations] == [one.turns for one in alone]
    out = capsys.readouterr().out.splitlines()
    assert [line for line in out if line in ("one:", "other:")] == ["one:", "other:"] * 2
    assert out.count("(score 1.25)") == 4
    twice, _ = session("one", "one", lines=[FRANCE])
    assert twice.conversations[0].turns == twice.conversations[1].turns


def test_a_stopped_comparison_leaves_both_as_they_were(
    session: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    answer = Voice.answer

    def stop(self: Voice, *arguments: Any) -> str:
        if self.name == "other":
            raise KeyboardInterrupt
        return answer(self, *arguments)

    monkeypatch.setattr(Voice, "answer", stop)
    found, turns = session("one", "other", lines=[FRANCE])
    assert turns == [] == found.conversations[1].turns
    assert "Stopped." in capsys.readouterr().err


def test_what_cannot_be_asked_is_said_and_the_session_goes_on(session: Any, capsys: Any):
    _, turns = session("one", lines=["word " * 600, FRANCE])
    assert turns[0] == FRANCE
    assert "This was not asked: its" in capsys.readouterr().err
