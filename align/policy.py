"""A policy has two verbs: respond (sample) and logprobs (evaluate, see Roles.logprobs)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from align.tensors import sample_inverse_cdf
from preference_data.records import Message, Prompt
from preference_data.rendering import Renderer

COMPACT_BELOW = 0.75
"""Finished rows leave the batch when less than this share of it is still running."""


@dataclass(frozen=True)
class Response:
    """What was sampled for one prompt."""

    ids: tuple[int, ...]
    """Tokens up to and including the end, or up to the limit."""
    logprobs: tuple[float, ...]
    """Of each token under the distribution it was drawn from, nats."""
    ended: bool
    """Whether the last token is the end of a sequence."""


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
) -> list[Response]:
    """Samples a response to each prompt with its row of `draws` [B, max_new_tokens].

    Sampling is from softmax(logits / temperature) and nothing else: what is recorded is what was
    sampled from. The key-value cache keeps only rows that still run.
    """
    device = model.device
    eos = renderer.tokenizer.eos_token_id
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    ids, mask, draws = ids.to(device), mask.to(device), draws.to(device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    tokens: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    running = torch.arange(len(prompts), device=device)  # which response each row of the batch is
    alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
    cache: Any = None
    for t in range(draws.shape[1]):
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        sample = sample_inverse_cdf(output.logits[:, -1], draws[running, t], temperature)
        for row, token, logprob, live in zip(
            running.tolist(), sample.tokens.tolist(), sample.logprobs.tolist(), alive.tolist(),
            strict=True,
        ):  # fmt: skip
            if live:
                tokens[row].append(token)
                logprobs[row].append(logprob)
        alive &= sample.tokens != eos
        if not bool(alive.any()):
            break
        ids = sample.tokens[:, None]
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        positions = positions[:, -1:] + 1
        if alive.float().mean() < COMPACT_BELOW:
            keep = alive.nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            ids, mask, positions = ids[keep], mask[keep], positions[keep]
            running, alive = running[keep], alive[keep]
    return [
        Response(tuple(row), tuple(logprob), row[-1] == eos)
        for row, logprob in zip(tokens, logprobs, strict=True)
    ]


class Chat:
    """A policy to talk to."""

    def __init__(self, model: Any, renderer: Renderer, max_new_tokens: int, temperature: float):
        self._model = model
        self._renderer = renderer
        self._max_new_tokens = max_new_tokens
        self._temperature = temperature
        self._turn = 0

    def reply(self, messages: list[dict[str, str]]) -> str:
        """The policy's reply to a conversation of {"role", "content"} that ends with the user."""
        prompt = Prompt(tuple(Message(m["role"], m["content"]) for m in messages))  # type: ignore[arg-type]
        self._turn += 1
        draws = uniforms(self._turn, 1, self._max_new_tokens)
        ids = self._renderer.prompt(prompt)
        [response] = respond(self._model, [ids], draws, self._renderer, self._temperature)
        return self._renderer.decode(response.ids)


def load_for_chat(
    path: str | Path, max_new_tokens: int = 128, temperature: float = 0.7, base: str | None = None
) -> Chat:
    """Loads a policy step's folder (or its `adapter/` or `model/`) with transformers and peft.

    Raises FileNotFoundError if the folder holds no policy.
    """
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(path)
    for part in ("adapter", "model"):
        if (folder / part).is_dir():
            folder = folder / part
    if (folder / "adapter_config.json").is_file():
        base = base or str(PeftConfig.from_pretrained(str(folder)).base_model_name_or_path)
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model = PeftModel.from_pretrained(model, str(folder)).get_base_model()
    elif (folder / "config.json").is_file():
        model = AutoModelForCausalLM.from_pretrained(folder)
    else:
        raise FileNotFoundError(f"{path} holds neither an adapter nor a model.")
    return Chat(
        model.eval(), Renderer(AutoTokenizer.from_pretrained(folder)), max_new_tokens, temperature
    )
