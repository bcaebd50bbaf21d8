"""Norms of rows: as PyTorch, Transformers and Liger compute them, and as this package does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_invact.norms import LAYER_NORM, LLAMA, RMS_NORM, NormForm
from hf_invact.ops.channels import tells_output
from hf_invact.ops.norm import normalize
from hf_invact.ops.operators.norm import EXACT_NORM, EXACT_NORM_BACKWARD, NORM, NORM_BACKWARD

from ..timing import Call
from . import implementations
from .implementations import Implementation
from .traffic import NORM as FUSED
from .traffic import MixedTraffic, Moves, Traffic

EPS = 1e-6
_WANTED = [True, True, True]
# In tensors of the input's dtype: x, normalized -> normalized, y; in the backward pass dy, normalized -> the products
# for the normalized input and the weight, the latter summed, the former widened; dx. In float32: x -> square -> mean;
# x -> normalized; in the backward pass two products, the square's derivative, their sum.
_LLAMA_TRAFFIC = MixedTraffic(narrow=Traffic(forward=4, backward=8), wide=Traffic(forward=7, backward=17))


@dataclass(frozen=True)
class Norm:
    """A norm of the rows of ``x``, with a weight, and with a bias if it subtracts the mean.

    Attributes:
        name: in the results.
        form: how it is computed.
        native_traffic: what the native kernels move for an input in half precision. Statistics are left out.
    """

    name: str
    form: NormForm
    native_traffic: Moves = FUSED

    inverted_traffic = FUSED

    def tensors(
        self, shape: tuple[int, int], dtype: torch.dtype, generator: torch.Generator
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The gradient of the result, and the inputs."""
        options: dict[str, Any] = {"generator": generator, "dtype": dtype, "device": generator.device}
        dy, x = (torch.randn(shape, **options) for _ in range(2))
        weight = 1 + torch.randn(shape[1], **options) / 8
        return dy, (x, weight, torch.randn(shape[1], **options) / 8) if self.form.centred else (x, weight)

    def native(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """As models compute it."""
        return self.form.forward(x, weight, bias, EPS)


NORMS = (Norm("layer_norm", LAYER_NORM), Norm("rms_norm", RMS_NORM), Norm("llama_norm", LLAMA, _LLAMA_TRAFFIC))


def native(operator: Norm, dy: Tensor, inputs: tuple[Tensor, ...]) -> Implementation:
    """The kernels that PyTorch runs, backward those of a graph that is kept."""
    return Implementation(_calls(operator.native, dy, inputs), operator.native_traffic)


def compiled(operator: Norm, dy: Tensor, inputs: tuple[Tensor, ...]) -> Implementation:
    """The same through `torch.compile`, for these shapes."""
    return Implementation(_calls(torch.compile(operator.native, dynamic=False), dy, inputs), FUSED)


def liger(operator: Norm, dy: Tensor, inputs: tuple[Tensor, ...]) -> Implementation:
    """Liger's norm, only through autograd.

    Raises:
        Unavailable: no CUDA device, or the package is not installed.
    """
    module, name = ("layer_norm", "LayerNorm") if operator.form.centred else ("rms_norm", "RMSNorm")
    found = implementations.import_liger(f"liger_kernel.ops.{module}", f"Liger{name}Function", inputs[0].device)
    # By default the gradient of an RMSNorm overwrites that of its output, which is needed again here.
    settings = (EPS,) if operator.form.centred else (EPS, 0.0, "llama", False)
    return Implementation(_calls(lambda *tensors: found.apply(*tensors, *settings), dy, inputs), FUSED)


def inverted(operator: Norm, backend_name: str, dy: Tensor, inputs: tuple[Tensor, ...]) -> Implementation:
    """One of our backends. Of an output in float16 it keeps the input, as where a model is patched."""
    form, (x, weight, *rest) = operator.form, inputs
    bias = rest[0] if rest else None
    settings = form.name, backend_name
    dtypes = x.dtype, weight.dtype, None if bias is None else bias.dtype
    calls: dict[str, Call]
    if tells_output(form, *dtypes):
        y, *saved = NORM(x, weight, bias, EPS, 1, *settings)
        calls = {
            "forward": lambda: NORM(x, weight, bias, EPS, 1, *settings),
            "backward": lambda: NORM_BACKWARD(dy, y, *saved, weight, bias, 1, x.dtype, _WANTED, *settings),
        }
    else:
        _, mean, reciprocal = EXACT_NORM(x, weight, bias, EPS, 1, *settings)
        of_rows = mean if form.centred else None, reciprocal
        calls = {
            "forward": lambda: EXACT_NORM(x, weight, bias, EPS, 1, *settings),
            "backward": lambda: EXACT_NORM_BACKWARD(dy, x, *of_rows, weight, bias, 1, _WANTED, *settings),
        }

    def norm(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return normalize(x, weight, bias, form, EPS, backend=backend_name)

    return Implementation({**calls, "autograd": _calls(norm, dy, inputs)["autograd"]}, operator.inverted_traffic)


def _calls(function: Callable[..., Tensor], dy: Tensor, inputs: tuple[Tensor, ...]) -> dict[str, Call]:
    leaves = tuple(tensor.detach().requires_grad_() for tensor in inputs)
    output = function(*leaves)
    return {
        "forward": lambda: function(*inputs),
        "backward": lambda: torch.autograd.grad(output, leaves, dy, retain_graph=True),
        "autograd": lambda: torch.autograd.grad(function(*leaves), leaves, dy),
    }
