"""Chooses how the derivative of an activation is computed from its output: looked up, or evaluated."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..curves import Curve, Fit
from .formula import evaluator
from .quotient import uncertainty
from .tables import lookup

# From so many elements on, making a table (which is kept) costs less than it saves.
TABLE_FROM = 1 << 18

# ``D(y, is_left)`` for pieces of a tensor. The result, as of `formula.Slopes`, is valid until the next call.
SlopesOf = Callable[[Tensor, Tensor | None], Tensor]


def slopes_of(curve: Curve, like: Tensor) -> SlopesOf:
    """What computes a curve's derivative for pieces of a tensor such as this one."""
    return lookup(curve, like.dtype) if _is_worth_a_table(curve, like) else evaluator(curve, like)


def slopes_of_rebuilt(curve: Curve, product: Tensor) -> SlopesOf:
    """The same for outputs that `quotient.rebuild` took from pieces of a product such as this one."""
    if product.dtype.itemsize > 2:
        return slopes_of(curve, product)
    if _is_worth_a_table(curve, product):
        return lookup(curve, product.dtype, rebuilt=True)
    evaluated = evaluator(curve, product)
    return lambda y, is_left: evaluated(y, is_left, uncertainty(y, product.dtype))


def _is_worth_a_table(curve: Curve, like: Tensor) -> bool:
    is_real_cpu_tensor = type(like) is Tensor and like.device.type == "cpu" and not torch.compiler.is_compiling()
    if not is_real_cpu_tensor or like.numel() < TABLE_FROM:
        return False
    return like.dtype.itemsize == 2 or (like.dtype == torch.float32 and isinstance(curve.inverse, Fit))
