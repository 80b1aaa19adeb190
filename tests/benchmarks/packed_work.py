"""The work of a packed benchmark: which rows, which model, and what a training step of it costs.

Rows are real (HH pairs, Fine-grained RLHF's rankings of four) or made from a seed with lengths
spread like HH's. They are drawn in whole batches of one length each, at even steps through all
lengths, placed so that their mean length is that of all rows: few are run, but batches of like
rows are as even as those of the whole data set, and mixed ones as uneven.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MODELS = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
    "14m": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 9},
    "60m": {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12},
    "0.5b": {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936,
    },
    "1.5b": {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936,
    },
}  # fmt: skip
"""The first three are Llamas with a vocabulary of 8,192; the others have Qwen2.5's shapes."""
SMALL = {"num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 8192}
LLAMAS = ("tiny", "14m", "60m")
MAX_LENGTH = 1024
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ 'Answer:\n' + message['content'] + eos_token }}"
    "{% else %}{{ 'Question: ' + message['content'] + '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Answer:\n' }}{% endif %}"
)
"""An answer's last token is its end: TRL adds one to templates that end otherwise."""
PROMPT_CHARACTERS, ANSWER_CHARACTERS = 2500, 1500
"""Longer rows are passed over, so that neither side cuts any."""


@dataclass(frozen=True)
class Work:
    """One configuration of a benchmark."""

    kind: str
    """reward, dpo, ranking or (in forward_sizes.py) sft"""
    model: str
    lora: bool
    batch: int
    """pairs, or rankings, of an optimiser step"""
    steps: int
    """batches of rows in an epoch"""
    epochs: int = 1
    dtype: str = "float32"
    made_up: bool = False
    """rows made from a seed instead of ALIGN_TEST_DATA's"""
    warm: bool = False
    """the whole work is done once before it is timed"""
    compile: bool = False
    """torch.compile on both sides"""
    forward: int | None = None
    """tokens of our forward passes at most; None: the default of the device"""

    @property
    def name(self) -> str:
        more = f", {self.epochs} epochs" if self.epochs > 1 else ""
        more += f", {self.dtype}" if self.dtype != "float32" else ""
        more += ", compiled" if self.compile else ""
        more += ", warm" if self.warm else ""
        return f"{self.kind} {self.model} {'LoRA' if self.lora else 'full'} {self.batch}{more}"

    def to_json(self) -> str:
        return json.dumps(asdict(self))


# --- rows ----------------------------------------------------------------------------------------


def rows_of(work: Work) -> list[Any]:
    """steps x batch judgements, shuffled."""
    rows = [row for row in _all_rows(work) if _fits(row)]
    rows.sort(key=characters)
    mean = sum(map(characters, rows)) / len(rows)
    draws = [_batches_at(rows, work, place / 40) for place in range(1, 40)]
    found = min(draws, key=lambda draw: abs(sum(map(characters, draw)) / len(draw) - mean))
    random.Random(0).shuffle(found)
    return found


def _batches_at(rows: list[Any], work: Work, offset: float) -> list[Any]:
    starts = [
        round((place + offset) / work.steps * (len(rows) - work.batch))
        for place in range(work.steps)
    ]
    return [row for start in starts for row in rows[start : start + work.batch]]


def _all_rows(work: Work) -> list[Any]:
    if work.made_up:
        return _made_up(4096, 4 if work.kind == "ranking" else 2)
    from preference_data import read_preferences

    data = Path(os.environ["ALIGN_TEST_DATA"])
    if work.kind == "ranking":
        return _rankings(read_preferences(data / "fine-grained-rlhf" / "dev_feedback.json.gz"))
    return read_preferences(data / "hh-rlhf" / "helpful-base" / "test.jsonl.gz")


def _fits(row: Any) -> bool:
    prompt = sum(len(message.content) for message in row.prompt.messages)
    answers = [len(response.text) for response in row.responses]
    return prompt < PROMPT_CHARACTERS and max(answers) < ANSWER_CHARACTERS and min(answers) > 0


def characters(row: Any) -> int:
    """Of the longest conversation, which decides how far a batch is padded."""
    prompt = sum(len(message.content) for message in row.prompt.messages)
    return prompt + max(len(response.text) for response in row.responses)


