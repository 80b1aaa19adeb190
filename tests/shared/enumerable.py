"""A world whose every response can be listed, so that the best policy is known in closed form.

A Llama of two layers writes responses of at most three tokens over nine letters and an end, which
is its whole vocabulary: 91 responses that end and 729 that do not. The objective is J(pi) =
E[gold] - beta KL(pi || ref), where gold holds the penalty for a missing end. Its maximum is
J* = beta log Z, Z = sum ref(y) exp(gold(y) / beta), reached by pi* = ref exp(gold / beta) / Z
(Rafailov et al. 2023, eq. 4). Policies are read from their files with plain transformers and peft:
one that was saved wrong is measured wrong.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

END = 0
LETTERS = "abcdefghi"
"""Ids 1 to 9. With the end they are the ten tokens that the check of a base asks for."""
LONGEST = 3
"""Tokens of a response, its end included."""
PROMPT = "ab"
"""Of two different letters: one letter, written again after itself, gives a Transformer with rotary
positions the same hidden state, so no policy could tell the prompt from the prompt and a reply."""
BETA = 0.3
PENALTY = 1.0
"""For a response that does not end."""
PAIRS, RATERS = 9000, 25
"""What DPO learns from: pairs of answers, and how many judge each."""

PPO: dict[str, Any] = {
    "iterations": 50,
    "prompts_per_iteration": 1,
    "samples_per_prompt": 512,
    "epochs": 1,
    "minibatches": 8,
    "max_new_tokens": LONGEST,
    "learning_rate": 2e-3,
    "value_learning_rate": 6e-3,
    "adam_epsilon": 1e-8,
    "missing_eos_penalty": PENALTY,
    "kl": {"coefficient": BETA},
    "gae": {"lambda": 0.95},
    "clip": {"value": 1.0},
}
DPO: dict[str, Any] = {
    "max_steps": 150,
    "train_batch_size": 256,
    "learning_rate": 2e-3,
    "beta": BETA,
    "max_length": 8,
}

TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
"""The prompt and then the response, and no other token."""
REWARD = '''"""The score of each response, looked up."""

import json
from pathlib import Path

SCORES = json.loads(Path(__file__).with_name("scores.json").read_text())


def score(prompts, completions):
    return [SCORES[completion] for completion in completions]
'''


class Standing(NamedTuple):
    """Where a policy stands, exactly."""

    fraction: float
    """(J - J_ref) / (J* - J_ref): 0 is the reference, 1 the optimum"""
    kl: float
    """KL(pi || ref), nats a response"""
    best_kl: float
    """KL(pi* || ref), nats a response"""


def standing(logprobs: Tensor, reference: Tensor, gold: Tensor) -> Standing:
    """Of the policy with these [Y] log-probabilities of all responses, in nats."""
    tilted = reference + gold / BETA
    best_value, best = BETA * tilted.logsumexp(0), normal(tilted)

    def kl(policy: Tensor) -> Tensor:
        return (policy.exp() * (policy - reference)).sum()

    def value(policy: Tensor) -> Tensor:
        return (policy.exp() * gold).sum() - BETA * kl(policy)

    start = value(reference)
    way = (value(logprobs) - start) / (best_value - start)
    return Standing(float(way), float(kl(logprobs)), float(kl(best)))


def normal(logprobs: Tensor) -> Tensor:
    """[Y] the same, with probabilities that sum to 1."""
    return logprobs - logprobs.logsumexp(0)


# --- the world -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """One draw of reference and scores, in files below `folder`. Axis: Y responses."""

    folder: Path
    responses: tuple[tuple[int, ...], ...]
    """As ids"""
    gold: Tensor
    """[Y] the score, less the penalty where the response does not end"""
    reference: Tensor
    """[Y] log-probability under the base, nats"""

    @classmethod
    def draw(cls, folder: Path, seed: int) -> World:
        """Writes the base, the reward function and the prompt into `folder`."""
        responses = tuple(every_response())
        scores = _scores(responses, seed)
        _write_base(folder / "base", seed)
        table = {text_of(y): score for y, score in zip(responses, scores.tolist(), strict=True)}
        folder.joinpath("scores.json").write_text(json.dumps(table))
        folder.joinpath("reward.py").write_text(REWARD)
        _write_rows(folder / "prompts.jsonl", [{"prompt": PROMPT}])
        unfinished = torch.tensor([y[-1] != END for y in responses])
        reference = logprobs_of(load_policy(folder / "base"), responses)
        return cls(folder, responses, scores - PENALTY * unfinished, reference)

    @property
    def answers(self) -> Tensor:
        """[Y] True on responses that end and say something: those that a judgement can hold."""
        return torch.tensor([len(y) > 1 and y[-1] == END for y in self.responses])

    def standing(self, policy: Path, among: Tensor | None = None) -> Standing:
        """Of the policy saved in a folder; with `among` [Y], of policy and reference given that
        the response is one of these."""
        counts = torch.ones_like(self.answers) if among is None else among
        logprobs = logprobs_of(load_policy(policy, self.folder / "base"), self.responses)
        return standing(normal(logprobs[counts]), normal(self.reference[counts]), self.gold[counts])

    def write_pairs(self, seed: int) -> Path:
        """Pairs of answers drawn from the reference, each with the share of its raters who prefer
        the first, every rater with p = sigmoid(gold(first) - gold(second)).

        DPO with this beta then has the world's optimum among answers (Rafailov et al. 2023, eq. 6).
        """
        generator = torch.Generator().manual_seed(seed)
        answers = self.answers.nonzero().squeeze(1)
        odds = self.reference[answers].exp().expand(PAIRS, -1)
        pairs = answers[odds.multinomial(2, generator=generator)]
        better = torch.sigmoid(self.gold[pairs[:, 0]] - self.gold[pairs[:, 1]])
        votes = torch.rand(PAIRS, RATERS, generator=generator) < better[:, None]
        rows = [
            {
                "instruction": PROMPT,
                "output_1": text_of(self.responses[first]),
                "output_2": text_of(self.responses[second]),
                "preference": 2 - share,
            }
            for (first, second), share in zip(
                pairs.tolist(), votes.double().mean(1).tolist(), strict=True
            )
        ]
        _write_rows(self.folder / "pairs.jsonl", rows)
        return self.folder / "pairs.jsonl"


def every_response(prefix: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    """All responses that begin with `prefix`, as ids."""
    found: list[tuple[int, ...]] = []
    for token in range(len(LETTERS) + 1):
        response = (*prefix, token)
        over = token == END or len(response) == LONGEST
        found += [response] if over else every_response(response)
    return found


def text_of(response: tuple[int, ...]) -> str:
    return "".join(LETTERS[token - 1] for token in response if token != END)


def _scores(responses: tuple[tuple[int, ...], ...], seed: int) -> Tensor:
    """[Y] worth of the tokens, of neighbours and of the whole response, all drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    size = len(LETTERS) + 1
    tokens = (0.5 * torch.randn(size, generator=generator)).tolist()
    neighbours = (0.2 * torch.randn(size, size, generator=generator)).tolist()
    whole = 0.05 * torch.randn(len(responses), generator=generator)
    parts = [
        sum(tokens[token] for token in y) + sum(neighbours[a][b] for a, b in pairwise(y))
        for y in responses
    ]
    return torch.tensor(parts) + whole


