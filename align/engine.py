"""This process among its peers, and the device that it computes on.

A stage asks three things of it: which rows are this rank's (`share`), everybody's results
(`gather`), and a step of the optimiser (`training`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from align import deepspeed_settings, launched, process_group
from align.checkpoints import Checkpoints
from align.memory import measured
from align.peers import Peers
from align.training import ParameterGroup, Training
from preference_data.forward_size import tokens_at_once

T = TypeVar("T")


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
            process_group.stand_alone()
        alone = self.deepspeed is None and self.world_size == 1
        if not (alone or torch.distributed.is_initialized()):
            self.peers = process_group.join(self.device)
        if self.deepspeed is not None:
            from align import sharded_training

            sharded_training.initialise()
        self._check_world()
        self.checkpoints = Checkpoints()
        """Of the step that runs; the pipeline puts them here."""
        self._trainer: Any = None
        self._resident: Any = None
        self.held: dict[str, float] = {}
        """Bytes that the step's training holds on this rank, by what they are."""

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
            well = sys.exc_info()[0] is None
            if well:
                torch.distributed.barrier()
            if self.peers is not None:
                self.peers.stop(well=well)
            if well:  # its store may be this rank's
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
        kind = Training
        if self.deepspeed is not None:
            from align.sharded_training import DeepSpeedTraining as kind
        firsts = [group.first_step for group in groups]
        return kind(self, module, optimizer, peaks, total_steps, schedule, max_grad_norm, firsts)

    def tokens_per_forward(self, asked: int | None = None) -> int:
        """Tokens of a forward pass on this rank: those of a setting, if it has any."""
        return tokens_at_once(self.device.type) if asked is None else asked

    def trainer_arguments(self, max_grad_norm: float) -> dict[str, Any]:
        """What transformers' TrainingArguments must know of the processes and devices."""
        arguments: dict[str, Any] = {"use_cpu": self.device.type == "cpu", "bf16": False}
        if self.deepspeed is not None:
            arguments["bf16"] = self.bf16
            arguments["deepspeed"] = deepspeed_settings.filled(
                self.deepspeed, max_grad_norm, bf16=self.bf16, batch=None
            )
        return arguments

    def check_trainer(self, trainer: Any, resident: nn.Module | None = None) -> None:
        """Raises RuntimeError if a Trainer runs otherwise than it was told: accelerate switches
        ZeRO off, or takes itself for alone, without a word. `resident` is what is in memory with
        its model, this among it."""
        kind = str(trainer.accelerator.distributed_type.value)
        if (kind == "DEEPSPEED") != (self.deepspeed is not None):
            wanted = "with" if self.deepspeed is not None else "without"
            raise RuntimeError(f"the training was to run {wanted} DeepSpeed, and runs as {kind}.")
        if trainer.accelerator.num_processes != self.world_size:
            raise RuntimeError(
                f"accelerate sees {trainer.accelerator.num_processes} processes of "
                f"{self.world_size}."
            )
        self._trainer, self._resident = trainer, resident

    def forget_trainer(self) -> None:
        """Lets the next Trainer build its own accelerator state."""
        from accelerate.state import AcceleratorState, GradientState
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        if self._trainer is not None:
            resident = self._trainer.model if self._resident is None else self._resident
            self.note_held(**measured.held_by_trainer(self._trainer, resident))
            if self.deepspeed is not None:
                from align.sharded_training import end_sharding

                end_sharding(self._trainer.deepspeed)
                # Else transformers would shard the next model that it loads.
                unset_hf_deepspeed_config()
            self._trainer = self._resident = None
        AcceleratorState._reset_state()
        GradientState._reset_state()


def _device(local_rank: int) -> torch.device:
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    return torch.device("cpu")
