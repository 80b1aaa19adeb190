"""The same step with ZeRO under it: the only importer of deepspeed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from align import deepspeed_settings
from align.memory import measured
from align.training import Training

if TYPE_CHECKING:
    from align.engine import Engine


def initialise() -> None:
    """Tells it of the process group, which is there already."""
    import deepspeed
    import deepspeed.ops

    # Only inference uses this op on a CPU, but it would be compiled (80 s) at every first start.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed()


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
