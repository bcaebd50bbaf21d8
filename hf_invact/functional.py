"""Activations and norms with the names and arguments of `torch.nn.functional` that save their output for backward.

The others of `torch.nn.functional` (relu, tanh, sigmoid) save their output anyway.

>>> import torch, hf_invact
>>> x = torch.randn(4, 8, requires_grad=True)
>>> y = hf_invact.functional.gelu(x)
>>> bool((y == torch.nn.functional.gelu(x)).all())
True
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from . import curves
from .curves import GELU, GELU_TANH, HARDSWISH, LAPLACE, MISH, QUICK_GELU, RELU2, RELU6, SILU, SQRTSOFTPLUS, Curve
from .curves.keys import curve_by_key
from .norms import LAYER_NORM, RMS_NORM, NormForm
from .ops import NormSaving, Saving, invert, is_array, normalize
from .ops import gate as inverted_gate


def gelu(input: Tensor, approximate: Literal["none", "tanh"] = "none", *, backend: str | None = None) -> Tensor:
    """`torch.nn.functional.gelu`, saving its output and one bit per element.

    Raises:
        ValueError: unknown `approximate` or `backend`.
    """
    known = {"none": GELU, "tanh": GELU_TANH}
    if approximate not in known:
        raise ValueError(f"approximate must be 'none' or 'tanh', got {approximate!r}")
    return invert(input, known[approximate], backend)


def silu(input: Tensor, *, backend: str | None = None) -> Tensor:
    """`torch.nn.functional.silu`, saving its output and one bit per element."""
    return invert(input, SILU, backend)


def quick_gelu(input: Tensor, *, backend: str | None = None) -> Tensor:
    """``x * sigmoid(1.702 x)``, computed in at least float32, saving its output and one bit per element."""
    return invert(input, QUICK_GELU, backend)


def mish(input: Tensor, *, backend: str | None = None) -> Tensor:
    """`torch.nn.functional.mish`, saving its output and one bit per element."""
    return invert(input, MISH, backend)


def hardswish(input: Tensor, *, backend: str | None = None) -> Tensor:
    """`torch.nn.functional.hardswish`, saving its output and one bit per element."""
    return invert(input, HARDSWISH, backend)


def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0, *, backend: str | None = None) -> Tensor:
    """`torch.nn.functional.softplus`, saving its output alone.

    Raises:
        ValueError: `beta` is not positive, or unknown `backend`.
    """
    return invert(input, _curve(curves.softplus, beta, threshold), backend)


def elu(input: Tensor, alpha: float = 1.0, *, backend: str | None = None) -> Tensor:
    """`torch.nn.functional.elu`, saving its output alone.

    Raises:
        ValueError: `alpha` is not positive, or unknown `backend`.
    """
    return invert(input, _curve(curves.elu, alpha), backend)


def selu(input: Tensor, *, backend: str | None = None) -> Tensor:
    """`torch.nn.functional.selu`, saving its output alone."""
    return invert(input, curves.selu(), backend)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, *, backend: str | None = None) -> Tensor:
    """`torch.nn.functional.leaky_relu`, saving its output alone.

    Raises:
        ValueError: `negative_slope` is not positive, or unknown `backend`.
    """
    return invert(input, _curve(curves.leaky_relu, negative_slope), backend)


def relu6(input: Tensor, *, backend: str | None = None) -> Tensor:
    """`torch.nn.functional.relu6`, saving its output alone."""
    return invert(input, RELU6, backend)


def relu2(input: Tensor, *, backend: str | None = None) -> Tensor:
    """``relu(x) ** 2``, saving its output alone."""
    return invert(input, RELU2, backend)


def laplace(input: Tensor, *, backend: str | None = None) -> Tensor:
    """Transformers' laplace activation, computed in at least float32, saving its output alone."""
    return invert(input, LAPLACE, backend)


def sqrtsoftplus(input: Tensor, *, backend: str | None = None) -> Tensor:
    """``sqrt(softplus(x))``, computed in at least float32, saving its output alone."""
    return invert(input, SQRTSOFTPLUS, backend)


