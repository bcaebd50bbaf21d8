"""The classes of activations with learned parameters while they are patched.

Where no gradient is needed, and where they cannot be inverted, they compute and save what the original class does.
"""

from __future__ import annotations

import warnings
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import XIELUActivation

from ...ops import SMALLEST_SLOPE, invert_prelu, invert_xielu, prelu_is_invertible
from .patched import LearnedActivation

_WITHOUT_VALUES = "its parameters are on the meta device, so it is unknown whether it can be inverted"
_BOUND = "another library, such as Accelerate, has replaced its forward, and would keep calling that one"


class PatchedPReLU(LearnedActivation, nn.PReLU):
    """`torch.nn.PReLU`, saving its output alone while all of its weights are positive.

    Every forward pass that needs gradients checks this, which synchronizes with a GPU.
    """

    name: ClassVar[str] = "prelu"
    original_class: ClassVar[type[nn.Module]] = nn.PReLU

    def forward(self, input: Tensor) -> Tensor:
        if not self.is_to_invert(input, self.weight):
            return F.prelu(input, self.weight)
        if prelu_is_invertible(self.weight):
            return invert_prelu(input, self.weight)
        if not self.has_warned:
            self.has_warned = True
            warnings.warn(
                f"a PReLU is no longer inverted, and saves its input: {_not_positive(self.weight)}. It is inverted "
                "again as soon as all of its weights are positive. Its results are the same in both cases",
                stacklevel=2,
            )
        return F.prelu(input, self.weight)

    @staticmethod
    def reason_to_leave(module: nn.PReLU) -> str | None:
        if module.weight.is_meta:
            return _WITHOUT_VALUES
        if "forward" in vars(module):
            return _BOUND
        return None if prelu_is_invertible(module.weight) else _not_positive(module.weight)


def _not_positive(weight: Tensor) -> str:
    smallest = weight.min().item()
    return f"prelu can be inverted only for positive weights (at least {SMALLEST_SLOPE:.1g}), got {smallest:.3g}"


class PatchedXIELU(LearnedActivation, XIELUActivation):
    """Transformers' xIELU, saving its output and one bit per element.

    Its parameters can take any value: those that it computes with are their softplus.
    """

    name: ClassVar[str] = "xielu"
    original_class: ClassVar[type[nn.Module]] = XIELUActivation

    def forward(self, input: Tensor) -> Tensor:
        if not self.is_to_invert(input, self.alpha_p, self.alpha_n):
            return self._native(input)
        alpha_p, alpha_n = F.softplus(self.alpha_p), self.beta + F.softplus(self.alpha_n)
        # For a scalar the original returns shape (1,).
        return invert_xielu(torch.atleast_1d(input), alpha_p, alpha_n, self.beta, self._native)

    def _native(self, x: Tensor) -> Tensor:
        result: Tensor = XIELUActivation.forward(self, x)
        return result

    @staticmethod
    def reason_to_leave(module: XIELUActivation) -> str | None:
        if module._xielu_cuda_obj is not None:
            return "it runs the kernel of the xielu package, which has a backward pass of its own"
        if module.beta.is_meta:
            return _WITHOUT_VALUES
        if "forward" in vars(module):
            return _BOUND
        beta = module.beta.item()
        return None if beta > 0 else f"xielu can be inverted only for a positive beta, got {beta:.3g}"
