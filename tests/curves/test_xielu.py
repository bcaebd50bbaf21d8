"""The inverse of xIELU, from far left of the turning point to far right of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_invact.curves import XIELU
from tests.helpers import all_numbers, dtype_name

# Flat and steep, and the second one where the turning point is nearly at 0, the third where it is far left.
PARAMETERS = [(0.8, 0.8, 0.5), (2.0, 300.0, 0.5), (1e-3, 0.52, 0.5), (5.0, 1.5, 1.0)]
each_parameters = pytest.mark.parametrize("parameters", PARAMETERS, ids=str)
each_wide_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_name)


def curve_of(parameters: tuple[float, float, float], dtype: torch.dtype = torch.float64) -> XIELU:
    return XIELU(*(torch.tensor([number], dtype=dtype) for number in parameters))


def output_and_slope(curve: XIELU, x: Tensor) -> tuple[Tensor, Tensor]:
    above, below = curve.alpha_p * x * x, (torch.expm1(x) - x) * curve.alpha_n
    slope = torch.where(x > 0, 2 * curve.alpha_p * x, torch.expm1(x) * curve.alpha_n)
    return torch.where(x > 0, above, below) + curve.beta * x, slope + curve.beta


@each_parameters
def test_turning_point_is_where_the_slope_vanishes(parameters: tuple[float, float, float]) -> None:
    curve = curve_of(parameters)
    y, slope = output_and_slope(curve, curve.x_min)
    assert slope.abs().item() < 1e-13
    torch.testing.assert_close(y, curve.y_min, rtol=0, atol=1e-13)
    assert (output_and_slope(curve, curve.x_min + torch.tensor([-0.01, 0.01]))[0] > curve.y_min).all()


@each_wide_dtype
@each_parameters
def test_inverts(parameters: tuple[float, float, float], dtype: torch.dtype) -> None:
    exact = curve_of(parameters)
    distance = torch.logspace(-0.5, 4, 4001, dtype=torch.float64)
    x = torch.cat([exact.x_min - distance, exact.x_min + distance])
    y, slope = output_and_slope(exact, x)
    found, found_slope = curve_of(parameters, dtype).invert(y.to(dtype), x < exact.x_min, dtype)
    eps = torch.finfo(dtype).eps
    # Per slope, since that is how much an input moves with the rounded output.
    scale = 1 + x.abs() + (y.abs() + exact.alpha_n) / slope.abs()
    assert ((found.double() - x).abs() / scale).max() < 15 * eps
    assert ((found_slope.double() - slope).abs() / (scale * (1 + exact.alpha_n + slope.abs()))).max() < eps


@each_wide_dtype
@each_parameters
def test_next_to_the_turning_point_the_error_is_the_root_of_a_rounding(
    parameters: tuple[float, float, float], dtype: torch.dtype
) -> None:
    exact = curve_of(parameters)
    x = exact.x_min + torch.linspace(-0.05, 0.05, 4001, dtype=torch.float64)
    y, slope = output_and_slope(exact, x)
    _, found = curve_of(parameters, dtype).invert(y.to(dtype), x < exact.x_min, dtype)
    assert (found.double() - slope).abs().max() < exact.alpha_n * torch.finfo(dtype).eps ** 0.5


@each_parameters
def test_every_number_is_inverted_to_a_number(parameters: tuple[float, float, float]) -> None:
    y = all_numbers(torch.bfloat16).float()
    curve = curve_of(parameters, torch.float32)
    for is_left in (torch.zeros_like(y).bool(), torch.ones_like(y).bool()):
        for values in curve.invert(y, is_left, torch.bfloat16):
            assert values[y.isfinite()].isfinite().all()
            assert values[y.isnan()].isnan().all()


def test_a_factor_that_rounds_to_beta_leaves_the_exponential_alone() -> None:
    curve = curve_of((0.8, 0.5, 0.5), torch.float32)
    x = torch.linspace(-5, -0.1, 100)
    found, slope = curve.invert(0.5 * torch.expm1(x), x < curve.x_min, torch.float32)
    assert curve.x_min.item() < -16
    torch.testing.assert_close(slope, 0.5 * torch.exp(x), rtol=0, atol=5e-7)
    torch.testing.assert_close(found, x, rtol=0, atol=5e-5)
