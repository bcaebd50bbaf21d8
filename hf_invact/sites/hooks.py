"""Detects hooks that other code has registered on a module."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as global_hooks

# Hooks that run when a module is called: of the module itself, and of all modules.
_OF_A_MODULE = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_OF_ALL_MODULES = (
    "_global_forward_pre_hooks",
    "_global_forward_hooks",
    "_global_backward_pre_hooks",
    "_global_backward_hooks",
)
_ATTRIBUTES = tuple(name for name in vars(nn.Module()) if "_hook" in name)
# Hooks of these packages fetch weights, count calls or record names, and do not change an activation's values.
_HARMLESS = ("deepspeed", "torch.distributed", "torch.utils")


def hook_of_others(module: nn.Module) -> str | None:
    """The full name of a hook that runs when a module is called and may read or change values; None if there is none.

    While there is such a hook, the module has to compute what the unpatched one computes.
    """
    dictionaries = (vars(module)[name] for name in _OF_A_MODULE)
    everywhere = (getattr(global_hooks, name) for name in _OF_ALL_MODULES)
    return next((name for hooks in (*dictionaries, *everywhere) for name in _names_of_others(hooks)), None)


def own_hook(module: nn.Module) -> str | None:
    """The full name of a hook of this module that runs when it is called, whosever; None if there is none.

    Those that change no values as well: what fetches weights looks for tensors in the arguments.
    """
    return next((_name(hook) for name in _OF_A_MODULE for hook in vars(module)[name].values()), None)


def _names_of_others(hooks: Mapping[int, Any]) -> Iterator[str]:
    for hook in hooks.values():
        name = _name(hook)
        if not any(name.startswith(f"{package}.") for package in _HARMLESS):
            yield name


def _name(hook: Any) -> str:
    while isinstance(hook, partial):
        hook = hook.func
    named = hook if hasattr(hook, "__qualname__") else type(hook)
    return f"{named.__module__}.{named.__qualname__}"


def share(original: nn.Module, module: nn.Module) -> None:
    """Let two modules share their hooks, so that it does not matter on which of them a hook is registered."""
    for name in _ATTRIBUTES:
        vars(module)[name] = vars(original)[name]


def warn_not_inverted(activation: str, hook: str) -> None:
    """Warn, once for each kind of hook, that an activation is not inverted."""
    if not torch.compiler.is_compiling():
        warnings.warn(
            f"{activation} is not inverted while other code has a hook on it ({hook}), which gets the same tensors as "
            "in the unpatched model. Remove the hook to save the memory again",
            stacklevel=2,
        )
