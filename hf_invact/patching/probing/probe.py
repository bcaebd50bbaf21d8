"""Runs a block on a few tokens, leaving no trace, and counts what it keeps for the backward pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...memory import SavedActivations
from ...sites import NotApplicable
from ...sites.errors import PatchingError
from ..errors import NoProbeError
from ..isolation.randomness import SEED
from ..isolation.undisturbed import undisturbed

TOKENS = 4
HIDDEN_STATES = ("hidden", "residual", "input", "states")  # in names of arguments


@dataclass(frozen=True)
class Scope:
    """What is run: a block, or the layer around it that also holds the activation's consumer.

    Attributes:
        module: whose parameters and buffers do not count.
        method: name of its method that takes hidden states, shape (1, tokens, width).
        wrapped: whose forward says which arguments are required, where `module` passes on whatever it gets.
        has_mask: where it requires an attention mask, it gets one of ones instead of None.
        is_image: its hidden states are of shape (1, width, tokens, 1) instead.
        precision: the least precise dtype that the activation, or what follows it, computes in; None for `dtype`.
    """

    module: nn.Module
    width: int
    dtype: torch.dtype
    device: torch.device
    method: str = "forward"
    wrapped: nn.Module | None = None
    has_mask: bool = False
    is_image: bool = False
    precision: torch.dtype | None = None

    def hidden_states(self, tokens: int) -> Tensor:
        """The same numbers every time, as a leaf."""
        shape = (1, self.width, tokens, 1) if self.is_image else (1, tokens, self.width)
        return random_numbers(shape, self.dtype, self.device).requires_grad_()

    def run(self, x: Tensor) -> Tensor:
        """The first tensor that it returns for hidden states."""
        method: Callable[..., Any] = getattr(self.module, self.method)
        parameters = inspect.signature(self.wrapped.forward if self.wrapped else method).parameters.values()
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY)]
        required = [p.name for p in positional if p.default is p.empty]
        return _first_tensor(method(x, *(self._argument(name, x) for name in required[1:])))

    def _argument(self, name: str, x: Tensor) -> Tensor | None:
        if any(word in name for word in HIDDEN_STATES):
            return x
        return x.new_ones(1, 1, x.shape[1], x.shape[1]) if self.has_mask and "mask" in name else None


@dataclass(frozen=True)
class Measurement:
    """What a run keeps, beyond its input, and its results.

    Attributes:
        bytes_per_token: what one more token adds, so that copies of weights do not count.
        output: the first tensor that the scope returns.
        gradients: of the input ("hidden states") and of the weights that need one, by name, for the same gradient of
            the output every time; None where there is none.
    """

    bytes_per_token: int
    output: Tensor
    gradients: Mapping[str, Tensor | None]


def measure(scope: Scope, autocast_dtype: torch.dtype | None) -> Measurement:
    """Run forward in training mode, for `TOKENS` and for twice as many, and backward.

    Args:
        scope: what to run.
        autocast_dtype: what it runs under; None leaves the autocast that is active, if any.

    Raises:
        NotApplicable: what is installed cannot work here.
        NoProbeError: anything else was raised.
        PatchingError: what a run has changed could not be put back.
    """
    try:
        few, _ = _count(scope, TOKENS, autocast_dtype)
        many, output = _count(scope, 2 * TOKENS, autocast_dtype)
        gradients = _gradients(scope, autocast_dtype)
    except (NotApplicable, PatchingError):
        raise
    except Exception as error:  # whatever a foreign forward raises
        raise NoProbeError(reason(scope.module, error)) from error
    return Measurement((many - few) // TOKENS, output, gradients)


def reason(module: nn.Module, error: Exception) -> str:
    """Why a module cannot be run, in a line."""
    text = f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")
    return f"{type(module).__name__} cannot be run by itself: {text if len(text) <= 120 else f'{text[:117]}...'}"


def random_numbers(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The same for the same shape, whatever the default device and dtype are."""
    generator = torch.Generator("cpu").manual_seed(SEED)
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(device, dtype)


def autocast(scope: Scope, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """What to run it under; None is what is active."""
    return nullcontext() if dtype is None else torch.autocast(scope.device.type, dtype)


def _count(scope: Scope, tokens: int, autocast_dtype: torch.dtype | None) -> tuple[int, Tensor]:
    with undisturbed(scope.module, scope.device):
        x = scope.hidden_states(tokens)
        with SavedActivations(scope.module, ignore=[x]) as saved, autocast(scope, autocast_dtype):
            output = scope.run(x)
        return saved.total_bytes, output.detach()


def _gradients(scope: Scope, autocast_dtype: torch.dtype | None) -> dict[str, Tensor | None]:
    """Not while saving is metered: autograd would not notice there that a block overwrites what has been saved."""
    with undisturbed(scope.module, scope.device):
        x = scope.hidden_states(TOKENS)
        leaves: dict[str, Tensor] = {"hidden states": x, **dict(scope.module.named_parameters())}
        with autocast(scope, autocast_dtype):
            output = scope.run(x)
        leaves = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
        dy = random_numbers(output.shape, output.dtype, output.device)
        return dict(zip(leaves, torch.autograd.grad(output, [*leaves.values()], dy, allow_unused=True), strict=True))


def _first_tensor(output: Any) -> Tensor:
    """A tensor that a module returned, by itself or first of several."""
    while isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        getattr(output, "shape", None)  # what stands for a tensor raises `NotApplicable` here
        raise TypeError(f"returned {type(output).__name__}, no tensor")
    return output
