"""Weights and moments that ZeRO has spread over ranks, as whole tensors and back: what a checkpoint
holds, whichever number of ranks wrote it and whichever goes on from it.

ZeRO 1 to 3 keep float32 weights and AdamW's moments in flat tensors, of which each rank has a part
that begins and ends anywhere among the parameters. `Piece` says what of a parameter is where.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from align.engine import Engine


class Piece(NamedTuple):
    """This rank's part of a parameter."""

    flat: Tensor
    """[numbers of all parameters' parts] float32 weights; the moments lie as they do"""
    at: int
    """where the part begins in `flat`"""
    of: int
    """where it begins in the parameter"""
    size: int
    """0: another rank has all of it"""

    def read(self, source: Tensor, parameter: Any) -> Tensor:
        """The parameter's numbers in float32, 0 where they are another rank's."""
        whole = torch.zeros(_numbers(parameter), dtype=torch.float32, device=source.device)
        whole[self.of : self.of + self.size] = source[self.at : self.at + self.size]
        return whole

    def write(self, target: Tensor, whole: Tensor) -> None:
        """Takes this part from the parameter's numbers."""
        mine = whole.reshape(-1)[self.of : self.of + self.size]
        target[self.at : self.at + self.size].copy_(mine)


def _numbers(parameter: Any) -> int:
    return parameter.ds_numel if hasattr(parameter, "ds_id") else parameter.numel()


def shape_of(parameter: Any) -> torch.Size:
    """Of the whole parameter."""
    return parameter.ds_shape if hasattr(parameter, "ds_id") else parameter.shape


class ShardedState:
    """Of a DeepSpeed optimiser of ZeRO 1 to 3 over `groups` of parameters."""

    def __init__(self, optimizer: Any, groups: Sequence[Sequence[nn.Parameter]], engine: Engine):
        self._optimizer = optimizer
        self._engine = engine
        self._group_of = {id(p): number for number, group in enumerate(groups) for p in group}

    @property
    def _states(self) -> dict[Tensor, dict[str, Any]]:
        return self._optimizer.optimizer.state

    def _piece(self, parameter: Any) -> Piece:
        if hasattr(parameter, "ds_id"):  # ZeRO 3: as many numbers on each rank, 0 behind the last
            place = self._optimizer.grad_position[self._optimizer.get_param_id(parameter)]
            part, at, size = place
            of = size * self._engine.rank
            size = max(0, min(size, parameter.ds_numel - of))
            return Piece(self._optimizer.fp32_partitioned_groups_flat[part], at, of, size)
        group = self._group_of[id(parameter)]
        flat = self._optimizer.single_partition_of_fp32_groups[group]
        mapping = parameter._hp_mapping
        if mapping is None:
            return Piece(flat, 0, 0, 0)
        whole, mine = mapping.lp_fragment_address, mapping.hp_fragment_address
        return Piece(flat, mine.start, whole.start, mine.numel)

    def whole(self, parameter: nn.Parameter) -> Iterator[tuple[str, Tensor]]:
        """("", the weights) and (name, what AdamW keeps of them), on the CPU; of all ranks, who
        must all ask."""
        piece = self._piece(parameter)
        shape = shape_of(parameter)
        for name, source in {"": piece.flat, **self._states.get(piece.flat, {})}.items():
            if source.dim() == 0:  # AdamW's count of steps, the same for all
                yield name, source.detach().cpu().clone()
            else:
                mine = piece.read(source.detach(), parameter).to(self._engine.device)
                yield name, self._engine.sum(mine).view(shape).cpu()

    def forget(self) -> None:
        """Leaves no moments."""
        self._states.clear()

    @torch.no_grad()
    def take(self, parameter: Any, weights: Tensor, kept: Mapping[str, Tensor]) -> None:
        """Takes this rank's part of what `whole` gave."""
        piece = self._piece(parameter)
        piece.write(piece.flat.data, weights)
        if hasattr(parameter, "ds_id"):
            own = parameter.ds_tensor[: piece.size]
            own.copy_(piece.flat.data[piece.at : piece.at + piece.size])
        else:
            parameter.copy_(weights)
        if not kept:
            return
        state = self._states[piece.flat]
        for name, value in kept.items():
            if value.dim() == 0:
                state[name] = value.clone()
            else:
                state.setdefault(name, torch.zeros_like(piece.flat))
                piece.write(state[name], value)
