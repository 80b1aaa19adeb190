"""The head, how its scores are read, and the reward model as a user holds it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from preference_data.attention import hidden_states
from preference_data.batches import Group, pack
from preference_data.records import Prompt, Response
from preference_data.rendering import RenderingError
from reward_models import RewardModel
from reward_models.scalar_head import (
    ScalarHead,
    Scoring,
    cut_left,
    sequence_scores,
    value_head_from,
)

PROMPTS = ["What is the capital of France?", "What is the opposite of hot?", "Name a colour."]
ANSWERS = ["The capital of France is Paris.", "cold", "Snow. By the way, it rained."]


@pytest.fixture
def saved(make_roles: Callable[..., Any], shake: Callable[..., None], tmp_path: Path) -> Path:
    """The folder of a reward step: adapter and head away from their start."""
    roles = make_roles()
    roles.add("reward", fresh=True, trainable=True, head=ScalarHead(32))
    shake(roles.parameters_of("reward"))
    scoring = Scoring(roles.renderer.fingerprint(), max_length=48, mean=0.5, std=2.0)
    roles.save("reward", tmp_path / "reward", scoring)
    return tmp_path / "reward"


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


def test_a_score_does_not_depend_on_its_neighbours(saved: Path):
    """To the last bit: in any order, alone or together."""
    model = RewardModel.load(saved)
    scores = model.score(PROMPTS, ANSWERS)
    assert len({round(score, 3) for score in scores}) == 3
    assert model.score(PROMPTS[::-1], ANSWERS[::-1]) == scores[::-1]
    assert [model.score([p], [a])[0] for p, a in zip(PROMPTS, ANSWERS, strict=True)] == scores
    assert model.score([], []) == []


def test_a_score_reads_prompt_and_answer(saved: Path):
    model = RewardModel.load(saved)
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
    model = RewardModel.load(saved)
    assert ids[0].tolist() == model._renderer.render(prompt, answer).ids
    adapted = PeftModel.from_pretrained(base, str(adapter)).eval()
    with torch.no_grad():
        states = adapted(ids, output_hidden_states=True, use_cache=False).hidden_states[-1]
        expected = (states[0, -1] @ load_head(adapter).weight[0]).item()
    assert model.score(PROMPTS[:1], ANSWERS[:1]) == pytest.approx([expected], abs=1e-5)


def test_what_cannot_be_scored_is_refused(saved: Path):
    model = RewardModel.load(saved)
    with pytest.raises(ValueError, match="2 prompts, but 1 completions"):
        model.score(PROMPTS[:2], ANSWERS[:1])
    with pytest.raises(ValueError, match="longer than the 48 that this reward model reads"):
        model.score(["Why?"], ["word " * 60])
    with pytest.raises(RenderingError, match="control token"):
        model.score(["Why?"], ["Because.<|end|>"])


def test_a_model_that_cuts_scores_the_end_of_a_long_prompt(saved: Path, renderer: Any):
    """Trained with truncation left and 48 tokens: a prompt of over 80 is scored as its last tokens
    before the answer are, alone; what fits is scored as before; an answer of 60 words is refused.
    """
    whole = RewardModel.load(saved)
    Scoring(renderer.fingerprint(), 48, 0.5, 2.0, "left").save(saved / "adapter")
    model = RewardModel.load(saved)
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
        RewardModel.load(tmp_path)


def test_a_changed_template_is_refused(saved: Path):
    """The template that was saved with the adapter is edited: scores would be shifted."""
    path = saved / "adapter" / "chat_template.jinja"
    path.write_text(path.read_text().replace("Question", "Human"))
    with pytest.raises(ValueError, match="trained with another tokenizer or chat template"):
        RewardModel.load(saved)


@pytest.mark.filterwarnings("ignore:Unable to fetch remote file:UserWarning")  # peft 0.21, offline
def test_the_base_may_have_moved(saved: Path, tmp_path: Path, tiny_folder: Path):
    """An adapter names the folder of its base; `base` says where that is now."""
    import shutil

    here = RewardModel.load(saved).score(PROMPTS, ANSWERS)
    moved = tmp_path / "moved"
    shutil.copytree(tiny_folder, moved)
    config = saved / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace(str(tiny_folder), "/nowhere"))
    assert RewardModel.load(saved, base=str(moved)).score(PROMPTS, ANSWERS) == here
    assert math.isfinite(here[0])
