"""One base Transformer in memory; policy, reference, reward and value as adapters and heads on it.

With `lora: null` a role is a copy of the base instead; nothing outside this file knows which.
"""

from __future__ import annotations

import contextlib
import copy
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from align.adapters import Active, Pinned, adapted, checkpointing
from align.compiling import compiled
from align.config import Lora
from align.logits import Entropy, TokenLogprobs, token_logprobs
from preference_data.attention import hidden_states
from preference_data.batches import Group, PackedBatch, pack
from preference_data.rendering import Renderer
from reward_models.folded import fold
from reward_models.scalar_head import ADAPTER_FILE, HEAD_KEY, ScalarHead, Scoring, load_head

__all__ = ["ADAPTER_FILE", "Role", "Roles", "load_head"]


@dataclass
class Role:
    """A view on the base: which adapter (None = none), which copy (None = the base), which head."""

    adapter: str | None = None
    copy: nn.Module | None = None
    head: ScalarHead | None = None
    trunk: str | None = None
    """The role whose hidden states the head reads; None = its own."""
    members: tuple[str, ...] = ()
    """The roles whose mean score is its score; it has nothing else."""


class Roles(nn.Module):
    """The base and its roles. `forward` names the computation, so that a wrapper (DeepSpeed) that
    only knows `forward` can train any role."""

    def __init__(
        self, base: Any, renderer: Renderer, lora: Lora | None, base_path: str,
        revision: str | None = None,
    ):  # fmt: skip
        """`revision` is the base's on the hub, if it is not the newest."""
        super().__init__()
        base.requires_grad_(False)
        base.eval()
        self.model: Any = base
        self.copies = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        self.renderer = renderer
        self.base_path = base_path
        self._revision = revision
        self._lora = lora
        self._roles: dict[str, Role] = {}

    # --- making roles -----------------------------------------------------------------------------

    def add(
        self,
        role: str,
        *,
        weights: Path | None = None,
        trainable: bool = False,
        head: ScalarHead | None = None,
        fresh: bool = False,
    ) -> None:
        """Adds a role.

        `weights` is an `adapter/` folder (or a `model/` folder under `lora: null`) to start from.
        Without it the role is the bare base, unless `fresh` gives it a new adapter (which computes
        what the base does until it is trained) or a copy of its own.
        """
        if role in self._roles:
            raise ValueError(f"the role {role!r} exists already")
        entry = Role(head=head)
        if head is not None:
            self.heads[role] = head.requires_grad_(trainable)
        if self._lora is not None and (weights is not None or fresh):
            entry.adapter = role
            config = self._lora_config(weights)
            self._add_adapter(role, config if head is None else _below_heads(config, self.model))
            if weights is not None:
                self._load_adapter(role, weights)
            self._set_trainable(role, trainable)
        elif self._lora is None and (weights is not None or fresh):
            own = copy.deepcopy(self.model)
            if weights is not None:
                own.load_state_dict(_policy_weights(weights, own))
            entry.copy = own.requires_grad_(trainable)
            self.copies[role] = own
        self._roles[role] = entry

    def add_head(self, role: str, trunk: str, head: ScalarHead) -> None:
        """Adds a role that is a trained head on the hidden states of the role `trunk`."""
        self.heads[role] = head.requires_grad_(True)
        self._roles[role] = Role(head=head, trunk=trunk)

    def trunk_head(self, role: str, trunk: str) -> ScalarHead | None:
        """The head of a role that is one on `trunk`'s hidden states; None if it is another."""
        entry = self._roles.get(role)
        return entry.head if entry is not None and entry.trunk == trunk else None

    def add_mean(self, role: str, members: Sequence[str]) -> None:
        """Makes `role` one whose score is the mean of the members' scores; again with others."""
        self._roles[role] = Role(members=tuple(members))

    def members(self, role: str) -> tuple[str, ...]:
        """The roles whose mean this one is; the role itself if it is none."""
        return self._roles[role].members or (role,)

    def freeze(self, role: str) -> None:
        """Ends the training of the role."""
        for parameter in self.parameters_of(role):
            parameter.requires_grad_(False)

    def has(self, role: str) -> bool:
        return role in self._roles

    def _lora_config(self, weights: Path | None) -> LoraConfig:
        if weights is not None:
            config: Any = LoraConfig.from_pretrained(str(weights))
            config.task_type, config.modules_to_save, config.inference_mode = None, None, False
            config.base_model_name_or_path = None  # where the base was then; peft warns if it moved
            return config
        assert self._lora is not None
        targets = self._lora.target_modules
        return LoraConfig(
            r=self._lora.r,
            lora_alpha=self._lora.alpha,  # type: ignore[arg-type] - peft takes a float
            lora_dropout=self._lora.dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
        )

    def _add_adapter(self, role: str, config: LoraConfig) -> None:
        if isinstance(self.model, PeftModel):
            self.model.add_adapter(role, config)
        else:
            self.model = get_peft_model(self.model, config, adapter_name=role)
            # With checkpointing on, peft makes the embeddings require a gradient, which only
            # reentrant checkpointing needs.
            self.model.get_base_model().disable_input_require_grads()
        fold(self.model)

    def _load_adapter(self, role: str, weights: Path) -> None:
        state = load_file(weights / ADAPTER_FILE)
        state.pop(HEAD_KEY, None)
        result: Any = set_peft_model_state_dict(self.model, state, adapter_name=role)
        lost = [name for name in result.missing_keys if f".{role}." in name]
        for what, names in (("unexpected", result.unexpected_keys), ("missing", lost)):
            if names:
                raise ValueError(f"{weights} does not fit {self.base_path}: {what} {names[:3]}")

    def _set_trainable(self, role: str, trainable: bool) -> None:
        for name, parameter in self.model.named_parameters():
            if f".{role}." in name:
                parameter.requires_grad_(trainable)

    def parameters_of(self, role: str) -> list[nn.Parameter]:
        """The role's own parameters that are trained."""
        entry = self._roles[role]
        found: list[nn.Parameter] = []
        if entry.adapter is not None:
            found += [p for n, p in self.model.named_parameters() if f".{role}." in n]
        if entry.copy is not None:
            found += list(entry.copy.parameters())
        if entry.head is not None:
            found += list(entry.head.parameters())
        return [parameter for parameter in found if parameter.requires_grad]

    # --- computing with a role --------------------------------------------------------------------

    @contextlib.contextmanager
    def active(self, role: str) -> Iterator[Any]:
        """The Transformer (with its language head) as the role sees it.

        Only the layers' active adapter is switched: peft's `set_adapter` would also switch the
        other adapters' `requires_grad` off.
        """
        entry = self._roles[self._roles[role].trunk or role]
        if entry.copy is not None:
            yield entry.copy
            return
        if not isinstance(self.model, PeftModel):
            yield self.model
            return
        layers = adapted(self.model)
        names = [entry.adapter] if entry.adapter is not None else []
        with Active(layers, [names] * len(layers)):
            yield self.model.get_base_model()

    def module(self, role: str) -> nn.Module:
        """What a Trainer is given to train the role with: the copy, or the base with adapters."""
        own = self._roles[role].copy
        return self.model if own is None else own

    def hidden(self, role: str, batch: PackedBatch) -> Tensor:
        """[S, T, D] last hidden states."""
        with self.active(role) as model, checkpointing(model):
            return hidden_states(model, batch, compiled(model))

    def logprobs(
        self, role: str, batch: PackedBatch, temperature: float = 1.0, entropy: Entropy = "none"
    ) -> TokenLogprobs:
        """[N] log-probability of every completion token, and its entropy if asked for."""
        return self._logprobs(role, self._predictors(role, batch), batch, temperature, entropy)

    def _predictors(self, role: str, batch: PackedBatch) -> Tensor:
        """[N, D] hidden states before every completion token."""
        return self.hidden(role, batch).flatten(0, 1).index_select(0, batch.predict_at)

    def _logprobs(
        self, role: str, hidden: Tensor, batch: PackedBatch, temperature: float, entropy: Entropy
    ) -> TokenLogprobs:  # fmt: skip
        with self.active(role) as model:
            head = Pinned(model.get_output_embeddings())
            return token_logprobs(hidden, head, batch.targets, temperature, entropy)

    def scores(self, role: str, batch: PackedBatch) -> Tensor:
        """[B] the role's head at the last token of every sequence; the mean of its members'."""
        return self.member_scores(role, batch).mean(dim=0)

    def member_scores(self, role: str, batch: PackedBatch) -> Tensor:
        """[M, B] the same of each of the role's M members, or of the role itself (M = 1).

        One forward pass a member: one pass over as many copies of the batch, each row with its
        adapter (peft's `adapter_names`), computes as much and takes twice as long.
        """
        found = [
            self.head(name)(self.hidden(name, batch).flatten(0, 1)[batch.last_at])
            for name in self.members(role)
        ]
        return torch.stack(found)

    def values(self, role: str, batch: PackedBatch) -> Tensor:
        """[N] the role's head before every completion token: the value of the state it is drawn
        in."""
        return self.head(role)(self.hidden(role, batch).flatten(0, 1)[batch.predict_at])

    def policy_and_values(
        self, role: str, batch: PackedBatch, temperature: float, entropy_gradient: bool = False,
        value_alone: bool = False, own_values: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
        """[N] log-probabilities and entropies under `role`, and values under `value` if there is
        such a role: what a PPO loss needs, in one call. A head on `role` shares its forward; with
        `value_alone` it sends no gradient into it. Without `own_values` a value that takes a
        forward of its own is left out."""
        hidden = self._predictors(role, batch)
        wanted: Entropy = "gradient" if entropy_gradient else "value"
        logprobs, entropy = self._logprobs(role, hidden, batch, temperature, wanted)
        assert entropy is not None
        values = None
        if (head := self.trunk_head("value", role)) is not None:
            values = head(hidden.detach() if value_alone else hidden)
        elif own_values and self.has("value"):
            values = self.values("value", batch)
        return logprobs, entropy, values

    def head(self, role: str) -> ScalarHead:
        head = self._roles[role].head
        if head is None:
            raise ValueError(f"the role {role!r} has no scalar head")
        return head

    def nothing(self, role: str, batch: None = None) -> Tensor:
        """0 with a gradient of 0 for the role: what a loss that does not need it adds to a step."""
        return torch.stack([(p * 0.0).sum() for p in self.parameters_of(role)]).sum()

    def idle(self, role: str, batch: None = None, values: bool = True) -> Tensor:
        """0 with a gradient of 0 for the role, from a pass over one token: what a rank without
        rows adds to a step; `values` says whether the others' has those of a head on the role.

        Sharded gradients are summed in the order in which the backward pass comes by, some at a
        time, and sharded weights are gathered on the way: every rank must come the same way.
        """
        some = pack([Group((0,), ((0,),))]).to(self.model.device)
        head = self._roles[role].head
        if head is None:
            logprobs, _, beside = self.policy_and_values(role, some, 1.0, own_values=False)
            found = logprobs + beside if values and beside is not None else logprobs
        else:
            found = self.scores(role, some)
        nothing = (0.0 * found).sum()
        return nothing if head is None or head.tie is None else nothing + (0.0 * head.tie).sum()

    def forward(self, what: str, role: str, batch: Any, **settings: Any) -> Any:
        """`self.WHAT(role, batch)`: the way in for wrappers, which know no other method."""
        return getattr(self, what)(role, batch, **settings)

    # --- saving -----------------------------------------------------------------------------------

    def save(self, role: str, folder: Path, scoring: Scoring | None = None) -> Path:
        """Writes the role below `folder`, as `adapter/` in PEFT's format or `model/`, with the
        tokenizer; a role with a head needs its `scoring`. Returns the folder written."""
        entry = self._roles[role]
        target = folder / ("adapter" if entry.adapter is not None else "model")
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        if entry.adapter is not None:
            self._save_adapter(role, entry, target)
        else:
            self._save_model(entry, target)
        self.renderer.tokenizer.save_pretrained(target)
        if entry.head is not None:
            assert scoring is not None, "a head is saved with its scoring"
            scoring.save(target)
        return target

    def _save_adapter(self, role: str, entry: Role, target: Path) -> None:
        state = get_peft_model_state_dict(self.model, adapter_name=role)
        config = copy.deepcopy(self.model.peft_config[role])
        config.task_type = "CAUSAL_LM"
        if entry.head is not None:
            config.task_type, config.modules_to_save = "SEQ_CLS", ["score"]
            state[HEAD_KEY] = entry.head.weight
        config.inference_mode = True
        config.base_model_name_or_path, config.revision = self.base_path, self._revision
        empty = [name for name, tensor in state.items() if tensor.numel() == 0]
        if empty or not state:
            raise ValueError(f"the adapter of {role!r} would be saved empty: {empty[:3]}")
        tensors = {name: t.detach().cpu().contiguous().clone() for name, t in state.items()}
        save_file(tensors, target / ADAPTER_FILE, metadata={"format": "pt"})
        if isinstance(config.target_modules, set):  # written in the order of its hashes
            config.target_modules = sorted(config.target_modules)
        config.save_pretrained(str(target))

    def _save_model(self, entry: Role, target: Path) -> None:
        model: Any = entry.copy if entry.copy is not None else self.model
        if entry.head is not None:
            from transformers import AutoModelForSequenceClassification

            config = copy.deepcopy(model.config)
            config.num_labels = 1
            scorer = AutoModelForSequenceClassification.from_config(config)
            scorer.base_model.load_state_dict(model.base_model.state_dict())
            scorer.score.float().weight.data.copy_(entry.head.weight.data)
            model = scorer
        model.save_pretrained(target)


def _below_heads(config: LoraConfig, model: Any) -> LoraConfig:
    """The adapter of a scorer: neither on the language head, which it has not, nor on what
    transformers calls its scalar head."""
    output = model.get_output_embeddings()
    heads = {name.split(".")[-1] for name, part in model.named_modules() if part is output}
    if not isinstance(config.target_modules, str):
        kept = [name for name in config.target_modules or () if name not in {*heads, "score"}]
        config.target_modules = kept
    return config


# --- reading what was saved -----------------------------------------------------------------------


def _policy_weights(folder: Path, model: Any) -> dict[str, Tensor]:
    """Weights of a `model/` folder for a language model; a scorer brings no language head."""
    state = load_file(folder / "model.safetensors")
    state.pop("score.weight", None)
    own: dict[str, Tensor] = model.state_dict()
    return {name: state.get(name, tensor) for name, tensor in own.items()}
