"""Recognizes which curve an activation object computes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeGuard

import torch.nn.functional as F
from torch import nn

from ...curves import (
    GELU,
    GELU_TANH,
    HARDSWISH,
    LAPLACE,
    MISH,
    QUICK_GELU,
    RELU2,
    RELU6,
    SILU,
    SQRTSOFTPLUS,
    Curve,
    clipped_gelu,
    elu,
    leaky_relu,
    selu,
    softplus,
)
from ..names import full_name
from .patched import Inverse, LearnedActivation, original_class

# Classes by full name, so that looking one up does not import Transformers.
_CURVE_OF_CLASS: dict[str, Curve] = {
    "torch.nn.modules.activation.SiLU": SILU,
    "transformers.activations.SiLUActivation": SILU,
    "transformers.activations.GELUActivation": GELU,  # gelu and gelu_python
    "transformers.activations.GELUTanh": GELU_TANH,  # gelu_pytorch_tanh and gelu_python_tanh
    "transformers.activations.NewGELUActivation": GELU_TANH,  # gelu_new
    "transformers.activations.FastGELUActivation": GELU_TANH,  # gelu_fast
    "transformers.activations.AccurateGELUActivation": GELU_TANH,  # gelu_accurate
    "transformers.models.bloom.modeling_bloom.BloomGelu": GELU_TANH,
    "transformers.activations.QuickGELUActivation": QUICK_GELU,
    "torch.nn.modules.activation.Mish": MISH,
    "transformers.activations.MishActivation": MISH,
    "torch.nn.modules.activation.SELU": selu(),
    "torch.nn.modules.activation.Hardswish": HARDSWISH,
    "torch.nn.modules.activation.ReLU6": RELU6,
    "transformers.activations.ReLUSquaredActivation": RELU2,
    "transformers.activations.LaplaceActivation": LAPLACE,
    "transformers.activations.SqrtSoftplusActivation": SQRTSOFTPLUS,
}
_CURVE_OF_APPROXIMATION = {"none": GELU, "tanh": GELU_TANH}
# Classes whose instances differ. A ValueError is raised for settings that cannot be inverted.
_CURVE_OF_INSTANCE: dict[str, Callable[[Any], Curve]] = {
    "torch.nn.modules.activation.GELU": lambda module: _CURVE_OF_APPROXIMATION[module.approximate],
    "torch.nn.modules.activation.LeakyReLU": lambda module: leaky_relu(module.negative_slope),
    "torch.nn.modules.activation.ELU": lambda module: elu(module.alpha),
    "torch.nn.modules.activation.Softplus": lambda module: softplus(module.beta, module.threshold),
    "transformers.activations.ClippedGELUActivation": lambda module: clipped_gelu(module.min, module.max),
}
_CURVE_OF_FUNCTION: dict[Hashable, Curve] = {
    F.gelu: GELU,
    F.silu: SILU,
    F.mish: MISH,
    F.softplus: softplus(),
    F.elu: elu(),
    F.selu: selu(),
    F.leaky_relu: leaky_relu(),
    F.hardswish: HARDSWISH,
    F.relu6: RELU6,
}

# Classes with learned parameters, and the classes of `learned` that patch them.
_LEARNED = {
    "torch.nn.modules.activation.PReLU": "PatchedPReLU",
    "transformers.activations.XIELUActivation": "PatchedXIELU",
}

_SAVES_OUTPUT = "its gradient already uses the output"
_LEFT_ALONE = {
    "torch.nn.modules.activation.ReLU": _SAVES_OUTPUT,
    "torch.nn.modules.activation.Tanh": _SAVES_OUTPUT,
    "torch.nn.modules.activation.Sigmoid": _SAVES_OUTPUT,
    "transformers.activations.LinearActivation": "it saves nothing",
}


def curve_of(activation: object) -> Curve | None:
    """The curve that an activation object computes; None if it is unknown or cannot be inverted.

    Args:
        activation: a module or a function. Only exact classes count: a subclass may compute something else.
    """
    if isinstance(activation, nn.Module):
        name = full_name(type(activation))
        if name not in _CURVE_OF_INSTANCE:
            return _CURVE_OF_CLASS.get(name)
        try:
            return _CURVE_OF_INSTANCE[name](activation)
        except ValueError:
            return None
    if isinstance(activation, functools.partial) and activation.func is F.gelu and not activation.args:
        return _CURVE_OF_APPROXIMATION.get(activation.keywords.get("approximate", "none"))
    return _CURVE_OF_FUNCTION.get(activation) if _is_hashable(activation) else None


def _is_hashable(value: object) -> TypeGuard[Hashable]:
    try:
        hash(value)
    except TypeError:  # also for objects that define __hash__ but hold something unhashable
        return False
    return True


def learned_class_of(activation: object) -> type[LearnedActivation] | None:
    """The class that patches an activation with learned parameters; None for other activations."""
    name = _LEARNED.get(full_name(original_class(activation)))
    if name is None:
        return None
    from . import learned

    found: type[LearnedActivation] = getattr(learned, name)
    return found


def inverse_of(activation: object) -> Inverse | None:
    """What `install.install` needs to invert an activation object; None if it is unknown or cannot be inverted."""
    learned = learned_class_of(activation)
    if learned is None:
        return curve_of(activation)
    return None if learned.reason_to_leave(activation) else learned


def reason_to_leave(activation: object) -> str | None:
    """Why a known activation is left alone; None for any other."""
    if learned := learned_class_of(activation):
        return learned.reason_to_leave(activation)
    name = full_name(type(activation))
    if name in _CURVE_OF_INSTANCE:
        try:
            _CURVE_OF_INSTANCE[name](activation)
        except ValueError as error:
            return str(error)
    return _LEFT_ALONE.get(name)


def recognise(activations: Iterable[type[nn.Module] | Callable[..., Any]], curve: Curve) -> None:
    """Make `curve_of` return a curve for module classes and functions.

    Raises:
        ValueError: one of them is known already otherwise, or is neither a class nor a function. None is then added.
    """
    classes: dict[str, Curve] = {}
    functions: dict[Hashable, Curve] = {}
    for activation in activations:
        if isinstance(activation, type):
            classes[full_name(activation)] = curve
        elif isinstance(activation, nn.Module) or not callable(activation):
            raise ValueError(f"expected module classes and functions, got an instance of {full_name(type(activation))}")
        elif not _is_hashable(activation):
            raise ValueError(f"{activation!r} cannot be hashed, so that it cannot be recognized in a model")
        else:
            functions[activation] = curve
    for name in classes:
        if name in _CURVE_OF_INSTANCE or name in _LEARNED:
            raise ValueError(f"{name} is known already: an instance's own parameters say which curve it computes")
        if name in _LEFT_ALONE:
            raise ValueError(f"{name} is known already, and left alone: {_LEFT_ALONE[name]}")
    known = [(key, _CURVE_OF_CLASS.get(key, curve)) for key in classes]
    known += [(repr(key), _CURVE_OF_FUNCTION.get(key, curve)) for key in functions]
    for name, other in known:
        if other is not curve:
            raise ValueError(f"{name} is registered already, as {other.name}")
    _CURVE_OF_CLASS.update(classes)
    _CURVE_OF_FUNCTION.update(functions)


def describe(activation: object) -> str:
    """The name of an activation object in messages."""
    return original_class(activation).__name__ if isinstance(activation, nn.Module) else repr(activation)


def learned_activations() -> tuple[str, ...]:
    """The names of the classes with learned parameters."""
    return tuple(name.rpartition(".")[2] for name in _LEARNED)


def supported_activations() -> tuple[str, ...]:
    """The short names of all activations that `inverse_of` knows, for messages."""
    functions = [getattr(function, "__name__", repr(function)) for function in _CURVE_OF_FUNCTION]
    classes = (name.rpartition(".")[2] for name in (*_CURVE_OF_CLASS, *_CURVE_OF_INSTANCE, *_LEARNED))
    return tuple(sorted({*classes, *functions}))
