"""The backends by name, and which of them serves a tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from ..curves import Curve
from . import eager

AUTO = "auto"


@dataclass(frozen=True)
class Backend:
    """How activations, gates and their gradients are computed. See `eager` for the arguments."""

    name: str
    forward: Callable[[Tensor, Curve], tuple[Tensor, Tensor | None]]
    backward: Callable[[Tensor, Tensor, Tensor | None, Curve], Tensor]
    gate_forward: Callable[[Tensor, Tensor, Curve], tuple[Tensor, Tensor | None]]
    gate_backward: Callable[[Tensor, Tensor, Tensor, Tensor | None, Curve], tuple[Tensor, Tensor]]
    exact_backward: Callable[[Tensor, Tensor, Curve], Tensor]
    exact_gate_backward: Callable[[Tensor, Tensor, Tensor, Curve], tuple[Tensor, Tensor]]


BACKENDS = MappingProxyType(
    {
        "eager": Backend(
            "eager",
            forward=eager.forward,
            backward=eager.backward,
            gate_forward=eager.gate_forward,
            gate_backward=eager.gate_backward,
            exact_backward=eager.exact_backward,
            exact_gate_backward=eager.exact_gate_backward,
        )
    }
)


def check_backend(name: str) -> None:
    """Raise ValueError unless `name` is a backend's name or "auto"."""
    if name != AUTO and name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; known: {', '.join([AUTO, *BACKENDS])}")


def choose_backend(name: str, device: torch.device) -> Backend:
    """The backend of this name; "auto" takes the best for tensors on `device`."""
    check_backend(name)
    return BACKENDS["eager" if name == AUTO else name]
