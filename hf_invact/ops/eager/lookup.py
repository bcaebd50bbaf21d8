"""Looks the derivative up in tables of the formula's values. On a CPU this costs less than evaluating the formula.

The only lookup in PyTorch that uses vector instructions and all cores is ``grid_sample`` with the nearest point.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ...curves import Curve
from ..bits import BITS, packed_size
from ..buffers import ordinary_cpu_tensors
from .tables import SHIFT, Table, line_table, lowest, midpoint_table, number_table
from .unmultiply import missing_digits

SLICES = 16  # of a piece, for the threads to share; a multiple of `BITS`, so that a padded piece ends with a whole byte
# The codes of `torch.grid_sampler` for the nearest point, and for the value outside the table: 0, or the last one.
NEAREST, ZEROS, BORDER = 1, 0, 1


def lookup(
    curve: Curve, dtype: torch.dtype, *, unmultiplied: bool = False
) -> Callable[[Tensor, Tensor | None], Tensor]:
    """A function that finds ``D(y, side)`` for pieces of an output of this dtype, shape (size,), and their side bits.

    The result is float32, valid until the next lookup for any tensor in the same thread, and may be overwritten.

    In half precision it is the formula's value for each number, equal in every bit. In float32 it lies on straight
    lines between the formula's values, at most 5e-7 of the steepest slope away, if `tables.lines_suffice` holds.

    Args:
        unmultiplied: the pieces were returned by `unmultiply.unmultiply`.
    """
    in_half_precision = _Midpoints if unmultiplied else _Numbers
    kind = _Lines if dtype == torch.float32 else in_half_precision
    return lambda y, side: _reused(kind, curve, dtype, y.numel()).derivative(y, side)


class _Table(Protocol):
    def derivative(self, y: Tensor, side: Tensor | None) -> Tensor: ...


class _LastUsed(threading.local):
    """The tables that a thread used last, with their buffers of some MiB: allocating them takes a sixth of a lookup."""

    def __init__(self) -> None:
        self.tables: dict[tuple[Any, ...], _Table] = {}


MOST_REUSED = 2  # for whole pieces, and for the rest at a tensor's end
_last_used = _LastUsed()


def _reused(kind: Callable[..., _Table], *arguments: Any) -> _Table:
    key, tables = (kind, *arguments), _last_used.tables
    table = tables.pop(key, None)
    if table is None:
        with ordinary_cpu_tensors():
            table = kind(*arguments)
    tables[key] = table  # the last one
    if len(tables) > MOST_REUSED:
        del tables[next(iter(tables))]
    return table


class _Sampler:
    """Samples a table for pieces of one size, which share their buffers.

    A piece is padded to `SLICES` slices of equal size. The result for the padding may be any value of the table.
    """

    def __init__(self, table: Table, size: int, outside: int) -> None:
        """Make the buffers.

        Args:
            outside: the value where the table has no cell, `ZEROS` or `BORDER`, which takes a tenth longer.
        """
        padded, self.outside = -(-size // SLICES) * SLICES, outside
        self.table, self.values = table, table.values[None, :, None].expand(SLICES, -1, -1, -1)
        self.padded_integers = torch.zeros(padded, dtype=torch.int32)
        self.integers = self.padded_integers[:size]
        self.positions = torch.zeros(padded // BITS, BITS, dtype=torch.int32)
        self.starts = self.positions[: packed_size(size)]
        # The table has one row of cells, so the second coordinate does not matter.
        self.grid = self.positions.view(torch.float32).view(SLICES, 1, -1, 1).expand(-1, -1, -1, 2)

    def sample(self, side: Tensor | None) -> tuple[Tensor, ...]:
        """The values of each channel for the `integers`, shape (SLICES, padded / SLICES)."""
        if side is None:
            self.positions.copy_(self.table.start[0])
        else:
            torch.index_select(self.table.start, 0, side.int(), out=self.starts)
        self.positions.add_(self.padded_integers.view(-1, BITS), alpha=self.table.step)
        found = torch.grid_sampler_2d(self.values, self.grid, NEAREST, self.outside, align_corners=False)
        return found.unbind(1)


class _Numbers:
    """Looks up half-precision outputs."""

    def __init__(self, curve: Curve, dtype: torch.dtype, size: int) -> None:
        self.size = size
        self.sampler = _Sampler(self.table(curve, dtype), size, ZEROS)  # every number has a cell

    def table(self, curve: Curve, dtype: torch.dtype) -> Table:
        return number_table(curve, dtype)

    def derivative(self, y: Tensor, side: Tensor | None) -> Tensor:
        self.write_integers(y)
        (values,) = self.sampler.sample(side)
        return values.reshape(-1)[: self.size]

    def write_integers(self, y: Tensor) -> None:
        self.sampler.integers.copy_(y.view(torch.int16))


class _Midpoints(_Numbers):
    """Looks up unmultiplied outputs in float32, with one digit more than half precision has."""

    def __init__(self, curve: Curve, dtype: torch.dtype, size: int) -> None:
        super().__init__(curve, dtype, size)
        self.shift = missing_digits(dtype) - 1

    def table(self, curve: Curve, dtype: torch.dtype) -> Table:
        return midpoint_table(curve, dtype)

    def write_integers(self, y: Tensor) -> None:
        torch.bitwise_right_shift(y.view(torch.int32), self.shift, out=self.sampler.integers)


class _Lines:
    """Looks up lines for float32 outputs, and evaluates them."""

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
