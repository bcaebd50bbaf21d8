"""Measures the error of the derivative that the backward pass uses, and the error that no formula can avoid."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..curves import Curve
from .eager.activation import forward
from .eager.derivative import derivative_of_output


@dataclass(frozen=True)
class Floor:
    """The smallest possible error of a formula in the rounded output and the side bit.

    Attributes:
        max: half the largest spread of the derivative among the inputs that share output and side.
        rms: of the derivative's deviation from their mean, for x ~ N(0, 1) rounded to the dtype.
    """

    max: float
    rms: float


@dataclass(frozen=True)
class DerivativeError:
    """Error of the derivative before any rounding to the dtype.

    Attributes:
        rms, bias: for x ~ N(0, 1) rounded to the dtype.
        max: the largest of these, and of all finite inputs in half precision.
        floor: in half precision, where all inputs can be listed.
    """

    rms: float
    bias: float
    max: float
    floor: Floor | None


def measure_derivative_error(curve: Curve, draws: Tensor, largest: float = math.inf) -> DerivativeError:
    """Measure the error of a curve's derivative for outputs of the draws' dtype.

    Args:
        draws: from N(0, 1), shape (draws,), rounded to the dtype to measure.
        largest: inputs beyond this size are left out, for a derivative without bound.
    """
    draws = _with_finite_derivative(curve, draws)
    error = error_of(curve, draws)
    rms, bias, worst = error.square().mean().sqrt().item(), error.mean().item(), error.abs().max().item()
    if draws.dtype.itemsize > 2:
        return DerivativeError(rms, bias, worst, None)
    everything = _with_finite_derivative(curve, numbers(draws.dtype, largest).to(draws.device))
    worst = max(worst, error_of(curve, everything).abs().max().item())
    floor, _ = floor_of(curve, everything)
    return DerivativeError(rms, bias, worst, floor)


def error_of(curve: Curve, x: Tensor) -> Tensor:
    """The derivative that the backward pass uses, before any rounding to the dtype, minus the exact one."""
    y, side = forward(x, curve)
    slope = derivative_of_output(curve, y)(y, side)
    return slope.double() - curve.derivative(x.double())


def floor_of(curve: Curve, x: Tensor) -> tuple[Floor, Tensor]:
    """The floor over these inputs, and half the spread of the derivative in the group of each input.

    Args:
        x: sorted numbers of one dtype without gaps.
    """
    exact = curve.derivative(x.double())
    _, output = torch.unique(curve.forward(x) + 0.0, return_inverse=True)  # -0 is 0
    _, group = torch.unique(2 * output + _is_left(curve, x), return_inverse=True)
    count = int(group.max()) + 1

    highest = exact.new_full((count,), -math.inf).scatter_reduce(0, group, exact, "amax")
    lowest = exact.new_full((count,), math.inf).scatter_reduce(0, group, exact, "amin")
    half_spreads = (highest - lowest) / 2

    weight = _probability(x.double())
    total = exact.new_zeros(count).index_add(0, group, weight)
    mean = exact.new_zeros(count).index_add(0, group, weight * exact) / total.clamp(min=1e-300)
    deviation = torch.where(weight > 0, exact - mean[group], 0.0)
    rms = (weight * deviation.square()).sum().div(weight.sum()).sqrt().item()
    return Floor(half_spreads.max().item(), rms), half_spreads[group]


def numbers(dtype: torch.dtype, largest: float = math.inf) -> Tensor:
    """All finite numbers of a half-precision dtype up to a size, in ascending order, on the CPU."""
    x = torch.arange(-(2**15), 2**15, device="cpu").to(torch.int16).view(dtype)
    return x[x.isfinite() & (x.abs() <= largest)].sort().values


def _with_finite_derivative(curve: Curve, x: Tensor) -> Tensor:
    """The inputs whose exact derivative is finite: a user's formula may overflow far out."""
    return x[curve.derivative(x.double()).isfinite()]


def _is_left(curve: Curve, x: Tensor) -> Tensor:
    return x < curve.threshold(x.dtype)


def _probability(x: Tensor) -> Tensor:
    """The probability that a draw from N(0, 1) rounds to each of these ascending numbers (-0 and 0 get half each)."""
    middles = (x[1:] + x[:-1]) / 2
    below = torch.cat([x.new_zeros(1), torch.special.ndtr(middles), x.new_ones(1)])
    return below.diff()
