"""The module that stands in an activation's place while a block is patched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..curves import Curve
from ..nn import InvertedActivation


class PatchedActivation(InvertedActivation):
    """Replaces an activation object and keeps it, to put it back and to answer with it where no gradient is needed.

    Where no gradient is needed (evaluation, generation) the original object computes the result, so that it is the
    unpatched model's to the bit.
    """

    original: Callable[[Tensor], Tensor]

    def __init__(self, original: Callable[[Tensor], Tensor], curve: Curve, backend: str) -> None:
        super().__init__(curve, backend)
        # Not as a submodule: the patched model has the modules of the unpatched one and no more.
        object.__setattr__(self, "original", original)
        self.train(getattr(original, "training", True))

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_grad_enabled() and input.requires_grad:
            return super().forward(input)
        return self.original(input)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, original={self.original!r}"


def install(block: nn.Module, attribute: str, curve: Curve, backend: str) -> None:
    """Put a `PatchedActivation` into a block's attribute, or replace the one that is there."""
    restore(block, attribute)
    setattr(block, attribute, PatchedActivation(getattr(block, attribute), curve, backend))


def restore(block: nn.Module, attribute: str) -> None:
    """Put the original object back. Does nothing where the attribute is not patched."""
    patched = getattr(block, attribute)
    if not isinstance(patched, PatchedActivation):
        return
    original: Any = patched.original
    if isinstance(original, nn.Module):
        original.train(patched.training)
        setattr(block, attribute, original)
    else:
        delattr(block, attribute)  # a module's slot cannot hold a plain function
        object.__setattr__(block, attribute, original)


def patched_attributes(block: nn.Module) -> list[str]:
    """The attributes of a block that are patched."""
    return [name for name, child in block.named_children() if isinstance(child, PatchedActivation)]


def original_of(activation: object) -> object:
    """The activation object of the unpatched block."""
    return activation.original if isinstance(activation, PatchedActivation) else activation
