"""Puts a patched activation into its block, and the original back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ...curves import Curve
from ..kind import NotApplicable, original_of
from .patched import Inverse, LearnedActivation, PatchedActivation, original_class
from .plans import OUTPUT, ActivationPlan


def install(
    block: nn.Module, attribute: str, inverse: Inverse, backend: str, plan: ActivationPlan, *, strict: bool = False
) -> None:
    """Have a block's activation inverted, whatever was installed before.

    Args:
        attribute: where the block holds it.
        inverse: the curve to compute in its place; or the class to give it, which has the plan `OUTPUT` alone.
        backend: computes the curve.
        plan: what is kept.
        strict: raise `NotApplicable` if the block does not use the activation as the plan requires.

    Raises:
        NotApplicable: it cannot have this plan.
    """
    activation = getattr(block, attribute)
    if isinstance(activation, PatchedActivation) and isinstance(inverse, Curve):
        activation.set_plan(inverse, backend, plan, strict)  # the same object: hooks of ZeRO-3 are for it alone
        return
    restore(block, attribute)
    activation = getattr(block, attribute)
    if isinstance(inverse, Curve):
        _set(block, attribute, PatchedActivation(activation, inverse, backend, plan, strict))
    elif plan is OUTPUT:
        activation.__class__ = inverse
    else:
        raise NotApplicable(f"{inverse.name} cannot have the plan {plan.name!r}")


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


def patched(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """The patched activations of a model: the qualified name of the block, the block, and where it holds it."""
    for name, block in model.named_modules():
        for attribute, value in {**vars(block), **block._modules}.items():
            if isinstance(value, (PatchedActivation, LearnedActivation)):
                yield name, block, attribute


def installed_plan(block: nn.Module, attribute: str) -> ActivationPlan | None:
    """The plan that is installed; None where the attribute is not patched."""
    installed = getattr(block, attribute)
    if isinstance(installed, LearnedActivation):
        return OUTPUT
    return installed.plan if isinstance(installed, PatchedActivation) else None


@contextmanager
def suspended(block: nn.Module, attribute: str) -> Iterator[None]:
    """Inside, the original object with its own class; afterwards what was there before, whatever was installed."""
    installed = getattr(block, attribute, None)
    if installed is None:
        yield
        return
    original, cls = original_of(installed), type(installed)
    with replaced(block, attribute, original):
        if cls is not original_class(installed):
            installed.__class__ = original_class(installed)
        try:
            yield
        finally:
            restore(block, attribute)
            if type(installed) is not cls:
                installed.__class__ = cls


@contextmanager
def observed(block: nn.Module, attribute: str, note: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
    """Inside, pass the input and the result of each call of an unpatched activation to a function."""
    with replaced(block, attribute, _Observed(getattr(block, attribute), note)):
        yield


@contextmanager
def replaced(block: nn.Module, attribute: str, activation: object) -> Iterator[None]:
    """Inside, another object in place of the activation; afterwards what was there before."""
    before = getattr(block, attribute)
    _set(block, attribute, activation)
    try:
        yield
    finally:
        _set(block, attribute, before)


class _Observed(nn.Module):
    """Replaces an activation, and reports its results."""

    def __init__(self, original: Callable[[Tensor], Tensor], note: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__()
        self.original, self.note = original, note  # registered as a submodule, so that a probe restores it

    def forward(self, input: Tensor) -> Tensor:
        result = self.original(input)
        self.note(input, result)
        return result


def _set(block: nn.Module, attribute: str, activation: Any) -> None:
    """Replace an attribute where it is stored now, among the submodules or not, so that the order stays the same."""
    holder: dict[str, Any] = block._modules if attribute in block._modules else vars(block)
    holder[attribute] = activation
