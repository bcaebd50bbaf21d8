"""The frozen record of an activation that can be inverted from its output and at most one side bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MeasuredError:
    """Error of the fitted derivative against the exact one, in float64 on a dense grid (no rounding of y)."""

    right: float
    left: float


@dataclass(frozen=True)
class Fit:
    """Fitted formulas for ``D(y, side) = f'(f^-1(y; side))``, one for each side of the turning point.

    Near the turning point ``y - y_min`` is quadratic in ``x - x_min``, so ``D`` is smooth in its square root;
    in the far left tail it is ``log(-y)`` that is smooth.

    Right of ``x_min``: ``D = P(u) / Q(u)`` with ``u = min(sqrt(y - y_min), s_max) - center``. Powers of the centred
    variable stay small, so the sums lose no digits in float32 (with powers of the root itself they lose two).
    Left of ``x_min``: ``D = y * P(r)`` with ``r = min(sqrt(log(y_min / y)), r_max)``.
    Coefficients are listed from the constant term up.
    """

    x_min: float
    y_min: float
    s_max: float
    center: float
    r_max: float
    right_numerator: tuple[float, ...]
    right_denominator: tuple[float, ...]
    left: tuple[float, ...]
    error: MeasuredError


@dataclass(frozen=True)
class ClosedForm:
    """A derivative that has an exact formula in the output.

    Attributes:
        slope: ``D(y, is_left)`` in PyTorch operations, for float32 or float64 ``y``; ``is_left`` holds bools of the
            same shape. It may write to neither.
        x_min: the turning point; None for an activation that only rises, whose output says it all.
    """

    slope: Callable[[Tensor, Tensor | None], Tensor]
    x_min: float | None = None


@dataclass(frozen=True)
class Curve:
    """An activation ``y = f(x)`` with at most one turning point, a minimum at ``x_min``.

    Attributes:
        name: the activation's name.
        forward: ``f``, for a tensor of any floating dtype.
        derivative: ``f'`` as a formula in ``x``; in float64 it is the reference that errors are measured against.
        inverse: the derivative as a function of the output, fitted or exact.
        scale: ``f(x) = g(scale * x) / scale``, where ``inverse`` belongs to ``g`` (1 except for quick_gelu).
        limits: the derivative is 0 where the output is not strictly between them (gelu_10).
    """

    name: str
    forward: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    inverse: Fit | ClosedForm
    scale: float = 1.0
    limits: tuple[float, float] | None = None

    @property
    def x_min(self) -> float | None:
        """The input at which ``f`` turns; None where it only rises, so that no side bit is needed."""
        return None if self.inverse.x_min is None else self.inverse.x_min / self.scale

    def threshold(self, dtype: torch.dtype) -> float:
        """The smallest number of ``dtype`` that is not left of ``x_min``; minus infinity where ``f`` only rises.

        An input of that dtype lies left of the turning point exactly when it is smaller than this. (A comparison
        with ``x_min`` itself would round ``x_min`` to the dtype first, possibly past an input.)
        """
        return -math.inf if self.x_min is None else _round_up(self.x_min, dtype)


def _round_up(value: float, dtype: torch.dtype) -> float:
    digits = 1 - round(math.log2(torch.finfo(dtype).eps))  # of the significand
    significand, exponent = math.frexp(value)
    return math.ldexp(math.ceil(math.ldexp(significand, digits)), exponent - digits)
