"""Fits the derivative of an activation as a function of its output (see `record.Fit` for the formulas)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial, chebyshev
from numpy.typing import NDArray

from .record import Fit, Formula, Ratio

Array = NDArray[Any]

POINTS = 1500  # sample points of a branch
# Numerator and denominator have the lowest degree whose error is at most this share of the steepest slope. (With a
# higher degree than needed, the ratio may have poles between the sample points.)
DEGREES = range(2, 9)
FINE = 1e-6
COARSE = 5e-5
LAWSON_STEPS = 100
PAST_END = 1e-4  # of half the branch's largest root
CENTERS = (1 / 3, 1 / 2, 2 / 3, 1)  # candidates for Ratio.center, as shares of the largest root


@dataclass(frozen=True)
class Branch:
    """One side of the turning point, sampled outwards from it; float64, shape (points,) each.

    Attributes:
        root: the square root of ``y - y_min``, without any rounding of the output.
        output: ``f``.
        derivative: ``f'``.
    """

    root: Array
    output: Array
    derivative: Array


def shares() -> Array:
    """Where on a branch its samples lie, from 0 to 1: evenly spaced in the root of the distance, denser at the end."""
    return np.asarray(np.sin(np.pi / 2 * np.arange(POINTS) / (POINTS - 1)) ** 2)


def fit(x_min: float | None, y_min: float, right: Branch, left: Branch | None) -> Fit:
    """Minimax fits of both branches, or of the right one alone for an activation that only rises."""
    steepest = float(np.abs(right.derivative).max())
    fine_right, coarse_right = _ratios(right, steepest, is_left=False)
    fine_left, coarse_left = (None, None) if left is None else _ratios(left, steepest, is_left=True)
    return Fit(x_min, y_min, Formula(fine_right, fine_left), Formula(coarse_right, coarse_left))


def _ratios(branch: Branch, steepest: float, is_left: bool) -> tuple[Ratio, Ratio]:
    """The fine fit and the coarse fit."""
    fine, coarse = FINE * steepest, COARSE * steepest
    ratios: list[Ratio] = []
    for degree in DEGREES:
        ratios.append(_fit_ratio(branch, is_left, degree))
        if ratios[-1].error <= fine:
            break
    best = min(ratios, key=lambda ratio: ratio.error)
    return best, next((ratio for ratio in ratios if ratio.error <= coarse), best)


def _fit_ratio(branch: Branch, is_left: bool, degree: int) -> Ratio:
    """Minimax rational fit: linearised least squares, reweighted by the error (Lawson) and by the last denominator."""
    root, target = branch.root, branch.derivative
    factor = branch.output if is_left else np.ones_like(root)
    basis = chebyshev.chebvander(2 * root / root[-1] - 1, degree)
    # Slightly past the left end as well: the rounding of a root may lead there, and a logarithm attracts poles there.
    between = chebyshev.chebvander(np.linspace(-1, 1 + PAST_END * is_left, 20 * POINTS), degree)[:, 1:]
    weight: Array = np.ones_like(root)
    denominator_values: Array = np.ones_like(root)
    best_error = np.inf
    best: Array = np.zeros(2 * degree + 1)
    system = np.hstack([factor[:, None] * basis, -target[:, None] * basis[:, 1:]])
    for _ in range(LAWSON_STEPS):
        scale = np.sqrt(weight) / np.abs(denominator_values)
        solution = np.linalg.lstsq(system * scale[:, None], target * scale, rcond=None)[0]
        denominator_values = 1 + basis[:, 1:] @ solution[degree + 1 :]
        error = np.abs(factor * (basis @ solution[: degree + 1]) / denominator_values - target)
        if error.max() < best_error and (1 + between @ solution[degree + 1 :]).min() > 0:  # no pole
            best_error, best = float(error.max()), solution
        weight = _reweight(weight, error)
    series = best[: degree + 1], np.concatenate([[1.0], best[degree + 1 :]])
    # Left of the turning point only infinity lies beyond the end, and its ratio must be NaN.
    end = np.inf if is_left else float(root[-1])
    candidates = [_centred(*series, root[-1], share * root[-1], end, best_error) for share in CENTERS]
    return min(candidates, key=lambda ratio: _float32_error(ratio, root, factor, target))


def _centred(numerator: Array, denominator: Array, span: float, center: float, end: float, error: float) -> Ratio:
    """The ratio of two Chebyshev series on the interval from 0 to ``span``, in powers of the distance to ``center``."""
    top, bottom = (_power_series(series, span)(Polynomial([center, 1.0])).coef for series in (numerator, denominator))
    constant = bottom[0]
    return Ratio(float(center), end, tuple((top / constant).tolist()), tuple((bottom / constant).tolist()), error)


def _float32_error(ratio: Ratio, root: Array, factor: Array, target: Array) -> float:
    u = root.astype(np.float32) - np.float32(ratio.center)
    with np.errstate(divide="ignore", invalid="ignore"):  # a pole
        values = factor * _horner(ratio.numerator, u) / _horner(ratio.denominator, u)
    return float(np.nan_to_num(np.abs(values - target), nan=np.inf).max())


def _horner(coefficients: tuple[float, ...], u: Array) -> Array:
    total = np.zeros_like(u)
    for coefficient in reversed(coefficients):
        total = total * u + np.float32(coefficient)
    return total


def _reweight(weight: Array, error: Array) -> Array:
    product: Array = weight * error
    return np.asarray(np.maximum(product / product.mean(), 1e-12))


def _power_series(coefficients: Array, end: float) -> Polynomial:
    """The polynomial with these Chebyshev coefficients on the interval from 0 to ``end``."""
    return Chebyshev(coefficients, domain=(0.0, end)).convert(kind=Polynomial)
