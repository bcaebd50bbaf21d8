"""Norms of a user's own whose form cannot be recognized."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ...norms import Recognized, form_by_name
from ..names import full_name


@dataclass(frozen=True)
class RegisteredNorm:
    """How modules of a class compute: see `register_norm`."""

    form: str
    weight: str | None
    bias: str | None
    eps: str | float


_NORMS: dict[str, RegisteredNorm] = {}


def register_norm(
    norm: type[nn.Module],
    form: str,
    *,
    weight: str | None = "weight",
    bias: str | None = None,
    eps: str | float = "eps",
) -> None:
    """Make `patch_model` patch a norm of your own that is not recognized by itself.

    A class needs no registration if its modules hold a weight and a bias at most, take one tensor, and compute one of
    the known forms. Where modules of a registered class compute something else, they are left alone.

    Args:
        norm: the module class. Its forward takes one tensor, and subclasses count only if they are registered too.
        form: the name of what it computes: see `hf-invact info`.
        weight, bias: the attributes that hold them; None if there is none.
        eps: what is added to the variance, or the attribute that holds it.

    Raises:
        ValueError: the form is unknown, or the class is registered already otherwise.

    >>> import torch, hf_invact
    >>> class Norm(torch.nn.Module):
    ...     def __init__(self) -> None:
    ...         super().__init__()
    ...         self.scale = torch.nn.Parameter(torch.ones(8))
    ...         self.register_buffer("calls", torch.zeros(()))  # for which it is not recognized
    ...     def forward(self, x):
    ...         return torch.nn.functional.rms_norm(x, (8,), self.scale, 1e-6)
    >>> hf_invact.register_norm(Norm, "rms_norm", weight="scale", eps=1e-6)
    """
    form_by_name(form)
    new = RegisteredNorm(form, weight, bias, eps)
    known = _NORMS.setdefault(full_name(norm), new)
    if known != new:
        raise ValueError(f"{full_name(norm)} is registered already, as {known}")


def registered(module: nn.Module) -> Recognized | str | None:
    """What a module of a registered class computes, or why nobody knows; None for other modules."""
    known = _NORMS.get(full_name(type(module)))
    if known is None:
        return None
    attributes = [name for name in (known.weight, known.bias, known.eps) if isinstance(name, str)]
    if missing := [name for name in attributes if not hasattr(module, name)]:
        return f"this {type(module).__name__} has no attribute {missing[0]!r}, which its registration names"
    eps = getattr(module, known.eps) if isinstance(known.eps, str) else known.eps
    weight, bias = (
        name if name is not None and getattr(module, name) is not None else None for name in (known.weight, known.bias)
    )
    shaped = weight or bias
    dims = 1 if shaped is None else getattr(module, shaped).dim()
    return Recognized(form_by_name(known.form), eps, weight, bias, dims)


def registered_norms() -> tuple[str, ...]:
    """The full names of the registered classes."""
    return tuple(_NORMS)
