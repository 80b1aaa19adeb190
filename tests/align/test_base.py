"""The base Transformer: the built-in one is the same from a seed, and none keeps its dropout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from align.base import TINY, build_tiny, load_base, load_renderer, train_tokenizer
from align.config import Base, ConfigError

TEXTS = ["Question: What is the capital of France?\nAnswer:\nParis.", "naïve café 日本 🙂"]
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
         "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 300}  # fmt: skip
CPU = torch.device("cpu")


def built(folder: Path, seed: int = 1) -> Path:
    build_tiny(folder, Base(architecture=dict(SMALL)), TEXTS, seed)
    return folder


def test_a_seed_gives_the_same_weights_and_tokens(tmp_path: Path):
    one, again, other = (
        built(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (one / name).read_bytes() == (again / name).read_bytes(), name
    weights, others = (load_file(folder / "model.safetensors") for folder in (one, other))
    name = "model.layers.0.mlp.up_proj.weight"
    assert (weights[name] - others[name]).abs().max() > 1e-3


def test_the_architecture_is_what_was_asked_for(tmp_path: Path):
    """Embedding V * 16, tied. Layer: q, o 16 * 16, k, v 16 * 8, three of 16 * 16, two norms of 16;
    and the last norm."""
    folder = tmp_path / "a"
    count = build_tiny(folder, Base(architecture=dict(SMALL)), TEXTS, seed=1)
    config = json.loads((folder / "config.json").read_text())
    vocabulary = config["vocab_size"]
    assert vocabulary == len(load_renderer(str(folder)).tokenizer) <= 300
    layer = 2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 16 + 2 * 16
    assert count == vocabulary * 16 + layer + 16
    assert config["max_position_embeddings"] == TINY["max_position_embeddings"]
    assert config["bos_token_id"] is None


def test_an_unknown_setting_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"base\.architecture\.hiden_size is no setting"):
        build_tiny(tmp_path, Base(architecture={"hiden_size": 8}), TEXTS, 1)


def test_pad_and_end_are_tokens_of_their_own():
    """With one token for both, whatever masks the padding masks the end too."""
    tokenizer = train_tokenizer(TEXTS, 300)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert {tokenizer.pad_token, tokenizer.eos_token} == set(tokenizer.all_special_tokens)


@pytest.mark.parametrize("text", ["never seen: ÄÖ ж 漢 🙂", "a  b\n\tc", "", "It 's , ok ."])
def test_any_text_can_be_said(text: str):
    """Bytes are the alphabet: nothing is unknown, nothing is changed."""
    tokenizer = train_tokenizer(TEXTS, 300)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id is None


def test_the_saved_tokenizer_is_the_trained_one(tmp_path: Path):
    fresh, loaded = train_tokenizer(TEXTS, 300), load_renderer(str(built(tmp_path / "a"))).tokenizer
    assert loaded.get_vocab() == fresh.get_vocab()
    assert loaded.chat_template == fresh.chat_template
    for text in TEXTS:
        assert loaded(text)["input_ids"] == fresh(text)["input_ids"]


@pytest.mark.parametrize(
    ("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_a_base_is_loaded_in_its_type(tmp_path: Path, name: str, dtype: torch.dtype):
    folder = str(built(tmp_path / "a"))
    model = load_base(folder, Base(model=folder, dtype=name), CPU)  # type: ignore[arg-type]
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert model.config._attn_implementation == "sdpa"
    eager = load_base(folder, Base(model=folder, attention="eager"), CPU)
    assert eager.config._attn_implementation == "eager"


def test_no_dropout_is_left(tmp_path: Path):
    """A GPT-2 brings dropout of .1 in its embeddings, attention and MLP. In training mode two
    passes must still agree, or PPO's first ratio is not 1 and DPO's first margin not 0."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=16)
    assert config.resid_pdrop == config.attn_pdrop == config.embd_pdrop == 0.1
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    model = load_base(str(tmp_path), Base(model=str(tmp_path)), CPU).train()
    ids = torch.arange(10)[None]
    with torch.no_grad():
        first, second = model(ids).logits, model(ids).logits
        assert torch.equal(first, second)
        torch.testing.assert_close(model.eval()(ids).logits, first)


def test_no_dropout_is_left_inside_attention(tmp_path: Path):
    """Llama and its like keep attention dropout as a number of the layer, not as a module."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **{**SMALL, "num_key_value_heads": 2}, attention_dropout=0.5, max_position_embeddings=32
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    model = load_base(str(tmp_path), Base(model=str(tmp_path)), CPU).train()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, model(ids).logits)


def test_a_sliding_window_is_kept_to(tmp_path: Path):
    """Mistral's window of 4 tokens, a conversation of 12: a dense mask would replace the window, so
    the model must be given what its own masks are made of."""
    from transformers import MistralConfig, MistralForCausalLM

    from preference_data.attention import hidden_states
    from preference_data.batches import Group, pack

    config = MistralConfig(**{**SMALL, "num_hidden_layers": 2}, sliding_window=4)
    torch.manual_seed(0)
    MistralForCausalLM(config).save_pretrained(tmp_path)
    model = load_base(str(tmp_path), Base(model=str(tmp_path)), CPU).eval()
    ids = tuple(range(10, 22))
    batch = pack([Group(ids[:6], (ids[6:],))])
    with torch.no_grad():
        alone = model.base_model(torch.tensor([ids]), use_cache=False).last_hidden_state
        model.config.sliding_window = None
        wide = model.base_model(torch.tensor([ids]), use_cache=False).last_hidden_state
        model.config.sliding_window = 4
        packed = hidden_states(model, batch)
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-5)
    assert (wide - alone).abs().max() > 1e-2  # the window matters here


def test_a_base_that_is_not_there_is_named(tmp_path: Path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match=r"base\.model .* has no tokenizer that can be loaded"):
        load_renderer(str(empty))
    with pytest.raises(ConfigError, match=r"base\.model .* cannot be loaded"):
        load_base(str(empty), Base(model=str(empty)), CPU)
