"""The numbers of a curve's record that are compiled into the kernels as constants."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch

from ...curves import Curve, Fit
from ..eager.formula import split


class RatioConstants(NamedTuple):
    """See `Ratio`."""

    center: float
    end: float
    numerator: tuple[float, ...]
    denominator: tuple[float, ...]


class FitConstants(NamedTuple):
    """A fitted curve's derivative for outputs that were rounded to a dtype."""

    sides: tuple[RatioConstants, ...]  # the right one, and the left one if there is one
    head: float
    tail: float
    scale: float
    error: float
    limits: tuple[float, float] | None
    is_coarse: bool
    eps: float
    smallest_normal: float
    half_of_the_last: float  # half the distance between the two largest numbers


@cache
def constants_of(curve: Curve, dtype: torch.dtype) -> FitConstants:
    """The constants of a fitted curve."""
    assert isinstance(curve.inverse, Fit)
    formula, info = curve.inverse.formula(dtype), torch.finfo(dtype)
    is_coarse = dtype.itemsize == 2
    head, tail = split(curve.inverse.y_min, torch.float32)
    return FitConstants(
        sides=tuple(
            RatioConstants(side.center, side.end, side.numerator, side.denominator)
            for side in (formula.right, formula.left)
            if side is not None
        ),
        head=head,
        # A half-precision output is far less exact than y_min in float32.
        tail=0.0 if is_coarse else tail,
        scale=curve.scale,
        error=curve.output_error(dtype),
        limits=curve.limits,
        is_coarse=is_coarse,
        eps=info.eps,
        smallest_normal=info.smallest_normal,
        half_of_the_last=0.5 * info.eps * 2.0 ** math.floor(math.log2(info.max)),
    )
