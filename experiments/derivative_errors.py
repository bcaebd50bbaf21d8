"""Measures the errors of the derivatives for results/derivative-errors.json, and draws them."""

from __future__ import annotations

import math
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from hf_invact.curves import Curve
from hf_invact.display.figures import DPI
from hf_invact.ops import accuracy

from .common.colours import VARIANT_COLOURS

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
DRAWS = 2_000_000
SEED = 0
# The derivative of relu2 grows without bound, and so does its absolute error.
LARGEST_INPUT = {"relu2": 8.0}
NEXT_TO_TURNING_POINT = 0.05
FIGURE_END = 6.0
SIGNIFICANT_DIGITS = 4


def measure_derivative(curve: Curve, draws: Tensor) -> dict[str, dict[str, float]]:
    """Errors by dtype (see `accuracy.DerivativeError`), and their maximum away from the turning point.

    Args:
        draws: from N(0, 1), float64, shape (draws,).
    """
    return {name: _errors_of(curve, draws.to(dtype)) for name, dtype in DTYPES.items()}


def _errors_of(curve: Curve, x: Tensor) -> dict[str, float]:
    error = accuracy.measure_derivative_error(curve, x, LARGEST_INPUT.get(curve.name, math.inf))
    result = {"rms": error.rms, "max": error.max, "bias": error.bias}
    if curve.x_min is not None:
        away = x[(x.double() - curve.x_min).abs() > NEXT_TO_TURNING_POINT]
        result["max_away"] = accuracy.error_of(curve, away).abs().max().item()
    if error.floor is not None:
        result |= {"floor_rms": error.floor.rms, "floor_max": error.floor.max}
    return {name: float(f"{value:.{SIGNIFICANT_DIGITS}g}") for name, value in result.items()}


def figure(curve: Curve, title: str) -> Figure:
    """The error in bfloat16 over x, and the smallest possible one, which is 0 where each input has its own output."""
    x = accuracy.numbers(torch.bfloat16, FIGURE_END)
    error, (_, floor) = accuracy.error_of(curve, x).abs(), accuracy.floor_of(curve, x)
    shown = (x.abs() > 0.05).nonzero().flatten()  # closer to 0 there are thousands of numbers, and nothing to see
    axes_options: dict[str, Any] = {"xlim": (-FIGURE_END, FIGURE_END), "ylim": (1e-6, 0.05), "yscale": "log"}
    drawing = Figure(figsize=(8.0, 3.6), dpi=DPI, layout="constrained", facecolor="white")
    axes = drawing.subplots(subplot_kw=axes_options)
    styles: tuple[tuple[Tensor, str, dict[str, Any]], ...] = (
        (error, "error of the derivative", {"s": 4, "c": "#EDA67A", "linewidths": 0}),
        (
            floor,
            "floor of the largest error (0 where each input has its own output)",
            {"s": 22, "c": VARIANT_COLOURS["plain"], "marker": "_", "linewidths": 1.6},
        ),
    )
    for values, label, style in styles:
        visible = shown[values[shown] >= 1e-6]
        axes.scatter(x[visible].float(), values[visible], label=label, **style)
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
