"""The operators as PyTorch knows them: schemas, kernels, and the shapes and layouts of their results.

Compilers take each for one opaque step. Curves are passed by key, backends by name. `side` is packed bits in the memory
order of the output; a curve without a turning point has none (no element).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from ..backends import choose_backend
from ..bits import packed_size
from ..eager.unmultiply import tells_output
from ..keys import curve_of

NAMESPACE = "hf_invact"
try:
    LIBRARY = torch.library.Library(NAMESPACE, "DEF")
except RuntimeError as error:
    raise ImportError(
        f"PyTorch has operators of the name {NAMESPACE!r} already: another copy of this package is imported in this "
        f"process. Import one of the two only, or restart Python. PyTorch says: {error}"
    ) from error


def _activation(x: Tensor, curve: str, backend: str) -> tuple[Tensor, Tensor]:
    y, side = choose_backend(backend, x).forward(x, curve_of(curve))
    return y, _no_bits(y) if side is None else side


def _activation_like(x: Tensor, curve: str, backend: str) -> tuple[Tensor, Tensor]:
    record = curve_of(curve)
    y = record.forward(x)
    return y, _no_bits(y) if record.x_min is None else y.new_empty(packed_size(y.numel()), dtype=torch.uint8)


def _activation_backward(dy: Tensor, y: Tensor, side: Tensor | None, curve: str, backend: str) -> Tensor:
    return choose_backend(backend, y).backward(dy, y, _enough(side, y), curve_of(curve))


def _activation_backward_like(dy: Tensor, y: Tensor, side: Tensor | None, curve: str, backend: str) -> Tensor:
    return torch.empty_strided(y.size(), y.stride(), dtype=dy.dtype, device=y.device)


def _gate(gate: Tensor, up: Tensor, curve: str, backend: str) -> tuple[Tensor, Tensor]:
    chosen = choose_backend(backend, gate)
    if not gate_keeps_output(gate, up, curve):
        product = _exact_gate(gate, up, curve, backend)
        return product, _no_bits(product)
    product, side = chosen.gate_forward(gate, up, curve_of(curve))
    return product, _no_bits(product) if side is None else side


def _gate_like(gate: Tensor, up: Tensor, curve: str, backend: str) -> tuple[Tensor, Tensor]:
    y, side = _activation_like(gate, curve, backend)
    if not gate_keeps_output(gate, up, curve):
        return _exact_gate(gate, up, curve, backend), _no_bits(y)
    return y, side


def gate_keeps_output(gate: Tensor, up: Tensor, curve: str) -> bool:
    """Whether `GATE` keeps its product and side bits for the backward pass; else it keeps ``gate`` itself."""
    return tells_output(curve_of(curve), gate.dtype, up.dtype)


def _gate_backward(
    dy: Tensor, product: Tensor, up: Tensor, side: Tensor | None, curve: str, backend: str
) -> tuple[Tensor, Tensor]:
    return choose_backend(backend, product).gate_backward(dy, product, up, _enough(side, product), curve_of(curve))


def _gate_backward_like(
    dy: Tensor, product: Tensor, up: Tensor, side: Tensor | None, curve: str, backend: str
) -> tuple[Tensor, Tensor]:
    dgate, dup = (_activation_backward_like(dy, product, side, curve, backend) for _ in range(2))
    return dgate, dup


def _exact_activation(x: Tensor, curve: str, backend: str) -> Tensor:
    return curve_of(curve).forward(x)


def _exact_activation_backward(dy: Tensor, x: Tensor, curve: str, backend: str) -> Tensor:
    with _autograd():
        return choose_backend(backend, x).exact_backward(dy, x, curve_of(curve))


def _exact_activation_backward_like(dy: Tensor, x: Tensor, curve: str, backend: str) -> Tensor:
    return torch.empty_like(x)


def _exact_gate(gate: Tensor, up: Tensor, curve: str, backend: str) -> Tensor:
    return curve_of(curve).forward(gate).to(torch.promote_types(gate.dtype, up.dtype)).mul_(up)


def _exact_gate_backward(dy: Tensor, gate: Tensor, up: Tensor, curve: str, backend: str) -> tuple[Tensor, Tensor]:
    with _autograd():
        return choose_backend(backend, gate).exact_gate_backward(dy, gate, up, curve_of(curve))


def _exact_gate_backward_like(dy: Tensor, gate: Tensor, up: Tensor, curve: str, backend: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(gate), torch.empty_like(gate, dtype=up.dtype)


def _autograd() -> AbstractContextManager[None]:
    """Lets autograd work inside of a kernel, where the dispatcher has left it behind."""
    included, excluded = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    guard: AbstractContextManager[None] = torch._C._ForceDispatchKeyGuard(
        included, excluded.remove(torch._C.DispatchKey.AutogradFunctionality)
    )
    return guard


def _enough(side: Tensor | None, y: Tensor) -> Tensor | None:
    """The side bits, past whose end kernels would read without asking.

    Raises:
        ValueError: they are not as many as the output has elements.
    """
    if side is not None and side.numel() != (needed := packed_size(y.numel())):
        raise ValueError(
            f"an output of {y.numel()} elements has {needed} bytes of side bits, and {side.numel()} came with it: "
            "hooks on saved tensors must return what they were given"
        )
    return side


def _no_bits(y: Tensor) -> Tensor:
    return y.new_empty(0, dtype=torch.uint8)


def _define(schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> OpOverload:
    """Register an operator of this schema, without derivatives.

    Args:
        kernel: for tensors of any device.
        fake: gives tensors of the result's shape, dtype and strides.
    """
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    name = schema.partition("(")[0]
    LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
    operator: OpOverload = getattr(getattr(torch.ops, NAMESPACE), name).default
    return operator


ACTIVATION = _define(
    "activation(Tensor x, str curve, str backend) -> (Tensor y, Tensor side)",
    _activation,
    _activation_like,
)
ACTIVATION_BACKWARD = _define(
    "activation_backward(Tensor dy, Tensor y, Tensor? side, str curve, str backend) -> Tensor",
    _activation_backward,
    _activation_backward_like,
)
GATE = _define(
    "gate(Tensor gate, Tensor up, str curve, str backend) -> (Tensor product, Tensor side)",
    _gate,
    _gate_like,
)
GATE_BACKWARD = _define(
    "gate_backward(Tensor dy, Tensor product, Tensor up, Tensor? side, str curve, str backend)"
    " -> (Tensor dgate, Tensor dup)",
    _gate_backward,
    _gate_backward_like,
)
EXACT_ACTIVATION = _define(
    "exact_activation(Tensor x, str curve, str backend) -> Tensor",
    _exact_activation,
    _exact_activation,
)
EXACT_ACTIVATION_BACKWARD = _define(
    "exact_activation_backward(Tensor dy, Tensor x, str curve, str backend) -> Tensor",
    _exact_activation_backward,
    _exact_activation_backward_like,
)
EXACT_GATE = _define(
    "exact_gate(Tensor gate, Tensor up, str curve, str backend) -> Tensor",
    _exact_gate,
    _exact_gate,
)
EXACT_GATE_BACKWARD = _define(
    "exact_gate_backward(Tensor dy, Tensor gate, Tensor up, str curve, str backend) -> (Tensor dgate, Tensor dup)",
    _exact_gate_backward,
    _exact_gate_backward_like,
)
