"""The backends by name, and which of them serves a tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..curves import Curve
from . import compiled, eager

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


def _backend(name: str, module: Any) -> Backend:
    operations = (field.name for field in fields(Backend) if field.name != "name")
    return Backend(name, **{operation: getattr(module, operation) for operation in operations})


BACKENDS = MappingProxyType(
    {name: _backend(name, module) for name, module in {"eager": eager, "compile": compiled}.items()}
)


def check_backend(name: str) -> None:
    """Raise ValueError unless `name` is a backend's name or "auto"."""
    if name != AUTO and name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; known: {', '.join([AUTO, *BACKENDS])}")


def choose_backend(name: str, device: torch.device) -> Backend:
    """The backend of this name; "auto" takes the best for tensors on `device`."""
    check_backend(name)
    return BACKENDS["eager" if name == AUTO else name]
