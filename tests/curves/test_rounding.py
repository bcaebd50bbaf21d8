"""Estimates of roots next to a turning point, against every possible root."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_invact.curves import CURVES, Curve, Fit
from hf_invact.curves.rounding import RiseAdjustment, mean_root, nearly_mean_root, output_error, rise_adjustment
from tests.helpers import HALF_DTYPES, dtype_name

TURNING = [curve for curve in CURVES.values() if isinstance(curve.inverse, Fit) and curve.x_min is not None]
each_curve = pytest.mark.parametrize("curve", TURNING, ids=lambda curve: curve.name)


def worst(root: Tensor, rise: Tensor, error: float) -> Tensor:
    """The distance from the farther end of the range of possible roots."""
    highest, lowest = ((rise + sign * error).clamp(min=0).sqrt() for sign in (1, -1))
    return torch.maximum(highest - root, root - lowest) / error**0.5


def test_the_mean_root_is_the_midpoint_of_the_possible_roots() -> None:
    rise = torch.linspace(-1, 100, 100_001, dtype=torch.float64)
    mean = worst(mean_root(rise, 1.0), rise, 1.0)
    assert mean.max() == pytest.approx(0.5**0.5, rel=1e-3)
    assert (mean <= worst(mean_root(rise, 1.0) + 1e-3, rise, 1.0)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_name)
@each_curve
def test_one_root_is_nearly_as_good_for_wide_outputs(curve: Curve, dtype: torch.dtype) -> None:
    assert isinstance(curve.inverse, Fit)
    error, adjustment = output_error(curve.inverse.y_min, dtype), rise_adjustment(curve.inverse.y_min, dtype)
    rise = torch.linspace(-1, 100, 100_001, dtype=torch.float64) * error
    root = nearly_mean_root(rise, adjustment)
    assert worst(root, rise, error).max() < 0.75
    assert root[-1] == pytest.approx(rise[-1].sqrt().item(), rel=1e-6)


@pytest.mark.parametrize("is_between", [False, True], ids=["number", "middle"])
@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=dtype_name)
@each_curve
def test_one_root_is_nearly_as_good_for_the_outputs_of_half_precision(
    curve: Curve, dtype: torch.dtype, is_between: bool
) -> None:
    assert isinstance(curve.inverse, Fit)
    y_min = curve.inverse.y_min
    error = output_error(y_min, dtype)
    numbers = torch.arange(-1.0, 0.0, 2 * error, dtype=torch.float64)  # smaller numbers of a dtype lie closer together
    outputs = numbers[(numbers >= y_min - error) & (numbers < y_min / 2)]
    if is_between:
        outputs, error = outputs + error, 2 * error
    rise = outputs - y_min
    root = nearly_mean_root(rise, rise_adjustment(y_min, dtype, is_between=is_between))
    assert torch.allclose(root[:2], mean_root(rise[:2], error), rtol=1e-9, atol=0)
    assert worst(root, rise, error).max() < 0.75


def test_without_an_error_it_is_the_root() -> None:
    rise = torch.tensor([-1.0, 0.0, 0.5, 7.0, torch.inf])
    assert torch.equal(nearly_mean_root(rise, rise_adjustment(0.0, torch.bfloat16)), rise.clamp(min=0).sqrt())


def test_what_is_missing_of_the_rise_is_subtracted() -> None:
    rise, adjustment = torch.linspace(-1, 100, 1001, dtype=torch.float64), RiseAdjustment(floor=0.4, offset=-0.95)
    assert torch.allclose(
        nearly_mean_root(rise + 0.25, adjustment, missing=0.25), nearly_mean_root(rise, adjustment), rtol=1e-12
    )


@each_curve
def test_infinite_and_unknown_outputs_stay_so(curve: Curve) -> None:
    root = nearly_mean_root(torch.tensor([torch.inf, torch.nan]), curve.rise_adjustment(torch.float32))
    assert root[0] == torch.inf
    assert root[1].isnan()
