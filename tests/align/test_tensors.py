"""Statistics under a mask."""

from __future__ import annotations

import math

import pytest
import torch

from align.tensors import masked_mean, standardize

MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_masked_mean_by_hand():
    """(1 + 2 + 3 + 6) / 4 = 3, whatever stands outside, be it not a number."""
    for rubbish in (0.0, 1e9, math.nan, math.inf):
        values = torch.tensor([[1.0, 2.0, 3.0], [6.0, rubbish, rubbish]])
        assert masked_mean(values, MASK).item() == 3.0


def test_masked_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="mean of nothing"):
        masked_mean(torch.ones(3), torch.zeros(3, dtype=torch.bool))


def test_standardize_by_hand():
    """Values 1, 2, 3, 6: mean 3, variance (4 + 1 + 0 + 9) / 4 = 3.5, sqrt 1.8708287.

    (1 - 3) / 1.8708287 = -1.0690450, then -.5345225, 0 and 1.6035675; outside the mask 0.
    """
    for rubbish in (0.0, 1e9, math.nan):
        values = torch.tensor([[1.0, 2.0, 3.0], [6.0, rubbish, rubbish]])
        expected = torch.tensor([[-1.0690450, -0.5345225, 0.0], [1.6035675, 0.0, 0.0]])
        torch.testing.assert_close(standardize(values, MASK), expected, rtol=0, atol=1e-6)


def test_standardize_forgets_shift_and_scale():
    values = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        standardize(5 * values - 7, MASK), standardize(values, MASK), rtol=0, atol=1e-5
    )


def test_standardize_of_equal_values_is_0():
    """The epsilon keeps 0 / 0 out: all advantages equal means nothing to learn from."""
    assert standardize(torch.full((2, 3), 4.0), MASK).tolist() == [[0.0] * 3, [0.0] * 3]
    assert standardize(torch.tensor([3.0]), torch.tensor([True])).tolist() == [0.0]
