"""Activations whose gradient is not computed from their input, and how they are installed in a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hf_invact.curves import Curve
from hf_invact.sites.activations import Activations, ActivationSite, install
from hf_invact.sites.activations.recognize import curve_of, describe

from ..benchmark.operators.implementations import Unavailable


class Approximation(Protocol):
    """What an activation saves for backward, and the derivative that is computed from it."""

    def keep(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """What is saved: new tensors, or the input or the output themselves."""

    @property
    def slope(self) -> Callable[..., Tensor]:
        """Takes what was saved; returns the derivative of each element, in contiguous order, perhaps with padding."""


Maker = Callable[[Curve], Approximation]


class _Approximated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: Callable[[Tensor], Tensor], approximation: Approximation) -> Tensor:
        y = activation(x)
        ctx.approximation = approximation
        ctx.save_for_backward(*approximation.keep(x, y))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        slope = ctx.approximation.slope(*ctx.saved_tensors)
        # In the wider of the two dtypes, and rounded once.
        return (dy * slope.flatten()[: dy.numel()].view(dy.shape)).to(dy.dtype), None, None


def approximated(x: Tensor, activation: Callable[[Tensor], Tensor], approximation: Approximation) -> Tensor:
    """The activation's own result, with an approximate gradient."""
    y: Tensor = _Approximated.apply(x, activation, approximation)
    return y


class ApproximatedActivation(nn.Module):
    """Replaces an activation. Where no gradient is needed, it is the activation itself."""

    original: Callable[[Tensor], Tensor]

    def __init__(self, original: Callable[[Tensor], Tensor], approximation: Approximation) -> None:
        super().__init__()
        object.__setattr__(self, "original", original)  # not as a submodule
        self.approximation = approximation

    def forward(self, input: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and input.requires_grad):
            return self.original(input)
        return approximated(input, self.original, self.approximation)


@contextmanager
def approximated_activations(model: nn.Module, make: Maker) -> Iterator[None]:
    """Inside of the context, every activation of a model has an approximate gradient.

    Raises:
        Unavailable: there is no activation, or one whose curve is unknown or has no such approximation.
    """
    with substituted(model, lambda found, original: ApproximatedActivation(original, make(_curve(found, original)))):
        yield


@contextmanager
def substituted(model: nn.Module, substitute: Callable[[ActivationSite, Any], nn.Module]) -> Iterator[None]:
    """Replace every activation of a model inside of the context.

    Args:
        substitute: makes the replacement from where the activation was found, and from the activation.

    Raises:
        Unavailable: there is no activation.
    """
    everything = [(found, getattr(found.holder, found.attribute)) for found in Activations().find(model)]
    if not everything:
        raise Unavailable(f"{type(model).__name__} has no known activation")
    # All of them are made before the first is installed, so that an error leaves the model unchanged.
    substitutes = [substitute(found, original).train(model.training) for found, original in everything]
    with ExitStack() as stack:
        for (found, original), new in zip(everything, substitutes, strict=True):
            stack.callback(_follow, original, new)
            stack.enter_context(install.replaced(found.holder, found.attribute, new))
        yield


def _follow(original: object, substitute: nn.Module) -> None:
    """Copy the training mode: an activation does not follow the model's mode while it is replaced."""
    if isinstance(original, nn.Module):
        original.train(substitute.training)


def _curve(found: ActivationSite, original: object) -> Curve:
    curve = curve_of(original)
    if curve is None:
        raise Unavailable(f"{found.name}: {describe(original)} has no known formula")
    return curve
