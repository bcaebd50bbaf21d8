"""Hooks that others have put on an activation."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as global_hooks

# Those that run when a module is called: on the module itself, and on all modules.
_OF_A_MODULE = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_OF_ALL_MODULES = (
    "_global_forward_pre_hooks",
    "_global_forward_hooks",
    "_global_backward_pre_hooks",
    "_global_backward_hooks",
)
_ATTRIBUTES = tuple(name for name in vars(nn.Module()) if "_hook" in name)
# Theirs fetch weights, count calls or note names, and touch no value of a module without parameters.
_HARMLESS = ("deepspeed", "torch.distributed", "torch.utils")


def hook_of_others(module: nn.Module) -> str | None:
    """The full name of a hook that runs when a module is called, and may look at values or change them; None without.

    While there is one, the module has to compute what the unpatched one does.
    """
    dictionaries = (vars(module)[name] for name in _OF_A_MODULE)
    everywhere = (getattr(global_hooks, name) for name in _OF_ALL_MODULES)
    return next((name for hooks in (*dictionaries, *everywhere) for name in _names_of_others(hooks)), None)


def _names_of_others(hooks: Mapping[int, Any]) -> Iterator[str]:
    for hook in hooks.values():
        while isinstance(hook, partial):
            hook = hook.func
        named = hook if hasattr(hook, "__qualname__") else type(hook)
        name = f"{named.__module__}.{named.__qualname__}"
        if not any(name.startswith(f"{package}.") for package in _HARMLESS):
            yield name


def share(original: nn.Module, module: nn.Module) -> None:
    """Give a module the hooks of another one, so that it does not matter which of the two they are registered on."""
    for name in _ATTRIBUTES:
        vars(module)[name] = vars(original)[name]


def warn_not_inverted(activation: str, hook: str) -> None:
    """Say, once for each kind of hook, that an activation keeps what it keeps unpatched."""
    if not torch.compiler.is_compiling():
        warnings.warn(
            f"{activation} is not inverted while a hook of others is on it ({hook}), which gets what it gets in the "
            "unpatched model. Remove the hook to save its memory again",
            stacklevel=2,
        )
