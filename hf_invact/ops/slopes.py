"""Chooses how the derivative of an activation is computed from its output: looked up, or evaluated."""

from __future__ import annotations

import torch
from torch import Tensor

from ..curves import Curve, Fit
from .formula import Slopes, evaluator
from .tables import lookup

# From so many elements on, making a table (which is kept) costs less than it saves.
TABLE_FROM = 1 << 18


def slopes_of(curve: Curve, like: Tensor) -> Slopes:
    """What computes a curve's derivative for pieces of a tensor such as this one."""
    evaluated = evaluator(curve, like)
    if not _is_worth_a_table(curve, like):
        return evaluated
    look_up = lookup(curve, like.dtype)

    def looked_up(y: Tensor, is_left: Tensor | None, error: Tensor | None = None) -> Tensor:
        if error is not None:  # it was rebuilt, and is no number of the dtype
            return evaluated(y, is_left, error)
        return look_up(y, is_left)

    return looked_up


def _is_worth_a_table(curve: Curve, like: Tensor) -> bool:
    is_real_cpu_tensor = type(like) is Tensor and like.device.type == "cpu" and not torch.compiler.is_compiling()
    if not is_real_cpu_tensor or like.numel() < TABLE_FROM:
        return False
    return like.dtype.itemsize == 2 or (like.dtype == torch.float32 and isinstance(curve.inverse, Fit))
