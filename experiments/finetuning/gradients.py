"""Whole gradients, and distances between two of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


def gradient(model: PreTrainedModel, batch: Mapping[str, Any], seed: int = 0) -> list[Tensor]:
    """The gradient of the loss with respect to each trained weight, in their order.

    Args:
        model: keeps its mode, and has no gradients afterwards.
        batch: its arguments, including labels.
        seed: of dropout.

    Raises:
        ValueError: the model already has gradients.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if any(weight.grad is not None for weight in weights):
        raise ValueError("the model already has gradients; call its zero_grad() first")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model(**batch).loss.backward()
    gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    model.zero_grad()
    return gradients


def cosine_distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """1 minus the cosine of the angle between two gradients, each taken as one long vector.

    It is computed from the difference of the two in float64, so even distances far below 1e-16 are accurate.
    NaN where a gradient is not finite or is zero.

    Raises:
        ValueError: they belong to different weights.

    >>> gradients = [torch.tensor([3.0, 4.0])], [torch.tensor([6.0, 8.0])]
    >>> cosine_distance(*gradients)
    0.0
    """
    lengths = _length(one), _length(other)
    if not all(0 < length < float("inf") for length in lengths):
        return float("nan")
    return _squared_distance(one, other, *lengths) / 2


def relative_error(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The length of the difference of two gradients, relative to the length of the second.

    Raises:
        ValueError: they belong to different weights.

    >>> relative_error([torch.tensor([3.0, 4.5])], [torch.tensor([3.0, 4.0])])
    0.1
    """
    return math.sqrt(_squared_distance(one, other, 1.0, 1.0)) / _length(other)


def _length(gradients: Sequence[Tensor]) -> float:
    squares = sum(part.double().square().sum().item() for part in gradients)
    return math.sqrt(squares)


def _squared_distance(one: Sequence[Tensor], other: Sequence[Tensor], scale: float, other_scale: float) -> float:
    shapes = [part.shape for part in one], [part.shape for part in other]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the gradients belong to different weights: {shapes[0]} and {shapes[1]}")
    return float(
        sum(
            (a.double() / scale - b.double() / other_scale).square().sum().item()
            for a, b in zip(one, other, strict=True)
        )
    )
