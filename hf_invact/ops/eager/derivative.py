"""Chooses how the derivative of an activation is computed from its output: with a lookup table, or by the formula."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...curves import Curve, Fit
from ..bits import unpack
from .formula import evaluator
from .lookup import lookup
from .tables import lines_suffice
from .unmultiply import uncertainty

# From this many elements on, making a table (which is cached) costs less than it saves.
TABLE_FROM = 1 << 18

# ``D(y, side)`` for pieces of a tensor, shape (size,), and their side bits, uint8, shape (ceil(size / 8),). As in
# `formula.Derivative`, the result is valid until the next call.
DerivativeFromBits = Callable[[Tensor, Tensor | None], Tensor]


def derivative_of_output(curve: Curve, like: Tensor) -> DerivativeFromBits:
    """A function that computes a curve's derivative from pieces of an output.

    Args:
        like: an output with the size, dtype and device of the one that the pieces are taken from.
    """
    if _is_worth_a_table(curve, like):
        return lookup(curve, like.dtype)
    evaluate = evaluator(curve, like)
    return lambda y, side: evaluate(y, _is_left(side, y))


def derivative_of_unmultiplied(curve: Curve, product: Tensor) -> DerivativeFromBits:
    """The same from outputs that `unmultiply.unmultiply` returned for pieces of a product like this one."""
    if product.dtype.itemsize > 2:
        return derivative_of_output(curve, product)
    if _is_worth_a_table(curve, product):
        return lookup(curve, product.dtype, unmultiplied=True)
    evaluate = evaluator(curve, product)
    return lambda y, side: evaluate(y, _is_left(side, y), uncertainty(y, product.dtype))


def _is_left(side: Tensor | None, y: Tensor) -> Tensor | None:
    return None if side is None else unpack(side)[: y.numel()]


def _is_worth_a_table(curve: Curve, like: Tensor) -> bool:
    is_real_cpu_tensor = type(like) is Tensor and like.device.type == "cpu" and not torch.compiler.is_compiling()
    if not is_real_cpu_tensor or like.numel() < TABLE_FROM:
        return False
    if like.dtype == torch.float32:
        return isinstance(curve.inverse, Fit) and lines_suffice(curve)
    return like.dtype.itemsize == 2
