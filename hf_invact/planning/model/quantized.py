"""Linear layers whose weights bitsandbytes holds in 4 or 8 bits, on fake tensors.

Its kernels do not run on these. So each layer computes with a dequantized weight, and needs and keeps the memory that
bitsandbytes' does (0.50, read from its source): in 4 bits one weight in the dtype of the product at a time, in both
passes; in 8 bits on CUDA the input in float16 and int8, the product in int32, and in the backward pass a dequantized
weight; in 8 bits on a CPU as in 4.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from transformers import PreTrainedModel

from ..errors import PlanningError

FOUR, EIGHT = "4bit", "8bit"
QUANTIZATIONS = (FOUR, EIGHT)
BLOCK, BLOCK_OF_SCALES = 64, 256  # weights with one scale, and scales with one scale of their own
_CODES = {"code": 16, "nested_code": 256, "offset": 1}  # float32, one of each for each layer


def quantize(model: PreTrainedModel, how: str) -> None:
    """Replace the linear layers of a model on the meta device, but its head, as Transformers does for bitsandbytes.

    In 4 bits they are those of QLoRA: nf4, with scales that are quantized too.

    Args:
        how: one of `QUANTIZATIONS`.

    Raises:
        PlanningError: bitsandbytes is not installed, or the model has no such layer.
    """
    try:
        import bitsandbytes.nn.modules as quantized
    except ImportError as error:
        raise PlanningError("quantized weights need the package bitsandbytes: pip install bitsandbytes") from error
    from transformers.quantizers.base import get_keys_to_not_convert

    kept = tuple(get_keys_to_not_convert(model))
    names = [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and not any(f"{name}.".startswith(f"{each}.") for each in kept)
    ]
    if not names:
        raise PlanningError(f"{type(model).__name__} has no linear layer that bitsandbytes would quantize")
    for name in names:
        layer = model.get_submodule(name)
        sizes = layer.in_features, layer.out_features, layer.bias is not None
        with unset_fake_temporarily(), torch.device("meta"):
            made: nn.Module
            if how == FOUR:
                made = quantized.Linear4bit(*sizes, compute_dtype=layer.weight.dtype, quant_type="nf4")
            else:
                made = quantized.Linear8bitLt(*sizes, has_fp16_weights=False)
        made.bias = layer.bias  # in its dtype
        model.set_submodule(name, made.requires_grad_(False))
    setattr(model, f"is_loaded_in_{how}", True)  # by which PEFT tells that it has to adapt them


def quantization_of(model: nn.Module) -> str:
    """In how many bits linear layers of a model are, one of `QUANTIZATIONS`; empty if in none."""
    bits = {_bits(module) for module in model.modules()} - {""}
    return " and ".join(sorted(bits))


def use_fake_kernels(model: nn.Module, device: str, original: nn.Module | None = None) -> None:
    """Have the quantized layers of a model on fake tensors run on them.

    Args:
        device: "cuda" or "cpu".
        original: the model that it is a copy of; None for one after `quantize`, whose weights are not packed yet.
    """
    for name, module in model.named_modules():
        if bits := _bits(module):
            source = None if original is None else original.get_submodule(name)
            buffers = _packed(module) if source is None else _state_of(source)
            vars(module)["_buffers"].update(buffers)
            eight = _In8Bits if device == "cuda" else _In8BitsOnCpu
            cls: Any = type(module)
            module.__class__ = _fake_class(cls, _In4Bits if bits == FOUR else eight)


def _bits(module: nn.Module) -> str:
    """By name, so that bitsandbytes need not be installed."""
    names = {f"{each.__module__.partition('.')[0]}.{each.__name__}" for each in type(module).__mro__}
    if "bitsandbytes.Linear4bit" in names:
        return FOUR
    return EIGHT if "bitsandbytes.Linear8bitLt" in names else ""


def _packed(layer: Any) -> dict[str, Tensor]:
    """Packs the weight of a layer, and returns what bitsandbytes holds beside it."""
    count, is_in_4_bits = layer.weight.numel(), _bits(layer) == FOUR
    shape = (-(-count // 2), 1) if is_in_4_bits else tuple(layer.weight.shape)
    dtype = torch.uint8 if is_in_4_bits else torch.int8
    layer.weight = nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)
    if not is_in_4_bits:
        return {"scales": torch.empty(layer.out_features)}
    scales = -(-count // BLOCK)
    codes = {name: torch.empty(length) for name, length in _CODES.items()}
    nested = torch.empty(-(-scales // BLOCK_OF_SCALES))
    return {"scales": torch.empty(scales, dtype=torch.uint8), "nested_scales": nested, **codes}


def _state_of(layer: Any) -> dict[str, Tensor]:
    """Tensors like those that a real layer holds beside its weight."""
    if _bits(layer) == EIGHT:
        return {"scales": torch.empty(layer.out_features)}
    state = layer.weight.quant_state
    held = {"scales": state.absmax, "code": state.code}
    if state.nested:
        held |= {"nested_scales": state.state2.absmax, "nested_code": state.state2.code, "offset": state.offset}
    return {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in held.items()}


@cache
def _fake_class(cls: Any, fake: Any) -> Any:
    return type(cls.__name__, (fake, cls), {})


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, int], bias: Tensor | None) -> Tensor:
        ctx.shape = shape
        return F.linear(x, torch.empty(shape, dtype=x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        return _gradients(ctx, gradient)


class _KeepingProduct(_Product):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, int], bias: Tensor | None) -> Tensor:
        ctx.kept = x if ctx.needs_input_grad[0] else None  # where no hook sees it, though no gradient needs it
        return _Product.forward(ctx, x, shape, bias)


class _ProductOfIntegers(_KeepingProduct):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, int], bias: Tensor | None) -> Tensor:
        ctx.shape, ctx.kept = shape, x if ctx.needs_input_grad[0] else None
        half = x.to(torch.float16)
        packed, scales = torch.empty(x.shape, dtype=torch.int8), torch.empty(x.shape[:-1])
        del half
        product = torch.empty((*x.shape[:-1], shape[0]), dtype=torch.int32)
        del packed
        result = product.to(x.dtype)
        del product, scales
        return result if bias is None else result + bias


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
    of_input = gradient @ torch.empty(ctx.shape, dtype=gradient.dtype) if ctx.needs_input_grad[0] else None
    of_bias = gradient.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
    return of_input, None, of_bias


class _Fake(nn.Module):
    """Before bitsandbytes' class in a layer's bases."""

    in_features: int
    out_features: int
    bias: Tensor | None
    product: type[torch.autograd.Function]

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        result: Tensor = self.product.apply(x, (self.out_features, self.in_features), bias)
        return result


class _In4Bits(_Fake):
    compute_dtype: torch.dtype | None
    product = _Product

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.compute_dtype is None else x.to(self.compute_dtype)).to(x.dtype)


class _In8Bits(_Fake):
    product = _ProductOfIntegers


class _In8BitsOnCpu(_Fake):
    product = _KeepingProduct
