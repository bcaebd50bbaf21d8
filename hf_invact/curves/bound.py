"""Functions with parameters that are given already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Bound:
    """A function of tensors and parameters. One of the same function and parameters is equal to it, also in a copy.

    (`functools.partial` compares by identity, which would make each copy of a curve another curve.)
    """

    function: Callable[..., Tensor]
    parameters: tuple[tuple[str, float], ...]

    def __call__(self, *tensors: object) -> Tensor:
        return self.function(*tensors, **dict(self.parameters))


def bind(function: Callable[..., Tensor], **parameters: float) -> Bound:
    """The function with these parameters."""
    return Bound(function, tuple(parameters.items()))
