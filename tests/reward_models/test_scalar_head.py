"""The head, how its scores are read, and the reward model as a user holds it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from preference_data import forward_size
from preference_data.attention import hidden_states
from preference_data.batches import Group, pack
from preference_data.records import Prompt, Response
from preference_data.rendering import RenderingError
from reward_models import RewardModel
from reward_models.folders import base_under
from reward_models.losses import TieModel
from reward_models.scalar_head import (
    HEAD_KEY,
    ScalarHead,
    Scoring,
    cut_left,
    sequence_scores,
    value_head_from,
)

PROMPTS = ["What is the capital of France?", "What is the opposite of hot?", "Name a colour."]
ANSWERS = ["The capital of France is Paris.", "cold", "Snow. By the way, it rained."]


@pytest.fixture
def saved(save_reward: Callable[..., Path]) -> Path:
    return save_reward(max_length=48, mean=0.5, std=2.0)


# --- the head -------------------------------------------------------------------------------------


def test_a_head_reads_the_last_token_of_each_sequence():
    """Hidden states number the tokens; a head of ones reads that number. Prompt 0 1, completions
    2 3 and 4; prompt 5, completion 6: the last tokens are 3, 4 and 6."""
    batch = pack([Group((1, 2), ((3, 4), (5,))), Group((6,), ((7,),))])
    head = ScalarHead(1)
    torch.nn.init.ones_(head.weight)
    hidden = torch.arange(7.0)[None, :, None]
    assert sequence_scores(hidden, head, batch).tolist() == [3.0, 4.0, 6.0]


def test_a_head_starts_with_scores_of_unit_variance():
    """Weights N(0, 1 / (D + 1)): 400 heads of D = 99 on a state of 99 ones: variance .99."""
    torch.manual_seed(0)
    scores = torch.stack([ScalarHead(99)(torch.ones(99)) for _ in range(400)]).detach()
    assert scores.mean().item() == pytest.approx(0.0, abs=0.2)
    assert scores.var().item() == pytest.approx(0.99, abs=0.25)
    assert ScalarHead(8).bias is None
    assert ScalarHead(8, bias=True).bias.item() == 0.0


def test_a_head_computes_in_float32():
    """Of bfloat16 states: 256 ones and 1/256 sum to 256.00390625, which bfloat16 rounds to 256."""
    head = ScalarHead(2)
    head.weight.data = torch.tensor([[256.0, 1 / 256]])
    assert head(torch.ones(3, 2, dtype=torch.bfloat16)).tolist() == [256.00390625] * 3


# --- how scores are read --------------------------------------------------------------------------


def test_scoring_is_kept_with_the_model(tmp_path: Path):
    scoring = Scoring("abc", 77, mean=-1.25, std=0.5)
    scoring.save(tmp_path)
    assert Scoring.load(tmp_path) == scoring
    with pytest.raises(FileNotFoundError):
        Scoring.load(tmp_path / "elsewhere")


def test_a_model_of_before_truncation_cuts_nothing(tmp_path: Path):
    scoring = Scoring("abc", 77, truncation="left")
    scoring.save(tmp_path)
    assert Scoring.load(tmp_path) == scoring
    (tmp_path / "scoring.json").write_text(
        '{"renderer": "abc", "max_length": 77, "mean": 0.0, "std": 1.0}'
    )
    assert Scoring.load(tmp_path) == Scoring("abc", 77, truncation="none")


@pytest.mark.parametrize(
    ("max_length", "bos", "expected"),
    [
        (9, None, (1, 2, 3, 4, 5, 6)),  # 6 and 3: nothing to cut
        (8, None, (2, 3, 4, 5, 6)),
        (6, None, (4, 5, 6)),
        (6, 1, (1, 5, 6)),
        (6, 4, (4, 5, 6)),  # that token is not in front
        (4, None, (6,)),
        (5, 1, (1, 6)),
        (4, 1, None),  # of the prompt itself, nothing would be left
        (3, None, None),
        (2, None, None),
    ],
)
def test_cut_left_by_hand(max_length: int, bos: int | None, expected: tuple[int, ...] | None):
    """A prompt of 6 tokens and completions of 3 and 1: the longer one says what fits."""
    group = Group((1, 2, 3, 4, 5, 6), ((7, 8, 9), (10,)))
    cut = cut_left(group, max_length, bos)
    assert (cut and cut.prompt) == expected
    assert cut is None or cut.completions == group.completions
    assert cut_left(group, 9, bos) is group


def test_a_group_is_cut_as_the_model_was_trained():
    """Without truncation it is left alone; a completion without room for its prompt is refused."""
    group = Group((1, 2, 3), ((4, 5),))
    assert Scoring("", 4).cut(group, None) is group
    assert Scoring("", 4, truncation="left").cut(group, None) == Group((2, 3), ((4, 5),))
    with pytest.raises(ValueError, match=r"of 2 tokens leaves its prompt no room in the 2 that"):
        Scoring("", 2, truncation="left").cut(group, None)


def test_another_template_is_noticed():
    Scoring("abc", 77).check("abc", "here")
    with pytest.raises(ValueError, match="here was trained with another tokenizer"):
        Scoring("abc", 77).check("xyz", "here")


def test_the_critic_starts_as_the_normalised_reward():
    """mean .5, std 2: a score of 4.5 is a value of 2, one of .5 a value of 0."""
    head = ScalarHead(1)
    torch.nn.init.ones_(head.weight)
    value = value_head_from(head, Scoring("", 1, mean=0.5, std=2.0))
    assert value(torch.tensor([[4.5], [0.5]])).tolist() == [2.0, 0.0]
    value.weight.data.zero_()
    assert head.weight.item() == 1.0  # a copy: training the critic leaves the reward alone


# --- the reward model -----------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 60, 4096])
def test_a_score_does_not_depend_on_its_neighbours(saved: Path, tokens: int):
    """In any order, alone or together, with a prompt of their own or one for all."""
    model = RewardModel.from_pretrained(saved)
    prompts, answers = [*PROMPTS, *PROMPTS[:1] * 3], [*ANSWERS, *ANSWERS]
    alone = [model.score([p], [a])[0] for p, a in zip(prompts, answers, strict=True)]
    assert len({round(score, 3) for score in alone}) == 5  # the first and the fourth are one
    together = model.score(prompts, answers, tokens_per_forward=tokens)
    assert together == pytest.approx(alone, abs=1e-5)
    turned = model.score(prompts[::-1], answers[::-1], tokens_per_forward=tokens)
    assert turned == pytest.approx(alone[::-1], abs=1e-5)
    assert model.score([], []) == []


def test_a_prompt_of_several_answers_is_computed_once(saved: Path, monkeypatch: pytest.MonkeyPatch):
    """Twelve answers to three prompts, shuffled: the tokens of three prompts and twelve answers, in
    passes of at most 100."""
    model = RewardModel.from_pretrained(saved)
    seen: list[int] = []

    def count(_: Any, batch: Any) -> Any:
        seen.append(batch.tokens)
        return hidden_states(model._model, batch)

    monkeypatch.setattr("reward_models.reward_model.hidden_states", count)
    prompts, answers = PROMPTS * 4, [f"{answer} {i}" for i in range(4) for answer in ANSWERS]
    groups = [model.group_of(p, a) for p, a in zip(prompts, answers, strict=True)]
    model.score(prompts, answers)
    assert len(seen) == 1
    seen.clear()
    monkeypatch.setattr(forward_size, "ON_CPU", 100)
    model.score(prompts, answers)
    shared = sum(len(model.group_of(p, "x").prompt) for p in PROMPTS)
    # A prompt that is cut in two by the limit of a pass would count twice.
    assert sum(seen) == shared + sum(len(group.completions[0]) for group in groups)
    assert len(seen) > 1


def test_a_probability_is_of_the_difference(saved: Path):
    """sigmoid(a - b); even for one answer against itself, and the rest to 1 when turned."""
    model = RewardModel.from_pretrained(saved)
    one, other = model.score(PROMPTS[:1] * 2, ANSWERS[:2])
    [there] = model.probability(PROMPTS[:1], ANSWERS[:1], ANSWERS[1:2])
    [back] = model.probability(PROMPTS[:1], ANSWERS[1:2], ANSWERS[:1])
    assert math.log(there / back) == pytest.approx(one - other, abs=1e-5)
    assert there + back == pytest.approx(1.0, abs=1e-12)
    assert model.probability(PROMPTS, ANSWERS, ANSWERS) == pytest.approx([0.5] * 3, abs=1e-6)
    with pytest.raises(ValueError, match="1 prompt, but 1 and 2 completions"):
        model.probability(PROMPTS[:1], ANSWERS[:1], ANSWERS[:2])


def test_normalised_scores_are_those_of_a_policy(saved: Path):
    """mean .5, std 2: a score of 4.5 is 2, and one of .5 is 0."""
    assert RewardModel.from_pretrained(saved).normalised([4.5, 0.5]) == [2.0, 0.0]


def test_a_prompt_may_be_messages(saved: Path):
    model = RewardModel.from_pretrained(saved)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPTS[0]}]
    told = model.score([turns, turns[1:], PROMPTS[0]], ANSWERS[:1] * 3)
    assert told[1] == pytest.approx(told[2], abs=1e-6)
    assert abs(told[0] - told[1]) > 1e-3
    with pytest.raises(ValueError, match="row 1: a message has role and content, not text"):
        model.score([PROMPTS[0], [{"text": "hi"}]], ANSWERS[:2])
    with pytest.raises(ValueError, match="A prompt needs at least one message"):
        model.score([[]], ANSWERS[:1])


def test_a_score_reads_prompt_and_answer(saved: Path):
    model = RewardModel.from_pretrained(saved)
    straight, crossed = (
        model.score(PROMPTS[:2], ANSWERS[:2]),
        model.score(PROMPTS[:2], ANSWERS[1::-1]),
    )
    assert min(abs(a - b) for a in straight for b in crossed) > 1e-3


def test_the_score_is_the_heads_at_the_end_token(saved: Path):
    """Computed from the files with transformers and peft alone, one conversation, no padding."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from align.roles import load_head

    adapter = saved / "adapter"
    config = json.loads((adapter / "adapter_config.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"])
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    text = f"Question: {PROMPTS[0]}\nAnswer:\n{ANSWERS[0]}{tokenizer.eos_token}"
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    prompt, answer = Prompt.from_text(PROMPTS[0]), Response.from_text(ANSWERS[0])
    model = RewardModel.from_pretrained(saved)
    assert ids[0].tolist() == model._renderer.render(prompt, answer).ids
    adapted = PeftModel.from_pretrained(base, str(adapter)).eval()
    with torch.no_grad():
        states = adapted(ids, output_hidden_states=True, use_cache=False).hidden_states[-1]
        expected = (states[0, -1] @ load_head(adapter).weight[0]).item()
    assert model.score(PROMPTS[:1], ANSWERS[:1]) == pytest.approx([expected], abs=1e-5)


