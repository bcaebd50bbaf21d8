"""Functions with some parameters already bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Bound:
    """A function of tensors with its parameters. Two of the same function and parameters are equal, also copies.

    (`functools.partial` compares by identity, so that a copy of a curve would be another curve.)
    """

    function: Callable[..., Tensor]
    parameters: tuple[tuple[str, float], ...]

    def __call__(self, *tensors: object) -> Tensor:
        return self.function(*tensors, **dict(self.parameters))


def bind(function: Callable[..., Tensor], **parameters: float) -> Bound:
    """The function with these parameters."""
    return Bound(function, tuple(parameters.items()))
