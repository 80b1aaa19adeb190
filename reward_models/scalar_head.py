"""One scalar a sequence: a linear head on the hidden state of the sequence's last real token.

The head lives beside the Transformer, in float32, and is never wrapped by an adapter. On disk it is
what transformers and peft call `score`: a reward model saved here loads with plain
`AutoModelForSequenceClassification` + `PeftModel`, head included.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn

from preference_data.batches import Group, PackedBatch
from reward_models.folders import SCORING_FILE
from reward_models.losses import TIE_MODELS, TieModel, tie_of

ADAPTER_FILE = "adapter_model.safetensors"
HEAD_KEY = "base_model.model.score.weight"
"""Name of the head's weight in a PEFT adapter file."""
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
        self.tie: nn.Parameter | None = None
        """[1] what is learned of ties beside the scores (`reward_models.losses`), if anything"""

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
    temperature: float = 1.0
    """sigmoid((a - b) / temperature) is how probable it is that people prefer the answer with the
    score a; fitted on held-out pairs, for the members of an ensemble on their mean's. The scores
    themselves are raw."""
    ties: TieModel | None = None
    """The model of ties that it was trained with; None = Bradley and Terry's, which has none."""
    tie_parameter: float | None = None
    """theta of Rao and Kupper, or nu of Davidson, as learned."""

    def chances(self, first: float, second: float) -> tuple[float, float, float]:
        """How probable it is, by two raw scores, that people find the first answer better, both
        equally good, and the second better.

        The temperature is fitted to pairs without ties as Bradley and Terry's: under Rao and
        Kupper's model, whose pairs without ties are no such, the scores stay as they are.
        """
        temperature = 1.0 if self.ties == "rao_kupper" else self.temperature
        one, other = torch.tensor([[first], [second]], dtype=torch.float64) / temperature
        if self.ties is None or self.tie_parameter is None:
            better = float(torch.sigmoid(one - other))
            return better, 0.0, 1 - better
        tie = torch.tensor([tie_of(self.ties, self.tie_parameter)], dtype=torch.float64)
        won, tied, lost = (said.exp().item() for said in TIE_MODELS[self.ties](one, other, tie))
        return won, tied, lost

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


def load_head(folder: Path) -> ScalarHead:
    """The scalar head saved in an `adapter/` or `model/` folder.

    Raises ValueError if there is none, if it is no [1, D] of finite numbers with one that is not
    0, or if an adapter lies on it.
    """
    key = HEAD_KEY if (folder / ADAPTER_FILE).is_file() else "score.weight"
    pattern = ADAPTER_FILE if key == HEAD_KEY else "model*.safetensors"
    weight, wrapped = None, list[str]()
    for path in sorted(folder.glob(pattern)):
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            wrapped += [name for name in names if ".score.lora_" in name]
            weight = file.get_tensor(key) if key in names else weight
    if weight is None or wrapped:
        what = f"an adapter on its head ({wrapped[0]})" if wrapped else f"no head ({key})"
        raise ValueError(f"{folder} holds {what}, so that its scores would mean nothing.")
    if weight.ndim != 2 or len(weight) != 1 or not weight.any() or not weight.isfinite().all():
        raise ValueError(
            f"{folder} holds a head that is empty or no row of finite numbers "
            f"({key} of shape {list(weight.shape)}); it was not saved whole."
        )
    head = ScalarHead(weight.shape[1])
    with torch.no_grad():
        head.weight.copy_(weight)
    return head
