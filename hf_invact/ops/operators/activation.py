"""The operators for activations and gates: schemas, kernels and fake results.

An operator takes a curve by its key and a backend by its name, because its arguments can only be tensors, numbers and
strings. `side` holds packed bits in the memory order of the output. It is empty for a curve without a turning point.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from ...curves import Curve
from ...curves.keys import curve_by_key
from ..backends import choose_backend
from ..bits import packed_size
from ..eager import activation as eager
from .library import define


class ActivationKernels(Protocol):
    """What a backend's module `activation` has to define."""

    def forward(self, x: Tensor, curve: Curve) -> tuple[Tensor, Tensor | None]:
        """Evaluate the activation and note which inputs lie left of its turning point.

        Args:
            x: any shape, layout and floating dtype.

        Returns:
            ``y``, shaped as ``x``, and the side bits in the memory order of ``y``, uint8, shape (ceil(numel / 8),).
            No side bits (None) for an activation without a turning point.
        """

    def backward(self, dy: Tensor, y: Tensor, side: Tensor | None, curve: Curve) -> Tensor:
        """``dy * f'(x)`` from the output and the side bits.

        Args:
            dy: gradient of ``y``, of its shape, any layout and floating dtype.
            y: the output, dense.
            side: as `forward` returned it.

        Returns:
            Gradient of ``x``, with the shape and layout of ``y`` and the dtype of ``dy``. Computed in float32 (float64
            for float64) and rounded once.
        """

    def gate_forward(self, gate: Tensor, up: Tensor, curve: Curve) -> tuple[Tensor, Tensor | None]:
        """``f(gate) * up``, and the side bits of ``gate``.

        Args:
            gate, up: of one shape, any layout and floating dtypes for which `tells_output` holds.

        Returns:
            The product and the side bits, as `forward` returns them. An ``up`` smaller than
            `unmultiply.SMALLEST_FACTOR` is replaced by that number, or the product would lose ``f(gate)``.
        """

    def gate_backward(
        self, dy: Tensor, product: Tensor, up: Tensor, side: Tensor | None, curve: Curve
    ) -> tuple[Tensor, Tensor]:
        """Gradients of ``gate`` and ``up`` from the product, ``up`` and the side bits.

        Args:
            dy: gradient of the product, of its shape, any layout and floating dtype.
            product: dense.
            up: of the product's shape, any floating dtype and layout.
            side: as `gate_forward` returned it.

        Returns:
            Both with the shape and layout of the product and the dtype of ``dy``. Computed in float32 (float64 for
            float64) and rounded once.
        """

    def exact_backward(self, dy: Tensor, x: Tensor, curve: Curve) -> Tensor:
        """The native gradient of ``x``, recomputed from it.

        Args:
            dy: gradient of the output, of its shape and dtype, any layout.
            x: any shape, layout and floating dtype.
        """

    def exact_gate_backward(self, dy: Tensor, gate: Tensor, up: Tensor, curve: Curve) -> tuple[Tensor, Tensor]:
        """The native gradients of ``gate`` and ``up``, recomputed from both.

        Args:
            dy: gradient of the product, of its shape and dtype, any layout.
            gate, up: of one shape, any floating dtypes and layouts.

        Returns:
            Both with the shape and layout of the product, each in the dtype of its input.
        """


@cache
def implementation(backend: str) -> ActivationKernels:
    """The module that computes activations and gates: `activation` in the backend's folder.

    Triton and the compiler are imported when they are first used: one is optional, the other takes seconds to import.
    """
    if backend == "compile":
        from ..inductor import activation as inductor

        return inductor
    if backend == "triton":
        from ..triton import activation as triton

        return triton
    return eager


def tells_output(curve: Curve, gate: torch.dtype, up: torch.dtype) -> bool:
    """Whether the rounded product of ``f(gate)`` and ``up`` determines ``f(gate)`` well enough for the gradients.

    It does not in float16, whose range of exponents is too small: the product of two common numbers loses its digits
    (0.005 * 0.001) or overflows. Nor where the derivative jumps, since the product's rounding may lead to the other
    side of the jump. Nor if the product is wider than the gate: then it does not show how ``f(gate)`` was rounded.
    """
    product = torch.promote_types(gate, up)
    return product == gate and product != torch.float16 and not curve.jumps


def _activation(x: Tensor, curve: str, backend: str) -> tuple[Tensor, Tensor]:
    y, side = _kernels(backend, x).forward(x, curve_by_key(curve))
    return y, _no_side_bits(y) if side is None else side


def _fake_activation(x: Tensor, curve: str, backend: str) -> tuple[Tensor, Tensor]:
    record = curve_by_key(curve)
    y = record.forward(x)
    return y, _no_side_bits(y) if record.x_min is None else y.new_empty(packed_size(y.numel()), dtype=torch.uint8)


def _activation_backward(dy: Tensor, y: Tensor, side: Tensor | None, curve: str, backend: str) -> Tensor:
    return _kernels(backend, y).backward(dy, y, _checked_side_bits(side, y), curve_by_key(curve))


def _fake_activation_backward(dy: Tensor, y: Tensor, side: Tensor | None, curve: str, backend: str) -> Tensor:
    return torch.empty_strided(y.size(), y.stride(), dtype=dy.dtype, device=y.device)


def _gate(gate: Tensor, up: Tensor, curve: str, backend: str) -> tuple[Tensor, Tensor]:
    kernels, record = _kernels(backend, gate), curve_by_key(curve)
    if tells_output(record, gate.dtype, up.dtype):
        product, side = kernels.gate_forward(gate, up, record)
    else:
        product, side = _native_gate(gate, up, record), None
    return product, _no_side_bits(product) if side is None else side


