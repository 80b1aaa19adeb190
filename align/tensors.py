"""Statistics under a mask.

`*_mask` is True where the token counts. Axes: B sequences, R response tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask`. Raises ValueError if nothing counts."""
    if not bool(mask.any()):
        raise ValueError("the mask is empty: a mean of nothing")
    return torch.where(mask, values, 0.0).sum() / mask.sum()


def standardize(values: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the masked values (biased variance, epsilon 1e-8); 0 elsewhere."""
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean).square(), mask)
    return torch.where(mask, (values - mean) * torch.rsqrt(variance + 1e-8), 0.0)


def centre(values: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 over the masked values, their spread as it was; 0 elsewhere."""
    return torch.where(mask, values - masked_mean(values, mask), 0.0)


def rescale(values: Tensor, mask: Tensor) -> Tensor:
    """Variance 1 over the masked values (as `standardize`), their mean as it was; 0 elsewhere."""
    return torch.where(mask, standardize(values, mask) + masked_mean(values, mask), 0.0)