def gate(
    gate: Tensor, up: Tensor, activation: str = "silu", *, saving: Saving = "output", backend: str | None = None
) -> Tensor:
    """``activation(gate) * up``, as gated MLPs compute it, saving two tensors for backward instead of four.

    Args:
        gate, up: of one shape and floating dtype, any memory layout.
        activation: name of a curve, one of `hf_invact.curves.CURVES`.
        saving: "output" saves the product (which the next layer saves anyway), ``up``, and one bit per element if the
            activation has a turning point. The backward pass divides the product by ``up`` to get the activation's
            output, so factors below 2^-60 (such as 0) are replaced by that number. "inputs" saves ``gate`` and ``up``,
            and computes the product again; its gradients are exactly the native ones. "output" does the same where a
            rounded product does not determine the activation's output: in float16, whose products underflow and
            overflow, and for clipped_gelu, hardswish, laplace and relu6, whose derivative jumps.

    Raises:
        ValueError: unknown `activation`, `saving` or `backend`, or `gate` and `up` differ in shape or dtype.

    >>> import torch, hf_invact
    >>> gate, up = torch.randn(2, 4, 8, requires_grad=True)
    >>> product = hf_invact.functional.gate(gate, up, "silu")
    >>> bool((product == torch.nn.functional.silu(gate) * up).all())
    True
    """
    if activation not in curves.CURVES:
        raise ValueError(f"unknown activation {activation!r}; known: {', '.join(curves.CURVES)}")
    return inverted_gate(gate, up, curves.CURVES[activation], saving, backend)


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    saving: NormSaving = "output",
    backend: str | None = None,
) -> Tensor:
    """`torch.nn.functional.rms_norm`, saving its output and two or more numbers per row.

    Args:
        saving: "output" saves the output (which the next layer saves anyway), the reciprocal deviation, and the
            normalised input of up to four channels that the output tells least. Other weights below 2^-60 are replaced
            by that number, so that the output tells what they were multiplied by. "input" saves the input and the
            statistics, and is exact. "output" does the same in float16, whose range is too small.

    Raises:
        ValueError: unknown `saving` or `backend`.
        RuntimeError: shapes that do not match, as PyTorch's own.

    >>> import torch, hf_invact
    >>> x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    >>> y = hf_invact.functional.rms_norm(x, (8,), weight)
    >>> bool((y == torch.nn.functional.rms_norm(x, (8,), weight)).all())
    True
    """
    return _norm(RMS_NORM, input, normalized_shape, weight, None, eps, saving, backend)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    saving: NormSaving = "output",
    backend: str | None = None,
) -> Tensor:
    """`torch.nn.functional.layer_norm`, saving its output and two or more numbers per row.

    Args:
        saving: as in `rms_norm`. The larger a bias is beside its weight, the less the output tells about the normalised
            input: where the ratio is 8, bfloat16 leaves five binary digits. Up to four channels are kept, those with
            the largest ratios. Of others, if the output tells nothing about them, the normalised input counts as 0.

    Raises:
        ValueError: unknown `saving` or `backend`.
        RuntimeError: shapes that do not match, as PyTorch's own.
    """
    return _norm(LAYER_NORM, input, normalized_shape, weight, bias, eps, saving, backend)


def _norm(
    form: NormForm,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float | None,
    saving: NormSaving,
    backend: str | None,
) -> Tensor:
    dims = len(normalized_shape)
    if not is_array(input) or dims == 0 or input.shape[-dims:] != tuple(normalized_shape):
        # In a tracer, or PyTorch raises its own error.
        if form.centred:
            assert eps is not None
            return torch.nn.functional.layer_norm(input, list(normalized_shape), weight, bias, eps)
        return torch.nn.functional.rms_norm(input, list(normalized_shape), weight, eps)
    if eps is None:  # PyTorch's own: it computes in float32, or in float64
        eps = torch.finfo(torch.promote_types(input.dtype, torch.float32)).eps
    return normalize(input, weight, bias, form, eps, dims, saving, backend)


def _curve(make: Callable[..., Curve], *parameters: float) -> Curve:
    if torch.compiler.is_compiling():
        # The compiler treats numbers that vary as variables. As members of a set they must be constants.
        parameters = tuple([{parameter}.pop() for parameter in parameters])
    # By its key: the compiler would trace the making of a curve, and take each result for a new one.
    return curve_by_key(_key(make, *parameters))


@torch.compiler.assume_constant_result
def _key(make: Callable[..., Curve], *parameters: float) -> str:
    return make(*parameters).key
