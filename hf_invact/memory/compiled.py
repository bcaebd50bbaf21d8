"""Which parts of a model `torch.compile` has compiled."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn


def compiled_modules(model: nn.Module) -> list[str]:
    """Qualified names of the outermost modules that run compiled code ("" is the model itself).

    Seen is what `Module.compile` has compiled, what ``torch.compile(module)`` has wrapped, and compiled functions among
    the attributes and methods of a module; not those that a forward pass finds anywhere else.
    """
    found: list[str] = []
    for name, module in model.named_modules():  # a module comes before what is inside of it
        if not any(is_within(name, outer) for outer in found) and _runs_compiled_code(module):
            found.append(name)
    return found


def is_within(name: str, outer: str) -> bool:
    """Whether a qualified name is that of a module or of something inside of it."""
    return outer in ("", name) or name.startswith(f"{outer}.")


def _runs_compiled_code(module: nn.Module) -> bool:
    methods = (
        value for cls in type(module).__mro__ if cls.__module__ != nn.Module.__module__ for value in vars(cls).values()
    )
    return any(map(_is_compiled, (*vars(module).values(), *methods)))


def _is_compiled(value: Any) -> bool:
    return any(
        "_torchdynamo_orig_callable" in attributes and not attributes.get("_torchdynamo_disable")
        for attributes in map(_attributes, _unwrapped(value))
    )


def _unwrapped(value: Any) -> Iterator[Any]:
    """A function, and what it calls: Accelerate, for one, wraps a model's forward."""
    while callable(value) and not isinstance(value, nn.Module):
        yield value
        value = value.func if isinstance(value, partial) else _attributes(value).get("__wrapped__")


def _attributes(value: Any) -> dict[str, Any]:
    return getattr(getattr(value, "__func__", value), "__dict__", {})
