"""Sampling: what is recorded is what was sampled from, and a draw belongs to its response alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from scipy.stats import chi2
from torch import Tensor

from align.adapters import merged
from align.config import ConfigError
from align.logits import sample_inverse_cdf
from align.policy import Response, check_positions, load_policy, respond, uniforms
from align.roles import Roles
from preference_data import attention
from preference_data.batches import Group, pack
from preference_data.rendering import Renderer

PROMPTS = [(260, 7, 30), (5,), (9, 8, 7, 6, 5, 4, 3, 2), (40, 41, 42, 43), (5,), (100, 101)]
LONGEST = 24


@pytest.fixture
def roles(make_roles: Callable[..., Roles], shake: Callable[..., None]) -> Roles:
    """A policy that ends a response at every token with a chance of 5 to 25 %, and never before
    all its responses have a few tokens to compare."""
    roles = make_roles()
    for parameter in roles.model.parameters():  # weights of std 0.02 make every state alike
        parameter.data *= 3
    roles.add("policy", fresh=True, trainable=True)
    shake(roles.parameters_of("policy"))
    head = roles.model.get_base_model().get_output_embeddings()
    eos = roles.renderer.tokenizer.eos_token_id
    bias = torch.zeros(head.out_features)
    bias[eos] = 4.0
    head.bias = torch.nn.Parameter(bias, requires_grad=False)
    return roles


def sampled(
    roles: Roles, prompts: list[tuple[int, ...]], draws: Tensor, temperature: float = 1.0
) -> list[Response]:
    with roles.active("policy") as model:
        return respond(model, prompts, draws, roles.renderer, temperature)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_captured_log_probabilities_are_the_evaluated_ones(roles: Roles, temperature: float):
    """One row at a time from a cache against one packed forward: < 1e-4 nats, at every token."""
    responses = sampled(roles, PROMPTS, uniforms(1, len(PROMPTS), LONGEST), temperature)
    groups = [Group(p, (r.ids,)) for p, r in zip(PROMPTS, responses, strict=True)]
    with torch.no_grad():
        evaluated = roles.logprobs("policy", pack(groups), temperature).logprobs
    captured = torch.tensor([value for response in responses for value in response.logprobs])
    assert (captured - evaluated).abs().max() < 1e-4
    assert captured.std() > 0.1


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "qwen2", "mistral"])
def test_other_families_sample_what_they_evaluate(family: str, attention: str, renderer: Renderer):
    """Rotary positions forgive a shift of the left padding, GPT-2's learned ones do not: captured
    against each conversation alone, with the model's own mask and positions. The prompts are read
    in one row of 18 tokens, or in five that are padded to 8."""
    from transformers import AutoConfig, AutoModelForCausalLM

    size = len(renderer.tokenizer)
    names = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    if family != "gpt2":
        names = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        names |= {"intermediate_size": 48, "max_position_embeddings": 64}
        names |= {} if family == "gpt_neox" else {"num_key_value_heads": 2}
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=size, **names)
    model: Any = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation=attention
    ).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    shapes: list[torch.Size] = []
    hook = model.register_forward_pre_hook(
        lambda _, __, given: shapes.append(given["input_ids"].shape), with_kwargs=True
    )
    responses = respond(model, PROMPTS, uniforms(1, len(PROMPTS), 12), renderer, 1.0)
    hook.remove()
    packs = attention == "sdpa" and family != "mistral"  # the layers of a window have another cache
    assert shapes[0] == ((1, 18) if packs else (5, 8))
    for prompt, response in zip(PROMPTS, responses, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *response.ids]]), use_cache=False).logits[0]
        places = torch.arange(len(prompt) - 1, len(prompt) + len(response.ids) - 1)
        exact = logits.log_softmax(-1)[places, torch.tensor(response.ids)]
        assert response.logprobs == pytest.approx(exact.tolist(), abs=1e-4)


def test_a_response_is_the_same_alone_and_in_a_batch(roles: Roles):
    """Finished rows leave the batch on the way, which none of the others may notice."""
    draws = uniforms(2, len(PROMPTS), LONGEST)
    together = sampled(roles, PROMPTS, draws)
    lengths = {len(response.ids) for response in together}
    assert len(lengths) >= 4, "the rows must end at different times for compaction to happen"
    for row, prompt in enumerate(PROMPTS):
        [alone] = sampled(roles, [prompt], draws[[row]])
        assert alone.ids == together[row].ids
        assert alone.ended == together[row].ended
        assert alone.logprobs == pytest.approx(together[row].logprobs, abs=1e-5)


@pytest.mark.parametrize("threshold", [0.0, 1.01], ids=["never", "at once"])
def test_compaction_changes_nothing(
    roles: Roles, threshold: float, monkeypatch: pytest.MonkeyPatch
):
    draws = uniforms(3, len(PROMPTS), LONGEST)
    usual = sampled(roles, PROMPTS, draws)
    monkeypatch.setattr("align.policy.COMPACT_BELOW", threshold)
    other = sampled(roles, PROMPTS, draws)
    assert [r.ids for r in other] == [r.ids for r in usual]
    for a, b in zip(other, usual, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


def test_the_same_prompt_with_other_draws_gets_another_response(roles: Roles):
    first, second = sampled(roles, [(5,), (5,)], uniforms(4, 2, LONGEST))
    assert first.ids != second.ids


def test_responses_end_with_the_end_or_at_the_limit(roles: Roles):
    """The end is part of the response and of its log-probabilities; nothing comes after it."""
    eos = roles.renderer.tokenizer.eos_token_id
    responses = sampled(roles, PROMPTS * 4, uniforms(5, len(PROMPTS) * 4, 10))
    assert {response.ended for response in responses} == {True, False}
    for response in responses:
        assert len(response.logprobs) == len(response.ids)
        assert eos not in response.ids[:-1]
        if response.ended:
            assert response.ids[-1] == eos
        else:
            assert len(response.ids) == 10 and response.ids[-1] != eos


def test_an_end_at_once_is_a_response_of_one_token(roles: Roles):
    """A certain end: the response is the end token alone, with log-probability 0."""
    roles.model.get_base_model().get_output_embeddings().bias.data[:] = -1e4
    eos = roles.renderer.tokenizer.eos_token_id
    roles.model.get_base_model().get_output_embeddings().bias.data[eos] = 1e4
    [response] = sampled(roles, [(5, 6)], uniforms(6, 1, LONGEST))
    assert response == Response((eos,), (0.0,), True)


def test_the_pad_token_does_not_matter(roles: Roles):
    """Left padding is masked, so what it is made of, be it the end token, changes no bit."""
    draws = uniforms(7, len(PROMPTS), LONGEST)
    before = sampled(roles, PROMPTS, draws)
    roles.renderer.tokenizer.pad_token = roles.renderer.tokenizer.eos_token
    assert sampled(roles, PROMPTS, draws) == before


def test_draws_belong_to_rows_whatever_their_number():
    """Response i's numbers are its own: more columns or rows after it do not move a seed's."""
    numbers = uniforms(1, 4, 8)
    assert torch.equal(numbers, uniforms(1, 4, 8))
    assert not torch.equal(numbers, uniforms(2, 4, 8))
    assert torch.equal(numbers, uniforms(1, 9, 8)[:4])
    assert bool((numbers >= 0).all()) and bool((numbers < 1).all())


# --- the sampler ----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.0])
def test_samples_have_the_distribution_of_the_softmax(temperature: float):
    """Chi-square of 40 000 draws over 12 tokens against softmax(z / T), at the 0.1 % level."""
    logits = torch.randn(12, generator=torch.Generator().manual_seed(3))
    n = 40_000
    sample = sample_inverse_cdf(logits.expand(n, -1), uniforms(8, 1, n)[0], temperature)
    expected = n * np.exp(logits.double().numpy() / temperature)
    expected /= expected.sum() / n
    observed = torch.bincount(sample.tokens, minlength=12).numpy()
    assert ((observed - expected) ** 2 / expected).sum() < chi2.ppf(0.999, df=11)
    # The recorded log-probability is that of the token drawn.
    exact = (logits / temperature).log_softmax(-1)
    torch.testing.assert_close(sample.logprobs, exact[sample.tokens], rtol=0, atol=1e-5)


def test_inverse_of_the_distribution_function_by_hand():
    """p = (.25, .5, .25): below .25 token 0, from .25 to .75 token 1, then token 2."""
    logits = torch.log(torch.tensor([0.25, 0.5, 0.25]))
    uniform = torch.tensor([0.0, 0.24, 0.26, 0.74, 0.76, 1 - 2**-24])
    sample = sample_inverse_cdf(logits.expand(6, -1), uniform, 1.0)
    assert sample.tokens.tolist() == [0, 0, 1, 1, 2, 2]


def test_an_impossible_token_is_never_drawn():
    """Not even by a draw of exactly 0 where the first token has no probability, or at the end."""
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf])
    uniform = torch.cat([torch.tensor([0.0, 0.5, 1 - 2**-24]), uniforms(9, 1, 997)[0]])
    sample = sample_inverse_cdf(logits.expand(1000, -1), uniform, 1.0)
    assert set(sample.tokens.tolist()) == {1, 3}


# --- a saved policy -------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_a_saved_policy_samples_as_before(
    make_roles: Callable[..., Roles], shake: Callable[..., None], tmp_path: Path, lora: bool
):
    """A saved policy answers as the one in training did, to the same numbers."""
    from preference_data.records import Prompt

    roles = make_roles() if lora else make_roles(None)
    roles.add("policy", fresh=True, trainable=True)
    shake(roles.parameters_of("policy"))
    roles.save("policy", tmp_path)
    renderer: Renderer = roles.renderer
    ids = renderer.prompt(Prompt.from_text("What is the capital of France?"))
    [expected] = sampled(roles, [ids], uniforms(1, 1, 12), temperature=0.7)
    model, loaded = load_policy(tmp_path)
    [response] = respond(model, [ids], uniforms(1, 1, 12), loaded, 0.7)
    assert loaded.decode(response.ids) == renderer.decode(expected.ids)
    assert len(expected.ids) > 1


def test_a_folder_without_a_policy_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="holds neither an adapter nor a model"):
        load_policy(tmp_path)


# --- samples that share a prompt, adapters that are folded in -------------------------------------


def test_samples_of_a_prompt_share_its_forward(roles: Roles, monkeypatch: pytest.MonkeyPatch):
    """Three samples of each of two prompts, given in any order: the first forward has the 3 + 8
    tokens of the two, and every response is the one that its prompt and draws give alone."""
    first, second = PROMPTS[0], PROMPTS[2]
    prompts = [first, second, first, first, second, second]
    draws = uniforms(3, len(prompts), LONGEST)
    sizes: list[int] = []
    model = roles.model.get_base_model()
    hook = model.register_forward_pre_hook(
        lambda _, __, given: sizes.append(given["input_ids"].numel()), with_kwargs=True
    )
    together = sampled(roles, prompts, draws)
    hook.remove()
    assert sizes[0] == len(first) + len(second)
    assert sizes[1] > 2  # a token of each of the six, less those that end at once
    for prompt, draw, response in zip(prompts, draws, together, strict=True):
        [alone] = sampled(roles, [prompt], draw[None])
        assert response.ids == alone.ids
        assert response.logprobs == pytest.approx(alone.logprobs, abs=1e-5)


def test_prompts_are_read_in_passes_that_suit_the_device(
    roles: Roles, monkeypatch: pytest.MonkeyPatch
):
    """At most 5 tokens a pass, or one prompt: of 3 + 1, 8, 4 and 2; values show whose states."""
    sizes: list[int] = []
    model = roles.model.get_base_model()
    draws = uniforms(3, len(PROMPTS), LONGEST)

    def responses() -> list[Response]:
        with roles.active("policy") as model:
            return respond(
                model, PROMPTS, draws, roles.renderer, 1.0, read=lambda states: states[:, 0]
            )

    whole = responses()
    monkeypatch.setattr(attention, "tokens_at_once", lambda _: 5)
    hook = model.register_forward_pre_hook(
        lambda _, __, given: sizes.append(given["input_ids"].numel()), with_kwargs=True
    )
    parts = responses()
    hook.remove()
    assert sizes[:4] == [4, 8, 4, 2]
    for one, other in zip(parts, whole, strict=True):
        assert one.ids == other.ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
        assert one.values == pytest.approx(other.values, abs=1e-4)


def test_a_merged_adapter_samples_the_same_and_leaves_no_trace(roles: Roles):
    """Same draws, same responses; the base and the switch of adapters are as before to the bit."""
    draws = uniforms(5, len(PROMPTS), LONGEST)
    weights = {name: part.clone() for name, part in roles.model.named_parameters()}
    plain = sampled(roles, PROMPTS, draws)
    with roles.active("policy") as model:
        names = [layer._active_adapter for layer in tuners(model)]
        with merged(model):
            assert not any(layer.active_adapters for layer in tuners(model))
            folded = respond(model, PROMPTS, draws, roles.renderer, 1.0)
        assert [layer._active_adapter for layer in tuners(model)] == names
    assert [one.ids for one in folded] == [one.ids for one in plain]
    for one, other in zip(folded, plain, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    for name, part in roles.model.named_parameters():
        assert torch.equal(part, weights[name]), name


def test_an_adapter_is_put_back_after_an_error(roles: Roles):
    before = [part.clone() for part in roles.model.parameters()]
    with pytest.raises(InterruptedError), roles.active("policy") as model, merged(model):
        raise InterruptedError
    assert all(torch.equal(a, b) for a, b in zip(roles.model.parameters(), before, strict=True))


def test_a_base_in_half_precision_keeps_its_adapter_beside_it(roles: Roles):
    """Of 8 bits of a weight near 1, an adapter's 0.001 would leave nothing."""
    for layer in tuners(roles.model):
        layer.get_base_layer().to(torch.bfloat16)
    with roles.active("policy") as model, merged(model):
        assert all(layer.active_adapters == ["policy"] for layer in tuners(model))


def tuners(model: Any) -> list[Any]:
    return [part for part in model.modules() if isinstance(part, BaseTunerLayer)]


def test_layers_that_share_a_weight_keep_their_adapters(roles: Roles):
    """Merged one after the other, each would have the other's adapter, too."""
    first, second, *_ = tuners(roles.model)
    second.get_base_layer().weight = first.get_base_layer().weight
    before = first.get_base_layer().weight.clone()
    with roles.active("policy") as model, merged(model):
        assert first.active_adapters == second.active_adapters == ["policy"]
        assert not tuners(model)[2].active_adapters
    assert torch.equal(first.get_base_layer().weight, before)


def test_a_prompt_beyond_the_positions_is_named(roles: Roles):
    limit = roles.model.config.max_position_embeddings
    check_positions(roles.model.config, [(1,) * (limit - 5)], 5, "ppo")
    with pytest.raises(ConfigError, match=r"steps\.ppo: the longest prompt and max_new_tokens are"):
        check_positions(roles.model.config, [(1,), (1,) * (limit - 5)], 6, "ppo")
