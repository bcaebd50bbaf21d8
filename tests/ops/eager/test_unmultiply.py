"""An output is computed from its product with a factor."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hf_invact.ops.eager.unmultiply import away_from_zero, uncertainty, unmultiply
from tests.helpers import TINY, all_numbers, dtype_name, each_product_dtype, last_place, normal

HALF = torch.bfloat16
SPECIAL = (0.0, -0.0, 1e-4, -1e-3, 100.3, -1000.0)


def factors(dtype: torch.dtype) -> Tensor:
    """Significands of all kinds, normal numbers, and special numbers and numbers close to them."""
    significands = torch.linspace(1, 2, 35)
    beside_tiny = TINY * torch.tensor([0.3, 1.0, 1.4, 3.3, 77.0])
    return torch.cat([significands, normal(20), beside_tiny, torch.tensor(SPECIAL)]).to(dtype)


def pairs() -> tuple[Tensor, Tensor, Tensor]:
    """Each finite output, a factor, and their product, where that is finite."""
    y = all_numbers(HALF)
    y = y[y.isfinite()]
    outputs, others = (grid.flatten() for grid in torch.meshgrid(y, factors(HALF), indexing="ij"))
    products = outputs * away_from_zero(others)
    finite = products.isfinite()
    return outputs[finite], others[finite], products[finite]


def test_every_output_is_within_the_error_it_states() -> None:
    y, factor, product = pairs()
    output = unmultiply(product, factor)
    assert output.dtype == torch.float32
    assert output.isfinite().all()
    error = uncertainty(output, HALF)
    assert error is not None
    assert error.isfinite().all()

    distance = (output.double() - y.double()).abs()
    half_step = last_place(y.double(), HALF) / 2
    smallest = torch.finfo(HALF).smallest_normal
    is_subnormal = product.abs() < smallest
    lost = last_place(product.double(), HALF) / 2 / away_from_zero(factor).double().abs()
    assert (distance <= error + half_step + lost.where(is_subnormal, 0.0)).all()

    told = ~is_subnormal & (y.abs() >= smallest)
    assert (distance == 0)[told].double().mean() > 0.765  # measured: 0.769
    assert (distance <= half_step)[told].all()


def test_outputs_next_to_a_turning_point_are_known_with_every_factor() -> None:
    """An error is magnified there. Products with the smallest factor have enough digits as well."""
    y, factor, product = pairs()
    near = (y <= -0.16) & (y >= -0.4)
    output = unmultiply(product[near], factor[near])
    error, half_step = uncertainty(output, HALF), last_place(y[near].double(), HALF) / 2
    assert ((output - y[near]).abs() <= error + half_step).all()
    assert (error <= 2 * half_step).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_name)
def test_wide_outputs_are_exact_except_for_two_roundings(dtype: torch.dtype) -> None:
    y = normal(20_000, dtype=dtype)
    for value in factors(dtype):
        factor = value.expand(y.shape)
        output = unmultiply(y * away_from_zero(factor), factor)
        assert uncertainty(output, dtype) is None
        assert output.dtype == dtype
        assert ((output - y).abs() <= 1.01 * torch.finfo(dtype).eps * y.abs()).all()


@each_product_dtype
def test_zero_stays_zero(dtype: torch.dtype) -> None:
    factor = factors(dtype)
    for zero in (0.0, -0.0):
        output = unmultiply(torch.full_like(factor, zero) * away_from_zero(factor), factor)
        assert (output == 0).all()


@each_product_dtype
def test_away_from_zero_keeps_the_sign_and_all_but_the_smallest(dtype: torch.dtype) -> None:
    tiny = TINY
    factor = torch.tensor([0.0, -0.0, tiny / 2, -tiny / 2, tiny, -1.5 * tiny, 3.0, -math.inf], dtype=dtype)
    expected = torch.tensor([tiny, tiny, tiny, -tiny, tiny, -1.5 * tiny, 3.0, -math.inf], dtype=dtype)
    before = factor.clone()
    assert torch.equal(away_from_zero(factor), expected)
    assert torch.equal(factor, before)
    assert away_from_zero(torch.tensor(math.nan, dtype=dtype)).isnan()


@each_product_dtype
def test_factors_that_all_are_away_from_zero_are_not_copied(dtype: torch.dtype) -> None:
    factor = torch.tensor([TINY, -1.0, math.inf], dtype=dtype)
    assert away_from_zero(factor) is factor
    assert away_from_zero(factor[:0]).shape == (0,)


@each_product_dtype
def test_changes_none_of_its_arguments(dtype: torch.dtype) -> None:
    product, factor = normal(1000, dtype=dtype), normal(1000, dtype=dtype, seed=1)
    before = product.clone(), factor.clone()
    output = unmultiply(product, factor)
    output.zero_()  # belongs to the caller
    assert torch.equal(product, before[0])
    assert torch.equal(factor, before[1])


def test_the_largest_outputs_stay_finite() -> None:
    factor = torch.linspace(0.5, 1, 129, dtype=HALF)
    y = torch.full_like(factor, torch.finfo(HALF).max)
    for expected in (y, -y):
        output = unmultiply(expected * factor, factor)
        assert ((output - expected.float()).abs() <= torch.finfo(HALF).eps / 2 * y.float()).all()
        assert output.to(HALF).isfinite().all()


def test_what_is_not_finite_stays_so() -> None:
    product = torch.tensor([math.inf, math.nan, 1.0, math.inf], dtype=HALF)
    factor = torch.tensor([2.0, 2.0, math.nan, math.inf], dtype=HALF)
    assert unmultiply(product, factor).isfinite().tolist() == [False] * 4
