"""The measured errors and floors against known numbers, and how near the curves come to the floor."""

from __future__ import annotations

import math

import pytest
import torch

from hf_invact.curves import GELU, HARDSWISH, SILU, ClosedForm, Curve
from hf_invact.ops.accuracy import error_of, floor_of, measure_derivative_error, numbers
from tests.helpers import FITTED, each_half_dtype, normal


def step(x: torch.Tensor) -> torch.Tensor:
    return x.sign()


# Its output shows only the sign of x. Its slope is 2 everywhere; the exact derivative is |x|.
SIGN = Curve("sign", step, torch.abs, ClosedForm(lambda y, is_left, dtype: torch.full_like(y, 2.0)))


def test_numbers_are_all_finite_ones_in_order() -> None:
    assert numbers(torch.float16).numel() == 2**16 - 2 * 2**10
    assert numbers(torch.bfloat16).numel() == 2**16 - 2 * 2**7
    assert numbers(torch.float16, largest=8.0).abs().max() == 8
    assert (numbers(torch.float16).double().diff() >= 0).all()


def test_error_is_the_slope_minus_the_exact_derivative() -> None:
    assert error_of(SIGN, torch.tensor([3.0, -0.5, 2.0])).tolist() == [-1.0, 1.5, 0.0]


def test_floor_of_a_curve_that_hides_its_input() -> None:
    floor, _ = floor_of(SIGN, numbers(torch.float16))
    assert floor.max == pytest.approx(65504 / 2)
    # Of |x| under N(0, 1), whose variance is 1 - 2 / pi.
    assert floor.rms == pytest.approx(math.sqrt(1 - 2 / math.pi), rel=1e-3)


@pytest.mark.parametrize(
    ("curve", "dtype", "largest", "rms"),
    [
        (GELU, torch.bfloat16, 0.0106, 0.00141),
        (GELU, torch.float16, 0.0048, 0.00037),
        (SILU, torch.bfloat16, 0.0114, 0.00151),
    ],
    ids=["gelu-bfloat16", "gelu-float16", "silu-bfloat16"],
)
def test_floors_that_were_found_by_another_program(
    curve: Curve, dtype: torch.dtype, largest: float, rms: float
) -> None:
    floor, _ = floor_of(curve, numbers(dtype))
    assert floor.max == pytest.approx(largest, rel=0.01)
    assert floor.rms == pytest.approx(rms, rel=0.01)


@pytest.mark.parametrize("curve", [*FITTED, HARDSWISH], ids=lambda curve: curve.name)
@each_half_dtype
def test_curves_with_a_turning_point_are_at_the_floor(curve: Curve, dtype: torch.dtype) -> None:
    error = measure_derivative_error(curve, normal(200_000, dtype=dtype))
    assert error.floor is not None
    assert error.rms < 1.06 * error.floor.rms
    assert error.max < 1.1 * error.floor.max


def test_wide_dtypes_have_no_floor_to_measure() -> None:
    error = measure_derivative_error(GELU, normal(1000))
    assert error.floor is None
    assert 0 < error.rms < error.max < 1e-4
