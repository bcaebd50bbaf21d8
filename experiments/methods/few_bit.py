"""The derivative as a piecewise constant function. A few bits per element store the number of the piece.

After "Few-Bit Backward: Quantized Gradients of Activation Functions for Memory Footprint Reduction" (arXiv 2202.00441).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from hf_invact.curves import Curve

from .codes import pack_codes, unpack_codes

END = 5.0  # less than one input in a million lies beyond
STEP = 1 / 128


@dataclass(frozen=True)
class StepFunction:
    """A piecewise constant function: ``levels[i]`` from ``borders[i - 1]`` to ``borders[i]``.

    Attributes:
        error: root mean squared distance from the derivative, for x ~ N(0, 1).
    """

    borders: tuple[float, ...]
    levels: tuple[float, ...]
    error: float


@cache
def best_step_function(curve: Curve, count: int) -> StepFunction:
    """The function closest to a curve's derivative, by dynamic programming over borders on a grid."""
    edges = np.arange(-END, END + STEP / 2, STEP)
    middles = torch.from_numpy((edges[1:] + edges[:-1]) / 2)
    slope = curve.derivative(middles).numpy()
    inner = torch.special.ndtr(torch.from_numpy(edges[1:-1])).numpy()
    weight = np.diff(np.concatenate([[0.0], inner, [1.0]]))  # the outermost cells take the tails
    costs = _costs(weight, slope)

    best, before = costs[0], []  # the cost of the first cells in one piece, by their number
    for _ in range(count - 1):
        candidates = best[:, None] + costs
        before.append(candidates.argmin(axis=0))
        best = candidates.min(axis=0)

    ends = [len(slope)]
    for choice in reversed(before):
        ends.append(int(choice[ends[-1]]))
    cuts = [0, *reversed(ends)]
    levels = [float(np.average(slope[a:b], weights=weight[a:b])) for a, b in pairwise(cuts)]
    return StepFunction(tuple(map(float, edges[cuts[1:-1]])), tuple(levels), float(best[-1]) ** 0.5)


def _costs(weight: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """The cost of one level for the cells from i up to j, shape (cells + 1, cells + 1); infinite where i >= j."""
    sums = [np.concatenate([[0.0], np.cumsum(weight * slope**power)]) for power in range(3)]
    mass, first, second = (total[None, :] - total[:, None] for total in sums)
    is_some = np.triu(np.ones_like(mass, dtype=bool), k=1)
    return np.where(is_some, second - first**2 / np.where(is_some, mass, 1.0), np.inf)


class FewBit:
    """Saves the number of the piece that each input is in, in a few bits."""

    def __init__(self, curve: Curve, bits: int) -> None:
        steps = best_step_function(curve, 2**bits)
        self.bits = bits
        self.borders, self.levels = torch.tensor(steps.borders), torch.tensor(steps.levels)

    def keep(self, x: Tensor, y: Tensor) -> tuple[Tensor]:
        codes = torch.bucketize(x.float().contiguous(), self.borders.to(x.device), out_int32=True)
        return (pack_codes(codes.to(torch.uint8), self.bits),)

    def slope(self, packed: Tensor) -> Tensor:
        return self.levels.to(packed.device)[unpack_codes(packed).int()]
