"""The input of an adapter of LoRA: cast, dropped and multiplied with A, as PEFT computes it and as this package does.

The adapter is in float32, and the input in the dtype that is measured.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_invact.ops import adapter_input
from hf_invact.ops.adapter import native_adapter_input
from hf_invact.ops.operators.adapter import ADAPTER_INPUT, GRADIENTS

from ..timing import Call
from .implementations import Implementation
from .traffic import MixedTraffic, Traffic

RANK, DROPOUT = 16, 0.05
WIDE = torch.float32


@dataclass(frozen=True)
class AdapterInput:
    """An adapter's product with A, of ``x`` and A.

    Attributes:
        name: in the results.
        is_autocast: whether the forward pass is run under autocast to the input's dtype (bfloat16 for float32).
    """

    name: str
    is_autocast: bool

    # x (and bits) -> a result of the rank's size; in the backward pass x -> A's gradient; dx
    inverted_traffic = MixedTraffic(Traffic(forward=1, backward=2, has_side=True), Traffic(forward=0, backward=0))

    @property
    def native_traffic(self) -> MixedTraffic:
        """What PyTorch's kernels move for an input in half precision, but for masks and what has the rank's size."""
        if self.is_autocast:
            # x -> cast -> dropped -> a copy of it -> the product; in the backward pass the product -> cast -> masked
            # -> dx; the copy -> A's gradient
            return MixedTraffic(Traffic(forward=3, backward=4), Traffic(forward=4, backward=4))
        # x -> cast -> dropped -> the product; in the backward pass the product -> masked -> dx; dropped -> A's gradient
        return MixedTraffic(Traffic(forward=1, backward=1), Traffic(forward=4, backward=5))

    def tensors(
        self, shape: tuple[int, int], dtype: torch.dtype, generator: torch.Generator
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The gradient of the result, and the inputs."""
        options: dict[str, Any] = {"generator": generator, "device": generator.device}
        x = torch.randn(shape, dtype=dtype, **options)
        weight = torch.randn(RANK, shape[1], dtype=WIDE, **options) / shape[1] ** 0.5
        return torch.randn(shape[0], RANK, dtype=self.computed(dtype), **options), (x, weight)

    def computed(self, dtype: torch.dtype) -> torch.dtype:
        """In which the product is computed."""
        if not self.is_autocast:
            return WIDE
        return dtype if dtype.itemsize == 2 else torch.bfloat16

    def mode(self, x: Tensor) -> AbstractContextManager[Any]:
        """Under which the forward pass is run."""
        return torch.autocast(x.device.type, self.computed(x.dtype), enabled=self.is_autocast)


ADAPTER_INPUTS = (AdapterInput("adapter_input", is_autocast=False), AdapterInput("adapter_input_autocast", True))


def native(operator: AdapterInput, dy: Tensor, inputs: tuple[Tensor, ...]) -> Implementation:
    """The kernels that PyTorch runs."""
    x, weight = inputs
    computed = operator.computed(x.dtype)
    a = weight.to(computed)
    with torch.no_grad():
        noise = F.dropout(torch.ones_like(x, dtype=WIDE), DROPOUT)
        product_input = (x.to(WIDE) * noise).to(computed)

    def forward(x: Tensor, weight: Tensor) -> Tensor:
        with operator.mode(x):
            return native_adapter_input(x, weight, WIDE, DROPOUT)

    def backward() -> tuple[Tensor, Tensor]:
        return ((dy @ a).to(WIDE) * noise).to(x.dtype), (dy.t() @ product_input).to(WIDE)

    calls = {
        "forward": lambda: forward(x, weight),
        "backward": backward,
        "autograd": _autograd(forward, dy, inputs),
    }
    return Implementation(calls, operator.native_traffic)


def compiled(operator: AdapterInput, dy: Tensor, inputs: tuple[Tensor, ...]) -> Implementation:
    """The same through `torch.compile`, for these shapes. It draws other masks, and chooses what it keeps."""
    x, weight = inputs

    def forward(x: Tensor, weight: Tensor) -> Tensor:
        with operator.mode(x):
            return native_adapter_input(x, weight, WIDE, DROPOUT)

    compiled_forward = torch.compile(forward, dynamic=False)
    leaves = tuple(tensor.detach().requires_grad_() for tensor in inputs)
    output = compiled_forward(*leaves)

    def backward() -> Any:
        with torch.enable_grad():
            return torch.autograd.grad(output, leaves, dy, retain_graph=True)

    calls = {
        "forward": lambda: compiled_forward(x, weight),
        "backward": backward,
        "autograd": _autograd(compiled_forward, dy, inputs),
    }
    return Implementation(calls, operator.inverted_traffic)


def inverted(operator: AdapterInput, backend_name: str, dy: Tensor, inputs: tuple[Tensor, ...]) -> Implementation:
    """One of our backends."""
    x, weight = inputs
    a = weight.to(operator.computed(x.dtype))
    settings = WIDE, DROPOUT, backend_name
    _, kept = ADAPTER_INPUT(x, a, *settings)
    layout = x.size(), x.stride(), x.dtype, a.dtype

    def forward(x: Tensor, weight: Tensor) -> Tensor:
        with operator.mode(x):
            return adapter_input(x, weight, *settings)

    calls: dict[str, Call] = {
        "forward": lambda: ADAPTER_INPUT(x, a, *settings),
        "backward": lambda: GRADIENTS(dy, x, a, kept, *layout, *settings),
        "autograd": _autograd(forward, dy, inputs),
    }
    return Implementation(calls, operator.inverted_traffic)


def _autograd(function: Any, dy: Tensor, inputs: tuple[Tensor, ...]) -> Call:
    leaves = tuple(tensor.detach().requires_grad_() for tensor in inputs)
    return lambda: torch.autograd.grad(function(*leaves), leaves, dy)
