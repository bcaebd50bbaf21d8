"""The input, quantized to 8 or 2 bits with stochastic rounding, and the exact derivative at the quantized input.

After "Mesa: A Memory-saving Training Framework for Transformers" (arXiv 2111.11124; it learns the ranges, which are
each group's own here) and "ActNN: Reducing Training Memory Footprint via 2-Bit Activation Compressed Training" (arXiv
2104.14129).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_invact.curves import Curve

from .codes import pack_codes, unpack_codes

GROUP = 256  # elements that share a range


class Noise:
    """Uniform random numbers from separate generators, so that dropout draws the same numbers as without it.

    A generator is seeded at its first use with the last seed of the default generator, so the same `torch.manual_seed`
    before the first step gives the same noise.
    """

    def __init__(self) -> None:
        self._generators: dict[torch.device, torch.Generator] = {}

    def like(self, tensor: Tensor) -> Tensor:
        """Float32 numbers in [0, 1)."""
        device = tensor.device
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(torch.initial_seed())
        return torch.rand(tensor.shape, generator=self._generators[device], device=device)


class QuantizedInput:
    """Saves each input as one of ``2 ** bits`` even steps from the smallest to the largest value of its group.

    The last group is padded with zeros, which count in its range and in what is saved.

    Args:
        range_dtype: of each group's smallest value and range, which are saved as well.
        noise: decides the rounding, so that it is unbiased.
    """

    def __init__(self, curve: Curve, bits: int, range_dtype: torch.dtype, noise: Noise) -> None:
        self.curve, self.bits, self.range_dtype, self.noise = curve, bits, range_dtype, noise
        self.top = 2**bits - 1

    def keep(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        groups = F.pad(x.flatten().float(), (0, -x.numel() % GROUP)).view(-1, GROUP)
        low, high = groups.aminmax(dim=1, keepdim=True)
        ranges = torch.cat([low, high - low], dim=1).to(self.range_dtype)
        low, step = self._grid(ranges)
        codes = ((groups - low) / step + self.noise.like(groups)).floor_().clamp_(0, self.top).to(torch.uint8)
        return (codes if self.bits == 8 else pack_codes(codes, self.bits)), ranges

    def slope(self, packed: Tensor, ranges: Tensor) -> Tensor:
        codes = packed if self.bits == 8 else unpack_codes(packed)
        low, step = self._grid(ranges)
        return self.curve.derivative(codes.view(-1, GROUP) * step + low)

    def _grid(self, ranges: Tensor) -> tuple[Tensor, Tensor]:
        low, extent = ranges.float().split(1, dim=1)
        return low, (extent / self.top).clamp(min=torch.finfo(torch.float32).tiny)