def test_what_cannot_be_scored_is_refused(saved: Path):
    model = RewardModel.from_pretrained(saved)
    with pytest.raises(ValueError, match="2 prompts, but 1 completion"):
        model.score(PROMPTS[:2], ANSWERS[:1])
    with pytest.raises(ValueError, match="longer than the 48 that this reward model reads"):
        model.score(["Why?"], ["word " * 60])
    with pytest.raises(ValueError, match=r"row 1: a conversation of \d+ tokens is longer"):
        model.score(["Why?", "Why?", "Why?"], ["x", "word " * 60, "word " * 60])
    with pytest.raises(RenderingError, match="control token"):
        model.group_of("Why?", "Because.<|end|>")
    with pytest.raises(ValueError, match="row 2: the text holds the control token"):
        model.score(["Why?"] * 3, ["x", "y", "Because.<|end|>"])
    assert model.without_control("Because.<|end|>") == "Because."


def test_a_model_that_cuts_scores_the_end_of_a_long_prompt(saved: Path, renderer: Any):
    """Trained with truncation left and 48 tokens: a prompt of over 80 is scored as its last tokens
    before the answer are, alone; what fits is scored as before; an answer of 60 words is refused.
    """
    whole = RewardModel.from_pretrained(saved)
    Scoring(renderer.fingerprint(), 48, 0.5, 2.0, "left").save(saved / "adapter")
    model = RewardModel.from_pretrained(saved)
    assert model.score(PROMPTS, ANSWERS) == whole.score(PROMPTS, ANSWERS)
    prompt = " ".join(f"{word} ?" for word in ANSWERS * 4)
    row = renderer.render(Prompt.from_text(prompt), Response.from_text("cold"))
    assert len(row.prompt) > 80
    end = Group(row.prompt[len(row) - 48 :], (row.completion,))
    assert len(end) == 48
    with torch.no_grad():
        hidden = hidden_states(model._model, pack([end]))[0, -1]
        expected = model._model.score(hidden).item()
    assert model.score([prompt], ["cold"]) == pytest.approx([expected], abs=1e-6)
    with pytest.raises(ValueError, match="longer than the 48"):
        whole.score([prompt], ["cold"])
    with pytest.raises(ValueError, match="leaves its prompt no room in the 48"):
        model.score(["Why?"], ["word " * 60])


