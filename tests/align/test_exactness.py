"""Packed is exact: what roles compute in one row is what they compute one conversation at a time.

Scores, log-probabilities, losses and the gradient of every trained parameter, to 1e-5 in float32,
through the objects that the stages use. The other side is transformers' own: the whole conversation
alone, without any mask, from the logits. `pytest -s` prints the largest deviations.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from small_models import GPT, GROUPED, SMALL, VOCABULARY
from torch import Tensor

from align.base import load_base
from align.config import Base, ConfigError, Lora
from align.roles import Roles
from preference_data import attention, piecewise
from preference_data.attention import hidden_states
from preference_data.batches import Group, PackedBatch, pack
from preference_data.records import Prompt, Response
from preference_data.rendering import Renderer
from reward_models.losses import bradley_terry
from reward_models.scalar_head import ScalarHead

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**SMALL, "num_key_value_heads": 2}),
    "llama, tied": ("llama", {**GROUPED, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", GROUPED),
    "qwen3": ("qwen3", {**GROUPED, "head_dim": 16}),
    "gpt_neox": ("gpt_neox", SMALL),
    "gpt2": ("gpt2", GPT),
    "mistral": ("mistral", {**GROUPED, "sliding_window": None}),
    "mistral, wide window": ("mistral", {**GROUPED, "sliding_window": 64}),
    "gemma": ("gemma", {**GROUPED, "head_dim": 16}),
    "mistral, narrow window": ("mistral", {**GROUPED, "sliding_window": 8}),
    "gemma3": ("gemma3_text", {**GROUPED, "head_dim": 16, "sliding_window": 64}),
}
"""Rotary positions with grouped, normed and plain attention; learned positions; windows."""
LORA = Lora(r=4, alpha=8)
MODES = pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
EXACT = 1e-5
IN_A_WORD = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }} Fra{% else %}"
    "{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
"""A prompt that ends within a word which the tokenizer knows whole."""


class Numbers(NamedTuple):
    """Axes: B sequences, N tokens of completions."""

    scores: Tensor
    """[B]"""
    logprobs: Tensor
    """[N] nats"""
    reward_loss: Tensor
    policy_loss: Tensor


@pytest.fixture
def groups(renderer: Renderer) -> list[Group]:
    """All shapes of groups; the conversation within a word is of the tokenizer's own ids."""
    generator = torch.Generator().manual_seed(4)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(2, VOCABULARY, (length,), generator=generator).tolist())

    renderer.tokenizer.chat_template = IN_A_WORD
    word = renderer.render(Prompt.from_text("Capital of"), Response.from_text("nce"))
    whole, answers = ids(30), (ids(20), ids(25))
    same = ids(4)
    return [
        *(Group(ids(5), tuple(ids(1 + k % 5) for k in range(size))) for size in range(1, 10)),
        Group(word.prompt, (word.completion, ids(2))),
        Group(ids(6), (same, same, ids(3))),
        Group(ids(3), tuple(ids(1) for _ in range(4))),
        Group(ids(1), (ids(1),)),
        Group(whole, answers),
        Group(whole[-7:], answers),  # cut on the left
        Group(whole, tuple(answer[:9] for answer in answers)),  # and on the right
    ]


