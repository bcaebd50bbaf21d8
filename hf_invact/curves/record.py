"""The frozen record of an activation whose derivative can be computed from its output and at most one side bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from .keys import new_key
from .rounding import RiseAdjustment, output_error, rise_adjustment, round_up


@dataclass(frozen=True)
class Ratio:
    """``P(u) / Q(u)`` with ``u = min(root, end) - center``.

    Powers of the centred variable stay small, so that the sums lose no digits in float32 (with powers of the root
    itself they lose two). Coefficients are listed from the constant term up. ``Q`` is positive.

    Attributes:
        error: the largest error of the derivative, in float64 on a dense grid (no rounding of y).
    """

    center: float
    end: float
    numerator: tuple[float, ...]
    denominator: tuple[float, ...]
    error: float


@dataclass(frozen=True)
class Formula:
    """``D(y, side) = f'(f^-1(y; side))``: the right ratio, and left of the turning point ``y`` times the left ratio.

    An activation that only rises has the right side alone.
    """

    right: Ratio
    left: Ratio | None

    @property
    def error(self) -> float:
        """The larger error of both sides."""
        return max(side.error for side in (self.right, self.left) if side is not None)


@dataclass(frozen=True)
class Fit:
    """Fitted formulas for the derivative as a function of the output.

    Near the turning point ``y - y_min`` is quadratic in ``x - x_min``, so the derivative is smooth in the square root
    of this rise, on both sides. The variable of the formulas is its mean root (see `rounding.mean_root`).

    Attributes:
        x_min: the turning point; None for an activation that only rises, from ``y_min`` on.
        fine: for float32 and float64.
        coarse: for half precision: fewer operations, with an error that is small beside that of the rounded output.
    """

    x_min: float | None
    y_min: float
    fine: Formula
    coarse: Formula

    def formula(self, dtype: torch.dtype) -> Formula:
        """The formula for outputs that were rounded to a dtype."""
        return self.coarse if dtype.itemsize == 2 else self.fine


@dataclass(frozen=True)
class ClosedForm:
    """A derivative that has an exact formula in the output.

    Attributes:
        slope: ``D(y, is_left, dtype)`` in PyTorch operations, for float32 or float64 ``y`` that was rounded to
            ``dtype``; ``is_left`` holds bools of the same shape. It must not write to either, and returns new memory.
        x_min: the turning point; None for an activation that only rises, which needs no side bit.
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
        jumps: the derivative jumps at an output other than 0, or changes nearly as fast. It then needs the output
            itself, because an output with a rounding error may lie on the other side of the jump.
        key: stands for the curve in the arguments of operators (see `keys`).
    """

    name: str
    forward: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    inverse: Fit | ClosedForm
    scale: float = 1.0
    limits: tuple[float, float] | None = None
    jumps: bool = False
    key: str = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        # At once, before anything is compiled: compilers can read a key, but not all of them can make one.
        object.__setattr__(self, "key", new_key(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> Curve:
        return self

    def __reduce__(self) -> tuple[type[Curve], tuple[Any, ...]]:
        """Without the key, which may stand for another curve in another process."""
        return type(self), tuple(getattr(self, each.name) for each in fields(self) if each.init)

    def __hash__(self) -> int:
        """Of the name alone: hashing all coefficients would take longer than the rest of a lookup."""
        return hash(self.name)

    @property
    def x_min(self) -> float | None:
        """The input at which ``f`` turns; None if it only rises, so that no side bit is needed."""
        return None if self.inverse.x_min is None else self.inverse.x_min / self.scale

    def threshold(self, dtype: torch.dtype) -> float:
        """The smallest number of ``dtype`` that is not left of ``x_min``; minus infinity if ``f`` only rises.

        An input of that dtype lies left of the turning point exactly when it is smaller than this. (A comparison
        with ``x_min`` itself would round ``x_min`` to the dtype first, possibly past an input.)
        """
        return -math.inf if self.x_min is None else round_up(self.x_min, dtype)

    def output_error(self, dtype: torch.dtype) -> float:
        """The largest error of the fit's ``y`` next to the turning point, for outputs of this dtype."""
        assert isinstance(self.inverse, Fit)
        return self.scale * output_error(self.inverse.y_min / self.scale, dtype)

    def rise_adjustment(self, dtype: torch.dtype, *, is_between: bool = False) -> RiseAdjustment:
        """`rounding.rise_adjustment` for the fit's ``y``."""
        assert isinstance(self.inverse, Fit)
        of_output = rise_adjustment(self.inverse.y_min / self.scale, dtype, is_between=is_between)
        return RiseAdjustment(*(self.scale * number for number in of_output))
