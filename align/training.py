"""A module, its optimiser and its schedule: the step that every loop of ours takes.

Losses are sums divided by a global count, so gradients are summed over ranks, never averaged, and
no result depends on how rows were split.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from align.memory import measured

if TYPE_CHECKING:
    from align.engine import Engine

STEPS_DONE = "steps_done"


class NonFiniteError(RuntimeError):
    """A loss or gradient that is not a number; the message says where."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a peak learning rate."""

    parameters: list[nn.Parameter]
    learning_rate: float
    first_step: int = 0
    """Optimiser step, from 0, that its schedule and its moments begin with; its rate is 0 before"""


class Training:
    """A module, its optimiser and its schedule, on one or many processes."""

    def __init__(
        self,
        engine: Engine,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        peaks: list[float],
        total_steps: int,
        schedule: Callable[[int, int], float],
        max_grad_norm: float,
        first_steps: Sequence[int] = (),
    ):
        self.engine = engine
        self.optimizer = optimizer
        self.steps_done = 0
        """Of the planned steps; those that were skipped are among them."""
        self.last_reaches_all = False
        """Whether a step's last backward pass must reach every parameter."""
        self._peaks = peaks
        self._first_steps = list(first_steps) or [0] * len(peaks)
        self._total_steps = total_steps
        self._schedule = schedule
        self._max_grad_norm = max_grad_norm
        self._loss = 0.0
        self._measured = False
        self.module: Any = module

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def learning_rates(self) -> list[float]:
        return [
            peak * self._schedule(self.steps_done - first, self._total_steps - first)
            if self.steps_done >= first
            else 0.0
            for peak, first in zip(self._peaks, self._first_steps, strict=True)
        ]

    def skip(self, steps: int) -> None:
        """Leaves out planned steps: the schedule goes on as if they had been taken."""
        self.steps_done += steps

    def backward(self, loss: Tensor, last: bool, rows: Iterable[str] = ()) -> None:
        """Adds this part of the step's loss to the gradients; `last` marks the rank's last part.

        The parts of all ranks sum to the step's loss. `rows` are the ids of those it was made of: a
        loss that is not a number is a NonFiniteError that names them.
        """
        self._check(loss, rows)
        loss.backward()

    def _check(self, loss: Tensor, rows: Iterable[str]) -> None:
        if not torch.isfinite(loss):
            names = ", ".join(rows)
            of = f", of the rows {names}" if names else ""
            raise NonFiniteError(
                f"the loss is {loss.item()} at optimiser step {self.steps_done + 1}{of}"
            )

    def step(self) -> float:
        """Clips, steps, and forgets the gradients. Returns the gradient norm before clipping.

        Raises NonFiniteError, on all ranks, when it is not a number; nothing is changed then.
        """
        self._sum_gradients()
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self._max_grad_norm))
        self._refuse_non_finite(norm)
        self._set_learning_rates()
        self._begin_groups(self.optimizer)
        self.optimizer.step()
        if not self._measured:  # later steps hold the same
            self._measured = True
            self.engine.note_held(
                parameters=measured.parameters_of(self.module),
                gradients=measured.gradients_of(self.parameters),
                optimizer=measured.optimizer_of(self.optimizer.state),
            )
        self.optimizer.zero_grad()
        self.steps_done += 1
        return norm

    def _begin_groups(self, optimizer: Any) -> None:
        """Forgets the gradients of 0 that a group got before its first step: with them in Adam's
        moments, the steps after it would be several times too long."""
        for group, first in zip(optimizer.param_groups, self._first_steps, strict=True):
            if 0 < first == self.steps_done:
                for parameter in group["params"]:
                    optimizer.state.pop(parameter, None)

    def _sum_gradients(self) -> None:
        if self.engine.world_size == 1:
            return
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        grads = [p.grad for p in self.parameters if p.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        torch.distributed.all_reduce(flat)
        for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(part.view_as(grad))

    def _refuse_non_finite(self, norm: float) -> None:
        if not math.isfinite(norm):
            raise NonFiniteError(
                f"the gradient norm is {norm} at optimiser step {self.steps_done + 1}"
            )

    def _set_learning_rates(self) -> None:
        for group, rate in zip(self.optimizer.param_groups, self.learning_rates, strict=True):
            group["lr"] = rate

    def whole(self) -> AbstractContextManager[None]:
        """A context in which the trained weights can be read outside of `module` as well."""
        return nullcontext()

    def close(self) -> None:
        """Frees what the optimiser holds."""
        self.optimizer.zero_grad()

    # --- its state --------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """All that the next steps depend on, by name: what is trained, as it is now, the moments
        and counts of the optimiser, and the number of steps done. Not copied."""
        tensors = {STEPS_DONE: torch.tensor(self.steps_done)}
        for name, parameter in self._named().items():
            tensors[f"parameter/{name}"] = parameter
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{key}/{name}"] = value
        return tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from a `state` of the same parameters.

        Raises ValueError, with nothing changed, if they have other names or shapes.
        """
        named = self._named()
        self._check_fit({name: parameter.shape for name, parameter in named.items()}, tensors)
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(tensors[f"parameter/{name}"])
        self.optimizer.state.clear()
        for full_name, tensor in tensors.items():
            what, _, rest = full_name.partition("/")
            if what == "optimizer":
                key, _, name = rest.partition("/")
                # AdamW's count of steps, a scalar, stays on the CPU.
                device = named[name].device if tensor.dim() else "cpu"
                self.optimizer.state[named[name]][key] = tensor.to(device)
        self.steps_done = int(tensors[STEPS_DONE])

    def _named(self) -> dict[str, nn.Parameter]:
        names = {id(parameter): name for name, parameter in self.module.named_parameters()}
        return {names[id(parameter)]: parameter for parameter in self.parameters}

    @staticmethod
    def _check_fit(own: Mapping[str, torch.Size], tensors: Mapping[str, Tensor]) -> None:
        start = "parameter/"
        found = {n.removeprefix(start): t.shape for n, t in tensors.items() if n.startswith(start)}
        if found != own:
            apart = sorted(n for n in found.keys() | own.keys() if found.get(n) != own.get(n))
            raise ValueError(f"{len(apart)} parameters differ, such as {apart[0]}")
