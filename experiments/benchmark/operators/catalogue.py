"""The measured operators: each as PyTorch computes it, and inverted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_invact import functional
from hf_invact.curves import GELU, GELU_TANH, MISH, QUICK_GELU, SILU, Curve

from . import traffic
from .traffic import Traffic

QUICK_GELU_SCALE = 1.702
aten: Any = torch.ops.aten


@dataclass(frozen=True)
class Operator:
    """An activation, of ``x``, or a gate, of ``gate`` and ``up``.

    Attributes:
        name: in the results.
        curve: the activation.
        native: the operator as models compute it.
        kept: takes the same arguments; returns what autograd saves for backward.
        native_backward: takes ``dy`` and what was kept; runs the kernels that autograd runs.
        fused_backward: takes ``dy`` and the arguments of the operator. It is for a compiler, which recomputes the rest.
        inverted: takes the same arguments as the operator, and ``backend``.
        native_traffic: what the native kernels move.
    """

    name: str
    curve: Curve
    native: Callable[..., Tensor]
    kept: Callable[..., tuple[Tensor, ...]]
    native_backward: Callable[..., Any]
    fused_backward: Callable[..., Any]
    inverted: Callable[..., Tensor]
    native_traffic: Traffic
    is_gate: bool = False

    def tensors(
        self, shape: tuple[int, int], dtype: torch.dtype, generator: torch.Generator
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The gradient of the result, and the inputs."""
        count = 3 if self.is_gate else 2
        dy, *inputs = (
            torch.randn(shape, generator=generator, dtype=dtype, device=generator.device) for _ in range(count)
        )
        return dy, tuple(inputs)

    @property
    def fused_traffic(self) -> Traffic:
        """What one native kernel moves that recomputes what it can."""
        return traffic.FUSED_GATE if self.is_gate else traffic.ACTIVATION

    @property
    def inverted_traffic(self) -> Traffic:
        """What one inverted kernel moves. The copy that implementations are compared with moves as much."""
        return traffic.INVERTED_GATE if self.is_gate else traffic.INVERTED_ACTIVATION


def _activation(
    curve: Curve, native: Callable[[Tensor], Tensor], backward: Callable[..., Tensor], inverted: Callable[..., Tensor]
) -> Operator:
    return Operator(
        curve.name,
        curve,
        native,
        kept=lambda x: (x,),
        native_backward=backward,
        fused_backward=backward,
        inverted=inverted,
        native_traffic=traffic.ACTIVATION,
    )


def _gate(curve: Curve, native: Callable[[Tensor], Tensor], backward: Callable[..., Tensor]) -> Operator:
    def unfused_backward(dy: Tensor, gate: Tensor, activated: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        dup = dy * activated
        return backward(dy * up, gate), dup

    def fused_backward(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        return backward(dy * up, gate), dy * native(gate)

    return Operator(
        f"gate_{curve.name}",
        curve,
        native=lambda gate, up: native(gate) * up,
        kept=lambda gate, up: (gate, native(gate), up),
        native_backward=unfused_backward,
        fused_backward=fused_backward,
        inverted=partial(functional.gate, activation=curve.name),
        native_traffic=traffic.UNFUSED_GATE,
        is_gate=True,
    )


def _quick_gelu(x: Tensor) -> Tensor:
    """Unfused, as Transformers computes it."""
    return x * torch.sigmoid(QUICK_GELU_SCALE * x)


def _quick_gelu_backward(dy: Tensor, x: Tensor, sigmoid: Tensor) -> Tensor:
    """The kernels that autograd runs for it."""
    dx = dy * sigmoid
    slope: Tensor = aten.sigmoid_backward(dy * x, sigmoid)
    return dx + QUICK_GELU_SCALE * slope


def _recomputed_quick_gelu_backward(dy: Tensor, x: Tensor) -> Tensor:
    return _quick_gelu_backward(dy, x, torch.sigmoid(QUICK_GELU_SCALE * x))


_gelu_tanh = partial(F.gelu, approximate="tanh")
_gelu_tanh_backward = partial(aten.gelu_backward.default, approximate="tanh")

_OPERATORS = (
    _activation(GELU, F.gelu, aten.gelu_backward.default, functional.gelu),
    _activation(GELU_TANH, _gelu_tanh, _gelu_tanh_backward, partial(functional.gelu, approximate="tanh")),
    _activation(SILU, F.silu, aten.silu_backward.default, functional.silu),
    Operator(
        QUICK_GELU.name,
        QUICK_GELU,
        native=_quick_gelu,
        kept=lambda x: (x, torch.sigmoid(QUICK_GELU_SCALE * x)),
        native_backward=_quick_gelu_backward,
        fused_backward=_recomputed_quick_gelu_backward,
        inverted=functional.quick_gelu,
        # x -> t -> s; x, s -> y; in the backward pass three products, the sigmoid's derivative, and the sum
        native_traffic=Traffic(forward=7, backward=14),
    ),
    _activation(MISH, F.mish, aten.mish_backward.default, functional.mish),
    _gate(SILU, F.silu, aten.silu_backward.default),
    _gate(GELU_TANH, _gelu_tanh, _gelu_tanh_backward),
)
ACTIVATIONS = MappingProxyType({operator.name: operator for operator in _OPERATORS})
