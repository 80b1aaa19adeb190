"""A base Transformer's shapes from its files: nothing is loaded and torch is not imported."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.config import Base, Lora

TINY: Mapping[str, Any] = {
    "hidden_size": 160,
    "intermediate_size": 432,
    "num_hidden_layers": 4,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "max_position_embeddings": 1024,
    "vocab_size": 1024,
    "tie_word_embeddings": True,
}
"""`builtin:tiny`, a Llama of 1.4 M parameters."""
EMBEDDINGS = ("embed_tokens", "embed_in", "wte", "wpe", "word_embeddings", "embed_positions")
HEADS = ("lm_head", "embed_out")
INDEX = "model.safetensors.index.json"
TRANSPOSED = ("gpt2", "openai-gpt")
"""Model types whose layers hold their weights as [in, out]."""
NAMES = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "intermediate_size": ("intermediate_size", "n_inner", "ffn_dim"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer"),
    "num_attention_heads": ("num_attention_heads", "n_head"),
    "num_key_value_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "vocab_size": ("vocab_size",),
    "activation": ("hidden_act", "activation_function"),
}
"""What config.json calls each of these, by architecture."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "state_size", "ssm_state_size")
"""Keys of mixtures of experts and recurrent models, whose activations are other than these."""


class UnknownBase(ValueError):
    """A base whose shapes cannot be read; the message says why, as the end of a sentence."""


@dataclass(frozen=True)
class Architecture:
    """The shapes of a base Transformer."""

    shapes: Mapping[str, tuple[int, ...]]
    """of every parameter, by name; tied ones once"""
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    activation: str
    rms_norm: bool
    """its norms have no bias, and compute in float32 whatever the weights are in"""
    transposed: bool
    """its layers hold their weights as [in, out]"""

    @property
    def parameters(self) -> int:
        """How many there are."""
        return sum(map(_product, self.shapes.values()))

    @property
    def largest(self) -> int:
        """Numbers of the largest parameter."""
        return max(map(_product, self.shapes.values()))

    @property
    def gated(self) -> bool:
        """Whether the MLP multiplies two projections (Shazeer 2020, arXiv:2002.05202)."""
        return any(".gate_proj." in name or ".gate_up_proj." in name for name in self.shapes)

    @property
    def query_norms(self) -> bool:
        """Whether queries and keys are normalised."""
        return any(".q_norm." in name for name in self.shapes)

    @property
    def query_size(self) -> int:
        return self.num_attention_heads * self.head_dim

    @property
    def key_size(self) -> int:
        return self.num_key_value_heads * self.head_dim

    def layers(self) -> Iterator[tuple[str, int, int]]:
        """(name, inputs, outputs) of the linear layers; the language head is none."""
        for name, shape in self.shapes.items():
            module, _, kind = name.rpartition(".")
            part = module.rpartition(".")[2]
            if kind == "weight" and len(shape) == 2 and part not in (*EMBEDDINGS, *HEADS):
                out, into = reversed(shape) if self.transposed else shape
                yield module, into, out

    def adapted(self, lora: Lora) -> list[tuple[str, int, int]]:
        """Those of `layers` that get an adapter, as peft chooses them."""
        targets = lora.target_modules
        if targets == "all-linear":
            return list(self.layers())
        return [
            layer
            for layer in self.layers()
            if any(layer[0] == name or layer[0].endswith(f".{name}") for name in targets)
        ]

    def adapter_parameters(self, lora: Lora) -> int:
        """Numbers of one adapter: A [r, in] and B [out, r] of each adapted layer."""
        return sum(lora.r * (into + out) for _, into, out in self.adapted(lora))


