"""Which curve an activation object computes, decided from the object that is installed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any

import torch.nn.functional as F
from torch import nn

from ..curves import CURVES, GELU, GELU_TANH, QUICK_GELU, SILU, Curve

# Classes by their full name, so that nothing of Transformers is imported to look one up.
_CURVE_OF_CLASS: dict[str, Curve] = {
    "torch.nn.modules.activation.GELU": GELU,  # unless its `approximate` says otherwise
    "torch.nn.modules.activation.SiLU": SILU,
    "transformers.activations.SiLUActivation": SILU,
    "transformers.activations.GELUActivation": GELU,  # gelu and gelu_python
    "transformers.activations.GELUTanh": GELU_TANH,  # gelu_pytorch_tanh and gelu_python_tanh
    "transformers.activations.NewGELUActivation": GELU_TANH,  # gelu_new
    "transformers.activations.FastGELUActivation": GELU_TANH,  # gelu_fast
    "transformers.activations.AccurateGELUActivation": GELU_TANH,  # gelu_accurate
    "transformers.activations.QuickGELUActivation": QUICK_GELU,
}
_CURVE_OF_FUNCTION: dict[Hashable, Curve] = {F.gelu: GELU, F.silu: SILU}
_CURVE_OF_APPROXIMATION = {"none": GELU, "tanh": GELU_TANH}

# PyTorch keeps the output of these for the backward pass anyway (or nothing at all).
_SAVES_OUTPUT = frozenset(
    {
        "torch.nn.modules.activation.ReLU",
        "torch.nn.modules.activation.Tanh",
        "torch.nn.modules.activation.Sigmoid",
        "transformers.activations.LinearActivation",
    }
)


def curve_of(activation: object) -> Curve | None:
    """The curve that an activation object computes; None where it is not known.

    Args:
        activation: a module or a function. Only exact classes count: a subclass may compute something else.
    """
    if type(activation) is nn.GELU:
        return _CURVE_OF_APPROXIMATION.get(activation.approximate)
    if isinstance(activation, nn.Module):
        return _CURVE_OF_CLASS.get(full_name(type(activation)))
    if isinstance(activation, functools.partial) and activation.func is F.gelu and not activation.args:
        return _CURVE_OF_APPROXIMATION.get(activation.keywords.get("approximate", "none"))
    return _CURVE_OF_FUNCTION.get(activation) if isinstance(activation, Hashable) else None


def saves_output_already(activation: object) -> bool:
    """Whether inverting this activation would gain nothing."""
    return full_name(type(activation)) in _SAVES_OUTPUT


def register_activation(activation: type[nn.Module] | Callable[..., Any], curve: str) -> None:
    """Tell the patcher that a module class, or a function, computes a known curve.

    Args:
        activation: the class (its instances are called with one tensor), or the function.
        curve: name of the curve: gelu, gelu_tanh, silu or quick_gelu.

    Raises:
        ValueError: an unknown curve, or an activation that is registered already with another one.
    """
    if curve not in CURVES:
        raise ValueError(f"unknown curve {curve!r}; known: {', '.join(CURVES)}")
    is_class = isinstance(activation, type)
    table: dict[Any, Curve] = _CURVE_OF_CLASS if is_class else _CURVE_OF_FUNCTION
    key = full_name(activation) if isinstance(activation, type) else activation
    if table.setdefault(key, CURVES[curve]) is not CURVES[curve]:
        raise ValueError(f"{key} is registered already, as {table[key].name}")


def full_name(cls: type) -> str:
    """A class's module and qualified name."""
    return f"{cls.__module__}.{cls.__qualname__}"


def describe(activation: object) -> str:
    """How messages call an activation object."""
    return type(activation).__name__ if isinstance(activation, nn.Module) else repr(activation)


def supported_activations() -> tuple[str, ...]:
    """Short names of what `curve_of` knows, for messages."""
    functions = [getattr(function, "__name__", repr(function)) for function in _CURVE_OF_FUNCTION]
    return tuple(sorted({*(name.rpartition(".")[2] for name in _CURVE_OF_CLASS), *functions}))
