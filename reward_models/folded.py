"""LoRA layers without a tensor as wide as the layer beside its output: the numbers of peft's own
forward and backward, in fewer passes over memory."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

EXACT = (torch.float32, torch.float64)
"""Types whose weights hold an adapter's change; half precision would round it away."""
HALF = (torch.bfloat16, torch.float16)
"""Types of a base whose adapters are in float32."""


def fold(model: nn.Module) -> None:
    """From now on, plain LoRA on linear layers of `model` is computed in one function.

    Call it again when adapters were added. Parameters, their names and what is saved stay peft's.
    """
    for part in model.modules():
        if type(part) is lora.Linear:  # not a subclass: a quantised layer computes its own way
            part.__class__ = FoldedLinear


class FoldedLinear(lora.Linear):
    """peft's layer, which computes x (W + s B A)^T in one function where it can.

    Everything that is more than one plain adapter on a frozen layer is left to peft: dropout,
    variants such as DoRA, biases, several or no active adapters, modules somebody listens to.
    On a base in half precision, the adapter's product is computed in it, too, as under autocast;
    peft computes it in float32, from a copy of every input.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[..., out] of x [..., in]."""
        name = None if args or kwargs else self._plain_adapter()
        if name is None or not self._known(x, name):
            return super().forward(x, *args, **kwargs)
        base: Any = self.base_layer
        weight = base.weight.T if isinstance(base, Conv1D) else base.weight
        factors = self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
        y: Tensor = _Folded.apply(x, weight, base.bias, *factors)  # type: ignore[assignment]
        return y

    def _plain_adapter(self) -> str | None:
        """The one adapter that is active, if it adds s B A x and nothing else."""
        active = self.active_adapters
        if self.disable_adapters or self.merged or len(active) != 1 or active[0] not in self.lora_A:
            return None
        [name] = active
        if name in self.lora_variant or self.lora_bias.get(name):
            return None
        dropout: Any = self.lora_dropout[name]
        drops = dropout.training and not isinstance(dropout, nn.Identity)
        return None if drops else name

    def _known(self, x: Tensor, name: str) -> bool:
        """Whether all tensors are whole and of types that belong together, the layer is frozen,
        and nobody would miss a call of the layers in it."""
        parts: tuple[Any, ...] = (self.base_layer, self.lora_A[name], self.lora_B[name])
        base, *factors = parts
        return (
            type(base) in (nn.Linear, Conv1D)
            and x.dtype in EXACT + HALF
            and base.weight.dtype == x.dtype
            and all(factor.weight.dtype in _factor_types(x.dtype) for factor in factors)
            and all(part.weight.dim() == 2 for part in parts)
            and not any(parameter.requires_grad for parameter in base.parameters())
            and all(type(factor) is nn.Linear and factor.bias is None for factor in factors)
            and not any(map(_listened_to, parts))
            and not torch.is_autocast_enabled(x.device.type)
        )


def _factor_types(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    return (dtype, torch.float32) if dtype in HALF else (dtype,)


def _listened_to(part: nn.Module) -> bool:
    return bool(
        part._forward_hooks or part._forward_pre_hooks
        or part._backward_hooks or part._backward_pre_hooks
    )  # fmt: skip


class _Folded(torch.autograd.Function):
    """y = x W'^T + c with W' = W + s B A, for frozen W and c.

    With g the gradient of y: that of x is g W', that of B is s g^T (x A^T) and that of A is
    s (g B)^T x, where what is in brackets has r columns. With many tokens W' is made, and made
    again in the backward pass: kept, those of all layers would be another base in memory. With few,
    or in half precision, the adapter's product is added to the layer's in place.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        """[..., out] of x [..., in], weight [out, in], bias [out], a [r, in] and b [out, r]."""
        wanted = any(ctx.needs_input_grad[3:5])
        ctx.scale, ctx.factor_types = scale, (a.dtype, b.dtype)
        a, b = a.to(x.dtype), b.to(x.dtype)
        ctx.save_for_backward(x if wanted else None, weight, a, b)
        # Made here, not by a reshape: autograd lets nobody change a view of ours in place.
        y = x.new_empty(*x.shape[:-1], weight.shape[0])
        rows, out = _rows(x), _rows(y)
        folds = _folding_pays(x, weight)
        used = _folded(weight, a, b, scale) if folds else weight
        if bias is None:
            torch.mm(rows, used.T, out=out)
        else:
            torch.addmm(bias, rows, used.T, out=out)
        if not folds:
            out.addmm_(rows @ a.T, b.T, alpha=scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])
        narrow = flat @ b
        grad_x = grad_a = grad_b = None
        if ctx.needs_input_grad[0]:
            if _folding_pays(flat, weight):
                grad_x = flat @ _folded(weight, a, b, ctx.scale)
            else:
                grad_x = (flat @ weight).addmm_(narrow, a, alpha=ctx.scale)
            grad_x = grad_x.view(*grad.shape[:-1], grad_x.shape[1])
        if ctx.needs_input_grad[3]:
            grad_a = (narrow.T @ _rows(x)).to(ctx.factor_types[0]).mul_(ctx.scale)
        if ctx.needs_input_grad[4]:
            grad_b = (flat.T @ (_rows(x) @ a.T)).to(ctx.factor_types[1]).mul_(ctx.scale)
        return grad_x, None, None, grad_a, grad_b, None


def _rows(x: Tensor) -> Tensor:
    """[N, width] of [..., width]"""
    return x.reshape(-1, x.shape[-1])


def _folding_pays(x: Tensor, weight: Tensor) -> bool:
    """Whether there are so many tokens that W' has half the numbers of the input and the output.

    A fold is 2 r in out operations, the adapter beside the layer 2 r (in + out) a token. That would
    be even at in out / (in + out) tokens, but a fold writes a weight for every r multiplications:
    measured on CPUs (r 16, layers of 256 to 2,048), it pays from 1 to 4 times as many. In half
    precision W' would be rounded. Compiled code is made for training's many tokens, once for all
    their numbers.
    """
    if x.dtype in EXACT and torch.compiler.is_compiling():
        return True
    return x.dtype in EXACT and x.numel() // x.shape[-1] * sum(weight.shape) > 2 * weight.numel()


def _folded(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """[out, in] W + s B A, laid out in memory as the weight is."""
    if weight.is_contiguous():
        return torch.addmm(weight, b, a, alpha=scale)
    return torch.addmm(weight.T, a.T, b.T, alpha=scale).T  # GPT-2's: [in, out] in memory
