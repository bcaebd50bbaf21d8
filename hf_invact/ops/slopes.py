"""Evaluates the derivative of an activation from its output, in plain PyTorch operations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Protocol

import torch
from torch import Tensor

from ..curves import ClosedForm, Curve, Fit


class Slopes(Protocol):
    """``D(y, is_left)`` for pieces of a tensor, in float32 (float64 for float64)."""

    def __call__(self, y: Tensor, is_left: Tensor | None, error: Tensor | None = None) -> Tensor:
        """The result, shaped as the piece, is valid until the next call.

        Args:
            y: outputs, shape (size,).
            is_left: bools, of the same shape; None for an activation that only rises.
            error: how far each output may be from the exact one; None takes what the rounding to its dtype makes.
        """


# From so many elements on, looking up all numbers of a half-precision dtype costs less than evaluating the formula.
TABLE_FROM = 1 << 18


def slopes_of(curve: Curve, like: Tensor) -> Slopes:
    """What evaluates a curve's derivative on pieces of a tensor such as this one."""
    evaluated = _evaluated(curve, like)
    is_real_cpu_tensor = type(like) is Tensor and like.device.type == "cpu" and not torch.compiler.is_compiling()
    if not is_real_cpu_tensor or like.dtype.itemsize != 2 or like.numel() < TABLE_FROM:
        return evaluated
    table = _table(curve, like.dtype)

    def looked_up(y: Tensor, is_left: Tensor | None, error: Tensor | None = None) -> Tensor:
        if y.dtype != like.dtype:  # rebuilt, and no number of the dtype
            return evaluated(y, is_left, error)
        index = y.view(torch.int16).to(torch.int32)
        if is_left is not None:
            index.add_(is_left, alpha=1 << 16)
        return table.index_select(0, index.add_(1 << 15))

    return looked_up


@cache
def _table(curve: Curve, dtype: torch.dtype) -> Tensor:
    """The derivative at every number of a half-precision dtype, in the order of their bits as integers.

    Returns:
        float32, shape (65536,), and for a curve with a turning point (131072,): right of it, then left.
    """
    with torch.no_grad(), torch.device("cpu"):
        y = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
        slopes = _evaluated(curve, y)
        if curve.x_min is None:
            return slopes(y, None).clone()
        return torch.cat([slopes(y, torch.full(y.shape, is_left)).clone() for is_left in (False, True)])


def _evaluated(curve: Curve, like: Tensor) -> Slopes:
    if isinstance(curve.inverse, ClosedForm):
        closed_form, wide = curve.inverse.slope, dtype_inside(like)

        def exact(y: Tensor, is_left: Tensor | None, error: Tensor | None = None) -> Tensor:
            return closed_form(y.to(wide), is_left, like.dtype)

        return exact
    workspace: _Workspace | None = None

    def fitted(y: Tensor, is_left: Tensor | None, error: Tensor | None = None) -> Tensor:
        nonlocal workspace
        if workspace is None or workspace.size != y.numel():
            workspace = _Workspace(y.numel(), like, curve)
        return workspace.derivative(y, is_left, error)

    return fitted