def _rankings(pairs: list[Any]) -> list[Any]:
    """One judgement of four answers for each prompt, ranked by the pairs each answer won."""
    from preference_data.records import Judgement

    groups: dict[str, list[Any]] = {}
    for pair in pairs:
        groups.setdefault(pair.group or pair.prompt.id, []).append(pair)
    found = []
    for rows in groups.values():
        wins: dict[Any, int] = {}
        for row in rows:
            for response, rank in zip(row.responses, row.ranks, strict=True):
                wins[response] = wins.get(response, 0) + (rank == 1)
        order = sorted(set(wins.values()), reverse=True)
        ranks = tuple(order.index(count) + 1 for count in wins.values())
        if len(ranks) == 4 and len(set(ranks)) > 1:
            found.append(Judgement(rows[0].prompt, tuple(wins), ranks))
    return found


def _made_up(count: int, answers: int) -> list[Any]:
    """Conversations of random words; lengths are log-normal with HH's median and spread: about 90
    words of prompt, in turns, and 40 of answer."""
    from preference_data.records import Judgement, Message, Prompt, Response

    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 8))) for _ in range(3000)]

    def text(length: float) -> str:
        return " ".join(draw.choices(words, k=max(2, int(length))))

    found = []
    for _ in range(count):
        turns = draw.choice((1, 1, 3, 3, 5))
        each = draw.lognormvariate(4.5, 0.8) / turns
        messages = [
            Message("assistant" if turn % 2 else "user", text(each)) for turn in range(turns)
        ]
        responses = [
            Response.from_text(text(draw.lognormvariate(3.7, 0.8))) for _ in range(answers)
        ]
        found.append(
            Judgement(Prompt(tuple(messages)), tuple(responses), tuple(range(1, answers + 1)))
        )
    return found


# --- models --------------------------------------------------------------------------------------


def build(work: Work, folder: Path) -> None:
    """Writes the model with random weights, and a tokenizer trained on prompts, into `folder`."""
    from transformers import AutoTokenizer

    from align.base import build_tiny
    from align.config import Base

    texts = [m.content for row in _all_rows(work)[:600] for m in row.prompt.messages]
    if work.model in LLAMAS:
        build_tiny(folder, Base(architecture={**MODELS[work.model], **SMALL}), texts, seed=0)
    else:
        _build_qwen(work, folder, texts)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)


def _build_qwen(work: Work, folder: Path, texts: Sequence[str]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    from align.base import DTYPES, train_tokenizer

    tokenizer = train_tokenizer(list(texts), 8192)
    shape: dict[str, Any] = {**MODELS[work.model]}
    config = Qwen2Config(
        **shape,
        tie_word_embeddings=True,
        max_position_embeddings=32768,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[work.dtype])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# --- what a step costs ---------------------------------------------------------------------------


def model_flops(
    work: Work, config: Any, tokens: int, seen: int, predicted: int, passes: str
) -> float:
    """Floating-point operations that a model owes, without padding and without recomputing.

    `tokens` are computed, of which `predicted` also through the language head; `seen` counts the
    (query, key) pairs that attention lets see each other. A matrix of n numbers costs 2 n a token.
    `passes` is "forward", or "step": the backward costs as much again for the gradient of the
    inputs, and once more for that of the weights unless they are frozen (LoRA).
    """
    width = config.hidden_size
    heads, shared = config.num_attention_heads, config.num_key_value_heads
    linear = 2 * width * width * (1 + shared / heads) + 3 * width * config.intermediate_size
    backward = 0 if passes == "forward" else (1 if work.lora else 2)
    trunk = 2 * linear * config.num_hidden_layers * tokens * (1 + backward)
    attention = 4 * width * config.num_hidden_layers * seen * (1 if passes == "forward" else 3)
    head = 2 * width * config.vocab_size * predicted * (1 + backward)
    return trunk + attention + (head if work.kind == "dpo" else 0.0)


def peak_flops(device: str, dtype: str, size: int | None = None) -> float:
    """Operations a second of the best of several square matrix products."""
    import time

    import torch

    from align.base import DTYPES

    size = size or (8192 if device == "cuda" else 1024)
    a, b = (torch.randn(size, size, device=device, dtype=DTYPES[dtype]) for _ in range(2))
    best = float("inf")
    for _ in range(20):
        begin = time.perf_counter()
        torch.mm(a, b)
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best