def _fake_gate(gate: Tensor, up: Tensor, curve: str, backend: str) -> tuple[Tensor, Tensor]:
    record = curve_by_key(curve)
    if tells_output(record, gate.dtype, up.dtype):
        return _fake_activation(gate, curve, backend)
    product = _native_gate(gate, up, record)
    return product, _no_side_bits(product)


def _gate_backward(
    dy: Tensor, product: Tensor, up: Tensor, side: Tensor | None, curve: str, backend: str
) -> tuple[Tensor, Tensor]:
    side = _checked_side_bits(side, product)
    return _kernels(backend, product).gate_backward(dy, product, up, side, curve_by_key(curve))


def _fake_gate_backward(
    dy: Tensor, product: Tensor, up: Tensor, side: Tensor | None, curve: str, backend: str
) -> tuple[Tensor, Tensor]:
    dgate, dup = (_fake_activation_backward(dy, product, side, curve, backend) for _ in range(2))
    return dgate, dup


def _exact_activation(x: Tensor, curve: str, backend: str) -> Tensor:
    choose_backend(backend, x)  # raises here already if the backend does not support the tensor
    return curve_by_key(curve).forward(x)


def _fake_exact_activation(x: Tensor, curve: str, backend: str) -> Tensor:
    return curve_by_key(curve).forward(x)


def _exact_activation_backward(dy: Tensor, x: Tensor, curve: str, backend: str) -> Tensor:
    with _autograd_in_a_kernel():
        return _kernels(backend, x).exact_backward(dy, x, curve_by_key(curve))


def _fake_exact_activation_backward(dy: Tensor, x: Tensor, curve: str, backend: str) -> Tensor:
    return torch.empty_like(x)


def _exact_gate(gate: Tensor, up: Tensor, curve: str, backend: str) -> Tensor:
    choose_backend(backend, gate)
    return _native_gate(gate, up, curve_by_key(curve))


def _fake_exact_gate(gate: Tensor, up: Tensor, curve: str, backend: str) -> Tensor:
    return _native_gate(gate, up, curve_by_key(curve))


def _exact_gate_backward(dy: Tensor, gate: Tensor, up: Tensor, curve: str, backend: str) -> tuple[Tensor, Tensor]:
    with _autograd_in_a_kernel():
        return _kernels(backend, gate).exact_gate_backward(dy, gate, up, curve_by_key(curve))


def _fake_exact_gate_backward(dy: Tensor, gate: Tensor, up: Tensor, curve: str, backend: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(gate), torch.empty_like(gate, dtype=up.dtype)


def _native_gate(gate: Tensor, up: Tensor, curve: Curve) -> Tensor:
    return curve.forward(gate).to(torch.promote_types(gate.dtype, up.dtype)).mul_(up)


def _kernels(backend: str, like: Tensor) -> ActivationKernels:
    return implementation(choose_backend(backend, like))


def _autograd_in_a_kernel() -> AbstractContextManager[None]:
    """Lets a kernel call autograd, which the dispatcher has excluded by the time that it runs kernels."""
    included, excluded = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    guard: AbstractContextManager[None] = torch._C._ForceDispatchKeyGuard(
        included, excluded.remove(torch._C.DispatchKey.AutogradFunctionality)
    )
    return guard


def _checked_side_bits(side: Tensor | None, y: Tensor) -> Tensor | None:
    """The side bits, of which kernels read as many as the output has elements, without a check of their own.

    Raises:
        ValueError: there are more or fewer.
    """
    if side is not None and side.numel() != (needed := packed_size(y.numel())):
        raise ValueError(
            f"an output of {y.numel()} elements has {needed} bytes of side bits, and {side.numel()} came with it: "
            "hooks on saved tensors must return what they were given"
        )
    return side


def _no_side_bits(y: Tensor) -> Tensor:
    return y.new_empty(0, dtype=torch.uint8)


ACTIVATION = define(
    "activation(Tensor x, str curve, str backend) -> (Tensor y, Tensor side)",
    _activation,
    _fake_activation,
)
ACTIVATION_BACKWARD = define(
    "activation_backward(Tensor dy, Tensor y, Tensor? side, str curve, str backend) -> Tensor",
    _activation_backward,
    _fake_activation_backward,
)
GATE = define(
    "gate(Tensor gate, Tensor up, str curve, str backend) -> (Tensor product, Tensor side)",
    _gate,
    _fake_gate,
)
GATE_BACKWARD = define(
    "gate_backward(Tensor dy, Tensor product, Tensor up, Tensor? side, str curve, str backend)"
    " -> (Tensor dgate, Tensor dup)",
    _gate_backward,
    _fake_gate_backward,
)
EXACT_ACTIVATION = define(
    "exact_activation(Tensor x, str curve, str backend) -> Tensor",
    _exact_activation,
    _fake_exact_activation,
)
EXACT_ACTIVATION_BACKWARD = define(
    "exact_activation_backward(Tensor dy, Tensor x, str curve, str backend) -> Tensor",
    _exact_activation_backward,
    _fake_exact_activation_backward,
)
EXACT_GATE = define(
    "exact_gate(Tensor gate, Tensor up, str curve, str backend) -> Tensor",
    _exact_gate,
    _fake_exact_gate,
)
EXACT_GATE_BACKWARD = define(
    "exact_gate_backward(Tensor dy, Tensor gate, Tensor up, str curve, str backend) -> (Tensor dgate, Tensor dup)",
    _exact_gate_backward,
    _fake_exact_gate_backward,
)
