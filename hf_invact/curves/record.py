"""The frozen record of an activation that can be inverted from its output and at most one side bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .rounding import output_error, round_up


@dataclass(frozen=True)
class MeasuredError:
    """Error of the fitted derivative against the exact one, in float64 on a dense grid (no rounding of y)."""

    right: float
    left: float


@dataclass(frozen=True)
class Fit:
    """Fitted formulas for ``D(y, side) = f'(f^-1(y; side))``, one for each side of the turning point.

    Near the turning point ``y - y_min`` is quadratic in ``x - x_min``, so ``D`` is smooth in its square root; in the
    far left tail it is ``log(-y)`` that is smooth. Hence the variable of each side, the mean root (see
    `rounding.mean_root`) of how far ``y`` has risen:

    - right of ``x_min``: ``D = P(u) / Q(u)`` with ``u = min(root(y - y_min), right_end) - center``. Powers of the
      centred variable stay small, so the sums lose no digits in float32 (with the root's own powers they lose two);
    - left of it: ``D = y * P(r)`` with ``r = min(root(y_min * log(y / y_min)), left_end)``. Its argument is
      ``y - y_min`` to first order, so that what is known of one rise up to a rounding holds for the other.

    Coefficients are listed from the constant term up. An activation that only rises, from ``y_min`` on, has the right
    side alone.
    """

    x_min: float | None
    y_min: float
    right_end: float
    center: float
    left_end: float
    right_numerator: tuple[float, ...]
    right_denominator: tuple[float, ...]
    left: tuple[float, ...]
    error: MeasuredError


@dataclass(frozen=True)
class ClosedForm:
    """A derivative that has an exact formula in the output.

    Attributes:
        slope: ``D(y, is_left, dtype)`` in PyTorch operations, for float32 or float64 ``y`` that was rounded to
            ``dtype``; ``is_left`` holds bools of the same shape. It may write to neither.
        x_min: the turning point; None for an activation that only rises, whose output says it all.
    """

    slope: Callable[[Tensor, Tensor | None, torch.dtype], Tensor]
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
        limits: the derivative is 0 where the output is not strictly between them (gelu_10, relu6).
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
        return -math.inf if self.x_min is None else round_up(self.x_min, dtype)

    def output_error(self, dtype: torch.dtype) -> float:
        """How far the fit's ``y`` may be from the exact one next to the turning point, for outputs of this dtype."""
        assert isinstance(self.inverse, Fit)
        return self.scale * output_error(self.inverse.y_min / self.scale, dtype)
