"""Which modules around a block may be run to probe it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

LEVELS = 3  # the block itself, and two around it


@dataclass(frozen=True)
class Surrounding:
    """A block, or a module around it.

    Attributes:
        module: the module.
        path: the block's qualified name within it.
        level: how far out it is. A wrapper is at the level of what it wraps.
        wrapped: what it calls, where it is a wrapper, else itself.
    """

    module: nn.Module
    path: str
    level: int
    wrapped: nn.Module


def surroundings(model: nn.Module, name: str, levels: int | None = LEVELS) -> list[Surrounding]:
    """What to try for a block, in this order.

    From the block outwards, so many modules of the model; None takes all. Wrappers are no levels, nor are the lists
    that they hold things in: these take whatever arguments there are and pass them on (``*args``), or hold a single
    module. One with weights of its own, such as an adapter, changes what is computed: it comes before what it wraps.
    One without (of DDP, `torch.compile`, checkpointing) adds nothing, and may communicate or compile: it is not run.
    """
    found: list[Surrounding] = []
    level, inner = 0, model.get_submodule(name)
    for outer, module, child in _outwards(model, name):
        path = name[len(outer) :].lstrip(".")
        parent = model.get_submodule(outer.rpartition(".")[0]) if outer else None
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            level += parent is None or not _is_wrapper(parent, module, module)
        elif child is None or not _is_wrapper(module, child, inner):
            level, inner = level + 1, module
            if levels is not None and level > levels:
                break
            found.append(Surrounding(module, path, level, module))
        elif not _passes_on(module):
            found.append(Surrounding(module, path, level, inner))
        elif _has_weights_beside(module, child):
            first = next((place for place, each in enumerate(found) if each.level == level), len(found))
            found.insert(first, Surrounding(module, path, level, inner))
    return found


def _outwards(model: nn.Module, name: str) -> Iterator[tuple[str, nn.Module, nn.Module | None]]:
    """The qualified name of each module from the block to the model, the module, and which one in it leads back."""
    child: nn.Module | None = None
    while True:
        module = model.get_submodule(name)
        yield name, module, child
        if not name:
            return
        name, child = name.rpartition(".")[0], module


def _is_wrapper(module: nn.Module, child: nn.Module, wrapped: nn.Module) -> bool:
    """Whether a module wraps its child, which may itself be a wrapper of another module."""
    if _passes_on(module):
        # A layer of a model may take *args, too: a wrapper is of another package, or has nothing to compute with.
        return _package(module) != _package(wrapped) or not _has_weights_beside(module, child)
    is_list = isinstance(module, (nn.ModuleList, nn.ModuleDict))
    return not is_list and len(module._modules) == 1 and not module._parameters and not module._buffers


def _passes_on(module: nn.Module) -> bool:
    try:
        parameters = inspect.signature(type(module).forward).parameters.values()
    except (TypeError, ValueError):  # of a class that is not written in Python
        return False
    return any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)


def _package(module: nn.Module) -> str:
    return type(module).__module__.partition(".")[0]


def _has_weights_beside(module: nn.Module, child: nn.Module) -> bool:
    below = set(map(id, child.parameters()))
    return any(id(weight) not in below for weight in module.parameters())
