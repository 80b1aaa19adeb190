"""What ZeRO-3 shards of a model: the weights that are trained. Frozen ones are whole on each rank.

DeepSpeed gathers the weights of the module that it is given while they are computed with, and keeps
a shard of each between. It is given a `Sharded`, which holds what is trained alone, in two ways:

- the trunk of a copy of the base is gathered module by module, on the way forward and back;
- all else (adapters, scalar heads, the language head of a copy) is gathered once for a whole pass.
  They are small, and a rank may ask the language head for its logits more often than another.

Outside of a pass the weights are empty. `whole` gathers them once for as long as one wants, without
DeepSpeed's hooks, which would gather them again for every token that is sampled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

SCALAR = 1
"""Numbers of a parameter that stays whole until the step: a loss reads it after the pass."""


class Sharded(nn.Module):
    """The `trained` parameters of `module` in the order of their gathering. Calling it calls the
    module."""

    def __init__(self, module: nn.Module, trained: Iterable[nn.Parameter]):
        super().__init__()
        self._module = (module,)  # in a tuple it is no part of this one, with its frozen weights
        left = {id(parameter): parameter for parameter in trained}
        self.trunks = nn.ModuleList(_trunks(module, set(left)))
        outside = [id(p) for copy in _copies(module, set(left)) for p in _beside_trunk(copy)]
        inside = {id(parameter) for parameter in self.trunks.parameters()}
        for key in dict.fromkeys([*outside, *(key for key in left if key not in inside)]):
            self.register_parameter(f"of_a_pass_{len(self._parameters)}", left[key])

    def forward(self, *arguments: Any, **settings: Any) -> Any:
        return self._module[0](*arguments, **settings)


def _copies(module: nn.Module, trained: set[int]) -> Iterator[Any]:
    """Models of transformers in `module` all of whose weights are trained."""
    for part in module.modules():
        if hasattr(part, "base_model_prefix") and hasattr(part, "get_output_embeddings"):
            own = {id(parameter) for parameter in part.parameters()}
            if own and own <= trained and getattr(part, "base_model", part) is not part:
                yield part


def _trunks(module: nn.Module, trained: set[int]) -> list[nn.Module]:
    return [model.base_model for model in _copies(module, trained)]


def _beside_trunk(model: Any) -> Iterator[nn.Parameter]:
    """Weights of the language head, which may be those of the trunk's embedding."""
    head = model.get_output_embeddings()
    return iter(()) if head is None else head.parameters()


# --- outside of a pass ----------------------------------------------------------------------------


def settle(offload: Any) -> None:
    """Lets parameters of one number stay whole from their first pass until the step, and weights be
    gathered when they are needed, not ahead.

    DeepSpeed learns from a pass what the next one will need, and fails where the ranks' passes
    differ. Ours are of a policy, a value function or a single token for a rank without rows.

    `offload` is what DeepSpeed calls its `parameter_offload`.
    """
    offload.fwd_pre_hook.remove()
    for parameter in offload.module.parameters():
        if parameter.ds_numel <= SCALAR:
            parameter.is_external_param = True


@contextlib.contextmanager
def whole(offload: Any) -> Iterator[None]:
    """In it, the weights are whole on every rank, for one gathering. They must not be changed."""
    gather(offload)
    try:
        yield
    finally:
        parameters = list(offload.module.parameters())
        parameters[0].partition(param_list=parameters, has_been_updated=False)
        offload._register_deepspeed_module(offload.module)


def gather(offload: Any) -> None:
    """Makes the weights whole on every rank and takes DeepSpeed's hooks out, which would empty them
    again."""
    parameters: list[Any] = list(offload.module.parameters())
    for hook in (*offload.forward_hooks, *offload.backward_hooks):
        hook.remove()
    offload.forward_hooks, offload.backward_hooks = [], []
    for parameter in parameters:
        parameter.ds_active_sub_modules.clear()
    parameters[0].all_gather(param_list=parameters)


def dissolve(offload: Any) -> None:
    """Ends the sharding for good: the weights are whole, and plain parameters again."""
    gather(offload)
    for part in offload.module.modules():
        if "_original_parameters" in part.__dict__:
            part._parameters = part.__dict__.pop("_original_parameters")
    for parameter in offload.module.parameters():
        for name in [n for n, value in vars(parameter).items() if _is_of_sharding(n, value)]:
            delattr(parameter, name)


def _is_of_sharding(name: str, value: Any) -> bool:
    return name.startswith("ds_") or name in _OTHERS or callable(value)


_OTHERS = ("is_external_param", "nvme_swapper")