def test_a_folder_without_a_reward_model_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="holds no reward model"):
        RewardModel.from_pretrained(tmp_path)


def test_a_changed_template_is_refused(saved: Path):
    """The template that was saved with the adapter is edited: scores would be shifted."""
    path = saved / "adapter" / "chat_template.jinja"
    path.write_text(path.read_text().replace("Question", "Human"))
    with pytest.raises(ValueError, match="trained with another tokenizer or chat template"):
        RewardModel.from_pretrained(saved)


@pytest.mark.filterwarnings("ignore:Unable to fetch remote file:UserWarning")  # peft 0.21, offline
def test_the_base_may_have_moved(saved: Path, tmp_path: Path, tiny_folder: Path):
    """An adapter names the folder of its base; `base` says where that is now."""
    import shutil

    here = RewardModel.from_pretrained(saved).score(PROMPTS, ANSWERS)
    moved = tmp_path / "moved"
    shutil.copytree(tiny_folder, moved)
    config = saved / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace(str(tiny_folder), "/nowhere"))
    assert RewardModel.from_pretrained(saved, base=str(moved)).score(PROMPTS, ANSWERS) == here
    assert math.isfinite(here[0])


def test_the_base_of_a_run_is_found_in_the_run_folder(saved: Path, tiny_folder: Path):
    """The adapter names runs/x/base; the run folder was moved since, its base with it."""
    import shutil

    here = RewardModel.from_pretrained(saved).score(PROMPTS, ANSWERS)
    shutil.copytree(tiny_folder, saved.parent / "base")
    config = saved / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace(str(tiny_folder), "runs/x/base"))
    assert RewardModel.from_pretrained(saved).score(PROMPTS, ANSWERS) == here
    shutil.rmtree(saved.parent / "base")
    with pytest.raises(FileNotFoundError, match=r"runs/x/base, the base under .* is not there"):
        RewardModel.from_pretrained(saved)


