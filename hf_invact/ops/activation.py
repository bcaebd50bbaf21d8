"""Activations and gates that keep for the backward pass what the next layer keeps anyway."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..curves import Curve
from .autograd import Inverted
from .backends import AUTO, Backend, choose_backend

Saving = Literal["output", "inputs"]
SAVINGS: tuple[Saving, ...] = ("output", "inputs")


@dataclass(frozen=True)
class _Activation:
    """Keeps its output and one bit per element."""

    curve: Curve
    backend: Backend

    @property
    def name(self) -> str:
        return f"an inverted {self.curve.name}"

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.backend.forward(x, self.curve)

    def kept(self, output: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (output,)

    def backward(self, dy: Tensor, kept: tuple[Tensor, ...], side: Tensor | None) -> tuple[Tensor, ...]:
        (y,) = kept
        return (self.backend.backward(dy, y, side, self.curve),)


@dataclass(frozen=True)
class _ExactActivation:
    """Keeps its input, and computes the native gradient from it."""

    curve: Curve
    backend: Backend

    @property
    def name(self) -> str:
        return f"a recomputed {self.curve.name}"

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.curve.forward(x), None

    def kept(self, output: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return inputs

    def backward(self, dy: Tensor, kept: tuple[Tensor, ...], side: Tensor | None) -> tuple[Tensor, ...]:
        (x,) = kept
        return (self.backend.exact_backward(dy, x, self.curve),)


@dataclass(frozen=True)
class _Gate:
    """Keeps its product, ``up``, and one bit per element: the activation's output is their quotient."""

    curve: Curve
    backend: Backend

    @property
    def name(self) -> str:
        return f"an inverted gate of {self.curve.name}"

    def forward(self, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.backend.gate_forward(gate, up, self.curve)

    def kept(self, output: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return output, inputs[1]

    def backward(self, dy: Tensor, kept: tuple[Tensor, ...], side: Tensor | None) -> tuple[Tensor, ...]:
        product, up = kept
        return self.backend.gate_backward(dy, product, up, side, self.curve)


@dataclass(frozen=True)
class _ExactGate:
    """Keeps ``gate`` and ``up``, and computes the native gradients from them."""

    curve: Curve
    backend: Backend

    @property
    def name(self) -> str:
        return f"a recomputed gate of {self.curve.name}"

    def forward(self, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.curve.forward(gate).mul_(up), None

    def kept(self, output: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return inputs

    def backward(self, dy: Tensor, kept: tuple[Tensor, ...], side: Tensor | None) -> tuple[Tensor, ...]:
        gate, up = kept
        return self.backend.exact_gate_backward(dy, gate, up, self.curve)


def invert(x: Tensor, curve: Curve, backend: str | None = None, saving: Saving = "output") -> Tensor:
    """``curve.forward(x)``, keeping the output and one bit per element for the backward pass.

    Args:
        x: any shape, memory layout and floating dtype.
        curve: the activation.
        backend: a backend's name; None or "auto" chooses by device.
        saving: "inputs" keeps ``x`` and is exact: less than the steps of an unfused formula would keep.

    Raises:
        ValueError: unknown backend or `saving`.
    """
    chosen = choose_backend(AUTO if backend is None else backend, x.device)
    _check(saving)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return curve.forward(x)
    y: Tensor
    y, _ = Inverted.apply((_Activation if saving == "output" else _ExactActivation)(curve, chosen), x)
    return y


def gate(gate: Tensor, up: Tensor, curve: Curve, saving: Saving = "output", backend: str | None = None) -> Tensor:
    """``curve.forward(gate) * up``, keeping two tensors for the backward pass instead of four.

    Args:
        gate, up: of one shape and floating dtype, any memory layout.
        curve: the activation.
        saving: "output" keeps the product (which the next layer keeps anyway), ``up``, and one bit per element; the
            product of an ``up`` that is nearly 0 is that of the smallest factor which still keeps the activation's
            output (2^-60, in float16 2^-12). "inputs" keeps ``gate`` and ``up``, and is exact.
        backend: a backend's name; None or "auto" chooses by device.

    Raises:
        ValueError: the shapes or dtypes differ; unknown `saving` or backend.
    """
    chosen = choose_backend(AUTO if backend is None else backend, gate.device)
    _check(saving)
    if (gate.shape, gate.dtype) != (up.shape, up.dtype):
        raise ValueError(
            "gate and up must have one shape and dtype, got "
            f"{tuple(gate.shape)}, {gate.dtype} and {tuple(up.shape)}, {up.dtype}"
        )
    if not (torch.is_grad_enabled() and (gate.requires_grad or up.requires_grad)):
        return curve.forward(gate) * up
    operation = _Gate(curve, chosen) if saving == "output" else _ExactGate(curve, chosen)
    y: Tensor
    y, _ = Inverted.apply(operation, gate, _on_its_own(up) if saving == "output" else up)
    return y


def _check(saving: str) -> None:
    if saving not in SAVINGS:
        raise ValueError(f"saving must be one of {', '.join(map(repr, SAVINGS))}, got {saving!r}")


def _on_its_own(tensor: Tensor) -> Tensor:
    """A copy of a part of a larger storage, as one half of a fused projection is: the view would keep all of it."""
    if torch.compiler.is_compiling():  # a compiler decides itself what it keeps
        return tensor
    try:
        stored = tensor.untyped_storage().nbytes()
    except NotImplementedError:  # the tensors inside torch.func's transforms do not tell
        return tensor
    is_part = stored > tensor.numel() * tensor.element_size()
    return tensor.clone(memory_format=torch.contiguous_format) if is_part else tensor