def dtype_inside(tensor: Tensor) -> torch.dtype:
    """The dtype in which formulas are evaluated."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


class _Workspace:
    """Evaluates a curve's fitted derivative on pieces of one size, in buffers that all of them share."""

    def __init__(self, size: int, like: Tensor, curve: Curve) -> None:
        assert isinstance(curve.inverse, Fit)
        self.size = size
        self.dtype = dtype_inside(like)
        self.curve, self.fit = curve, curve.inverse
        # Constants for fake tensors must not outlive their mode.
        constants = _cached_constants if type(like) is Tensor else _Constants
        self.constants = constants(self.fit, like.device, self.dtype)
        self.error = curve.output_error(like.dtype)
        names = ("wide", "root", "right", "left", "denominator")
        self.buffers = {name: torch.empty(size, dtype=self.dtype, device=like.device) for name in names}
        self.bits_dtype = torch.int64 if self.dtype == torch.float64 else torch.int32
        self.mask = torch.empty(size, dtype=self.bits_dtype, device=like.device)

    def derivative(self, y: Tensor, is_left: Tensor | None, error: Tensor | None) -> Tensor:
        """``D(y, side)``, shape (size,), in a buffer that the next call overwrites."""
        wide = self._widen(y)
        rise = self._rise(wide)
        known_to = self.error if error is None else error * self.curve.scale
        if is_left is None:
            return self._right(self._mean_root(rise, known_to))
        self.mask.copy_(is_left).neg_()
        root = self._mean_root(self._select(self._rise_of_logarithm(wide), rise), known_to)
        slope = self._select(self._left(wide, root), self._right(root))
        if self.curve.limits is not None:
            low, high = self.curve.limits
            slope.masked_fill_((y <= low) | (y >= high), 0.0)
        return slope

    def _select(self, left: Tensor, right: Tensor) -> Tensor:
        """`torch.where`, written to `right`, on the bits of the numbers: nine times faster on a CPU."""
        difference, result = left.view(self.bits_dtype), right.view(self.bits_dtype)
        result.bitwise_xor_(difference.bitwise_xor_(result).bitwise_and_(self.mask))
        return right

    def _widen(self, y: Tensor) -> Tensor:
        scaled = self.curve.scale != 1.0
        wide = self.buffers["wide"].copy_(y) if scaled or y.dtype != self.dtype else y
        return wide.mul_(self.curve.scale) if scaled else wide

    def _rise(self, y: Tensor) -> Tensor:
        return torch.sub(y, self.constants.y_min_head, out=self.buffers["root"]).sub_(self.constants.y_min_tail)

    def _rise_of_logarithm(self, y: Tensor) -> Tensor:
        fit = self.fit
        ratio = torch.mul(y, 1.0 / fit.y_min, out=self.buffers["left"])
        # A logarithm of what is not positive is slow, and the other side needs none.
        return ratio.clamp_(min=math.exp(fit.left_end**2 / fit.y_min)).log_().mul_(fit.y_min)

    def _mean_root(self, rise: Tensor, error: Tensor | float) -> Tensor:
        """`rounding.mean_root` without new memory; overwrites its argument."""
        highest = torch.add(rise, error, out=self.buffers["right"]).clamp_(min=0.0).sqrt_()
        return rise.sub_(error).clamp_(min=0.0).sqrt_().add_(highest).mul_(0.5)

    def _left(self, y: Tensor, root: Tensor) -> Tensor:
        # Not clamped to left_end: the logarithm's argument was.
        slope = _polynomial(self.constants.left, root, out=self.buffers["left"]).mul_(y)
        return slope.addcmul_(y, self.constants.zero)  # NaN where y is infinite

    def _right(self, root: Tensor) -> Tensor:
        constants = self.constants
        u = root.clamp_(max=self.fit.right_end).sub_(self.fit.center)
        ratio = _polynomial(constants.right_numerator, u, out=self.buffers["right"])
        return ratio.div_(_polynomial(constants.right_denominator, u, out=self.buffers["denominator"]))


class _Constants:
    """A fit's numbers in the dtype of the evaluation. As tensors where an operation needs them so."""

    def __init__(self, fit: Fit, device: torch.device, dtype: torch.dtype) -> None:
        # Split, so that y - y_min keeps its digits next to the turning point although float32 cannot hold y_min.
        self.y_min_head = torch.tensor(fit.y_min, dtype=dtype, device="cpu").item()
        self.y_min_tail = fit.y_min - self.y_min_head

        def tensors(values: Sequence[float]) -> tuple[Tensor, ...]:
            return tuple(torch.tensor(value, dtype=dtype, device=device) for value in values)

        self.zero = torch.zeros((), dtype=dtype, device=device)
        self.right_numerator = tensors(fit.right_numerator)
        self.right_denominator = tensors(fit.right_denominator)
        self.left = tensors(fit.left)


_cached_constants = lru_cache(maxsize=None)(_Constants)


def _polynomial(coefficients: Sequence[Tensor], u: Tensor, *, out: Tensor) -> Tensor:
    """Horner's scheme, one pass over memory for each coefficient."""
    highest, second, *rest = reversed(coefficients)
    torch.addcmul(second, highest, u, out=out)
    for coefficient in rest:
        torch.addcmul(coefficient, out, u, out=out)
    return out
