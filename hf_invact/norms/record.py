"""The frozen record of how a norm is computed, step by step, so that results are equal in every bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)

Operation = Callable[..., Tensor]
Store = Callable[[Tensor, Operation, Tensor, Tensor], Tensor]


class Evaluated(NamedTuple):
    """A norm's output and the statistics of its rows, whose normalised dimensions have size 1.

    Attributes:
        mean: None for a norm that is not centred.
        reciprocal: one over the deviation.
    """

    y: Tensor
    mean: Tensor | None
    reciprocal: Tensor


@dataclass(frozen=True)
class NormForm:
    """How ``y = weight * (x - mean) / deviation + bias`` is computed: which steps, in which dtypes.

    A norm without a weight or a bias has the same form; the steps that need it are left out.

    Attributes:
        name: stands for the form in the arguments of operators.
        centred: the mean is subtracted.
        function: `torch.nn.functional`'s own function (layer_norm or rms_norm) computes it.
        offset: is added to the weight.
        divides: by the square root, in place of multiplying by `rsqrt` (or by the power -0.5, which PyTorch computes as
            `rsqrt`).
        root_is_rounded: 1 / deviation is rounded to the input's dtype, and multiplies the input itself.
        multiplies_input: 1 / deviation multiplies the input, not its copy in float32.
        input_is_widened: `function` gets the input in float32.
        weight_is_widened: the weight is converted to float32.
        rounds: before it is multiplied by the weight, the normalised input is rounded to the dtype of the input, to
            that of the weight if that is half precision, or not at all.
        keeps_dtype: the output has the dtype of the input, not the one that the product has.
    """

    name: str
    centred: bool = False
    function: bool = False
    offset: float = 0.0
    divides: bool = False
    root_is_rounded: bool = False
    multiplies_input: bool = False
    input_is_widened: bool = False
    weight_is_widened: bool = False
    rounds: Literal["to input", "to half weight", "not"] = "not"
    keeps_dtype: bool = True

    @property
    def is_one_kernel(self) -> bool:
        """Whether PyTorch computes it, with the statistics, in one pass over memory."""
        return self.function and self.centred and not self.input_is_widened

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dims: int = 1) -> Tensor:
        """The norm over the last dimensions.

        Args:
            x: shape (..., *normalized_shape), any layout and floating dtype.
            weight, bias: shape normalized_shape.
            eps: is added to the variance.
            dims: how many dimensions are normalised.
        """
        if not self.function:
            return self.evaluate(x, self.effective(weight), bias, eps, dims).y
        shape, weight = x.shape[x.dim() - dims :], self.effective(weight)
        wide = x.float() if self.input_is_widened else x
        y = F.layer_norm(wide, shape, weight, bias, eps) if self.centred else F.rms_norm(wide, shape, weight, eps)
        return y.to(x.dtype) if self.input_is_widened else y

    def effective(self, weight: Tensor | None) -> Tensor | None:
        """What the normalised input is multiplied by: the weight with its offset, in the dtype of the product."""
        if weight is None:
            return None
        weight = weight.float() if self.weight_is_widened else weight
        return weight + self.offset if self.offset else weight

    def result_dtype(self, x: torch.dtype, weight: torch.dtype | None, bias: torch.dtype | None) -> torch.dtype:
        """The dtype of the output for an input, a weight and a bias of these dtypes."""
        if self.keeps_dtype:
            return x
        if self.rounds == "to half weight" and weight in HALF:
            x = weight
        elif self.rounds != "to input":
            x = torch.promote_types(x, torch.float32)
        for dtype in (weight, bias):
            x = x if dtype is None else torch.promote_types(x, dtype)
        return x

    def evaluate(
        self,
        x: Tensor,
        factor: Tensor | None,
        bias: Tensor | None,
        eps: float,
        dims: int = 1,
        *,
        reuse_memory: bool = False,
    ) -> Evaluated:
        """The same with the statistics.

        Args:
            factor: the effective weight.
            reuse_memory: write results where intermediate ones were, if gradients are disabled. On a CPU, allocating
                memory takes longer than computing what is written to it; but no tracer follows it.
        """
        if self.function:
            return self._evaluate_function(x, factor, bias, eps, dims)
        store = _into if reuse_memory and not torch.is_grad_enabled() else _new
        wide, last = x.to(torch.float32), tuple(range(-dims, 0))
        mean = wide.mean(last, keepdim=True) if self.centred else None
        centred = wide if mean is None else wide - mean
        squares = centred.pow(2)
        variance = squares.mean(last, keepdim=True) + eps
        reciprocal = torch.rsqrt(variance)
        if self.divides:
            normalised = store(squares, torch.div, centred, torch.sqrt(variance))
        elif self.root_is_rounded:
            normalised = store(squares, torch.mul, x, reciprocal.to(x.dtype))
        else:
            normalised = store(squares, torch.mul, x if self.multiplies_input else centred, reciprocal)
        return Evaluated(self._finish(normalised, x.dtype, factor, bias, store), mean, reciprocal)

    def _finish(
        self, normalised: Tensor, dtype: torch.dtype, factor: Tensor | None, bias: Tensor | None, store: Store
    ) -> Tensor:
        if self.rounds == "to input":
            normalised = normalised.to(dtype)
        elif self.rounds == "to half weight" and factor is not None and factor.dtype in HALF:
            normalised = normalised.to(factor.dtype)
        y = normalised if factor is None else store(normalised, torch.mul, normalised, factor)
        y = y if bias is None else store(y, torch.add, y, bias)
        return y.to(dtype) if self.keeps_dtype else y

    def _evaluate_function(
        self, x: Tensor, factor: Tensor | None, bias: Tensor | None, eps: float, dims: int
    ) -> Evaluated:
        shape, wide = list(x.shape[x.dim() - dims :]), x.float() if self.input_is_widened else x
        mean: Tensor | None = None
        if self.centred:
            y, mean, reciprocal = torch.native_layer_norm(
                wide, shape, *_for_wide_statistics(wide, shape, factor, bias), eps
            )
        elif factor is None or factor.dtype == wide.dtype:
            y, reciprocal = torch.ops.aten._fused_rms_norm(wide, shape, factor, eps)
        else:  # it is not one kernel then
            y, precise = F.rms_norm(wide, shape, factor, eps), torch.promote_types(wide.dtype, torch.float32)
            reciprocal = torch.rsqrt(wide.to(precise).pow(2).mean(tuple(range(-dims, 0)), keepdim=True) + eps)
        return Evaluated(y.to(x.dtype) if self.input_is_widened else y, mean, reciprocal)


def _new(_: Tensor, operation: Operation, a: Tensor, b: Tensor) -> Tensor:
    return operation(a, b)


def _into(used: Tensor, operation: Operation, a: Tensor, b: Tensor) -> Tensor:
    """The result of an operation in the memory of a tensor that is not needed any more, if it has the dtype."""
    return operation(a, b, out=used if torch.result_type(a, b) == used.dtype else None)


def _for_wide_statistics(
    x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias with which `native_layer_norm` returns the same output, and statistics in float32.

    In half precision it returns them rounded on a CPU, but not if the weight is in float32, as it computes with it.
    """
    if x.device.type != "cpu" or x.dtype not in HALF:
        return weight, bias
    if weight is None and bias is None:
        return x.new_ones(shape, dtype=torch.float32), None
    return None if weight is None else weight.float(), None if bias is None else bias.float()
