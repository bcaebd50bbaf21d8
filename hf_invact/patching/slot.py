"""What stands in an activation's place while a block is patched, and how it comes there and goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

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


class LearnedActivation:
    """Base of the classes that an activation with parameters of its own has while its block is patched.

    It is not replaced: state dicts, optimizers and wrappers know its parameters. The instance stays, and only its class
    becomes a subclass of the original one that overrides `forward` and adds no state but `has_warned`.

    Attributes:
        name: how the report calls it.
        original_class: the class to go back to.
        has_warned: whether the module has said that it is not inverted for now.
    """

    name: ClassVar[str]
    original_class: ClassVar[type[nn.Module]]
    has_warned: bool = False

    @staticmethod
    def reason_to_leave(module: Any) -> str | None:
        """Why a module of the original class, or of this one, cannot be inverted as it is; None if it can."""
        raise NotImplementedError


def install(block: nn.Module, attribute: str, inverse: Curve | type[LearnedActivation], backend: str) -> None:
    """Have a block's activation inverted, whatever was installed before.

    Args:
        inverse: the curve to compute in its place, or the class to give it.
        backend: computes the curve.
    """
    restore(block, attribute)
    activation = getattr(block, attribute)
    if isinstance(inverse, Curve):
        _set(block, attribute, PatchedActivation(activation, inverse, backend))
    else:
        activation.__class__ = inverse


def restore(block: nn.Module, attribute: str) -> None:
    """Put the original object, or its class, back. Does nothing where the attribute is not patched."""
    patched = getattr(block, attribute)
    if isinstance(patched, LearnedActivation):
        vars(patched).pop("has_warned", None)
        patched.__class__ = patched.original_class  # type: ignore[assignment]
    elif isinstance(patched, PatchedActivation):
        if isinstance(patched.original, nn.Module):
            patched.original.train(patched.training)
        _set(block, attribute, patched.original)


def patched_attributes(block: nn.Module) -> list[str]:
    """The attributes of a block that are patched."""
    attributes = {**vars(block), **block._modules}
    return [name for name, value in attributes.items() if isinstance(value, (PatchedActivation, LearnedActivation))]


def _set(block: nn.Module, attribute: str, activation: Any) -> None:
    """Put it where the attribute is now, a submodule or (a plain function) not, so that the order stays as well."""
    holder: dict[str, Any] = block._modules if attribute in block._modules else vars(block)
    holder[attribute] = activation


def original_of(activation: object) -> object:
    """The activation object of the unpatched block. One with parameters is itself; see `original_class`."""
    return activation.original if isinstance(activation, PatchedActivation) else activation


def original_class(activation: object) -> type:
    """The class of an activation object in the unpatched block."""
    return activation.original_class if isinstance(activation, LearnedActivation) else type(activation)
