"""A user's own activation: fitted, measured, and found in models from then on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ...curves import CURVES, Curve, UnsuitableActivation, add_curve, fit_curve
from ...ops.accuracy import DerivativeError, error_of, measure_derivative_error
from .recognize import recognise

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
DRAWS = 200_000
MAX_FIT_ERROR = 1e-5
# Of the steepest slope, in roots of the dtype's epsilon: where the curve turns, a rounding of the output by eps costs
# its inversion about sqrt(eps). The catalogue's own come to between 0.1 and 0.35.
MAX_ROOTS_OF_EPSILON = 0.5


@dataclass(frozen=True)
class RegisteredActivation:
    """What `register_activation` found. Printing it gives a table.

    Attributes:
        curve: the fitted curve, for `hf_invact.nn.InvertedActivation`.
        errors: of the derivative that the backward pass applies, by the dtype of the activation.
    """

    curve: Curve
    errors: Mapping[torch.dtype, DerivativeError]

    def __str__(self) -> str:
        x_min = self.curve.x_min
        head = f"{self.curve.name}: " + ("rises everywhere" if x_min is None else f"turns at x = {x_min:.6g}")
        rows = [("dtype", "rms error / floor", "largest / floor")]
        for dtype, error in self.errors.items():
            rms, largest = f"{error.rms:.2g}", f"{error.max:.2g}"
            if error.floor is not None:
                rms, largest = f"{rms} / {error.floor.rms:.2g}", f"{largest} / {error.floor.max:.2g}"
            rows.append((str(dtype).removeprefix("torch."), rms, largest))
        return "\n".join([head, *(f"  {dtype:8}  {rms:17}  {largest}" for dtype, rms, largest in rows)])


def register_activation(
    name: str,
    forward: Callable[[Tensor], Tensor] | None = None,
    derivative: Callable[[Tensor], Tensor] | None = None,
    *,
    used_as: Iterable[type[nn.Module] | Callable[..., Any]] = (),
    max_error: float = MAX_FIT_ERROR,
) -> RegisteredActivation | None:
    """Make an activation of your own invertible, so that `patch_model` patches the blocks that use it.

    Finds where it turns, fits its derivative as a function of its output, and measures the error in each dtype.

    Args:
        name: its name. That of a known curve, without `forward`, says that `used_as` computes that one.
        forward: ``f``, element-wise, for tensors of any floating dtype: a function, or a module without parameters.
        derivative: ``f'``; None takes autograd's.
        used_as: further functions, and module classes, that compute it where models hold them.
        max_error: bound on the fitted derivative's own error. (What the rounding of the output adds is bounded by half
            the root of the dtype's epsilon times the steepest slope.)

    Returns:
        The curve and its errors; None where the name was that of a known curve.

    Raises:
        ValueError: it cannot be inverted, or not that exactly (`UnsuitableActivation`, which says why), or its name or
            one of its classes is known already. Nothing is registered then.

    >>> import torch, hf_invact
    >>> def telu(x):
    ...     return x * torch.tanh(torch.exp(x))
    >>> print(hf_invact.register_activation("telu", telu))
    telu: turns at x = -1.07886
      dtype     rms error / floor  largest / floor
      bfloat16  0.0033 / 0.003     0.026 / 0.022
      float16   0.00066 / 0.00062  0.012 / 0.0089
      float32   9.1e-07            9.7e-05
    """
    used_as = list(used_as)
    if forward is None:
        if name not in CURVES:
            raise ValueError(
                f"unknown curve {name!r}; known: {', '.join(CURVES)}. To add one, give its forward function"
            )
        recognise(used_as, CURVES[name])
        return None
    if name in CURVES:
        raise ValueError(f"there is a curve named {name!r} already; choose another name")
    registered = _fit_and_measure(name, forward, derivative, max_error)
    recognise([type(forward) if isinstance(forward, nn.Module) else forward, *used_as], registered.curve)
    add_curve(registered.curve)
    return registered


def _fit_and_measure(
    name: str,
    forward: Callable[[Tensor], Tensor],
    derivative: Callable[[Tensor], Tensor] | None,
    max_error: float,
) -> RegisteredActivation:
    if isinstance(forward, nn.Module) and next(forward.parameters(), None) is not None:
        raise UnsuitableActivation(f"{name} cannot be inverted: {type(forward).__name__} has parameters of its own")
    try:
        curve = fit_curve(name, forward, derivative, max_error)
        with torch.device("cpu"):
            _make_constants(curve)
            errors = {dtype: _measure(curve, dtype) for dtype in DTYPES}
        return RegisteredActivation(curve, MappingProxyType(errors))
    except UnsuitableActivation as error:
        raise UnsuitableActivation(f"{name} cannot be inverted: {error}") from None


def _make_constants(curve: Curve) -> None:
    """Have the numbers of a fit cached before the measuring, between whose large tensors they would split the heap."""
    for dtype in DTYPES:
        error_of(curve, torch.zeros(1, dtype=dtype))


def _measure(curve: Curve, dtype: torch.dtype) -> DerivativeError:
    draws = torch.randn(DRAWS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = draws.to(dtype)
    y = curve.forward(x)
    if y.dtype != dtype or y.shape != x.shape:
        raise UnsuitableActivation(f"for an input of {x.dtype}, its result is {y.dtype} of shape {tuple(y.shape)}")
    error = measure_derivative_error(curve, x)
    bound = MAX_ROOTS_OF_EPSILON * math.sqrt(torch.finfo(dtype).eps) * curve.derivative(draws).abs().max().item()
    if not error.max <= bound:
        raise UnsuitableActivation(
            f"in {dtype} its derivative would be off by up to {error.max:.2g}, more than {bound:.2g}"
        )
    return error
