"""Finds the parts of a model that `torch.compile` has compiled."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn


def compiled_modules(model: nn.Module) -> list[str]:
    """Qualified names of the outermost modules that run compiled code ("" is the model itself).

    Finds modules compiled by `Module.compile`, wrapped by ``torch.compile(module)``, or with a compiled function among
    their attributes and methods. Compiled functions that a forward pass gets from elsewhere are not found.
    """
    found: list[str] = []
    classes: dict[type, bool] = {}
    for name, module in model.named_modules():  # outer modules come first
        cls = type(module)
        if cls not in classes:
            classes[cls] = any(map(_is_compiled, _methods(cls)))
        is_new = not any(is_within(name, outer) for outer in found)
        functions = [value for value in vars(module).values() if callable(value)] if is_new else ()
        if is_new and (classes[cls] or any(map(_is_compiled, functions))):
            found.append(name)
    return found


def is_within(name: str, outer: str) -> bool:
    """Whether a qualified name is `outer` or inside of it."""
    return outer in ("", name) or name.startswith(f"{outer}.")


def _methods(cls: type) -> Iterator[Any]:
    return (value for base in cls.__mro__ if base is not nn.Module for value in vars(base).values())


def _is_compiled(value: Any) -> bool:
    return callable(value) and any(
        "_torchdynamo_orig_callable" in attributes and not attributes.get("_torchdynamo_disable")
        for attributes in map(_attributes, _unwrapped(value))
    )


def _unwrapped(value: Any) -> Iterator[Any]:
    """A function and those that it wraps: Accelerate, for one, wraps a model's forward."""
    while callable(value) and not isinstance(value, nn.Module):
        yield value
        value = value.func if isinstance(value, partial) else _attributes(value).get("__wrapped__")


def _attributes(value: Any) -> dict[str, Any]:
    return getattr(getattr(value, "__func__", value), "__dict__", {})