def test_the_base_of_an_export_is_found_beside_its_adapter(saved: Path, tiny_folder: Path):
    """Not merged weights, which stand there, too: an adapter on them would count twice."""
    import shutil

    here = RewardModel.from_pretrained(saved).score(PROMPTS, ANSWERS)
    shutil.copytree(tiny_folder, saved / "base")
    (saved / "merged").mkdir()
    (saved / "merged" / "config.json").write_text("{}")
    config = saved / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace(str(tiny_folder), "/elsewhere/merged"))
    assert RewardModel.from_pretrained(saved).score(PROMPTS, ANSWERS) == here


def test_a_folder_called_base_beside_the_run_is_not_its_base(tmp_path: Path):
    """RUNS/base beside RUNS/run/reward/adapter; of an ensemble's member that is two deeper."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    for part in ("adapter", "members/1/adapter"):
        assert base_under(tmp_path / "run/reward" / part, "owner/name") == "owner/name"
        assert base_under(tmp_path / "reward" / part, "x/base") == str(tmp_path / "base")


def test_a_model_of_the_hub_is_fetched_without_its_pickles(
    saved: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: dict[str, Any] = {}

    def fetch(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(saved)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    model = RewardModel.from_pretrained("someone/reward", revision="v1")
    assert math.isfinite(model.score(PROMPTS[:1], ANSWERS[:1])[0])
    assert (asked["name"], asked["revision"]) == ("someone/reward", "v1")
    patterns = asked["allow_patterns"]
    assert "*.safetensors" in patterns and not {"*", "*.bin", "*.pt"} & set(patterns)


def test_what_the_hub_has_not_is_a_sentence():
    """The tests are offline, so nothing is there."""
    with pytest.raises(FileNotFoundError, match="no/such: there is no such folder, and the hub"):
        RewardModel.from_pretrained("no/such")


def test_pickled_weights_are_refused(saved: Path):
    """Nothing opens the file: it holds no pickle at all."""
    adapter = saved / "adapter"
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no adapter_model\.safetensors"):
        RewardModel.from_pretrained(saved)
    (adapter / "adapter_model.bin").write_bytes(b"no pickle")
    with pytest.raises(ValueError, match=r"adapter_model\.bin, a pickle, .* save them as safe"):
        RewardModel.from_pretrained(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(HEAD_KEY), "holds no head"),
        (lambda state: state.update({HEAD_KEY: torch.zeros(0, 32)}), r"empty .* \[0, 32\]"),
        (lambda state: state.update({HEAD_KEY: torch.zeros(0)}), r"empty .* \[0\]"),
        (lambda state: state.update({HEAD_KEY: torch.zeros(1, 32)}), "no row of finite numbers"),
        (lambda state: state.update({HEAD_KEY: torch.full((1, 32), math.nan)}), "no row of finite"),
        (lambda state: state.update({HEAD_KEY: torch.ones(2, 32)}), r"\[2, 32\]"),
        (
            lambda state: state.update({"base_model.model.score.lora_A.weight": torch.ones(4, 32)}),
            "an adapter on its head",
        ),
    ],
)
def test_a_head_that_was_not_saved_whole_is_refused(
    saved: Path, change: Callable[[dict[str, Any]], None], message: str
):
    from safetensors.torch import load_file, save_file

    path = saved / "adapter" / "adapter_model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        RewardModel.from_pretrained(saved)


@pytest.mark.parametrize(
    ("ties", "parameter", "expected"),
    [
        (None, None, (16 / 17, 0.0, 1 / 17)),
        ("davidson", 0.5, (16 / 19, 2 / 19, 1 / 19)),
        ("rao_kupper", 2.0, (2 / 3, 2 / 9, 1 / 9)),
    ],
)
def test_chances_by_hand(
    ties: TieModel | None, parameter: float | None, expected: tuple[float, float, float]
):
    """Scores log 4 and 0 at a temperature of 1/2: 16 : 1, and by Davidson 16 : .5 * 4 : 1. Rao and
    Kupper's of 4 and 1, theta 2: 4 / (4 + 2), 1 / (1 + 8), and the rest."""
    scoring = Scoring("x", 8, temperature=0.5, ties=ties, tie_parameter=parameter)
    assert scoring.chances(math.log(4), 0.0) == pytest.approx(expected, abs=1e-9)
