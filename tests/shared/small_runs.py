"""What configurations of small runs are made of: bases and a built-in world, trained in seconds."""

from __future__ import annotations

ONE_LAYER = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 300,
}  # fmt: skip
"""`base.architecture` where only what happens counts."""
TWO_LAYERS = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 400,
}  # fmt: skip
"""`base.architecture` where numbers are compared."""


def world_of(each: int, **others: int) -> dict[str, int]:
    """`world`: so many of everything, but for what is named."""
    sizes = dict.fromkeys(("documents", "demonstrations", "items", "prompts"), each)
    return sizes | others


def builtin(*kinds: str) -> dict[str, dict[str, str]]:
    """`data`: these kinds of the built-in world, by their names."""
    return {kind: {"path": f"builtin:{kind}"} for kind in kinds}
