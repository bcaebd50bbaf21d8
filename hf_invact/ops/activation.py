"""Activations and gates that save for backward what the next layer saves anyway."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ..curves import Curve
from .backends import AUTO, check_backend
from .inputs import (
    apply_to_local_parts,
    are_placed_alike,
    autocast,
    is_array,
    is_distributed,
    own_storage,
    wants_gradient,
)
from .operators.activation import ACTIVATION, EXACT_ACTIVATION, EXACT_GATE, GATE, tells_output

Saving = Literal["output", "inputs"]
SAVINGS: tuple[Saving, ...] = ("output", "inputs")


def invert(x: Tensor, curve: Curve, backend: str | None = None, saving: Saving = "output") -> Tensor:
    """``curve.forward(x)``, saving the output and one bit per element for backward.

    Args:
        x: any shape, memory layout and floating dtype. Of a DTensor each process computes its local part.
        curve: the activation.
        backend: "eager", "compile" or "triton"; None or "auto" chooses (see `backends.choose_backend`).
        saving: "inputs" saves ``x`` and is exact. That is less than the steps of an unfused formula save.

    Raises:
        ValueError: unknown backend or `saving`.
        RuntimeError: a backend that was chosen by name does not support ``x``.
    """
    backend = AUTO if backend is None else backend
    _check_saving(saving)
    if not wants_gradient(x):
        check_backend(backend)
        return curve.forward(x)
    if is_distributed(x):
        return apply_to_local_parts(lambda part: invert(part, curve, backend, saving), x)
    x = autocast(x, curve)
    y: Tensor
    if saving == "output":
        y, _ = ACTIVATION(x, curve.key, backend)
    else:
        y = EXACT_ACTIVATION(x, curve.key, backend)
    return y


def gate(gate: Tensor, up: Tensor, curve: Curve, saving: Saving = "output", backend: str | None = None) -> Tensor:
    """``curve.forward(gate) * up``, saving two tensors for backward instead of four.

    Args:
        gate, up: of one shape and floating dtype, any memory layout.
        curve: the activation.
        saving: "output" saves the product (which the next layer saves anyway), ``up``, and one bit per element. An
            ``up`` below 2^-60 is replaced by that number, so that the activation's output can be computed from the
            product. "inputs" saves ``gate`` and ``up``, and is exact. "output" does the same where the product does not
            determine the activation's output: in float16, and for activations whose derivative jumps (see
            `operators.activation.tells_output`).
        backend: "eager", "compile" or "triton"; None or "auto" chooses (see `backends.choose_backend`).

    Raises:
        ValueError: the shapes or dtypes differ; unknown `saving` or backend.
        RuntimeError: a backend that was chosen by name does not support the tensors.
    """
    backend = AUTO if backend is None else backend
    _check_saving(saving)
    if is_array(gate) and is_array(up) and (gate.shape, gate.dtype) != (up.shape, up.dtype):
        raise ValueError(
            "gate and up must have one shape and dtype, got "
            f"{tuple(gate.shape)}, {gate.dtype} and {tuple(up.shape)}, {up.dtype}"
        )
    is_sharded = is_distributed(gate) or is_distributed(up)
    if not wants_gradient(gate, up) or (is_sharded and not are_placed_alike(gate, up)):
        check_backend(backend)
        return curve.forward(gate) * up
    if is_sharded:
        return apply_to_local_parts(lambda gate, up: _gate(gate, up, curve, saving, backend), gate, up)
    return _gate(gate, up, curve, saving, backend)


def _gate(gate: Tensor, up: Tensor, curve: Curve, saving: Saving, backend: str) -> Tensor:
    gate = autocast(gate, curve)
    y: Tensor
    if saving == "output" and tells_output(curve, gate.dtype, up.dtype):
        y, _ = GATE(gate, own_storage(up), curve.key, backend)
    else:
        y = EXACT_GATE(gate, up, curve.key, backend)
    return y


def _check_saving(saving: str) -> None:
    if saving not in SAVINGS:
        raise ValueError(f"saving must be one of {', '.join(map(repr, SAVINGS))}, got {saving!r}")
