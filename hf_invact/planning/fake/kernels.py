"""Makes operations on fake CPU tensors save for the backward pass what a device's kernels would save.

There are two modes, because PyTorch decides at two levels: functions choose operators by device before autograd sees
them (`CudaFunctions`), and operators return different tensors for autograd to save (`Kernels`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from .attention import scaled_dot_product_attention

aten = torch.ops.aten

HALF = (torch.bfloat16, torch.float16)

# Functions of Transformer layers that CUDA's autocast computes in float32 (ATen's autocast_mode.h), by their names in
# Python. `square` calls `pow`, and `cross_entropy` calls `log_softmax` and `nll_loss`.
_NAMES = """
acos asin binary_cross_entropy_with_logits cdist cosh cosine_embedding_loss cosine_similarity cross_entropy cumprod
cumsum dist erfinv exp expm1 group_norm hinge_embedding_loss huber_loss interpolate kl_div l1_loss layer_norm log log10
log1p log2 log_softmax logsumexp margin_ranking_loss mse_loss multi_margin_loss multilabel_margin_loss nll_loss norm pow
prod reciprocal renorm rms_norm rpow rsqrt sinh smooth_l1_loss soft_margin_loss softmax softplus square sum tan
triplet_margin_loss
"""
FLOAT32_UNDER_AUTOCAST = frozenset(_NAMES.split())


class CudaFunctions(TorchFunctionMode):
    """Makes functions call the operators that they call for CUDA tensors.

    Empty tensors are left alone: they serve to find out the dtype that a function returns, which is cached for the CPU.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not args or not isinstance(args[0], Tensor) or not args[0].is_floating_point() or not args[0].numel():
            return func(*args, **kwargs)
        if func in _REPLACED:
            func = _REPLACED[func]
        name = getattr(func, "__name__", "").strip("_")
        if name in FLOAT32_UNDER_AUTOCAST and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map_only(Tensor, _float32, (args, kwargs))
        return func(*args, **kwargs)


def _float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in HALF else tensor


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """The fused operator, which saves a mask of a byte per element (on the CPU: of the input's dtype)."""
    if not training or p == 0:
        return input
    if inplace or p == 1:  # not fused on CUDA either
        return torch.dropout_(input, p, training) if inplace else torch.dropout(input, p, training)
    dropped: Tensor = torch.native_dropout(input, p, True)[0]
    return dropped


def _torch_dropout(input: Tensor, p: float, train: bool) -> Tensor:
    return dropout(input, p, train)


_REPLACED: dict[Callable[..., Any], Callable[..., Any]] = {
    F.dropout: dropout,
    torch.dropout: _torch_dropout,
    F.scaled_dot_product_attention: scaled_dot_product_attention,
}


class Kernels(TorchDispatchMode):
    """Corrects the dtype or layout of results where a device's kernels differ from fake CPU tensors.

    Args:
        device: "cuda" or "cpu".
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.name() == "aten::_grouped_mm":  # by name: older versions of PyTorch lack it
            return grouped_mm(func, *args, **kwargs)
        result = func(*args, **kwargs)
        if func is aten.native_layer_norm.default:
            return layer_norm_result(result, weight=args[2], device=self._device)
        return result


def grouped_mm(func: Any, a: Tensor, b: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The grouped product of experts in any dtype (fake tensors support bfloat16 only)."""
    product: Tensor = func(a.bfloat16(), b.bfloat16(), *args, **kwargs)
    return product.to(a.dtype)


def layer_norm_result(
    result: tuple[Tensor, Tensor, Tensor], weight: Tensor | None, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and reciprocal deviation are float32 on CUDA, and have the weight's dtype on a CPU (fake: the input's)."""
    output, mean, deviation = result
    dtype = torch.float32 if device == "cuda" else mean.dtype if weight is None else weight.dtype
    return output, mean.to(dtype), deviation.to(dtype)
