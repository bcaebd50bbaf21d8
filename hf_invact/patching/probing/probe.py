"""Runs a module on a few tokens, leaving no trace, and counts what it saves for the backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...memory import SavedActivations
from ...sites import NotApplicable
from ...sites.errors import PatchingError
from ..errors import NoProbeError
from ..isolation.undisturbed import undisturbed
from .guesses import random_numbers
from .recording import Arguments, Call


@dataclass(frozen=True)
class Scope:
    """What is run: a module that holds a site, and what consumes its result.

    Attributes:
        module: whose parameters and buffers do not count.
        few, many: how it is called, with a few tokens and with more.
        tokens: how many more these are.
        dtype: of the weights, or what they are computed with.
        precision: the least precise dtype that the site, or what follows it, computes in; None for `dtype`.
        counts_arguments: whether arguments count where they are saved.
    """

    module: nn.Module
    few: Call
    many: Call
    tokens: int
    dtype: torch.dtype
    device: torch.device
    precision: torch.dtype | None = None
    counts_arguments: bool = False

    def run(self, arguments: Arguments) -> Tensor:
        """The first tensor that it returns."""
        return _first_tensor(self.module(*arguments.args, **arguments.kwargs))


@dataclass(frozen=True)
class Measurement:
    """What a run keeps, beyond its arguments unless the scope counts them, and its results.

    Attributes:
        bytes_per_token: what one more token adds, so that copies of weights do not count.
        output: the first tensor that the scope returns.
        gradients: of the arguments ("hidden states", "argument 2", ...) and of the weights that need one, by name, for
            the same gradient of the output every time; None where there is none.
    """

    bytes_per_token: int
    output: Tensor
    gradients: Mapping[str, Tensor | None]


def measure(scope: Scope, autocast_dtype: torch.dtype | None) -> Measurement:
    """Run forward in training mode, with few tokens and with more, and backward.

    Args:
        scope: what to run.
        autocast_dtype: what it runs under; None leaves the autocast that is active, if any.

    Raises:
        NotApplicable: what is installed cannot work here.
        NoProbeError: anything else was raised.
        PatchingError: what a run has changed could not be put back.
    """
    with _failing_as_a_probe(scope):
        measured = _measured(scope, autocast_dtype, None)
        assert measured is not None
        return measured


def measure_below(scope: Scope, autocast_dtype: torch.dtype | None, limit: int) -> Measurement | None:
    """As `measure`; None, without a backward pass, where as many bytes per token as the limit are kept, or more."""
    with _failing_as_a_probe(scope):
        return _measured(scope, autocast_dtype, limit)


def rounded_gradients(scope: Scope, autocast_dtype: torch.dtype | None, seed: int) -> Mapping[str, Tensor | None]:
    """The gradients of `measure`, but for a gradient of the output that is rounded otherwise: by how much they differ
    from those of `measure` is what rounding alone does to them.

    Each element of that gradient is larger or smaller by one epsilon of the scope's precision. The arguments are the
    same: others would also change what the block does (the variance of few elements that are nearly equal).

    Args:
        scope, autocast_dtype: as for `measure`.
        seed: what decides which elements are larger; 1 or more.

    Raises:
        as `measure` does.
    """
    with _failing_as_a_probe(scope), undisturbed(scope.module, scope.device):
        arguments, output, _ = _forward(scope, scope.few, autocast_dtype)
        return _gradients(scope, arguments, output, seed)


@contextmanager
def _failing_as_a_probe(scope: Scope) -> Iterator[None]:
    try:
        yield
    except (NotApplicable, PatchingError):
        raise
    except Exception as error:  # whatever a foreign forward raises
        raise NoProbeError(reason(scope.module, error)) from error


def reason(module: nn.Module, error: Exception) -> str:
    """Why a module cannot be run, in a line."""
    text = f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")
    return f"{type(module).__name__} cannot be run by itself: {text if len(text) <= 120 else f'{text[:117]}...'}"


def autocast(scope: Scope, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """What to run it under; None is what is active."""
    return nullcontext() if dtype is None else torch.autocast(scope.device.type, dtype)


def kept_per_token(scope: Scope, autocast_dtype: torch.dtype | None) -> int:
    """As `measure`, without a backward pass: the bytes alone."""
    with _failing_as_a_probe(scope):
        many, few = (_bytes(scope, call, autocast_dtype) for call in (scope.many, scope.few))
        return (many - few) // scope.tokens


def _measured(scope: Scope, autocast_dtype: torch.dtype | None, limit: int | None) -> Measurement | None:
    many = _bytes(scope, scope.many, autocast_dtype)
    with undisturbed(scope.module, scope.device):
        arguments, output, few = _forward(scope, scope.few, autocast_dtype)
        kept = (many - few) // scope.tokens
        if limit is not None and kept >= limit:
            return None
        return Measurement(kept, output.detach(), _gradients(scope, arguments, output))


def _bytes(scope: Scope, call: Call, autocast_dtype: torch.dtype | None) -> int:
    with undisturbed(scope.module, scope.device):
        return _forward(scope, call, autocast_dtype)[2]


def _forward(scope: Scope, call: Call, autocast_dtype: torch.dtype | None) -> tuple[Arguments, Tensor, int]:
    """What the scope is called with, what it returns, and how many bytes are kept meanwhile."""
    arguments = call.arguments()
    ignored = [] if scope.counts_arguments else [*arguments.leaves, *arguments.tensors]
    with SavedActivations(scope.module, ignore=ignored) as saved, autocast(scope, autocast_dtype):
        output = scope.run(arguments)
    return arguments, output, saved.total_bytes


def _gradients(scope: Scope, arguments: Arguments, output: Tensor, rounded: int = 0) -> dict[str, Tensor | None]:
    """Those of `measure`, or of `rounded_gradients` where a seed for it is given."""
    leaves = {
        f"argument {place}" if place > 1 else "hidden states": leaf for place, leaf in enumerate(arguments.leaves, 1)
    }
    leaves |= dict(scope.module.named_parameters())
    leaves = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    dy = random_numbers(output.shape, output.dtype, output.device)
    if rounded:
        signs = random_numbers(output.shape, output.dtype, output.device, rounded).sign()
        dy *= 1 + torch.finfo(scope.precision or scope.dtype).eps * signs
    return dict(zip(leaves, torch.autograd.grad(output, [*leaves.values()], dy, allow_unused=True), strict=True))


def _first_tensor(output: Any) -> Tensor:
    """A tensor that a module returned, by itself or first of several."""
    while isinstance(output, (tuple, list, Mapping)) and output:
        output = next(iter(output.values())) if isinstance(output, Mapping) else output[0]
    if not isinstance(output, Tensor):
        getattr(output, "shape", None)  # what stands for a tensor raises `NotApplicable` here
        raise TypeError(f"returned {type(output).__name__}, no tensor")
    return output
