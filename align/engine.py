"""Processes, devices and sharded optimisers: the only importer of accelerate and deepspeed.

A stage asks three things of it: which rows are this rank's (`share`), everybody's results
(`gather`), and a step of the optimiser (`Training`). Losses are sums divided by a global count, so
gradients are summed over ranks, never averaged, and no result depends on how rows were split.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from align import deepspeed_settings, launched
from align.checkpoints import Checkpoints
from align.memory import measured
from align.peers import Peers

T = TypeVar("T")
STEPS_DONE = "steps_done"
JOINED_WITHIN = timedelta(minutes=5)
"""From the first rank that is there to the last."""
DONE_WITHIN = timedelta(hours=6)
"""Longest wait for another rank, which may import data or ask a judge meanwhile. Whether it is
alive at all is seen within a minute (align/peers.py)."""
_JOINED = itertools.count()


class NonFiniteError(RuntimeError):
    """A loss or gradient that is not a number; the message says where."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a peak learning rate."""

    parameters: list[nn.Parameter]
    learning_rate: float
    first_step: int = 0
    """Optimiser step, from 0, that its schedule and its moments begin with; its rate is 0 before"""


class Engine:
    """This process among its peers."""

    def __init__(self, deepspeed: str | None = None, bf16: bool = False):
        """`bf16` says whether DeepSpeed holds a float32 copy of bfloat16 weights."""
        self.rank = int(os.environ.get("RANK", "0"))
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.device = _device(self.local_rank)
        self.deepspeed = deepspeed_settings.read(deepspeed) if deepspeed else None
        self.bf16 = bf16
        self.peers: Peers | None = None
        launched.settle(os.environ)
        if self.deepspeed is not None:
            _stand_alone()
        alone = self.deepspeed is None and self.world_size == 1
        if not (alone or torch.distributed.is_initialized()):
            self._join()
        if self.deepspeed is not None:
            _initialise_deepspeed()
        self._check_world()
        self.checkpoints = Checkpoints()
        """Of the step that runs; the pipeline puts them here."""
        self._trainer: Any = None
        self.held: dict[str, float] = {}
        """Bytes that the step's training holds on this rank, by what they are."""

    def _join(self) -> None:
        """Into the process group, and among those who look after each other.

        Raises RuntimeError if not all ranks come within JOINED_WITHIN.
        """
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        found = rendezvous("env://", timeout=JOINED_WITHIN)
        shared, rank, world_size = next(iter(found))
        # A process may run one pipeline after the other: their keys must not meet.
        store: Any = PrefixStore(f"align/{next(_JOINED)}", shared)
        if world_size > 1:
            _wait_for_all(store, rank, world_size)
            self.peers = Peers(store.clone(), store.clone(), rank, world_size)
        store.set_timeout(DONE_WITHIN)
        torch.distributed.init_process_group(
            "nccl" if self.device.type == "cuda" else "gloo",
            store=store, rank=rank, world_size=world_size, timeout=DONE_WITHIN,
        )  # fmt: skip

    def _check_world(self) -> None:
        """Two failures are silent elsewhere: ZeRO switched off, and a world believed to be 1."""
        if self.world_size > 1 and torch.distributed.get_world_size() != self.world_size:
            raise RuntimeError(
                f"{self.world_size} processes were launched, but the process group has "
                f"{torch.distributed.get_world_size()}."
            )

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This rank's items: every world_size-th, so that ranks differ by one item at most."""
        return list(items[self.rank :: self.world_size])

    def gather(self, mine: Sequence[T]) -> list[T]:
        """All ranks' items in the order that `share` took them from, on every rank."""
        if self.world_size == 1:
            return list(mine)
        parts: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(parts, list(mine))
        total = sum(len(part) for part in parts)
        return [parts[i % self.world_size][i // self.world_size] for i in range(total)]

    def from_main(self, make: Callable[[], T]) -> T:
        """Rank 0's result of `make`, on every rank. An error on rank 0 is raised on all."""
        if self.world_size == 1:
            return make()
        box: list[Any] = [None, None]
        if self.is_main:
            try:
                box[0] = make()
            except Exception as error:
                box[1] = error
        torch.distributed.broadcast_object_list(box, src=0)
        if box[1] is not None:
            raise box[1]
        return box[0]

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over ranks."""
        if self.world_size > 1:
            values = values.clone()
            torch.distributed.all_reduce(values)
        return values

    def barrier(self) -> None:
        if self.world_size > 1:
            torch.distributed.barrier()

    def failed(self, error: BaseException) -> str | None:
        """Lets the other ranks know that this one ends with `error`, so that they end, too.

        Returns the reason of another rank that has ended before, if `error` only shows that.
        """
        return None if self.peers is None else self.peers.failed(error)

    def close(self) -> None:
        """Leaves the process group: all together, unless this rank is on its way out with an error.

        A rank that leaves while another still talks to it can end in the other's abort.
        """
        if self.world_size > 1 and torch.distributed.is_initialized():
            if sys.exc_info()[0] is None:
                torch.distributed.barrier()
            if self.peers is not None:
                self.peers.stop()
            if sys.exc_info()[0] is None:  # its store may be this rank's
                torch.distributed.barrier()
            torch.distributed.destroy_process_group()

    # --- memory -----------------------------------------------------------------------------------

    def begin_memory(self) -> None:
        """What is held, and the peak, are the next step's from now on."""
        self.held = {}
        measured.reset_peak(self.device)

    def memory(self) -> dict[str, float]:
        """Bytes of this rank as metrics: what training held, and on a GPU the peak."""
        return {**self.held, **measured.peak(self.device)}

    def note_held(self, **found: float) -> None:
        """Bytes of parameters, gradients or optimizer; of several trainings the most counts."""
        for what, size in found.items():
            name = f"memory/{what}"
            self.held[name] = max(size, self.held.get(name, 0.0))

    # --- training ---------------------------------------------------------------------------------

    def training(
        self,
        module: nn.Module,
        groups: Sequence[ParameterGroup],
        *,
        total_steps: int,
        schedule: Callable[[int, int], float],
        max_grad_norm: float,
        adam_epsilon: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> Training:
        """An optimiser (AdamW) over `groups`, sharded if DeepSpeed is asked for.

        `schedule(step, total_steps)` is the factor of the learning rate; both count from the
        group's first step.
        """
        optimizer = torch.optim.AdamW(
            [{"params": group.parameters, "lr": group.learning_rate} for group in groups],
            eps=adam_epsilon,
            weight_decay=weight_decay,
        )
        peaks = [group.learning_rate for group in groups]
        kind = Training if self.deepspeed is None else DeepSpeedTraining
        firsts = [group.first_step for group in groups]
        return kind(self, module, optimizer, peaks, total_steps, schedule, max_grad_norm, firsts)

    def trainer_arguments(self, max_grad_norm: float) -> dict[str, Any]:
        """What transformers' TrainingArguments must know of the processes and devices."""
        arguments: dict[str, Any] = {"use_cpu": self.device.type == "cpu", "bf16": False}
        if self.deepspeed is not None:
            arguments["bf16"] = self.bf16
            arguments["deepspeed"] = deepspeed_settings.filled(
                self.deepspeed, max_grad_norm, bf16=self.bf16, batch=None
            )
        return arguments

    def check_trainer(self, trainer: Any) -> None:
        """Raises RuntimeError if a Trainer runs otherwise than it was told: accelerate switches
        ZeRO off, or takes itself for alone, without a word."""
        kind = str(trainer.accelerator.distributed_type.value)
        if (kind == "DEEPSPEED") != (self.deepspeed is not None):
            wanted = "with" if self.deepspeed is not None else "without"
            raise RuntimeError(f"the training was to run {wanted} DeepSpeed, and runs as {kind}.")
        if trainer.accelerator.num_processes != self.world_size:
            raise RuntimeError(
                f"accelerate sees {trainer.accelerator.num_processes} processes of "
                f"{self.world_size}."
            )
        self._trainer = trainer

    def forget_trainer(self) -> None:
        """Lets the next Trainer build its own accelerator state."""
        from accelerate.state import AcceleratorState, GradientState

        if self._trainer is not None:
            self.note_held(**measured.held_by_trainer(self._trainer))
            self._trainer = None
        AcceleratorState._reset_state()
        GradientState._reset_state()


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
        self._check_fit(named, tensors)
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
    def _check_fit(named: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
        start = "parameter/"
        found = {n.removeprefix(start): t.shape for n, t in tensors.items() if n.startswith(start)}
        own = {name: parameter.shape for name, parameter in named.items()}
        if found != own:
            apart = sorted(n for n in found.keys() | own.keys() if found.get(n) != own.get(n))
            raise ValueError(f"{len(apart)} parameters differ, such as {apart[0]}")


class DeepSpeedTraining(Training):
    """The same, with gradients and optimiser states sharded by ZeRO."""

    def __init__(self, engine: Engine, module: nn.Module, optimizer: Any, *rest: Any):
        import deepspeed

        super().__init__(engine, module, optimizer, *rest)
        assert engine.deepspeed is not None
        self._gradients = 0.0
        settings = deepspeed_settings.filled(
            engine.deepspeed, self._max_grad_norm, bf16=engine.bf16
        )
        self._deepspeed, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=settings
        )
        stage = deepspeed_settings.stage_of(settings)
        if self._deepspeed.zero_optimization_stage() != stage:
            raise RuntimeError(
                f"ZeRO stage {stage} was asked for; DeepSpeed runs "
                f"{self._deepspeed.zero_optimization_stage()}."
            )
        if self._deepspeed.world_size != engine.world_size:
            raise RuntimeError(
                f"DeepSpeed sees {self._deepspeed.world_size} processes of {engine.world_size}."
            )
        self.module = self._deepspeed

    def backward(self, loss: Tensor, last: bool, rows: Iterable[str] = ()) -> None:
        self._check(loss, rows)
        self._deepspeed.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages gradients over ranks; the parts are to be summed.
        self._deepspeed.backward(loss * self.engine.world_size, scale_wrt_gas=False)
        if not self._measured:  # some stages hold more between the parts than at the step
            self._gradients = max(self._gradients, measured.sharded_gradients_of(self._deepspeed))

    def step(self) -> float:
        self._set_learning_rates()
        self._begin_groups(self._deepspeed.optimizer)
        first, self._measured = not self._measured, True
        self._deepspeed.step()
        if first:
            self.engine.note_held(
                parameters=measured.parameters_of(self._deepspeed),
                gradients=self._gradients,
                optimizer=measured.sharded_optimizer_of(self._deepspeed),
            )
        self.steps_done += 1
        norm = float(self._deepspeed.get_global_grad_norm() or 0.0)
        self._refuse_non_finite(norm)
        return norm

    def _set_learning_rates(self) -> None:
        optimizer: Any = self._deepspeed.optimizer
        groups = optimizer.param_groups
        for group, rate in zip(groups, self.learning_rates, strict=True):
            group["lr"] = rate

    def close(self) -> None:
        self._deepspeed.destroy()

    def state(self) -> dict[str, Tensor]:
        raise NotImplementedError("a sharded optimiser has no state of its own on one rank")

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        raise NotImplementedError("a sharded optimiser has no state of its own on one rank")


def linear_schedule(warmup: float = 0.0) -> Callable[[int, int], float]:
    """Rises from 0 over `warmup` steps (below 1: a share of all), then falls to 0 linearly."""

    def factor(step: int, total: int) -> float:
        rise = _warmup_steps(warmup, total)
        if step < rise:
            return (step + 1) / (rise + 1)
        return max(0.0, (total - step) / max(1, total - rise))

    return factor


def cosine_schedule(warmup: float = 0.0) -> Callable[[int, int], float]:
    """As `linear_schedule`, falling along half a cosine."""

    def factor(step: int, total: int) -> float:
        rise = _warmup_steps(warmup, total)
        if step < rise:
            return (step + 1) / (rise + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))

    return factor


def constant_schedule(warmup: float = 0.0) -> Callable[[int, int], float]:
    """As `linear_schedule`, staying at 1."""
    return lambda step, total: min(1.0, (step + 1) / (_warmup_steps(warmup, total) + 1))


SCHEDULES = {"linear": linear_schedule, "cosine": cosine_schedule, "constant": constant_schedule}


def _warmup_steps(warmup: float, total: int) -> int:
    return int(warmup) if warmup >= 1 else math.ceil(total * warmup)


def _device(local_rank: int) -> torch.device:
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    return torch.device("cpu")


def _wait_for_all(store: Any, rank: int, world_size: int) -> None:
    """Until each rank is there: torchrun holds the store itself, and lets the first one in alone.

    Raises RuntimeError if not all come within JOINED_WITHIN.
    """
    store.set(f"joined/{rank}", "")
    names = {f"joined/{other}": other for other in range(world_size)}
    try:
        store.wait(list(names), JOINED_WITHIN)
    except RuntimeError as error:
        late = ", ".join(str(other) for name, other in names.items() if not store.check([name]))
        raise RuntimeError(
            f"rank {late} did not come within {JOINED_WITHIN.total_seconds() / 60:g} minutes"
        ) from error


def _stand_alone() -> None:
    """Names this process the only one, unless a launcher has named it: a plain `python` run."""
    if "RANK" not in os.environ:
        os.environ.update(
            RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(_free_port()),
        )  # fmt: skip


def _initialise_deepspeed() -> None:
    """Tells it of the process group, which is there already."""
    import deepspeed
    import deepspeed.ops

    # Only inference uses this op on a CPU, but it would be compiled (80 s) at every first start.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed()


def _free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
