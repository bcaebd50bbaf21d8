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
    _set(block, attribute, PatchedActivation(getattr(block, attribute), curve, backend))


def restore(block: nn.Module, attribute: str) -> None:
    """Put the original object back. Does nothing where the attribute is not patched."""
    patched = getattr(block, attribute)
    if not isinstance(patched, PatchedActivation):
        return
    if isinstance(patched.original, nn.Module):
        patched.original.train(patched.training)
    _set(block, attribute, patched.original)


def patched_attributes(block: nn.Module) -> list[str]:
    """The attributes of a block that are patched."""
    attributes = {**vars(block), **block._modules}
    return [name for name, value in attributes.items() if isinstance(value, PatchedActivation)]


def _set(block: nn.Module, attribute: str, activation: Any) -> None:
    """Put it where the attribute is now, a submodule or (a plain function) not, so that the order stays as well."""
    holder: dict[str, Any] = block._modules if attribute in block._modules else vars(block)
    holder[attribute] = activation


def original_of(activation: object) -> object:
    """The activation object of the unpatched block."""
    return activation.original if isinstance(activation, PatchedActivation) else activation