def build(kind: str, settings: dict[str, Any], renderer: Renderer, lora: Lora | None) -> Roles:
    """A role with a head on a random model, far enough from 0 for its tokens to differ."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **settings)
    model: Any = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="sdpa"
    )
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    roles = Roles(model, renderer, lora, kind)
    roles.add("role", fresh=True, trainable=True, head=ScalarHead(32))
    for parameter in roles.parameters_of("role"):
        parameter.data += 0.1 * torch.randn_like(parameter)
    return roles


def losses_of(scores: Tensor, sums: Tensor, groups: list[Group]) -> tuple[Tensor, Tensor]:
    """Bradley-Terry on the scores, and DPO's loss (without a reference) on the sums [B]: means over
    all pairs in a group."""
    pairs, first = [], 0
    for group in groups:
        members = range(first, first + len(group.completions))
        pairs += combinations(members, 2)
        first = members.stop
    better, worse = torch.tensor(pairs).T
    return (
        bradley_terry(scores[better], scores[worse]).mean(),
        bradley_terry(0.1 * sums[better], 0.1 * sums[worse]).mean(),
    )


def packed(roles: Roles, groups: list[Group], row_tokens: int) -> Numbers:
    batch = pack(groups, row_tokens)
    scores = roles("scores", "role", batch)
    logprobs = roles("logprobs", "role", batch).logprobs
    return Numbers(scores, logprobs, *losses_of(scores, batch.sums(logprobs), groups))


def alone(roles: Roles, groups: list[Group]) -> Numbers:
    scores, logprobs = [], []
    for group in groups:
        for ids in group.completions:
            with roles.active("role") as model:
                output = model(
                    torch.tensor([[*group.prompt, *ids]]), output_hidden_states=True,
                    use_cache=False,
                )  # fmt: skip
            scores.append(roles.head("role")(output.hidden_states[-1][0, -1]))
            logits = output.logits[0, len(group.prompt) - 1 : -1].log_softmax(-1)
            logprobs.append(logits.gather(-1, torch.tensor(ids)[:, None]).squeeze(-1))
    flat = torch.stack(scores)
    sums = torch.stack([part.sum() for part in logprobs])
    return Numbers(flat, torch.cat(logprobs), *losses_of(flat, sums, groups))


def gradients(roles: Roles, numbers: Numbers) -> list[Tensor]:
    """Of both losses, by each of the role's parameters; 0 for one that a loss does not read."""
    parameters = roles.parameters_of("role")
    return [
        gradient
        for loss in (numbers.reward_loss, numbers.policy_loss)
        for gradient in torch.autograd.grad(
            loss, parameters, retain_graph=True, materialize_grads=True
        )
    ]


def deviations(roles: Roles, ours: Numbers, theirs: Numbers) -> dict[str, float]:
    """The largest by what deviates."""
    found = {
        name: float((mine - other).detach().abs().max())
        for name, mine, other in zip(Numbers._fields, ours, theirs, strict=True)
    }
    pairs = zip(gradients(roles, ours), gradients(roles, theirs), strict=True)
    return {**found, "gradients": max(float((a - b).abs().max()) for a, b in pairs)}


def show(what: str, found: dict[str, float]) -> None:
    print(what, *(f"{name} {value:.1e}" for name, value in found.items()), sep=" | ")


# --- every architecture ---------------------------------------------------------------------------


