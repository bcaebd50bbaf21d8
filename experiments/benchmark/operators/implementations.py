"""The implementations of an operator: PyTorch, a compiler, Liger, and our backends."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from hf_invact.ops.operators.activation import implementation

from ..timing import Call
from .catalogue import Operator
from .traffic import Moves

NATIVE, COMPILED, LIGER = "native", "compiled", "liger"
INVERTED = "inverted-"  # followed by the backend's name

LIGER_FUNCTIONS = MappingProxyType(
    {
        "gate_silu": ("liger_kernel.ops.swiglu", "LigerSiLUMulFunction"),
        "gate_gelu_tanh": ("liger_kernel.ops.geglu", "LigerGELUMulFunction"),
    }
)


@dataclass(frozen=True)
class Implementation:
    """An operator on one set of tensors.

    Attributes:
        calls: by direction: "forward" and "backward" without autograd (if that is possible), and "autograd", a forward
            pass with gradients enabled and its backward pass.
        traffic: what an ideal implementation of this kind moves.
    """

    calls: dict[str, Call]
    traffic: Moves


class Unavailable(Exception):
    """Something cannot be measured here. The message says why."""


def native(operator: Operator, dy: Tensor, inputs: tuple[Tensor, ...]) -> Implementation:
    """The kernels that PyTorch runs."""
    kept = operator.kept(*inputs)
    calls = {
        "forward": lambda: operator.native(*inputs),
        "backward": lambda: operator.native_backward(dy, *kept),
        "autograd": _autograd(operator.native, dy, inputs),
    }
    return Implementation(calls, operator.native_traffic)


def compiled(operator: Operator, dy: Tensor, inputs: tuple[Tensor, ...]) -> Implementation:
    """The same formulas through `torch.compile`, for these shapes."""
    forward = torch.compile(operator.native, dynamic=False)
    backward = torch.compile(operator.fused_backward, dynamic=False)
    calls = {
        "forward": lambda: forward(*inputs),
        "backward": lambda: backward(dy, *inputs),
        "autograd": _autograd(forward, dy, inputs),
    }
    return Implementation(calls, operator.fused_traffic)


def inverted(operator: Operator, backend_name: str, dy: Tensor, inputs: tuple[Tensor, ...]) -> Implementation:
    """One of our backends."""
    backend, curve = implementation(backend_name), operator.curve
    calls: dict[str, Call]
    if operator.is_gate:
        gate, up = inputs
        output, side = backend.gate_forward(gate, up, curve)
        calls = {
            "forward": lambda: backend.gate_forward(gate, up, curve),
            "backward": lambda: backend.gate_backward(dy, output, up, side, curve),
        }
    else:
        (x,) = inputs
        output, side = backend.forward(x, curve)
        calls = {
            "forward": lambda: backend.forward(x, curve),
            "backward": lambda: backend.backward(dy, output, side, curve),
        }
    calls["autograd"] = _autograd(lambda *leaves: operator.inverted(*leaves, backend=backend_name), dy, inputs)
    return Implementation(calls, operator.inverted_traffic)


def liger(operator: Operator, dy: Tensor, inputs: tuple[Tensor, ...]) -> Implementation:
    """Liger's gate, only through autograd.

    Raises:
        Unavailable: no CUDA device, or the package is not installed.
    """
    function = import_liger(*LIGER_FUNCTIONS[operator.name], inputs[0].device).apply
    # Its backward pass overwrites its inputs with the gradients.
    leaves = tuple(tensor.clone().requires_grad_() for tensor in inputs)
    output = function(*leaves)
    calls = {
        "forward": lambda: function(*leaves),
        "backward": lambda: torch.autograd.grad(output, leaves, dy, retain_graph=True),
        "autograd": lambda: torch.autograd.grad(function(*leaves), leaves, dy),
    }
    return Implementation(calls, operator.fused_traffic)


def import_liger(module: str, name: str, device: torch.device) -> Any:
    """Import a function or class of Liger.

    Raises:
        Unavailable: no CUDA device, or the package is not installed.
    """
    if device.type != "cuda":
        raise Unavailable("Liger's kernels need a GPU")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise Unavailable(f"liger-kernel is not installed ({error})") from error


def _autograd(function: Callable[..., Tensor], dy: Tensor, inputs: tuple[Tensor, ...]) -> Call:
    leaves = tuple(tensor.detach().requires_grad_() for tensor in inputs)
    return lambda: torch.autograd.grad(function(*leaves), leaves, dy)
