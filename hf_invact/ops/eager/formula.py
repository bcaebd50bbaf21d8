"""Evaluates the formula for the derivative of an activation, from its output."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from ...curves import ClosedForm, Curve, Fit, Ratio
from ..buffers import compute_dtype


class Derivative(Protocol):
    """``D(y, is_left)`` for pieces of a tensor, in float32 (float64 for float64)."""

    def __call__(self, y: Tensor, is_left: Tensor | None, error: Tensor | None = None) -> Tensor:
        """The derivative, shaped as the piece. It is valid until the next call, and may be overwritten.

        Args:
            y: outputs, shape (size,).
            is_left: bools, of the same shape; None for an activation that only rises.
            error: how far each output may be from the exact one; None for the error of rounding to its dtype.
        """


def evaluator(curve: Curve, like: Tensor) -> Derivative:
    """A function that evaluates a curve's formula on pieces of a tensor with the dtype and device of ``like``."""
    return _exact(curve.inverse, like) if isinstance(curve.inverse, ClosedForm) else _fitted(curve, like)


def _exact(form: ClosedForm, like: Tensor) -> Derivative:
    wide = compute_dtype(like)

    def exact(y: Tensor, is_left: Tensor | None, error: Tensor | None = None) -> Tensor:
        return form.slope(y.to(wide), is_left, like.dtype)

    return exact


def _fitted(curve: Curve, like: Tensor) -> Derivative:
    workspace = lru_cache(maxsize=1)(lambda size: Workspace(size, like, curve))

    def fitted(y: Tensor, is_left: Tensor | None, error: Tensor | None = None) -> Tensor:
        return workspace(y.numel()).derivative(y, is_left, error)

    return fitted


class Workspace:
    """Evaluates a curve's fitted derivative on pieces of one size, which share their buffers.

    Args:
        size: elements of a piece.
        like: has the device of the pieces, and the dtype that outputs were rounded to.
    """

    def __init__(self, size: int, like: Tensor, curve: Curve) -> None:
        assert isinstance(curve.inverse, Fit)
        self.size = size
        self.dtype = compute_dtype(like)
        self.curve = curve
        # Constants made of fake tensors must not outlive their mode.
        constants = _cached_constants if type(like) is Tensor else _Constants
        self.constants = constants(curve.inverse, like.dtype, like.device, self.dtype)
        self.error = curve.output_error(like.dtype)
        names = ("wide", "root", "centred", "right", "left", "denominator")
        self.buffers = {name: torch.empty(size, dtype=self.dtype, device=like.device) for name in names}
        self.mask = torch.empty(size, dtype=bits_dtype(self.dtype), device=like.device)

    def derivative(self, y: Tensor, is_left: Tensor | None, error: Tensor | float | None) -> Tensor:
        """``D(y, side)``, shape (size,), in a buffer that the next call overwrites. See `Derivative`."""
        wide = self._widen(y)
        known_to = self.error if error is None else error * self.curve.scale
        root = self._mean_root(self._rise(wide), known_to)
        slope = self._ratio(self.constants.right, root, "right")
        if is_left is None:
            return slope
        assert self.constants.left is not None
        left = self._ratio(self.constants.left, root, "left").mul_(wide)
        self.mask.copy_(is_left).neg_()
        select(self.mask, left, slope)
        if self.curve.limits is not None:
            low, high = self.curve.limits
            slope.masked_fill_((y <= low) | (y >= high), 0.0)
        return slope

    def _widen(self, y: Tensor) -> Tensor:
        scaled = self.curve.scale != 1.0
        wide = self.buffers["wide"].copy_(y) if scaled or y.dtype != self.dtype else y
        return wide.mul_(self.curve.scale) if scaled else wide

    def _rise(self, y: Tensor) -> Tensor:
        return torch.sub(y, self.constants.y_min_head, out=self.buffers["root"]).sub_(self.constants.y_min_tail)

    def _mean_root(self, rise: Tensor, error: Tensor | float) -> Tensor:
        """`rounding.mean_root` without new memory; overwrites its argument."""
        highest = torch.add(rise, error, out=self.buffers["centred"]).clamp_(min=0.0).sqrt_()
        return rise.sub_(error).clamp_(min=0.0).sqrt_().add_(highest).mul_(0.5)

    def _ratio(self, ratio: _RatioConstants, root: Tensor, buffer: str) -> Tensor:
        u = torch.clamp(root, max=ratio.end, out=self.buffers["centred"]).sub_(ratio.center)
        numerator = _polynomial(ratio.numerator, u, out=self.buffers[buffer])
        return numerator.div_(_polynomial(ratio.denominator, u, out=self.buffers["denominator"]))


def bits_dtype(dtype: torch.dtype) -> torch.dtype:
    """The integers of a floating dtype's size."""
    return torch.int64 if dtype == torch.float64 else torch.int32


def select(mask: Tensor, chosen: Tensor, result: Tensor) -> None:
    """Write ``chosen`` to ``result`` where the mask is -1, and leave it where the mask is 0; overwrites ``chosen``.

    As `torch.where`, but on the bits of the numbers, which is nine times faster on a CPU.
    """
    difference, bits = chosen.view(mask.dtype), result.view(mask.dtype)
    bits.bitwise_xor_(difference.bitwise_xor_(bits).bitwise_and_(mask))


def split(value: float, dtype: torch.dtype) -> tuple[float, float]:
    """A value rounded to a dtype, and the remainder.

    With ``y_min`` split in this way, ``(y - head) - tail`` keeps its digits next to the turning point, although float32
    cannot hold ``y_min``.
    """
    head = torch.tensor(value, dtype=dtype, device="cpu").item()
    return head, value - head


class _RatioConstants:
    def __init__(self, ratio: Ratio, dtype: torch.dtype, device: torch.device) -> None:
        self.end, self.center = ratio.end, ratio.center

        def tensors(values: Sequence[float]) -> tuple[Tensor, ...]:
            return tuple(torch.tensor(value, dtype=dtype, device=device) for value in values)

        self.numerator, self.denominator = tensors(ratio.numerator), tensors(ratio.denominator)


class _Constants:
    """A fit's numbers in the dtype of the evaluation, as tensors where an operation needs tensors."""

    def __init__(self, fit: Fit, rounded_to: torch.dtype, device: torch.device, dtype: torch.dtype) -> None:
        self.y_min_head, self.y_min_tail = split(fit.y_min, dtype)
        formula = fit.formula(rounded_to)
        self.right = _RatioConstants(formula.right, dtype, device)
        self.left = None if formula.left is None else _RatioConstants(formula.left, dtype, device)


_cached_constants = lru_cache(maxsize=None)(_Constants)


def _polynomial(coefficients: Sequence[Tensor], u: Tensor, *, out: Tensor) -> Tensor:
    """Horner's scheme, one pass over memory for each coefficient."""
    highest, second, *rest = reversed(coefficients)
    torch.addcmul(second, highest, u, out=out)
    for coefficient in rest:
        torch.addcmul(coefficient, out, u, out=out)
    return out
