"""Makes up arguments for a module of which it is not known how a model calls it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ..isolation.randomness import SEED
from .recording import Call

TOKENS = 4
MOST_WIDTHS = 4
HIDDEN_STATES = ("hidden", "residual", "input", "states")  # in names of arguments


def guessed_calls(
    model: nn.Module, module: nn.Module, wrapped: nn.Module, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[Call, Call, int]]:
    """Calls with hidden states of every likely width, then with images.

    Args:
        model: what the module is part of. Its config may tell the width.
        module: what is to be called.
        wrapped: whose forward says which arguments are required, where the module passes on whatever it gets.

    Returns:
        A call, the same with twice as many tokens, and how many more these are.
    """
    shapes: list[tuple[tuple[int, ...], tuple[int, ...]]]
    shapes = [((1, TOKENS, width), (1, 2 * TOKENS, width)) for width in _widths(model, module)]
    convolutions = [each for each in module.modules() if isinstance(each, nn.Conv2d)]
    for channels in dict.fromkeys(each.in_channels for each in convolutions):
        shapes.append(((1, channels, TOKENS, 1), (1, channels, 2 * TOKENS, 1)))
    for few, many in shapes:
        yield _call(wrapped, few, dtype, device), _call(wrapped, many, dtype, device), TOKENS


def random_numbers(shape: Sequence[int], dtype: torch.dtype, device: torch.device, seed: int = SEED) -> Tensor:
    """The same for the same shape and seed, whatever the default device and dtype are."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(device, dtype)


def _call(wrapped: nn.Module, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Call:
    """Hidden states in the first argument and in all that are named so; None in the others that are required."""
    x = random_numbers(shape, dtype, device).requires_grad_()
    parameters = inspect.signature(wrapped.forward).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY)]
    others = [p.name for p in positional if p.default is p.empty][1:]
    return Call.of((x, *(x if any(word in name for word in HIDDEN_STATES) else None for name in others)), {})


def _widths(model: nn.Module, module: nn.Module) -> list[int]:
    """Candidates for the size of hidden states."""
    found = [getattr(getattr(model, "config", None), "hidden_size", None)]
    for each in module.modules():
        found += [getattr(each, "in_features", None), getattr(each, "nx", None)]
    return list(dict.fromkeys(width for width in found if isinstance(width, int)))[:MOST_WIDTHS]
