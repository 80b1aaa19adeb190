"""A policy has two verbs: respond (sample) and logprobs (evaluate, see Roles.logprobs)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from align.config import ConfigError
from align.decoding import Decoding, any_length
from align.logits import sample_inverse_cdf
from align.progress import tracked
from preference_data.rendering import Renderer
from reward_models.folders import base_under, weights_folder

COMPACT_BELOW = 0.75
"""Finished rows leave the batch when less than this share of it is still running."""
NONE = -1
"""No token: the response had ended."""


@dataclass(frozen=True)
class Response:
    """What was sampled for one prompt."""

    ids: tuple[int, ...]
    """Tokens up to and including the end, or up to the limit."""
    logprobs: tuple[float, ...]
    """Of each token under the distribution it was drawn from, nats."""
    ended: bool
    """Whether the last token is the end of a sequence."""
    values: tuple[float, ...] | None = None
    """Of the states that the tokens were drawn in, if they were read"""


def uniforms(seed: int, rows: int, columns: int) -> Tensor:
    """[rows, columns] numbers in [0, 1): row i, column t is what response i's token t is drawn
    with, whatever batch or rank it is sampled in."""
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def respond(
    model: Any,
    prompts: Sequence[tuple[int, ...]],
    draws: Tensor,
    renderer: Renderer,
    temperature: float,
    heard: Callable[[Tensor], object] | None = None,
    read: Callable[[Tensor], Tensor] | None = None,
) -> list[Response]:
    """Samples a response to each prompt with its row of `draws` [B, max_new_tokens].

    Sampling is from softmax(logits / temperature) and nothing else: what is recorded is what was
    sampled from. A prompt that several responses share is computed once, and the key-value cache
    keeps only rows that still run. `heard` is given every step's tokens [B], NONE where a response
    has ended, as soon as they are drawn. `read` gives the value [B] of last hidden states [B, D].
    """
    distinct = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    with any_length(model):
        rows = Decoding(model, list(distinct), draws.shape[1])
        return _respond(
            rows, [distinct[prompt] for prompt in prompts], draws.to(model.device),
            renderer.tokenizer.eos_token_id, temperature, heard, read,
        )  # fmt: skip


def check_positions(
    config: Any, prompts: Sequence[tuple[int, ...]], max_new_tokens: int, step: str
) -> None:
    """Raises ConfigError if a prompt of the `step` and its response are longer than the positions
    of a model of this `config`: some would fail hours later, others go on where they were never
    trained."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    longest = max(map(len, prompts)) + max_new_tokens
    if limit and longest > limit:
        raise ConfigError(
            f"steps.{step}: the longest prompt and max_new_tokens are {longest} tokens together, "
            f"but the base has {limit} positions; lower max_prompt_length or max_new_tokens."
        )


def _respond(
    rows: Decoding,
    prompt_of: list[int],
    draws: Tensor,
    eos: int,
    temperature: float,
    heard: Callable[[Tensor], object] | None,
    read: Callable[[Tensor], Tensor] | None,
) -> list[Response]:
    device = draws.device
    tokens = torch.full(draws.shape, NONE, device=device)
    logprobs = torch.zeros(draws.shape, device=device)
    values = None if read is None else torch.zeros_like(logprobs)
    running = torch.arange(len(draws), device=device)  # which response each row is
    alive = torch.ones(len(draws), dtype=torch.bool, device=device)
    if len(set(prompt_of)) < len(prompt_of):
        rows.select(torch.tensor(prompt_of, device=device))
    for t in tracked(range(draws.shape[1]), "sampling", "tokens"):
        sample = sample_inverse_cdf(rows.logits, draws[running, t], temperature)
        tokens[running, t] = sample.tokens.where(alive, NONE)
        logprobs[running, t] = sample.logprobs.where(alive, 0.0)
        if values is not None and read is not None:
            values[running, t] = read(rows.states).float().where(alive, 0.0)
        if heard is not None:
            heard(tokens[:, t])
        alive &= sample.tokens != eos
        left = int(alive.sum())
        if not left or t + 1 == draws.shape[1]:
            break
        chosen = sample.tokens
        if left < COMPACT_BELOW * len(alive):
            keep = alive.nonzero().squeeze(1)
            rows.select(keep)
            chosen, running, alive = chosen[keep], running[keep], alive[keep]
        rows.append(chosen)
    return _responses(tokens, logprobs, values, eos)


def _responses(tokens: Tensor, logprobs: Tensor, values: Tensor | None, eos: int) -> list[Response]:
    """Of [B, max_new_tokens] each."""
    lengths = (tokens != NONE).sum(1).tolist()
    read = [None] * len(tokens) if values is None else values.tolist()
    return [
        Response(
            tuple(row[:length]), tuple(logprob[:length]), row[length - 1] == eos,
            None if worths is None else tuple(worths[:length]),
        )
        for row, logprob, worths, length in zip(
            tokens.tolist(), logprobs.tolist(), read, lengths, strict=True
        )
    ]  # fmt: skip


def load_policy(
    path: str | Path, base: str | None = None, device: str | None = None
) -> tuple[Any, Renderer]:
    """Loads a policy step's folder (or its `adapter/` or `model/`) with transformers and peft.

    On a CPU in float32, on a GPU in the numbers that the base was saved in. `base` replaces the
    base model that the adapter names. Raises FileNotFoundError if the folder holds no policy, or
    its base is gone.
    """
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = weights_folder(Path(path))
    device = device or "cpu"
    dtype = torch.float32 if device == "cpu" else "auto"
    if (folder / "adapter_config.json").is_file():
        config = PeftConfig.from_pretrained(str(folder))
        found = base or base_under(folder, str(config.base_model_name_or_path))
        revision = None if base else config.revision
        model: Any = AutoModelForCausalLM.from_pretrained(found, revision=revision, dtype=dtype)
        model = PeftModel.from_pretrained(model, str(folder)).get_base_model()
    elif (folder / "config.json").is_file():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    else:
        raise FileNotFoundError(f"{path} holds neither an adapter nor a model.")
    return model.to(device).eval(), Renderer(AutoTokenizer.from_pretrained(folder))
