"""Attention piece by piece: the numbers and gradients of a mask, at the cost of what is seen."""

from __future__ import annotations

import sys
import types
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from preference_data import attention, piece_attention, piecewise
from preference_data.attention import dense_mask, hidden_states
from preference_data.batches import Group, PackedBatch, pack
from preference_data.piece_attention import CAUSAL, TILE, piecewise_attention, tile_mask
from preference_data.piecewise import Attending, Lost, attend, attending_now, pieces_of

GROUPS = [
    Group((5, 6, 7), ((8, 9), (10,))),
    Group((11,), ((12, 13, 14),)),
    Group((15, 16), ((17,), (18, 19), (20, 21, 22), (17,))),
]


@pytest.fixture(autouse=True, params=[(0, 0), (6, 0), (128, 0), (0, 10)], ids=str)
def limits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """No group, one of GROUPS, or all that have several completions are a piece under a mask, or
    the two that have 10 tokens together."""
    monkeypatch.setattr(piecewise, "SHORT", request.param[0])
    monkeypatch.setattr(piecewise, "NEIGHBOURS", request.param[1])
    return request.param


def test_pieces_of_a_batch_by_hand(limits: tuple[int, int]):
    """The groups have 6, 4 and 9 tokens: in rows of 10 the third has the first row, whose last
    token is unused, and the others fill the second."""
    batch = pack(GROUPS, row_tokens=10)
    used, pieces = pieces_of(batch)
    assert pieces.sizes == [2, 1, 2, 3, 1, 3, 2, 1, 1, 3]
    assert pieces.prompts == [None, 0, 0, 0, 0, None, 5, 5, None, 8]
    third = [[2, CAUSAL], [1, 0], [2, 0], [3, 0], [1, 0]]
    assert [row for row in pieces.layout.tolist() if row[0]] == {
        (0, 0): [*third, [3, CAUSAL], [2, 5], [1, 5], [4, CAUSAL]],
        (6, 0): [*third, [6, TILE], [4, CAUSAL]],
        (128, 0): [[9, TILE], [6, TILE], [4, CAUSAL]],
        (0, 10): [*third, [10, TILE]],
    }[limits]
    assert batch.input_ids.flatten()[used].tolist() == [
        15, 16, 17, 18, 19, 20, 21, 22, 17, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14,
    ]  # fmt: skip
    assert len(used) == 19 == batch.tokens < batch.input_ids.numel()


def test_a_tile_by_hand():
    """A prompt of two tokens with completions of two and of one, then one of one with one."""
    mask = tile_mask([[2, 2, 1], [1, 1]])
    assert (mask == 0).int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]
    assert set(mask.flatten().tolist()) == {0.0, float("-inf")}


@pytest.mark.parametrize("shared", [1, 3])
@pytest.mark.parametrize("row_tokens", [1, 10, 100])
def test_it_is_attention_under_the_mask(shared: int, row_tokens: int):
    """Outputs and gradients, also where several heads share their keys and values."""
    batch = pack(GROUPS, row_tokens)
    used, pieces = pieces_of(batch)
    generator = torch.Generator().manual_seed(0)
    heads, width = 2 * shared, 4
    shapes = ((heads, width), (2, width), (2, width))
    ours = [
        torch.randn(1, count, len(used), size, generator=generator, requires_grad=True)
        for count, size in shapes
    ]
    query, key, value = ours
    found, _ = attend(types.SimpleNamespace(), query, key, value, None, scaling=0.3, pieces=pieces)
    laid = [part.new_zeros(1, part.shape[1], batch.group.numel(), width) for part in ours]
    theirs = [
        empty.index_copy(2, used, part)
        .view(part.shape[1], *batch.group.shape, width)
        .transpose(0, 1)
        for empty, part in zip(laid, ours, strict=True)
    ]  # [S, H, T, D]
    theirs[1:] = [part.repeat_interleave(shared, dim=1) for part in theirs[1:]]
    expected = torch.nn.functional.scaled_dot_product_attention(
        *theirs, attn_mask=dense_mask(batch), scale=0.3
    )
    expected = expected.transpose(1, 2).flatten(0, 1)[used][None]  # [1, N, H, D]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    weights = torch.randn(found.shape, generator=generator)
    for mine, other in zip(
        torch.autograd.grad((weights * found).sum(), ours),
        torch.autograd.grad((weights * expected).sum(), ours), strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shared", [1, 2])
def test_the_operator_is_one_of_torch(shared: int, dtype: torch.dtype):
    """Its schema, its shapes for compilers and its registration; in double precision the gradient
    also against finite differences."""
    _, pieces = pieces_of(pack(GROUPS))
    generator = torch.Generator().manual_seed(0)
    parts = [
        torch.randn(1, heads, 19, 8, generator=generator, dtype=torch.float64)
        .to(dtype).requires_grad_()
        for heads in (2 * shared, 2, 2)
    ]  # fmt: skip
    more = (pieces.layout, pieces.tail, pieces.tiles, 0.3)
    torch.library.opcheck(piecewise_attention, (*parts, *more))
    if dtype == torch.float64:
        assert torch.autograd.gradcheck(lambda *of: piecewise_attention(*of, *more)[0], parts)


def test_queries_may_lie_in_memory_in_any_order():
    _, pieces = pieces_of(pack(GROUPS))
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 19, 8, generator=generator) for _ in range(3))
    turned = query.transpose(2, 3).contiguous().transpose(2, 3)
    found = []
    for one in (query, turned):
        parts = [part.detach().requires_grad_() for part in (one, key, value)]
        assert parts[0].stride() == one.stride()
        output, _ = piecewise_attention(*parts, pieces.layout, pieces.tail, pieces.tiles, 0.3)
        found.append([output, *torch.autograd.grad(output.square().sum(), parts)])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


