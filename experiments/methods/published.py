"""The formulas that inverted activations were published with, unchanged.

"Inverted Activations: Reducing Memory Footprint in Neural Network Training" (arXiv 2407.15545). Its reference code is
compiled, so it computes in float32 with outputs in half precision. There the smallest output of SiLU is rounded to
below its minimum, and the formula takes the square root of the difference: the derivative is then NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from hf_invact.curves import Curve

from ..benchmark.operators.implementations import Unavailable
from .codes import pack_codes, unpack_codes


@dataclass(frozen=True)
class Formula:
    """The derivative as a function of the output, on the left and on the right of the turning point."""

    x_min: float
    left: Callable[[Tensor], Tensor]
    right: Callable[[Tensor], Tensor]


GELU_MIN = -0.16997120747990369
SILU_MIN = -0.2784645427610738


def _gelu_left(y: Tensor) -> Tensor:
    v = ((y - GELU_MIN) / 0.16997120747990369).clamp(0, 1)
    return 0.0012176597919768537 - 0.2964121012745849 * v**0.44236329315571304 * (1 - v) ** 0.8312705290392689


def _gelu_right(y: Tensor) -> Tensor:
    t = (y - GELU_MIN).clamp(min=0)
    factor = -1.383717971214795 + 1.5584201843500274 * t.sqrt() + 0.04404574801811055 * t
    return 1 + factor * torch.exp(0.03214673676937606 * (-2.1198850898439496 - t) ** 3)


def _silu(y: Tensor, sigmoid: Tensor) -> Tensor:
    return sigmoid * (1 - y) + y


def _silu_left(y: Tensor) -> Tensor:
    t = y - SILU_MIN
    sigmoid = -0.5076843705082636 * t.sqrt() + (0.3574942048593756 * t + 0.07963139766917564) * t + 0.21717700759576886
    return _silu(y, sigmoid)


def _silu_right(y: Tensor) -> Tensor:
    t = y - SILU_MIN
    factor = -1.3108564021309803 + 0.8485896470316523 * t.sqrt() - 0.16299051259510922 * t
    return _silu(y, 1 + factor * torch.exp(0.0026961639850448835 * (-5.770613302664509 - t) ** 3))


FORMULAS = MappingProxyType(
    {
        "gelu": Formula(-0.751791524693564457, _gelu_left, _gelu_right),
        "silu": Formula(-1.278464542761073795, _silu_left, _silu_right),
    }
)


class Published:
    """Saves the output and one bit per element.

    Raises:
        Unavailable: no formula was published for the curve.
    """

    def __init__(self, curve: Curve) -> None:
        if curve.name not in FORMULAS:
            raise Unavailable(f"formulas were published for {' and '.join(FORMULAS)}, none for {curve.name}")
        self.formula = FORMULAS[curve.name]

    def keep(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return y, pack_codes((_wide(x) < self.formula.x_min).to(torch.uint8), bits=1)

    def slope(self, y: Tensor, side: Tensor) -> Tensor:
        y = _wide(y).flatten()
        is_left = unpack_codes(side)[: y.numel()].bool()
        return torch.where(is_left, self.formula.left(y), self.formula.right(y))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype.itemsize == 2 else tensor
