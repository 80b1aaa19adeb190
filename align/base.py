"""Where the base Transformer comes from: a hub id, a local folder, or the built-in tiny one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from align.compiling import compile_later, layers_of
from align.config import Base, ConfigError
from align.memory.architecture import TINY
from preference_data.attention import hidden_states
from preference_data.batches import Group, pack
from preference_data.rendering import Renderer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

WINDOWS = ("window_size", "local_attention")
"""What configurations call the number of tokens back that a layer sees, if the layer measures it by
the place in the row, where a packed batch has other conversations."""

PROBE = (
    Group((1, 2, 3, 4, 5), ((6, 7, 8), (9, 6, 7))),
    Group((9, 8, 7, 1, 2), ((3, 4, 5),)),
)
"""Conversations of one length, so that one batch without padding holds them alone."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'Question: ' + message['content'] + '\n' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ 'Answer:\n' + message['content'] + eos_token + '\n' }}"
    "{% else %}{{ message['content'] + '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Answer:\n' }}{% endif %}"
)
"""Ordinary words, as in the text of questions and answers that pretraining reads: the embedding of
a control token would be random, and an adapter does not train it."""


def load_renderer(path: str, revision: str | None = None) -> Renderer:
    """The tokenizer of a model folder or hub id, with pad distinct from the end of a sequence.

    Raises ConfigError if there is none.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"base.model {path!r} has no tokenizer that can be loaded: {reason}"
        ) from None
    return Renderer(tokenizer)


def load_base(path: str, base: Base, device: torch.device) -> Any:
    """The causal language model at `path`, in the configured type, without dropout.

    Raises ConfigError if it cannot be loaded, computes something else in packed batches, or has no
    layers for the gradient checkpointing that is asked for.
    """
    from transformers import AutoModelForCausalLM

    if base.attention not in ("auto", "sdpa", "eager") and device.type != "cuda":
        raise ConfigError(
            f"base.attention is {base.attention}, which trains on a GPU only; use auto here."
        )
    if base.attention == "flash_attention_2" and base.dtype == "float32":
        raise ConfigError(
            "base.attention is flash_attention_2, which computes in half precision only; set "
            "base.dtype to bfloat16."
        )
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            path,
            revision=base.revision,
            dtype=DTYPES[base.dtype],
            attn_implementation="sdpa" if base.attention == "auto" else base.attention,
        )
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"base.model {path!r} cannot be loaded: {reason}") from None
    _refuse_window(path, model.config)
    module: Any
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            # Llama and its like keep it as a number of the layer.
            setattr(module, "attention_dropout", 0.0)  # noqa: B010 - pyright expects tensors
    model = model.to(device)
    _refuse_inexact(path, model)
    if base.gradient_checkpointing:
        _mark_layers(path, model)
    if base.compile:
        compile_later(model, device)
    return model


def _mark_layers(path: str, model: Any) -> None:
    """Switches checkpointing on where transformers has its switch: in each layer."""
    layers = layers_of(model)
    if not layers:
        raise ConfigError(
            f"base.gradient_checkpointing is true, but the layers of base.model {path!r} "
            f"({model.config.model_type}) cannot be computed again; set it to false."
        )
    for layer in layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)


def checkpointed_layers(model: torch.nn.Module) -> list[Any]:
    """The layers of a transformers model whose checkpointing is on.

    transformers heeds the switch in training mode; `Roles` does where a gradient is wanted.
    """
    return [layer for layer in layers_of(model) if layer.gradient_checkpointing]


def _refuse_window(path: str, config: Any) -> None:
    config = config.get_text_config()
    for name in WINDOWS:
        window = getattr(config, name, None)
        if window and window < config.max_position_embeddings:
            raise ConfigError(
                f"base.model {path!r} attends to a window of {window} tokens, which packed batches "
                f"do not keep to; set {name} to {config.max_position_embeddings} in its "
                f"config.json if nothing is that long."
            )


def _refuse_inexact(path: str, model: Any) -> None:
    """Asks the model itself: packed and alone must be the same, and logits the head's output."""
    if getattr(model, "_is_stateful", False):
        raise ConfigError(
            f"base.model {path!r} is recurrent: it cannot read packed batches, where a "
            f"conversation follows another in one row."
        )
    batch = pack(PROBE).to(model.device)
    alone = torch.tensor([[*group.prompt, *ids] for group in PROBE for ids in group.completions])
    with torch.no_grad():
        packed = hidden_states(model, batch)
        hidden = model.base_model(input_ids=alone.to(model.device), use_cache=False)
        hidden = hidden.last_hidden_state[:, -1]
        logits = model(input_ids=alone.to(model.device), use_cache=False).logits[:, -1]
        plain = model.get_output_embeddings()(hidden)
    rounding = 1e-4 if model.dtype == torch.float32 else 5e-2
    if not _apart(packed.flatten(0, 1)[batch.last_at], hidden) <= rounding:
        raise ConfigError(
            f"base.model {path!r} ({model.config.model_type}) does not keep to the mask and the "
            f"positions of packed batches: conversations in one row would change each other."
        )
    # Logits as small as those of fresh weights would pass through a cap unchanged.
    capped = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    if capped or not _apart(plain, logits) <= 1e-3:
        raise ConfigError(
            f"base.model {path!r} ({model.config.model_type}) scales or caps the logits after its "
            f"head, which log-probabilities here would leave out."
        )


def _apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The distance between two tensors, as a share of the second one's length."""
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


def build_tiny(folder: Path, base: Base, texts: list[str], seed: int) -> int:
    """Writes a randomly initialised Llama and a tokenizer trained on `texts` into `folder`.

    Returns the number of parameters. Raises ConfigError for an unknown architecture setting.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig

    known = LlamaConfig().to_dict()
    for name in base.architecture:
        if name not in known:
            raise ConfigError(f"base.architecture.{name} is no setting of a Llama configuration.")
    settings: dict[str, Any] = {**TINY, **base.architecture}
    tokenizer = train_tokenizer(texts, int(settings["vocab_size"]))
    settings["vocab_size"] = len(tokenizer)
    config = LlamaConfig(
        **settings,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def train_tokenizer(texts: list[str], vocabulary: int) -> Any:
    """A byte-level BPE tokenizer trained on `texts`; pad and end are tokens of their own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|pad|>", "<|end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
