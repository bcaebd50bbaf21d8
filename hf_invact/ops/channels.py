"""What the output of a norm tells about its normalised input, channel by channel, and what is kept beside it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..norms import NormForm
from .eager.unmultiply import away_from_zero

# The normalised input of so many channels is kept, fewer in narrow norms, so that it takes little memory.
MOST_KEPT = 4
CHANNELS_PER_KEPT = 64

# Of a bias that is larger beside the weight, the output's rounding hides more than four binary digits of the normalised
# input, whose square is 1 on average.
LARGEST_RATIO = 16.0


class Affine(NamedTuple):
    """How the output of a norm depends on the normalised input, in the dtype of computation.

    The normalised input is ``y * inverse + shift``, but for the channels that are kept.

    Attributes:
        factor: by what it is multiplied, shape (channels,); None is 1.
        inverse, shift: shape (channels,); None are 1 and 0.
    """

    factor: Tensor | None
    inverse: Tensor | None
    shift: Tensor | None


def tells_output(form: NormForm, x: torch.dtype, weight: torch.dtype | None, bias: torch.dtype | None) -> bool:
    """Whether the output determines the normalised input. In float16 the range of exponents is too small for that."""
    return form.result_dtype(x, weight, bias) != torch.float16


def count_kept(channels: int, *parameters: Tensor | None) -> int:
    """Of how many channels the normalised input is kept: of none if the output is the normalised input."""
    if all(parameter is None for parameter in parameters):
        return 0
    return max(1, min(MOST_KEPT, channels // CHANNELS_PER_KEPT))


def count_lost(form: NormForm, weight: Tensor | None, bias: Tensor | None) -> int:
    """How many channels lose digits, beyond those that are kept: their bias is far larger than their weight.

    Without a bias there are none: a weight next to 0 is replaced (see `without_zeros`). Waits for the device.
    """
    if bias is None:
        return 0
    factor = torch.ones_like(bias) if weight is None else form.effective(weight)
    assert factor is not None
    lost = int((bias.detach().float().abs() > LARGEST_RATIO * factor.detach().float().abs()).sum())
    return max(0, lost - count_kept(bias.numel(), bias))


def kept_channels(factor: Tensor | None, bias: Tensor | None, device: torch.device) -> Tensor:
    """The channels with the largest bias beside their weight; without a bias, those with the smallest weight.

    Chosen anew on each call, without waiting for the device, so that it is right while weights move through 0.

    Args:
        factor, bias: shape (channels,).
        device: of the input.
    """
    if bias is None and factor is None:
        return torch.empty(0, dtype=torch.int64, device=device)
    if bias is None:
        assert factor is not None
        return torch.topk(factor.abs(), count_kept(factor.numel(), factor), largest=False, sorted=False).indices
    # Above 0, so that a weight of 0 comes first also without a bias.
    ratio = bias.float().abs() + torch.finfo(torch.float32).tiny
    ratio = ratio if factor is None else ratio / factor.float().abs()
    return torch.topk(ratio, count_kept(bias.numel(), bias), sorted=False).indices


def without_zeros(factor: Tensor | None, kept: Tensor) -> Tensor | None:
    """The factor, in which numbers next to 0 are replaced as in a gate, but not those of the channels that are kept.

    The output then tells the normalised input of every channel.
    """
    if factor is None:
        return None
    replaced = away_from_zero(factor)
    return factor if replaced is factor else replaced.index_copy(0, kept, factor[kept].to(replaced.dtype))


def affine_of(factor: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Affine:
    """For an output of this dtype.

    Args:
        factor: `without_zeros`.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    factor, bias = (None if each is None else each.to(wide) for each in (factor, bias))
    if bias is None:
        return Affine(factor, None if factor is None else factor.reciprocal(), None)
    # The output's error is about that of the rounded bias. Where it is larger than the normalised input, whose square
    # is 1 on average, 0 is the best guess.
    error = bias * (torch.finfo(dtype).eps / 4)
    inverse = torch.ones_like(bias) if factor is None else factor
    inverse = inverse / (inverse.square() + error.square())
    return Affine(factor, inverse, -bias * inverse)
