"""Fits the derivative of an activation as a function of its output (see `record.Fit` for the formulas)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial, chebyshev
from numpy.typing import NDArray

from .record import Fit, MeasuredError

Array = NDArray[Any]

POINTS = 1500  # sample points of a branch
RIGHT_DEGREE = 8  # of the numerator and of the denominator
LEFT_DEGREE = 10
ENOUGH = 1e-7  # a fit that is this good needs no higher degree
LAWSON_STEPS = 100
CENTERS = (1 / 3, 1 / 2, 2 / 3)  # candidates for Fit.center, as shares of the branch's largest root


@dataclass(frozen=True)
class Branch:
    """One side of the turning point, sampled outwards from it; float64, shape (points,) each.

    Attributes:
        root: the variable of that side in `record.Fit`, without any rounding of the output.
        output: ``f``.
        derivative: ``f'``.
    """

    root: Array
    output: Array
    derivative: Array


def shares() -> Array:
    """How far along a branch its samples lie, from 0 to 1: evenly in the root of the distance, denser at the end."""
    return np.asarray(np.sin(np.pi / 2 * np.arange(POINTS) / (POINTS - 1)) ** 2)


def fit(
    x_min: float | None, y_min: float, right: Branch, left: Branch | None, degrees: Sequence[int] = (RIGHT_DEGREE,)
) -> Fit:
    """Minimax fits of both branches; of the right one alone for an activation that only rises.

    The right one has the first of these degrees that is enough, or the best. (More degrees than a function needs leave
    the ratio free to have poles between the sample points.)
    """
    ratio = _fit_rational(right.root, right.derivative, degrees[0])
    for degree in degrees[1:]:
        if ratio.error > ENOUGH:
            ratio = min(ratio, _fit_rational(right.root, right.derivative, degree), key=lambda ratio: ratio.error)
    polynomial, left_error = _fit_weighted_polynomial(left) if left is not None else ((), 0.0)
    return Fit(
        x_min=x_min,
        y_min=y_min,
        right_end=float(right.root[-1]),
        center=ratio.center,
        left_end=0.0 if left is None else float(left.root[-1]),
        right_numerator=ratio.numerator,
        right_denominator=ratio.denominator,
        left=polynomial,
        error=MeasuredError(right=ratio.error, left=left_error),
    )


@dataclass(frozen=True)
class _Rational:
    center: float
    numerator: tuple[float, ...]
    denominator: tuple[float, ...]
    error: float


def _fit_rational(s: Array, target: Array, degree: int) -> _Rational:
    """Minimax rational fit: linearised least squares, reweighted by the error (Lawson) and by the last denominator."""
    basis = chebyshev.chebvander(2 * s / s[-1] - 1, degree)
    between = chebyshev.chebvander(np.linspace(-1, 1, 20 * POINTS), degree)[:, 1:]
    weight: Array = np.ones_like(s)
    denominator_values: Array = np.ones_like(s)
    best_error = np.inf
    best: Array = np.zeros(2 * degree + 1)
    system = np.hstack([basis, -target[:, None] * basis[:, 1:]])
    for _ in range(LAWSON_STEPS):
        scale = np.sqrt(weight) / np.abs(denominator_values)
        solution = np.linalg.lstsq(system * scale[:, None], target * scale, rcond=None)[0]
        denominator_values = 1 + basis[:, 1:] @ solution[degree + 1 :]
        error = np.abs(basis @ solution[: degree + 1] / denominator_values - target)
        if error.max() < best_error and (1 + between @ solution[degree + 1 :]).min() > 0:  # no pole
            best_error, best = float(error.max()), solution
        weight = _reweight(weight, error)
    series = best[: degree + 1], np.concatenate([[1.0], best[degree + 1 :]])
    candidates = [_centred(*series, s[-1], share * s[-1], best_error) for share in CENTERS]
    return min(candidates, key=lambda rational: _float32_error(rational, s, target))


def _centred(numerator: Array, denominator: Array, end: float, center: float, error: float) -> _Rational:
    """The ratio of two Chebyshev series on the interval from 0 to ``end``, in powers of the distance to ``center``."""
    top, bottom = (_power_series(series, end)(Polynomial([center, 1.0])).coef for series in (numerator, denominator))
    constant = bottom[0]
    return _Rational(float(center), tuple((top / constant).tolist()), tuple((bottom / constant).tolist()), error)


def _float32_error(rational: _Rational, s: Array, target: Array) -> float:
    u = s.astype(np.float32) - np.float32(rational.center)
    with np.errstate(divide="ignore", invalid="ignore"):  # a pole
        ratio = _horner(rational.numerator, u) / _horner(rational.denominator, u)
    return float(np.nan_to_num(np.abs(ratio - target), nan=np.inf).max())


def _horner(coefficients: tuple[float, ...], u: Array) -> Array:
    total = np.zeros_like(u)
    for coefficient in reversed(coefficients):
        total = total * u + np.float32(coefficient)
    return total


def _fit_weighted_polynomial(branch: Branch) -> tuple[tuple[float, ...], float]:
    """Minimax fit of the derivative by the output times a polynomial in the root (Lawson)."""
    r, target = branch.root, branch.derivative
    basis = chebyshev.chebvander(2 * r / r[-1] - 1, LEFT_DEGREE) * branch.output[:, None]
    weight: Array = np.ones_like(r)
    best_error = np.inf
    best: Array = np.zeros(LEFT_DEGREE + 1)
    for _ in range(LAWSON_STEPS):
        scale = np.sqrt(weight)
        solution = np.linalg.lstsq(basis * scale[:, None], target * scale, rcond=None)[0]
        error = np.abs(basis @ solution - target)
        if error.max() < best_error:
            best_error, best = float(error.max()), solution
        weight = _reweight(weight, error)
    return tuple(_power_series(best, r[-1]).coef.tolist()), best_error


def _reweight(weight: Array, error: Array) -> Array:
    product: Array = weight * error
    return np.asarray(np.maximum(product / product.mean(), 1e-12))


def _power_series(coefficients: Array, end: float) -> Polynomial:
    """The polynomial with these Chebyshev coefficients on the interval from 0 to ``end``."""
    return Chebyshev(coefficients, domain=(0.0, end)).convert(kind=Polynomial)
