"""Chooses how the derivative of an activation is computed from its output: looked up, or evaluated."""

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

# From so many elements on, making a table (which is kept) costs less than it saves.
TABLE_FROM = 1 << 18

# ``D(y, side)`` for pieces of a tensor, shape (size,), and their side bits, uint8, shape (ceil(size / 8),). The result,
# as of `formula.Slopes`, is valid until the next call.
SlopesOf = Callable[[Tensor, Tensor | None], Tensor]


def slopes_of(curve: Curve, like: Tensor) -> SlopesOf:
    """What computes a curve's derivative for pieces of a tensor such as this one."""
    if _is_worth_a_table(curve, like):
        return lookup(curve, like.dtype)
    evaluate = evaluator(curve, like)
    return lambda y, side: evaluate(y, _is_left(side, y))


def slopes_of_rebuilt(curve: Curve, product: Tensor) -> SlopesOf:
    """The same for outputs that `quotient.rebuild` took from pieces of a product such as this one."""
    if product.dtype.itemsize > 2:
        return slopes_of(curve, product)
    if _is_worth_a_table(curve, product):
        return lookup(curve, product.dtype, rebuilt=True)
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
