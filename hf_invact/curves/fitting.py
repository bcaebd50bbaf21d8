"""Fits the derivative of an activation as a function of its output (see `record.Fit` for the formulas).

The activation is given in mpmath arithmetic, so that ``y - y_min`` keeps its digits next to the turning point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import mpmath as mp
import numpy as np
from numpy.polynomial import Chebyshev, Polynomial, chebyshev
from numpy.typing import NDArray

from .record import Fit, MeasuredError

Array = NDArray[Any]

DIGITS = 40  # decimal digits of the working precision
POINTS = 1500  # sample points of a branch, denser towards its ends
RIGHT_DEGREE = 8  # of the numerator and of the denominator
LEFT_DEGREE = 10
LAWSON_STEPS = 100
CENTERS = (1 / 3, 1 / 2, 2 / 3)  # candidates for Fit.center, as shares of s_max


@dataclass(frozen=True)
class Problem:
    """An activation to fit: ``f``, ``f'``, a guess of the turning point, and how far each branch is sampled.

    ``right_end``: from here on ``f'`` is 1 to float32 precision. ``left_end``: from here on ``f`` underflows float32.
    """

    forward: Callable[[mp.mpf], mp.mpf]
    derivative: Callable[[mp.mpf], mp.mpf]
    x_min: float
    right_end: float
    left_end: float


def fit(problem: Problem) -> Fit:
    """Fit both branches of an activation with one minimum."""
    with mp.workdps(DIGITS):
        x_min = mp.findroot(problem.derivative, problem.x_min)
        y_min = problem.forward(x_min)
        # The angle spreads the points evenly in sqrt(x - x_min), which is where both variables are smooth.
        reach = [mp.sin(mp.pi / 2 * k / (POINTS - 1)) ** 2 for k in range(POINTS)]
        right_x = [x_min + (problem.right_end - x_min) * share for share in reach]
        left_x = [x_min + (problem.left_end - x_min) * share for share in reach]
        s = _array(mp.sqrt(max(problem.forward(x) - y_min, 0)) for x in right_x)
        left_y = [problem.forward(x) for x in left_x]
        r = _array(mp.sqrt(max(mp.log(y_min / y), 0)) for y in left_y)
        right = _fit_rational(s, _array(map(problem.derivative, right_x)))
        left, left_error = _fit_weighted_polynomial(r, _array(left_y), _array(map(problem.derivative, left_x)))
        return Fit(
            x_min=float(x_min),
            y_min=float(y_min),
            s_max=float(s[-1]),
            center=right.center,
            r_max=float(r[-1]),
            right_numerator=right.numerator,
            right_denominator=right.denominator,
            left=left,
            error=MeasuredError(right=right.error, left=left_error),
        )


@dataclass(frozen=True)
class _Rational:
    center: float
    numerator: tuple[float, ...]
    denominator: tuple[float, ...]
    error: float


def _array(values: Iterable[mp.mpf]) -> Array:
    return np.array([float(value) for value in values])


def _fit_rational(s: Array, target: Array) -> _Rational:
    """Minimax rational fit: linearised least squares, reweighted by the error (Lawson) and by the last denominator."""
    basis = chebyshev.chebvander(2 * s / s[-1] - 1, RIGHT_DEGREE)
    weight: Array = np.ones_like(s)
    denominator_values: Array = np.ones_like(s)
    best_error = np.inf
    best: Array = np.zeros(2 * RIGHT_DEGREE + 1)
    system = np.hstack([basis, -target[:, None] * basis[:, 1:]])
    for _ in range(LAWSON_STEPS):
        scale = np.sqrt(weight) / np.abs(denominator_values)
        solution = np.linalg.lstsq(system * scale[:, None], target * scale, rcond=None)[0]
        denominator_values = 1 + basis[:, 1:] @ solution[RIGHT_DEGREE + 1 :]
        error = np.abs(basis @ solution[: RIGHT_DEGREE + 1] / denominator_values - target)
        if error.max() < best_error and denominator_values.min() > 0:
            best_error, best = float(error.max()), solution
        weight = _reweight(weight, error)
    series = best[: RIGHT_DEGREE + 1], np.concatenate([[1.0], best[RIGHT_DEGREE + 1 :]])
    candidates = [_centred(*series, s[-1], share * s[-1], best_error) for share in CENTERS]
    return min(candidates, key=lambda rational: _float32_error(rational, s, target))


def _centred(numerator: Array, denominator: Array, end: float, center: float, error: float) -> _Rational:
    """The ratio of two Chebyshev series on the interval from 0 to ``end``, in powers of the distance to ``center``."""
    top, bottom = (_power_series(series, end)(Polynomial([center, 1.0])).coef for series in (numerator, denominator))
    constant = bottom[0]
    return _Rational(float(center), tuple((top / constant).tolist()), tuple((bottom / constant).tolist()), error)


def _float32_error(rational: _Rational, s: Array, target: Array) -> float:
    u = s.astype(np.float32) - np.float32(rational.center)
    ratio = _horner(rational.numerator, u) / _horner(rational.denominator, u)
    return float(np.abs(ratio - target).max())


def _horner(coefficients: tuple[float, ...], u: Array) -> Array:
    total = np.zeros_like(u)
    for coefficient in reversed(coefficients):
        total = total * u + np.float32(coefficient)
    return total


def _fit_weighted_polynomial(r: Array, y: Array, target: Array) -> tuple[tuple[float, ...], float]:
    """Minimax fit of ``target`` by ``y`` times a polynomial in ``r`` (Lawson)."""
    basis = chebyshev.chebvander(2 * r / r[-1] - 1, LEFT_DEGREE) * y[:, None]
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
