"""Finds what others have put in the place of an activation, or of the forward pass that calls it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import FunctionType
from typing import Any

from torch import nn

from .slot import LearnedActivation, PatchedActivation

_OURS = (PatchedActivation, LearnedActivation)
_LIGER = "liger_kernel"
_PARALLEL = ("transformers.distributed.", "transformers.integrations.tensor_parallel")
WAYS_OUT = (
    "Make the model again and apply only one of the two (without Liger's MLP: liger_kernel_config={'swiglu': False, "
    "'geglu': False}; without hub kernels: use_kernels=False)"
)


def find_conflicts(model: nn.Module) -> dict[str, str]:
    """Blocks that are not those of the unpatched model: their qualified names, and who made them what they are."""
    return {name: why for name, module in model.named_modules() for why in _conflicts(module)}


def _conflicts(module: nn.Module) -> Iterator[str]:
    cls = type(module)
    if cls.__module__.partition(".")[0] == _LIGER and cls.__name__.endswith(("MLP", "Experts")):
        yield (
            f"hf_invact finds no activation to invert in {cls.__name__}, which Liger has put in the place of the "
            f"model's own block, with a kernel of its own. {WAYS_OUT}"
        )
    for value in (*vars(module).values(), *module._modules.values()):
        if package := _package_of_slot(type(value)):
            yield (
                f"inverted already by another copy of hf_invact, imported as {package!r}. Undo that with "
                f"{package}.unpatch_model(model), or use that copy alone"
            )


def _package_of_slot(cls: type) -> str | None:
    """The copy of this package that made a class of patched activations; None for this one, and for other classes."""
    if issubclass(cls, _OURS):
        return None
    names = {ours.__name__ for ours in _OURS}
    found = (base.__module__ for base in cls.__mro__ if base.__name__ in names)
    packages = (name.removesuffix(".patching.slot") for name in found if name.endswith(".patching.slot"))
    return next(packages, None)


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
