"""The packed layout computes what one sequence at a time computes, for every architecture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from preference_data.attention import dense_mask
from preference_data.batches import (
    UNUSED,
    Group,
    PackedBatch,
    distinct,
    join_prompts,
    pack,
    split_by_tokens,
    split_evenly,
)

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 61}
TINY = {
    "llama": {**SMALL, "intermediate_size": 48, "max_position_embeddings": 64},
    "qwen2": {
        **SMALL, "intermediate_size": 48, "max_position_embeddings": 64, "num_key_value_heads": 1,
    },
    "mistral": {
        **SMALL, "intermediate_size": 48, "max_position_embeddings": 64, "num_key_value_heads": 1,
        "sliding_window": None,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 61, "n_positions": 64},
    "gpt_neox": {**SMALL, "intermediate_size": 48, "max_position_embeddings": 64},
}  # fmt: skip
GROUPS = (
    Group((5, 6, 7, 8, 9), ((10,),)),  # K = 1, one token
    Group((11, 12), ((13, 14, 15), (13, 14, 15))),  # identical completions
    Group((16,), ((17, 18), (19,), (20, 21, 22, 23))),  # a prompt of one token
    Group((5, 6, 7), ((24, 25), (24,), (26, 27, 28), (29, 24))),  # one begins another
    Group((30, 31, 32, 33), ((34, 35), (36,), (37, 38, 39), (40, 41), (42, 43, 44, 45, 46))),
)
SEQUENCES = [(*group.prompt, *ids) for group in GROUPS for ids in group.completions]


# --- the layout -----------------------------------------------------------------------------------


def test_layout_of_a_hand_made_batch():
    """Prompt [1, 2], completions [3, 4] and [5]; packed beside prompt [6], completion [7].

    One row: 1 2 3 4 5 6 7. The second completion restarts at position 2; the first token of both is
    predicted from the prompt's end, flat index 1; the last tokens stand at 3, 4 and 6.
    """
    batch = pack([Group((1, 2), ((3, 4), (5,))), Group((6,), ((7,),))])
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2, 0, 1]]
    assert batch.group.tolist() == [[0, 0, 0, 0, 0, 1, 1]]
    assert batch.branch.tolist() == [[0, 0, 1, 1, 2, 0, 1]]
    assert batch.targets.tolist() == [3, 4, 5, 7]
    assert batch.predict_at.tolist() == [1, 2, 1, 5]
    assert batch.sequence.tolist() == [0, 0, 1, 2]
    assert batch.offset.tolist() == [0, 1, 0, 0]
    assert batch.last_at.tolist() == [3, 4, 6]
    assert dense_mask(batch)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],  # 5 sees the prompt and itself, not 3 and 4
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]


groups_of = st.lists(
    st.builds(
        Group,
        st.lists(st.integers(1, 9), min_size=1, max_size=6).map(tuple),
        st.lists(
            st.lists(st.integers(1, 9), min_size=1, max_size=5).map(tuple), min_size=1, max_size=5
        ).map(tuple),
    ),
    min_size=1,
    max_size=7,
)


@given(groups_of, st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_every_token_sees_its_own_conversation_and_nothing_else(
    groups: list[Group], row_tokens: int
):
    """Read off the mask: from a sequence's last token back, exactly the ids of its conversation."""
    batch = pack(groups, row_tokens)
    ids, positions = batch.input_ids.flatten(), batch.position_ids.flatten()
    length = batch.input_ids.shape[1]
    mask = dense_mask(batch)[:, 0]
    wanted = [(*group.prompt, *c) for group in groups for c in group.completions]
    assert batch.sequences == len(wanted)
    for sequence, at in zip(wanted, batch.last_at.tolist(), strict=True):
        row, column = divmod(at, length)
        seen = row * length + mask[row, column].nonzero().flatten()
        assert ids[seen].tolist() == list(sequence)
        assert positions[seen].tolist() == list(range(len(sequence)))
    completions = [c for group in groups for c in group.completions]
    assert batch.targets.tolist() == [token for c in completions for token in c]
    assert batch.tokens == sum(map(len, groups))
    # What predicts a token stands one position before it.
    for target, at, place, sequence in zip(
        batch.targets.tolist(), batch.predict_at.tolist(), batch.offset.tolist(),
        batch.sequence.tolist(), strict=True,
    ):  # fmt: skip
        assert completions[sequence][place] == target
        before = wanted[sequence][: positions[at] + 1]
        assert wanted[sequence][len(before)] == target
        assert ids[at] == before[-1]