@pytest.fixture(params=["piecewise", "masked"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How conversations in one row are kept apart: as on a CPU, where some groups here are one
    piece, some several, some one with their neighbours, or under a mask as on a GPU."""
    monkeypatch.setattr(piecewise, "SHORT", 12)
    monkeypatch.setattr(piecewise, "NEIGHBOURS", 20)
    if request.param == "masked":
        monkeypatch.setattr(attention, "_goes_piecewise", lambda *_: False)
    return request.param


@MODES
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")  # GPT-2; peft then sets it
def test_packed_is_alone(
    family: str, lora: Lora | None, way: str, renderer: Renderer, groups: list[Group],
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    roles = build(*FAMILIES[family], renderer, lora)
    taken: list[int] = []
    attended = piecewise.piecewise_attention
    monkeypatch.setattr(
        piecewise, "piecewise_attention", lambda *a: taken.append(len(a[3])) or attended(*a)
    )
    theirs = alone(roles, groups)
    # The model tells the conversations and the tokens apart, and so do the gradients.
    assert theirs.scores.std() > 0.3
    assert theirs.logprobs.std() > 0.3
    assert max(float(gradient.abs().max()) for gradient in gradients(roles, theirs)) > 0.05
    for row_tokens in (1, 2000):  # a group a row, and all of them in one
        found = deviations(roles, packed(roles, groups, row_tokens), theirs)
        show(f"{family}, {way}, {'full' if lora is None else 'lora'}, {row_tokens}", found)
        for name, deviation in found.items():
            assert deviation <= EXACT, name
    assert bool(taken) == (way == "piecewise" and "narrow" not in family)


@MODES
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2", "gemma"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")  # 5.23's name
def test_checkpointed_is_alone(
    family: str, lora: Lora | None, way: str, renderer: Renderer, groups: list[Group]
):
    """With layers computed a second time in the backward pass, packed; without it, alone."""
    roles = build(*FAMILIES[family], renderer, lora)
    theirs = alone(roles, groups)
    theirs_gradients = gradients(roles, theirs)
    with roles.active("role") as model:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()  # transformers checkpoints in training mode alone; nothing here drops out
        calls = Calls(model)
    ours = packed(roles, groups, 2000)
    forward = calls.count
    ours_gradients = gradients(roles, ours)
    assert calls.count > forward  # it was computed again
    for mine, other in zip((*ours, *ours_gradients), (*theirs, *theirs_gradients), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=EXACT)


class Calls:
    """Counts how often a model's MLPs are entered; computed again, they need not be left."""

    def __init__(self, model: torch.nn.Module):
        self.count = 0
        for name, module in model.named_modules():
            if name.endswith("mlp"):
                module.register_forward_pre_hook(self._add)

    def _add(self, *_: Any) -> None:
        self.count += 1


def test_blocks_of_logits_are_alone(
    renderer: Renderer, groups: list[Group], monkeypatch: pytest.MonkeyPatch
):
    """7 positions at a time, their logits made a second time in the backward pass."""
    roles = build(*FAMILIES["llama"], renderer, None)
    theirs = alone(roles, groups)
    monkeypatch.setattr("align.logits.LOGITS_AT_ONCE", 7 * VOCABULARY)
    found = deviations(roles, packed(roles, groups, 2000), theirs)
    assert max(found.values()) <= EXACT


# --- what a base must be --------------------------------------------------------------------------


def saved(kind: str, folder: Path, **settings: Any) -> str:
    """A base of this kind as its initialisation leaves it, in a folder."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **settings)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return str(folder)


def load(path: str, attention: Any = "auto") -> Any:
    return load_base(path, Base(model=path, attention=attention), torch.device("cpu"))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gpt_neox", "gemma", "gemma3"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_either_attention_is_alone(
    family: str, attention: str, way: str, groups: list[Group], tmp_path: Path
):
    """Eager attention adds its mask: a bool would hide nothing, and be off by more than 1."""
    kind, settings = FAMILIES[family]
    model = load(saved(kind, tmp_path, **settings), attention)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    batch = pack(groups)

    def last_states(batch: PackedBatch) -> Tensor:
        hidden = hidden_states(model, batch)
        return hidden.flatten(0, 1)[batch.last_at]

    with torch.no_grad():
        expected = [
            model.base_model(torch.tensor([[*group.prompt, *ids]])).last_hidden_state[0, -1]
            for group in groups
            for ids in group.completions
        ]
        torch.testing.assert_close(last_states(batch), torch.stack(expected), rtol=0, atol=EXACT)


# --- every attention ------------------------------------------------------------------------------


def states(model: Any, groups: list[Group]) -> tuple[Tensor, Tensor]:
    """[N + B, D] states that log-probabilities and scores are read at: packed, and each alone."""
    batch = pack(groups)
    flat = hidden_states(model, batch).flatten(0, 1)
    apart = [
        model.base_model(torch.tensor([[*group.prompt, *ids]])).last_hidden_state[0]
        for group in groups
        for ids in group.completions
    ]
    sizes = [len(ids) for group in groups for ids in group.completions]
    before = [one[-1 - size : -1] for one, size in zip(apart, sizes, strict=True)]
    last = torch.stack([one[-1] for one in apart])
    return flat[torch.cat([batch.predict_at, batch.last_at])], torch.cat([*before, last])


WINDOWED: dict[str, tuple[str, dict[str, Any]]] = {
    "every layer": ("mistral", {**GROUPED, "sliding_window": 5}),
    "some layers": ("gemma3_text", {
        **GROUPED, "head_dim": 16, "sliding_window": 6, "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", WINDOWED)
def test_conversations_longer_than_the_window_are_padded(
    name: str, groups: list[Group], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """In the dense mask a token would see all of its conversation. One warning, however many
    batches."""
    kind, settings = WINDOWED[name]
    model = load(saved(kind, tmp_path, **settings))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    attention._say_once.cache_clear()
    caplog.clear()
    for _ in range(2):
        ours, theirs = states(model, groups)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=EXACT)
    said = [record.message for record in caplog.records if "window of" in record.message]
    assert len(said) == 1
    ours, theirs = states(model, [Group((7, 8), ((9, 10), (11,)))])  # short enough to be packed
    torch.testing.assert_close(ours, theirs, rtol=0, atol=EXACT)


def test_a_padded_batch_has_the_same_gradient(groups: list[Group], tmp_path: Path):
    """A prompt is read from its first copy alone, for all of its completions."""
    kind, settings = WINDOWED["every layer"]
    model = load(saved(kind, tmp_path, **settings))
    found = []
    for part in states(model, groups):
        model.zero_grad()
        (part * torch.arange(part.numel()).view_as(part).sin()).sum().backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def by_lengths(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any,
    scaling: float | None = None, cu_seq_lens_q: Tensor | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """What flash attention computes of sequences that stand one after another, on a CPU."""
    assert attention_mask is None
    if cu_seq_lens_q is None:  # a conversation alone
        cu_seq_lens_q = torch.tensor([0, query.shape[2]])
    repeats = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    parts = [
        torch.nn.functional.scaled_dot_product_attention(
            query[:, :, first:end], key[:, :, first:end], value[:, :, first:end],
            is_causal=True, scale=scaling,
        )
        for first, end in itertools.pairwise(cu_seq_lens_q.tolist())
    ]  # fmt: skip
    return torch.cat(parts, dim=2).transpose(1, 2), None


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox", "gpt2"])
def test_conversations_of_any_length_one_after_another_are_alone(
    family: str, groups: list[Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    kind, settings = FAMILIES[family]
    model = load(saved(kind, tmp_path, **settings))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", by_lengths)
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "flash_attention_2")
    ours, theirs = states(model, groups)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=EXACT)


def test_the_block_mask_is_the_dense_one(groups: list[Group]):
    """Of several rows and unused ends, token by token."""
    batch = pack(groups, 90)
    rows, length = batch.group.shape
    assert rows > 1
    mask = attention.block_mask(batch)
    row, query, key = torch.meshgrid(
        torch.arange(rows), torch.arange(length), torch.arange(length), indexing="ij"
    )
    dense = attention.dense_mask(batch)[:, 0]
    assert torch.equal(mask.mask_mod(row, torch.tensor(0), query, key), dense)
    assert tuple(mask.shape) == (rows, 1, length, length)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:flex_attention called without")
def test_flex_attention_is_alone(
    groups: list[Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Forward and as written, on a CPU; its kernels and its backward need a GPU."""
    from torch.nn.attention.flex_attention import flex_attention
    from transformers.integrations.flex_attention import WrappedFlexAttention

    monkeypatch.setattr(WrappedFlexAttention, "__call__", lambda _: flex_attention)
    kind, settings = FAMILIES["qwen3"]
    model = load(saved(kind, tmp_path, **settings))
    with torch.no_grad():
        _, theirs = states(model, groups)
        model.config._attn_implementation = "flex_attention"
        batch = pack(groups)
        flat = hidden_states(model, batch).flatten(0, 1)
    ours = flat[torch.cat([batch.predict_at, batch.last_at])]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=EXACT)


@pytest.mark.parametrize("attention_", ["flex_attention", "flash_attention_2"])
def test_what_trains_on_a_gpu_only_is_refused_here(attention_: str, tmp_path: Path):
    kind, settings = FAMILIES["llama"]
    with pytest.raises(ConfigError, match=f"{attention_}, which trains on a GPU only"):
        load(saved(kind, tmp_path, **settings), attention_)


# --- what a base must be, on ----------------------------------------------------------------------


WRONG: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "window by another name": (
        "gpt_neo", "eager",
        {"hidden_size": 32, "num_layers": 2, "attention_types": [[["global", "local"], 1]],
         "num_heads": 2, "vocab_size": 97, "max_position_embeddings": 64, "window_size": 16,
         "bos_token_id": 1, "eos_token_id": 1},
        "set window_size to 64",
    ),
    "positions by place in the row": (
        "mpt", "eager", {"d_model": 32, "n_heads": 2, "n_layers": 2, "vocab_size": 97},
        "does not keep to the mask and the positions",
    ),
    "recurrent": (
        "mamba", "eager",
        {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 97, "state_size": 4},
        "is recurrent",
    ),
    "divided logits": (
        "granite", "auto", {**GROUPED, "logits_scaling": 8.0}, "scales or caps the logits"
    ),
    "multiplied logits": ("cohere", "auto", GROUPED, "scales or caps the logits"),
    "capped logits": (  # near 0, where a cap does nothing yet
        "gemma2", "eager", {**GROUPED, "head_dim": 16, "sliding_window": 64},
        "scales or caps the logits",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_base_that_would_be_wrong_is_refused(name: str, tmp_path: Path):
    """These would be trained on other numbers than the model computes alone, or fail much later."""
    kind, attention, settings, sentence = WRONG[name]
    path = saved(kind, tmp_path, **settings)
    with pytest.raises(ConfigError, match=sentence):
        load(path, attention)


# --- where a completion begins --------------------------------------------------------------------


def test_a_prompt_may_end_within_a_word(renderer: Renderer):
    """` France` is one token; the prompt `Capital of Fra` keeps the ids it has at inference, and
    the completion is the rest of the text."""
    renderer.tokenizer.chat_template = IN_A_WORD
    ids: Callable[[str], list[int]] = lambda text: renderer.tokenizer(text)["input_ids"]  # noqa: E731
    row = renderer.render(Prompt.from_text("Capital of"), Response.from_text("nce"))
    assert len(ids(" France")) == 1
    assert list(row.prompt) == ids("Capital of Fra")
    assert row.ids != ids("Capital of France<|end|>")
    assert renderer.tokenizer.decode(row.ids) == "Capital of France<|end|>"
    marked = [token for token, on in zip(row.ids, row.completion_mask, strict=True) if on]
    assert renderer.tokenizer.decode(marked) == "nce<|end|>"


@pytest.fixture
def spaced() -> Renderer:
    """A tokenizer of the SentencePiece kind: every text begins with a space."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["</s>", "<unk>", "▁", "\n", "P", "aris", "▁P", "Paris", "▁Paris", "▁A", "▁A:", ":"]
    merges = [("▁", "A"), ("▁A", ":"), ("▁", "P"), ("P", "aris"), ("▁P", "aris"), ("a", "ris"),
              ("r", "is"), ("i", "s")]  # fmt: skip
    pieces += ["a", "r", "i", "s", "A", "ris", "is"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}A:\n{{ m['content'] }}"
        "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}A:\n{% endif %}"
    )
    return Renderer(tokenizer)


def test_a_completion_begins_without_a_space_of_its_own(spaced: Renderer):
    """The template says `A:`, a line break, `Paris`. Alone, `Paris` would be ` Paris`, which no one
    said and the model would learn to begin with."""
    name = spaced.tokenizer.convert_ids_to_tokens
    assert name(spaced.tokenizer("Paris")["input_ids"]) == ["▁Paris"]
    row = spaced.render(Prompt.from_text("?"), Response.from_text("Paris"))
    assert name(list(row.prompt)) == ["▁A:", "\n"]
    assert name(list(row.completion)) == ["Paris", "</s>"]
    assert row.prompt == spaced.prompt(Prompt.from_text("?"))