def _product(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


# --- reading it ----------------------------------------------------------------------------------


def read_architecture(base: Base, run_folder: Path) -> Architecture:
    """The shapes of the configured base, from its folder, the hub's local cache, or the settings of
    the built-in one. Raises UnknownBase."""
    if base.model == "builtin:tiny":
        own = run_folder / "base"
        if (own / "artifact.json").is_file():
            return _read(own / "config.json", _files_of_folder(own))
        return _llama({"model_type": "llama", **TINY, **base.architecture})
    place = Path(base.model)
    if place.is_dir():
        if not (place / "config.json").is_file():
            raise UnknownBase(f"{base.model} has no config.json")
        return _read(place / "config.json", _files_of_folder(place))
    config = _cached(base, "config.json")
    if (index := _cached(base, INDEX)) is not None:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        found = [_cached(base, name) for name in names]
    else:
        found = [_cached(base, "model.safetensors")]
    files = [file for file in found if file is not None]
    if config is None or len(files) < len(found):
        raise UnknownBase(f"{base.model} is not downloaded yet")
    return _read(config, files)


def _files_of_folder(folder: Path) -> list[Path]:
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise UnknownBase(f"{folder} holds no model.safetensors, whose header has the shapes")
    return files


def _cached(base: Base, name: str) -> Path | None:
    """A file of a hub model, if it was downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(base.model, name, revision=base.revision)
    except ValueError:  # no name of a repository
        return None
    return Path(found) if isinstance(found, str) else None


def _read(config_file: Path, weights: list[Path]) -> Architecture:
    config = json.loads(config_file.read_text(encoding="utf-8"))
    shapes: dict[str, tuple[int, ...]] = {}
    for file in weights:
        shapes |= _header(file)
    tied = config.get("tie_word_embeddings", not any(_is_head(name) for name in shapes))
    return architecture_of(config, {n: s for n, s in shapes.items() if not (tied and _is_head(n))})


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters in a file; masks and frequencies, which old files hold, are none."""
    from safetensors import SafetensorError, safe_open

    try:
        opened = safe_open(file, "np")
    except (OSError, SafetensorError) as error:
        raise UnknownBase(f"{file} cannot be read: {error}") from None
    with opened as tensors:
        shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118 - no mapping
    buffers = (".masked_bias", ".inv_freq")
    return {n: s for n, s in shapes.items() if len(s) < 4 and s and not n.endswith(buffers)}


def _is_head(name: str) -> bool:
    return name.rpartition(".")[0].rpartition(".")[2] in HEADS


def architecture_of(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> Architecture:
    """From the content of a config.json and the shapes of the parameters. Raises UnknownBase."""
    config = config.get("text_config") or config
    if any(config.get(key) for key in EXPERTS):
        raise UnknownBase(
            f"{config.get('model_type')} is a mixture of experts or recurrent, which the estimate "
            f"does not know"
        )
    hidden = _value(config, "hidden_size")
    heads = _value(config, "num_attention_heads")
    return Architecture(
        shapes=shapes,
        hidden_size=hidden,
        intermediate_size=_value(config, "intermediate_size", 4 * hidden),
        num_hidden_layers=_value(config, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=_value(config, "num_key_value_heads", heads),
        head_dim=_value(config, "head_dim", hidden // heads),
        vocab_size=_value(config, "vocab_size"),
        activation=str(_value(config, "activation", "gelu")),
        rms_norm=not any(("norm" in n and n.endswith(".bias")) or "ln_" in n for n in shapes),
        transposed=config.get("model_type") in TRANSPOSED,
    )


def _value(config: Mapping[str, Any], what: str, default: Any = None) -> Any:
    found = next((config[name] for name in NAMES[what] if config.get(name)), default)
    if found is None:
        raise UnknownBase(f"its config.json has no {NAMES[what][0]}")
    return found


def _llama(config: Mapping[str, Any]) -> Architecture:
    """A Llama that is not built yet; its tokenizer may turn out to have fewer words."""
    hidden, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    heads = int(config["num_attention_heads"])
    width = int(config.get("head_dim") or hidden // heads)
    keys = int(config.get("num_key_value_heads") or heads) * width
    words = (int(config["vocab_size"]), hidden)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": words}
    for number in range(int(config["num_hidden_layers"])):
        layer = {
            "self_attn.q_proj": (heads * width, hidden), "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden), "self_attn.o_proj": (hidden, heads * width),
            "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
            "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
        }  # fmt: skip
        for name, shape in layer.items():
            shapes[f"model.layers.{number}.{name}.weight"] = shape
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = words
    return architecture_of({"hidden_act": "silu", **config}, shapes)
