"""Shared by the tests of the meter: a small block, and the sizes of what it saves."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

FLOAT = 4
ROWS, WIDTH, INNER = 4, 8, 32
NARROW, WIDE = ROWS * WIDTH * FLOAT, ROWS * INNER * FLOAT


class Function(nn.Module):
    """Any function of one tensor as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, INNER), nn.GELU(), nn.Linear(INNER, WIDTH))