@given(groups_of, st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_rows_keep_to_the_budget_and_parts_lose_nothing(groups: list[Group], budget: int):
    longest = max(map(len, groups))
    assert pack(groups, budget).input_ids.shape[1] <= max(budget, longest)
    parts = list(split_by_tokens(groups, budget))
    assert [i for part in parts for i in part] == list(range(len(groups)))
    for part in parts:
        assert len(part) == 1 or sum(len(groups[i]) for i in part) <= budget


@given(groups_of, st.integers(1, 40), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_even_parts_keep_to_the_budget_and_lose_nothing(
    groups: list[Group], budget: int, multiple: int
):
    parts = split_evenly(groups, budget, multiple)
    assert len(parts) % multiple == 0
    assert sorted(i for part in parts for i in part) == list(range(len(groups)))
    held = [sum(len(groups[i]) for i in part) for part in parts]
    for part, tokens in zip(parts, held, strict=True):
        assert len(part) <= 1 or tokens <= budget
    assert max(held) - min(held) <= max(map(len, groups))


def test_a_group_beyond_the_budget_is_alone_and_the_others_are_not():
    """30 tokens and three times 5, of which a pass is to hold 20: two passes, not four."""
    groups = [Group((1, 2), (tuple(range(length)),)) for length in (3, 28, 3, 3)]
    assert split_evenly(groups, 20, 1) == [[1], [0, 2, 3]]
    assert split_evenly(groups, 20, 2) == [[1], [0, 2, 3]]
    assert split_evenly(groups, 10, 1) == [[1], [0, 3], [2]]


def test_nothing_is_padded_and_no_prompt_is_laid_out_twice():
    """4 pairs of 100 + 2 * 10 tokens and a row budget of 240: two full rows of two groups each."""
    group = Group(tuple(range(100)), (tuple(range(10)), tuple(range(10, 20))))
    batch = pack([group] * 4, row_tokens=240)
    assert batch.input_ids.shape == (2, 240)
    assert batch.tokens == 480
    assert not (batch.group == UNUSED).any()


def test_tables_and_sums_of_completion_tokens():
    """Tokens 0, 1 belong to sequence 0, token 2 to sequence 1, token 3 to sequence 2."""
    batch = pack([Group((1, 2), ((3, 4), (5,))), Group((6,), ((7,),))])
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert batch.table(values, fill=-9.0).tolist() == [[1, 2], [3, -9], [4, -9]]
    assert batch.sums(values).tolist() == [3, 3, 4]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Group((), ((1,),)), "a prompt of at least one token"),
        (lambda: Group((1,), ()), "completions of at least one token each"),
        (lambda: Group((1,), ((2,), ())), "completions of at least one token each"),
        (lambda: pack([]), "nothing to pack"),
    ],
)
def test_empty_things_are_refused(make: Callable[[], object], sentence: str):
    with pytest.raises(ValueError, match=sentence):
        make()


# --- the same numbers as one sequence at a time ---------------------------------------------------


def build(family: str, lora: bool) -> tuple[Any, torch.nn.Linear]:
    """A model with random weights (adapters shaken away from 0), and a scalar head."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **TINY[family], attn_implementation="sdpa")
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():  # weights of std 0.02 would make every token alike
        parameter.data += 0.1 * torch.randn_like(parameter)
    if lora:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=4, target_modules="all-linear", fan_in_fan_out=family == "gpt2")
        model = get_peft_model(model, config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.2)
        model.eval()
    return model, torch.nn.Linear(32, 1)


def causal(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def packed_numbers(
    model: Any, head: torch.nn.Module, batch: PackedBatch, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """([B] scores, [N] token log-probabilities) of the packed batch."""
    inner = causal(model)
    hidden = inner.base_model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        attention_mask=dense_mask(batch) if mask is None else mask,
        use_cache=False,
    ).last_hidden_state.flatten(0, 1)
    logits = inner.get_output_embeddings()(hidden[batch.predict_at])
    logprobs = logits.log_softmax(-1).gather(-1, batch.targets[:, None]).squeeze(-1)
    return head(hidden[batch.last_at]).squeeze(-1), logprobs


def one_at_a_time(model: Any, head: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """The same from whole conversations alone, with the models' own mask and positions."""
    scores, logprobs = [], []
    for group in GROUPS:
        for ids in group.completions:
            whole = torch.tensor([[*group.prompt, *ids]])
            output = causal(model)(whole, output_hidden_states=True, use_cache=False)
            scores.append(head(output.hidden_states[-1][0, -1]))
            logits = output.logits[0, len(group.prompt) - 1 : -1].log_softmax(-1)
            logprobs.append(logits.gather(-1, torch.tensor(ids)[:, None]).squeeze(-1))
    return torch.cat(scores), torch.cat(logprobs)


