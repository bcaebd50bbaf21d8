"""Looks the derivative up in tables of the formula's values, which on a CPU costs less than evaluating it.

PyTorch has one look-up that uses vector instructions and all cores, ``grid_sample`` with the nearest point.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ...curves import Curve
from ..bits import BITS, packed_size
from ..plain import plain_cpu
from .tables import SHIFT, Table, line_table, lowest, middle_table, number_table
from .unmultiply import missing_digits

SLICES = 16  # of a piece, which the threads share; a multiple of `BITS`, so that a padded piece ends with a byte
# `torch.grid_sampler`'s names for the nearest point, and for what is where there is none: 0, or the last one.
NEAREST, ZEROS, BORDER = 1, 0, 1


def lookup(curve: Curve, dtype: torch.dtype, *, rebuilt: bool = False) -> Callable[[Tensor, Tensor | None], Tensor]:
    """What finds ``D(y, side)`` for pieces of an output of this dtype, shape (size,), and their side bits.

    The result is float32, valid until the next look-up in the same thread, of whatever tensor, and may be overwritten.

    Half precision: the formula's value for each number, so equal to it in every bit. float32: on straight lines between
    the formula's values, at most 5e-7 of the steepest slope away from it, if `tables.lines_suffice` for the curve.

    Args:
        rebuilt: the pieces come from `quotient.rebuild`.
    """
    in_half_precision = _Middles if rebuilt else _Numbers
    kind = _Lines if dtype == torch.float32 else in_half_precision
    return lambda y, side: _kept(kind, curve, dtype, y.numel()).derivative(y, side)


class _Buffers(Protocol):
    def derivative(self, y: Tensor, side: Tensor | None) -> Tensor: ...


class _Kept(threading.local):
    """What a thread used last: its buffers are some MiB, which as new memory would cost a sixth of a look-up's time."""

    key: tuple[Any, ...] = ()
    buffers: _Buffers


_last = _Kept()


def _kept(kind: Callable[..., _Buffers], *arguments: Any) -> _Buffers:
    if _last.key != (kind, *arguments):
        with plain_cpu():
            _last.buffers = kind(*arguments)
        _last.key = (kind, *arguments)
    return _last.buffers


class _Sampler:
    """Samples a table for pieces of one size, in buffers that all of them share.

    They are padded to `SLICES` of one size; what is behind the piece's end is sampled anywhere.
    """

    def __init__(self, table: Table, size: int, beyond: int) -> None:
        """Make the buffers.

        Args:
            beyond: what is where the table has no cell. `BORDER` takes a tenth longer than `ZEROS`.
        """
        padded, self.beyond = -(-size // SLICES) * SLICES, beyond
        self.table, self.values = table, table.values[None, :, None].expand(SLICES, -1, -1, -1)
        self.padded_integers = torch.zeros(padded, dtype=torch.int32)
        self.integers = self.padded_integers[:size]
        self.positions = torch.zeros(padded // BITS, BITS, dtype=torch.int32)
        self.starts = self.positions[: packed_size(size)]
        # Where there is one row of cells, the second coordinate does not matter.
        self.grid = self.positions.view(torch.float32).view(SLICES, 1, -1, 1).expand(-1, -1, -1, 2)

    def sample(self, side: Tensor | None) -> tuple[Tensor, ...]:
        """What each channel has for the `integers`, shape (SLICES, padded / SLICES)."""
        if side is None:
            self.positions.copy_(self.table.start[0])
        else:
            torch.index_select(self.table.start, 0, side.int(), out=self.starts)
        self.positions.add_(self.padded_integers.view(-1, BITS), alpha=self.table.step)
        found = torch.grid_sampler_2d(self.values, self.grid, NEAREST, self.beyond, align_corners=False)
        return found.unbind(1)


class _Numbers:
    """Looks up numbers of half precision."""

    def __init__(self, curve: Curve, dtype: torch.dtype, size: int) -> None:
        self.size = size
        self.sampler = _Sampler(self.table(curve, dtype), size, ZEROS)  # every number has a cell

    def table(self, curve: Curve, dtype: torch.dtype) -> Table:
        return number_table(curve, dtype)

    def derivative(self, y: Tensor, side: Tensor | None) -> Tensor:
        self.number(y)
        (values,) = self.sampler.sample(side)
        return values.reshape(-1)[: self.size]

    def number(self, y: Tensor) -> None:
        self.sampler.integers.copy_(y.view(torch.int16))


class _Middles(_Numbers):
    """Looks up rebuilt outputs in float32, of half precision's digits and one more."""

    def __init__(self, curve: Curve, dtype: torch.dtype, size: int) -> None:
        super().__init__(curve, dtype, size)
        self.shift = missing_digits(dtype) - 1

    def table(self, curve: Curve, dtype: torch.dtype) -> Table:
        return middle_table(curve, dtype)

    def number(self, y: Tensor) -> None:
        torch.bitwise_right_shift(y.view(torch.int32), self.shift, out=self.sampler.integers)


class _Lines:
    """Looks up lines for float32 numbers, and goes along them."""

    def __init__(self, curve: Curve, dtype: torch.dtype, size: int) -> None:
        self.size, self.limits, self.lowest = size, curve.limits, lowest(curve)
        self.sampler = _Sampler(line_table(curve), size, BORDER)
        padded = torch.zeros_like(self.sampler.padded_integers, dtype=torch.float32)
        self.rise, self.slices = padded[:size], padded.view(SLICES, 1, -1)
        self.bits = self.rise.view(torch.int32)

    def derivative(self, y: Tensor, side: Tensor | None) -> Tensor:
        torch.sub(y, self.lowest, out=self.rise)
        torch.bitwise_right_shift(self.bits, SHIFT, out=self.sampler.integers)
        intercept, slope = self.sampler.sample(side)
        torch.addcmul(intercept, slope, self.slices, out=self.slices)
        derivative = self.rise
        if self.limits is not None:
            low, high = self.limits
            derivative.masked_fill_((y <= low) | (y >= high), 0.0)
        return derivative
