"""One scalar a sequence: a linear head on the hidden state of the sequence's last real token.

The head lives beside the Transformer, in float32, and is never wrapped by an adapter. On disk it is
what transformers and peft call `score`: a reward model saved here loads with plain
`AutoModelForSequenceClassification` + `PeftModel`, head included.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from preference_data.attention import hidden_states
from preference_data.batches import Group, PackedBatch, pack
from preference_data.records import Prompt, Response
from preference_data.rendering import Rendered

HEAD_KEY = "base_model.model.score.weight"
"""Name of the head's weight in a PEFT adapter file."""
SCORING_FILE = "scoring.json"
Truncation = Literal["none", "left"]
"""Of conversations that are too long: they are not read, or with the end of their prompt alone."""


class ScalarHead(nn.Linear):
    """[.., D] -> [..], in float32 whatever the hidden states are.

    Starts from N(0, 1 / (D + 1)), so that the first scores have about unit variance
    (Stiennon et al. 2020). The Bradley-Terry model knows no constant, so a reward has no bias.
    """

    def __init__(self, hidden_size: int, bias: bool = False):
        super().__init__(hidden_size, 1, bias=bias, dtype=torch.float32)
        with torch.no_grad():
            self.weight.normal_(std=1 / math.sqrt(hidden_size + 1))
            if bias:
                self.bias.zero_()

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.float()).squeeze(-1)


def sequence_scores(hidden: Tensor, head: ScalarHead, batch: PackedBatch) -> Tensor:
    """[B] scores from the hidden states [S, T, D], each read at the sequence's last token."""
    return head(hidden.flatten(0, 1).index_select(0, batch.last_at))


def cut_left(group: Group, max_length: int, bos: int | None) -> Group | None:
    """The group with so much of its prompt that it and the longest completion are `max_length`
    tokens; None if not one token of the prompt has room.

    The prompt loses its oldest tokens, wherever in a turn the cut then falls. It is the same for
    all completions, which stay whole: an answer without its end is another answer. A prompt that
    begins with `bos`, the tokenizer's begin-of-sequence token, keeps it in front.
    """
    prompt, room = group.prompt, max_length - max(map(len, group.completions))
    if len(prompt) <= room:
        return group
    front = prompt[:1] if prompt[0] == bos else ()
    kept = room - len(front)
    return Group((*front, *prompt[-kept:]), group.completions) if kept > 0 else None


@dataclass(frozen=True)
class Scoring:
    """How scores are read: stored with the model, checked by everything that scores with it."""

    renderer: str
    """Fingerprint of the tokenizer and chat template it was trained with."""
    max_length: int
    """Tokens of a conversation that it was trained to read."""
    mean: float = 0.0
    """Mean and standard deviation of the scores on training completions; (score - mean) / std is
    what a policy is optimised for, so that a KL coefficient means the same for every model."""
    std: float = 1.0
    truncation: Truncation = "none"
    """What it was trained to do with a conversation longer than max_length."""

    def cut(self, group: Group, bos: int | None) -> Group:
        """The group as it is to be scored: as the same conversation was cut in training.

        Raises ValueError if a completion leaves its prompt no room.
        """
        if self.truncation == "none":
            return group
        fitting = cut_left(group, self.max_length, bos)
        if fitting is None:
            longest = max(map(len, group.completions))
            raise ValueError(
                f"a completion of {longest} tokens leaves its prompt no room in the "
                f"{self.max_length} that this reward model reads"
            )
        return fitting

    def save(self, folder: Path) -> None:
        (folder / SCORING_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Scoring:
        """Raises FileNotFoundError for a folder that holds no reward model of this toolkit."""
        return cls(**json.loads((folder / SCORING_FILE).read_text()))

    def check(self, renderer_fingerprint: str, where: str) -> None:
        """Raises ValueError when text would be rendered otherwise than in training."""
        if renderer_fingerprint != self.renderer:
            raise ValueError(
                f"{where} was trained with another tokenizer or chat template "
                f"({self.renderer}, here {renderer_fingerprint}); its scores would be shifted."
            )


def value_head_from(head: ScalarHead, scoring: Scoring) -> ScalarHead:
    """A value head that predicts the normalised score: the critic starts as the reward model."""
    value = ScalarHead(head.in_features, bias=True)
    with torch.no_grad():
        value.weight.copy_(head.weight / scoring.std)
        value.bias.fill_(-scoring.mean / scoring.std)
    return value


class RewardModel:
    """A reward model loaded with plain transformers and peft, for scoring text."""

    def __init__(self, model: Any, renderer: Any, scoring: Scoring):
        self._model = model.eval()
        self._renderer = renderer
        self.scoring = scoring

    @classmethod
    def load(cls, path: str | Path, base: str | None = None) -> RewardModel:
        """Loads a reward step's folder (or its `adapter/` or `model/`).

        `base` replaces the base model that the adapter names. Raises FileNotFoundError if there is
        no reward model, ValueError if the tokenizer does not match it.
        """
        from peft import PeftConfig, PeftModel
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        from preference_data.rendering import Renderer

        folder = Path(path)
        for part in ("adapter", "model"):
            if (folder / part).is_dir():
                folder = folder / part
        if not (folder / SCORING_FILE).is_file():
            raise FileNotFoundError(f"{path} holds no reward model (no {SCORING_FILE}).")
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        if (folder / "adapter_config.json").is_file():
            base = base or str(PeftConfig.from_pretrained(str(folder)).base_model_name_or_path)
            model = AutoModelForSequenceClassification.from_pretrained(
                base, num_labels=1, dtype=torch.float32
            )
            model = PeftModel.from_pretrained(model, folder).get_base_model()
        else:
            model = AutoModelForSequenceClassification.from_pretrained(str(folder))
        renderer = Renderer(tokenizer)
        scoring = Scoring.load(folder)
        scoring.check(renderer.fingerprint(), str(path))
        return cls(model, renderer, scoring)

    @torch.no_grad()
    def score(
        self, prompts: Sequence[str | Prompt], completions: Sequence[str | Response]
    ) -> list[float]:
        """The raw score of each completion of the prompt beside it: text, or a conversation.

        Raises ValueError if the lists differ in length, or a text cannot be rendered or is longer
        than the model was trained to read. A model that was trained with `truncation: left` reads
        the end of a prompt that is too long, as much as fits before this one completion.
        """
        if len(prompts) != len(completions):
            raise ValueError(f"{len(prompts)} prompts, but {len(completions)} completions.")
        scores: list[float] = []
        for prompt, completion in zip(prompts, completions, strict=True):
            row = self._renderer.render(
                Prompt.from_text(prompt) if isinstance(prompt, str) else prompt,
                Response.from_text(completion) if isinstance(completion, str) else completion,
            )
            batch = pack([self._fitting(row)])
            hidden = hidden_states(self._model, batch)
            head = self._model.score
            last = hidden.flatten(0, 1).index_select(0, batch.last_at)
            scores += head(last.to(_weight_of(head).dtype)).squeeze(-1).tolist()
        return scores

    def _fitting(self, row: Rendered) -> Group:
        group = Group(row.prompt, (row.completion,))
        group = self.scoring.cut(group, self._renderer.tokenizer.bos_token_id)
        if len(group) > self.scoring.max_length:
            raise ValueError(
                f"a conversation of {len(group)} tokens is longer than the "
                f"{self.scoring.max_length} that this reward model reads"
            )
        return group


def _weight_of(head: nn.Module) -> Tensor:
    return next(head.parameters())
