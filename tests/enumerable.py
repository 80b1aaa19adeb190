"""A world whose every response can be listed, so that the best policy is known in closed form.

A Llama of two layers writes responses of at most three tokens over nine letters and an end, which
is its whole vocabulary: 91 responses that end and 729 that do not, to each of two prompts. The
objective is J(pi) = E[gold] - beta KL(pi || ref), the mean over prompts, and gold holds the penalty
for a missing end. Its maximum is J* = beta log Z, Z = sum ref(y) exp(gold(y) / beta), reached by
pi* = ref exp(gold / beta) / Z (Korbak et al. 2022, arXiv:2206.00761, section 2; Rafailov et al.
2023, eq. 4). Everything here is read from files with plain transformers and peft: a policy that was
saved wrong is measured wrong.
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

LETTERS = "abcdefghi"
"""Ids 1 to 9. With the end they are the ten tokens that the check of a base asks for."""
END = 0
LONGEST = 3
"""Tokens of a response, its end included."""
PROMPTS = ("a", "b")
BETA = 0.3
W1, W2, W3, INIT, HIDDEN = 0.5, 0.2, 0.05, 0.8, 64
LORA = {'r': 16, 'alpha': 32}
PENALTY = 1.0
"""For a response that does not end."""
PAIRS = 8_000
RATERS = 25
"""Judgements that DPO learns from."""

TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
"""The prompt and then the response, and no other token."""
REWARD = '''"""The gold score of each response, looked up."""

import json
from pathlib import Path

GOLD = json.loads(Path(__file__).with_name("gold.json").read_text())


def gold(prompts, completions):
    return [GOLD[prompt][completion] for prompt, completion in zip(prompts, completions)]
'''


class Standing(NamedTuple):
    """Where a policy stands, exactly; means over the prompts."""

    fraction: float
    """(J - J_ref) / (J* - J_ref): 0 is the reference, 1 the optimum"""
    kl: float
    """KL(pi || ref), nats a response"""
    best_kl: float
    """KL(pi* || ref), nats a response"""


@dataclass(frozen=True)
class World:
    """One draw of reference and gold score, in files below `folder`."""

    folder: Path
    responses: tuple[tuple[int, ...], ...]
    """Y of them, as ids"""
    gold: Tensor
    """[P, Y] score of each response to each prompt, the penalty taken off"""
    reference: Tensor
    """[P, Y] log-probability under the base, nats"""

    @classmethod
    def draw(cls, folder: Path, seed: int) -> World:
        """Writes `base/`, the reward's `reward.py` and the prompts into `folder`."""
        responses = tuple(every_response())
        generator = torch.Generator().manual_seed(seed)
        scores = [_scores(responses, generator) for _ in PROMPTS]
        _write_base(folder / "base", seed)
        folder.joinpath("reward.py").write_text(REWARD)
        table = {
            prompt: {text_of(y): score for y, score in zip(responses, row, strict=True)}
            for prompt, row in zip(PROMPTS, scores, strict=True)
        }
        folder.joinpath("gold.json").write_text(json.dumps(table))
        _write_rows(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
        open_end = torch.tensor([y[-1] != END for y in responses])
        return cls(
            folder,
            responses,
            torch.tensor(scores) - PENALTY * open_end,
            logprobs_of(load_policy(folder / "base"), responses),
        )

    def standing(self, policy: Path, among: Tensor | None = None) -> Standing:
        """Of the policy saved in a folder; `among` [Y] is True on the responses that count, and
        both policies are then taken given that one of these is written."""
        logprobs = logprobs_of(load_policy(policy, self.folder / "base"), self.responses)
        reference, gold = self.reference, self.gold
        if among is not None:
            logprobs, reference, gold = logprobs[:, among], reference[:, among], gold[:, among]
        return standing(normal(logprobs), normal(reference), gold)

    @property
    def answers(self) -> Tensor:
        """[Y] True on responses that end and say something: those that a judgement can hold."""
        return torch.tensor([len(y) > 1 and y[-1] == END for y in self.responses])

    def write_pairs(self, seed: int) -> Path:
        """Pairs of answers drawn from the reference, each with the share of RATERS raters who
        prefer the first, a rater with p = sigmoid(gold(first) - gold(second)). DPO with this beta
        then has the world's optimum, given an answer (Rafailov et al. 2023, eq. 6)."""
        generator = torch.Generator().manual_seed(seed)
        places = self.answers.nonzero().squeeze(1)
        rows = []
        for row, prompt in enumerate(PROMPTS):
            odds = self.reference[row, places].exp().expand(PAIRS // len(PROMPTS), -1)
            pairs = places[odds.multinomial(2, generator=generator)]
            better = torch.sigmoid(self.gold[row, pairs[:, 0]] - self.gold[row, pairs[:, 1]])
            votes = torch.rand(len(pairs), RATERS, generator=generator) < better[:, None]
            for (first, second), share in zip(
                pairs.tolist(), votes.double().mean(1).tolist(), strict=True
            ):
                rows.append(
                    {
                        "instruction": prompt,
                        "output_1": text_of(self.responses[first]),
                        "output_2": text_of(self.responses[second]),
                        "preference": 2 - share,
                    }
                )
        path = self.folder / "pairs.jsonl"
        _write_rows(path, rows)
        return path


def every_response(prefix: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    """All responses that begin with `prefix`, as ids."""
    found = []
    for token in range(len(LETTERS) + 1):
        response = (*prefix, token)
        over = token == END or len(response) == LONGEST
        found += [response] if over else every_response(response)
    return found


def text_of(response: tuple[int, ...]) -> str:
    return "".join(LETTERS[token - 1] for token in response if token != END)


def _scores(responses: tuple[tuple[int, ...], ...], generator: torch.Generator) -> list[float]:
    """Worth of the letters, of the neighbours and of the whole response, all drawn at random."""
    letters = W1 * torch.randn(len(LETTERS) + 1, generator=generator)
    neighbours = W2 * torch.randn(len(LETTERS) + 1, len(LETTERS) + 1, generator=generator)
    whole = W3 * torch.randn(len(responses), generator=generator)
    return [
        float(
            sum(letters[token] for token in y)
            + sum(neighbours[a, b] for a, b in pairwise(y))
            + whole[place]
        )
        for place, y in enumerate(responses)
    ]


def normal(logprobs: Tensor) -> Tensor:
    """Log-probabilities that sum to 1 over the last axis."""
    return logprobs - logprobs.logsumexp(-1, keepdim=True)


def standing(logprobs: Tensor, reference: Tensor, gold: Tensor) -> Standing:
    """[P, Y] each, in nats and points."""
    best = reference + gold / BETA
    best_value = float(BETA * best.logsumexp(-1).mean())
    best = normal(best)

    def kl(policy: Tensor) -> float:
        return float((policy.exp() * (policy - reference)).sum(-1).mean())

    def value(policy: Tensor) -> float:
        return float((policy.exp() * gold).sum(-1).mean()) - BETA * kl(policy)

    start = value(reference)
    return Standing((value(logprobs) - start) / (best_value - start), kl(logprobs), kl(best))


# --- the base ------------------------------------------------------------------------------------


def _write_base(folder: Path, seed: int, hidden: int | None = None) -> None:
    """A Llama with weights so large that what it says is far from uniform."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden = HIDDEN
    config = LlamaConfig(
        vocab_size=len(LETTERS) + 1,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        initializer_range=INIT / math.sqrt(hidden),
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

    vocabulary = {"$": END, **{letter: i for i, letter in enumerate(LETTERS, 1)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="$"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="$", clean_up_tokenization_spaces=False
    )
    fast.chat_template = TEMPLATE
    return fast


def load_policy(folder: Path, base: Path | None = None) -> Any:
    """The language model in `folder`: weights, or an adapter on `base`."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if (folder / "adapter_config.json").is_file():
        model: Any = AutoModelForCausalLM.from_pretrained(base)
        return PeftModel.from_pretrained(model, folder).eval()
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@torch.no_grad()
def logprobs_of(model: Any, responses: tuple[tuple[int, ...], ...]) -> Tensor:
    """[P, Y] log-probability of every response to every prompt, summed over its tokens: nats."""
    filled = [(*y, *[END] * (LONGEST - len(y))) for y in responses]
    tokens = torch.tensor(filled)
    lengths = torch.tensor([len(y) for y in responses])
    mask = torch.arange(LONGEST)[None, :] < lengths[:, None]
    rows = []
    for prompt in PROMPTS:
        start = torch.full((len(tokens), 1), 1 + LETTERS.index(prompt))
        logits = model(input_ids=torch.cat([start, tokens], dim=1)[:, :-1]).logits
        by_token = logits.double().log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
        rows.append(torch.where(mask, by_token, 0.0).sum(1))
    return torch.stack(rows)


# --- the runs ------------------------------------------------------------------------------------

PPO = {
    "iterations": 100,
    "prompts_per_iteration": 256,
    "max_new_tokens": LONGEST,
    "epochs": 2,
    "minibatches": 4,
    "learning_rate": 3e-3,
    "value_learning_rate": 3e-3,
    "missing_eos_penalty": PENALTY,
    "kl": {"coefficient": BETA},
    "gae": {"lambda": 0.95},
    "clip": {"value": 1.0},
}
DPO = {
    "max_steps": 200,
    "train_batch_size": 256,
    "beta": BETA,
    "learning_rate": 2e-3,
    "max_length": 8,
}


def train(world: World, kind: str, lora: bool, seed: int, **changes: Any) -> Path:
    """Runs the step `kind` as a user does, from a YAML file; returns the folder of the policy."""
    import yaml

    from align import Pipeline
    from align.config import load_config

    name = f"{kind}_{'lora' if lora else 'full'}"
    folder = world.folder / name
    config: dict[str, Any] = {
        "name": name,
        "seed": seed,
        "output_dir": str(folder),
        "base": {"model": str(world.folder / "base")},
        "lora": LORA if lora else None,
        "near_duplicates": None,
        **_data_and_step(world, kind, seed, changes),
    }
    path = world.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    Pipeline(load_config(path)).run()
    return folder / kind / ("adapter" if lora else "model")


def _data_and_step(world: World, kind: str, seed: int, changes: dict[str, Any]) -> dict[str, Any]:
    if kind == "ppo":
        file, reward = world.folder / "prompts.jsonl", str(world.folder / "reward.py:gold")
        step = {"reward": {"function": reward}, "train": {**PPO, **changes}}
    else:
        file, step = world.write_pairs(seed), {"train": {**DPO, **changes}}
    return {
        "data": {"rows": {"path": str(file), "test_fraction": 0.0}},
        "steps": {kind: {"kind": kind, "data": "rows", **step}},
    }


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