def _write_base(folder: Path, seed: int, hidden: int = 64) -> None:
    """A Llama with random weights, so large that what it writes is far from uniform."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(LETTERS) + 1,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        initializer_range=0.8 / math.sqrt(hidden),
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=None,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)


def _tokenizer() -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"$": END, **{letter: id for id, letter in enumerate(LETTERS, 1)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="$"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="$", clean_up_tokenization_spaces=False
    )
    fast.chat_template = TEMPLATE
    return fast


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


# --- policies ------------------------------------------------------------------------------------


def load_policy(folder: Path, base: Path | None = None) -> Any:
    """The language model in `folder`: weights, or an adapter on `base`."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if (folder / "adapter_config.json").is_file():
        model: Any = AutoModelForCausalLM.from_pretrained(str(base))
        return PeftModel.from_pretrained(model, str(folder)).eval()
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@torch.no_grad()
def logprobs_of(model: Any, responses: tuple[tuple[int, ...], ...]) -> Tensor:
    """[Y] log-probability of every response, summed over its tokens: nats, in double."""
    tokens = torch.tensor([(*y, *[END] * (LONGEST - len(y))) for y in responses])
    lengths = torch.tensor([len(y) for y in responses])
    mask = torch.arange(LONGEST)[None, :] < lengths[:, None]
    prompt = torch.tensor([1 + LETTERS.index(letter) for letter in PROMPT])
    ids = torch.cat([prompt.expand(len(tokens), -1), tokens], dim=1)
    logits = model(input_ids=ids[:, :-1]).logits[:, len(prompt) - 1 :]
    by_token = logits.double().log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    return torch.where(mask, by_token, 0.0).sum(1)


def train(world: World, kind: str, lora: bool, seed: int, **changes: Any) -> Path:
    """Runs a step of `kind` as a user does, from a YAML file; returns the folder of its policy.

    `changes` are of the step's train section; None removes a key.
    """
    import yaml

    from align import Pipeline
    from align.config import load_config

    if kind == "ppo":
        rows, settings = world.folder / "prompts.jsonl", {**PPO, **changes}
        own = {"reward": {"function": f"{world.folder / 'reward.py'}:score"}}
    else:
        rows, settings, own = world.write_pairs(seed), {**DPO, **changes}, {}
    settings = {name: value for name, value in settings.items() if value is not None}
    folder = world.folder / f"{kind}_{'lora' if lora else 'full'}"
    config = {
        "name": folder.name,
        "seed": seed,
        "output_dir": str(folder),
        "base": {"model": str(world.folder / "base")},
        "lora": {"r": 16, "alpha": 32} if lora else None,
        "near_duplicates": None,
        "data": {"rows": {"path": str(rows), "test_fraction": 0.0}},
        "steps": {kind: {"kind": kind, "data": "rows", **own, "train": settings}},
    }
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    Pipeline(load_config(path)).run()
    return folder / kind / ("adapter" if lora else "model")
