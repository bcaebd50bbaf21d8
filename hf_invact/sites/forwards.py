"""Finds a forward pass that another library has put in the place of a module's own."""

from __future__ import annotations

import inspect
from types import FunctionType
from typing import Any

from torch import nn

from .errors import PatchingError

_PARALLEL = ("transformers.distributed.", "transformers.integrations.tensor_parallel")
WITHOUT_LIGER_MLP = "liger_kernel_config={'swiglu': False, 'geglu': False}"
WAYS_OUT = (
    f"Make the model again and apply only one of the two (without Liger's MLP: {WITHOUT_LIGER_MLP}; without hub "
    "kernels: use_kernels=False)"
)


def require_own_forward(name: str, module: object, original: str) -> None:
    """Refuse a module whose forward another library has replaced.

    Args:
        name: its qualified name.
        original: how the message calls the module.

    Raises:
        PatchingError: the forward is not that of the module's class.
    """
    if by := replaced_forward(module):
        raise PatchingError(
            f"{name}: another library has replaced the forward of this {original} by {by}, which need not call "
            f"what hf_invact inverts. {WAYS_OUT}, or exclude the block with InvActConfig(exclude=[...])"
        )


def replaced_forward(module: object) -> str | None:
    """The full name of what is called instead of a module's forward; None where its own is.

    Liger and hub kernels bind another class's forward to the instance.
    """
    forward = called_forward(module) if isinstance(module, nn.Module) else None
    function = getattr(forward, "__func__", forward)
    if function is None or function is type(module).forward:  # type: ignore[attr-defined]
        return None
    name = getattr(function, "__qualname__", repr(function))
    return f"{getattr(function, '__module__', '?')}.{name}"


def called_forward(module: nn.Module) -> Any:
    """The forward that is bound to an instance, within what is known to call it; None where its class's is called."""
    forward = vars(module).get("forward")
    while (inner := _called_by(forward, module)) is not None:
        forward = inner
    return forward


def _called_by(forward: Any, module: nn.Module) -> Any:
    """What a wrapper of Accelerate (for hooks) or Transformers (for parallelism) calls; None where it is not one."""
    if getattr(getattr(forward, "func", None), "__module__", None) == "accelerate.hooks":
        return vars(module)["_old_forward"]
    if not (isinstance(forward, FunctionType) and forward.__module__.startswith(_PARALLEL)):
        return None
    inside = inspect.getclosurevars(forward).nonlocals
    experts = inside.get("experts_forward") or getattr(inside.get("implementation"), "experts_forward", None)
    return inside.get("original_forward") or experts
