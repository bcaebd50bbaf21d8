"""Finds what others have put in the place of an activation, or of the block that holds it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ..forwards import WAYS_OUT
from .patched import LearnedActivation, PatchedActivation

_OURS = (PatchedActivation, LearnedActivation)
_OUR_NAMES = {cls.__name__ for cls in _OURS}
_OUR_MODULE = f".{PatchedActivation.__module__.partition('.')[2]}"
_LIGER = "liger_kernel"


def conflicts(module: nn.Module) -> Iterator[str]:
    """Why a module is not that of the unpatched model, and who made it what it is."""
    cls = type(module)
    if cls.__module__.partition(".")[0] == _LIGER and cls.__name__.endswith(("MLP", "Experts")):
        yield (
            f"hf_invact finds no activation to invert in {cls.__name__}, which Liger has put in the place of the "
            f"model's own block, with a kernel of its own. {WAYS_OUT}"
        )
    for value in (*vars(module).values(), *module._modules.values()):
        if package := _other_copy(type(value)):
            yield (
                f"inverted already by another copy of hf_invact, imported as {package!r}. Undo that with "
                f"{package}.unpatch_model(model), or use that copy alone"
            )


def _other_copy(cls: type) -> str | None:
    """The name of the other copy of this package that made a class of patched activations; None for other classes."""
    if issubclass(cls, _OURS):
        return None
    found = (base.__module__ for base in cls.__mro__ if base.__name__ in _OUR_NAMES)
    packages = (name.removesuffix(_OUR_MODULE) for name in found if name.endswith(_OUR_MODULE))
    return next(packages, None)
