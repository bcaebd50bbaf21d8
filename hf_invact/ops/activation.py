"""Activations and gates that keep for the backward pass what the next layer keeps anyway."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..curves import Curve
from .autocast import autocast
from .backends import AUTO, check_backend
from .distributed import are_placed_alike, is_distributed, of_parts
from .eager.unmultiply import tells_output
from .inputs import is_array, wants_gradient
from .operators.activation import ACTIVATION, EXACT_ACTIVATION, EXACT_GATE, GATE

Saving = Literal["output", "inputs"]
SAVINGS: tuple[Saving, ...] = ("output", "inputs")


def invert(x: Tensor, curve: Curve, backend: str | None = None, saving: Saving = "output") -> Tensor:
    """``curve.forward(x)``, keeping the output and one bit per element for the backward pass.

    Args:
        x: any shape, memory layout and floating dtype. Of a DTensor each process inverts its part.
        curve: the activation.
        backend: "eager", "compile" or "triton"; None or "auto" chooses (see `backends.choose_backend`).
        saving: "inputs" keeps ``x`` and is exact: less than the steps of an unfused formula would keep.

    Raises:
        ValueError: unknown backend or `saving`.
        RuntimeError: a backend that was chosen by name cannot serve ``x``.
    """
    backend = AUTO if backend is None else backend
    check_backend(backend)
    _check(saving)
    if not wants_gradient(x):
        return curve.forward(x)
    if is_distributed(x):
        return of_parts(lambda part: invert(part, curve, backend, saving), x)
    x = autocast(x, curve)
    y: Tensor
    if saving == "output":
        y, _ = ACTIVATION(x, curve.key, backend)
    else:
        y = EXACT_ACTIVATION(x, curve.key, backend)
    return y


def gate(gate: Tensor, up: Tensor, curve: Curve, saving: Saving = "output", backend: str | None = None) -> Tensor:
    """``curve.forward(gate) * up``, keeping two tensors for the backward pass instead of four.

    Args:
        gate, up: of one shape and floating dtype, any memory layout.
        curve: the activation.
        saving: "output" keeps the product (which the next layer keeps anyway), ``up``, and one bit per element; an
            ``up`` below 2^-60 is taken for that, so that the product keeps the activation's output. "inputs" keeps
            ``gate`` and ``up``, and is exact; so does "output" where a product does not tell the activation's output:
            in float16, and for activations whose derivative jumps (see `quotient.tells_output`).
        backend: "eager", "compile" or "triton"; None or "auto" chooses (see `backends.choose_backend`).

    Raises:
        ValueError: the shapes or dtypes differ; unknown `saving` or backend.
        RuntimeError: a backend that was chosen by name cannot serve the tensors.
    """
    backend = AUTO if backend is None else backend
    check_backend(backend)
    _check(saving)
    if is_array(gate) and is_array(up) and (gate.shape, gate.dtype) != (up.shape, up.dtype):
        raise ValueError(
            "gate and up must have one shape and dtype, got "
            f"{tuple(gate.shape)}, {gate.dtype} and {tuple(up.shape)}, {up.dtype}"
        )
    if not wants_gradient(gate, up):
        return curve.forward(gate) * up
    if is_distributed(gate) or is_distributed(up):
        if are_placed_alike(gate, up):
            return of_parts(lambda gate, up: _gate(gate, up, curve, saving, backend), gate, up)
        return curve.forward(gate) * up
    return _gate(gate, up, curve, saving, backend)


def _gate(gate: Tensor, up: Tensor, curve: Curve, saving: Saving, backend: str) -> Tensor:
    gate = autocast(gate, curve)
    y: Tensor
    if saving == "output" and tells_output(curve, gate.dtype, up.dtype):
        y, _ = GATE(gate, _on_its_own(up), curve.key, backend)
    else:
        y = EXACT_GATE(gate, up, curve.key, backend)
    return y


def _check(saving: str) -> None:
    if saving not in SAVINGS:
        raise ValueError(f"saving must be one of {', '.join(map(repr, SAVINGS))}, got {saving!r}")


def _on_its_own(tensor: Tensor) -> Tensor:
    """A copy of a part of a larger storage, as one half of a fused projection is: the view would keep all of it."""
    try:
        stored = tensor.untyped_storage().size()
    except NotImplementedError:  # the tensors inside torch.func's transforms do not tell
        return tensor
    is_part = stored > tensor.numel() * tensor.element_size()
    return tensor.clone(memory_format=torch.contiguous_format) if is_part else tensor