def test_half_precision_is_rounded_at_the_end_only():
    _, pieces = pieces_of(pack(GROUPS))
    generator = torch.Generator().manual_seed(0)
    half = [torch.randn(1, 2, 19, 8, generator=generator).bfloat16() for _ in range(3)]
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        parts = [part.to(dtype).requires_grad_() for part in half]
        output, _ = piecewise_attention(*parts, pieces.layout, pieces.tail, pieces.tiles, 0.3)
        weight = torch.ones_like(output)
        found.append([output, *torch.autograd.grad(output, parts, weight)])
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.float(), theirs, rtol=2**-8, atol=2**-8)


class Attended(TorchDispatchMode):
    """Counts (queries * keys) of what attention kernels are given, and the tokens of embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs, self.tokens = 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        name = str(function)
        if "scaled_dot_product" in name and "backward" not in name:
            self.count(*args)
        if "embedding" in name and "backward" not in name:
            self.tokens = max(self.tokens, args[1].numel())
        return function(*args, **(kwargs or {}))

    def count(self, query: Tensor, key: Tensor, *_: Any) -> None:
        self.pairs += query.shape[0] * query.shape[2] * key.shape[2]


@pytest.fixture
def llama() -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=50, max_position_embeddings=64,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def states(model: Any, batch: PackedBatch) -> Tensor:
    return hidden_states(model, batch).flatten(0, 1)[batch.last_at]


def test_no_unused_token_is_computed_and_nobody_looks_at_other_groups(
    llama: Any, monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int]
):
    """A layer's pairs: of the groups 9 + 2 * 5 + 1 * 4 (3 queries see 3 keys, 2 see 5, 1 sees 4),
    4 * 4, and 4 + 3 + 2 * 4 + 3 * 5 + 3; under a mask two rows of 10 by 10. A piece of whole
    groups sees itself."""
    batch = pack(GROUPS, row_tokens=10)
    first, second, third = (9 + 10 + 4), 4**2, (4 + 3 + 8 + 15 + 3)
    seen = {
        (0, 0): first + second + third, (6, 0): 6**2 + second + third,
        (128, 0): 6**2 + second + 9**2, (0, 10): 10**2 + third,
    }[limits]  # fmt: skip
    kernel = piece_attention._kernel  # within our own operator, which the mode does not enter
    with Attended() as piecewise_, torch.no_grad():
        monkeypatch.setattr(
            piece_attention, "_kernel",
            lambda *args, **more: piecewise_.count(*args) or kernel(*args, **more),
        )  # fmt: skip
        states(llama, batch)
    assert (piecewise_.pairs, piecewise_.tokens) == (2 * seen, 19)


def test_a_model_that_keeps_its_arguments_to_itself_attends_under_the_mask(
    llama: Any, monkeypatch: pytest.MonkeyPatch
):
    """It would read its neighbours in the row without a word."""
    monkeypatch.setattr(attention, "_MASKED", set())
    batch = pack(GROUPS)
    with torch.no_grad():
        expected = states(llama, batch)
        trunk = type(llama.base_model)
        forward = trunk.forward
        monkeypatch.setattr(
            trunk, "forward",
            lambda self, pieces=None, **arguments: forward(self, **arguments),
        )  # fmt: skip
        torch.testing.assert_close(states(llama, batch), expected, rtol=0, atol=1e-6)
    assert {"llama"} == attention._MASKED
    assert llama.config._attn_implementation == "sdpa"


def test_what_one_model_drops_does_not_mask_its_type(llama: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "_MASKED", set())
    batch = pack(GROUPS)
    with torch.no_grad():
        expected = states(llama, batch)
        attends = llama.base_model.layers[0].self_attn
        attends.attention_dropout = 0.5
        llama.train()
        torch.manual_seed(0)
        first, second = states(llama, batch), states(llama, batch)
        attends.attention_dropout = 0.0
        torch.testing.assert_close(states(llama, batch), expected, rtol=0, atol=1e-6)
    assert float((first - second).abs().max()) > 1e-3
    assert not attention._MASKED


@pytest.mark.parametrize(
    ("module", "more"),
    [
        ({}, {"softcap": 30.0}),
        ({}, {"s_aux": torch.zeros(2)}),
        ({}, {"dropout": 0.1}),
        ({"is_causal": False}, {}),
        ({}, {"is_causal": False}),
        ({}, {"pieces": None}),
    ],
)
def test_what_is_more_than_causal_attention_is_lost(module: dict[str, Any], more: dict[str, Any]):
    _, pieces = pieces_of(pack(GROUPS))
    part = torch.zeros(1, 2, 19, 4)
    with pytest.raises(Lost):
        attend(
            types.SimpleNamespace(**module), part, part, part, None, **{"pieces": pieces, **more}
        )


def test_a_context_of_an_attention_can_be_entered_within_itself():
    config = types.SimpleNamespace(_attn_implementation="sdpa")
    then = attending_now(config)
    with Attending(config, "piecewise"):
        now = attending_now(config)
        with then, now, now:
            assert config._attn_implementation == "piecewise"
        with then:
            assert config._attn_implementation == "sdpa"
    assert config._attn_implementation == "sdpa"


@torch.no_grad()
def test_threads_may_share_a_model(llama: Any):
    """What a model attends with is a setting that they share: each waits for its turn."""
    batch = pack(GROUPS)
    expected = states(llama, batch)

    def once(_: int) -> float:
        with torch.no_grad():  # a setting of each thread
            return float((states(llama, batch) - expected).abs().max())

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as threads:
            assert max(threads.map(once, range(80))) < 1e-5
    finally:
        sys.setswitchinterval(before)