def gradients(
    numbers: Sequence[Tensor], parameters: list[torch.nn.Parameter]
) -> list[Tensor | None]:
    """Of a fixed random combination of all scores and log-probabilities."""
    generator = torch.Generator().manual_seed(3)
    total = sum((torch.randn(part.shape, generator=generator) * part).mean() for part in numbers)
    assert isinstance(total, Tensor)
    return list(torch.autograd.grad(total, parameters, allow_unused=True))


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("row_tokens", [1, 200], ids=["a group a row", "one row"])
def test_packed_equals_one_at_a_time(family: str, lora: bool, row_tokens: int):
    """Scores, token log-probabilities and the gradient of every parameter, to 1e-5 in float32."""
    model, head = build(family, lora)
    parameters = [p for p in (*model.parameters(), *head.parameters()) if p.requires_grad]
    packed = packed_numbers(model, head, pack(GROUPS, row_tokens))
    alone = one_at_a_time(model, head)
    for ours, theirs in zip(packed, alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert packed[0].std() > 0.1  # the sequences are not alike to the model
    for ours, theirs in zip(
        gradients(packed, parameters), gradients(alone, parameters), strict=True
    ):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_plain_causal_mask_would_not_do(family: str):
    """The naive version fails: a completion that reads its neighbours gets another score."""
    model, head = build(family, lora=False)
    batch = pack(GROUPS, row_tokens=200)
    length = batch.input_ids.shape[1]
    plain = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    naive, _ = packed_numbers(model, head, batch, plain)
    alone, _ = one_at_a_time(model, head)
    assert (naive - alone).abs().max() > 0.05


def test_identical_completions_get_identical_scores():
    """Sequences 1 and 2 of GROUPS are the same conversation, side by side in one group."""
    model, head = build("llama", lora=False)
    scores, logprobs = packed_numbers(model, head, pack(GROUPS))
    assert SEQUENCES[1] == SEQUENCES[2]
    torch.testing.assert_close(scores[1], scores[2], rtol=0, atol=1e-6)
    torch.testing.assert_close(logprobs[1:4], logprobs[4:7], rtol=0, atol=1e-6)


def test_order_of_groups_changes_nothing():
    model, head = build("llama", lora=False)
    order = [3, 0, 4, 2, 1]
    scores, _ = packed_numbers(model, head, pack([GROUPS[i] for i in order], row_tokens=20))
    straight, _ = packed_numbers(model, head, pack(GROUPS))
    sizes = [len(group.completions) for group in GROUPS]
    by_group = straight.split(sizes)
    torch.testing.assert_close(scores, torch.cat([by_group[i] for i in order]), rtol=0, atol=1e-5)


def test_unused_places_do_not_matter():
    """Rows of 9 and 4 tokens: what stands in the 5 unused places changes nothing, and is no NaN."""
    model, head = build("llama", lora=False)
    batch = pack([Group((1, 2, 3, 4, 5), ((6, 7, 8, 9),)), Group((1, 2), ((3, 4),))], row_tokens=9)
    assert (batch.group == UNUSED).sum() == 5
    clean = packed_numbers(model, head, batch)
    batch.input_ids[batch.group == UNUSED] = 60
    batch.position_ids[batch.group == UNUSED] = 33
    dirty = packed_numbers(model, head, batch)
    for ours, theirs in zip(clean, dirty, strict=True):
        assert torch.isfinite(ours).all()
        assert torch.equal(ours, theirs)


def test_neighbours_of_one_prompt_are_joined_up_to_a_length():
    """1 + 2 + 2 = 5 tokens fit, 2 more do not; another prompt between them keeps them apart."""
    one, other = Group((7,), ((1, 2),)), Group((8,), ((3,),))
    joined = join_prompts([one, one, one, other, one], tokens=6)
    assert joined == [Group((7,), ((1, 2), (1, 2))), one, other, one]
    assert join_prompts([Group((7,), ((1, 2, 3), (4,)))], tokens=2) == [
        Group((7,), ((1, 2, 3), (4,)))
    ]


def test_every_conversation_is_computed_once():
    """The third is the first one's second again, the fourth has its prompt and another answer."""
    groups = [
        Group((1, 2), ((3,), (4, 5))),
        Group((7,), ((3,),)),
        Group((1, 2), ((4, 5),)),
        Group((1, 2), ((6,), (3,))),
    ]
    single, places = distinct(groups)
    assert single == [
        Group((1, 2), ((3,),)),
        Group((1, 2), ((4, 5),)),
        Group((1, 2), ((6,),)),
        Group((7,), ((3,),)),
    ]
    assert places == [0, 1, 3, 1, 2, 0]
