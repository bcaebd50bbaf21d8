"""What the tests of adapters' inputs share: PEFT's formula, and a run of it whose every bit is compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers import FOUR_DIMENSIONS, LAYOUTS, normal

RANK = 4
Function = Callable[[Tensor, Tensor, torch.dtype, float], Tensor]


def pefts(x: Tensor, weight: Tensor, dtype: torch.dtype, p: float) -> Tensor:
    """What PEFT's layers compute: the input cast to the adapter's dtype, dropout, and the product with A."""
    return F.linear(torch.nn.Dropout(p)(x.to(dtype)), weight)


@dataclass(frozen=True)
class Run:
    """One forward and backward pass.

    Attributes:
        dtype: of the adapter.
        frozen: "x", "weight" or neither.
        device: where the tensors are.
    """

    dtype: torch.dtype
    p: float
    autocast: torch.dtype | None = None
    frozen: str = ""
    device: str = "cpu"

    def of(self, function: Function, x: Tensor) -> dict[str, Tensor | None]:
        """The output, the gradients and the next random number."""
        x = x.detach().requires_grad_(self.frozen != "x")
        weight = normal(RANK, x.size(-1), seed=1).to(self.device, self.dtype).requires_grad_(self.frozen != "weight")
        torch.manual_seed(2)
        with torch.autocast(self.device, self.autocast, enabled=self.autocast is not None):
            y = function(x, weight, self.dtype, self.p)
        following = torch.rand(1, device=self.device)
        y.backward(normal(*y.shape, seed=3).to(y))
        return {"output": y.detach(), "dx": x.grad, "dweight": weight.grad, "random number": following}


def assert_same_bits(found: dict[str, Tensor | None], expected: dict[str, Tensor | None], what: object = "") -> None:
    for name, theirs in expected.items():
        ours = found[name]
        assert (ours is None) == (theirs is None), f"{name}, {what}"
        if ours is None or theirs is None:
            continue
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), f"{name}, {what}"
        assert torch.equal(ours.isnan(), theirs.isnan()), f"{name}, {what}"
        assert torch.equal(ours.nan_to_num(), theirs.nan_to_num()), f"{name}, {what}"
        assert torch.equal(ours.signbit() & ~ours.isnan(), theirs.signbit() & ~theirs.isnan()), f"{name}, {what}"


ARRANGEMENTS = {
    **{layout: (FOUR_DIMENSIONS, layout) for layout in LAYOUTS},
    "one-dimension": ((24,), "contiguous"),
    "matrix": ((7, 24), "contiguous"),
    "one-row": ((1, 24), "contiguous"),
    "column-major": ((7, 24), "transposed"),
    "part-of-a-matrix": ((7, 24), "half_of_a_row"),
    "batch": ((2, 3, 24), "contiguous"),
    "batch-transposed": ((2, 3, 24), "transposed"),
    "many": ((3, 11, 129), "contiguous"),
    "empty": ((0, 24), "contiguous"),
}
each_arrangement = pytest.mark.parametrize(("shape", "layout"), ARRANGEMENTS.values(), ids=ARRANGEMENTS)
