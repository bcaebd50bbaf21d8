"""The curves' records: each has its turning point where it says, and knows on which side of it an input lies."""

from __future__ import annotations

import math

import pytest
import torch

from hf_invact.curves import CURVES, Curve
from tests.helpers import FITTED, all_numbers, dtype_name, each_fitted, each_half_dtype, exact_derivative

# To 20 digits, calculated with 40; quick_gelu(x) is silu(1.702 x) / 1.702.
TURNING_POINTS = {
    "gelu": (-0.75179152469356445746, -0.16997120747990366169),
    "gelu_tanh": (-0.75246142207101625849, -0.17004075057125405064),
    "silu": (-1.2784645427610737951, -0.27846454276107379511),
    "quick_gelu": (-1.2784645427610737951 / 1.702, -0.27846454276107379511 / 1.702),
    "mish": (-1.1924312145154952121, -0.30884341301725040663),
}


def test_every_fitted_curve_has_a_known_turning_point() -> None:
    assert {curve.name for curve in FITTED} == set(TURNING_POINTS)


def test_curves_are_listed_by_their_names() -> None:
    assert all(name == curve.name for name, curve in CURVES.items())


@each_fitted
def test_turning_point(curve: Curve) -> None:
    x_min, y_min = TURNING_POINTS[curve.name]
    x = torch.tensor(x_min, dtype=torch.float64)
    assert curve.x_min == pytest.approx(x_min, rel=1e-15)
    assert curve.inverse.y_min / curve.scale == pytest.approx(y_min, rel=1e-15)
    assert curve.forward(x).item() == pytest.approx(y_min, rel=1e-14)
    assert curve.derivative(x).item() == pytest.approx(0, abs=1e-15)


@each_fitted
def test_derivative_is_the_forward_functions(curve: Curve) -> None:
    x = torch.linspace(-30, 30, 60_001, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(curve.forward(x).sum(), x)
    torch.testing.assert_close(exact_derivative(curve, x), gradient, rtol=0, atol=1e-14)


@each_fitted
def test_falls_left_of_the_turning_point_and_rises_right_of_it(curve: Curve) -> None:
    distance = torch.logspace(-6, math.log10(5), 10_000, dtype=torch.float64)
    assert (exact_derivative(curve, curve.x_min - distance) < 0).all()
    assert (exact_derivative(curve, curve.x_min + distance) > 0).all()


@each_half_dtype
@each_fitted
def test_threshold_splits_all_numbers_of_half_precision_at_the_turning_point(curve: Curve, dtype: torch.dtype) -> None:
    x = all_numbers(dtype)
    x = x[x.isfinite()]
    assert torch.equal(x < curve.threshold(dtype), x.double() < curve.x_min)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_name)
@each_fitted
def test_threshold_is_the_first_number_not_left_of_the_turning_point(curve: Curve, dtype: torch.dtype) -> None:
    threshold = torch.tensor(curve.threshold(dtype), dtype=dtype)
    before = torch.nextafter(threshold, torch.tensor(-math.inf, dtype=dtype))
    assert threshold.item() == curve.threshold(dtype)
    assert before.item() < curve.x_min <= threshold.item()
