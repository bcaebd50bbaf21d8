"""How far the derivative that the backward pass applies is from the exact one, beside the floor of the dtype."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..curves import Curve
from ..ops.eager import slopes_of
from .plots import DPI, VARIANT_COLOURS

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
DRAWS = 2_000_000
SEED = 0
# The derivative of relu2 grows without bound, and so does its absolute error.
LARGEST_INPUT = {"relu2": 8.0}
FIGURE_END = 6.0
SIGNIFICANT_DIGITS = 4


@dataclass(frozen=True)
class Floor:
    """What no formula beats that sees the rounded output and the side alone.

    Attributes:
        max: half the largest spread of the derivative among the inputs that share output and side.
        rms: of the derivative's deviation from their mean, for x ~ N(0, 1) rounded to the dtype.
        half_spreads: of each input's group.
    """

    max: float
    rms: float
    half_spreads: Tensor


def measure(curve: Curve, draws: Tensor) -> dict[str, dict[str, float]]:
    """Errors by dtype: for x ~ N(0, 1) the rms and the bias, and the largest of these and all half-precision inputs.

    Args:
        draws: float64, shape (draws,).
    """
    return {name: _measure(curve, draws.to(dtype)) for name, dtype in DTYPES.items()}


def _measure(curve: Curve, x: Tensor) -> dict[str, float]:
    error = error_of(curve, x)
    result = {"rms": _rms(error), "max": error.abs().max().item(), "bias": error.mean().item()}
    if x.dtype.itemsize == 2:
        everything = numbers(x.dtype, LARGEST_INPUT.get(curve.name, math.inf))
        floor = floor_of(curve, everything)
        result["max"] = max(result["max"], error_of(curve, everything).abs().max().item())
        result |= {"floor_rms": floor.rms, "floor_max": floor.max}
    return {name: float(f"{value:.{SIGNIFICANT_DIGITS}g}") for name, value in result.items()}


def error_of(curve: Curve, x: Tensor) -> Tensor:
    """The derivative that the backward pass multiplies with, before any rounding to the dtype, less the exact one."""
    y = curve.forward(x)
    slope = slopes_of(curve, y)(y, None if curve.x_min is None else _is_left(curve, x))
    return slope.double() - curve.derivative(x.double())


def floor_of(curve: Curve, x: Tensor) -> Floor:
    """The floor over these inputs, sorted numbers of one dtype without gaps."""
    exact = curve.derivative(x.double())
    _, output = torch.unique(curve.forward(x) + 0.0, return_inverse=True)  # -0 is 0
    _, group = torch.unique(2 * output + _is_left(curve, x), return_inverse=True)
    count = int(group.max()) + 1

    highest = torch.full((count,), -math.inf, dtype=torch.float64).scatter_reduce(0, group, exact, "amax")
    lowest = torch.full((count,), math.inf, dtype=torch.float64).scatter_reduce(0, group, exact, "amin")
    half_spreads = (highest - lowest) / 2

    weight = _probability(x.double())
    total = torch.zeros(count, dtype=torch.float64).index_add(0, group, weight)
    mean = torch.zeros(count, dtype=torch.float64).index_add(0, group, weight * exact) / total.clamp(min=1e-300)
    deviation = torch.where(weight > 0, exact - mean[group], 0.0)
    rms = (weight * deviation.square()).sum().div(weight.sum()).sqrt().item()
    return Floor(half_spreads.max().item(), rms, half_spreads[group])


def numbers(dtype: torch.dtype, largest: float = math.inf) -> Tensor:
    """All finite numbers of a half-precision dtype up to a size, in ascending order."""
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    return x[x.isfinite() & (x.abs() <= largest)].sort().values


def _is_left(curve: Curve, x: Tensor) -> Tensor:
    return x < curve.threshold(x.dtype)


def _probability(x: Tensor) -> Tensor:
    """That a draw from N(0, 1) rounds to each of these ascending numbers (in halves for -0 and 0)."""
    middles = (x[1:] + x[:-1]) / 2
    below = torch.cat([x.new_zeros(1), torch.special.ndtr(middles), x.new_ones(1)])
    return below.diff()


def _rms(error: Tensor) -> float:
    return error.square().mean().sqrt().item()


def figure(curve: Curve, title: str) -> Figure:
    """The error in bfloat16 against x beside the floor, which is 0 where each input has an output of its own."""
    x = numbers(torch.bfloat16, FIGURE_END)
    error, floor = error_of(curve, x).abs(), floor_of(curve, x).half_spreads
    shown = (x.abs() > 0.05).nonzero().flatten()  # nearer to 0 there are thousands of numbers, and nothing happens
    axes_options: dict[str, Any] = {"xlim": (-FIGURE_END, FIGURE_END), "ylim": (1e-6, 0.05), "yscale": "log"}
    drawing = Figure(figsize=(8.0, 3.6), dpi=DPI, layout="constrained", facecolor="white")
    axes = drawing.subplots(subplot_kw=axes_options)
    looks: tuple[tuple[Tensor, str, dict[str, Any]], ...] = (
        (error, "error of the derivative", {"s": 4, "c": "#EDA67A", "linewidths": 0}),
        (
            floor,
            "floor of the largest error (0 where each input has its own output)",
            {"s": 22, "c": VARIANT_COLOURS["plain"], "marker": "_", "linewidths": 1.6},
        ),
    )
    for values, label, look in looks:
        visible = shown[values[shown] >= 1e-6]
        axes.scatter(x[visible].float(), values[visible], label=label, **look)
    assert curve.x_min is not None
    axes.axvline(curve.x_min, color="#8C8C8C", linewidth=0.8, linestyle=":")
    axes.annotate(
        f"turning point {curve.x_min:.4f}", (curve.x_min, 2e-2), (6, 0), textcoords="offset points", color="#595959"
    )
    axes.set(title=title, xlabel="x: every bfloat16 number with |x| > 0.05", ylabel="absolute error")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E6E6E6", linewidth=0.7)
    axes.set_axisbelow(True)
    drawing.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9, markerscale=1.6)
    return drawing
