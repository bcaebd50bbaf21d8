"""The exact formulas in float64: the derivative, and its inverse as a function of the output."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hf_invact import curves
from hf_invact.curves import CURVES, ClosedForm, Curve, clipped_gelu
from hf_invact.curves.closed import elu, leaky_relu, selu, softplus
from tests.helpers import CLOSED, FITTED, each_closed, exact_derivative

# Where the slope jumps, so that differences are meaningless; at the points themselves PyTorch's choice holds.
KINKS = {"relu6": (0.0, 6.0), "leaky_relu": (0.0,), "selu": (0.0,), "hardswish": (-3.0, 3.0)}
VARIANTS = [*CLOSED, softplus(beta=2.5, threshold=12.0), elu(alpha=0.3), elu(alpha=4.0), leaky_relu(negative_slope=0.3)]
each_variant = pytest.mark.parametrize("curve", VARIANTS, ids=[f"{curve.name}-{i}" for i, curve in enumerate(VARIANTS)])


def grid(curve: Curve, end: float = 9.0) -> Tensor:
    """Inputs in float64, none at a kink."""
    x = torch.linspace(-end, end, 20_000, dtype=torch.float64)
    assert not any((x == kink).any() for kink in KINKS.get(curve.name, ()))
    return x


def test_every_curve_is_fitted_exact_or_a_clipped_fit() -> None:
    assert {curve.name for curve in (*FITTED, *CLOSED)} == set(CURVES) - {"clipped_gelu"}


@each_variant
def test_derivative_is_the_forward_functions(curve: Curve) -> None:
    # sqrtsoftplus has a formula for where the softplus underflows; autograd has none.
    x = grid(curve).requires_grad_()
    (gradient,) = torch.autograd.grad(curve.forward(x).sum(), x)
    torch.testing.assert_close(exact_derivative(curve, x), gradient, rtol=1e-12, atol=1e-14)


@each_variant
def test_slope_inverts_the_output(curve: Curve) -> None:
    assert isinstance(curve.inverse, ClosedForm)
    x = grid(curve, end=3.5)
    x = x[(x - curve.x_min).abs() > 1e-3] if curve.x_min is not None else x
    y = curve.forward(x)
    before = y.clone()
    slope = curve.inverse.slope(y, None if curve.x_min is None else x < curve.x_min, y.dtype)
    assert torch.equal(y, before)
    assert slope.data_ptr() != y.data_ptr()
    # laplace loses digits on both sides of its mean; the others lose none here.
    rtol, atol = (1e-3, 1e-9) if curve.name == "laplace" else (1e-10, 0.0)
    torch.testing.assert_close(slope, exact_derivative(curve, x), rtol=rtol, atol=atol)


@each_closed
def test_has_a_turning_point_only_where_it_falls(curve: Curve) -> None:
    x = grid(curve)
    falls = exact_derivative(curve, x) < 0
    assert falls.any() == (curve.x_min is not None)
    if curve.x_min is None:
        assert curve.threshold(torch.float32) == -math.inf
    else:
        assert torch.equal(falls, (x > -3) & (x < curve.x_min))


@pytest.mark.parametrize("function", [elu, leaky_relu, softplus])
@pytest.mark.parametrize("value", [0.0, -0.5, math.nan])
def test_a_parameter_that_hides_the_input_is_refused(function: Callable[[float], Curve], value: float) -> None:
    with pytest.raises(ValueError, match=rf"{function.__name__} can be inverted only for a positive \w+, got {value}"):
        function(value)


def test_the_same_parameters_are_the_same_curve() -> None:
    assert elu(0.5) is elu(alpha=0.5)
    assert (elu(), leaky_relu(), softplus(1.0)) == (elu(1.0), leaky_relu(negative_slope=0.01), softplus(threshold=20.0))
    assert elu(0.5) is not elu(0.25)
    assert (elu(), selu(), leaky_relu(), softplus()) == tuple(
        CURVES[name] for name in ("elu", "selu", "leaky_relu", "softplus")
    )
    assert clipped_gelu(-10.0, 10.0) is CURVES["clipped_gelu"]
    assert curves.HARDSWISH is CURVES["hardswish"]
