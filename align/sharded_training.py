"""The same step with ZeRO under it: the only importer of deepspeed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from align import deepspeed_settings, sharded_parameters
from align.memory import measured
from align.sharded_parameters import Sharded
from align.sharded_state import ShardedState, shape_of
from align.training import STEPS_DONE, Training

if TYPE_CHECKING:
    from align.engine import Engine


def initialise() -> None:
    """Tells it of the process group, which is there already."""
    import deepspeed
    import deepspeed.ops

    # Only inference uses this op on a CPU, but it would be compiled (80 s) at every first start.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed()


def end_sharding(engine: Any) -> None:
    """Makes the weights of a DeepSpeed engine plain parameters again, if it has sharded them, and
    takes back what it has changed for all of torch."""
    from deepspeed.runtime.zero import parameter_offload

    offload = getattr(engine.optimizer, "parameter_offload", None)
    if offload is not None:
        sharded_parameters.dissolve(offload)
        stack = parameter_offload.FWD_MODULE_STACK
        stack[:] = [one for one in stack if one is not offload.module]  # it would stay in memory
        torch.nn.functional.linear = _torchs_own_linear()


@contextmanager
def plain_linear() -> Iterator[None]:
    """In it, a linear layer is torch's again: DeepSpeed puts another in its place for all of torch,
    which keeps no gathered weights for the backward pass, and is slower."""
    before, torch.nn.functional.linear = torch.nn.functional.linear, _torchs_own_linear()
    try:
        yield
    finally:
        torch.nn.functional.linear = before


def _torchs_own_linear() -> Any:
    from deepspeed.runtime.zero import partition_parameters

    place = partition_parameters.InsertPostInitMethodToModuleSubClasses
    return getattr(place, "linear_bk", torch.nn.functional.linear)


class DeepSpeedTraining(Training):
    """The same, with gradients, optimiser states and trained weights sharded by ZeRO."""

    def __init__(self, engine: Engine, module: nn.Module, optimizer: Any, *rest: Any):
        import deepspeed

        super().__init__(engine, module, optimizer, *rest)
        assert engine.deepspeed is not None
        self._gradients = 0.0
        self._whole = module
        # Under ZeRO the optimiser's groups hold other tensors soon.
        self._groups: list[list[nn.Parameter]] = [g["params"] for g in optimizer.param_groups]
        self._is_whole = False
        settings = deepspeed_settings.filled(
            engine.deepspeed, self._max_grad_norm, bf16=engine.bf16
        )
        stage = deepspeed_settings.stage_of(settings)
        if stage == 3:
            module = Sharded(module, self.parameters)
        self._deepspeed: Any
        self._deepspeed, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=settings
        )
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
        self.last_reaches_all = stage != 3
        self._offload = getattr(self._deepspeed.optimizer, "parameter_offload", None)
        if self._offload is not None:
            sharded_parameters.settle(self._offload)
        self._sharded = None
        if stage > 0:
            self._sharded = ShardedState(self._deepspeed.optimizer, self._groups, engine)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self._groups for parameter in group]

    def backward(self, loss: Tensor, last: bool, rows: Iterable[str] = ()) -> None:
        self._check(loss, rows)
        # ZeRO-3 offloads only what a last pass has reached: the gradients of others would be lost.
        self._deepspeed.set_gradient_accumulation_boundary(last or self._offload is not None)
        # DeepSpeed averages gradients over ranks; the parts are to be summed.
        self._deepspeed.backward(loss * self.engine.world_size, scale_wrt_gas=False)
        if not self._measured:  # some stages hold more between the parts than at the step
            self._gradients = max(self._gradients, measured.sharded_gradients_of(self._deepspeed))

    def step(self) -> float:
        self._set_learning_rates()
        self._begin_groups(self._deepspeed.optimizer)
        first, self._measured = not self._measured, True
        norm = self._plain_norm()
        self._deepspeed.step()
        if self._offload is not None:
            # The next gradients are written over these, but those that come in a later part of the
            # step alone are added.
            self._deepspeed.optimizer.grad_partitions_flat_buffer.zero_()
        if first:
            self.engine.note_held(
                parameters=measured.parameters_of(self._whole),
                gradients=self._gradients,
                optimizer=measured.sharded_optimizer_of(self._deepspeed),
            )
        self.steps_done += 1
        if norm is None:
            norm = float(self._deepspeed.get_global_grad_norm() or 0.0)
        self._refuse_non_finite(norm)
        return norm

    def _plain_norm(self) -> float | None:
        """Of the gradients before clipping, where DeepSpeed does not tell it: without ZeRO and
        without a float32 copy of the weights its optimiser is torch's own."""
        if self._deepspeed.optimizer is not self.optimizer:
            return None
        grads = [p.grad for p in self.parameters if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(grads))

    def _begin_groups(self, optimizer: Any) -> None:
        if self._offload is None:
            super()._begin_groups(optimizer)
            return
        # What AdamW steps on are parts of the groups then, and the groups are empty between.
        for part, group in optimizer.sub_group_to_group_id.items():
            if 0 < self._first_steps[group] == self.steps_done:
                optimizer.optimizer.state.pop(optimizer.fp32_partitioned_groups_flat[part], None)

    def _set_learning_rates(self) -> None:
        optimizer: Any = self._deepspeed.optimizer
        groups = optimizer.param_groups
        for group, rate in zip(groups, self.learning_rates, strict=True):
            group["lr"] = rate

    @contextmanager
    def whole(self) -> Iterator[None]:
        if self._offload is None or self._is_whole:
            yield
            return
        self._is_whole = True
        try:
            with sharded_parameters.whole(self._offload), plain_linear():
                yield
        finally:
            self._is_whole = False

    def close(self) -> None:
        end_sharding(self._deepspeed)
        self._deepspeed.destroy()

    def state(self) -> dict[str, Tensor]:
        """As without DeepSpeed, on rank 0; copied, and empty on the others, who must ask, too."""
        if self._sharded is None:
            return super().state()
        tensors = {STEPS_DONE: torch.tensor(self.steps_done)}
        for name, parameter in self._named().items():
            for key, value in self._sharded.whole(parameter):
                if self.engine.is_main:
                    tensors[f"optimizer/{key}/{name}" if key else f"parameter/{name}"] = value
        return tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        if self._sharded is None:
            super().restore(tensors)
            return
        named = self._named()
        self._check_fit({name: shape_of(p) for name, p in named.items()}, tensors)
        kept: dict[str, dict[str, Tensor]] = {name: {} for name in named}
        for full_name, tensor in tensors.items():
            what, _, rest = full_name.partition("/")
            if what == "optimizer":
                key, _, name = rest.partition("/")
                kept[name][key] = tensor
        self._sharded.forget()
        for name, parameter in named.items():
            self._sharded.take(parameter, tensors[f"parameter/{name}"], kept[name])
        self.steps_done = int(tensors[STEPS_DONE])

    def _named(self) -> dict[str, nn.Parameter]:
        names = {id(parameter): name for name, parameter in self._whole.named_parameters()}
        return {names[id(parameter)]: parameter for parameter in self.parameters}
